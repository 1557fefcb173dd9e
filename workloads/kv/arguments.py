"""What commands have in common: reading their arguments, as strictly as Redis does, and their errors."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workloads.kv.resp import ONE, ZERO, Command, whole
from workloads.kv.store import CommandError, Keyspace

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX = "ERR syntax error"

MIN_INT, MAX_INT = -(1 << 63), (1 << 63) - 1
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_FLOAT = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.IGNORECASE)
_HEX = re.compile(rb"[+-]?0x(?:[0-9a-f]+\.?[0-9a-f]*|\.[0-9a-f]+)(?:p[+-]?[0-9]+)?", re.IGNORECASE)


@dataclass(slots=True)
class Facts:
    """What a server knows of itself: for INFO and CLIENT."""

    started_ns: int = field(default_factory=time.monotonic_ns)
    sessions: dict[int, Session] = field(default_factory=dict)
    """The sessions of all connections, by number."""
    connections: int = 0
    """Accepted since the start."""
    messages: int = 0
    """Over smt, homa, linux and upstream."""
    commands: int = 0
    scripts: dict[bytes, bytes] = field(default_factory=dict)
    """The scripts that are remembered, by their SHA-1 in hexadecimal digits."""
    blocked: Callable[[], int] = int
    """How many clients wait."""

    def connect(self, peer: str, local: str) -> Session:
        """The session of a new connection."""
        self.connections += 1
        session = self.sessions[self.connections] = Session(self.connections, facts=self, peer=peer, local=local)
        return session


@dataclass(slots=True, eq=False)
class Session:
    """What the server knows of a client."""

    number: int = 0
    version: int = 2
    """RESP 2 or 3."""
    name: bytes = b""
    database: int = 0
    """The one that is selected."""
    closing: bool = False
    """The client has said QUIT."""
    facts: Facts = field(default_factory=Facts)
    peer: str = ""
    local: str = ""
    """Addresses, as IP:PORT; a message has none."""
    lib_info: dict[bytes, bytes] = field(default_factory=dict)
    """What CLIENT SETINFO said: LIB-NAME, LIB-VER."""
    began_ns: int = field(default_factory=time.monotonic_ns)
    last_ns: int = 0
    """When it came, and when it asked last."""
    last: bytes = b""
    """The command that it asked last, as it was written."""
    queue: list[Command] | None = None
    """Commands since MULTI."""
    queued_bytes: int = 0
    aborted: bool = False
    """One of these was none, so that EXEC will refuse all."""
    watching: dict[tuple[int, bytes], int] = field(default_factory=dict)
    """By database and key: versions that must be the same at EXEC."""
    patient: bool = False
    """The client may wait: it has a connection, and is not within EXEC."""
    waiting: Wait | None = None
    """What its command waits for. The command has no reply yet."""

    def forget_transaction(self) -> None:
        """Go on as if there had been neither MULTI nor WATCH."""
        self.queue, self.queued_bytes, self.aborted = None, 0, False
        self.watching = {}


@dataclass(frozen=True, slots=True)
class Wait:
    """A command that waits until one of some keys has a value, or its time is over."""

    keys: list[bytes]
    kind: type
    """The type of the values that the command wants."""
    timeout_ms: int
    """0: it waits for ever."""
    serve: Callable[[Keyspace, bytes], bytes | None]
    """The command's reply, if this key has a value. Raises CommandError."""
    nothing: bytes
    """The command's reply when the time is over."""


def has(keys: Keyspace, args: Command, _session: Session, kind: type[Any]) -> bytes:
    """Whether a member is in the value of a key, as the reply."""
    value = keys.typed(args[1], kind)
    return ONE if value is not None and args[2] in value else ZERO


def remove(keys: Keyspace, args: Command, _session: Session, kind: type[Any]) -> bytes:
    """Take members out of the value of a key; the reply is how many were there."""
    value = keys.typed(args[1], kind)
    if value is None:
        return ZERO
    gone = [member for member in dict.fromkeys(args[2:]) if member in value]
    keys.take(args[1], value, gone)
    return whole(len(gone))


def length(keys: Keyspace, args: Command, _session: Session, kind: type[Any]) -> bytes:
    """How long the value of a key is, as the reply; where there is none, 0."""
    return whole(len(keys.typed(args[1], kind) or ()))


def wait(keys: Keyspace, session: Session, what: Wait) -> bytes:
    """The reply to a command that may wait: of the first key that has what it wants, or none yet."""
    for key in what.keys:
        reply = what.serve(keys, key)
        if reply is not None:
            return reply
    if not session.patient:
        return what.nothing
    session.waiting = what
    return b""


def integer(text: bytes, complaint: str = NOT_AN_INTEGER) -> int:
    """64 bits, with a sign, in the only way Redis writes it."""
    if _INTEGER.fullmatch(text) is None or not MIN_INT <= (number := int(text)) <= MAX_INT:
        raise CommandError(complaint)
    return number


def increased(old: bytes | None, amount: int, complaint: str = NOT_AN_INTEGER) -> int:
    """What was there (None: nothing, so 0) and ``amount`` together."""
    value = amount if old is None else integer(old, complaint) + amount
    if not MIN_INT <= value <= MAX_INT:
        raise CommandError("ERR increment or decrement would overflow")
    return value


def span(start: int, stop: int, size: int) -> tuple[int, int]:
    """First place and how many, of ``start`` to ``stop`` (included), either of which may count from the end."""
    start = max(0, start + size) if start < 0 else min(start, size)
    stop = min(size - 1, stop + size if stop < 0 else stop)
    return start, max(0, stop - start + 1)


def number(text: bytes, complaint: str = "ERR value is not a valid float", overflow: bool = False) -> float:
    """A fraction, or infinity; with ``overflow`` also what is too large for any other."""
    if _FLOAT.fullmatch(text) is not None:
        value = float(text)
    elif _HEX.fullmatch(text) is not None:
        try:
            value = float.fromhex(text.decode())
        except OverflowError:
            value = -math.inf if text[:1] == b"-" else math.inf
    else:
        raise CommandError(complaint)
    if not overflow and math.isinf(value) and b"i" not in text.lower():
        raise CommandError(complaint)
    return value


def arity_error(name: bytes) -> CommandError:
    """Too few or too many arguments."""
    return CommandError(f"ERR wrong number of arguments for '{name.decode('latin-1').lower()}' command")
