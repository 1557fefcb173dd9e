"""Commands about scripts. A script is done in one turn of the loop, and what is kept of it are its effects."""

from __future__ import annotations

import copy
from functools import partial

from workloads.kv import entry, lua
from workloads.kv.arguments import Facts, Session, integer
from workloads.kv.commands_transactions import execute
from workloads.kv.resp import OK, Command, array, bulk, error, whole
from workloads.kv.store import CommandError, Keyspace

command = partial(entry.command, "scripts")

#: Bytes of scripts that are remembered; the oldest are forgotten, and clients send them again.
MAX_SCRIPTS = 64 << 20


@command("EVAL_RO script numkeys [key ...] [arg ...]", no_script=True)
@command("EVAL script numkeys [key ...] [arg ...]", write=True, no_script=True)
def eval_(keys: Keyspace, args: Command, session: Session) -> bytes:
    _remember(session.facts, args[1])
    return _run(keys, args[1], args, session)


@command("EVALSHA_RO sha1 numkeys [key ...] [arg ...]", no_script=True)
@command("EVALSHA sha1 numkeys [key ...] [arg ...]", write=True, no_script=True)
def evalsha(keys: Keyspace, args: Command, session: Session) -> bytes:
    script = session.facts.scripts.get(args[1].lower())
    if script is None:
        raise CommandError("NOSCRIPT No matching script. Please use EVAL.")
    return _run(keys, script, args, session)


@command("SCRIPT LOAD script|EXISTS sha1 [sha1 ...]|FLUSH [ASYNC|SYNC]",
         no_script=True, subcommands={"load": 3, "exists": -3, "flush": -2})
def script(_keys: Keyspace, args: Command, session: Session) -> bytes:
    scripts, what = session.facts.scripts, args[1].upper()
    if what == b"LOAD":
        return bulk(_remember(session.facts, args[2]))
    if what == b"EXISTS":
        return array([whole(name.lower() in scripts) for name in args[2:]])
    if len(args) > 3 or (len(args) == 3 and args[2].upper() not in {b"ASYNC", b"SYNC"}):
        raise CommandError("ERR SCRIPT FLUSH only support SYNC|ASYNC option")
    scripts.clear()
    return OK


def _remember(facts: Facts, text: bytes) -> bytes:
    name, scripts = lua.sha1(text), facts.scripts
    if name not in scripts:
        scripts[name] = text
        size = sum(map(len, scripts.values()))
        while size > MAX_SCRIPTS and len(scripts) > 1:
            size -= len(scripts.pop(next(iter(scripts))))
    return name


def _run(keys: Keyspace, text: bytes, args: Command, session: Session) -> bytes:
    count = integer(args[2])
    if count > len(args) - 3:
        raise CommandError("ERR Number of keys can't be greater than number of args")
    if count < 0:
        raise CommandError("ERR Number of keys can't be negative")
    only_reads = args[0].lower().endswith(b"_ro")
    # What a script does to its session (SELECT) is not its client's business; and it waits for nothing.
    inner = copy.copy(session)
    inner.queue, inner.patient = None, False

    def perform(command: Command, version: int) -> tuple[bytes, bool]:
        try:
            called = entry.look_up(command)
        except CommandError as e:
            return error("ERR Unknown Redis command called from script" if "unknown command" in str(e) else
                         "ERR Wrong number of args calling Redis command from script"
                         if "wrong number" in str(e) else str(e)), False
        if called.no_script:
            return error("ERR This Redis command is not allowed from script"), False
        if called.write and only_reads:
            return error("ERR Write commands are not allowed from read-only scripts."), False
        inner.version = version
        return execute(keys, command, inner, keys.databases.now), called.write

    return lua.run(text, args[3:3 + count], args[3 + count:], session.version, perform)
