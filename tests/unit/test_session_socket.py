"""Sockets whose sessions begin by handshakes, over a cable in this process."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import smtstack.socket
from smtstack import loop
from smtstack.aio import AioSocket
from smtstack.errors import ConfigError, LocalError, PeerError, Unsupported
from smtstack.io.shared_port import SharedPort
from smtstack.session.established import Established
from smtstack.session.offer import Agreement, Offer
from smtstack.session.resumption import Psk, PskStore
from smtstack.session.workers import closed, opened
from smtstack.session_io.psk_file import PskFile
from smtstack.socket import RpcError, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from tests.cable import CLIENT, SERVER, connect
from workloads.fleet.authority import make_folder

#: A peer is given up only after seconds: others use this machine, too.
PATIENT = TransportParams(timeout_resends=1000)
MODES = ("tls", "mtls", "psk", "psk-fs")


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``a`` and ``b`` of one authority."""
    folder = tmp_path_factory.mktemp("certs") / "good"
    make_folder(folder, {"a": CLIENT[0], "b": SERVER[0]})
    return folder


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of another authority."""
    folder = tmp_path_factory.mktemp("certs") / "others"
    make_folder(folder, {"a": CLIENT[0], "b": SERVER[0]})
    return folder


def context(folder: Path, mode: str = "mtls", **settings) -> SmtContext:
    return SmtContext("e0", params=PATIENT, certs=folder, session=mode, **settings)


@contextmanager
def serving(server: SmtSocket) -> Iterator[list[tuple[str, bytes]]]:
    """An echo server in a thread; (who asked, what) for every request."""
    heard: list[tuple[str, bytes]] = []
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            request = server.receive(0.01)
            if request is not None:
                heard.append((request.peer_name, request.data))
                request.reply(request.data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield heard
    finally:
        over.set()
        thread.join()


@contextmanager
def ends(monkeypatch: pytest.MonkeyPatch, client: SmtContext,
         server: SmtContext) -> Iterator[tuple[SmtSocket, SmtSocket]]:
    connect(monkeypatch)
    with SmtSocket(CLIENT, client) as near, SmtSocket(SERVER, server) as far:
        yield near, far


@pytest.mark.parametrize("mode", MODES)
def test_requests_under_a_session(monkeypatch, certs, mode):
    psks = PskStore()
    for number in range(2):
        with ends(monkeypatch, context(certs / "a", mode, psks=psks),
                  context(certs / "b", mode, state=None)) as (client, server), serving(server) as heard:
            futures = [client.send_request(SERVER, b"%d" % n) for n in range(5)]
            assert [f.result(10) for f in futures] == [b"%d" % n for n in range(5)]
            session = client.session_of(SERVER)
            assert session is not None
            assert (session.is_client, session.peer_name) == (True, "b")
            assert session.mode == (mode if mode in ("tls", "mtls") else "mtls")
            assert sorted(heard) == [("" if mode == "tls" else "a", b"%d" % n) for n in range(5)]
            assert client.counters()["handshakes"] == 1
            assert client.last_failure == server.last_failure == ""
            # A server with fresh memory does not know what the client came with: here, it must not have anything.
            psks.drop(0x0A000002, SERVER[1])
        assert number < 2


@pytest.mark.parametrize("mode", ["psk", "psk-fs"])
def test_the_second_session_is_resumed(monkeypatch, certs, mode, tmp_path):
    state, psks = tmp_path / "state", tmp_path / "psks"
    modes = []
    for _round in range(3):
        with ends(monkeypatch, context(certs / "a", mode, psks=psks),
                  context(certs / "b", mode, state=state)) as (client, server), serving(server) as heard:
            client.prepare([SERVER], 10)
            assert client.request(SERVER, b"?", 10) == b"?"
            assert heard == [("a", b"?")]
            session = client.session_of(SERVER)
            assert session is not None
            modes.append(session.mode)
    assert modes == ["mtls", mode, mode]
    assert psks.stat().st_mode & 0o777 == 0o600


def test_prepare_says_why_not(monkeypatch, certs, others):
    with ends(monkeypatch, context(certs / "a"), context(others / "b")) as (client, server), serving(server):
        with pytest.raises(PeerError, match=r"no session with 10.0.0.2:2000: the peer's cert.* local issuer"):
            client.prepare([SERVER], 10)
        with pytest.raises(RpcError, match=r"10.0.0.2:2000: there is no session with the peer: the peer's cert"):
            client.request(SERVER, b"?", 10)
        assert client.session_of(SERVER) is None
        while "the client refuses the handshake" not in server.last_failure:
            client.drive(lambda: False, 0.01)
    assert server.counters()["requests_delivered"] == 0


def test_prepare_gives_up(monkeypatch, certs):
    with ends(monkeypatch, context(certs / "a"), context(certs / "b")) as (client, _server), \
            pytest.raises(PeerError, match=r"no session with 10.0.0.2:2000: it takes longer than 0.05 s"):
        client.prepare([SERVER], 0.05)


def test_closing_tells_the_peer(monkeypatch, certs):
    with ends(monkeypatch, context(certs / "a"), context(certs / "b")) as (client, server):
        with serving(server):
            client.request(SERVER, b"?", 10)
            client.close()
        assert server.counters()["sessions_closed"] == 1
        assert server.session_of(CLIENT) is None


def test_a_server_closes_idle_sessions(monkeypatch, certs):
    far = context(certs / "b", idle_s=0.05)
    with ends(monkeypatch, context(certs / "a"), far) as (client, server), serving(server):
        assert client.request(SERVER, b"?", 10) == b"?"
        client.drive(lambda: client.session_of(SERVER) is None, 10)
        assert client.session_of(SERVER) is None
        assert server.counters()["sessions_idle"] == 1
        assert client.request(SERVER, b"!", 10) == b"!"


def test_a_session_that_was_ended_begins_again(monkeypatch, certs):
    with ends(monkeypatch, context(certs / "a"), context(certs / "b")) as (client, server), serving(server):
        assert not client.end_session(SERVER)
        for _round in range(2):
            assert client.request(SERVER, b"?", 10) == b"?"
            assert client.end_session(SERVER)
        assert client.counters()["handshakes"] == 2


def test_parameters_are_agreed_on(monkeypatch, certs):
    near = context(certs / "a", offer=Offer(("AES-256-GCM",), max_message=5000, padding="power-of-two"))
    far = context(certs / "b", offer=Offer(index_bits=20))
    with ends(monkeypatch, near, far) as (client, server), serving(server):
        client.prepare([SERVER], 10)
        session = client.session_of(SERVER)
        assert session is not None
        agreed = session.agreement
        assert (agreed.cipher, agreed.index_bits, agreed.max_message, agreed.padding) == (
            "AES-256-GCM", 20, 5000, "power-of-two")


def test_secrets_are_written_when_somebody_asks(monkeypatch, certs, tmp_path):
    log = tmp_path / "keys.log"
    near = context(certs / "a", keylog=log)
    with ends(monkeypatch, near, context(certs / "b")) as (client, server), serving(server):
        client.request(SERVER, b"?", 10)
    labels = [line.split()[0] for line in log.read_text().splitlines()]
    assert "SMT_SECRET" in labels
    assert "CLIENT_HANDSHAKE_TRAFFIC_SECRET" in labels
    assert log.stat().st_mode & 0o777 == 0o600


def test_on_an_event_loop(monkeypatch, certs, others):
    async def main() -> None:
        connect(monkeypatch)
        async with (AioSocket(CLIENT, context(certs / "a")) as client,
                    AioSocket(SERVER, context(certs / "b")) as server):
            async def echo() -> None:
                async for request in server.requests():
                    assert request.peer_name == "a"
                    request.reply(request.data)

            task = asyncio.create_task(echo())
            await client.prepare([SERVER], 10)
            assert client.socket.session_of(SERVER) is not None
            answers = await asyncio.gather(*(client.request(SERVER, b"%d" % n, 10) for n in range(20)))
            assert answers == [b"%d" % n for n in range(20)]
            task.cancel()
        connect(monkeypatch)
        async with AioSocket(CLIENT, context(certs / "a")) as client, AioSocket(SERVER, context(others / "b")):
            with pytest.raises(PeerError, match="local issuer certificate"):
                await client.prepare([SERVER], 10)
            with pytest.raises(PeerError, match="takes longer than 0 s"):
                await client.prepare([("10.0.0.2", 2001)], 0)

    asyncio.run(main())


def test_an_event_loop_where_nothing_happens_leaves_time_for_tickets(monkeypatch, certs):
    """Else those of a server that nobody calls would run out, and then nobody could call it."""
    async def main() -> None:
        connect(monkeypatch)
        monkeypatch.setattr(loop, "IDLE_NS", 1_000_000)
        async with AioSocket(CLIENT, context(certs / "a")), AioSocket(SERVER, context(certs / "b")) as server:
            assert server.socket.sessions is not None
            turns, enough = [], asyncio.Event()

            def idle() -> None:
                turns.append(1)
                if len(turns) == 3:
                    enough.set()

            monkeypatch.setattr(server.socket.sessions, "idle", idle)
            await asyncio.wait_for(enough.wait(), 10)

    asyncio.run(main())


# -- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "text"), [
    ({}, "profile smt needs keys, a file made by 'smtnet keys', or certs, made by 'smtnet ca'"),
    ({"keys": "demo"}, "profile smt takes no demo keys"),
    ({"profile": "linux"}, "profile linux needs keys, a file made by 'smtnet keys', or 'demo'"),
    ({"keys": "x", "certs": Path("y")}, "give one of them"),
    ({"certs": Path("missing")}, "missing/ca.pem"),
])
def test_settings_that_make_no_sense(monkeypatch, settings, text):
    monkeypatch.setattr(smtstack.socket, "interface_mtu", lambda _name: 1500)
    with pytest.raises(ConfigError, match=text.replace("(", r"\(")):
        SmtSocket(CLIENT, SmtContext("e0", **settings))


def test_a_ticket_server_needs_dns_and_its_key(monkeypatch, certs):
    monkeypatch.setattr(smtstack.socket, "interface_mtu", lambda _name: 1500)
    with pytest.raises(ConfigError, match="needs a DNS server"):
        SmtSocket(SERVER, context(certs / "b", "ticket", publish=True))


def test_workers_must_know_each_other(monkeypatch, certs):
    monkeypatch.setattr(smtstack.socket, "interface_mtu", lambda _name: 1500)
    with pytest.raises(ConfigError, match=r"SharedPort\.among"):
        SmtSocket(SERVER, context(certs / "b", shared_port=SharedPort(1, 2)))


# -- workers ---------------------------------------------------------------------------------------------


@pytest.fixture
def ports() -> Iterator[list[SharedPort]]:
    made = SharedPort.among(1, 3)
    yield made
    for box in (*made[0].outboxes, made[1].inbox, made[2].inbox):
        assert box is not None
        box.close()


def test_the_first_worker_joins_first(ports):
    order = []

    def join(shared: SharedPort) -> None:
        shared.await_turn()
        order.append(shared.index)
        shared.joined()

    threads = [threading.Thread(target=join, args=(f,)) for f in reversed(ports)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order[0] == 0
    assert sorted(order) == [0, 1, 2]


def test_a_worker_whose_first_never_starts(ports):
    ports[1].inbox.settimeout(0.01)
    with pytest.raises(Unsupported, match="the first worker of this port did not start"):
        ports[1].await_turn()


def test_what_a_worker_does_not_take_is_noticed(ports):
    for box in ports[0].outboxes:
        box.settimeout(0.01)
    assert ports[0].share(b"x")
    while ports[0].share(bytes(1000)):
        pass
    assert ports[1].inbox.recv(10) == b"x"


def test_a_worker_takes_sessions_from_the_first(monkeypatch, certs, ports):
    """And wakes up for them, while nothing comes on the wire."""
    connect(monkeypatch)
    ports[0].joined()
    ports[1].await_turn()
    told = Established(0x0A000001, 40_000, False, "mtls", bytes(32), Agreement(), b"", "a")
    with SmtSocket(CLIENT, context(certs / "a")), \
            SmtSocket(SERVER, context(certs / "b", shared_port=ports[1])) as worker:
        ports[0].share(opened(told))
        worker.drive(lambda: worker.session_of(CLIENT) is not None, 10)
        session = worker.session_of(CLIENT)
        assert session is not None
        assert session.peer_name == "a"
        with pytest.raises(LocalError, match="cannot ask"):
            worker.request(CLIENT, b"?")
        ports[0].share(closed((0x0A000001, 40_000)))
        worker.drive(lambda: worker.session_of(CLIENT) is None, 10)
        assert worker.session_of(CLIENT) is None
        with pytest.raises(RpcError, match="only answer"):
            worker.request(CLIENT, b"?")


# -- PSKs in a file --------------------------------------------------------------------------------------

PSK = Psk(bytes(32), b"blob", Offer(), False, 2_000_000_000, "b")


def test_psks_in_a_file_are_seen_by_others(tmp_path):
    path = tmp_path / "psks"
    one, other = PskFile(path), PskFile(path)
    one.put(1, 2, PSK)
    assert other.get(1, 2, 0) == PSK
    assert other.get(1, 3, 0) is None
    other.drop(1, 2)
    assert one.get(1, 2, 0) is None


def test_psks_that_others_can_read_are_refused(tmp_path):
    path = tmp_path / "psks"
    PskFile(path)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 644\)"):
        PskFile(path)


def test_a_file_that_holds_no_psks(tmp_path):
    path = tmp_path / "psks"
    path.write_text("hello")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="PSK file"):
        PskFile(path)


def test_a_full_disk_ends_no_program_and_leaves_nothing_unreadable(tmp_path):
    path = tmp_path / "psks"
    store = PskFile(path)
    store.put(1, 2, PSK)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))
    try:
        with pytest.raises(ConfigError, match=f"PSK file {path}: No space left"):
            store.put(1, 3, PSK)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert store.get(1, 2, 0) is None
    store.put(1, 2, PSK)
    assert PskFile(path).get(1, 2, 0) == PSK
