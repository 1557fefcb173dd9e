"""The state that a vector stands for, from its input fields: what the sender had been told before it sent.

Files name the same thing in several ways, so fields are known by all of :data:`_NAMES`. A field that is not known,
or whose value means nothing that we could bring about, makes the vector *not applicable*; none is passed over.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any, NamedTuple

from smtstack.crypto import tls12
from smtstack.transport.linux_message import SEGMENT_HEADER, SEGMENT_HEADER_LEN, LinuxOut
from smtstack.transport.params import INT_MAX
from smtstack.transport.rpc import Rpc
from smtstack.wire import homa
from workloads.vectors.file import Vector

_MAX_MESSAGE = 1_000_000
#: Names of a field, by what it is.
_NAMES = {
    "acks": ("ack", "acks", "piggyback_ack", "piggyback_acks", "piggybacked_ack", "piggybacked_acks",
             "pending_ack", "pending_acks", "waiting_acks", "ack_entries", "ack_list", "ack_client_id",
             "ack_client_port", "ack_server_port", "client_id", "client_port", "server_port", "num_acks"),
    "cutoffs": ("cutoffs", "unsched_cutoffs"),
    "offset": ("grant_offset", "granted", "granted_offset", "resend_offset", "offset"),
    "length": ("resend_length", "length"),
    "priority": ("grant_priority", "granted_priority", "resend_priority", "priority"),
    "grant": ("grant", "grants"),
    "payload": ("payload", "payload_hex"),
}
#: Prose beside the inputs.
_PROSE = ("note", "notes", "description", "comment")

Ack = tuple[int, int, int]


class NotApplicableError(Exception):
    """We cannot bring about what a field of a vector asks for: the vector proves nothing about us."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")


class State(NamedTuple):
    """What the sender knows."""

    #: Acknowledgements that wait for a ride: client_id, client_port, server_port.
    acks: list[Ack]
    #: The receiver's cutoffs; None: never heard.
    cutoffs: tuple[int, ...] | None
    #: (offset, priority) of GRANTs that came.
    grants: list[tuple[int, int]]


def named(vector: Vector, what: str) -> dict[str, Any]:
    """The inputs that are ``what``, by the names they have."""
    return {name: vector.inputs[name] for name in _NAMES[what] if name in vector.inputs}


def check_known(vector: Vector, known: Container[str], *kinds: str) -> None:
    """Raises :class:`NotApplicableError` for an input that is not in ``known``, of these kinds, or prose."""
    names = {name for kind in kinds for name in _NAMES[kind]}
    for name in sorted(vector.inputs):
        prose = name in _PROSE or name.endswith(tuple(f"_{word}" for word in _PROSE))
        if name not in known and name not in names and not (prose and isinstance(vector.inputs[name], str)):
            raise NotApplicableError(name, "an input that is unknown here")


def state_of(vector: Vector, length: int) -> State:
    """The state before a DATA message of ``length`` bytes."""
    version = vector.number("cutoff_version")
    acks = acks_of(vector)
    carried = _carried(vector)
    if acks is None:
        # The file need not say what its own plaintext shows.
        acks = carried
    return State(acks, _cutoffs(vector, version, length), _grants(vector))


def acks_of(vector: Vector) -> list[Ack] | None:
    """The acknowledgements that the inputs name; None: they name none."""
    fields = named(vector, "acks")
    count = fields.pop("num_acks", None)
    own = vector.number("src_port"), vector.number("dst_port")
    flat = {name.removeprefix("ack_"): value for name, value in fields.items()
            if name.endswith(("client_id", "client_port", "server_port"))}
    out = [_entry(next(iter(fields)), flat, own)] if flat else []
    for name, value in fields.items():
        if name.removeprefix("ack_") not in flat and value is not None:
            out += [_entry(name, entry, own) for entry in (value if isinstance(value, list) else [value])]
    if count is not None and count != len(out):
        raise NotApplicableError("num_acks", f"{count}, where the inputs name {len(out)}")
    return out if fields or count is not None else None


