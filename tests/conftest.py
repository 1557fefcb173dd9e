"""For every test: which ones need root, which are slow, which run on both builds, what
root's workers are, how hard Hypothesis tries."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from hypothesis import settings

from smtstack import compiled
from tests import builds, slow
from topo.needs import NEEDS, lacking
from workloads.results.fidelity import shorten_pauses

ROOT = Path(__file__).resolve().parents[1]

# The tests start Python more than a thousand times. Where it may not keep what it has compiled, each of these
# compiles all of smtnet anew, which is most of what they then take: so it is kept, but not beside the sources.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(ROOT / ".pytest_cache" / "bytecode")

# A worker has all tests, which are a million objects and stay: looking through them again and again for cycles
# that are garbage is an eighth of what all tests without root take.
gc.disable()

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
    # Behind "&" in a script a shell has it ignored, which all that tests start would inherit: some interrupt it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # As root, each worker of pytest-xdist is in a sandbox of its own: tests beside each other never meet.
    if os.geteuid() == 0 and config.getoption("tx", None):
        python = shlex.join([sys.executable, str(ROOT / "tests" / "worker.py")])
        config.option.tx = [f"popen//python={python}" if tx == "popen" else tx for tx in config.option.tx]


def pytest_report_header() -> str:
    return f"protocol code: {compiled.description()}"


# First: pytest's own, which selects by markers, comes after it.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    slow.mark(items)
    builds.mark(items)
    marked = [item for item in items if item.get_closest_marker("root")]
    for item in marked:
        if ROOT / "tests" / "net" not in item.path.parents:
            raise pytest.UsageError(f"{item.nodeid}: marked root, and not in tests/net, where 'make test' looks")
    items[:] = _mixed(items, {item.path for item in marked})
    _skip_what_the_kernel_lacks(items)
    if os.geteuid() != 0:
        skip = pytest.mark.skip(reason="marked root: needs root (namespaces, Mininet), and this user is not")
        for item in marked:
            item.add_marker(skip)


def _skip_what_the_kernel_lacks(items: list[pytest.Item]) -> None:
    """A test that is marked by a need (topo/needs.py) has it, or is skipped, and the reason says where it runs."""
    for item in items:
        for need in NEEDS:
            if item.get_closest_marker(need) and (why := lacking(need)):
                item.add_marker(pytest.mark.skip(reason=f"needs {need}, which this machine has not ({why}): "
                                                        "make vm-test"))


def pytest_collection_finish() -> None:
    shorten_pauses()
    gc.enable()


def pytest_sessionfinish() -> None:
    if "topo.forked" in sys.modules:
        sys.modules["topo.forked"].end_servers()


def _mixed(items: list[pytest.Item], waiting: Collection[Path]) -> list[pytest.Item]:
    """File by file, those that mostly wait spread evenly among those that compute: a worker's share of the tests
    is a stretch of them, and so each has something of both. A file's tests stay together, with what they share."""
    files: dict[Path, list[pytest.Item]] = {}
    for item in items:
        files.setdefault(item.path, []).append(item)
    # Where in its own half each test's file begins, as a share of that half.
    places: dict[Path, float] = {}
    for kind in (True, False):
        half = [path for path in files if (path in waiting) == kind]
        whole, before = sum(len(files[path]) for path in half), 0
        for path in half:
            places[path] = before / whole
            before += len(files[path])
    return [item for path in sorted(files, key=lambda path: places[path]) for item in files[path]]
