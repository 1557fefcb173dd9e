"""Our kernel TLS on real sockets, over the loopback, with peers that are not ours: Python's ssl, the programs
openssl, curl and redis-cli. Both roles, TLS 1.2 and 1.3, every cipher."""

from __future__ import annotations

import errno
import hashlib
import os
import select
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from smtstack.errors import HandshakeError, LocalError
from smtstack.ktls.params import (
    SOL_TLS,
    TLS_RX,
    TLS_RX_EXPECT_NO_PAD,
    TLS_SET_RECORD_TYPE,
    TLS_TX,
    TLS_TX_ZEROCOPY_RO,
    pack_crypto_info,
)
from smtstack.ktls.records import ALERT, DATA, HANDSHAKE
from smtstack.ktls.stats import TlsStats
from smtstack.ktls_io.backends import default_backends
from smtstack.ktls_io.coproc import ProcessBackend
from smtstack.ktls_io.files import sendfile
from smtstack.ktls_io.handshake import Handshake
from smtstack.ktls_io.socket import KtlsSocket, shake_hands
from tests.ktls_peers import PATIENCE, SUITES, Certificates, beside, openssl, pair, pattern
from workloads.transports import Settings, open_caller, open_server
from workloads.transports.contract import Call
from workloads.transports.stream_server import StreamServer

ROOT = Path(__file__).resolve().parents[2]
LATEST = SUITES[0]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certs") / "made")


def both(certificates: Certificates, suite=LATEST, client_has=None, **how) -> tuple[KtlsSocket, KtlsSocket]:
    """A client and a server of ours. ``client_has``: backends of the client's own."""
    one, other = pair()
    made: list[KtlsSocket] = []
    context = certificates.ours(suite[0], suite[2])
    with beside(lambda: made.append(KtlsSocket.server(other, context, **how))):
        client = KtlsSocket.client(one, context, **{**how, "backends": client_has or how.get("backends")})
    return client, made[0]


def receive(end: KtlsSocket | ssl.SSLSocket, size: int) -> bytes:
    out = bytearray()
    while len(out) < size and (data := end.recv(1 << 16)):
        out += data
    return bytes(out)


# -- unmodified peers ----------------------------------------------------------------------------------------

SIZES = (1, 100, 16_384, 16_385, 300_000)


@pytest.mark.parametrize("suite", SUITES, ids=str)
@pytest.mark.parametrize("we_serve", [False, True])
def test_python_ssl_at_the_other_end(certificates, suite, we_serve):
    version, cipher, name = suite
    ours, theirs = pair()
    context = certificates.theirs(server=not we_serve, tickets=2)
    context.check_hostname = False
    blocks = [pattern(size, size) for size in SIZES]

    def peer() -> None:
        with context.wrap_socket(theirs, server_side=not we_serve) as end:
            for block in blocks:
                assert receive(end, len(block)) == block
                end.sendall(block[::-1])
            assert end.recv(1) == b""
            # It gives us its socket back only after both have said the end.
            end.unwrap()

    with beside(peer):
        make = KtlsSocket.server if we_serve else KtlsSocket.client
        with make(ours, certificates.ours(version, name)) as end:
            assert (end.txtls_mode, end.rxtls_mode) == ("sw", "sw")
            assert end.connection.tx is not None
            assert (end.connection.tx.version, end.connection.tx.cipher) == (version, cipher)
            for block in blocks:
                assert end.send(block) == len(block)
                assert receive(end, len(block)) == block[::-1]
            end.shutdown()
            assert end.recv() == b""
            assert end.close_notify
            # In TLS 1.2 they come within the handshake.
            assert end.tickets == (2 if version == 0x0304 and not we_serve else 0)
            stats = end.stats
    assert not any(stats.gauges().values())


def test_a_server_may_send_tickets_under_the_first_numbers(certificates):
    ours, theirs = pair()
    context = certificates.theirs(server=False)
    context.check_hostname = False

    def peer() -> None:
        with context.wrap_socket(theirs) as end:
            assert receive(end, 5) == b"hello"
            assert end.session is not None
            assert end.session.has_ticket
            end.sendall(b"world")
            end.recv(1)

    with beside(peer), KtlsSocket.server(ours, certificates.ours(LATEST[0], LATEST[2]), tickets=True) as end:
        assert end.connection.number == 2
        end.send(b"hello")
        assert receive(end, 5) == b"world"


