"""Messages to the kernel's packet filter, nf_tables, by netlink: a table with one chain and one rule.

Linux ``<linux/netlink.h>``, ``<linux/netfilter/nfnetlink.h>``, ``<linux/netfilter/nf_tables.h>``.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence

NETLINK_NETFILTER = 12
#: Hooks of IPv4 packets.
PREROUTING, POSTROUTING = 0, 4
#: What an expression ``meta`` loads.
META_MARK, META_L4PROTO, META_OIFGROUP = 3, 16, 22
TRANSPORT_HEADER = 2

_REQUEST, _ACK, _CREATE, _EXCL, _APPEND = 0x1, 0x4, 0x400, 0x200, 0x800
_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_NEW_TABLE, _GET_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = (_SUBSYSTEM << 8 | n for n in (0, 1, 2, 3, 6))
_NESTED = 0x8000
_IPV4 = 2
_TABLE_OWNER = 2
_REGISTER, _EQUAL, _NOT_EQUAL, _DROP = 1, 0, 1, 0
_HEADER = struct.Struct("=IHHIIBBH")
_ATTRIBUTE = struct.Struct("=HH")
#: Seconds that the kernel has for its answer.
_PATIENCE_S = 5.0


def rule_batch(table: str, chain: str, hook: int, priority: int, expressions: Sequence[bytes],
               owned: bool = True) -> bytes:
    """The messages that make a table, its chain at ``hook`` and a rule in it; the kernel answers three of them.

    ``owned``: it goes with the socket that made it; else with the network namespace. It must not be there yet.
    """
    at = _nest(4, _u32(1, hook) + _attribute(2, struct.pack("!i", priority)))
    ask = _REQUEST | _ACK | _CREATE
    flags = _u32(2, _TABLE_OWNER) if owned else b""
    return b"".join((
        _message(_BATCH_BEGIN, _REQUEST, 0, b"", 0, _SUBSYSTEM),
        _message(_NEW_TABLE, ask | _EXCL, 1, _text(1, table) + flags),
        _message(_NEW_CHAIN, ask, 2, _text(1, table) + _text(3, chain) + at + _text(7, "filter")),
        _message(_NEW_RULE, ask | _APPEND, 3, _text(1, table) + _text(2, chain) + _nest(4, b"".join(expressions))),
        _message(_BATCH_END, _REQUEST, 4, b"", 0, _SUBSYSTEM)))


def delete_batch(table: str) -> bytes:
    """The messages that remove a table with all that is in it; the kernel answers one of them."""
    return b"".join((_message(_BATCH_BEGIN, _REQUEST, 0, b"", 0, _SUBSYSTEM),
                     _message(_DELETE_TABLE, _REQUEST | _ACK, 1, _text(1, table)),
                     _message(_BATCH_END, _REQUEST, 2, b"", 0, _SUBSYSTEM)))


def has_table(sock: socket.socket, table: str) -> bool:
    """Whether there is a table of this name. Unlike a batch that the kernel refuses, it costs no time to ask."""
    sock.settimeout(_PATIENCE_S)
    sock.send(_message(_GET_TABLE, _REQUEST, 1, _text(1, table)))
    return bool(struct.unpack_from("=IH", sock.recv(1 << 16))[1] == _NEW_TABLE)


def tell(sock: socket.socket, batch: bytes, answers: int) -> None:
    """Send a batch by a netlink socket and take its answers. Raises OSError of the first that is a refusal."""
    sock.bind((0, 0))
    sock.settimeout(_PATIENCE_S)
    sock.send(batch)
    for _message_of_batch in range(answers):
        answer = sock.recv(1 << 16)
        kind = struct.unpack_from("=IHHII", answer)[1]
        code = struct.unpack_from("=i", answer, 16)[0] if kind == _ERROR else -errno.EPROTO
        if code:
            raise OSError(-code, os.strerror(-code))


def load_meta(key: int) -> bytes:
    """Expression: what the kernel knows of the packet (``META_...``), into the register."""
    return _expression("meta", _u32(1, _REGISTER) + _u32(2, key))


def load_payload(base: int, offset: int, length: int) -> bytes:
    """Expression: bytes of the packet, into the register."""
    return _expression("payload", _u32(1, _REGISTER) + _u32(2, base) + _u32(3, offset) + _u32(4, length))


def mask(value: bytes) -> bytes:
    """Expression: clear the register's bits that are not in ``value``."""
    return _expression("bitwise", _u32(1, _REGISTER) + _u32(2, _REGISTER) + _u32(3, len(value))
                       + _nest(4, _attribute(1, value)) + _nest(5, _attribute(1, bytes(len(value)))))


def equal(value: bytes) -> bytes:
    """Expression: go on if the register has this value."""
    return _compare(_EQUAL, value)


def unequal(value: bytes) -> bytes:
    """Expression: go on if the register has another."""
    return _compare(_NOT_EQUAL, value)


def drop() -> bytes:
    """Expression: the packet ends here."""
    return _expression("immediate", _u32(1, 0) + _nest(2, _nest(2, _attribute(1, struct.pack("!i", _DROP)))))


def _message(kind: int, flags: int, number: int, body: bytes, family: int = _IPV4, subsystem: int = 0) -> bytes:
    size = _HEADER.size + len(body)
    return _HEADER.pack(size, kind, flags, number, 0, family, 0, socket.htons(subsystem)) + body


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _nest(kind: int, value: bytes) -> bytes:
    return _attribute(kind | _NESTED, value)


def _u32(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack("!I", value))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _expression(name: str, data: bytes) -> bytes:
    return _nest(1, _text(1, name) + _nest(2, data))


def _compare(operation: int, value: bytes) -> bytes:
    return _expression("cmp", _u32(1, _REGISTER) + _u32(2, operation) + _nest(3, _attribute(1, value)))
