"""For every test: which ones need root, which are slow, and how hard Hypothesis tries."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

from tests import slow

# By default the same examples every time: a red run is then red for everybody, and green again by a
# change only. "SMTNET_HYPOTHESIS=long make test" goes looking for new ones.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, print_blob=True)
settings.register_profile("long", derandomize=False, deadline=None, max_examples=5000, print_blob=True)

PROFILE = os.environ.get("SMTNET_HYPOTHESIS", "ci")
settings.load_profile(PROFILE)
if PROFILE == "long":
    # So many examples outlast the usual limit of a test (pyproject.toml).
    os.environ.setdefault("PYTEST_TIMEOUT", "7200")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--renew-slow", action="store_true", help="measure what tests need, and write tests/slow.txt")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("renew_slow"):
        config.pluginmanager.register(slow.Renewal())


# First: pytest's own, which selects by markers, comes after it.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow.mark(items)
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="marked root: needs root (namespaces, Mininet), and this user is not")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)
