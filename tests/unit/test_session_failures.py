"""Sessions that are not made: the reason reaches whoever asked and whoever was asked, and no data anybody."""

from __future__ import annotations

import pytest

from smtstack.errors import ConfigError
from smtstack.session.config import SessionConfig
from smtstack.session.offer import Offer
from smtstack.session.state import MemoryState
from smtstack.transport.events import Reason
from tests.certificates import HOUR, UTC, A, Authority, B, Leaf
from tests.handshakes import CLIENT_ID, SERVER_ID, Hosts, to_server

AUTHORITY = Authority()
CLIENT, SERVER = AUTHORITY.identity("a", A), AUTHORITY.identity("b", B)
OTHERS = Authority(name="others")
TLS = ("tls", "mtls")
TICKET = ("ticket", "ticket-fs")
PSK = ("psk", "psk-fs")


def fails(hosts: Hosts, at_client: str, at_server: str | None = None) -> None:
    """Three requests of every size fail with ``at_client``; the server, if it heard of it, says ``at_server``."""
    rig = hosts.rig()
    for size in (10, 3000, 50_000):
        rig.request(b"%d " % size + b"secret " * (size // 7))
    rig.run()
    assert rig.delivered == []
    for rpc in rig.asked:
        failed = rig.failure(rpc)
        assert failed.reason is Reason.NO_SESSION
        assert at_client in failed.detail
    client, server = rig.managers
    assert at_client in client.last_failure
    assert client.last_failure.startswith("10.0.0.2:2000: ")
    assert client.counters()["handshakes_failed"] == 1
    if at_server is not None:
        assert at_server in server.last_failure
        assert server.last_failure.startswith("10.0.0.1:32768: ")
        assert server.counters()["handshakes_failed"] >= 1
    assert client.counters()["sessions"] == server.counters()["sessions"] == 0
    assert rig.server.endpoint.counters.requests_delivered == 0


def works(hosts: Hosts) -> None:
    """The control: with the cause gone there is a session."""
    rig = hosts.rig()
    rig.request(b"hello")
    rig.run()
    assert rig.answered() == 1


@pytest.mark.parametrize("mode", TLS)
@pytest.mark.parametrize(("leaf", "trust", "names", "text"), [
    (Leaf(), [OTHERS], None, "unable to get local issuer certificate"),
    (Leaf(after=UTC - 1), [], None, "certificate has expired"),
    (Leaf(before=UTC + 60), [], None, "certificate is not yet valid"),
    (Leaf(dns=["c"]), [], None, "not for b (10.0.0.2), but for 10.0.0.2, c"),
    (Leaf(ips=["10.0.0.9"]), [], {}, "not for 10.0.0.2, but for 10.0.0.9, b"),
], ids=["authority", "expired", "not yet valid", "name", "address"])
def test_a_server_that_is_not_who_it_must_be(mode, leaf, trust, names, text):
    believes = {} if names is None else {"names": names}
    client = AUTHORITY.identity("a", A, trust=trust, **believes)
    fails(Hosts(mode, client, AUTHORITY.identity("b", B, leaf)), text, "the client refuses the handshake")
    works(Hosts(mode, AUTHORITY.identity("a", A, **believes), SERVER))


@pytest.mark.parametrize(("leaf", "trust", "text"), [
    (Leaf(), [OTHERS], "unable to get local issuer certificate"),
    (Leaf(after=UTC - 1), [], "certificate has expired"),
    (Leaf(dns=["c"]), [], "not for a (10.0.0.1), but for 10.0.0.1, c"),
], ids=["authority", "expired", "name"])
def test_a_client_that_is_not_who_it_must_be(leaf, trust, text):
    """Its requests left with the last flight: they are held, and never opened."""
    hosts = Hosts("mtls", AUTHORITY.identity("a", A, leaf), AUTHORITY.identity("b", B, trust=trust))
    fails(hosts, f"the server refuses (tls): the peer's certificate is not {text.removeprefix('not ')}"
          if text.startswith("not") else text, text)
    works(Hosts("mtls", CLIENT, SERVER))


def test_a_client_without_certificate():
    hosts = Hosts("tls", server={"mode": "mtls"})
    fails(hosts, "the server refuses (tls)", "peer did not return a certificate")
    works(Hosts("tls"))


def test_no_common_cipher():
    hosts = Hosts("mtls", client={"offer": Offer(("CHACHA20-POLY1305",))},
                  server={"offer": Offer(("AES-256-GCM",))})
    text = "no common cipher: the client offers CHACHA20-POLY1305, we allow AES-256-GCM"
    fails(hosts, text, text)


@pytest.mark.parametrize("mode", TICKET + PSK)
def test_a_server_that_takes_no_early_data(mode):
    hosts = Hosts(mode).resumable()
    hosts.server["mode"] = "mtls"
    fails(hosts, "the server refuses (not accepted)", "takes no sessions that begin with a")
    hosts.server["mode"] = mode
    works(hosts)


@pytest.mark.parametrize("mode", TICKET)
def test_no_ticket(mode):
    hosts = Hosts(mode)
    hosts.shelf.tickets.clear()
    fails(hosts, "no ticket on the shelf")


@pytest.mark.parametrize("mode", TICKET)
def test_a_ticket_that_was_revoked(mode):
    hosts = Hosts(mode)
    hosts.state.revoke(hosts.state.tickets()[0].ticket.ticket_id)
    fails(hosts, "the ticket was revoked", "the ticket was revoked")
    # It is not used again.
    hosts.publish()
    works(hosts)


@pytest.mark.parametrize("mode", TICKET)
def test_a_ticket_that_expired(mode):
    hosts = Hosts(mode)
    hosts.clock.utc += HOUR
    works(hosts)
    hosts.clock.utc += 1
    fails(hosts, "the ticket expired 1 s ago")
    # A client whose clock is behind finds out at the server.
    hosts.shelf.verifies = False
    fails(hosts, "the server refuses (ticket expired): the ticket expired 1 s ago", "the ticket expired 1 s ago")


@pytest.mark.parametrize("mode", TICKET)
def test_a_ticket_of_an_authority_we_do_not_know(mode):
    hosts = Hosts(mode, AUTHORITY.identity("a", A, trust=[OTHERS]), SERVER)
    fails(hosts, "unable to get local issuer certificate")


@pytest.mark.parametrize("mode", TICKET)
def test_a_client_that_a_ticket_server_does_not_know(mode):
    hosts = Hosts(mode, CLIENT, AUTHORITY.identity("b", B, trust=[OTHERS]))
    # Its own certificate is fine for the client.
    fails(hosts, "the server refuses (certificate)", "unable to get local issuer certificate")


@pytest.mark.parametrize("mode", TICKET + PSK)
def test_a_server_that_lost_its_state(mode):
    hosts = Hosts(mode).resumable()
    kept, hosts.state = hosts.state, MemoryState()
    fails(hosts, "the server refuses (ticket unknown)")
    # What it did not take is not tried again: a PSK client begins anew, a ticket client asks for another ticket.
    if mode in PSK:
        works(hosts)
        assert len(hosts.psks) == 1
    else:
        fails(hosts, "no ticket on the shelf")
        hosts.state = kept
        hosts.publish()
        works(hosts)


@pytest.mark.parametrize("kind", ["ticket", "psk"])
def test_no_downgrade_of_forward_secrecy(kind):
    hosts = Hosts(f"{kind}-fs").resumable()
    hosts.client["mode"] = kind
    fails(hosts, "the server demands forward-secret sessions")
    del hosts.client["mode"]
    works(hosts)


def test_a_server_that_is_full():
    hosts = Hosts("mtls", server={"max_sessions": 0})
    fails(hosts, "the server refuses (busy): there are 0 sessions already", "as many as are allowed")
    hosts.server["max_sessions"] = 1
    works(hosts)


@pytest.mark.parametrize("mode", TICKET + PSK)
def test_a_failure_after_data_was_sent_reaches_requests_that_came_later_too(mode):
    hosts = Hosts(mode).resumable()
    hosts.server["mode"] = "mtls"
    rig = hosts.rig()
    rig.request(b"with the hello")
    rig.client.transmit(rig.now)
    rig.request(b"after it")
    rig.run()
    assert rig.delivered == []
    assert all("not accepted" in d for d in rig.details())
    assert len(rig.details()) == 1


def test_resumption_never_hides_a_failure():
    """With a PSK there is no TLS handshake, whatever the server says to it; only without one there is."""
    hosts = Hosts("psk").resumable()
    hosts.server["mode"] = "mtls"
    for _attempt in range(2):
        rig = hosts.rig()
        rig.request(b"?")
        rig.run()
        assert rig.answered() == 0
        assert rig.managers[0].counters()["handshakes"] == 0
    hosts.psks.drop(*to_server())
    works(hosts)


def test_a_mode_there_is_not():
    with pytest.raises(ConfigError, match="unknown session mode 'ssl'; there are tls, mtls"):
        SessionConfig(CLIENT_ID, "ssl")
    assert SERVER_ID is not CLIENT_ID
