"""Which tests are slow: the marker "slow", which ``make check`` leaves out, and the list that it comes from.

The list, tests/slow.txt, holds the functions whose cases together need more than LIMIT seconds of processors, with
those of the programs that they start. Not seconds on the clock: those are others' doing on a busy machine. It is
made by ``pytest -n 2 -m "not root" --renew-slow``; a test sees to it that all it names is there.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

LIST = Path(__file__).with_suffix(".txt")
#: Seconds of processors, all cases of a function together.
LIMIT = 0.5
#: What a report calls the seconds of its test.
NEED = "seconds of processors"


def listed() -> list[str]:
    """The functions of the list, as "tests/unit/test_x.py::test_y"."""
    return [line for line in LIST.read_text().splitlines() if line and not line.startswith("#")]


def function_of(nodeid: str) -> str:
    """Without what tells its cases apart."""
    return nodeid.partition("[")[0]


def mark(items: list[pytest.Item]) -> None:
    """Mark as slow what the list names."""
    slow = set(listed())
    for item in items:
        if function_of(item.nodeid) in slow:
            item.add_marker("slow")


class Renewal:
    """Measures what every test needs, and writes the list anew at the end.

    A test that did not run (another machine's, deselected) keeps its place in the list. Between workers and the
    process that started them the figures travel in reports.
    """

    def __init__(self) -> None:
        self._need: dict[str, float] = defaultdict(float)
        self._begun = 0.0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, bool, bool]:
        self._begun = _processors()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Generator[
            None, pytest.TestReport, pytest.TestReport]:
        if call.when == "teardown":
            item.user_properties.append((NEED, _processors() - self._begun))
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self._need[function_of(report.nodeid)] += sum(
                need for name, need in report.user_properties if name == NEED and isinstance(need, float))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            self.write()

    def write(self) -> None:
        """Write the list, by what was seen."""
        slow = {name for name, need in self._need.items() if need > LIMIT}
        slow |= {name for name in listed() if name not in self._need}
        head = [line for line in LIST.read_text().splitlines() if line.startswith("#")]
        LIST.write_text("\n".join([*head, *sorted(slow)]) + "\n")


def _processors() -> float:
    """Seconds that this process and the children it waited for have had."""
    return sum(os.times()[:4])
