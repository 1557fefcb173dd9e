"""TLS 1.3 records made by the kernel: a handshake by OpenSSL, then the keys go to the socket (kTLS, software).

From the handshake's end on ``send`` and ``recv`` carry the application's bytes.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from pathlib import Path

from smtstack.errors import Unsupported
from smtstack.ktls.params import (
    SOL_TLS,
    TCP_ULP,
    TLS_RX,
    TLS_SET_RECORD_TYPE,
    TLS_TX,
    pack_crypto_info,
)
from smtstack.ktls.records import ALERT
from smtstack.ktls_io.handshake import Established, openssl
from workloads.transports.epoll import StreamMaker
from workloads.transports.handshaken import HandshakenStream, host_context
from workloads.transports.stream import CHUNK, StreamError

#: The alert that ends a connection.
CLOSE_NOTIFY = b"\x01\x00"


def check() -> None:
    """Raises :class:`Unsupported` naming what this kernel or this Python lacks for kernel TLS."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        except OSError as e:
            # A kernel that has it wants a connection first.
            if e.errno != errno.ENOTCONN:
                raise Unsupported("this kernel has no TLS module (CONFIG_TLS): ktls needs one that has, "
                                  "and: modprobe tls") from None
    openssl()


class KtlsStream(HandshakenStream):
    """A connection whose records the kernel makes."""

    __slots__ = ()

    def reason(self, error: OSError) -> str:
        return "a record failed authentication" if error.errno == errno.EBADMSG else super().reason(error)

    def receive(self) -> bytes | None:
        try:
            return self.sock.recv(CHUNK)
        except BlockingIOError:
            return None
        except OSError as e:
            # EIO: a record of another type than data is next.
            if e.errno != errno.EIO:
                raise StreamError(self.reason(e)) from None
        return self._control()

    def close(self) -> None:
        if self.ready:
            with contextlib.suppress(OSError):
                self.sock.sendmsg([CLOSE_NOTIFY], [(SOL_TLS, TLS_SET_RECORD_TYPE, bytes([ALERT]))])
        super().close()

    def begin(self, keys: Established) -> None:
        """From here on the kernel seals and opens."""
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            self.sock.setsockopt(SOL_TLS, TLS_TX, pack_crypto_info(keys.tx))
            self.sock.setsockopt(SOL_TLS, TLS_RX, pack_crypto_info(keys.rx))
        except OSError as e:
            raise StreamError(f"kTLS: {e.strerror}") from None

    def _control(self) -> bytes:
        """Take a record that is no data: b"" if it ends the connection orderly."""
        try:
            data, ancillary, _flags, _address = self.sock.recvmsg(CHUNK, socket.CMSG_SPACE(1))
        except OSError as e:
            raise StreamError(self.reason(e)) from None
        kind = ancillary[0][2][0] if ancillary else None
        if kind == ALERT and data == CLOSE_NOTIFY:
            return b""
        raise StreamError(f"the peer sent alert {data[1]}" if kind == ALERT and len(data) == 2
                          else f"the peer sent a record of type {kind}")


def maker(certs: Path, limit: int, server: bool) -> StreamMaker:
    """Streams of this host's certificate. Raises :class:`~smtstack.errors.ConfigError`, :class:`Unsupported`."""
    check()
    context = host_context(certs)
    return lambda sock, peer: KtlsStream(sock, peer, limit, context, server)
