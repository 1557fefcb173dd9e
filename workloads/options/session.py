"""How SMT sessions begin, on command lines: certificates and a mode, or a key file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.crypto import aead
from smtstack.errors import ConfigError
from smtstack.session.established import MODES
from smtstack.socket import Address
from topo.commands import program
from workloads.options.declare import as_dict, group, option
from workloads.transports.sessions import FROM_SESSIONS, FROM_TICKETS, MODE, SessionSettings

_TITLE = "sessions of smt (docs/sessions.md)"
#: What each mode is, for --help.
_MEANINGS = ("tls: the server shows its certificate; mtls: both do; ticket: from a ticket found by DNS, data in "
             "the first packet (0-RTT); psk: likewise, resumed from an earlier session; -fs: with a "
             "forward-secret key from the answer on")
#: Options for what both ends agree on, and their attributes; options that mean something in a handshake only.
_PARAMETERS = {"--cipher": "cipher", "--index-bits": "index_bits", "--padding": "padding",
               "--key-update-records": "key_update_records"}
_OF_HANDSHAKES = {"--session": "session", "--dns": "dns", "--state": "state",
                  "--keylog": "keylog", **_PARAMETERS}


def _padding(text: str) -> str:
    name, colon, buckets = text.partition(":")
    return f"{name}:{quantities.sizes(buckets)}" if colon else text


@dataclass(frozen=True)
class SessionMode:
    """How sessions of smt begin; None: as the transport has it."""

    session: str | None = option("--session", choices=MODES, title=_TITLE,
                                 help=f"how they begin. {_MEANINGS} (default: {MODE})")


@dataclass(frozen=True)
class Agreed:
    """What both ends of a session agree on; None: as the transport has it."""

    cipher: str | None = option("--cipher", choices=tuple(aead.CIPHERS), title=_TITLE,
                                help="accept this one only (default: any)")
    index_bits: int | None = option(
        "--index-bits", type=quantities.NOT_NEGATIVE, metavar="N", title=_TITLE,
        help="bits of a record's number that count within a message (default: 16)")
    padding: str | None = option(
        "--padding", type=_padding, metavar="POLICY", title=_TITLE,
        help="what hides lengths: none, power-of-two or buckets:B,B,... (default: what the peer wants)")
    key_update_records: int | None = option(
        "--key-update-records", type=quantities.NOT_NEGATIVE, metavar="N", title=_TITLE,
        help="new keys after so many records (default: half of what the cipher allows)")


@dataclass(frozen=True)
class Sessions(Agreed, SessionMode):
    """How sessions begin in an experiment, which makes certificates and a DNS server itself."""


@dataclass(frozen=True)
class EndSessions:
    """How sessions begin at one end, which is told where everything is."""

    mode: SessionMode = group(SessionMode)
    dns: str | None = option("--dns", metavar="IP[:PORT]", title=_TITLE,
                             help="ticket modes: the DNS server that has the tickets; servers publish theirs "
                                  "there")
    state: Path | None = option(
        "--state", type=Path, metavar="FILE", title=_TITLE,
        help="ticket and psk modes, of a server: what it must not forget when it starts anew, "
             "tickets and the hellos it has answered (default: in memory)")
    keylog: Path | None = option(
        "--keylog", type=Path, metavar="FILE", title=_TITLE,
        help="add the secrets of every session to this file, for 'smtnet pcap decrypt': who has it "
             "reads everything (default: written nowhere)")
    agreed: Agreed = group(Agreed)


def check_sessions(told: Sessions, transports: Collection[str]) -> None:
    """Check that these options make sessions, that one of the transports has sessions, and that what they need is
    installed. Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`."""
    _check_transports(told, {"--session": "session", **_PARAMETERS}, transports)
    _parameters(told)
    if told.session in FROM_TICKETS:
        program("knotd")


def session_words(told: Sessions, transport: str) -> tuple[str, ...]:
    """All but the mode, as words for command lines of servers and clients; none for others than smt."""
    if transport != "smt":
        return ()
    return tuple(word for option, value in _given(told, _PARAMETERS).items() for word in (option, str(value)))


def check_no_sessions(told: EndSessions, transports: Collection[str]) -> None:
    """Check that nothing is said of sessions where no transport has any; raises :class:`ConfigError`."""
    _check_transports(told, _OF_HANDSHAKES, transports)


def _check_transports(told: Sessions | EndSessions, options: Mapping[str, str],
                      transports: Collection[str]) -> None:
    given = list(_given(told, options))
    if given and "smt" not in transports:
        raise ConfigError(f"{given[0]} is for transport smt, not for {', '.join(transports)}")


def _given(told: Sessions | EndSessions, options: Mapping[str, str]) -> dict[str, Any]:
    """Which of ``options`` (the name of each in code, by what is typed) the user gave, with their values."""
    values = as_dict(told)
    return {option: values[name] for option, name in options.items() if values[name] is not None}


def session_settings(told: EndSessions, certs: Path | None, keys: str | None,
                     dns: Address | None) -> SessionSettings:
    """What transport smt is to do by ``told``, ``--certs`` and ``--keys``; ``dns`` is ``--dns``, read.

    Raises :class:`ConfigError` where that is not enough, or too much.
    """
    given = list(_given(told, _OF_HANDSHAKES))
    if certs is None and keys is None:
        raise ConfigError("smt needs --certs FOLDER ('smtnet ca' makes one for each host) for a handshake, or "
                          "--keys FILE ('smtnet keys' makes one) instead of it")
    if certs is not None and keys is not None:
        raise ConfigError("--certs and --keys: smt takes one of them; --keys FILE is instead of a handshake")
    if keys is not None:
        if given:
            raise ConfigError(f"{given[0]} is for handshakes, and with --keys there is none: leave one out")
        return SessionSettings()
    mode = told.mode.session or MODE
    if mode in FROM_TICKETS and dns is None:
        raise ConfigError(f"--session {mode} needs --dns IP[:PORT]: tickets are published and found there")
    if mode not in FROM_TICKETS and dns is not None:
        raise ConfigError(f"--dns is for --session {' and '.join(FROM_TICKETS)}; with {mode} there are no tickets")
    if mode not in (*FROM_TICKETS, *FROM_SESSIONS) and told.state is not None:
        raise ConfigError(f"--state is for ticket and psk modes; with --session {mode} nothing is remembered")
    return replace(_parameters(told), mode=mode, dns=dns, state=told.state, keylog=told.keylog)


def _parameters(told: Sessions | EndSessions) -> SessionSettings:
    """What both ends agree on, with defaults where nothing was said. Raises :class:`ConfigError`."""
    given = {_PARAMETERS[option]: value for option, value in _given(told, _PARAMETERS).items()}
    if given.get("key_update_records", 1) < 1:
        raise ConfigError(f"--key-update-records is {given['key_update_records']}; a number from 1")
    settings = SessionSettings(**given)
    settings.offer(1)
    return settings
