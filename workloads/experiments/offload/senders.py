"""The sending ends that are compared, and their peers: bytes of a file, or writes of one record each, over a
connection of the kernel's TCP.

========  =====================================================================================================
system    who seals, and how a file gets into TCP
========  =====================================================================================================
plain     nobody: ``sendfile`` by the kernel, or ``send``
tls       OpenSSL in user space (module ``ssl``): ``read`` into a buffer, then ``SSL_write``
ktls-sw   our kernel TLS (:mod:`smtstack.ktls_io`) by software: its ``sendfile``, or ``send``
ktls-nic  the same, and the NIC that owns the host's interface seals
========  =====================================================================================================

Each counts the bytes that it copies, by what for, where it copies them: ``read`` from the page cache into user
memory, ``seal`` into a buffer for a record's ciphertext, ``map`` for a NIC that may have to send again, ``send``
into the kernel's socket buffer. What the kernel takes by reference (``sendfile``) is no copy. A NIC's reading of
memory is none, either: that is counted by its counters.
"""

from __future__ import annotations

import os
import socket
import ssl
import struct
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from smtstack.ktls.backends import Registry
from smtstack.ktls.stats import TlsStats
from smtstack.ktls_io import files
from smtstack.ktls_io.backends import default_backends
from smtstack.ktls_io.handshake import make_context
from smtstack.ktls_io.nic_mode import TapNics
from smtstack.ktls_io.socket import KtlsSocket
from smtstack.nic.tls_flow import DUMP, LINUX
from workloads.transports.tls import CA, CERTIFICATE, KEY, SUITE

PLAIN, TLS, KTLS_SW, KTLS_NIC = "plain", "tls", "ktls-sw", "ktls-nic"
SYSTEMS = (PLAIN, TLS, KTLS_SW, KTLS_NIC)
#: What is copied for what, in the order of a byte's way.
COPIES = ("read", "seal", "map", "send")
#: Bytes that ``tls`` reads of a file at a time: four full records.
READ = 4 * 16_384
_RECORD, _OVERHEAD_1_3, _OVERHEAD_1_2 = 16_384, 22, 29
#: struct tcp_info (linux/tcp.h): tcpi_bytes_sent, tcpi_bytes_retrans.
_BYTES_SENT_AT, _TCP_INFO_LEN = 200, 216


class Suite(NamedTuple):
    """What a connection is sealed by. OpenSSL's names of ciphers differ for TLS 1.2 and 1.3."""

    version: int
    openssl: str


#: ``now``: what all comparisons here use; ``slides``: what FreeBSD's figures were measured with.
SUITES = {"now": Suite(0x0304, SUITE), "slides": Suite(0x0303, "ECDHE-ECDSA-AES256-GCM-SHA384")}


@dataclass(frozen=True, slots=True)
class How:
    """What one connection is like."""

    system: str
    """One of :data:`SYSTEMS`."""
    suite: str = "now"
    """One of :data:`SUITES`."""
    backend: str = "openssl"
    """ktls-sw: who seals (:data:`smtstack.ktls_io.backends.NAMES`)."""
    zerocopy: bool = False
    """ktls-nic: ``TLS_TX_ZEROCOPY_RO``."""
    disable_pct: int = 100
    """ktls-nic: per cent of bytes sent again that give the NIC up (``ifnet_max_rexmit_pct``); 100: never."""
    policy: str = LINUX
    """ktls-nic: what a NIC without the context does with the flow's packets."""
    resync: str = DUMP
    """ktls-nic: how the device gets back to its state after a packet out of order."""
    opened_by: str = "openssl"
    """Who opens records at the receiver: ``openssl``, or ``ktls`` (ours, Linux's rules)."""


