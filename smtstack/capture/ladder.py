"""One RPC as a ladder: what each end did, and every packet as a rung between them; as text, or as a picture."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smtstack.capture.traces import RpcTrace
from smtstack.transport import trace
from smtstack.transport.trace import TraceEvent

#: Characters between the two ends, and of the column of times.
_WIDTH, _TIME = 84, 12
#: Rungs of the longest picture: beyond, nobody could look at it.
MAX_ROWS = 600
_ROW_INCHES, _PICTURE_WIDTH, _DPI = 0.2, 11.0, 110
#: What all packets of an RPC say.
_SAME = re.compile(r" rpc \d+ (client|server)(?=,)")
#: Where a packet ends in the picture that did not arrive.
_LOST_AT = 0.72
_COLOURS = {"DATA": "#0072B2", "again": "#D55E00", "other": "#009E73"}


@dataclass(slots=True)
class Rung:
    """Something one end did, or a packet."""

    time: int
    client: bool
    """Whose doing: the sender's of a packet."""
    text: str
    packet: bool = False
    arrived: list[TraceEvent] = field(default_factory=list)
    """What the other end received of a packet or segment."""
    length: int = -1
    """Payload bytes of DATA."""
    known: bool = True
    """Whether the trace of the other end is there, so that nothing received is nothing arrived."""

    def fate(self) -> str:
        """What became of a packet, in microseconds from when it left; "": nobody knows."""
        if not self.packet or not self.known:
            return ""
        if not self.arrived:
            return "lost"
        after = [f"+{(event.time - self.time) / 1000:.1f}" for event in (self.arrived[0], self.arrived[-1])]
        text = after[0] if after[0] == after[1] else f"{after[0]} to {after[1]}"
        received = sum(event.length for event in self.arrived)
        return f"{text}, {received} of {self.length} B" if 0 <= received < self.length else text


def rungs(rpc: RpcTrace, handshake: Sequence[TraceEvent] = ()) -> list[Rung]:
    """What there is to draw, in order of time. ``handshake``: of the session that the RPC waited for."""
    out: list[Rung] = []
    events = sorted([*handshake, *rpc.events], key=lambda e: e.time)
    received = [e for e in events if e.name == trace.RECEIVED]
    taken: set[int] = set()
    for event in events:
        if event.name == trace.SENT:
            known = (not event.client) in rpc.ends
            arrived = [r for r in received if id(r) not in taken and _is_of(r, event)]
            if event.total < 0:
                del arrived[1:]
            taken.update(map(id, arrived))
            out.append(Rung(event.time, event.client, _short(event.text), True, arrived, event.length, known))
        elif event.name != trace.RECEIVED:
            out.append(Rung(event.time, event.client, describe(event)))
    # What nobody here sent: its sender's trace is not there.
    out += [Rung(r.time, not r.client, _short(r.text), True, [r], r.length) for r in received
            if id(r) not in taken]
    return sorted(out, key=lambda rung: rung.time)


def _short(text: str) -> str:
    """A packet's line without what all lines of one RPC have in common."""
    return _SAME.sub("", text, count=1)


def _is_of(received: TraceEvent, sent: TraceEvent) -> bool:
    """Whether a packet is (part of) what was sent."""
    if received.client == sent.client or received.time < sent.time:
        return False
    if sent.total < 0:
        return received.text == sent.text
    return (received.message == sent.message and _again(received) == _again(sent)
            and sent.offset <= received.offset < sent.offset + max(sent.length, 1))


def _again(event: TraceEvent) -> bool:
    return ", again" in event.text


def describe(event: TraceEvent) -> str:
    """An event that is no packet, in words."""
    words = [event.name]
    if event.message:
        words.append(event.message)
    match event.name:
        case trace.GRANTED | trace.QUEUED if event.length != event.total:
            words.append(f"up to {event.length} of {event.total}")
        case trace.OPENED:
            words.append(f"{event.count} record{'s' * (event.count != 1)}")
        case _ if event.offset >= 0 and event.length >= 0:
            words.append(f"{event.offset}+{event.length}" if event.offset else f"{event.length} B")
    if event.name == trace.RESENT:
        words.append(f"({event.count} packets)")
    if event.name == trace.DOUBTED and event.count > 1:
        words.append(f"(time {event.count})")
    text = " ".join(words)
    return f"{text}: {event.why}" if event.why else text


