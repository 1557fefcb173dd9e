"""Connections whose handshake is OpenSSL's and whose records are somebody else's: the kernel's (ktls.py), ours
(ktls_own.py)."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from ipaddress import ip_address
from pathlib import Path
from socket import socket
from typing import Any

from cryptography import x509

from smtstack.errors import ConfigError, HandshakeError
from smtstack.ktls_io.handshake import Established, Handshake, make_context, openssl, reason
from smtstack.socket import Address
from workloads.transports.stream import Stream, StreamError
from workloads.transports.tls import CA, CERTIFICATE, KEY, SUITE, check_folder


class HandshakenStream(Stream):
    """``context``: of :func:`host_context`."""

    __slots__ = ("_handshake",)

    def __init__(self, sock: socket, peer: Address, limit: int, context: Any, server: bool) -> None:
        super().__init__(sock, peer, limit)
        self._handshake: Handshake | None = Handshake(context, server)

    def handshake(self) -> bool:
        shaking = self._handshake
        assert shaking is not None
        while not shaking.done:
            self._send_flight(shaking)
            try:
                data = self.sock.recv(shaking.wanted)
            except BlockingIOError:
                return False
            except OSError as e:
                raise StreamError(self.reason(e)) from None
            if not data:
                raise StreamError("the peer closed the connection")
            try:
                shaking.feed(data)
            except HandshakeError as e:
                with contextlib.suppress(StreamError):
                    self._send_flight(shaking)
                raise StreamError(str(e)) from None
        self._send_flight(shaking)
        self._check_peer(shaking)
        self.begin(shaking.established())
        self._handshake = None
        return True

    @abstractmethod
    def begin(self, keys: Established) -> None:
        """Records from here on. Raises :class:`StreamError`."""

    def reason(self, error: OSError) -> str:
        return error.strerror or str(error)

    def _send_flight(self, shaking: Handshake) -> None:
        if (flight := shaking.output()) and not Stream.send(self, flight):
            raise StreamError("the handshake does not fit into the socket's buffer")

    def _check_peer(self, shaking: Handshake) -> None:
        if shaking.tls.get_cipher_name() != SUITE:
            raise StreamError(f"the cipher is {shaking.tls.get_cipher_name()}, not {SUITE}")
        if shaking.server:
            return
        certificate = shaking.tls.get_peer_certificate().to_cryptography()
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        if ip_address(self.peer[0]) not in names.get_values_for_type(x509.IPAddress):
            raise StreamError(f"the peer's certificate is not for {self.peer[0]}")


def host_context(certs: Path) -> Any:
    """A context of this host's certificate, for TLS 1.3 and the one suite that is compared. Raises
    :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`."""
    check_folder(certs)
    try:
        return make_context(str(certs / CERTIFICATE), str(certs / KEY), str(certs / CA), (0x0304, 0x0304),
                            suites=SUITE)
    except openssl().Error as e:
        raise ConfigError(f"--certs {certs}: {reason(e)}") from None
