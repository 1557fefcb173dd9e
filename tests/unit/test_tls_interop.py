"""Our handshakes against another TLS: ``openssl s_server`` and ``s_client``, by a relay over loopback TCP.

The relay knows nothing but the framing of records (RFC 8446 §5.1). Secrets are compared with what the other side
prints and logs, and ours is computed once more from its log by RFC 8446 §7.1 and §7.5, written down here.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from smtstack.errors import HandshakeError
from smtstack.session import tls
from smtstack.session.offer import Agreement, Offer, binding
from smtstack.session.tls import TlsClient, TlsServer
from smtstack.wire.ipv4 import address
from tests.certificates import Authority, Leaf

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None,
                                reason="openssl is not installed (Debian: openssl)")

OFFER, CHOICE = Offer(), Agreement()
CONFIRM = binding(OFFER, CHOICE)
LOCAL = "127.0.0.1"
IP = address(LOCAL)
LABEL = tls.SESSION_LABEL.decode()
PATIENCE_S = 30
EXPORT = ("-keymatexport", LABEL, "-keymatexportlen", "32")
#: Types of records (RFC 8446 §5.1): what OpenSSL sends, each handshake message in a record of its own.
CCS, HANDSHAKE, DATA = 20, 22, 23


class Relay:
    """Flights, as records off and onto a TCP connection."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.connection = connection
        self.stream = connection.makefile("rb")

    def send(self, flight: bytes) -> None:
        self.connection.sendall(flight)

    def receive(self, types: Sequence[int]) -> bytes:
        """The flight of records of these types."""
        flight = []
        for kind in types:
            header = self.stream.read(5)
            assert len(header) == 5, "the other side hung up"
            assert header[0] == kind
            flight += [header, self.stream.read(int.from_bytes(header[3:], "big"))]
        return b"".join(flight)

    def rest(self) -> bytes:
        """Whatever comes until the other side hangs up."""
        return self.stream.read()

    def close(self) -> None:
        self.stream.close()
        self.connection.close()


class Program:
    """An ``openssl`` command that runs; what it prints ends up in files."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "tls.log"
        self.output: IO[bytes] = (folder / "output").open("w+b")
        self.process = subprocess.Popen(["openssl", *arguments, "-keylogfile", str(self.log)], cwd=folder,
                                        stdin=subprocess.PIPE, stdout=self.output, stderr=subprocess.STDOUT)

    def types(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def printed(self, pattern: bytes) -> bytes:
        """The first group of ``pattern`` in what it prints; waits for it."""
        until = time.monotonic() + PATIENCE_S
        while not (found := re.search(pattern, self.text())):
            assert time.monotonic() < until, self.text()
            time.sleep(0.005)
        return found[1]

    def text(self) -> bytes:
        return (Path(self.output.name)).read_bytes()

    def exporter(self) -> bytes:
        """EXPORTER_SECRET of its key log: exporter_master_secret of RFC 8446."""
        return bytes.fromhex(re.findall(r"^EXPORTER_SECRET \w+ (\w+)$", self.log.read_text(), re.MULTILINE)[0])

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.output.close()


def expand_label(secret: bytes, label: bytes, context: bytes, digest: str) -> bytes:
    """HKDF-Expand-Label of RFC 8446 §7.1 for one block of output or less (here 32 bytes or the whole digest)."""
    size = 32 if label == b"exporter" else hashlib.new(digest).digest_size
    info = size.to_bytes(2, "big") + bytes([6 + len(label)]) + b"tls13 " + label + bytes([len(context)]) + context
    return hmac.new(secret, info + b"\x01", digest).digest()[:size]


def exported(master: bytes, context: bytes, label: bytes = tls.SESSION_LABEL) -> bytes:
    """TLS-Exporter of RFC 8446 §7.5, 32 bytes."""
    digest = "sha256" if len(master) == 32 else "sha384"
    derived = expand_label(master, label, hashlib.new(digest, b"").digest(), digest)
    return expand_label(derived, b"exporter", hashlib.new(digest, context).digest(), digest)


@dataclass
class Ends:
    """Our identity, and the other side's as files in ``folder``. It has a clock, so certificates hold now."""

    folder: Path
    kind: str

    def __post_init__(self) -> None:
        self.utc = int(time.time())
        self.authority = Authority(self.kind, utc=self.utc)
        self.leaf = Leaf(self.utc - 60, self.utc + 600)
        self.ours = self.authority.identity("ours", LOCAL, self.leaf, {LOCAL: "other"})
        self.write(self.authority)

    def write(self, authority: Authority) -> None:
        """The other side's files, of this authority; what it believes stays."""
        other = authority.identity("other", LOCAL, self.leaf)
        key = other.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for name, content in (("ca.pem", self.authority.certificate.public_bytes(Encoding.PEM)),
                              ("cert.pem", other.leaf.public_bytes(Encoding.PEM)), ("key.pem", key)):
            (self.folder / name).write_bytes(content)

    def client(self, mutual: bool = True) -> TlsClient:
        return TlsClient(self.ours, OFFER, IP, self.utc, mutual)

    def server(self, mutual: bool = True) -> TlsServer:
        return TlsServer(self.ours, IP, self.utc, mutual)


