"""TLS handshakes by OpenSSL over memory, for who makes the records afterwards: the machine's kernel, or
:mod:`smtstack.ktls`. Either role, TLS 1.2 and 1.3.

The peer's bytes go in record by record (:attr:`Handshake.wanted`), so that none of what follows the handshake is
read before its keys are where they belong.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any, Final

from smtstack.crypto.stream_gcm import MAX_PLAINTEXT
from smtstack.errors import HandshakeError, Unsupported
from smtstack.ktls.key_schedule import Suite, key_block, suite_named, traffic_params
from smtstack.ktls.params import VERSION_1_2, VERSION_1_3, TlsParams
from smtstack.ktls.records import DATA, HANDSHAKE, HEADER_LEN

_CHUNK: Final = 1 << 16
_MAX_RECORD: Final = MAX_PLAINTEXT + 2048
_RECORD_TYPES: Final = range(20, 24)
_CLIENT_SECRET, _SERVER_SECRET = b"CLIENT_TRAFFIC_SECRET_0", b"SERVER_TRAFFIC_SECRET_0"


@dataclass(frozen=True, slots=True)
class Established:
    """What a handshake leaves for records. ``repr`` has no secret."""

    suite: Suite
    tx: TlsParams
    rx: TlsParams
    tx_secret: bytes
    """TLS 1.3: of what we send, for its next keys; else empty."""
    rx_secret: bytes

    def __repr__(self) -> str:
        return f"<Established {self.tx.version:#06x} {self.suite.cipher}>"


class Handshake:
    """One handshake, by a context of :func:`make_context` or any of pyOpenSSL's with :func:`keep_secret` as its
    key log. The caller moves bytes: what :meth:`output` gives goes out, :attr:`wanted` bytes come in by
    :meth:`feed`.

    ``tickets``: a server's session tickets go out with its last flight, as records under the traffic key; else
    none is sent, so that a kernel can start at record 0.
    """

    def __init__(self, context: Any, server: bool, server_name: str = "", tickets: bool = False) -> None:
        self.server = server
        self._tickets = tickets
        self._secrets: dict[bytes, bytes] = {}
        self._record = bytearray()
        self._last_flight = b""
        self._tls = openssl().Connection(context, None)
        self._tls.set_app_data(self._secrets)
        if server:
            self._tls.set_accept_state()
        else:
            if server_name:
                self._tls.set_tlsext_host_name(server_name.encode())
            self._tls.set_connect_state()
        #: Whether it is over: what :meth:`output` still has is to be sent, then :meth:`established` asked.
        self.done = False
        self._out = bytearray()
        self._number = 0
        #: The client's first flight.
        if not server:
            self._step()

    @property
    def tls(self) -> Any:
        """OpenSSL's connection: certificates, names, ALPN."""
        return self._tls

    @property
    def wanted(self) -> int:
        """How many bytes of the peer's are needed next; never more than its record under way has."""
        record = self._record
        if len(record) < HEADER_LEN:
            return HEADER_LEN - len(record)
        return HEADER_LEN + int.from_bytes(record[3:5], "big") - len(record)

    def output(self) -> bytes:
        """What is to be sent now; it is given once."""
        out = bytes(self._out)
        self._out.clear()
        return out

    def feed(self, data: bytes) -> None:
        """At most :attr:`wanted` bytes that came. Raises :class:`HandshakeError`; :meth:`output` may have an alert
        then."""
        record = self._record
        record += data
        if len(record) >= HEADER_LEN and (record[0] not in _RECORD_TYPES or record[1] != 3
                                          or int.from_bytes(record[3:5], "big") > _MAX_RECORD):
            raise HandshakeError("the peer does not speak TLS")
        if len(record) < HEADER_LEN or self.wanted:
            return
        self._tls.bio_write(bytes(record))
        record.clear()
        self._step()

    def established(self) -> Established:
        """Keys and numbers for the records that follow. Raises :class:`Unsupported` for a suite whose records we
        do not make."""
        suite = suite_named(self._tls.get_cipher_name())
        if self._tls.get_protocol_version() == VERSION_1_3:
            client, server = self._secrets[_CLIENT_SECRET], self._secrets[_SERVER_SECRET]
            ours, theirs = (server, client) if self.server else (client, server)
            return Established(suite, traffic_params(suite, ours, self._number), traffic_params(suite, theirs),
                               ours, theirs)
        # Each side's Finished was record 0.
        both = key_block(suite, self._tls.master_key(), self._tls.client_random(), self._tls.server_random(), 1)
        tx, rx = reversed(both) if self.server else both
        # OpenSSL's explicit nonces begin anywhere at random: ours go on from the one of its Finished, so that no
        # nonce comes twice.
        tx = replace(tx, explicit_nonce=self._nonce_of_finished() + 1 & (1 << 64) - 1)
        return Established(suite, tx, rx, b"", b"")

    def _step(self) -> None:
        ssl = openssl()
        try:
            self._tls.do_handshake()
        except ssl.WantReadError:
            self._collect()
            return
        except ssl.Error as e:
            with contextlib.suppress(ssl.Error):
                self._collect()
            raise HandshakeError(reason(e)) from None
        self.done = True
        if self._tls.get_protocol_version() not in (VERSION_1_2, VERSION_1_3):
            raise HandshakeError(f"the peer speaks {self._tls.get_protocol_version_name()}")
        if self.server and self._tls.get_protocol_version() == VERSION_1_3:
            # What a server has left are session tickets, under the first numbers of its traffic key.
            if not self._tickets:
                return
            before = len(self._out)
            self._collect()
            self._number = sum(1 for kind, _record in _records(self._out[before:]) if kind == DATA)
            return
        self._collect()

    def _collect(self) -> None:
        """What OpenSSL wants to send."""
        flight = bytearray()
        with contextlib.suppress(openssl().WantReadError):
            while True:
                flight += self._tls.bio_read(_CHUNK)
        if flight:
            self._last_flight = bytes(flight)
            self._out += flight

    def _nonce_of_finished(self) -> int:
        """TLS 1.2 with GCM: the 8 bytes after the header of our last handshake record."""
        sealed = [record for kind, record in _records(self._last_flight) if kind == HANDSHAKE]
        return int.from_bytes(sealed[-1][HEADER_LEN:HEADER_LEN + 8], "big")


