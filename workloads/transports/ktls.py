"""TLS 1.3 records made by the kernel: a handshake by OpenSSL, then the keys go to the socket (kTLS, software).

The handshake runs over memory, record by record, so that nothing of what follows it is read before the kernel
has the keys. From then on ``send`` and ``recv`` carry the application's bytes.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from cryptography import x509

from smtstack.crypto.keys import expand_label
from smtstack.errors import ConfigError, Unsupported
from smtstack.socket import Address
from workloads.transports.epoll import StreamMaker
from workloads.transports.stream import CHUNK, Stream, StreamError
from workloads.transports.tls import CA, CERTIFICATE, KEY, OPENSSL_CONF, SUITE, check_folder

# Linux <linux/tcp.h>, <linux/tls.h>, <linux/socket.h>; Python has no names for these.
TCP_ULP = 31
SOL_TLS = 282
TLS_TX, TLS_RX = 1, 2
TLS_SET_RECORD_TYPE = 1
VERSION_1_3, CIPHER_AES_GCM_128 = 0x0304, 51
#: The record type of alerts, and the alert that ends a connection.
ALERT, CLOSE_NOTIFY = 21, b"\x01\x00"
_RECORD_HEADER = 5
_MAX_RECORD = 16_384 + 256
_RECORD_TYPES = range(20, 24)
_CLIENT_SECRET, _SERVER_SECRET = b"CLIENT_TRAFFIC_SECRET_0", b"SERVER_TRAFFIC_SECRET_0"


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
    _openssl()


def crypto_info(secret: bytes) -> bytes:
    """``struct tls12_crypto_info_aes_gcm_128`` for a traffic secret of which no record was used yet."""
    key, iv = expand_label(secret, "key", b"", 16), expand_label(secret, "iv", b"", 12)
    return struct.pack("=HH8s16s4s8s", VERSION_1_3, CIPHER_AES_GCM_128, iv[4:], key, iv[:4], bytes(8))


class KtlsStream(Stream):
    """A connection whose records the kernel makes."""

    __slots__ = ("_record", "_secrets", "_server", "_tls")

    def __init__(self, sock: socket.socket, peer: Address, limit: int, context: Any, server: bool) -> None:
        super().__init__(sock, peer, limit)
        self._server = server
        #: By OpenSSL's name of them.
        self._secrets: dict[bytes, bytes] = {}
        #: As much as has come of the record under way.
        self._record = bytearray()
        self._tls = _openssl().Connection(context, None)
        self._tls.set_app_data(self._secrets)
        if server:
            self._tls.set_accept_state()
        else:
            self._tls.set_connect_state()

    def handshake(self) -> bool:
        ssl = _openssl()
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.WantReadError:
                self._send_flight()
                if not self._take_record():
                    return False
            except ssl.Error as e:
                with contextlib.suppress(StreamError):
                    self._send_flight()
                raise StreamError(_reason(e)) from None
        if not self._server:
            self._send_flight()
        # What a server has left are session tickets, under the first numbers of its traffic key. None goes
        # out, so that the kernel can start at 0; nobody resumes sessions here.
        self._check_peer()
        self._hand_over()
        return True

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

    def _send_flight(self) -> None:
        with contextlib.suppress(_openssl().WantReadError):
            while True:
                if not self.send(self._tls.bio_read(CHUNK)):
                    raise StreamError("the handshake does not fit into the socket's buffer")

    def _take_record(self) -> bool:
        """Give OpenSSL the next record, and no byte more; whether it was there."""
        record = self._record
        while True:
            wanted = _RECORD_HEADER
            if len(record) >= _RECORD_HEADER:
                length = int.from_bytes(record[3:5], "big")
                if record[0] not in _RECORD_TYPES or record[1] != 3 or length > _MAX_RECORD:
                    raise StreamError("the peer does not speak TLS")
                wanted += length
                if len(record) == wanted:
                    break
            try:
                data = self.sock.recv(wanted - len(record))
            except BlockingIOError:
                return False
            except OSError as e:
                raise StreamError(self.reason(e)) from None
            if not data:
                raise StreamError("the peer closed the connection")
            record += data
        self._tls.bio_write(bytes(record))
        record.clear()
        return True

    def _check_peer(self) -> None:
        if self._tls.get_cipher_name() != SUITE:
            raise StreamError(f"the cipher is {self._tls.get_cipher_name()}, not {SUITE}: set OPENSSL_CONF to the "
                              f"{OPENSSL_CONF} of --certs")
        if self._server:
            return
        certificate = self._tls.get_peer_certificate().to_cryptography()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if ip_address(self.peer[0]) not in names.get_values_for_type(x509.IPAddress):
            raise StreamError(f"the peer's certificate is not for {self.peer[0]}")

    def _hand_over(self) -> None:
        """From here on the kernel seals and opens."""
        ours, theirs = _CLIENT_SECRET, _SERVER_SECRET
        if self._server:
            ours, theirs = theirs, ours
        try:
            self.sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            self.sock.setsockopt(SOL_TLS, TLS_TX, crypto_info(self._secrets[ours]))
            self.sock.setsockopt(SOL_TLS, TLS_RX, crypto_info(self._secrets[theirs]))
        except OSError as e:
            raise StreamError(f"kTLS: {e.strerror}") from None


def maker(certs: Path, limit: int, server: bool) -> StreamMaker:
    """Streams of this host's certificate. Raises :class:`ConfigError`, :class:`Unsupported`."""
    check()
    context = _context(certs)
    return lambda sock, peer: KtlsStream(sock, peer, limit, context, server)


def _context(certs: Path) -> Any:
    check_folder(certs)
    ssl = _openssl()
    context = ssl.Context(ssl.TLS_METHOD)
    context.set_min_proto_version(ssl.TLS1_3_VERSION)
    context.set_verify(ssl.VERIFY_PEER | ssl.VERIFY_FAIL_IF_NO_PEER_CERT, lambda _c, _x, _n, _d, ok: bool(ok))
    context.set_keylog_callback(_keep_secret)
    try:
        context.load_verify_locations(str(certs / CA))
        context.use_certificate_chain_file(str(certs / CERTIFICATE))
        context.use_privatekey_file(str(certs / KEY))
    except ssl.Error as e:
        raise ConfigError(f"--certs {certs}: {_reason(e)}") from None
    return context


def _keep_secret(connection: Any, line: bytes) -> None:
    """OpenSSL's key log: ``NAME <client random> <secret>``."""
    name, _random, secret = line.split()
    connection.get_app_data()[name] = bytes.fromhex(secret.decode())


def _openssl() -> Any:
    try:
        from OpenSSL import SSL
    except ImportError:
        raise Unsupported("ktls needs pyOpenSSL for its handshake: .venv/bin/pip install pyOpenSSL") from None
    return SSL


def _reason(error: Exception) -> str:
    """OpenSSL's words, without its numbers."""
    stack = error.args[0] if error.args else None
    if isinstance(stack, list) and stack:
        return str(stack[-1][-1])
    return str(error) or "the peer closed the connection"
