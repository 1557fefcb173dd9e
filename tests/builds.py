"""Which tests run on both builds of the hot modules, compiled and interpreted (smtstack/compiled.py).

``make test`` runs everything with the build that people get, and before that, with the sources, what is marked
``both`` or ``interpreted``. The rule for ``both``: the suites that hold the protocol against everybody, by their
files' names. ``make check`` runs with the sources, whatever is quick.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from smtstack import compiled

FOLDER = Path(__file__).parent / "unit"
#: How names of files begin: engine, attacks, fuzzers, NIC, sessions.
SUITES = ("test_engine", "test_attacks", "test_fuzz", "test_nic", "test_session")


def mark(items: list[pytest.Item]) -> None:
    """Mark what runs on both builds; skip, on the compiled one, what is of the sources."""
    for item in items:
        if item.path.parent == FOLDER and item.path.name.startswith(SUITES):
            item.add_marker("both")
        own = item.get_closest_marker("interpreted")
        if own is not None and compiled.is_compiled():
            reason = f"marked interpreted: {own.args[0]}; make test runs it with the sources"
            item.add_marker(pytest.mark.skip(reason=reason))
