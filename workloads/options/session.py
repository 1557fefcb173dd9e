"""How SMT sessions begin, on command lines: certificates and a mode, or a key file."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

from smtstack import quantities
from smtstack.crypto import aead
from smtstack.errors import ConfigError
from smtstack.session.established import MODES
from smtstack.socket import Address
from topo.commands import program
from workloads.transports.sessions import FROM_SESSIONS, FROM_TICKETS, MODE, SessionSettings

#: What each mode is, for --help.
_MEANINGS = ("tls: the server shows its certificate; mtls: both do; ticket: from a ticket found by DNS, data in "
             "the first packet (0-RTT); psk: likewise, resumed from an earlier session; -fs: with a "
             "forward-secret key from the answer on")
#: Options for what both ends agree on, and their attributes; options that mean something in a handshake only.
_PARAMETERS = {"--cipher": "cipher", "--index-bits": "index_bits", "--padding": "padding",
               "--key-update-records": "key_update_records"}
_OF_HANDSHAKES = {"--session": "session", "--dns": "dns", "--state": "state",
                  "--keylog": "keylog", **_PARAMETERS}


def add_session_options(parser: argparse.ArgumentParser) -> None:
    """For :func:`session_settings`."""
    group = parser.add_argument_group("sessions of smt (docs/sessions.md)")
    _add_mode(group)
    group.add_argument("--dns", metavar="IP[:PORT]",
                       help="ticket modes: the DNS server that has the tickets; servers publish theirs there")
    group.add_argument("--state", type=Path, metavar="FILE",
                       help="ticket and psk modes, of a server: what it must not forget when it starts anew, "
                            "tickets and the hellos it has answered (default: in memory)")
    group.add_argument("--keylog", type=Path, metavar="FILE",
                       help="add the secrets of every session to this file, for 'smtnet pcap decrypt': who has it "
                            "reads everything (default: written nowhere)")
    _add_parameters(group)


def add_experiment_sessions(parser: argparse.ArgumentParser) -> None:
    """Of an experiment, which makes certificates and a DNS server itself; for :func:`session_words`."""
    group = parser.add_argument_group("sessions of smt (docs/sessions.md)")
    _add_mode(group)
    _add_parameters(group)


def _padding(text: str) -> str:
    name, colon, buckets = text.partition(":")
    return f"{name}:{quantities.sizes(buckets)}" if colon else text


def _add_mode(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--session", choices=MODES, help=f"how they begin. {_MEANINGS} (default: {MODE})")


def _add_parameters(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--cipher", choices=tuple(aead.CIPHERS), help="accept this one only (default: any)")
    group.add_argument("--index-bits", type=quantities.NOT_NEGATIVE, metavar="N",
                       help="bits of a record's number that count within a message (default: 16)")
    group.add_argument("--padding", type=_padding, metavar="POLICY",
                       help="what hides lengths: none, power-of-two or buckets:B,B,... (default: what the peer "
                            "wants)")
    group.add_argument("--key-update-records", type=quantities.NOT_NEGATIVE, metavar="N",
                       help="new keys after so many records (default: half of what the cipher allows)")


def check_sessions(args: argparse.Namespace, transports: Collection[str]) -> None:
    """That the options of :func:`add_experiment_sessions` make sessions, one of the transports has such, and what
    they need is installed.

    Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`.
    """
    _check_transports(args, {"--session": "session", **_PARAMETERS}, transports)
    _parameters(args)
    if args.session in FROM_TICKETS:
        program("knotd")


def session_words(args: argparse.Namespace, transport: str) -> tuple[str, ...]:
    """These options but for the mode, for command lines of servers and clients; none for others than smt."""
    if transport != "smt":
        return ()
    return tuple(word for option, name in _PARAMETERS.items() if getattr(args, name) is not None
                 for word in (option, str(getattr(args, name))))


def check_no_sessions(args: argparse.Namespace, transports: Collection[str]) -> None:
    """That nothing is said of sessions where none of the transports has such; raises :class:`ConfigError`."""
    _check_transports(args, _OF_HANDSHAKES, transports)


def _check_transports(args: argparse.Namespace, options: Mapping[str, str], transports: Collection[str]) -> None:
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


def _parameters(args: argparse.Namespace) -> SessionSettings:
    """Defaults where nothing was said; checked."""
    given = {name: getattr(args, name) for name in _PARAMETERS.values() if getattr(args, name) is not None}
    if given.get("key_update_records", 1) < 1:
        raise ConfigError(f"--key-update-records is {given['key_update_records']}; a number from 1")
    settings = SessionSettings(**given)
    settings.offer(1)
    return settings