def _entry(name: str, value: Any, own: tuple[int, int]) -> Ack:
    """One acknowledgement: an id, or an object with ports, or the three numbers in a row."""
    if isinstance(value, dict):
        strange = sorted(set(value) - {"client_id", "id", "rpc_id", "client_port", "server_port"})
        if strange:
            raise NotApplicableError(f"{name}.{strange[0]}", "an input that is unknown here")
        value = [next((value[n] for n in ("client_id", "id", "rpc_id") if n in value), None),
                 value.get("client_port", own[0]), value.get("server_port", own[1])]
    if isinstance(value, int):
        value = [value, *own]
    if not isinstance(value, list) or len(value) != 3 or not all(type(n) is int and n >= 0 for n in value):
        raise NotApplicableError(name, "no acknowledgement: an id, or client_id, client_port and server_port")
    if value[0] >= 1 << 64 or max(value[1:]) >= 1 << 16:
        raise NotApplicableError(name, "an id of 64 bits and ports of 16 are possible")
    return value[0], value[1], value[2]


def _carried(vector: Vector) -> list[Ack]:
    """The acknowledgements in the segment headers of the vector's own plaintext."""
    out: list[Ack] = []
    for record in vector.get(vector.entry, "records", list):
        plain = vector.hex(record, "plaintext")
        at = 0
        while at + SEGMENT_HEADER_LEN <= len(plain):
            _offset, size, client_id, client_port, server_port = SEGMENT_HEADER.unpack_from(plain, at)
            if client_id:
                out.append((client_id, client_port, server_port))
            at += SEGMENT_HEADER_LEN + size
    return out


def cutoffs_of(vector: Vector) -> tuple[int, ...] | None:
    """The table of cutoffs that the inputs give, by priority; None: they give none."""
    for name, value in named(vector, "cutoffs").items():
        if not isinstance(value, list) or len(value) != homa.NUM_PRIORITIES or not all(
                type(n) is int and 0 <= n < 1 << 32 for n in value):
            raise NotApplicableError(name, f"not {homa.NUM_PRIORITIES} numbers of bytes")
        return tuple(value)
    return None


def _cutoffs(vector: Vector, version: int, length: int) -> tuple[int, ...] | None:
    given = cutoffs_of(vector)
    if given is not None:
        return given
    if not version:
        return None
    # The table is not given, but what follows from it is.
    priority = vector.number("tos") >> 5
    return tuple(0 if i > priority else INT_MAX if i == 0 else max(length, _MAX_MESSAGE) for i in
                 range(homa.NUM_PRIORITIES))


def _grants(vector: Vector) -> list[tuple[int, int]]:
    out = []
    for name, value in named(vector, "grant").items():
        for entry in value if isinstance(value, list) else [value]:
            if not isinstance(entry, dict) or set(entry) - {"offset", "priority"}:
                raise NotApplicableError(name, "no GRANT: an object with offset and priority")
            out.append(_grant(name, entry.get("offset"), entry.get("priority")))
    offsets, priorities = named(vector, "offset"), named(vector, "priority")
    if offsets:
        name, offset = next(iter(offsets.items()))
        out.append(_grant(name, offset, next(iter(priorities.values()), 0)))
    elif priorities:
        raise NotApplicableError(next(iter(priorities)), "a priority of what, without an offset")
    return out


def _grant(name: str, offset: Any, priority: Any) -> tuple[int, int]:
    if type(offset) is not int or not 0 <= offset < 1 << 32 or (priority is not None and (
            type(priority) is not int or not 0 <= priority < homa.NUM_PRIORITIES)):
        raise NotApplicableError(name, "an offset of 32 bits and a priority of 0 to 7 are possible")
    return offset, priority or 0


def body_number(vector: Vector, what: str, limit: int, otherwise: int) -> int:
    """A field of a control packet: what the inputs say, or else ``otherwise``."""
    fields = named(vector, what)
    values = set(map(repr, fields.values()))
    if not fields:
        return otherwise
    name, value = next(iter(fields.items()))
    if len(values) > 1 or type(value) is not int or not 0 <= value < limit:
        raise NotApplicableError(name, f"no number below {limit}, or two different ones")
    return value


def ride(rpc: Rpc, acks: list[Ack]) -> None:
    """Acknowledgements that wait are to travel with the message of ``rpc``, of which nothing was sent yet.

    The only place that reaches into the engine: which entry rides where is the matter, not how it came to wait.
    """
    out = rpc.out
    if not isinstance(out, LinuxOut):
        raise TypeError("not of profile linux")
    out._acks[:] = acks


def rec_seq_starts_at_zero(vector: Vector) -> bool:
    """The module takes the last 16 bits of what was registered; and the registered iv not at all."""
    registered = vector.hex(vector.inputs, "registered_rec_seq_8")
    return len(registered) == tls12.HEADER_LEN - 5 and registered[-2:] == bytes(2)
