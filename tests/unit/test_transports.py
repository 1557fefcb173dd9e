"""The transports' contract: messages on streams, connections that end, throw-away credentials."""

from __future__ import annotations

import select
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import ConfigError, PeerError, Unsupported
from smtstack.ktls.key_schedule import suite_named, traffic_params
from smtstack.ktls.params import pack_crypto_info
from smtstack.socket import Address, RpcError, RpcTimeout
from smtstack.waiting import POLL, Waiting
from workloads import transports
from workloads.fleet import credentials
from workloads.load.loops import ClosedLoop, Load, Requests
from workloads.transports import NAMES, Settings
from workloads.transports.contract import Call, Handler, Incoming
from workloads.transports.framing import HEADER, FramingError, Inbox, frame
from workloads.transports.stream import Stream
from workloads.transports.stream_caller import StreamCaller
from workloads.transports.stream_server import MAX_BACKLOG, StreamServer

LIMIT = 1_000_000
HOSTS = {"a": "10.9.0.1", "b": "10.9.0.2", "c": "10.9.0.3"}
#: Seconds for what takes a moment on a loaded machine.
PATIENCE = 20.0


def make(sock: socket.socket, peer: Address) -> Stream:
    return Stream(sock, peer, LIMIT)


def echo(request: Incoming) -> None:
    request.reply(request.data)


