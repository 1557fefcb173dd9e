"""Traces of the engine as qlog files: what is written, and what is read again.

A file is a JSON text sequence (RFC 7464: each record begins with the byte 0x1E and ends with a newline) as qlog's
main schema has it (draft-ietf-quic-qlog-main-schema-13): a head, then one event a record. The events are our own,
``smt:queued`` and so on; docs/trace.md says what is in them. A file that ends anywhere is readable up to there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from smtstack.errors import BadPacket
from smtstack.transport.trace import EVENTS, TraceEvent
from smtstack.wire.ipv4 import address, format_address

_RS = b"\x1e"
_FILE_SCHEMA = "urn:ietf:params:qlog:file:sequential"
_SERIALIZATION = "application/qlog+json-seq"
EVENT_SCHEMA = "urn:smtnet:params:qlog:events:smt-1"
_SPACE = "smt:"
#: The event after which nothing was written any more.
CUT = "smt:cut"
#: Largest number that every reader of JSON keeps exactly (RFC 7493 §2.2); beyond, it is a string.
_EXACT = 1 << 53
_MAX_NUMBER = (1 << 64) - 1
_NS = 1_000_000
#: Bytes of the longest record read, events of one file, and characters of a text in it.
MAX_RECORD, MAX_EVENTS = 1 << 16, 4_000_000
_MAX_TEXT = 1000
#: Members of an event's data that are numbers from 0, and texts.
_NUMBERS = ("offset", "length", "total", "count")
_TEXTS = {"message": "message", "why": "trigger", "text": "packet"}


@dataclass(slots=True)
class TraceRecord:
    """A trace as it was read."""

    where: str
    """Address and port of the endpoint."""
    program: str = ""
    """Who wrote it."""
    wall_clock: str = ""
    """When it began, as the calendar has it."""
    events: list[TraceEvent] = field(default_factory=list)
    unknown: int = 0
    """Records of other schemas; they are passed over."""
    cut: str = ""
    """Why the trace ends before its time; "": the file does not say."""
    broken: bool = False
    """Whether the trace ends in the middle of a record."""

    @property
    def end(self) -> tuple[int, int]:
        """Address and port as numbers."""
        ip, _, port = self.where.rpartition(":")
        return address(ip), int(port)


def head(ip: int, port: int, profile: str, program: str, wall_clock: str) -> bytes:
    """The first record of a file; ``wall_clock`` is RFC 3339, of the moment the file is made."""
    return _record({
        "file_schema": _FILE_SCHEMA, "serialization_format": _SERIALIZATION,
        "title": f"smtnet, profile {profile}, {format_address(ip)}:{port}",
        "trace": {
            # One socket is client and server at once.
            "vantage_point": {"name": f"{format_address(ip)}:{port}", "type": "unknown"},
            "event_schemas": [EVENT_SCHEMA],
            "common_fields": {
                "protocol_types": ["SMT" if profile == "smt" else "HOMA"], "time_format": "relative_to_epoch",
                "reference_time": {"clock_type": "monotonic", "epoch": "unknown", "wall_clock_time": wall_clock},
                "program": program}}})


def encode(ip: int, port: int, event: TraceEvent) -> bytes:
    """One event of the endpoint at ``ip:port``."""
    own, peer = f"{format_address(ip)}:{port}", f"{format_address(event.ip)}:{event.port}"
    ends = f"{own}>{peer}" if event.client else f"{peer}>{own}"
    data: dict[str, object] = {"rpc": event.rpc if event.rpc < _EXACT else str(event.rpc), "epoch": event.epoch,
                               "peer": peer, "side": "client" if event.client else "server"}
    if event.birth:
        data["birth"] = event.birth
    if event.message:
        data["message"] = event.message
    for name in _NUMBERS:
        value = getattr(event, name)
        if value >= 0:
            data[name] = value
    if event.why:
        data["trigger"] = event.why
    if event.text:
        data["packet"] = event.text
    return _timed(event.time, _SPACE + event.name, data, f"{ends} {event.epoch} {event.rpc}")


def encode_cut(time: int, why: str) -> bytes:
    """The last record of a file that is not complete."""
    return _timed(time, CUT, {"message": why})


def _timed(time: int, name: str, data: dict[str, object], group: str = "") -> bytes:
    grouped = {"group_id": group} if group else {}
    rest = json.dumps({"name": name, **grouped, "data": data}, separators=(",", ":"))
    # Milliseconds to the nanosecond: a float would not print them all.
    return b'%s{"time":%d.%06d,%s\n' % (_RS, time // _NS, time % _NS, rest[1:].encode())


def _record(value: dict[str, Any]) -> bytes:
    return _RS + json.dumps(value, separators=(",", ":")).encode() + b"\n"


# -- reading ---------------------------------------------------------------------------------------------------


def read_untrusted(read: Callable[[int], bytes]) -> TraceRecord:
    """A whole file, by ``read(size)``. Raises :class:`BadPacket` for one that is no trace of ours."""
    records = _records_untrusted(read)
    first = next(records, None)
    value = None if first is None else _json_untrusted(first)
    if not isinstance(value, dict) or value.get("file_schema") != _FILE_SCHEMA:
        raise BadPacket("no qlog file: it does not begin with a head of qlog's main schema")
    out = _head_untrusted(value)
    last = False
    for record in records:
        # Only what a crash left behind may be no JSON: the end.
        if last:
            raise BadPacket("a record in the middle of the file is no JSON")
        event = _json_untrusted(record)
        if event is None:
            last = out.broken = True
            continue
        if len(out.events) >= MAX_EVENTS:
            raise BadPacket(f"more than {MAX_EVENTS} events in one file")
        _event_untrusted(out, event)
    return out


def _records_untrusted(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """What stands between separators. Raises :class:`BadPacket` where one is too long, or none comes first."""
    buf = read(MAX_RECORD)
    if buf and not buf.startswith(_RS):
        raise BadPacket("no qlog file in the form of a JSON text sequence: that begins with the byte 0x1E")
    while buf:
        more = read(MAX_RECORD)
        parts = (buf + more).split(_RS)
        buf = parts.pop()
        yield from (part for part in parts if part)
        if len(buf) > MAX_RECORD:
            raise BadPacket(f"a record of more than {MAX_RECORD} bytes")
        if not more:
            if buf:
                yield buf
            return
        buf = _RS + buf


def _json_untrusted(record: bytes) -> object:
    """The value of a record; None: it is none, or is not whole."""
    if not record.endswith(b"\n"):
        return None
    try:
        return json.loads(record, parse_float=_nanoseconds, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        return None


def _no_constant(text: str) -> object:
    raise ValueError(text)


class _Nanoseconds(int):
    """A number that stood there with a point: in a trace those are milliseconds."""


def _nanoseconds(text: str) -> _Nanoseconds:
    whole, _, rest = text.partition(".")
    if not rest.isdigit() or len(rest) > 6 or len(whole) > 20:
        raise ValueError(text)
    sign = -1 if whole.startswith("-") else 1
    return _Nanoseconds(int(whole) * _NS + sign * int(rest.ljust(6, "0")))


def _head_untrusted(value: dict[str, Any]) -> TraceRecord:
    trace = _dict(value.get("trace"))
    common = _dict(trace.get("common_fields"))
    schemas = trace.get("event_schemas")
    if not isinstance(schemas, list) or EVENT_SCHEMA not in schemas:
        raise BadPacket(f"a qlog file, but not of events of schema {EVENT_SCHEMA}")
    if common.get("time_format") != "relative_to_epoch":
        raise BadPacket("a qlog file whose times are not relative to its epoch")
    where = _text(_dict(trace.get("vantage_point")).get("name"))
    _end_untrusted(where)
    reference = _dict(common.get("reference_time"))
    return TraceRecord(where, _text(common.get("program")), _text(reference.get("wall_clock_time")))


def _event_untrusted(out: TraceRecord, value: object) -> None:
    if not isinstance(value, dict):
        raise BadPacket("a record that is no object")
    name, time, data = value.get("name"), value.get("time"), _dict(value.get("data"))
    if name == CUT:
        out.cut = _text(data.get("message")) or "cut"
        return
    if not isinstance(name, str) or not name.startswith(_SPACE) or name[len(_SPACE):] not in EVENTS:
        out.unknown += 1
        return
    if not isinstance(time, _Nanoseconds) or not 0 <= time <= _MAX_NUMBER:
        raise BadPacket(f"an event {name} whose time is none")
    ip, port = _end_untrusted(_text(data.get("peer")))
    event = TraceEvent(int(time), name[len(_SPACE):], ip, port, _number(data.get("rpc"), 0),
                       _number(data.get("epoch"), 0), data.get("side") == "client",
                       birth=_number(data.get("birth"), 0))
    for member in _NUMBERS:
        setattr(event, member, _number(data.get(member), -1))
    for attribute, member in _TEXTS.items():
        setattr(event, attribute, _text(data.get(member)))
    out.events.append(event)


def _end_untrusted(text: str) -> tuple[int, int]:
    ip, _, port = text.rpartition(":")
    try:
        if not port.isascii() or not port.isdigit() or not 0 < int(port[:6]) <= 0xFFFF:
            raise ValueError(port)
        return address(ip), int(port)
    except ValueError:
        raise BadPacket(f"{text[:40]!r} is no address of an endpoint") from None


def _dict(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    """A text that may go to a terminal; "" for anything else."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() else "?" for c in value[:_MAX_TEXT])


def _number(value: object, absent: int) -> int:
    """A number from 0, written as such or as digits; ``absent`` for anything else."""
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 20:
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_NUMBER:
        return value
    return absent
