"""A real Redis server as the store: our front ends forward what is about keys, and Redis does it.

Commands of all clients go to it on one connection (and one more for clients of RESP 3, as the reply depends on
it), pipelined. Only commands of our own table are forwarded, none of which changes anything about a connection;
what a client says about its own (HELLO, CLIENT, ...) is answered here. A command is never sent twice: when Redis
goes away, those under way are answered with an error, and the next one connects anew.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque

from smtstack.errors import ConfigError
from workloads.kv.arguments import Session
from workloads.kv.backend import Backend
from workloads.kv.commands import execute, look_up
from workloads.kv.resp import Command, ReplyCutter, RespError, array, bulk, command, error
from workloads.kv.store import CommandError, Keyspace
from workloads.kv.waiting import Done
from workloads.options import parse_address

_CHUNK = 262_144
#: Seconds that connecting may take: at the start, and later, when clients wait.
_PATIENCE_S = 5.0
_IMPATIENCE_S = 0.2
#: Between attempts to connect anew.
_RETRY_NS = 1_000_000_000
#: Commands of one client that are under way at a time.
_MOST = 256


class _Batch:
    """Commands of one client and what has come of them."""

    __slots__ = ("done", "left", "replies")

    def __init__(self, done: Done) -> None:
        self.done = done
        self.replies: list[bytes] = []
        self.left = 0


class _Lost(Exception):
    """The connection to Redis is of no use any more; the text says why."""


class _Connection:
    """One connection to Redis. Raises :class:`_Lost`."""

    def __init__(self, where: str, patience_s: float, version: int) -> None:
        kind, address = parse_store(where)
        self._sock = socket.socket(kind, socket.SOCK_STREAM)
        try:
            self._sock.settimeout(patience_s)
            self._sock.connect(address)
            if kind == socket.AF_INET:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as e:
            self._sock.close()
            raise _Lost(e.strerror or "no answer") from None
        self._sock.setblocking(False)
        self._cutter = ReplyCutter()
        self._out = bytearray()
        #: Whose reply comes next, and which of theirs it is.
        self.waiting: deque[tuple[_Batch, int]] = deque()
        if version == 3:
            self.send(command(["HELLO", 3]), _Batch(lambda _reply: None), 0)

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
        self._epoll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        #: Nothing is in it: commands that are done here do not look at keys.
        self._keys = Keyspace()
        self._retry_at = 0
        self._commands = self._forwarded = self._lost = 0
        try:
            self._connect(2, _PATIENCE_S)
        except _Lost as e:
            self._epoll.close()
            raise ConfigError(f"--store {where}: no Redis there ({e}); start one: redis-server --port 0 "
                              f"--unixsocket /path, or name its IP:PORT") from None

    def submit(self, session: Session, commands: deque[Command], done: Done, limit: int) -> bytes | None:
        batch = _Batch(done)
        version = session.version
        replies = batch.replies
        while commands and len(replies) < _MOST and not session.closing and session.version == version:
            args = commands.popleft()
            self._commands += 1
            try:
                local = look_up(args).local
            except CommandError as e:
                replies.append(error(str(e)))
                continue
            if local:
                replies.append(execute(self._keys, args, session, 0))
                continue
            try:
                connection = self._connections.get(version) or self._reconnect(version)
                connection.send(array([bulk(arg) for arg in args]), batch, len(replies))
            except _Lost as e:
                replies.append(self._gone(e, "not done"))
                continue
            self._forwarded += 1
            replies.append(b"")
        return b"".join(replies) if not batch.left else None

    def turn(self) -> None:
        # A client that is answered may submit more, which is to leave in this turn.
        for version, connection in list(self._connections.items()):
            try:
                for reply in connection.receive():
                    if not connection.waiting:
                        raise _Lost("it says what nobody asked")
                    batch, index = connection.waiting.popleft()
                    self._settle(batch, index, reply)
            except _Lost as e:
                self._lose(version, e)
        for version, connection in list(self._connections.items()):
            try:
                self._epoll.modify(connection, select.EPOLLIN | (0 if connection.flush() else select.EPOLLOUT))
            except _Lost as e:
                self._lose(version, e)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def counters(self) -> dict[str, int]:
        return {"commands": self._commands, "commands_forwarded": self._forwarded, "store_lost": self._lost}

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
        self._epoll.close()

    def _connect(self, version: int, patience_s: float) -> _Connection:
        connection = self._connections[version] = _Connection(self._where, patience_s, version)
        self._epoll.register(connection, select.EPOLLIN)
        return connection

    def _reconnect(self, version: int) -> _Connection:
        now = time.monotonic_ns()
        if now < self._retry_at:
            raise _Lost("tried just now")
        try:
            return self._connect(version, _IMPATIENCE_S)
        except _Lost:
            self._retry_at = now + _RETRY_NS
            raise

    def _settle(self, batch: _Batch, index: int, reply: bytes) -> None:
        if batch.replies:
            batch.replies[index] = reply
        batch.left -= 1
        if not batch.left:
            batch.done(b"".join(batch.replies))

    def _lose(self, version: int, why: _Lost) -> None:
        connection = self._connections.pop(version)
        self._epoll.unregister(connection)
        connection.close()
        self._lost += 1
        for batch, index in connection.waiting:
            self._settle(batch, index, self._gone(why, "perhaps done"))

    def _gone(self, why: _Lost, done: str) -> bytes:
        return error(f"ERR the store behind this server, {self._where}, does not answer ({why}): {done}")
