"""What the command line makes of sessions: certificates and a mode, or keys from a file."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smtstack.crypto import aead
from smtstack.errors import ConfigError, Unsupported
from smtstack.session.established import MODES
from smtstack.session_io.tsig_file import TSIG
from tests.typed import typed
from workloads.fleet import dns as fleet_dns
from workloads.options.common import add_transport_options, settings
from workloads.options.session import Sessions, check_sessions, session_words
from workloads.results.points import session_lines
from workloads.transports import Settings, open_caller
from workloads.transports.sessions import FROM_TICKETS, SessionSettings, summary


def made(*options: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_transport_options(parser)
    return settings(parser.parse_args(["--iface", "lo", "--addr", "127.0.0.1:4000", *options]))


def test_certificates_alone_mean_mutual_authentication():
    got = made("--certs", "certs/a")
    assert (got.session, got.session_mode) == (SessionSettings(), "mtls")
    assert (got.certs, got.keys) == (Path("certs/a"), None)


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_can_be_had(mode):
    dns = ["--dns", "10.0.0.3"] if mode in FROM_TICKETS else []
    assert made("--certs", "c", "--session", mode, *dns).session_mode == mode


def test_a_key_file_is_instead_of_a_handshake():
    got = made("--keys", "run.keys")
    assert (got.keys, got.session_mode) == ("run.keys", "keys")


def test_what_is_said_is_what_is_done():
    got = made("--certs", "c", "--session", "ticket-fs", "--dns", "10.0.0.3:5353", "--state", "s.db",
               "--keylog", "k", "--cipher", "AES-256-GCM", "--index-bits", "20",
               "--padding", "power-of-two", "--key-update-records", "1000").session
    assert got == SessionSettings("ticket-fs", ("10.0.0.3", 5353), Path("s.db"), Path("k"), "AES-256-GCM", 20,
                                  "power-of-two", 1000)
    offer = got.offer(5000)
    assert (offer.ciphers, offer.index_bits, offer.max_message, offer.padding) == (
        ("AES-256-GCM",), 20, 5000, "power-of-two")
    assert SessionSettings().offer(1).ciphers == tuple(aead.CIPHERS)
    assert made("--certs", "c", "--session", "ticket", "--dns", "10.0.0.3").session.dns == ("10.0.0.3", 53)


@pytest.mark.parametrize(("options", "words"), [
    ([], "--certs FOLDER .'smtnet ca'.*--keys FILE .'smtnet keys'"),
    (["--session", "mtls"], "--certs FOLDER"),
    (["--certs", "c", "--keys", "k"], "takes one of them"),
    (["--keys", "k", "--session", "mtls"], "--session is for handshakes"),
    (["--keys", "k", "--padding", "none"], "--padding is for handshakes"),
    (["--keys", "k", "--keylog", "f"], "--keylog is for handshakes"),
    (["--certs", "c", "--session", "ticket"], "--session ticket needs --dns"),
    (["--certs", "c", "--session", "ticket-fs", "--dns", "x"], "no IP:PORT"),
    (["--certs", "c", "--dns", "10.0.0.3:0"], "1 to 65535"),
    (["--certs", "c", "--dns", "10.0.0.3"], "--dns is for --session ticket and ticket-fs; with mtls"),
    (["--certs", "c", "--session", "psk", "--dns", "10.0.0.3"], "--dns is for .* with psk"),
    (["--certs", "c", "--session", "tls", "--state", "s"], "--state is for ticket and psk modes"),
    (["--transport", "homa", "--session", "ticket"], "--session is for transport smt, not for homa"),
    (["--transport", "tls", "--certs", "c", "--keylog", "k"], "--keylog is for transport smt, not for tls"),
    (["--certs", "c", "--padding", "random"], "unknown padding 'random'"),
    (["--certs", "c", "--index-bits", "99"], "index"),
    (["--certs", "c", "--key-update-records", "0"], "a number from 1"),
    (["--transport", "linux"], "--keys demo"),
])
def test_what_makes_no_session_is_said(options, words):
    with pytest.raises(ConfigError, match=words):
        made(*options)


def test_a_client_has_nothing_to_remember():
    with pytest.raises(ConfigError, match="--state is for servers"):
        open_caller(made("--certs", "c", "--session", "psk", "--state", "s"), [("10.0.0.2", 2000)])


def test_others_need_none_of_it():
    for transport in ("homa", "tcp", "tls"):
        assert made("--transport", transport).session_mode is None
    assert made("--transport", "linux", "--keys", "demo").keys == "demo"


def test_of_several_transports_one_may_have_sessions():
    parser = argparse.ArgumentParser()
    add_transport_options(parser)
    args = parser.parse_args(["--transport", "tcp", "--addr", "127.0.0.1:4000", "--certs", "c", "--cipher",
                              "AES-256-GCM"])
    assert settings(args, ["smt", "tcp"]).session == SessionSettings()
    with pytest.raises(ConfigError, match="--cipher is for transport smt, not for tcp, homa"):
        settings(args, ["tcp", "homa"])


def experiment(*options: str) -> Sessions:
    return typed(Sessions, *options)


def test_an_experiment_hands_on_what_it_was_told():
    args = experiment("--session", "psk", "--padding", "buckets:64,1024", "--key-update-records", "50")
    check_sessions(args, ["smt", "tls"])
    words = session_words(args, "smt")
    assert words == ("--padding", "buckets:64,1024", "--key-update-records", "50")
    assert made("--certs", "c", "--session", "psk", *words).session == SessionSettings(
        "psk", padding="buckets:64,1024", key_update_records=50)
    assert session_words(args, "tls") == ()
    assert session_words(experiment(), "smt") == ()


@pytest.mark.parametrize(("options", "transports", "words"), [
    (["--session", "tls"], ["tls", "homa"], "--session is for transport smt, not for tls, homa"),
    (["--cipher", "AES-256-GCM"], ["tcp"], "--cipher is for transport smt"),
    (["--padding", "much"], ["smt"], "unknown padding 'much'"),
])
def test_an_experiment_refuses_what_cannot_be(options, transports, words):
    with pytest.raises(ConfigError, match=words):
        check_sessions(experiment(*options), transports)


def test_what_tickets_need_is_named_before_anything_is_made(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda *_args, **_named: None)
    with pytest.raises(Unsupported, match="apt-get install knot"):
        check_sessions(experiment("--session", "ticket"), ["smt"])
    check_sessions(experiment("--session", "psk"), ["smt"])


# -- what results say ----------------------------------------------------------------------------------------

def test_counters_of_all_sockets_are_put_together():
    counted = [{"handshakes": 1, "early_accepted": 1, "tx_packets": 9}, {"handshakes": 2, "sessions_lost": 1}]
    assert summary("psk", counted) == {"session": {
        "mode": "psk", "handshakes": 3, "early_accepted": 1, "handshakes_failed": 0, "early_refused": 0,
        "sessions_lost": 1}}
    assert summary(None, counted) == {}


def test_how_sessions_began_is_said_to_people():
    first, second = (summary("ticket-fs", [{"early_accepted": 2, "early_refused": refused}]) for refused in (0, 1))
    other: Any = {"transport": "tls"}
    rows: list[Any] = [first, other, second | {"dns": "h3 (10.0.0.3:53)"}]
    assert session_lines(rows) == [
        "sessions: ticket-fs; early accepted 2, early refused 1; tickets from the DNS server on h3 (10.0.0.3:53)"]
    assert session_lines([other]) == []


class Host:
    def __init__(self, number: int) -> None:
        self.name = f"h{number}"

    def IP(self) -> str:  # noqa: N802 - Mininet's
        return f"10.0.0.{self.name[1:]}"


def test_the_dns_server_is_where_there_is_least_to_do(tmp_path):
    hosts = [Host(number) for number in range(1, 5)]
    for host in hosts:
        (tmp_path / host.name).mkdir()
    net: Any = SimpleNamespace(hosts=hosts)
    one, two, three, four = hosts
    idle = fleet_dns.server_for(net, {one: [two], four: [two]}, tmp_path, 0)  # type: ignore[dict-item, list-item]
    assert fleet_dns.place(net, idle) == "h3 (10.0.0.3:53)"
    # Whoever publishes has the key, and nobody else.
    assert [host.name for host in hosts if (tmp_path / host.name / TSIG).exists()] == ["h2"]
    (tmp_path / "h2" / TSIG).unlink()
    busy = fleet_dns.server_for(
        net, {one: [two], three: [four]}, tmp_path, 3)  # type: ignore[dict-item, list-item]
    assert fleet_dns.place(net, busy) == "h4 (10.0.0.4:5303)"