def _records(flight: bytes | bytearray) -> list[tuple[int, bytes]]:
    """(kind, record) of what we send ourselves."""
    found, at = [], 0
    while at < len(flight):
        end = at + HEADER_LEN + int.from_bytes(flight[at + 3:at + 5], "big")
        found.append((flight[at], bytes(flight[at:end])))
        at = end
    return found


def make_context(certificate: str = "", key: str = "", ca: str = "", versions: tuple[int, int] = (0x0303, 0x0304),
                 ciphers: str = "", suites: str = "") -> Any:
    """A context of pyOpenSSL for AEADs only, with its key log kept. Paths are PEM files; with ``ca`` the peer
    has to show a certificate of it. ``ciphers``: TLS 1.2's list, ``suites``: TLS 1.3's, in OpenSSL's words.

    Raises :class:`Unsupported` without pyOpenSSL, OpenSSL's error for files that are not what they should be.
    """
    ssl = openssl()
    context = ssl.Context(ssl.TLS_METHOD)
    context.set_min_proto_version(versions[0])
    context.set_max_proto_version(versions[1])
    context.set_cipher_list((ciphers or "ECDHE+AESGCM:ECDHE+CHACHA20").encode())
    if suites:
        context.set_tls13_ciphersuites(suites.encode())
    # A second handshake on a connection would need its records in clear again.
    context.set_options(ssl.OP_NO_RENEGOTIATION)
    context.set_keylog_callback(keep_secret)
    if ca:
        context.set_verify(ssl.VERIFY_PEER | ssl.VERIFY_FAIL_IF_NO_PEER_CERT, lambda _c, _x, _n, _d, ok: bool(ok))
        context.load_verify_locations(ca)
    if certificate:
        context.use_certificate_chain_file(certificate)
        context.use_privatekey_file(key)
    return context


def keep_secret(connection: Any, line: bytes) -> None:
    """OpenSSL's key log: ``NAME <client random> <secret>``."""
    name, _random, secret = line.split()
    connection.get_app_data()[name] = bytes.fromhex(secret.decode())


def openssl() -> Any:
    """pyOpenSSL's SSL module; raises :class:`Unsupported` where it is not installed."""
    try:
        from OpenSSL import SSL
    except ImportError:
        raise Unsupported("kernel TLS needs pyOpenSSL for handshakes: .venv/bin/pip install pyOpenSSL") from None
    return SSL


def reason(error: Exception) -> str:
    """OpenSSL's words, without its numbers."""
    stack = error.args[0] if error.args else None
    if isinstance(stack, list) and stack:
        return str(stack[-1][-1])
    return str(error) or "the peer closed the connection"