@pytest.fixture(params=["p256", "ed25519"])
def ends(request, tmp_path):
    return Ends(tmp_path, request.param)


@contextmanager
def s_server(folder: Path, *options: str) -> Iterator[tuple[Program, Relay]]:
    program = Program(folder, "s_server", "-accept", f"{LOCAL}:0", "-naccept", "1", "-cert", "cert.pem", "-key",
                      "key.pem", "-tls1_3", "-alpn", "smt/1", "-num_tickets", "0", *EXPORT, *options)
    try:
        port = int(program.printed(rb"ACCEPT 127\.0\.0\.1:(\d+)"))
        relay = Relay(socket.create_connection((LOCAL, port), PATIENCE_S))
        try:
            yield program, relay
        finally:
            relay.close()
    finally:
        program.close()


@contextmanager
def s_client(folder: Path, *options: str) -> Iterator[tuple[Program, Relay]]:
    with socket.create_server((LOCAL, 0)) as listener:
        listener.settimeout(PATIENCE_S)
        program = Program(folder, "s_client", "-connect", f"{LOCAL}:{listener.getsockname()[1]}", "-tls1_3",
                          "-alpn", "smt/1", "-groups", "P-256", "-CAfile", "ca.pem", "-verify_return_error",
                          *EXPORT, *options)
        try:
            relay = Relay(listener.accept()[0])
            try:
                yield program, relay
            finally:
                relay.close()
        finally:
            program.close()


# -- our client ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"])
def test_our_client_and_s_server(ends, mutual, suite):
    demand = ("-Verify", "3", "-CAfile", "ca.pem", "-verify_return_error") if mutual else ()
    client = ends.client(mutual)
    with s_server(ends.folder, "-ciphersuites", suite, *demand) as (program, relay):
        relay.send(client.hello())
        # EncryptedExtensions, (CertificateRequest,) Certificate, CertificateVerify, Finished
        answer = relay.receive([HANDSHAKE, CCS, *[DATA] * (5 if mutual else 4)])
        relay.send(client.finish(answer, CHOICE))
        keying = bytes.fromhex(program.printed(rb"Keying material: ([0-9A-F]{64})\n").decode())
        # Our confirmation arrives there as data, and what is typed there confirms to us.
        program.printed(b"(" + re.escape(CONFIRM) + b")")
        program.types(CONFIRM + len(b"a blob").to_bytes(2, "big") + b"a blob")
        assert client.done(relay.receive([DATA])) == b"a blob"
        assert client.peer_name == "other"
        master = program.exporter()
        # OpenSSL 3.2 and later leave the spaces out.
        assert (b"CN=ours" in program.text().replace(b"CN = ", b"CN=")) is mutual
    assert keying == client._tls.export_keying_material(tls.SESSION_LABEL, 32) == exported(master, b"")
    assert client.secret == exported(master, CONFIRM)
    assert client.resumption == exported(master, CONFIRM, tls.RESUMPTION_LABEL)


