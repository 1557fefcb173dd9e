"""What commands have in common: reading their arguments, as strictly as Redis does, and their errors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

from workloads.kv.resp import Command
from workloads.kv.store import CommandError, Keyspace

NOT_AN_INTEGER = "ERR value is not an integer or out of range"
SYNTAX = "ERR syntax error"

MIN_INT, MAX_INT = -(1 << 63), (1 << 63) - 1
_INTEGER = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_FLOAT = re.compile(rb"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?inf(?:inity)?", re.IGNORECASE)


@dataclass(slots=True)
class Session:
    """What the server knows of a client."""

    number: int = 0
    version: int = 2
    """RESP 2 or 3."""
    name: bytes = b""
    closing: bool = False
    """It has said QUIT."""


#: Does a command (name included) and gives its encoded reply; raises CommandError.
Handler = Callable[[Keyspace, Command, Session], bytes]


def integer(text: bytes, complaint: str = NOT_AN_INTEGER) -> int:
    """64 bits, with a sign, in the only way Redis writes it."""
    if _INTEGER.fullmatch(text) is None or not MIN_INT <= (number := int(text)) <= MAX_INT:
        raise CommandError(complaint)
    return number


def number(text: bytes, complaint: str = "ERR value is not a valid float", overflow: bool = False) -> float:
    """A fraction, or infinity; with ``overflow`` also what is too large for any other."""
    if _FLOAT.fullmatch(text) is None:
        raise CommandError(complaint)
    value = float(text)
    if not overflow and math.isinf(value) and b"i" not in text.lower():
        raise CommandError(complaint)
    return value


def arity_error(name: bytes) -> CommandError:
    """Too few or too many arguments."""
    return CommandError(f"ERR wrong number of arguments for '{name.decode('latin-1').lower()}' command")
