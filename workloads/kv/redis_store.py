"""A real Redis server as the store: our front ends forward what is about keys, and Redis does it.

Commands of all clients go to it on one connection, pipelined (and one more for each database that is selected, and
for clients of RESP 3, as the reply depends on it). Only commands of our own table are forwarded; what a client
says about its own connection (HELLO, SELECT, CLIENT ...) is answered here, and a transaction is kept here until it
is whole. A client that watches keys, or waits for one, has a connection of its own from then on: Redis remembers
these by connection. A command is never sent twice: when Redis goes away, those under way are answered with an
error, and the next one connects anew.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field

from smtstack.errors import ConfigError
from workloads.kv.arguments import Session
from workloads.kv.backend import Backend
from workloads.kv.commands_transactions import enqueue, execute, rejected
from workloads.kv.entry import Entry, look_up
from workloads.kv.resp import OK, Command, ReplyCutter, RespError, command, error, printable
from workloads.kv.store import MAX_DATABASES, CommandError, open_databases
from workloads.kv.waiting import Done
from workloads.options.common import parse_address

_CHUNK = 262_144
#: Seconds that connecting may take: at the start, and later, when clients wait.
_PATIENCE_S = 5.0
_IMPATIENCE_S = 0.2
#: Between attempts to connect anew.
_RETRY_NS = 1_000_000_000
#: Commands of one client that are under way at a time.
_MOST = 256
#: Stateful commands that are not forwarded, or only with all that belongs to them.
_TRANSACTION = frozenset(("multi", "exec", "discard", "unwatch"))
#: In the place of a version: what was watched is not any more.
_LOST = -1
#: ... and what it is does not matter here.
_SOMETHING = (0, b"")
#: Whose a connection is: clients' of a version of RESP and a database, or one client's own.
_Where = tuple[int, int] | Session


@dataclass(slots=True, eq=False)
class _Batch:
    """Commands of one client and what has come of them."""

    done: Done
    replies: list[bytes] = field(default_factory=list)
    left: int = 0
    alone: set[int] = field(default_factory=set)
    """Replies that come as the only one of a transaction."""


_NOBODY = _Batch(lambda _reply: None)


class _Lost(Exception):
    """The connection to Redis is of no use any more; the text says why."""


class _Connection:
    """One connection to Redis, with a database selected. Raises :class:`_Lost`."""

    def __init__(self, where: str, patience_s: float, version: int, database: int = 0) -> None:
        kind, address = parse_store(where)
        try:
            self._sock = socket.socket(kind, socket.SOCK_STREAM)
        except OSError as e:
            raise _Lost(e.strerror or "no socket") from None
        try:
            self._sock.settimeout(patience_s)
            self._sock.connect(address)
            if kind == socket.AF_INET:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as e:
            self._sock.close()
            raise _Lost(e.strerror or "no answer") from None
        self._cutter = ReplyCutter()
        self._patience_s = patience_s
        # Before anything else: nothing must be done in another database than its own.
        if database and (reply := self.ask(["SELECT", database])) != OK:
            self._sock.close()
            raise _Lost(f"SELECT {database}: {printable(reply[:100])}")
        self._sock.setblocking(False)
        self._out = bytearray()
        #: Whose reply comes next, and which of theirs it is.
        self.waiting: deque[tuple[_Batch, int]] = deque()
        if version == 3:
            self.send(command(["HELLO", 3]), _Batch(lambda _reply: None), 0)

    def ask(self, args: list[str | int]) -> bytes:
        """The reply to a command, before there are others."""
        replies: list[bytes] = []
        try:
            self._sock.settimeout(self._patience_s)
            self._sock.sendall(command(args))
            while not replies:
                data = self._sock.recv(_CHUNK)
                if not data:
                    raise _Lost("it closed the connection")
                replies = self._cutter.take(data)
        except (OSError, RespError, ValueError) as e:
            self._sock.close()
            raise _Lost(f"it does not answer {args[0]}: {e}") from None
        self._sock.setblocking(False)
        return replies[0]

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, data: bytes, batch: _Batch, index: int) -> None:
        """Keep it for :meth:`flush`."""
        self._out += data
        batch.left += 1
        self.waiting.append((batch, index))

    def flush(self) -> bool:
        """Send; whether all is gone."""
        out = self._out
        while out:
            try:
                sent = self._sock.send(out)
            except BlockingIOError:
                return False
            except OSError as e:
                raise _Lost(e.strerror or "the connection failed") from None
            del out[:sent]
        return True

    def receive(self) -> list[bytes]:
        """Replies that have come."""
        replies: list[bytes] = []
        while True:
            try:
                data = self._sock.recv(_CHUNK)
            except BlockingIOError:
                return replies
            except OSError as e:
                raise _Lost(e.strerror or "the connection failed") from None
            if not data:
                raise _Lost("it closed the connection")
            try:
                replies += self._cutter.take(data)
            except (RespError, ValueError) as e:
                raise _Lost(f"it does not speak RESP: {e}") from None
            if len(data) < _CHUNK:
                return replies

    def close(self) -> None:
        self._sock.close()


def parse_store(text: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """``redis:unix:/path`` or ``redis:IP:PORT``; raises :class:`ConfigError`."""
    where = text.removeprefix("redis:")
    if where.startswith("unix:/"):
        return socket.AF_UNIX, where.removeprefix("unix:")
    try:
        return socket.AF_INET, parse_address(where)
    except ConfigError as e:
        raise ConfigError(f"--store {text}: neither redis:unix:/path nor redis:IP:PORT: {e}") from None


class RedisStore(Backend):
    """Redis at ``where``, as :func:`parse_store` takes it. Raises :class:`ConfigError` if it is not there."""

    def __init__(self, where: str) -> None:
        parse_store(where)
        self._where = where
        super().__init__()
        self._epoll = select.epoll()
        #: By the version of RESP and the database: those that clients share; or by the client whose own it is.
        self._connections: dict[_Where, _Connection] = {}
        self._retry_at = 0
        self._forwarded = self._lost = 0
        try:
            #: Nothing is in them: commands that are done here do not look at keys.
            self._keys = open_databases(self._count())
            self._connect((2, 0), Session(), _PATIENCE_S)
        except _Lost as e:
            self._epoll.close()
            raise ConfigError(f"--store {where}: no Redis there ({e}); start one: redis-server --port 0 "
                              f"--unixsocket /path, or name its IP:PORT") from None

    def _count(self) -> int:
        """How many databases Redis has: 1 if it does not say, so that there is nothing to select."""
        connection = _Connection(self._where, _PATIENCE_S, 2)
        reply = connection.ask(["CONFIG", "GET", "databases"])
        connection.close()
        number = reply.rstrip().rpartition(b"\r\n")[2]
        return min(int(number), MAX_DATABASES) if reply[:1] == b"*" and number.isdigit() else 1

    def submit(self, session: Session, commands: deque[Command], done: Done, limit: int) -> bytes | None:
        batch = _Batch(done)
        version, database = session.version, session.database
        replies = batch.replies
        session.last_ns = time.monotonic_ns()
        # What comes behind another version or database goes over another connection, so after this.
        while (commands and len(replies) < _MOST and not session.closing
               and (session.version, session.database) == (version, database)):
            args = commands.popleft()
            session.last = args[0]
            try:
                entry = look_up(args)
                waits = entry.stateful and entry.name not in _TRANSACTION and session.queue is None
                alone = waits and not session.patient and entry.name != "watch"
                own = session in self._connections or (waits and not alone)
                if own and session not in self._connections and batch.left:
                    # What is under way on the connection it shares comes first.
                    commands.appendleft(args)
                    break
                self.facts.commands += 1
                local = self._local(session, entry, args)
                if local is not None:
                    replies.append(local)
                    continue
                where: _Where = session if own else (version, database)
                connection = self._connections.get(where) or self._connect(where, session)
                if alone and session.watching:
                    raise CommandError(f"ERR {entry.name.upper()} is not possible between WATCH and EXEC with "
                                       f"--store redis in a message")
                if alone:
                    # Redis lets nothing wait in a transaction.
                    session.queue, args = [args], [b"EXEC"]
                    batch.alone.add(len(replies))
                self._forward(connection, session, args, batch)
            except CommandError as e:
                replies.append(error(str(rejected(args, session, e))))
            except _Lost as e:
                replies.append(self._gone(e, "not done"))
        return b"".join(replies) if not batch.left else None

    def _local(self, session: Session, entry: Entry, args: Command) -> bytes | None:
        """The reply to what is done here; None: it is for Redis. Raises :class:`CommandError`."""
        name = entry.name
        if entry.ours:
            raise CommandError(f"ERR {name.upper()} is not possible with --store redis; WATCH on a connection is")
        if session.queue is not None and not entry.immediate:
            if entry.local and name not in {"ping", "echo"}:
                raise CommandError(f"ERR {name.upper()} is not possible within a transaction with --store redis")
            return enqueue(session, args)
        if entry.local or name in {"multi", "discard"}:
            reply = execute(self._keys, args, session, 0)
            if name in {"discard", "reset"}:
                self._tell(session, [b"UNWATCH"])
            if name in {"hello", "reset"}:
                self._tell(session, [b"HELLO", b"%d" % session.version])
            if name in {"select", "reset"}:
                self._tell(session, [b"SELECT", b"%d" % session.database])
            return reply
        if name == "exec":
            if session.queue is None:
                return error("ERR EXEC without MULTI")
            lost = _LOST in session.watching.values()
            if session.aborted or lost:
                session.forget_transaction()
                self._tell(session, [b"UNWATCH"])
                return error("EXECABORT the store behind this server was lost meanwhile" if lost else
                             "EXECABORT Transaction discarded because of previous errors.")
        elif name == "watch":
            if session.queue is not None:
                return error("ERR WATCH inside MULTI is not allowed")
            session.watching.setdefault(_SOMETHING, 0)
        elif name == "unwatch":
            session.watching = {}
        return None

    def _tell(self, session: Session, args: Command) -> None:
        """Something about a client's own connection, if it has one."""
        connection = self._connections.get(session)
        if connection is not None:
            connection.send(command(args), _NOBODY, 0)

    def _forward(self, connection: _Connection, session: Session, args: Command, batch: _Batch) -> None:
        """A command, or for EXEC the whole transaction, of which only the last reply is the client's."""
        if session.queue is not None:
            for part in ([b"MULTI"], *session.queue):
                connection.send(command(part), _NOBODY, 0)
            session.forget_transaction()
        connection.send(command(args), batch, len(batch.replies))
        self._forwarded += 1
        batch.replies.append(b"")

    def forget(self, session: Session) -> None:
        super().forget(session)
        connection = self._connections.pop(session, None)
        if connection is not None:
            self._epoll.unregister(connection)
            connection.close()

    def turn(self) -> None:
        # A client that is answered may submit more, which is to leave in this turn.
        for where, connection in list(self._connections.items()):
            if self._connections.get(where) is not connection:
                continue  # Its client has left just now.
            try:
                for reply in connection.receive():
                    if not connection.waiting:
                        raise _Lost("it says what nobody asked")
                    batch, index = connection.waiting.popleft()
                    self._settle(batch, index, reply)
            except _Lost as e:
                self._lose(where, e)
        for where, connection in list(self._connections.items()):
            try:
                self._epoll.modify(connection, select.EPOLLIN | (0 if connection.flush() else select.EPOLLOUT))
            except _Lost as e:
                self._lose(where, e)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def counters(self) -> dict[str, int]:
        return {"commands": self.facts.commands, "commands_forwarded": self._forwarded, "store_lost": self._lost}

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._epoll.close()

    def _connect(self, where: _Where, session: Session, patience_s: float = _IMPATIENCE_S) -> _Connection:
        now = time.monotonic_ns()
        if now < self._retry_at:
            raise _Lost("tried just now")
        try:
            connection = _Connection(self._where, patience_s, session.version, session.database)
        except _Lost:
            self._retry_at = now + _RETRY_NS
            raise
        self._connections[where] = connection
        self._epoll.register(connection, select.EPOLLIN)
        return connection

    def _settle(self, batch: _Batch, index: int, reply: bytes) -> None:
        if batch.replies:
            batch.replies[index] = reply.removeprefix(b"*1\r\n") if index in batch.alone else reply
        batch.left -= 1
        if not batch.left:
            batch.done(b"".join(batch.replies))

    def _lose(self, where: _Where, why: _Lost) -> None:
        connection = self._connections.pop(where)
        if isinstance(where, Session) and where.watching:
            where.watching = {_SOMETHING: _LOST}
        self._epoll.unregister(connection)
        connection.close()
        self._lost += 1
        for batch, index in connection.waiting:
            self._settle(batch, index, self._gone(why, "perhaps done"))

    def _gone(self, why: _Lost, done: str) -> bytes:
        return error(f"ERR the store behind this server, {self._where}, does not answer ({why}): {done}")
