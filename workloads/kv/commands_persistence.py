"""Commands about the append-only file."""

from __future__ import annotations

from workloads.kv.arguments import Session
from workloads.kv.resp import Command
from workloads.kv.store import CommandError, Keyspace


def bgrewriteaof(keys: Keyspace, _args: Command, _session: Session) -> bytes:
    """BGREWRITEAOF"""
    persistence = keys.databases.persistence
    if persistence is None:
        raise CommandError("ERR there is no append-only file: start the server with --aof FILE")
    if not persistence.ask_rewrite():
        raise CommandError("ERR Background append only file rewriting already in progress")
    return b"+Background append only file rewriting started\r\n"


def section(keys: Keyspace) -> dict[str, object]:
    """The section of INFO."""
    persistence = keys.databases.persistence
    return {"loading": 0, "aof_enabled": 0} if persistence is None else persistence.info()
