"""For every test: which ones need root, and how hard Hypothesis tries."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# The tests start Python more than a thousand times. Where it may not keep what it has compiled, each of these
# compiles all of smtnet anew, which is most of what they then take: so it is kept, but not beside the sources.
if sys.dont_write_bytecode:
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix = str(ROOT / ".pytest_cache" / "bytecode")

# By default the same examples every time: a red run is then red for everybody, and green again by a
# change only. "SMTNET_HYPOTHESIS=long make test" goes looking for new ones.
settings.register_profile("ci", derandomize=True, deadline=None, max_examples=100, print_blob=True)
settings.register_profile("long", derandomize=False, deadline=None, max_examples=5000, print_blob=True)

PROFILE = os.environ.get("SMTNET_HYPOTHESIS", "ci")
settings.load_profile(PROFILE)
if PROFILE == "long":
    # So many examples outlast the usual limit of a test (pyproject.toml).
    os.environ.setdefault("PYTEST_TIMEOUT", "7200")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    skip = pytest.mark.skip(reason="marked root: needs root (namespaces, Mininet), and this user is not")
    for item in items:
        if item.get_closest_marker("root"):
            item.add_marker(skip)


def pytest_configure(config: pytest.Config) -> None:
    if os.geteuid() == 0 and config.option.tx:
        python = shlex.join([sys.executable, str(Path(__file__).with_name("worker.py"))])
        config.option.tx = [f"popen//python={python}" if tx == "popen" else tx for tx in config.option.tx]
