"""How SMT sessions begin, on command lines: certificates and a mode, or a key file."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from smtstack import quantities
from smtstack.crypto import aead
from smtstack.errors import ConfigError
from smtstack.session.established import MODES
from smtstack.socket import Address
from topo.commands import program
from workloads.options.declare import add, group, option
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
class Mode:
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
class Sessions(Agreed, Mode):
    """Of an experiment, which makes certificates and a DNS server itself."""


@dataclass(frozen=True)
class EndSessions:
    """Of one end, which is told where everything is."""

    mode: Mode = group(Mode)
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


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """For :func:`session_settings`."""
    add(EndSessions, parser)


def add_experiment_sessions(parser: argparse.ArgumentParser) -> None:
    """Of an experiment; for :func:`session_words`."""
    add(Sessions, parser)


#: What is said of sessions; a Namespace has it under the same names.
Said = Sessions | argparse.Namespace


def check_sessions(args: Said, transports: Collection[str]) -> None:
    """That the options of :func:`add_experiment_sessions` make sessions, one of the transports has such, and what
    they need is installed.

    Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`.
    """
    _check_transports(args, {"--session": "session", **_PARAMETERS}, transports)
    _parameters(args)
    if args.session in FROM_TICKETS:
        program("knotd")


def session_words(args: Said, transport: str) -> tuple[str, ...]:
    """These options but for the mode, for command lines of servers and clients; none for others than smt."""
    if transport != "smt":
        return ()
    return tuple(word for option, name in _PARAMETERS.items() if getattr(args, name) is not None
                 for word in (option, str(getattr(args, name))))


def check_no_sessions(args: argparse.Namespace, transports: Collection[str]) -> None:
    """That nothing is said of sessions where none of the transports has such; raises :class:`ConfigError`."""
    _check_transports(args, _OF_HANDSHAKES, transports)


def _check_transports(args: Said, options: Mapping[str, str], transports: Collection[str]) -> None:
    given = [option for option, name in options.items() if getattr(args, name) is not None]
    if given and "smt" not in transports:
        raise ConfigError(f"{given[0]} is for transport smt, not for {', '.join(transports)}")


def session_settings(args: argparse.Namespace, dns: Address | None) -> SessionSettings:
    """What :func:`add_session_options`, ``--keys`` and ``--certs`` say for transport smt; ``dns`` is ``--dns``.

    Raises :class:`ConfigError` where that is not enough, or too much.
    """
    given = [option for option, name in _OF_HANDSHAKES.items() if getattr(args, name) is not None]
    if args.certs is None and args.keys is None:
        raise ConfigError("smt needs --certs FOLDER ('smtnet ca' makes one for each host) for a handshake, or "
                          "--keys FILE ('smtnet keys' makes one) instead of it")
    if args.certs is not None and args.keys is not None:
        raise ConfigError("--certs and --keys: smt takes one of them; --keys FILE is instead of a handshake")
    if args.keys is not None:
        if given:
            raise ConfigError(f"{given[0]} is for handshakes, and with --keys there is none: leave one out")
        return SessionSettings()
    mode = args.session or MODE
    if mode in FROM_TICKETS and dns is None:
        raise ConfigError(f"--session {mode} needs --dns IP[:PORT]: tickets are published and found there")
    if mode not in FROM_TICKETS and dns is not None:
        raise ConfigError(f"--dns is for --session {' and '.join(FROM_TICKETS)}; with {mode} there are no tickets")
    if mode not in (*FROM_TICKETS, *FROM_SESSIONS) and args.state is not None:
        raise ConfigError(f"--state is for ticket and psk modes; with --session {mode} nothing is remembered")
    return replace(_parameters(args), mode=mode, dns=dns, state=args.state, keylog=args.keylog)


def _parameters(args: Said) -> SessionSettings:
    """Defaults where nothing was said; checked."""
    given = {name: getattr(args, name) for name in _PARAMETERS.values() if getattr(args, name) is not None}
    if given.get("key_update_records", 1) < 1:
        raise ConfigError(f"--key-update-records is {given['key_update_records']}; a number from 1")
    settings = SessionSettings(**given)
    settings.offer(1)
    return settings
