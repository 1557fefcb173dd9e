"""What experiments tell of their rows: how each mode is judged, and which pictures and texts a report has of them.

An experiment registers what is its own (:mod:`workloads.experiments.experiment`), so nothing here knows any. A
mode that nobody registered is judged by RPC/s; ``smtnet report`` loads every experiment before it reads a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from workloads.results.row import Row

#: Of a mode that is judged by how much gets done.
RATE = "rpc_per_s"


@dataclass(frozen=True, slots=True)
class Mode:
    """How the trials of one ``mode`` of rows are judged and headed."""

    name: str
    figure: str = RATE
    """A percentile of ``rtt_us``, of which less is better, or :data:`RATE`."""
    heading: str = ""
    """Of its table: what the figures are, with their unit; "": RPC/s, or operations/s of key-value stores."""
    alone: bool = False
    """One RPC at a time: nobody has to be told how many are under way."""

    @property
    def timed(self) -> bool:
        """Whether it is judged by a time."""
        return self.figure != RATE


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture of a report."""

    file: str
    draw: Callable[[Sequence[Row], Path], bool]
    """Writes it; False: there are no rows for it, and there is no file."""
    title: str


@dataclass(frozen=True, slots=True)
class Section:
    """A text of a report, under a heading of its own."""

    title: str
    text: Callable[[Sequence[Row]], str]
    """"": there are no rows for it."""


Kind: TypeAlias = Mode | Picture | Section

_MODES: dict[str, Mode] = {}
_PICTURES: dict[str, Picture] = {}
_SECTIONS: dict[str, Section] = {}


def register(*kinds: Kind) -> None:
    """Make them known. The same picture may be that of several experiments; a name that means two things is an
    error in a program: AssertionError."""
    for kind in kinds:
        match kind:
            case Mode(name=name):
                assert _MODES.setdefault(name, kind) == kind, f"two modes {name}"
            case Picture(file=file):
                assert _PICTURES.setdefault(file, kind) == kind, f"two pictures {file}"
            case Section(title=title):
                assert _SECTIONS.setdefault(title, kind) == kind, f"two sections {title}"


def mode(name: str) -> Mode:
    """The one of that name."""
    return _MODES.get(name) or Mode(name)


def pictures() -> tuple[Picture, ...]:
    """All that a report may have."""
    return tuple(_PICTURES.values())


def sections() -> tuple[Section, ...]:
    """All that a report may have."""
    return tuple(_SECTIONS.values())


register(Mode("unloaded", "p50", "median round trip in us", alone=True), Mode("loaded"))
