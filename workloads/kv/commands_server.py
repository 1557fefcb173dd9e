"""Commands about the server, and its append-only file."""

from __future__ import annotations

import os
import resource
import time
from functools import partial
from pathlib import Path

from smtstack import __version__
from workloads.kv import commands_databases, entry
from workloads.kv.arguments import Facts, Session, arity_error
from workloads.kv.commands_clients import REDIS_VERSION
from workloads.kv.commands_keys import glob
from workloads.kv.resp import Command, array, bulk, mapping, null, printable, whole
from workloads.kv.store import CommandError, Keyspace

command = partial(entry.command, "server")

#: What tools ask before they begin.
_CONFIG = {b"save": b"", b"maxmemory": b"0", b"maxmemory-policy": b"noeviction", b"timeout": b"0"}
_PAGE = os.sysconf("SC_PAGE_SIZE")


@command("PING [message]", local=True)
def ping(_keys: Keyspace, args: Command, _session: Session) -> bytes:
    if len(args) > 2:
        raise arity_error(b"ping")
    return b"+PONG\r\n" if len(args) == 1 else bulk(args[1])


command("ECHO message", local=True)(lambda _keys, args, _session: bulk(args[1]))


@command("CONFIG GET pattern [pattern ...]", local=True, subcommands={"get": -3}, no_script=True)
def config(keys: Keyspace, args: Command, session: Session) -> bytes:
    """What Redis's own tools look at."""
    patterns = [glob(pattern.lower()) for pattern in args[2:]]
    persistence = keys.databases.persistence
    kept: dict[str, object] = {"appendonly": "no"} if persistence is None else persistence.settings()
    known = {**_CONFIG, b"databases": b"%d" % len(keys.databases.all),
             b"proto-max-bulk-len": b"%d" % keys.databases.longest,
             **{name.encode(): str(value).encode() for name, value in kept.items()}}
    found = [pair for pair in known.items() if any(p.fullmatch(pair[0]) for p in patterns)]
    return mapping([bulk(x) for pair in found for x in pair], session.version)


@entry.command("append-only file", "BGREWRITEAOF", no_script=True)
def bgrewriteaof(keys: Keyspace, _args: Command, _session: Session) -> bytes:
    persistence = keys.databases.persistence
    if persistence is None:
        raise CommandError("ERR there is no append-only file: start the server with --aof FILE")
    if not persistence.ask_rewrite():
        raise CommandError("ERR Background append only file rewriting already in progress")
    return b"+Background append only file rewriting started\r\n"


command("TIME")(lambda _keys, _args, _session: array(
    [bulk(b"%d" % part) for part in divmod(time.time_ns() // 1000, 1_000_000)]))


@command("INFO [section ...]")
def info(keys: Keyspace, args: Command, session: Session) -> bytes:
    wanted = {arg.lower() for arg in args[1:]}
    if wanted & {b"all", b"default", b"everything"}:
        wanted = set()
    text = "\r\n".join(f"# {title}\r\n" + "".join(f"{name}:{value}\r\n" for name, value in fields.items())
                       for title, fields in _sections(keys, session.facts).items()
                       if not wanted or title.lower().encode() in wanted)
    return bulk(text.encode())


def _sections(keys: Keyspace, facts: Facts) -> dict[str, dict[str, object]]:
    uptime_s = (time.monotonic_ns() - facts.started_ns) // 1_000_000_000
    used = int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE
    usage = resource.getrusage(resource.RUSAGE_SELF)
    peak = max(used, usage.ru_maxrss * 1024)
    total = os.sysconf("SC_PHYS_PAGES") * _PAGE
    count, persistence = keys.databases.count, keys.databases.persistence
    kept = {"loading": 0, "aof_enabled": 0} if persistence is None else persistence.info()
    memory: dict[str, object] = {}
    for name, value in (("used_memory", used), ("used_memory_rss", used), ("used_memory_peak", peak),
                        ("total_system_memory", total), ("maxmemory", 0)):
        memory[name] = value
        memory[f"{name}_human"] = _human(value)
    return {
        "Server": {"redis_version": REDIS_VERSION, "redis_mode": "standalone", "smtnet_version": __version__,
                   "os": " ".join(os.uname()[i] for i in (0, 2, 4)), "arch_bits": 64, "process_id": os.getpid(),
                   "server_time_usec": time.time_ns() // 1000, "uptime_in_seconds": uptime_s,
                   "uptime_in_days": uptime_s // 86_400},
        "Clients": {"connected_clients": len(facts.sessions), "blocked_clients": facts.blocked()},
        # Of the whole process: how much of it the keys take cannot be told apart.
        "Memory": {**memory, "maxmemory_policy": "noeviction", "mem_fragmentation_ratio": "1.00"},
        "Persistence": {"rdb_bgsave_in_progress": 0, **kept},
        "Stats": {"total_connections_received": facts.connections, "total_messages_received": facts.messages,
                  "total_commands_processed": facts.commands, "expired_keys": count("expired"), "evicted_keys": 0,
                  "keyspace_hits": count("hits"), "keyspace_misses": count("misses")},
        "Replication": {"role": "master", "connected_slaves": 0},
        "CPU": {"used_cpu_sys": f"{usage.ru_stime:.6f}", "used_cpu_user": f"{usage.ru_utime:.6f}"},
        "Keyspace": commands_databases.section(keys),
    }


def _human(size: float) -> str:
    for unit in "BKMG":
        if size < 1024 or unit == "G":
            break
        size /= 1024
    return f"{size:.2f}{unit}" if unit != "B" else f"{size:.0f}B"


@command("COMMAND [COUNT|DOCS|INFO name ...]", local=True, subcommands={"count": 2, "docs": -2, "info": -2})
def describe(_keys: Keyspace, args: Command, session: Session) -> bytes:
    what = args[1].upper() if len(args) > 1 else b"INFO"
    if what == b"COUNT":
        return whole(len(entry.COMMANDS))
    if what == b"DOCS":
        return mapping([], session.version)
    flags = {True: array([b"+write\r\n"]), False: array([b"+readonly\r\n"])}
    rows = {e.name: array([bulk(e.name.encode()), whole(e.arity), flags[e.write], *map(whole, e.keys)])
            for e in entry.COMMANDS.values()}
    if len(args) > 2:
        return array([rows.get(printable(name).lower(), null(session.version)) for name in args[2:]])
    return array(list(rows.values()))
