"""Lets marked plaintext (:mod:`smtstack.nic.plaintext`) out by NICs alone that encrypt it.

A rule of nf_tables, the last thing an IPv4 packet meets before its interface: one that carries the mark and is
about to leave by an interface that is not in the NICs' group is dropped. So a route that changes to a plain
interface or to ``lo``, or a NIC that is gone, never makes clear text of a stream. The rule belongs to the network
namespace, not to a process: it holds whoever was killed, until the namespace ends.
"""

from __future__ import annotations

import errno
import socket
import struct

from smtstack.errors import Unsupported
from smtstack.io import nf_tables
from smtstack.nic.plaintext import NIC_GROUP, PLAINTEXT_MARK, PLAINTEXT_MASK

TABLE = "smtnet-plaintext"
_CHAIN = "out"
#: Behind everything else at the hook, which may still change the mark or the packet.
_PRIORITY = 2**31 - 1


def install() -> None:
    """See to it that the rule is there, in the namespace of this thread. Raises :class:`Unsupported`."""
    try:
        # A batch makes all of it or nothing.
        with _open() as sock:
            if nf_tables.has_table(sock, TABLE):
                return
        _tell(rule_batch(), 3)
    except OSError as e:
        if e.errno != errno.EEXIST:
            raise Unsupported(f"plaintext of a NIC cannot be kept from other interfaces ({e.strerror}): "
                              "hosting=tap needs root and a kernel with nf_tables (CONFIG_NF_TABLES, "
                              "CONFIG_NF_TABLES_IPV4): sudo modprobe nf_tables, or hosting=inline") from None


def remove() -> None:
    """Take the rule away. Only for tests, whose detector must find what leaks without it."""
    _tell(nf_tables.delete_batch(TABLE), 1)


def _open() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, nf_tables.NETLINK_NETFILTER)


def _tell(batch: bytes, answers: int) -> None:
    with _open() as sock:
        nf_tables.tell(sock, batch, answers)


def rule_batch() -> bytes:
    """The messages that make the rule: meta mark & mask == mark, oifgroup != the NICs', drop."""
    # The kernel keeps both numbers in its own byte order.
    word = struct.Struct("=I").pack
    return nf_tables.rule_batch(TABLE, _CHAIN, nf_tables.POSTROUTING, _PRIORITY, (
        nf_tables.load_meta(nf_tables.META_MARK), nf_tables.mask(word(PLAINTEXT_MASK)),
        nf_tables.equal(word(PLAINTEXT_MARK)),
        nf_tables.load_meta(nf_tables.META_OIFGROUP), nf_tables.unequal(word(NIC_GROUP)),
        nf_tables.drop()), owned=False)
