"""Transactions: commands that are done together, or not at all if a key that was watched has changed.

On a connection these are Redis's. A message is a transaction's whole life, so what a client has read by an earlier
message is named by its version: ``SMT.VERSIONS`` gives versions of keys, ``SMT.WATCH`` in front of MULTI demands
that they are still the same. The server keeps nothing of a client between messages.
"""

from __future__ import annotations

from functools import partial

from workloads.kv import entry
from workloads.kv.arguments import Session, arity_error, integer
from workloads.kv.commands_strings import MAX_REPLY
from workloads.kv.resp import OK, Command, array, error, null_array, whole
from workloads.kv.store import MAX_WATCHED, CommandError, Keyspace

command = partial(entry.command, "transactions")

QUEUED = b"+QUEUED\r\n"
#: Bytes of commands that wait for their EXEC, with what each argument takes besides.
MAX_QUEUE = 1 << 30
_PER_ARGUMENT = 64
_SHORT = 64


def enqueue(session: Session, args: Command) -> bytes:
    """Keep a command for EXEC. Raises :class:`CommandError`."""
    assert session.queue is not None
    size = sum(map(len, args)) + _PER_ARGUMENT * len(args)
    if session.queued_bytes + size > MAX_QUEUE:
        raise CommandError(f"ERR a transaction is at most {MAX_QUEUE} bytes of commands")
    session.queued_bytes += size
    session.queue.append(args)
    return QUEUED


@command("MULTI", stateful=True, immediate=True, no_script=True)
def multi(_keys: Keyspace, _args: Command, session: Session) -> bytes:
    if session.queue is not None:
        raise CommandError("ERR MULTI calls can not be nested")
    session.queue = []
    return OK


@command("DISCARD", stateful=True, immediate=True, no_script=True)
def discard(_keys: Keyspace, _args: Command, session: Session) -> bytes:
    if session.queue is None:
        raise CommandError("ERR DISCARD without MULTI")
    session.forget_transaction()
    return OK


@command("EXEC", stateful=True, immediate=True, no_script=True)
def exec_(keys: Keyspace, _args: Command, session: Session) -> bytes:
    queue = session.queue
    if queue is None:
        raise CommandError("ERR EXEC without MULTI")
    aborted, changed = session.aborted, changed_since(keys, session)
    session.forget_transaction()
    if aborted:
        raise CommandError("EXECABORT Transaction discarded because of previous errors.")
    if changed:
        return null_array(session.version)
    replies: list[bytes] = []
    size = 0
    patient, session.patient = session.patient, False
    for args in queue:
        try:
            # A command before this one may have selected another database.
            reply = entry.look_up(args).handler(keys.databases.all[session.database], args, session)
        except CommandError as e:
            reply = error(str(e))
        if size > MAX_REPLY and len(reply) > _SHORT:
            reply = error(f"ERR the replies of this transaction are more than {MAX_REPLY} bytes: this command was "
                          f"done, its reply is left out")
        size += len(reply)
        replies.append(reply)
    session.patient = patient
    return array(replies)


def changed_since(keys: Keyspace, session: Session) -> bool:
    """Whether a key that the client watches was changed or has ended."""
    return not all(keys.databases.all[number].is_unchanged(key, version)
                   for (number, key), version in session.watching.items())


@command("WATCH key [key ...]", stateful=True, immediate=True, no_script=True)
def watch(keys: Keyspace, args: Command, session: Session) -> bytes:
    _check_watch(session, len(args) - 1)
    for key in args[1:]:
        # Watched twice, it must not have changed since the first time.
        session.watching.setdefault((session.database, key), keys.version(key))
    return OK


@command("UNWATCH", stateful=True, no_script=True)
def unwatch(_keys: Keyspace, _args: Command, session: Session) -> bytes:
    session.watching = {}
    return OK


@command("SMT.VERSIONS key [key ...]", ours=True)
def versions(keys: Keyspace, args: Command, _session: Session) -> bytes:
    """A number each, another one once the key was changed."""
    if len(args) - 1 > MAX_WATCHED:
        raise _too_many()
    return array([whole(keys.version(key)) for key in args[1:]])


@command("SMT.WATCH key version [key version ...]", immediate=True, ours=True, no_script=True)
def watch_versions(_keys: Keyspace, args: Command, session: Session) -> bytes:
    """WATCH, since these versions."""
    if len(args) % 2 == 0:
        raise arity_error(args[0])
    _check_watch(session, len(args) // 2)
    for key, text in zip(args[1::2], args[2::2], strict=True):
        version = integer(text)
        # No version is below 0: what is demanded to be two things at once has changed.
        where = session.database, key
        session.watching[where] = version if session.watching.get(where, version) == version else -1
    return OK


def _check_watch(session: Session, more: int) -> None:
    if session.queue is not None:
        raise CommandError("ERR WATCH inside MULTI is not allowed")
    if len(session.watching) + more > MAX_WATCHED:
        raise _too_many()


def _too_many() -> CommandError:
    return CommandError(f"ERR more than {MAX_WATCHED} keys cannot be watched")


# -- doing one, or keeping it for EXEC -----------------------------------------------------------------------

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
                return enqueue(session, args)
        except CommandError as e:
            raise rejected(args, session, e) from None
        return found.handler(databases.all[session.database], args, session)
    except CommandError as e:
        return error(str(e))
