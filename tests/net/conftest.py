"""Every test here gets the two namespaces; each file has its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.netns import Net


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    net = Net(tmp_path_factory.mktemp("net"))
    try:
        net.up()
        yield net
    finally:
        net.down()