@pytest.mark.parametrize("suite", [SUITES[1], SUITES[3]], ids=str)
def test_openssl_s_server(certificates, suite):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    version = "-tls1_3" if suite[0] == 0x0304 else "-tls1_2"
    with openssl("s_server", "-accept", f"127.0.0.1:{port}", "-cert", certificates.cert, "-key", certificates.key,
                 version, "-rev") as server:
        assert server.stdout is not None
        while b"ACCEPT" not in server.stdout.readline():
            pass
        sock = socket.create_connection(("127.0.0.1", port))
        sock.settimeout(PATIENCE)
        with KtlsSocket.client(sock, certificates.ours(suite[0], suite[2])) as end:
            for word in (b"hello", b"x" * 4000):
                end.send(word + b"\n")
                assert receive(end, len(word) + 1) == word[::-1] + b"\n"


@pytest.mark.parametrize("rules", ["linux", "freebsd"])
def test_openssl_s_client_updates_its_keys(certificates, rules):
    """K in s_client: new keys, and ours wanted. By Linux's rules both go on; by FreeBSD's it is told that we
    refuse."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with openssl("s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-cert", certificates.cert, "-key",
                     certificates.key, "-CAfile", certificates.ca, fed=b"before\n") as client:
            sock, _address = listener.accept()
            sock.settimeout(PATIENCE)
            with KtlsSocket.server(sock, certificates.ours(LATEST[0], LATEST[2]), rules=rules) as end:
                assert receive(end, 7) == b"before\n"
                assert client.stdin is not None
                assert client.stdout is not None
                client.stdin.write(b"K\n")
                client.stdin.flush()
                if rules == "freebsd":
                    with pytest.raises(OSError, match="a key update: FreeBSD's rules have no second key") as no:
                        end.recv()
                    assert no.value.errno == errno.EOPNOTSUPP
                    assert b"unexpected message" in client.stdout.read()
                    return
                # It takes K for a command at the beginning of what it reads only.
                sock.settimeout(0.02)
                while not end.stats.counters["TlsRxRekeyReceived"]:
                    with suppress(TimeoutError):
                        end.recv()
                sock.settimeout(PATIENCE)
                client.stdin.write(b"after\n")
                client.stdin.flush()
                assert receive(end, 6) == b"after\n"
                counters = end.stats.counters
                for name in ("RxRekeyReceived", "RxRekeyOk", "TxRekeyOk"):
                    assert counters[f"Tls{name}"] == 1
                end.send(b"answer under new keys\n")
                end.shutdown()
                assert b"answer under new keys" in client.stdout.read()


def http(end: KtlsSocket, body: bytes) -> bytes:
    """Serve one request; what was asked."""
    asked = bytearray()
    while b"\r\n\r\n" not in asked:
        asked += end.recv()
    head, _, rest = bytes(asked).partition(b"\r\n\r\n")
    if b"Expect: 100-continue" in head:
        end.send(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = next((int(line.split()[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length:")), 0)
    rest += receive(end, length - len(rest))
    end.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), more=True)
    end.send(body)
    return rest


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("suite", [SUITES[0], SUITES[4]], ids=str)
def test_curl_gets_and_sends(certificates, suite, tmp_path):
    body, sent = pattern(3_000_000), pattern(2_000_000, 2)
    Path(tmp_path, "sent").write_bytes(sent)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        command = ["curl", "-sS", "--cacert", certificates.ca, "--cert", certificates.cert, "--key",
        certificates.key,
                   "--data-binary", f"@{tmp_path}/sent", f"https://127.0.0.1:{listener.getsockname()[1]}/"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            sock, _address = listener.accept()
            sock.settimeout(PATIENCE)
            asked: list[bytes] = []

            def serve() -> None:
                with KtlsSocket.server(sock, certificates.ours(suite[0], suite[2])) as end:
                    asked.append(http(end, body))

            with beside(serve):
                got, _errors = curl.communicate(timeout=PATIENCE)
    assert curl.returncode == 0
    assert hashlib.sha256(got).digest() == hashlib.sha256(body).digest()
    assert hashlib.sha256(asked[0]).digest() == hashlib.sha256(sent).digest()


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="there is no redis-cli")
def test_redis_cli_with_tls_asks_our_store(certificates):
    folder = Path(certificates.cert).parent
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "workloads", "serve", "kv", "--transport", "ktls-sw", "--addr",
               f"127.0.0.1:{port}", "--certs", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, cwd=ROOT) as server:
        try:
            assert server.stderr is not None
            assert b"serving" in server.stderr.readline()
            cli = ["redis-cli", "--tls", "--cacert", certificates.ca, "--cert", certificates.cert, "--key",
                   certificates.key, "-h", "127.0.0.1", "-p", str(port)]
            done = subprocess.run(cli, input=b"SET k v\nGET k\nSET long " + b"x" * 50_000 + b"\nSTRLEN long\n",
                                  capture_output=True, timeout=PATIENCE, check=False)
        finally:
            server.terminate()
    assert done.stdout.split() == [b"OK", b"v", b"OK", b"50000"], done


# -- records and control messages ----------------------------------------------------------------------------

def test_record_types_are_never_mixed(certificates):
    client, server = both(certificates)
    with client, server:
        client.send(b"a", more=True)
        client.send(b"b", more=True)
        client.sendmsg([b"\1\x64"], [(SOL_TLS, TLS_SET_RECORD_TYPE, bytes([ALERT]))])
        client.sendmsg([b"c", b"d"], flags=socket.MSG_MORE)
        client.sendmsg([b"e"])
        client.send(bytes(5), HANDSHAKE)
        got = [server.recv_record() for _ in range(4)]
        assert [(record.kind, record.data) for record in got if record] == [
            (DATA, b"ab"), (ALERT, b"\1\x64"), (DATA, b"cde"), (HANDSHAKE, bytes(5))]
        for bad in ((SOL_TLS, TLS_SET_RECORD_TYPE, b""), (SOL_TLS, 99, b"\25"), (1, TLS_SET_RECORD_TYPE, b"\25")):
            with pytest.raises(OSError) as refused:
                client.sendmsg([b"x"], [bad])
            assert refused.value.errno == errno.EINVAL


def test_an_alert_of_the_peer_is_an_error(certificates):
    client, server = both(certificates)
    with client, server:
        client.send(b"data before it")
        client.send(b"\2\x50", ALERT)
        assert server.recv() == b"data before it"
        with pytest.raises(OSError, match="alert 80") as told:
            server.recv()
        assert told.value.errno == errno.ECONNABORTED


def test_what_comes_between_data_and_is_no_message_is_refused(certificates):
    for kind, data in ((HANDSHAKE, b"\x01\0\0\0"), (HANDSHAKE, b"\x18\0\0\1\7"), (99, b"x"), (ALERT, b"\2")):
        client, server = both(certificates, rules="linux")
        with client, server:
            client.send(data, kind)
            with pytest.raises(OSError) as refused:
                server.recv()
            assert refused.value.errno == errno.EOPNOTSUPP
            with pytest.raises(OSError, match="alert 10"):
                client.recv()


def test_keys_are_updated_by_both_ends_at_any_time(certificates):
    client, server = both(certificates, rules="linux")
    with client, server:
        for n in range(5):
            client.send(b"%d" % n)
            client.update_keys(request=bool(n % 2))
            assert receive(server, 1) == b"%d" % n
            server.send(b"answer")
            assert receive(client, 6) == b"answer"
        client.send(b"end")
        assert receive(server, 3) == b"end"
        assert client.stats.counters["TlsTxRekeyOk"] == 5
        assert server.stats.counters["TlsTxRekeyOk"] == 2
        assert client.connection.number == 1
    client, server = both(certificates, SUITES[3], rules="linux")
    with client, server, pytest.raises(OSError) as refused:
        client.update_keys()
    assert refused.value.errno == errno.EOPNOTSUPP


@pytest.mark.parametrize("rules", ["freebsd", "linux"])
def test_a_changed_record_on_the_wire(certificates, rules):
    """FreeBSD drops it and goes on, Linux says the same for ever."""
    one, other = pair()
    middle = pair()
    context = certificates.ours(LATEST[0], LATEST[2])
    made: list[KtlsSocket] = []
    with beside(lambda: made.append(KtlsSocket.server(other, context, rules=rules))):
        client = KtlsSocket.client(one, context)
    server = made[0]
    # From now on we are between them.
    server.sock = middle[1]
    with client, server:
        records = []
        for word in (b"one", b"two", b"three"):
            client.connection.write(word)
            parts = client.connection.queue.ready()
            records.append(bytearray(b"".join(parts)))
            client.connection.queue.sent(len(records[-1]))
        records[1][8] ^= 4
        middle[0].sendall(b"".join(records))
        assert server.recv() == b"one"
        with pytest.raises(OSError) as bad:
            server.recv()
        assert bad.value.errno == errno.EBADMSG
        if rules == "freebsd":
            assert server.recv() == b"three"
        else:
            with pytest.raises(OSError) as still:
                server.recv()
            assert still.value.errno == errno.EBADMSG
    one.close()
    other.close()
    for end in middle:
        end.close()


def test_an_end_without_close_notify_is_visible(certificates):
    client, server = both(certificates)
    with server:
        client.send(b"last")
        client.sock.shutdown(socket.SHUT_WR)
        assert server.recv() == b"last"
        assert server.recv() == b""
        assert not server.close_notify
    client.close()


# -- options of Linux ----------------------------------------------------------------------------------------

def test_keys_by_setsockopt_as_linux_takes_them(certificates):
    one, other = pair()
    context = certificates.ours(LATEST[0], LATEST[2])
    made: list[KtlsSocket] = []
    with beside(lambda: made.append(KtlsSocket.server(other, context))):
        keys = shake_hands(one, Handshake(context, False))
    with KtlsSocket(one, "linux") as end, made[0] as server:
        end.setsockopt(SOL_TLS, TLS_TX, pack_crypto_info(keys.tx))
        end.setsockopt(SOL_TLS, TLS_RX, pack_crypto_info(keys.rx))
        end.setsockopt(SOL_TLS, TLS_RX_EXPECT_NO_PAD, 1)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        end.send(b"keys from a structure")
        assert server.recv() == b"keys from a structure"
        server.send(b"and back")
        assert end.recv() == b"and back"
        for option, value, error in (
                (TLS_TX, b"", errno.EINVAL), (TLS_TX, 1, errno.EINVAL), (99, 1, errno.ENOPROTOOPT),
                (TLS_TX_ZEROCOPY_RO, 2, errno.EINVAL), (TLS_RX_EXPECT_NO_PAD, 7, errno.EINVAL)):
            with pytest.raises(OSError) as refused:
                end.setsockopt(SOL_TLS, option, value)
            assert refused.value.errno == error
    one, other = pair()
    with other, KtlsSocket(one, "linux") as off:
        for call in (lambda: off.setsockopt(SOL_TLS, TLS_RX_EXPECT_NO_PAD, 1), off.recv):
            with pytest.raises(OSError) as refused:
                call()
            assert refused.value.errno in {errno.EINVAL, errno.ENOTCONN}


# -- sockets that do not wait, failures ----------------------------------------------------------------------

def test_a_socket_that_does_not_wait(certificates):
    client, server = both(certificates)
    with client, server:
        client.sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.recv()
        data, sent = pattern(500_000), 0
        with suppress(BlockingIOError):
            while sent < 100_000_000:
                sent += client.send(data)
        assert sent < 100_000_000
        assert client.connection.queue.backlog >= 1 << 20
        got = hashlib.sha256()
        expected = hashlib.sha256(data * (sent // len(data))).digest()
        left = sent
        while left:
            client.push(wait=False)
            part = server.recv()
            left -= len(part)
            got.update(part)
        assert got.digest() == expected
        assert client.push(wait=False)
        assert client.connection.queue.backlog == 0


def test_a_record_that_cannot_be_sealed_resets_the_connection(certificates):
    backends = default_backends("coproc")
    backend = backends.get("coproc")
    assert isinstance(backend, ProcessBackend)
    client, server = both(certificates, client_has=backends)
    with server:
        client.send(b"first")
        assert server.recv() == b"first"
        backend._process.kill()
        backend._process.wait()
        with pytest.raises(OSError) as failed:
            client.send(b"second")
        assert failed.value.errno == errno.EIO
        assert client.sock.fileno() == -1
        with pytest.raises(ConnectionResetError):
            server.sock.recv(100)
    backend.close()


def test_peers_that_do_not_speak_tls(certificates):
    context = certificates.ours(LATEST[0], LATEST[2])
    for said, words in ((b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS"),
                        (b"", "closed the connection"),
                        (b"\x15\x03\x03\x00\x02\x02\x28", "alert handshake failure")):
        one, other = pair()
        other.sendall(said)
        other.shutdown(socket.SHUT_WR)
        with pytest.raises(HandshakeError, match=words):
            KtlsSocket.client(one, context)
        one.close()
        other.close()


def test_connections_leave_no_descriptor_and_no_session(certificates):
    stats, backends = TlsStats(), default_backends()
    before = len(os.listdir("/proc/self/fd"))
    for n in range(30):
        client, server = both(certificates, SUITES[n % 6], stats=stats, backends=backends)
        client.send(b"x")
        assert server.recv() == b"x"
        (client.close if n % 2 else client.abort)()
        server.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not any(stats.gauges().values())
    assert stats.counters["stats.offload_total"] == 120


# -- files ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("offset", "count"), [(0, 1 << 30), (4097, 100_000), (5, 16_384), (999_999, 10), (1, 0)])
def test_sendfile_sends_the_file(certificates, tmp_path, offset, count):
    content = pattern(1_000_000)
    path = tmp_path / "file"
    path.write_bytes(content)
    client, server = both(certificates)
    got: list[bytes] = []
    with client, path.open("rb") as file:
        with beside(lambda: got.append(receive(server, 1 << 40))):
            sent = sendfile(client, file.fileno(), offset, count)
            client.shutdown()
        expected = content[offset:offset + count]
        assert sent == len(expected)
        assert got[0] == expected
        # Read, sealed into new memory, and into the kernel: three copies, counted.
        assert client.copies["read"] == sent
        assert client.copies["seal"] == sent
        records = -(-sent // 16_384)
        assert client.copies["send"] == sent + 22 * records + 24
        client.sock.setblocking(False)
        with pytest.raises(LocalError):
            sendfile(client, file.fileno(), 0, 1)
    server.close()
    assert path.read_bytes() == content


# -- under the transports' contract --------------------------------------------------------------------------

def test_answers_longer_than_every_buffer_come_in_full(certificates):
    """What TCP does not take at once is sent when it does, by server and client alike."""
    folder = Path(certificates.cert).parent
    settings = Settings("ktls-sw", ("127.0.0.1", 0), certs=folder)
    with open_server(settings, lambda request: request.reply(request.data[::-1])) as server:
        assert isinstance(server, StreamServer)
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
        server._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20_000)
        ended = threading.Event()

        def serve() -> None:
            while not ended.is_set():
                server.drive(0.01)

        with beside(serve):
            try:
                with open_caller(replace(settings, local=None), [server.address], 2) as caller:
                    caller.prepare(2)
                    calls = [Call(pattern(400_000, n)) for n in range(4)]
                    for call in calls:
                        caller.begin(call)
                    end = time.monotonic() + PATIENCE
                    while len(caller.finished) < len(calls):
                        assert time.monotonic() < end, "it stalls"
                        caller.poll()
                        select.select([caller.fileno()], [], [], 0.1)
                    assert all(call.response == call.data[::-1] for call in calls)
            finally:
                ended.set()
