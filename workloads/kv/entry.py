"""What there is to know of a command, entered where the command is written::

    hashes = partial(command, "hashes")

    @hashes("HGET key field")
    def hget(keys: Keyspace, args: Command, session: Session) -> bytes: ...

    hashes("HLEN key")(partial(length, kind=dict))

How it is called says how many arguments it has, and which of them are keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from workloads.kv.arguments import Session, arity_error
from workloads.kv.resp import Command, printable
from workloads.kv.store import CommandError, Keyspace

#: Does a command (name included) and gives its encoded reply; raises CommandError.
Handler = Callable[[Keyspace, Command, Session], bytes]
H = TypeVar("H", bound=Handler)
#: What can be left out, if there is nothing in it that can.
_OPTIONAL = re.compile(r" ?\[[^][]*\]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A command that there is."""

    about: str
    """What it is about, as the documentation has it."""
    usage: str
    """How it is called; what can be left out stands in brackets."""
    handler: Handler
    name: str
    arity: int
    """Arguments, the name included; -n: at least n."""
    keys: tuple[int, int, int]
    """First key, last (-1: the last argument), step; as COMMAND tells them."""
    write: bool = False
    local: bool = False
    """About the client or the front end, not the keys: done here whatever the store is."""
    stateful: bool = False
    """Redis remembers it for a connection, or has the connection wait: one that clients share is not for it."""
    immediate: bool = False
    """Done at once, also between MULTI and EXEC."""
    subcommands: Mapping[str, int] = field(default_factory=dict)
    """Second words that there are, and the arity with each: those of its handler."""
    ours: bool = False
    """Redis does not have it."""
    no_script: bool = False
    """No script may call it."""


#: All that were entered: once workloads.kv.commands is imported, all there are.
COMMANDS: dict[str, Entry] = {}
#: As they come: nearly always in small or in capital letters.
_BY_BYTES: dict[bytes, Entry] = {}


def command(about: str, usage: str, **more: Any) -> Callable[[H], H]:
    """Enter a command; ``more`` are fields of its :class:`Entry` that its usage does not tell, or not rightly."""

    def enter(handler: H) -> H:
        words = usage.split()
        told = {"name": words[0].lower(), "arity": _arity(usage, "subcommands" in more), "keys": _keys(words[1:])}
        made = Entry(about=about, usage=usage, handler=handler, **{**told, **more})
        COMMANDS[made.name] = _BY_BYTES[made.name.encode()] = _BY_BYTES[made.name.upper().encode()] = made
        return handler

    return enter


def _arity(usage: str, subcommands: bool) -> int:
    """How many words a command has, itself included, as Redis counts; negative: at least so many. Of subcommands,
    each of which has arguments of its own, one is needed."""
    needed, before = usage, ""
    while needed != before:
        needed, before = _OPTIONAL.sub("", needed), needed
    count = len(needed.split())
    if subcommands:
        return -min(2, count)
    return count if needed == usage else -count


def _keys(words: list[str]) -> tuple[int, int, int]:
    match words:
        case ["source", "destination", *_] | ["key", "newkey"]:
            return 1, 2, 1
        case ["key", "[key", "...]", *after]:  # after them may be a time
            return 1, -1 - len(after), 1
        case ["key", _, "[key", _, "...]"]:
            return 1, -1, 2
        case ["key", *_]:
            return 1, 1, 1
    return 0, 0, 0


def look_up(args: Command) -> Entry:
    """The command that ``args`` are; raises :class:`CommandError` if there is none or too few or many."""
    entry = _BY_BYTES.get(args[0]) or _BY_BYTES.get(args[0].lower())
    if entry is None:
        name = printable(args[0][:128])
        shown = ""
        for arg in args[1:]:
            if len(shown) >= 128:
                break
            shown += f"'{printable(arg[:128 - len(shown)])}' "
        raise CommandError(f"ERR unknown command '{name}', with args beginning with: {shown}")
    name, arity = entry.name, entry.arity
    if entry.subcommands and len(args) > 1:
        word = args[1].decode("latin-1").lower()
        if word not in entry.subcommands:
            raise CommandError(f"ERR unknown subcommand '{printable(args[1][:128])}'. Try {name.upper()} HELP.")
        name, arity = f"{name}|{word}", entry.subcommands[word]
    if len(args) != arity and (arity > 0 or len(args) < -arity):
        raise arity_error(name.encode())
    return entry
