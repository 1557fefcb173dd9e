"""Commands about databases: which one is selected, what goes from one to another, emptying them."""

from __future__ import annotations

from functools import partial

from workloads.kv import entry
from workloads.kv.arguments import SYNTAX, Session, integer
from workloads.kv.resp import OK, ONE, ZERO, Command
from workloads.kv.store import CommandError, Keyspace

command = partial(entry.command, "databases")

OUT_OF_RANGE = "ERR DB index is out of range"
#: Bits of a number of a database, sign included.
_INT = 32


def _number(keys: Keyspace, text: bytes, complaint: str, too_large: str) -> int:
    number = integer(text, complaint)
    if not -(1 << _INT - 1) <= number < 1 << _INT - 1:
        raise CommandError(too_large)
    if not 0 <= number < len(keys.databases.all):
        raise CommandError(OUT_OF_RANGE)
    return number


def _plain_number(keys: Keyspace, text: bytes) -> int:
    return _number(keys, text, "ERR value is not an integer or out of range",
                   f"ERR value is out of range, value must between {-(1 << _INT - 1)} and {(1 << _INT - 1) - 1}")


@command("SELECT database", local=True)
def select(keys: Keyspace, args: Command, session: Session) -> bytes:
    session.database = _plain_number(keys, args[1])
    return OK


@command("MOVE key database", write=True)
def move(keys: Keyspace, args: Command, _session: Session) -> bytes:
    key = args[1]
    target = keys.databases.all[_plain_number(keys, args[2])]
    if target is keys:
        raise CommandError("ERR source and destination objects are the same")
    value = keys.get(key)
    if value is None or target.get(key) is not None:
        return ZERO
    keys.hand_over(key, value, target, key)
    keys.log(b"MOVE", key, b"%d" % target.number)
    return ONE


@command("SWAPDB database database", write=True)
def swapdb(keys: Keyspace, args: Command, _session: Session) -> bytes:
    numbers = [integer(text, f"ERR invalid {which} DB index")
               for which, text in zip(("first", "second"), args[1:], strict=True)]
    one, other = [keys.databases.all[_number(keys, b"%d" % number, "", f"ERR invalid {which} DB index")]
                  for which, number in zip(("first", "second"), numbers, strict=True)]
    if one is not other:
        one.swap(other)
    return OK


def _flush(keys: Keyspace, args: Command, _session: Session, everything: bool) -> bytes:
    if len(args) > 2 or (len(args) == 2 and args[1].upper() not in {b"ASYNC", b"SYNC"}):
        raise CommandError(SYNTAX)
    (keys.databases.flush if everything else keys.clear)()
    return OK


command("FLUSHALL [ASYNC|SYNC]", write=True)(partial(_flush, everything=True))
command("FLUSHDB [ASYNC|SYNC]", write=True)(partial(_flush, everything=False))


def section(keys: Keyspace) -> dict[str, object]:
    """The section of INFO: a line for each that has keys."""
    return {f"db{one.number}": f"keys={len(one)},expires={one.expiring},avg_ttl=0"
            for one in keys.databases.all if len(one)}
