"""Commands about the client itself: who it is, what it speaks, when it leaves."""

from __future__ import annotations

import time
from functools import partial

from workloads.kv import entry
from workloads.kv.arguments import SYNTAX, Session, integer
from workloads.kv.resp import EMPTY_ARRAY, OK, Command, bulk, bulk_or_null, mapping, printable, whole
from workloads.kv.store import CommandError, Keyspace

command = partial(entry.command, "connections")

#: What we say we are to clients that look: commands, replies and errors are those of this version.
REDIS_VERSION = "7.0.15"

_LIBRARY = frozenset((b"LIB-NAME", b"LIB-VER"))


@command("AUTH [username] password", local=True, no_script=True)
def auth(_keys: Keyspace, args: Command, _session: Session) -> bytes:
    """There are no passwords, who may connect is the transport's business."""
    if len(args) > 3:
        raise CommandError(SYNTAX)
    if len(args) == 2:
        raise CommandError("ERR AUTH <password> called without any password configured for the default user. Are "
                           "you sure your configuration is correct?")
    _check_user(args[1])
    return OK


def _check_user(user: bytes) -> None:
    if user != b"default":
        raise CommandError("WRONGPASS invalid username-password pair or user is disabled.")


@command("HELLO [2|3 [AUTH username password] [SETNAME name]]", local=True, no_script=True)
def hello(_keys: Keyspace, args: Command, session: Session) -> bytes:
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
            _check_user(args[at + 1])
            at += 3
        else:
            raise CommandError(f"ERR Syntax error in HELLO option '{printable(args[at])}'")
    session.version, session.name = version, name
    return mapping([bulk(b"server"), bulk(b"redis"), bulk(b"version"), bulk(REDIS_VERSION.encode()),
                    bulk(b"proto"), whole(version), bulk(b"id"), whole(session.number),
                    bulk(b"mode"), bulk(b"standalone"), bulk(b"role"), bulk(b"master"),
                    bulk(b"modules"), EMPTY_ARRAY], version)


@command("CLIENT ID|GETNAME|SETNAME name|SETINFO LIB-NAME|LIB-VER text|INFO|LIST [ID id ...]|NO-EVICT ON|OFF",
         local=True, no_script=True, subcommands={
             "id": 2, "getname": 2, "setname": 3, "setinfo": 4, "info": 2, "list": -2, "no-evict": 3})
def client(_keys: Keyspace, args: Command, session: Session) -> bytes:
    what = args[1].upper()
    if what == b"ID":
        return whole(session.number)
    if what == b"GETNAME":
        return bulk_or_null(session.name or None, session.version)
    if what == b"SETNAME":
        session.name = _client_name(args[2])
    elif what == b"SETINFO":
        field, text = args[2].upper(), args[3]
        if field not in _LIBRARY:
            raise CommandError(f"ERR Unrecognized option '{printable(field)}'")
        if not _is_name(text):
            name = field.decode().lower()
            raise CommandError(f"ERR {name} cannot contain spaces, newlines or special characters.")
        session.lib_info[field] = text
    elif what == b"INFO":
        return bulk(_line(session))
    elif what == b"LIST":
        return bulk(b"".join(map(_line, _listed(session, args[2:]))))
    # Nothing is ever evicted.
    elif args[2].upper() not in {b"ON", b"OFF"}:
        raise CommandError(SYNTAX)
    return OK


def _listed(session: Session, options: Command) -> list[Session]:
    """Connections, and the message that asks."""
    sessions = session.facts.sessions
    if not options:
        return [*sessions.values(), *([] if session.number in sessions else [session])]
    if options[0].upper() != b"ID" or len(options) < 2:
        raise CommandError(SYNTAX)
    numbers = [integer(text, "ERR Invalid client ID") for text in options[1:]]
    return [sessions[number] for number in dict.fromkeys(numbers) if number in sessions]


def _line(session: Session) -> bytes:
    now = time.monotonic_ns()
    flags = ("x" if session.queue is not None else "") + ("b" if session.waiting is not None else "")
    fields = {
        "id": session.number, "addr": session.peer, "laddr": session.local, "name": session.name.decode(),
        "age": (now - session.began_ns) // 1_000_000_000,
        "idle": (now - session.last_ns) // 1_000_000_000 if session.last_ns else 0, "flags": flags or "N",
        "db": session.database,
        "multi": -1 if session.queue is None else len(session.queue), "watch": len(session.watching),
        "cmd": printable(session.last[:32]).lower().replace(" ", "?") or "NULL", "user": "default",
        "lib-name": session.lib_info.get(b"LIB-NAME", b"").decode(),
        "lib-ver": session.lib_info.get(b"LIB-VER", b"").decode(), "resp": session.version}
    return " ".join(f"{name}={value}" for name, value in fields.items()).encode() + b"\n"


def _is_name(text: bytes) -> bool:
    return all(33 <= c <= 126 for c in text)


def _client_name(name: bytes) -> bytes:
    if not _is_name(name):
        raise CommandError("ERR Client names cannot contain spaces, newlines or special characters.")
    return name


@command("QUIT", arity=-1, local=True, immediate=True, no_script=True)
def quit_(_keys: Keyspace, _args: Command, session: Session) -> bytes:
    session.closing = True
    return OK


@command("RESET", local=True, immediate=True, no_script=True)
def reset(_keys: Keyspace, _args: Command, session: Session) -> bytes:
    session.version, session.name, session.database = 2, b"", 0
    session.forget_transaction()
    return b"+RESET\r\n"
