"""Traces of the engine, put together by RPC: where its time went, and who sent what to whom."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from smtstack.capture.qlog import TraceRecord
from smtstack.transport import trace
from smtstack.transport.trace import TraceEvent
from smtstack.wire.ipv4 import format_address

#: What an RPC waits for, with what the columns are called and mean.
SESSION, QUEUE, GRANT, WIRE, DOUBT, APP = "session", "queue", "grant", "wire", "doubt", "app"
PHASES = {
    SESSION: "until there was a session",
    QUEUE: "for other messages (SRPT), the pacer, or room in the NIC's ring",
    GRANT: "for a grant",
    WIRE: "sent, and not there yet; without the other end's trace also all that it did",
    DOUBT: "missed, asked for and sent again",
    APP: "until the server's application answered",
}
#: What packets of the handshake plane are called in a trace.
_HANDSHAKE = "handshake"


class RpcKey(NamedTuple):
    """An RPC, the same at both ends."""

    client: str
    server: str
    epoch: int
    rpc: int
    #: Of an RPC that never had an id: its number at its client; else 0.
    birth: int = 0

    def __str__(self) -> str:
        return f"rpc {self.rpc or '-'}, {self.client} > {self.server}, epoch {self.epoch}"


@dataclass(slots=True)
class RpcTrace:
    """All that is known of one RPC."""

    key: RpcKey
    events: list[TraceEvent] = field(default_factory=list)
    """What both ends noted, in order of time."""
    ends: frozenset[bool] = frozenset()
    """Whose traces there are: True is the client's."""

    def span(self) -> tuple[int, int]:
        """From when to when the RPC is looked at, in ns: until its response or failure is handed over; where only
        the server's trace is there, until the response was sent."""
        begin = self.events[0].time
        last = [e.time for e in self.events if e.client and (
            e.name == trace.FAILED or (e.name == trace.DELIVERED and e.message == trace.RESPONSE))]
        if not last:
            last = [e.time for e in self.events if e.total >= 0 and e.name in (trace.SENT, trace.RECEIVED)]
        return begin, last[-1] if last else self.events[-1].time

    def phases(self) -> dict[str, int]:
        """Nanoseconds by what the RPC waited for; together they are :meth:`span`."""
        begin, end = self.span()
        spent = dict.fromkeys(PHASES, 0)
        phase, since = QUEUE if True in self.ends else WIRE, begin
        for event in self.events:
            if event.time > end:
                break
            # That something was missing is noticed late: it was missing all the while.
            missing = phase == WIRE and _is_doubt(event)
            spent[DOUBT if missing else phase] += event.time - since
            since = event.time
            phase = _after(phase, event)
        spent[phase] += end - since
        return spent

    def size(self, message: str) -> int | None:
        """Bytes of a message as the application has it, or else as the wire counts them; None: not known."""
        found = [(e.name == trace.DELIVERED, e.total) for e in self.events
                 if e.message == message and e.total >= 0]
        return max(found)[1] if found else None

    def outcome(self) -> str:
        """How it ended."""
        for event in self.events:
            if event.name == trace.FAILED:
                return f"failed: {event.why}"
        if any(e.name == trace.DELIVERED and e.message == trace.RESPONSE for e in self.events):
            return "answered"
        freed = [e.why for e in self.events if e.name == trace.FREED]
        return freed[-1] if freed else "not over"

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        begin, end = self.span()
        return {"rpc": self.key.rpc, "epoch": self.key.epoch, "client": self.key.client, "server": self.key.server,
                "traced": [name for name, client in (("client", True), ("server", False)) if client in self.ends],
                "request_bytes": self.size(trace.REQUEST), "response_bytes": self.size(trace.RESPONSE),
                "outcome": self.outcome(), "begin_ns": begin, "total_ns": end - begin,
                "waited_ns": self.phases(),
                "doubts": sum(map(_is_doubt, self.events)),
                "packets_resent": sum(e.count for e in self.events if e.name == trace.RESENT)}


def _is_doubt(event: TraceEvent) -> bool:
    """Whether bytes are missed, and not only an acknowledgement."""
    return event.name == trace.DOUBTED and event.offset >= 0


