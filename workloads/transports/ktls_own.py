"""Kernel TLS of our own (smtstack.ktls) on kernel TCP: software seals (``ktls-sw``), or the NIC that owns the
host's interface (``ktls-nic``)."""

from __future__ import annotations

import errno
import socket
from collections import Counter
from pathlib import Path
from typing import Any

from smtstack.ktls.stats import NIC, TlsStats
from smtstack.ktls_io.backends import default_backends
from smtstack.ktls_io.handshake import Established, openssl
from smtstack.ktls_io.sending import NicPort
from smtstack.ktls_io.socket import KtlsSocket
from smtstack.socket import Address
from workloads.transports.epoll import StreamMaker
from workloads.transports.handshaken import HandshakenStream, host_context
from workloads.transports.stream import StreamError

#: All that has come: nothing may stay behind that no event tells of.
_ALL = 1 << 40
#: Bytes of plaintext records that a connection keeps for its NIC: there are many connections.
_ROOM = 1 << 20


class OwnKtlsStream(HandshakenStream):
    """A connection whose records we make. ``nic``: only with a NIC's help, or none of its contexts was left."""

    __slots__ = ("_nic", "_tls")

    def __init__(self, sock: socket.socket, peer: Address, limit: int, context: Any, server: bool,
                 tls: KtlsSocket, nic: bool) -> None:
        super().__init__(sock, peer, limit, context, server)
        self._tls = tls
        self._nic = nic

    def reason(self, error: OSError) -> str:
        return "a record failed authentication" if error.errno == errno.EBADMSG else super().reason(error)

    def begin(self, keys: Established) -> None:
        try:
            self._tls.turn_on(keys)
            if self._nic and self._tls.txtls_mode != NIC:
                # Why not?
                self._tls.txtls_mode = NIC
        except OSError as e:
            # A NIC without a free context: software seals, and the wire has the same bytes.
            if e.errno != errno.ENOSPC:
                raise StreamError(f"kTLS: {e.strerror}") from None

    def receive(self) -> bytes | None:
        try:
            return self._tls.recv(_ALL)
        except BlockingIOError:
            return None
        except OSError as e:
            raise StreamError(self.reason(e)) from None

    def send(self, data: bytes | memoryview) -> bool:
        try:
            self._tls.connection.write(data)
        except OSError as e:
            raise StreamError(self.reason(e)) from None
        return self.flush()

    def flush(self) -> bool:
        try:
            gone = self._tls.push(wait=False)
        except OSError as e:
            raise StreamError(self.reason(e)) from None
        self.backlog = self._tls.connection.queue.backlog
        return gone

    def count_into(self, counters: Counter[str]) -> None:
        super().count_into(counters)
        # Who seals by now: a NIC may have had no context left.
        counters[f"ktls_{self._tls.txtls_mode}_connections"] += 1

    def close(self) -> None:
        self._tls.close()


def check() -> None:
    """Raises :class:`~smtstack.errors.Unsupported` naming what this Python lacks."""
    openssl()


def nic_maker(certs: Path, limit: int, server: bool) -> StreamMaker:
    """:func:`maker` with the NICs of this host."""
    from smtstack.ktls_io.nic_mode import TapNics

    return maker(certs, limit, server, TapNics(room=_ROOM))


def maker(certs: Path, limit: int, server: bool, nic: NicPort | None = None) -> StreamMaker:
    """Streams of this host's certificate; with ``nic`` it seals. Raises :class:`~smtstack.errors.ConfigError`,
    :class:`~smtstack.errors.Unsupported`."""
    check()
    context = host_context(certs)
    backends, stats = default_backends(nic=nic is not None), TlsStats()

    def make(sock: socket.socket, peer: Address) -> OwnKtlsStream:
        tls = KtlsSocket(sock, backends=backends, stats=stats, nic=nic)
        return OwnKtlsStream(sock, peer, limit, context, server, tls, nic is not None)

    return make
