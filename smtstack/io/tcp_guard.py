"""Keeps the host's own TCP from packets in the shape of TCP that are ours: it would answer each with a reset.

A rule of nf_tables at the hook ``prerouting``, before connection tracking, drops what has the overlay's mark.
Packet sockets get their copy earlier, so ours does; all other TCP passes. The table belongs to a netlink socket
(NFT_TABLE_F_OWNER, Linux 5.12): it goes with the last process that has this socket, however that ends, and nobody
else can change it. Every socket of the overlay has a table of its own, so nothing has to be counted or shared. It
is for the network namespace, not one interface.
"""

from __future__ import annotations

import os
import socket

from smtstack.errors import Unsupported
from smtstack.io import nf_tables
from smtstack.wire.homa import OVERLAY_MARK, TCP_HEADER_OFFSET
from smtstack.wire.ipv4 import PROTO_TCP

#: Before connection tracking (-200) and its defragmentation (-400 comes first, but ours are never fragments).
_PRIORITY = -300
_CHAIN = "overlay"

FIX = ("it needs root and a kernel with nf_tables (CONFIG_NF_TABLES, CONFIG_NF_TABLES_IPV4; Linux 5.12 or newer): "
       "sudo modprobe nf_tables, or leave out --overlay")


class TcpGuard:
    """The rule, from now until :meth:`close` or the end of the process.

    Raises :class:`Unsupported`, with the fix.
    """

    def __init__(self) -> None:
        self._table = f"smtnet-{os.getpid()}-{os.urandom(4).hex()}"
        try:
            self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, nf_tables.NETLINK_NETFILTER)
        except OSError as e:
            raise _unsupported(e) from None
        try:
            nf_tables.tell(self._sock, rule_batch(self._table), 3)
        except OSError as e:
            self._sock.close()
            raise _unsupported(e) from None

    def close(self) -> None:
        """The host's TCP sees such packets again, if no other socket here keeps them from it."""
        self._sock.close()


def rule_batch(table: str) -> bytes:
    """The messages that make the table, its chain and the rule; the kernel answers three of them."""
    # meta l4proto 6, @th,96,16 == the mark, drop. Fragments have no transport header to it.
    return nf_tables.rule_batch(table, _CHAIN, nf_tables.PREROUTING, _PRIORITY, (
        nf_tables.load_meta(nf_tables.META_L4PROTO), nf_tables.equal(bytes((PROTO_TCP,))),
        nf_tables.load_payload(nf_tables.TRANSPORT_HEADER, TCP_HEADER_OFFSET, len(OVERLAY_MARK)),
        nf_tables.equal(OVERLAY_MARK), nf_tables.drop()))


def _unsupported(error: OSError) -> Unsupported:
    return Unsupported(f"overlay tcp: the host's own TCP cannot be kept from our packets ({error.strerror}), and "
                       f"would reset them: {FIX}")
