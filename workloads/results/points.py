"""The points of a run: trials of the same point put together, judged, and named for people.

A row (:mod:`workloads.results.row`) is one trial of one point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from workloads.results import kinds
from workloads.results.row import Row, Verdict
from workloads.transports.table import BASELINE, system_label

T = TypeVar("T")
K = TypeVar("K")
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
#: What makes two rows trials of the same point.
_POINT = ("topo", "transport", "nic", "mode", "poll", "variant", "size", "concurrency")


def label(row: Mapping[str, Any]) -> str:
    """The system as tables call it: ``smt-sw``, ``smt-hw``, ``homa``, ``tcp``. Where a NIC does nothing for a
    transport, it is not named."""
    return system_label(row["transport"], row.get("nic"))


class Column(NamedTuple):
    """What the systems of a table are compared at: a message size and how many RPCs are under way."""

    size: int | str
    """Request bytes; or the name of a distribution (``w3``)."""
    concurrency: int

    def order(self) -> tuple[bool, int | str, int]:
        """Sizes in ascending order, then names."""
        return isinstance(self.size, str), self.size, self.concurrency


@dataclass(frozen=True, slots=True)
class QuotedPoint:
    """All trials of one point: the middle one is quoted, beside the lowest and the highest."""

    quoted: Row
    """The middle trial, by what its mode is judged by (:class:`~workloads.results.kinds.Mode`)."""
    value: float | None
    """What :func:`metric` says; None: nothing was answered."""
    low: float | None
    high: float | None
    trials: int
    errors: int
    """RPCs without an answer, of all trials."""
    content_ok: bool
    """In every trial."""
    reasons: tuple[str, ...] = ()
    """Why :attr:`value` is not faithful, from all trials; empty: it was in all."""

    @property
    def label(self) -> str:
        """The system, as tables call it (:func:`label`)."""
        return label(self.quoted)

    @property
    def faithful(self) -> bool:
        """Every trial was: a middle among disturbed neighbours is no middle."""
        return not self.reasons

    @property
    def failed(self) -> bool:
        """RPCs were lost or answered wrongly: the figure is of what was left."""
        return self.value is None or self.errors > 0 or not self.content_ok

    @property
    def panel(self) -> tuple[str, str, str, str]:
        """What may stand in one table or picture: (topo, mode, poll, variant)."""
        row = self.quoted
        return row["topo"], row["mode"], row.get("poll") or "", row.get("variant") or ""

    @property
    def column(self) -> Column:
        """What the systems of a panel are compared at."""
        return Column(self.quoted["size"], self.quoted.get("concurrency") or 1)


def metric(row: Row) -> float | None:
    """What a trial is judged by: a time in us or RPC/s. None: no answer."""
    kind = kinds.mode(row["mode"])
    value = row["rtt_us"][kind.figure] if kind.timed else row["rpc_per_s"]
    return float(value) if value and math.isfinite(value) else None


def middle(rows: Sequence[Row]) -> QuotedPoint:
    """The trials of one point as one: of an even number the worse of the two in the middle."""
    mode = kinds.mode(rows[0]["mode"])
    timed = mode.timed
    # A trial without a single answer is the worst there is, not one to leave out.
    worst = math.inf if timed else 0.0
    values = sorted(((metric(row) or worst, index) for index, row in enumerate(rows)), reverse=not timed)
    value, index = values[len(values) // 2]
    known = [v for v, _i in values if v != worst]
    # A median can stand where a tail cannot.
    reasons = _by_kind((reason, row) for row in rows for reason in figure_reasons(row, mode.figure))
    return QuotedPoint(
        rows[index], None if value == worst else value, min(known, default=None), max(known, default=None),
        len(rows), sum(row["errors"] for row in rows), all(row["content_ok"] for row in rows),
        tuple(max(found, key=_amount)[0] for found in reasons))


def figure_reasons(row: Row, figure: str) -> list[str]:
    """Why a figure of a trial cannot stand; rows of older runs know of the whole trial only."""
    fidelity = row.get("fidelity") or {}
    if "figures" not in fidelity:
        return _reasons(row)
    if fidelity["figures"].get(figure, True):
        return []
    return str(fidelity["figure_reasons"].get(figure) or "not faithful").split("; ")


def _reasons(row: Row) -> list[str]:
    fidelity = row.get("fidelity") or {}
    if fidelity.get("ok", True):
        return []
    return [str(reason) for reason in fidelity.get("reasons") or ["not faithful"]]


def points(rows: Iterable[Row]) -> list[QuotedPoint]:
    """Every point, in the order its first trial stands in."""
    return [middle(trials) for trials in grouped(rows, lambda row: tuple(map(row.get, _POINT))).values()]


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by their key, in the order in which the first of each comes."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def ratio(point: QuotedPoint, among: Iterable[QuotedPoint]) -> float | None:
    """The value of ``point`` by that of :data:`BASELINE` at the same load in the same panel; None if there is no
    such point."""
    for other in among:
        if other.label == BASELINE and other.panel == point.panel and other.column == point.column:
            return point.value / other.value if point.value and other.value else None
    return None


def _by_kind(reasons: Iterable[tuple[str, Row]]) -> list[list[tuple[str, Row]]]:
    """Reasons that differ in their numbers only, together."""
    return list(grouped(reasons, lambda reason: _NUMBER.sub("#", reason[0])).values())


def _amount(reason: tuple[str, Row]) -> float:
    found = _NUMBER.search(reason[0])
    return float(found[0]) if found else 0.0


def overall(rows: Sequence[Row]) -> Verdict:
    """One verdict for a whole run: ``ok``, ``reasons`` (each kind once, with the worst trial), ``trials``,
    ``unfaithful`` (how many of them)."""
    reasons = []
    for found in _by_kind((reason, row) for row in rows for reason in _reasons(row)):
        worst, row = max(found, key=_amount)
        trials = len({id(of) for _reason, of in found})
        reasons.append(f"{trials} of {len(rows)} trials, worst {describe(row)}: {worst}")
    unfaithful = sum(bool(_reasons(row)) for row in rows)
    return {"ok": not unfaithful, "reasons": reasons, "trials": len(rows), "unfaithful": unfaithful}


def first_error(rows: Iterable[Row]) -> str:
    """What the first client said that had one; "": none did, however wrong the answers were."""
    return next((str(row["first_error"]) for row in rows if row.get("first_error")), "")


def session_lines(rows: Iterable[Row]) -> list[str]:
    """How the sessions of smt began since the clients were started, a line for each way; there may be none."""
    last = {(row["session"]["mode"], row.get("variant")): row for row in rows if "session" in row}
    lines = []
    for row in last.values():
        counts = dict(row["session"])
        mode = counts.pop("mode")
        said = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count)
        where = f"; tickets from the DNS server on {row['dns']}" if "dns" in row else ""
        lines.append(f"sessions: {mode}; {said}{where}")
    return list(dict.fromkeys(lines))


def ring_lines(rows: Iterable[Row]) -> list[str]:
    """What the rings of guarded processes counted in all trials, in a line; none where there are no rings."""
    counts = [row["ring"] for row in rows if "ring" in row]
    if not counts:
        return []
    return [f"rings: {sum(c['rejected_indices'] for c in counts)} indices rejected, "
            f"{sum(c['invalid_frames'] for c in counts)} frames invalid, "
            f"{sum(c['sleeps'] for c in counts):,} sleeps, {sum(c['bells'] for c in counts):,} bells, "
            f"{counts[-1]['in_memory']} in memory"]


def describe(row: Row) -> str:
    """``smt-sw star,4 loaded 64 B x50 trial 2``."""
    load = "" if kinds.mode(row["mode"]).alone else f" x{row['concurrency']}"
    poll = f" {row['poll']}" if row.get("poll") in ("hybrid", "polling") else ""
    variant = f" {row['variant']}" if row.get("variant") else ""
    return (f"{label(row)} {row['topo']} {row['mode']}{poll}{variant} {size_text(row['size'])}{load} "
            f"trial {row.get('trial', 1)}")


def size_text(size: int | str) -> str:
    """``64 B``, ``1 KB`` (1024 bytes), ``1 MB`` (a million or 2**20), ``W3``."""
    if isinstance(size, str):
        return size.upper()
    for unit, factor in (("MB", 1 << 20), ("MB", 1_000_000), ("KB", 1024)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"
