"""Peers that show no certificate (``--session tls``): they are answered, and get nothing that is for others."""

from __future__ import annotations

import dataclasses

import pytest

from smtstack.session.config import SessionConfig
from smtstack.session.identity import Identity
from smtstack.session.manager import SessionManager
from smtstack.sim.pair import SERVER_IP, SERVER_PORT, make_side
from smtstack.transport.events import Event, Failed, Request, Response
from tests.certificates import Authority
from tests.handshakes import CLIENT_ID, SERVER_ID, Hosts, SessionRig, known, to_client, to_server
from tests.rig import answer

SECRET = b"what is for the server alone"


class Impostor:
    """On the path, at the server's address. It has a certificate that nobody believes, and does not show it."""

    def __init__(self, rig: SessionRig, identity: Identity | None = None) -> None:
        own = Authority(name="impostor").identity("b", "10.0.0.2")
        config = SessionConfig(identity or dataclasses.replace(own, trust=CLIENT_ID.trust),
                               "mtls" if identity else "tls")
        manager = SessionManager(config, rig.hosts.clock)
        self._rig = rig
        self._stack = make_side(SERVER_IP, SERVER_PORT, "smt", manager, None, None)
        self.endpoint = self._stack.endpoint
        self.events: list[Event] = []

    def run(self) -> list[Event]:
        """It alone talks to the client; the client's events."""
        rig, seen = self._rig, []
        while True:
            frames = self._stack.transmit(rig.now)
            rig.client.receive(frames, rig.now)
            while (event := rig.client.endpoint.next_event()) is not None:
                seen.append(event)
            back = rig.client.transmit(rig.now)
            self._stack.receive(back, rig.now)
            while (own := self.endpoint.next_event()) is not None:
                self.events.append(own)
            if not frames and not back:
                return seen

    def asked(self) -> list[bytes]:
        return [e.data for e in self.events if isinstance(e, Request)]


def begin(impostor: Impostor, rig: SessionRig) -> None:
    """The impostor begins a session with the client, in the server's name."""
    impostor.endpoint.send_request(*to_client(rig), b"hello, I am b", rig.now)
    impostor.run()


def converse(impostor: Impostor, rig: SessionRig, when: str) -> None:
    """The client asks before, while or after somebody begins a session in the server's name, and meets only it."""
    client = rig.client.endpoint
    if when == "after":
        rig.request(b"the first")
        rig.run()
        assert rig.answered() == 1
    if when == "meanwhile":
        client.send_request(*to_server(), SECRET, rig.now)
    begin(impostor, rig)
    if when != "meanwhile":
        client.send_request(*to_server(), SECRET, rig.now)
    impostor.run()


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
def test_nobody_takes_a_servers_place_without_its_certificate(when):
    rig = Hosts("tls").rig()
    impostor = Impostor(rig)
    converse(impostor, rig, when)
    assert impostor.asked() == []
    if when == "after":
        # The session is the one there was.
        assert known(rig.managers[0].info(*to_server())).peer_name == "b"
        refusal, = (e for e in impostor.events if isinstance(e, Failed))
        assert "the server refuses (certificate)" in refusal.detail


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
def test_who_has_the_certificate_is_the_server(when):
    """The control: the same with the server's own, where it is shown."""
    rig = Hosts("mtls").rig()
    genuine = Impostor(rig, SERVER_ID)
    converse(genuine, rig, when)
    assert genuine.asked() == [SECRET]


def test_a_server_asks_whom_it_knows():
    """In mode tls it does not know its client, whose session with it must stay as it is."""
    for mode in ("mtls", "tls"):
        rig = Hosts(mode).rig()
        rig.request(b"from the client")
        rig.run()
        rpc = rig.request(b"from the server", from_client=False)
        rig.run()
        outcome, = rig.outcomes[rpc]
        if mode == "mtls":
            assert isinstance(outcome, Response)
            assert outcome.data == answer(b"from the server")
        else:
            assert isinstance(outcome, Failed)
            assert "use --session mtls where both ends ask" in outcome.detail
            rig.request(b"once more from the client")
            rig.run()
            assert len(rig.delivered) == 2
        assert rig.managers[1].counters()["sessions_begun"] == 1
