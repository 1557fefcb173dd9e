"""What a client may send at most, and how people write such numbers."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError
from dataclasses import dataclass, field, fields
from typing import Any

_BYTES = re.compile(r"([0-9]{1,15})(b|k|kb|m|mb|g|gb)?", re.IGNORECASE)
_UNITS = {"b": 1, "k": 1000, "kb": 1 << 10, "m": 1000**2, "mb": 1 << 20, "g": 1000**3, "gb": 1 << 30}


def byte_count(text: str) -> int:
    """For argparse: bytes as Redis's configuration has them, ``64mb`` (k is 1000, kb 1024)."""
    found = _BYTES.fullmatch(text)
    if found is None:
        raise ArgumentTypeError(f"{text!r} is no number of bytes, as 64mb")
    return int(found[1]) * _UNITS[(found[2] or "b").lower()]


def _limit(default: int, option: str, what: str) -> Any:
    return field(default=default, metadata={"option": (option, what)})


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may take. The defaults are Redis's, and the options that set them have its names."""

    bulk: int = _limit(512 << 20, "proto-max-bulk-len", "bytes of an argument, and of a string that grows")
    arguments: int = _limit(1 << 20, "proto-max-multibulk-len", "arguments of a command")
    query: int = _limit(1 << 30, "client-query-buffer-limit", "bytes of a command")
    inline: int = _limit(64 << 10, "proto-inline-max-size", "bytes of a command that is a line of text")
    message: bool = False
    """They are those of a message."""

    def named(self, name: str) -> str:
        """A limit and what sets it, for errors."""
        if self.message:
            return f"a message has at most {self.query} bytes (max_message_length)"
        unit = "arguments" if name == "arguments" else "bytes"
        return f"at most {getattr(self, name)} {unit} (--{OPTIONS[name][0]})"


#: The option of each limit, and what it is for people.
OPTIONS: dict[str, tuple[str, str]] = {f.name: f.metadata["option"] for f in fields(Limits) if f.metadata}


def of_message(limit: int) -> Limits:
    """The limits of commands in messages of at most ``limit`` bytes."""
    return Limits(bulk=limit, query=limit, message=True)
