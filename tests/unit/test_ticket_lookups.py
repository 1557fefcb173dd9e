"""Tickets looked up beside a loop: what waits for DNS holds up nobody else, and so many look-ups are at a time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("dns", reason="dnspython is not installed")

from smtstack.aio import AioSocket
from smtstack.errors import PeerError
from smtstack.session.manager import SessionManager
from smtstack.session.offer import Offer
from smtstack.session.tickets import Ticket, issue
from smtstack.session_io import dns_exchange
from smtstack.session_io.identity_files import load_identity
from smtstack.session_io.state_file import SqliteState
from smtstack.session_io.ticket_dns import DnsTickets
from smtstack.session_io.ticket_lookups import MAX_LOOKUPS, TicketLookups
from smtstack.sim.pair import SERVER_IP, SERVER_PORT
from smtstack.socket import RpcError, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from smtstack.wire.ipv4 import address
from tests.cable import CLIENT, SERVER, connect
from tests.certificates import UTC
from tests.handshakes import CLIENT_ID, TICKET, Hosts
from workloads.fleet.authority import make_folder

PATIENT = TransportParams(timeout_resends=1000)
#: Has a ticket, says everybody; DNS does not say which.
SILENT = ("10.0.0.3", 2000)


class Dns:
    """In place of ``dns_exchange.lookup``: answers of the server at once, of others when it is told to."""

    def __init__(self, ticket: Ticket) -> None:
        self.go = threading.Event()
        self.asked = threading.Event()
        self.left = threading.Event()
        self._ticket = ticket

    def __call__(self, host: str, _port: int, *_where: object) -> tuple[Ticket, int]:
        if host == "b":
            return self._ticket, 60
        self.asked.set()
        assert self.go.wait(60)
        self.left.set()
        raise dns_exchange.NoDns("nobody there")


@contextmanager
def network(monkeypatch: pytest.MonkeyPatch, folder: Path,
            mode: str) -> Iterator[tuple[Dns, SmtContext, SmtContext]]:
    """What a client and a server of this mode need, and a DNS server that is silent about all but the server."""
    make_folder(folder / "certs", {"a": CLIENT[0], "b": SERVER[0]})
    identity = load_identity(folder / "certs" / "b")
    secret = issue(identity, address(SERVER[0]), SERVER[1], Offer(mtu=1500), client_auth=True,
                   forward_secret_only=mode == "ticket-fs", utc=int(time.time()))
    state = SqliteState(folder / "state")
    state.add_ticket(secret)
    state.close()
    dns = Dns(secret.ticket)
    monkeypatch.setattr(dns_exchange, "lookup", dns)
    connect(monkeypatch)
    near, far = (SmtContext("e0", params=PATIENT, certs=folder / "certs" / name, session=mode) for name in "ab")
    try:
        yield dns, replace(near, dns=("127.0.0.1", 9)), replace(far, state=folder / "state")
    finally:
        dns.go.set()


@contextmanager
def serving(server: SmtSocket) -> Iterator[None]:
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            request = server.receive(0.01)
            if request is not None:
                request.reply(request.data)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("mode", TICKET)
def test_a_look_up_holds_up_no_other_peer(monkeypatch, tmp_path, mode):
    with network(monkeypatch, tmp_path, mode) as (dns, near, far), SmtSocket(CLIENT, near) as client, \
            SmtSocket(SERVER, far) as server, serving(server):
        silent = client.send_request(SILENT, b"?")
        assert [client.request(SERVER, b"%d" % n, 30) for n in range(20)] == [b"%d" % n for n in range(20)]
        # The thread is in the middle of it all the while.
        assert dns.asked.wait(30)
        assert not silent.done()
        assert not dns.left.is_set()
        session = client.session_of(SERVER)
        assert session is not None
        assert session.mode == mode
        dns.go.set()
        with pytest.raises(RpcError, match="there is no session with the peer: nobody there"):
            silent.result(30)


def test_an_event_loop_goes_on_meanwhile(monkeypatch, tmp_path):
    async def main() -> None:
        with network(monkeypatch, tmp_path, "ticket") as (dns, near, far):
            async with AioSocket(CLIENT, near) as client:
                with SmtSocket(SERVER, far) as server, serving(server):
                    silent = asyncio.create_task(client.request(SILENT, b"?"))
                    ours = [client.request(SERVER, b"%d" % n, 30) for n in range(20)]
                    assert await asyncio.gather(*ours) == [b"%d" % n for n in range(20)]
                    assert not silent.done()
                    assert not dns.left.is_set()
                    dns.go.set()
                    with pytest.raises(RpcError, match="nobody there"):
                        await asyncio.wait_for(silent, 30)

    asyncio.run(main())


def test_a_request_that_waits_for_a_look_up_can_be_given_up(monkeypatch, tmp_path):
    with network(monkeypatch, tmp_path, "ticket") as (dns, near, far), SmtSocket(CLIENT, near) as client, \
            SmtSocket(SERVER, far) as server, serving(server):
        silent = client.send_request(SILENT, b"?")
        client.abort(silent)
        with pytest.raises(RpcError, match="aborted by the application"):
            silent.result(30)
        assert client.request(SERVER, b"!", 30) == b"!"
        assert not dns.left.is_set()
        # Nor does closing wait for it: the thread is told nothing, and finds nobody.
        client.close()
        assert not dns.left.is_set()


class Gate(DnsTickets):
    """A DNS that keeps all who ask until it opens."""

    def __init__(self) -> None:
        super().__init__(CLIENT_ID, ("127.0.0.1", 9))
        self.open = threading.Event()
        self.inside = 0
        self.most = 0
        self._count = threading.Lock()
        self.full = threading.Event()

    def ask(self, ip: int, port: int) -> tuple[Ticket, int]:
        with self._count:
            self.inside += 1
            self.most = max(self.most, self.inside)
            if self.inside == MAX_LOOKUPS:
                self.full.set()
        assert self.open.wait(60)
        with self._count:
            self.inside -= 1
        raise PeerError(f"no ticket for port {port}")


def test_so_many_at_a_time_and_each_once():
    gate, woken = Gate(), threading.Semaphore(0)
    lookups = TicketLookups(gate, woken.release)
    for _turn in range(2):
        for port in range(1, 101):
            assert lookups.ticket(SERVER_IP, port, UTC) is None
    assert gate.full.wait(30)
    assert gate.lookups == 100
    gate.open.set()
    for _ in range(100):
        assert woken.acquire(timeout=30)
    assert gate.most == MAX_LOOKUPS
    lookups.collect(UTC)
    for port in range(1, 101):
        with pytest.raises(PeerError, match=f"no ticket for port {port}$"):
            lookups.ticket(SERVER_IP, port, UTC)
        # An error is told once; then it is tried again.
    assert lookups.ticket(SERVER_IP, 1, UTC) is None
    assert gate.lookups == 101


def test_what_is_closed_looks_up_nothing_more():
    gate, woken = Gate(), threading.Semaphore(0)
    lookups = TicketLookups(gate, woken.release)
    for port in range(1, 101):
        lookups.ticket(SERVER_IP, port, UTC)
    assert gate.full.wait(30)
    lookups.close()
    gate.open.set()
    for _ in range(MAX_LOOKUPS):
        assert woken.acquire(timeout=30)
    assert not woken.acquire(timeout=0.05)


class Later:
    """A ticket source that has its ticket when it is told to."""

    def __init__(self, ticket: Ticket) -> None:
        self.came = False
        self._ticket = ticket

    def ticket(self, _ip: int, _port: int, _utc: int) -> Ticket | None:
        return self._ticket if self.came else None

    def forget(self, _ip: int, _port: int) -> None:
        raise AssertionError


@pytest.mark.parametrize("mode", TICKET)
def test_requests_wait_for_a_ticket_no_longer_than_for_a_handshake(mode):
    hosts = Hosts(mode)
    later = Later(hosts.shelf.tickets[SERVER_IP, SERVER_PORT])
    hosts.shelf = later  # type: ignore[assignment]
    rig = hosts.rig()
    rpc = rig.request(b"too early")
    rig.run()
    assert rig.failure(rpc).detail == "looking up the server's ticket took longer than 5 s"
    assert rig.sent_frames == []
    again = rig.request(b"early enough")
    manager: SessionManager = rig.managers[0]
    assert rig.client.transmit(rig.now) == []
    later.came = True
    manager.tickets_came(rig.now)
    rig.run()
    assert len(rig.outcomes[again]) == 1
    assert rig.answered() == 1