@contextmanager
def serving(handler: Handler = echo) -> Iterator[StreamServer]:
    """A server on the loopback, driven by a thread."""
    server = StreamServer(make, ("127.0.0.1", 0), LIMIT, handler)
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            server.drive(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield server
    finally:
        stopping.set()
        thread.join()
        server.close()


@contextmanager
def calling(address: Address, connections: int = 1) -> Iterator[StreamCaller]:
    caller = StreamCaller(make, [address], connections)
    try:
        caller.prepare(1)
        yield caller
    finally:
        caller.close()


def finish(caller: StreamCaller, *calls: Call) -> None:
    """Drive until all of them have finished."""
    done: list[Call] = []
    end = time.monotonic() + PATIENCE
    while len(done) < len(calls):
        assert time.monotonic() < end, "nothing came"
        caller.drive(PATIENCE)
        done += caller.finished
        caller.finished.clear()
    assert set(done) == set(calls)


@contextmanager
def scripted(script: Callable[[socket.socket], None]) -> Iterator[Address]:
    """A server that does with each connection what ``script`` says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def run() -> None:
            connection, _peer = listener.accept()
            with connection:
                script(connection)

        thread = threading.Thread(target=run)
        thread.start()
        yield listener.getsockname()[:2]
        thread.join(PATIENCE)
        assert not thread.is_alive()


# -- framing -------------------------------------------------------------------------------------------------

@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=8), st.data())
def test_any_split_of_the_stream_gives_the_same_messages(messages, data):
    stream = b"".join(frame(number, body) for number, body in messages)
    inbox = Inbox(300)
    taken = []
    at = 0
    while at < len(stream):
        step = data.draw(st.integers(1, len(stream) - at))
        taken += inbox.take(stream[at:at + step])
        at += step
    assert taken == messages
    assert len(inbox) == 0


@given(st.binary(max_size=400), st.integers(1, 50))
def test_hostile_bytes_give_messages_or_one_error_and_take_bounded_memory(stream, step):
    inbox = Inbox(100)
    for at in range(0, len(stream), step):
        try:
            messages = inbox.take(stream[at:at + step])
        except FramingError:
            return
        assert all(len(body) <= 100 for _number, body in messages)
        assert len(inbox) <= 100 + HEADER.size + step


def test_a_length_beyond_the_limit_is_refused_before_its_bytes_come():
    with pytest.raises(FramingError, match="101 bytes; at most 100"):
        Inbox(100).take(struct.pack("!II", 101, 1))
    assert Inbox(100).take(frame(1, bytes(100))) == [(1, bytes(100))]


# -- connections ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("connections", [1, 3])
def test_pipelined_calls_are_told_apart(connections):
    with serving() as server, calling(server.address, connections) as caller:
        calls = [Call(bytes([n]) * (n * 1000 + 1)) for n in range(60)]
        for call in calls:
            caller.begin(call)
        finish(caller, *calls)
        assert all(call.response == call.data and call.ended > 0 and call.error is None for call in calls)
        assert caller.counters()["connections"] == connections


def test_answers_may_come_late_and_in_any_order():
    held: list[Incoming] = []

    def hold(request: Incoming) -> None:
        held.append(request)
        if len(held) == 5:
            for one in reversed(held):
                assert one.reply(one.data[::-1])

    with serving(hold) as server, calling(server.address) as caller:
        calls = [Call(b"request %d" % n) for n in range(5)]
        for call in calls:
            caller.begin(call)
        finish(caller, *calls)
        assert all(call.response == call.data[::-1] for call in calls)


def test_long_messages_fill_every_buffer_both_ways():
    with serving() as server, calling(server.address) as caller:
        calls = [Call(bytes([n]) * LIMIT) for n in range(20)]
        for call in calls:
            caller.begin(call)
        finish(caller, *calls)
        assert all(call.response == call.data for call in calls)


def test_a_client_that_reads_nothing_is_not_served_for_ever():
    server = StreamServer(make, ("127.0.0.1", 0), LIMIT, echo)
    try:
        with socket.create_connection(server.address) as client:
            client.setblocking(False)
            request = frame(1, bytes(LIMIT - HEADER.size))
            sent = idle = 0
            while idle < 50 and sent < 100 * LIMIT:
                idle += 1
                server.drive(0.001)
                with suppress(BlockingIOError):
                    sent += client.send(request[sent % LIMIT:])
                    idle = 0
            backlog = max(stream.backlog for stream in server._streams.values())
            assert MAX_BACKLOG < backlog < MAX_BACKLOG + 2 * LIMIT
            assert sent < 100 * LIMIT
    finally:
        server.close()


def test_a_call_given_up_keeps_its_connection_for_its_answer():
    held: list[Incoming] = []
    with serving(held.append) as server, calling(server.address) as caller:
        first, second = Call(b"first"), Call(b"second")
        caller.begin(first)
        caller.drive(0.01)
        caller.abort(first)
        assert isinstance(first.error, RpcTimeout)
        assert list(caller.finished) == [first]
        caller.finished.clear()
        caller.begin(second)
        while len(held) < 2:
            caller.drive(0.01)
        for request in held:
            request.reply(request.data)
        finish(caller, second)
        assert second.response == b"second"
        assert first.response is None


def test_a_server_that_ends_in_mid_answer_fails_its_calls_at_once():
    def cut(connection: socket.socket) -> None:
        connection.recv(8)
        connection.sendall(frame(1, bytes(1000))[:500])

    with scripted(cut) as address, calling(address) as caller:
        call, later = Call(b"?"), Call(b"?")
        caller.begin(call)
        finish(caller, call)
        assert isinstance(call.error, RpcError)
        assert f"RPC to {address[0]}:{address[1]}: " in str(call.error)
        caller.begin(later)
        finish(caller, later)
        assert "no connection is left" in str(later.error)
        assert caller.counters()["connections_lost"] == 1


@pytest.mark.parametrize(("answer", "words"), [
    (struct.pack("!II", LIMIT + 1, 1), "at most"),
    (frame(77, b"x"), "was not asked"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "at most"),
])
def test_a_server_that_speaks_another_language(answer, words):
    def speak(connection: socket.socket) -> None:
        connection.recv(100)
        connection.sendall(answer)
        connection.recv(1)

    with scripted(speak) as address, calling(address) as caller:
        call = Call(b"?")
        caller.begin(call)
        finish(caller, call)
        assert words in str(call.error)


def test_a_client_that_speaks_another_language_harms_nobody():
    with serving() as server, calling(server.address) as caller:
        with socket.create_connection(server.address) as other:
            other.settimeout(PATIENCE)
            other.sendall(b"GET / HTTP/1.1\r\n\r\n")
            # The server closes it; unread bytes may make that a reset.
            with suppress(ConnectionResetError):
                assert other.recv(1) == b""
        call = Call(b"still here?")
        caller.begin(call)
        finish(caller, call)
        assert call.response == b"still here?"
        assert "at most" in server.last_failure
        assert server.counters()["connections_failed"] == 1


def test_replies_to_a_client_that_has_gone_are_refused():
    held: list[Incoming] = []
    with StreamServer(make, ("127.0.0.1", 0), LIMIT, held.append) as server:
        assert isinstance(server, StreamServer)
        with socket.create_connection(server.address) as client:
            client.sendall(frame(1, b"?"))
            while not held:
                server.drive(PATIENCE)
        while server.counters()["connections"]:
            server.drive(PATIENCE)
        assert held[0].reply(b"!") is False


def test_nobody_listens_and_ports_that_are_taken():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        ip, port = unused.getsockname()
        with pytest.raises(PeerError, match=f"RPC to {ip}:{port}: Connection refused"), calling((ip, port)):
            pass
    with serving() as server:
        with pytest.raises(ConfigError, match=f":{server.address[1]} is in use by another"):
            StreamServer(make, server.address, LIMIT, echo)
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this host"):
            StreamCaller(make, [server.address], 1, "192.0.2.1").prepare(1)
    with pytest.raises(ConfigError, match=r"192\.0\.2\.1 is no address of this host"):
        StreamServer(make, ("192.0.2.1", 0), LIMIT, echo)


def test_a_loop_over_several_servers_and_connections():
    with serving() as one, serving() as other:
        caller = StreamCaller(make, [one.address, other.address])
        try:
            caller.prepare(4)
            load = Load("w1", count=500, concurrency=4)
            tally = ClosedLoop(caller, 4, 10.0).run(Requests(load, 2), 500)
            assert (len(tally.rtt_ns), tally.errors, tally.wrong) == (500, 0, 0)
            assert caller.counters()["connections"] == 8
            assert caller.counters()["tcp_bytes_acked"] > sum(tally.sizes)
        finally:
            caller.close()


def test_a_foreign_event_loop_can_move_a_server():
    """What fileno, next_wake and poll promise."""
    with StreamServer(make, ("127.0.0.1", 0), LIMIT, echo) as server, socket.socket() as client:
        assert isinstance(server, StreamServer)
        client.connect(server.address)
        client.sendall(frame(5, b"hello"))
        answer = b""
        while len(answer) < HEADER.size + 5:
            readable, _w, _x = select.select([server.fileno(), client.fileno()], [], [], PATIENCE)
            assert readable
            if server.fileno() in readable:
                server.poll()
            if client.fileno() in readable:
                answer += client.recv(100)
        assert answer == frame(5, b"hello")
        assert server.next_wake() is None


def test_busy_polling_waits_no_longer_than_told():
    server = StreamServer(make, ("127.0.0.1", 0), LIMIT, echo, Waiting(POLL, 10**12))
    try:
        server.drive(0.001)
    finally:
        server.close()


# -- what each transport needs -------------------------------------------------------------------------------

@pytest.mark.parametrize(("transport", "words"), [
    ("smt", "--iface"), ("homa", "--iface"), ("linux", "--iface"), ("tls", "--certs"), ("ktls", "--certs")])
def test_what_is_missing_is_named(transport, words):
    settings = Settings(transport, ("127.0.0.1", 1))
    with pytest.raises(ConfigError, match=words):
        transports.open_caller(settings, [("127.0.0.1", 2)])
    with pytest.raises(ConfigError, match=words):
        transports.open_server(settings, echo)


def test_ktls_keys_are_those_of_rfc_8448():
    """The client's application traffic secret, key and IV of the simple 1-RTT handshake (RFC 8448, 3)."""
    secret = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
    info = pack_crypto_info(traffic_params(suite_named("TLS_AES_128_GCM_SHA256"), secret))
    version, cipher, iv, key, salt, number = struct.unpack("=HH8s16s4s8s", info)
    assert (version, cipher) == (0x0304, 51)
    assert key.hex() == "17422dda596ed5d9acd890e3c63f5051"
    assert (salt + iv).hex() == "5b78923dee08579033e523d9"
    assert number == bytes(8)


def test_a_kernel_without_tls_is_said(monkeypatch):
    class Refuses(socket.socket):
        def setsockopt(self, *_args: object) -> None:
            raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(socket, "socket", Refuses)
    with pytest.raises(Unsupported, match="no TLS module"):
        transports.check("ktls")
    for name in NAMES:
        if name != "ktls":
            transports.check(name)


# -- credentials ---------------------------------------------------------------------------------------------

def test_linux_hosts_share_keys_and_homa_and_tcp_have_none(tmp_path):
    linux = credentials.make(tmp_path / "linux", "linux", HOSTS)
    texts = set()
    for name in HOSTS:
        with open(linux.args(name)[1]) as f:
            texts.add(f.read())
    assert len(texts) == 1
    for transport in ("homa", "tcp"):
        made = credentials.make(tmp_path / transport, transport, HOSTS)
        assert made.args("a") == []


@pytest.mark.parametrize("transport", ["smt", "tls"])
def test_certificates_are_for_one_address_by_one_authority(tmp_path, transport):
    made = credentials.make(tmp_path / "certs", transport, HOSTS)
    authorities = set()
    for name, ip in HOSTS.items():
        option, folder = made.args(name)
        assert option == "--certs"
        assert made.environment(name) == {"OPENSSL_CONF": f"{folder}/openssl.cnf"}
        own = tmp_path / "certs" / name
        certificate = x509.load_pem_x509_certificate((own / "cert.pem").read_bytes())
        authority = x509.load_pem_x509_certificate((own / "ca.pem").read_bytes())
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert [str(found) for found in names.get_values_for_type(x509.IPAddress)] == [ip]
        authorities.add(authority)
        # OpenSSL takes them; and without its configuration it would offer more than one suite.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own / "cert.pem", own / "key.pem")
    assert len(authorities) == 1
    with pytest.raises(ConfigError, match=r"OPENSSL_CONF=.*/certs/a/openssl.cnf in the environment"):
        transports.open_server(Settings("tls", ("127.0.0.1", 0), certs=tmp_path / "certs" / "a"), echo)


@pytest.mark.parametrize("transport", ["linux", "tls"])
def test_nobody_else_can_read_credentials(tmp_path, transport):
    credentials.make(tmp_path / "made", transport, HOSTS)
    for path in [tmp_path / "made", *(tmp_path / "made").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


def test_credentials_that_cannot_be_made_or_used(tmp_path):
    with pytest.raises(ConfigError, match="is there already"):
        credentials.make(tmp_path, "smt", HOSTS)
    folder = tmp_path / "certs"
    credentials.make(folder, "tls", HOSTS)
    own = Settings("tls", ("127.0.0.1", 0), certs=folder / "a")
    (folder / "a" / "key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        transports.open_server(own, echo)
    (folder / "a" / "key.pem").unlink()
    with pytest.raises(ConfigError, match=r"there is no key\.pem"):
        transports.open_server(own, echo)
