"""Which tests run on both builds of the hot modules, compiled and interpreted (smtstack/compiled.py).

``make test`` runs everything with the build that people get, and before that, with the sources, what is marked
``both`` or ``interpreted``. The rule for ``both``: the suites that hold the protocol against everybody, by their
files' names. ``make check`` runs with the sources, whatever is quick.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from smtstack import compiled

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "unit"
#: How names of files begin: engine, attacks, fuzzers, the path of most packets, NIC, sessions.
SUITES = ("test_engine", "test_attacks", "test_fuzz", "test_hot_path", "test_nic", "test_overlay", "test_session",
          "test_tls_rx", "test_tls_tx")


def files() -> list[str]:
    """The files that have anything that is to run with the sources."""
    return [str(path.relative_to(ROOT)) for path in sorted(FOLDER.parent.rglob("test_*.py"))
            if _is_of_suites(path) or "mark.interpreted(" in path.read_text()]


def _is_of_suites(path: Path) -> bool:
    return path.parent == FOLDER and path.name.startswith(SUITES)


def mark(items: list[pytest.Item]) -> None:
    """Mark what runs on both builds; skip, on the compiled one, what is of the sources."""
    for item in items:
        if _is_of_suites(item.path):
            item.add_marker("both")
        own = item.get_closest_marker("interpreted")
        if own is not None and compiled.is_compiled():
            reason = f"marked interpreted: {own.args[0]}; make test runs it with the sources"
            item.add_marker(pytest.mark.skip(reason=reason))


if __name__ == "__main__":
    print(*files())
