"""The commands of the embedded store, and how one of them is done."""

from __future__ import annotations

from workloads.kv import (  # noqa: F401 - each enters its commands
    commands_clients,
    commands_databases,
    commands_hashes,
    commands_keys,
    commands_lists,
    commands_ranges,
    commands_scripts,
    commands_server,
    commands_sets,
    commands_sorted,
    commands_strings,
    commands_transactions,
    entry,
)
from workloads.kv.arguments import Session
from workloads.kv.resp import Command, error
from workloads.kv.store import CommandError, Keyspace

#: All of them, by name.
COMMANDS = entry.COMMANDS


def rejected(args: Command, session: Session, why: CommandError) -> CommandError:
    """The error for what cannot be kept for EXEC, or is no command at all; no EXEC will do what is before it."""
    if args[0].lower() == b"exec":
        session.forget_transaction()
        return CommandError(f"EXECABORT Transaction discarded because of: {str(why).removeprefix('ERR ')}")
    session.aborted = session.queue is not None
    return why


def execute(keys: Keyspace, args: Command, session: Session, now: int) -> bytes:
    """Do a command on the database that the session has selected; its reply, encoded, or nothing if the session
    waits now. Never raises.

    ``keys``: any of the databases. ``now``: milliseconds since the epoch.
    """
    databases = keys.databases
    databases.now = now
    try:
        try:
            found = entry.look_up(args)
            if session.queue is not None and not found.immediate:
                return commands_transactions.enqueue(session, args)
        except CommandError as e:
            raise rejected(args, session, e) from None
        return found.handler(databases.all[session.database], args, session)
    except CommandError as e:
        return error(str(e))
