"""TLS 1.3 with AES-128-GCM over TCP, by OpenSSL in user space: what SMT is compared with.

Both ends prove who they are with certificates of one throw-away authority (``smtnet ca``); a client checks
that the server's certificate is for the address it connected to.
"""

from __future__ import annotations

import os
import ssl
import stat
from contextlib import suppress
from pathlib import Path
from socket import socket
from typing import cast

from smtstack.errors import ConfigError
from smtstack.ringio.sockets import ProxySocket
from smtstack.socket import Address
from workloads.transports.epoll import StreamMaker
from workloads.transports.stream import CHUNK, Stream, StreamError

SUITE = "TLS_AES_128_GCM_SHA256"
CA, CERTIFICATE, KEY, OPENSSL_CONF = "ca.pem", "cert.pem", "key.pem", "openssl.cnf"
#: Most bytes that a record holds.
_RECORD = 16_384
#: Records taken at once when more than one has come.
_BATCH = 16
#: Bytes sealed at a time that, with what records add, fit a buffer of a ring.
_SEALED = 49_152


class TlsStream(Stream):
    """A connection of the ssl module."""

    __slots__ = ("_tls",)

    def __init__(self, sock: socket, peer: Address, limit: int, context: ssl.SSLContext, server: bool) -> None:
        # Wrapping takes the descriptor out of ``sock``, and does not wait: the handshake comes later.
        sock.setblocking(False)
        try:
            self._tls = context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False,
                                            server_hostname=None if server else peer[0])
        except OSError as e:
            raise StreamError(self.reason(e)) from None
        super().__init__(self._tls, peer, limit)
        self._get, self._put = self._tls.read, self._tls.write
        # After "full" OpenSSL wants the same bytes again: Stream keeps them.
        self._empty, self._full = ssl.SSLWantReadError, ssl.SSLWantWriteError

    def handshake(self) -> bool:
        try:
            self._tls.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError as e:
            raise StreamError(self.reason(e)) from None
        chosen = self._tls.cipher()
        if chosen is None or chosen[0] != SUITE:
            raise StreamError(f"the cipher is {chosen and chosen[0]}, not {SUITE}")
        return True

    def reason(self, error: OSError) -> str:
        return reason(error)

    def receive(self) -> bytes | None:
        try:
            data = self._get(CHUNK)
            if len(data) < _RECORD:
                return data
        except ssl.SSLWantReadError:
            return None
        except OSError as e:
            raise StreamError(reason(e)) from None
        # A record at a time is what OpenSSL reads, and a full one is seldom alone.
        parts = [data]
        while len(parts) < _BATCH and (more := super().receive()):
            parts.append(more)
        return b"".join(parts)


class TlsInMemory(Stream):
    """A connection over a socket that is none of this process' (:mod:`smtstack.ringio`): OpenSSL has its records
    by memory. A server's."""

    __slots__ = ("_came", "_leaves", "_tls")

    def __init__(self, sock: ProxySocket, peer: Address, limit: int, context: ssl.SSLContext) -> None:
        super().__init__(cast(socket, sock), peer, limit)
        self._came, self._leaves = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._came, self._leaves, server_side=True)
        self._put = self._seal

    @property
    def _proxy(self) -> ProxySocket:
        return cast(ProxySocket, self.sock)

    def handshake(self) -> bool:
        data = super().receive()
        if data is None:
            return False
        if not data:
            raise StreamError("it ended in the handshake")
        self._came.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        except OSError as e:
            raise StreamError(reason(e)) from None
        finally:
            # Of a failed one, the alert that says why.
            with suppress(OSError):
                self._proxy.send(self._leaves.read())
        # What came behind it is looked at when it is asked for.
        self._proxy.unread(self._came.read())
        return True

    def reason(self, error: OSError) -> str:
        return reason(error)

    def receive(self) -> bytes | None:
        data = super().receive()
        if data is None:
            return None
        if data:
            self._came.write(data)
        else:
            self._came.write_eof()
        parts: list[bytes] = []
        try:
            while True:
                part = self._tls.read(CHUNK)
                if not part:
                    # It said that it ends, or its connection did without that, as it may.
                    return b"".join(parts)
                parts.append(part)
        except ssl.SSLWantReadError:
            return b"".join(parts) or None
        except ssl.SSLEOFError:
            return b"".join(parts)
        except OSError as e:
            raise StreamError(reason(e)) from None

    def _seal(self, data: bytes | memoryview) -> int:
        # All that is sealed leaves at once, or nothing is sealed.
        if self._proxy.is_sending():
            raise BlockingIOError
        taken = self._tls.write(data[:_SEALED])
        self._proxy.send(self._leaves.read())
        return taken


def maker(certs: Path, limit: int, server: bool) -> StreamMaker:
    """Streams of this host's certificate. Raises :class:`ConfigError` naming the fix."""
    context = _context(certs, server)

    def make(sock: socket, peer: Address) -> Stream:
        if isinstance(sock, ProxySocket):
            return TlsInMemory(sock, peer, limit, context)
        return TlsStream(sock, peer, limit, context, server)
    return make


def check_folder(certs: Path) -> None:
    """Raises :class:`ConfigError` for a folder that does not hold a host's certificate, for its owner only."""
    for name in (CA, CERTIFICATE, KEY):
        if not (certs / name).is_file():
            raise ConfigError(f"--certs {certs}: there is no {name}; 'smtnet ca' makes such folders")
    mode = (certs / KEY).stat().st_mode
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{certs / KEY} can be read by others (mode {mode & 0o777:03o}); "
                          f"chmod 600 {certs / KEY}")


def _context(certs: Path, server: bool) -> ssl.SSLContext:
    check_folder(certs)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    if server:
        # Resumption is not measured, and tickets would be.
        context.num_tickets = 0
    else:
        context.check_hostname = True
    try:
        context.load_verify_locations(certs / CA)
        context.load_cert_chain(certs / CERTIFICATE, certs / KEY)
    except (ssl.SSLError, OSError) as e:
        raise ConfigError(f"--certs {certs}: {reason(e)}") from None
    # The ssl module cannot choose among TLS 1.3 suites before Python 3.15; OpenSSL's own configuration can.
    suites = [c["name"] for c in context.get_ciphers() if c["protocol"] == "TLSv1.3"]
    if suites != [SUITE]:
        raise ConfigError(f"OpenSSL would offer {', '.join(suites)}; to have {SUITE} only, start this with "
                          f"OPENSSL_CONF={os.path.abspath(certs / OPENSSL_CONF)} in the environment")
    return context


def reason(error: OSError) -> str:
    """For people: "certificate verify failed: ..." without OpenSSL's numbers."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or "TLS failed").lower().replace("_", " ")
    return error.strerror or str(error)