def test_our_client_refuses_an_s_server_of_another_authority(ends):
    ends.write(Authority(ends.kind, "another", utc=ends.utc))
    client = ends.client()
    with s_server(ends.folder) as (program, relay):
        relay.send(client.hello())
        with pytest.raises(HandshakeError, match="unable to get local issuer certificate") as caught:
            client.finish(relay.receive([HANDSHAKE, CCS, *[DATA] * 4]), CHOICE)
        relay.send(caught.value.alert)
        program.printed(rb"(alert unknown ca)")
        assert b"Keying material" not in program.text()


def test_s_server_refuses_our_client_of_another_authority(ends):
    stranger = Authority(ends.kind, "another", utc=ends.utc)
    ends.ours = stranger.identity("ours", LOCAL, ends.leaf, {LOCAL: "other"}, [ends.authority])
    client = ends.client()
    with s_server(ends.folder, "-Verify", "3", "-CAfile", "ca.pem", "-verify_return_error") as (program, relay):
        relay.send(client.hello())
        relay.send(client.finish(relay.receive([HANDSHAKE, CCS, *[DATA] * 5]), CHOICE))
        with pytest.raises(HandshakeError, match="the server refuses the handshake: unknown ca"):
            client.done(relay.receive([DATA]))
        program.printed(b"(certificate verify failed)")


# -- our server ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mutual", [True, False])
@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"])
def test_our_server_and_s_client(ends, mutual, suite):
    shown = ("-cert", "cert.pem", "-key", "key.pem") if mutual else ()
    server = ends.server(mutual)
    with s_client(ends.folder, "-ciphersuites", suite, *shown) as (program, relay):
        relay.send(server.answer(relay.receive([HANDSHAKE]), OFFER, CHOICE))
        # (Certificate, CertificateVerify,) Finished, and what is typed there
        program.types(CONFIRM)
        server.finish(relay.receive([CCS, *[DATA] * (4 if mutual else 2)]))
        assert server.peer_name == ("other" if mutual else "")
        relay.send(server.done(b"a blob of ours"))
        program.printed(b"(" + re.escape(CONFIRM + b"\0\x0ea blob of ours") + b")")
        keying = bytes.fromhex(program.printed(rb"Keying material: ([0-9A-F]{64})\n").decode())
        master = program.exporter()
        assert b"Verification: OK" in program.text()
        assert b"ALPN protocol: smt/1" in program.text()
    assert keying == server._tls.export_keying_material(tls.SESSION_LABEL, 32) == exported(master, b"")
    assert server.secret == exported(master, CONFIRM)
    assert server.resumption == exported(master, CONFIRM, tls.RESUMPTION_LABEL)


def test_our_server_refuses_an_s_client_of_another_authority_or_without_certificate(ends):
    ends.write(Authority(ends.kind, "another", utc=ends.utc))
    for shown, count, words, alert in (
            (("-cert", "cert.pem", "-key", "key.pem"), 3, "unable to get local issuer certificate", "unknown ca"),
            ((), 2, "peer did not return a certificate", "certificate required")):
        server = ends.server()
        with s_client(ends.folder, *shown) as (program, relay):
            relay.send(server.answer(relay.receive([HANDSHAKE]), OFFER, CHOICE))
            with pytest.raises(HandshakeError, match=words) as caught:
                server.finish(relay.receive([CCS, *[DATA] * count]))
            relay.send(caught.value.alert)
            program.printed(f"(alert {alert})".encode())
        assert server.secret == b""


def test_s_client_refuses_our_server_of_another_authority(ends):
    stranger = Authority(ends.kind, "another", utc=ends.utc)
    ends.ours = stranger.identity("ours", LOCAL, ends.leaf, {LOCAL: "other"}, [ends.authority])
    server = ends.server()
    with s_client(ends.folder) as (program, relay):
        relay.send(server.answer(relay.receive([HANDSHAKE]), OFFER, CHOICE))
        with pytest.raises(HandshakeError, match="the client refuses the handshake: unknown ca"):
            server.finish(relay.rest())
        program.printed(b"(certificate verify failed)")
