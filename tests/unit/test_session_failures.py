"""Ends whose settings or state do not fit, and what a failure means for the requests and sessions after it.

What an attacker, a clock or a bad certificate does: test_session_matrix.py.
"""

from __future__ import annotations

import pytest

from smtstack.errors import ConfigError
from smtstack.session.config import SessionConfig
from smtstack.session.offer import Offer
from smtstack.session.state import MemoryState
from tests.handshakes import CLIENT_ID, EARLY, PSK, TICKET, Hosts, fails, to_server, works


def test_a_mode_there_is_not():
    with pytest.raises(ConfigError, match="unknown session mode 'ssl'; there are tls, mtls"):
        SessionConfig(CLIENT_ID, "ssl")


def test_no_common_cipher():
    hosts = Hosts("mtls", client={"offer": Offer(("CHACHA20-POLY1305",))},
                  server={"offer": Offer(("AES-256-GCM",))})
    text = "no common cipher: the client offers CHACHA20-POLY1305, we allow AES-256-GCM"
    fails(hosts, f"the server refuses (parameters): {text}", text)
    hosts.server["offer"] = Offer(("AES-256-GCM", "CHACHA20-POLY1305"))
    works(hosts)


@pytest.mark.parametrize("mode", EARLY)
def test_a_server_that_takes_no_early_data(mode):
    hosts = Hosts(mode).resumable()
    hosts.server["mode"] = "mtls"
    text = f"this server (--session mtls) takes no sessions that begin with a {mode.removesuffix('-fs')}"
    fails(hosts, f"the server refuses (not accepted): {text}", text)
    hosts.server["mode"] = mode
    works(hosts)


@pytest.mark.parametrize("mode", TICKET)
def test_no_ticket(mode):
    hosts = Hosts(mode)
    hosts.shelf.tickets.clear()
    fails(hosts, "no ticket on the shelf", "")
    hosts.publish()
    works(hosts)


@pytest.mark.parametrize("mode", EARLY)
def test_a_server_that_lost_its_state(mode):
    hosts = Hosts(mode).resumable()
    kept, hosts.state = hosts.state, MemoryState()
    text = ("the ticket is not one of this server's, or long expired" if mode in TICKET else
            "a resumption under a key that this server has not, or no longer")
    fails(hosts, f"the server refuses (ticket unknown): {text}", text)
    # What it did not take is not tried again: a PSK client begins anew, a ticket client asks for another ticket.
    if mode in PSK:
        works(hosts)
        assert len(hosts.psks) == 1
    else:
        fails(hosts, "no ticket on the shelf", "")
        hosts.state = kept
        hosts.publish()
        works(hosts)


def test_a_server_that_is_full():
    hosts = Hosts("mtls", server={"max_sessions": 0})
    text = "there are 0 sessions already, as many as are allowed"
    fails(hosts, f"the server refuses (busy): {text}", text)
    hosts.server["max_sessions"] = 1
    works(hosts)


@pytest.mark.parametrize("mode", EARLY)
def test_a_failure_after_data_was_sent_reaches_requests_that_came_later_too(mode):
    hosts = Hosts(mode).resumable()
    hosts.server["mode"] = "mtls"
    rig = hosts.rig()
    rig.request(b"with the hello")
    rig.client.transmit(rig.now)
    rig.request(b"after it")
    rig.run()
    assert rig.delivered == []
    assert len(rig.failures()) == 2
    detail, = rig.details()
    assert "not accepted" in detail


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