def _after(phase: str, event: TraceEvent) -> str:
    """What an RPC waits for after an event."""
    data = event.total >= 0
    match event.name:
        case trace.QUEUED:
            return SESSION if event.why == trace.SESSION else QUEUE
        case trace.BLOCKED:
            return GRANT if event.why == trace.GRANT else QUEUE
        case trace.GRANTED if phase == GRANT and event.client == (event.message == trace.REQUEST):
            return QUEUE
        case trace.SENT if data:
            return DOUBT if phase == DOUBT else WIRE
        case trace.RECEIVED if data and phase == DOUBT:
            return WIRE
        case trace.RESENT:
            return DOUBT
        case trace.DOUBTED if _is_doubt(event):
            return DOUBT
        case trace.DELIVERED if event.message == trace.REQUEST:
            return APP
    return phase


def by_rpc(records: Sequence[TraceRecord]) -> list[RpcTrace]:
    """The RPCs of these traces, of one clock, in the order in which they began."""
    found: dict[RpcKey, RpcTrace] = {}
    streams = [_keyed(record) for record in records]
    for _time, _number, key, event in heapq.merge(*streams, key=lambda item: item[0]):
        rpc = found.setdefault(key, RpcTrace(key))
        rpc.events.append(event)
        rpc.ends |= {event.client}
    return list(found.values())


def _keyed(record: TraceRecord) -> Iterable[tuple[int, int, RpcKey, TraceEvent]]:
    """Events with what they are about; those of an RPC that has no id yet get the one it has later."""
    ids = {e.birth: (e.rpc, e.epoch) for e in record.events if e.birth and e.rpc}
    events = sorted(record.events, key=lambda e: e.time)
    for number, event in enumerate(events):
        if event.why == _HANDSHAKE:
            continue
        rpc, epoch = ids.get(event.birth, (event.rpc, event.epoch))
        yield event.time, number, _key(record.where, event, rpc, epoch), event


def _key(own: str, event: TraceEvent, rpc: int, epoch: int) -> RpcKey:
    peer = f"{format_address(event.ip)}:{event.port}"
    ends = (own, peer) if event.client else (peer, own)
    return RpcKey(*ends, epoch, rpc, 0 if rpc else event.birth)


def handshakes(records: Sequence[TraceRecord], rpc: RpcTrace) -> list[TraceEvent]:
    """Packets of the handshake plane between the ends of an RPC while it waited for a session."""
    queued = [e for e in rpc.events if e.name == trace.QUEUED and e.message == trace.REQUEST]
    if not queued or queued[0].why != trace.SESSION:
        return []
    begin = queued[0].time
    end = queued[1].time if len(queued) > 1 else rpc.span()[1]
    ends = {rpc.key.client, rpc.key.server}
    found = [(record.where, e) for record in records for e in record.events
             if e.why == _HANDSHAKE and begin <= e.time <= end
             and {record.where, f"{format_address(e.ip)}:{e.port}"} == ends]
    # Who is the client of the RPC is so in the picture, too, whoever asks whom on that plane.
    out = []
    for where, event in found:
        client = where == rpc.key.client
        out.append(event if event.client == client else _as_seen_by(event, client))
    return sorted(out, key=lambda e: e.time)


def _as_seen_by(event: TraceEvent, client: bool) -> TraceEvent:
    return TraceEvent(event.time, event.name, event.ip, event.port, event.rpc, event.epoch, client,
                      message=event.message, offset=event.offset, length=event.length, total=event.total,
                      why=event.why, text=event.text)


def table(rpcs: Sequence[RpcTrace]) -> str:
    """A line for each RPC, times in microseconds."""
    columns = ("rpc", "client", "server", "request", "response", "us", *PHASES, "doubts", "outcome")
    rows = [columns]
    for rpc in rpcs:
        one = rpc.as_json()
        sizes = ["-" if one[name] is None else str(one[name]) for name in ("request_bytes", "response_bytes")]
        rows.append((f"{rpc.key.rpc or '-'}", rpc.key.client, rpc.key.server, *sizes, _us(one["total_ns"]),
                     *(_us(one["waited_ns"][phase]) if one["waited_ns"][phase] else "-" for phase in PHASES),
                     str(one["doubts"]), one["outcome"]))
    widths = [max(len(row[at]) for row in rows) for at in range(len(columns))]
    left = {"client", "server", "outcome"}
    return "\n".join("  ".join(cell.ljust(width) if name in left else cell.rjust(width)
                               for cell, width, name in zip(row, widths, columns, strict=True)).rstrip()
                     for row in rows)


def _us(ns: int) -> str:
    return f"{ns / 1000:.1f}"
