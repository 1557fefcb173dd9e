"""TLS 1.3 with AES-128-GCM over TCP, by OpenSSL in user space: what SMT is compared with.

Both ends prove who they are with certificates of one throw-away authority (``smtnet ca``); a client checks
that the server's certificate is for the address it connected to.
"""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path
from socket import socket

from smtstack.errors import ConfigError
from smtstack.socket import Address
from workloads.transports.epoll import StreamMaker
from workloads.transports.stream import CHUNK, Stream, StreamError

SUITE = "TLS_AES_128_GCM_SHA256"
CA, CERTIFICATE, KEY, OPENSSL_CONF = "ca.pem", "cert.pem", "key.pem", "openssl.cnf"
#: Most bytes that a record holds.
_RECORD = 16_384
#: Records taken at once when more than one has come.
_BATCH = 16


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


def maker(certs: Path, limit: int, server: bool) -> StreamMaker:
    """Streams of this host's certificate. Raises :class:`ConfigError` naming the fix."""
    context = _context(certs, server)
    return lambda sock, peer: TlsStream(sock, peer, limit, context, server)


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
