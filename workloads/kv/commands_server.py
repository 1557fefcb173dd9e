"""Commands about the server and about the client itself."""

from __future__ import annotations

import os
from collections.abc import Sequence

from smtstack import __version__
from workloads.kv import commands_persistence
from workloads.kv.arguments import Session, arity_error, integer
from workloads.kv.commands_keys import glob
from workloads.kv.resp import EMPTY_ARRAY, OK, Command, array, bulk, bulk_or_null, mapping, null, printable
from workloads.kv.resp import integer as integer_reply
from workloads.kv.store import CommandError, Keyspace

#: What we say we are to clients that look: commands, replies and errors are those of this version.
REDIS_VERSION = "7.0.15"

#: What tools ask before they begin.
_CONFIG = {b"save": b"", b"appendonly": b"no", b"maxmemory": b"0", b"databases": b"1", b"timeout": b"0"}


def ping(_keys: Keyspace, args: Command, _session: Session) -> bytes:
    """PING [message]"""
    if len(args) > 2:
        raise arity_error(b"ping")
    return b"+PONG\r\n" if len(args) == 1 else bulk(args[1])


def echo(_keys: Keyspace, args: Command, _session: Session) -> bytes:
    """ECHO message"""
    return bulk(args[1])


def select(_keys: Keyspace, args: Command, _session: Session) -> bytes:
    """SELECT 0"""
    if integer(args[1], "ERR value is not an integer or out of range"):
        raise CommandError("ERR DB index is out of range")
    return OK


def hello(_keys: Keyspace, args: Command, session: Session) -> bytes:
    """HELLO [2|3 [SETNAME name]]"""
    version = session.version
    if len(args) > 1:
        version = integer(args[1], "ERR Protocol version is not an integer or out of range")
        if version not in {2, 3}:
            raise CommandError("NOPROTO unsupported protocol version")
    name = session.name
    at = 2
    while at < len(args):
        if args[at].upper() == b"SETNAME" and at + 1 < len(args):
            name = _client_name(args[at + 1])
            at += 2
        elif args[at].upper() == b"AUTH" and at + 2 < len(args):
            # There are no users here: who may connect is the transport's business.
            if args[at + 1] != b"default":
                raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")
            at += 3
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{printable(args[at])}'")
    session.version, session.name = version, name
    return mapping([bulk(b"server"), bulk(b"redis"), bulk(b"version"), bulk(REDIS_VERSION.encode()),
                    bulk(b"proto"), integer_reply(version), bulk(b"id"), integer_reply(session.number),
                    bulk(b"mode"), bulk(b"standalone"), bulk(b"role"), bulk(b"master"),
                    bulk(b"modules"), EMPTY_ARRAY], version)


def client(_keys: Keyspace, args: Command, session: Session) -> bytes:
    """CLIENT SETINFO|SETNAME|GETNAME|ID"""
    what = args[1].upper()
    if what == b"ID" and len(args) == 2:
        return integer_reply(session.number)
    if what == b"GETNAME" and len(args) == 2:
        return bulk_or_null(session.name or None, session.version)
    if what == b"SETNAME" and len(args) == 3:
        session.name = _client_name(args[2])
        return OK
    if what == b"SETINFO" and len(args) == 4:
        return OK
    if what in {b"ID", b"GETNAME", b"SETNAME", b"SETINFO"}:
        raise arity_error(b"client|" + what)
    raise _no_subcommand("client", args[1])


def _client_name(name: bytes) -> bytes:
    if any(not 33 <= c <= 126 for c in name):
        raise CommandError("ERR Client names cannot contain spaces, newlines or special characters.")
    return name


def quit_(_keys: Keyspace, _args: Command, session: Session) -> bytes:
    """QUIT"""
    session.closing = True
    return OK


def reset(_keys: Keyspace, _args: Command, session: Session) -> bytes:
    """RESET"""
    session.version, session.name = 2, b""
    return b"+RESET\r\n"


def config(_keys: Keyspace, args: Command, session: Session) -> bytes:
    """CONFIG GET pattern [pattern ...]: what Redis's own tools look at"""
    if args[1].upper() != b"GET":
        raise _no_subcommand("config", args[1])
    if len(args) < 3:
        raise arity_error(b"config|get")
    patterns = [glob(pattern.lower()) for pattern in args[2:]]
    found = [pair for pair in _CONFIG.items() if any(p.fullmatch(pair[0]) for p in patterns)]
    return mapping([bulk(x) for pair in found for x in pair], session.version)


def info(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """INFO [section ...]"""
    sections: dict[str, dict[str, object]] = {
        "Server": {"redis_version": REDIS_VERSION, "redis_mode": "standalone", "smtnet_version": __version__,
                   "process_id": os.getpid()},
        "Persistence": commands_persistence.section(keys),
        "Stats": {"expired_keys": keys.expired, "keyspace_hits": keys.hits, "keyspace_misses": keys.misses},
        "Replication": {"role": "master", "connected_slaves": 0},
        "Keyspace": {"db0": f"keys={len(keys)},expires={keys.expiring},avg_ttl=0"} if len(keys) else {},
    }
    wanted = {arg.lower() for arg in args[1:]} - {b"all", b"default", b"everything"}
    text = "\r\n".join(f"# {title}\r\n" + "".join(f"{name}:{value}\r\n" for name, value in fields.items())
                       for title, fields in sections.items() if not wanted or title.lower().encode() in wanted)
    return bulk(text.encode())


def describe(table: Sequence[tuple[str, int, bool, tuple[int, int, int]]], args: Command,
             session: Session) -> bytes:
    """COMMAND [COUNT|DOCS|INFO name ...] of a table of (name, arity, write, keys)"""
    what = args[1].upper() if len(args) > 1 else b"INFO"
    if what == b"COUNT":
        return integer_reply(len(table))
    if what == b"DOCS":
        return mapping([], session.version)
    if what != b"INFO":
        raise _no_subcommand("command", args[1])
    flags = {True: array([b"+write\r\n"]), False: array([b"+readonly\r\n"])}
    rows = {name: array([bulk(name.encode()), integer_reply(arity), flags[write], *map(integer_reply, keys)])
            for name, arity, write, keys in table}
    if len(args) > 2:
        return array([rows.get(printable(name).lower(), null(session.version)) for name in args[2:]])
    return array(list(rows.values()))


def _no_subcommand(command: str, what: bytes) -> CommandError:
    return CommandError(f"ERR unknown subcommand '{printable(what[:128])}'. Try {command.upper()} HELP.")
