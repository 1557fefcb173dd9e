"""What experiments tell of their rows: how each mode is judged, and which pictures and texts a report has of them.

An experiment registers what is its own (:mod:`workloads.experiments.experiment`), so nothing here knows any. A
mode that nobody registered is judged by RPC/s; ``smtnet report`` loads every experiment before it reads a folder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeAlias, TypeVar

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
    """What the figures of its table are, with their unit; "": what :func:`rate` says."""
    alone: bool = False
    """One RPC at a time: nobody has to be told how many are under way."""

    @property
    def timed(self) -> bool:
        """Whether it is judged by a time."""
        return self.figure != RATE


@dataclass(frozen=True, slots=True)
class Variant:
    """Rows of modes that RPCs have, too, which are another thing: pictures of RPCs leave them out."""

    prefix: str
    """How ``variant`` begins in such rows."""
    rate: str
    """What is counted in place of RPC/s, for headings."""


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


Kind: TypeAlias = Mode | Variant | Picture | Section
K = TypeVar("K", Mode, Variant, Picture, Section)

#: By class and by name, prefix, file or title.
_KNOWN: dict[tuple[type, str], Kind] = {}


def register(*kinds: Kind) -> None:
    """Make them known. The same picture may be that of several experiments; a name that means two things is an
    error in a program: AssertionError."""
    for kind in kinds:
        name = getattr(kind, fields(kind)[0].name)
        assert _KNOWN.setdefault((type(kind), name), kind) == kind, f"two {type(kind).__name__.lower()}s {name}"


def all_of(kind: type[K]) -> tuple[K, ...]:
    """All that were registered."""
    return tuple(one for one in _KNOWN.values() if isinstance(one, kind))


def mode(name: str) -> Mode:
    """The one of that name."""
    found = _KNOWN.get((Mode, name))
    return found if isinstance(found, Mode) else Mode(name)


def _variant(text: str) -> Variant | None:
    return next((kind for kind in all_of(Variant) if text.startswith(kind.prefix)), None)


def rate(variant: str) -> str:
    """What rows of this ``variant`` count each second: ``RPC/s``, if nobody registered another name."""
    found = _variant(variant)
    return "RPC/s" if found is None else found.rate


def apart(row: Row) -> bool:
    """Whether a row is something else than RPCs in a mode that RPCs have, too (:class:`Variant`)."""
    return _variant(row.get("variant") or "") is not None


register(Mode("unloaded", "p50", "median round trip in us", alone=True), Mode("loaded"))