class Sending(ABC):
    """The sending end of a connection, connected and with keys."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        #: Bytes copied, by what for (:data:`COPIES`).
        self.copies: Counter[str] = Counter()

    @abstractmethod
    def request(self) -> None:
        """Wait until the peer asks (a byte)."""

    @abstractmethod
    def file(self, descriptor: int, offset: int, count: int) -> None:
        """Send so many bytes of a file; they are there."""

    @abstractmethod
    def write(self, data: memoryview) -> None:
        """Send bytes at once: one record, if they fit."""

    def sent(self) -> tuple[int, int]:
        """(bytes that TCP has sent, those of them that it has sent again)."""
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LEN)
        if len(info) < _TCP_INFO_LEN:
            return 0, 0
        total, again = struct.unpack_from("=QQ", info, _BYTES_SENT_AT)
        return total, again

    def notes(self) -> dict[str, int]:
        """What else is to be told of the connection."""
        return {}

    def close(self) -> None:
        """End it."""
        self.sock.close()


class Plain(Sending):
    """In clear."""

    def request(self) -> None:
        if not self.sock.recv(1):
            raise ConnectionResetError("the peer has gone")

    def file(self, descriptor: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            offset += os.sendfile(self.sock.fileno(), descriptor, offset, end - offset)

    def write(self, data: memoryview) -> None:
        self.sock.sendall(data)
        self.copies["send"] += len(data)


class UserTls(Sending):
    """By OpenSSL in user space."""

    def __init__(self, sock: socket.socket, how: How, certs: Path) -> None:
        suite = SUITES[how.suite]
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # Else Python would say TLS 1.2 at least, and no more.
        context.minimum_version = context.maximum_version = ssl.TLSVersion(suite.version)
        context.num_tickets = 0
        if suite.version == ssl.TLSVersion.TLSv1_2:
            context.set_ciphers(suite.openssl)
        context.load_cert_chain(certs / CERTIFICATE, certs / KEY)
        self._tls = context.wrap_socket(sock, server_side=True)
        super().__init__(self._tls)
        self._overhead = _OVERHEAD_1_3 if suite.version == ssl.TLSVersion.TLSv1_3 else _OVERHEAD_1_2
        self._buffer = memoryview(bytearray(READ))

    def request(self) -> None:
        if not self._tls.recv(1):
            raise ConnectionResetError("the peer has gone")

    def file(self, descriptor: int, offset: int, count: int) -> None:
        end = offset + count
        while offset < end:
            got = os.preadv(descriptor, [self._buffer[:end - offset]], offset)
            self.copies["read"] += got
            self.write(self._buffer[:got])
            offset += got

    def write(self, data: memoryview) -> None:
        # Blocking, so OpenSSL takes all of it; a record it seals into a buffer of its own, which it then sends.
        self._tls.sendall(data)
        size = len(data)
        wire = size + -(-size // _RECORD) * self._overhead
        self.copies["seal"] += size
        self.copies["send"] += wire


class OwnKtls(Sending):
    """By our kernel TLS, in software or in the NIC."""

    def __init__(self, sock: socket.socket, how: How, certs: Path) -> None:
        super().__init__(sock)
        suite = SUITES[how.suite]
        context = make_context(str(certs / CERTIFICATE), str(certs / KEY), versions=(suite.version, suite.version),
                               **({"suites": suite.openssl} if suite.version == 0x0304
                                  else {"ciphers": suite.openssl}))
        self.stats = TlsStats(ifnet_max_rexmit_pct=how.disable_pct)
        nic = None
        if how.system == KTLS_NIC:
            nic = TapNics(how.policy, how.resync)
        self._tls = KtlsSocket.server(sock, context, backends=_backends(how.backend, nic is not None),
                                      stats=self.stats, nic=nic)
        self._tls.zerocopy_ro = how.zerocopy
        self.copies = self._tls.copies
        self.copies.clear()

    def request(self) -> None:
        if not self._tls.recv(1):
            raise ConnectionResetError("the peer has gone")

    def file(self, descriptor: int, offset: int, count: int) -> None:
        files.sendfile(self._tls, descriptor, offset, count)

    def write(self, data: memoryview) -> None:
        self._tls.send(data)

    def notes(self) -> dict[str, int]:
        """Whether the NIC seals at the end, and how often it was given up."""
        return {"nic_at_end": int(self._tls.txtls_mode == "nic"),
                "disabled": self.stats.counters["stats.ifnet_disable_ok"]}

    def close(self) -> None:
        self._tls.close()


@cache
def _backends(name: str, nic: bool) -> Registry:
    """One for all connections of this process: some are processes themselves, and end with it."""
    return default_backends(name, nic)


def accepted(sock: socket.socket, how: How, certs: Path) -> Sending:
    """The sending end of a connection that was accepted, after its handshake. ``certs``: this host's folder.
    Raises OSError, SmtError."""
    if how.system == PLAIN:
        return Plain(sock)
    return (UserTls if how.system == TLS else OwnKtls)(sock, how, certs)


class Receiving:
    """The receiving end, which is the same for all systems that encrypt, unless :attr:`How.opened_by` says
    otherwise: OpenSSL, which knows of no offload."""

    def __init__(self, sock: socket.socket, how: How, certs: Path, server: str) -> None:
        self.sock = sock
        self._ktls: KtlsSocket | None = None
        if how.system == PLAIN:
            return
        if how.opened_by == "ktls":
            self._ktls = KtlsSocket.client(sock, make_context(ca=str(certs / CA)), rules="linux")
            return
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(certs / CA)
        self.sock = context.wrap_socket(sock, server_hostname=server)

    def ask(self) -> None:
        """Have the peer begin."""
        if self._ktls is not None:
            self._ktls.send(b"?")
        else:
            self.sock.sendall(b"?")

    def take(self, room: memoryview) -> int:
        """Bytes that came, into ``room``; 0: no more come. Raises OSError: EBADMSG, or the ssl module's, for a
        record that does not authenticate."""
        if self._ktls is not None:
            data = self._ktls.recv(len(room))
            room[:len(data)] = data
            return len(data)
        return self.sock.recv_into(room)

    def close(self) -> None:
        """End it."""
        (self._ktls or self.sock).close()
