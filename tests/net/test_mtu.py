"""A cable whose ends have different MTUs: sessions carry long messages, and who has none is told why it cannot."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from smtstack.session.established import MODES
from tests.net.netns import IFACE, IMPATIENT, Net
from tests.net.test_sessions import Lab

pytestmark = pytest.mark.root

#: Of hosts a, which asks, and b.
MTUS = [(1500, 9000), (9000, 1500), (600, 1500)]


@contextmanager
def mtus(net: Net, a: int, b: int) -> Iterator[None]:
    """For as long as it takes."""
    def of(namespace: str, mtu: int) -> None:
        subprocess.run(["ip", "-n", namespace, "link", "set", IFACE, "mtu", str(mtu)], check=True)

    of(net.a, a)
    of(net.b, b)
    try:
        yield
    finally:
        of(net.a, 1500)
        of(net.b, 1500)


@pytest.fixture(scope="module")
def lab(net: Net, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    lab = Lab(net, tmp_path_factory.mktemp("lab"))
    with lab.resolver():
        yield lab


@pytest.mark.parametrize(("a", "b"), MTUS)
@pytest.mark.parametrize("mode", MODES)
def test_sessions_agree_on_the_smaller_mtu(lab: Lab, mode, a, b):
    frames: list[bytes] = []
    with mtus(lab.net, a, b), lab.serve(mode), lab.net.sniff(frames):
        lab.call(mode, 5, "--size", "20000")
    ours = [len(f) - 14 for f in frames if f[12:14] == b"\x08\x00" and f[23] == 146]
    assert max(ours) == min(a, b)


@pytest.mark.parametrize(("a", "b"), MTUS)
@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_without_a_handshake_the_error_names_the_mtu(net: Net, profile, a, b):
    with mtus(net, a, b), net.serve(profile):
        assert net.call(profile, "--size", "64", "--count", "3")[2] in (0, 4)
        _result, errors, code = net.call(profile, "--size", "20000", "--count", "3", *IMPATIENT)
    assert code == 1
    assert f"MTU? here: {a}" in errors or f"the MTU here is {a}" in errors