def as_text(rpc: RpcTrace, drawn: Sequence[Rung]) -> str:
    """The client on the left, the server on the right; times are microseconds since the RPC began."""
    begin, _end = rpc.span()
    out = [*_title(rpc), "", f"{'us':>{_TIME}} {'client':<{_WIDTH - 6}}server"]
    for rung in drawn:
        at = f"{(rung.time - begin) / 1000:>{_TIME}.1f} "
        if not rung.packet:
            side = f"| {rung.text[:_WIDTH - 4]:<{_WIDTH - 3}}|" if rung.client else \
                f"|{rung.text[:_WIDTH - 4]:>{_WIDTH - 3}} |"
            out.append(at + side)
            continue
        lost = rung.fate() == "lost"
        said = f" {rung.text[:_WIDTH - 10]} "
        dashes = f"{said:-^{_WIDTH - 4}}"
        arrow = f"|{dashes}{'-X' if lost else '->'}|" if rung.client else f"|{'X-' if lost else '<-'}{dashes}|"
        out.append(f"{at}{arrow} {rung.fate()}".rstrip())
    return "\n".join(out)


def _title(rpc: RpcTrace) -> list[str]:
    begin, end = rpc.span()
    waited = ", ".join(f"{name} {ns / 1000:.1f}" for name, ns in rpc.phases().items() if ns)
    return [f"{rpc.key}: {rpc.outcome()} after {(end - begin) / 1000:.1f} us",
            f"waited (us): {waited or 'not at all'}"]


def as_picture(rpc: RpcTrace, drawn: Sequence[Rung], path: Path) -> None:
    """Draw the ladder as a picture. Times are in order, not to scale: silence is long and packets are short.

    Needs matplotlib. Raises OSError.
    """
    from matplotlib.figure import Figure

    begin, _end = rpc.span()
    shown = list(drawn[:MAX_ROWS])
    times = sorted({(r.time, n) for n, r in enumerate(shown)})
    # A row for each rung and each time something arrived.
    rows: dict[Any, float] = {}
    marks = [(time, 0, ("rung", n)) for time, n in times]
    marks += [(event.time, 1, ("event", id(event))) for r in shown for event in r.arrived]
    for row, (_time, _kind, mark) in enumerate(sorted(marks, key=lambda m: m[:2])):
        rows.setdefault(mark, float(row))
    height = max(3.0, min(len(marks) * _ROW_INCHES, 300.0)) + 1.0
    figure = Figure(figsize=(_PICTURE_WIDTH, height), dpi=_DPI)
    axes = figure.add_axes((0.09, 0.02, 0.88, 1 - 1.0 / height))
    for x, name in ((0, "client"), (1, "server")):
        axes.axvline(x, color="black", linewidth=1)
        axes.text(x, -1.2, f"{name} {rpc.key.client if x == 0 else rpc.key.server}", ha="center", fontsize=8)
    for n, rung in enumerate(shown):
        _draw(axes, rung, rows["rung", n], rows)
        axes.text(-0.42, rows["rung", n], f"{(rung.time - begin) / 1000:.1f}", fontsize=6, va="center", ha="right")
    axes.set_xlim(-0.44, 1.36)
    axes.set_ylim(max(len(marks), 1) + 0.5, -2)
    axes.axis("off")
    figure.suptitle("\n".join(_title(rpc)), fontsize=8)
    figure.savefig(path)


def _draw(axes: Any, rung: Rung, row: float, rows: dict[Any, float]) -> None:
    here = 0.0 if rung.client else 1.0
    if not rung.packet:
        axes.text(here - 0.01 if rung.client else here + 0.01, row, rung.text, fontsize=6, va="center",
                  ha="right" if rung.client else "left")
        return
    kind = "again" if ", again" in rung.text else "DATA" if rung.text.startswith("DATA") else "other"
    colour = _COLOURS[kind]
    for event in rung.arrived:
        axes.annotate("", (1 - here, rows["event", id(event)]), (here, row), annotation_clip=False,
                      arrowprops={"arrowstyle": "->", "color": colour, "linewidth": 0.7})
    if not rung.arrived:
        there = _LOST_AT if rung.known else 1.0
        end = there if rung.client else 1 - there
        axes.plot([here, end], [row, row + 0.3], color=colour, linewidth=0.7, linestyle="--")
        if rung.known:
            axes.plot([end], [row + 0.3], marker="x", color=colour, markersize=5)
    missing = rung.known and sum(event.length for event in rung.arrived) < rung.length
    label = f"{rung.text}: {rung.fate()}" if missing else rung.text
    axes.text(0.5, row, label, fontsize=5.5, va="bottom", ha="center", color=colour)


def as_json(rpc: RpcTrace, drawn: Sequence[Rung]) -> dict[str, Any]:
    """The RPC and its rungs, times in ns since it began."""
    begin, _end = rpc.span()
    return {**rpc.as_json(), "ladder": [
        {"at_ns": r.time - begin, "by": "client" if r.client else "server",
         "what": r.text, "packet": r.packet, **({"fate": r.fate() or "not known"} if r.packet else {})}
        for r in drawn]}
