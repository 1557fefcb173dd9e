"""Keeps the host's own TCP from packets in the shape of TCP that are ours: it would answer each with a reset.

A rule of nf_tables at the hook ``prerouting``, before connection tracking, drops what has the overlay's mark.
Packet sockets get their copy earlier, so ours does; all other TCP passes. The table belongs to a netlink socket
(NFT_TABLE_F_OWNER, Linux 5.12): it goes with the last process that has this socket, however that ends, and nobody
else can change it. Every socket of the overlay has a table of its own, so nothing has to be counted or shared. It
is for the network namespace, not one interface.
"""

from __future__ import annotations

import errno
import os
import socket
import struct

from smtstack.errors import Unsupported
from smtstack.wire.homa import OVERLAY_MARK, TCP_HEADER_OFFSET
from smtstack.wire.ipv4 import PROTO_TCP

# Linux <linux/netlink.h>, <linux/netfilter/nfnetlink.h>, <linux/netfilter/nf_tables.h>
_NETLINK_NETFILTER = 12
_REQUEST, _ACK, _CREATE, _EXCL, _APPEND = 0x1, 0x4, 0x400, 0x200, 0x800
_ERROR = 2
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_SUBSYSTEM = 10
_NEW_TABLE, _NEW_CHAIN, _NEW_RULE = (_SUBSYSTEM << 8 | n for n in (0, 3, 6))
_NESTED = 0x8000
_IPV4, _PREROUTING = 2, 0
#: Before connection tracking (-200) and its defragmentation (-400 comes first, but ours are never fragments).
_PRIORITY = -300
_TABLE_OWNER = 2
_REGISTER, _EQUAL, _DROP = 1, 0, 0
_TRANSPORT_HEADER, _L4PROTO = 2, 16
_CHAIN = "overlay"
_HEADER = struct.Struct("=IHHIIBBH")
_ATTRIBUTE = struct.Struct("=HH")
#: Seconds that the kernel has for its answer.
_PATIENCE_S = 5.0

FIX = ("it needs root and a kernel with nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4; Linux 5.12 or newer): "
       "sudo modprobe nf_tables, or leave out --overlay")


class TcpGuard:
    """The rule, from now until :meth:`close` or the end of the process.

    Raises :class:`Unsupported`, with the fix.
    """

    def __init__(self) -> None:
        self._table = f"smtnet-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as e:
            raise _unsupported(e) from None
        try:
            self._sock.bind((0, 0))
            self._sock.settimeout(_PATIENCE_S)
            self._sock.send(rule_batch(self._table))
            for _message in range(3):
                self._check_answer()
        except OSError as e:
            self._sock.close()
            raise _unsupported(e) from None

    def _check_answer(self) -> None:
        answer = self._sock.recv(1 << 16)
        _length, kind, _flags, _number, _port = struct.unpack_from("=IHHII", answer)
        code = struct.unpack_from("=i", answer, 16)[0] if kind == _ERROR else -errno.EPROTO
        if code:
            raise OSError(-code, os.strerror(-code))

    def close(self) -> None:
        """The host's TCP sees such packets again, if no other socket here keeps them from it."""
        self._sock.close()


def rule_batch(table: str) -> bytes:
    """The messages that make the table, its chain and the rule; the kernel answers three of them."""
    hook = _nest(4, _u32(1, _PREROUTING) + _attribute(2, struct.pack("!i", _PRIORITY)))
    # meta l4proto 6, @th,96,16 == the mark, drop. Fragments have no transport header to it.
    rule = b"".join((
        _expression("meta", _u32(1, _REGISTER) + _u32(2, _L4PROTO)), _compare(bytes((PROTO_TCP,))),
        _expression("payload", _u32(1, _REGISTER) + _u32(2, _TRANSPORT_HEADER) + _u32(3, TCP_HEADER_OFFSET)
                    + _u32(4, len(OVERLAY_MARK))), _compare(OVERLAY_MARK),
        _expression("immediate", _u32(1, 0) + _nest(2, _nest(2, _attribute(1, struct.pack("!i", _DROP)))))))
    ask = _REQUEST | _ACK | _CREATE
    return b"".join((
        _message(_BATCH_BEGIN, _REQUEST, 0, b"", 0, _SUBSYSTEM),
        _message(_NEW_TABLE, ask | _EXCL, 1, _text(1, table) + _u32(2, _TABLE_OWNER)),
        _message(_NEW_CHAIN, ask, 2, _text(1, table) + _text(3, _CHAIN) + hook + _text(7, "filter")),
        _message(_NEW_RULE, ask | _APPEND, 3, _text(1, table) + _text(2, _CHAIN) + _nest(4, rule)),
        _message(_BATCH_END, _REQUEST, 4, b"", 0, _SUBSYSTEM)))


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


def _compare(value: bytes) -> bytes:
    return _expression("cmp", _u32(1, _REGISTER) + _u32(2, _EQUAL) + _nest(3, _attribute(1, value)))


def _unsupported(error: OSError) -> Unsupported:
    return Unsupported(f"overlay tcp: the host's own TCP cannot be kept from our packets ({error.strerror}), and "
                       f"would reset them: {FIX}")
