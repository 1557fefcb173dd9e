"""The front ends of the key-value store, and the one loop that serves all of them.

Over tcp, tls and ktls a connection carries RESP as any Redis client speaks it. Over smt, homa, linux and upstream
an RPC carries whole commands and its response their replies. A connection has a session (its RESP version, its
name); an RPC starts with a new one, so HELLO 3 holds for the commands behind it in the same RPC, and a
transaction, from MULTI to EXEC, is within one. A connection can wait (BLPOP); an RPC is answered at once, as
nobody could tell whether its client still wants what would be taken off a list for it.
"""

from __future__ import annotations

import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial

from smtstack.errors import ConfigError
from smtstack.io.processors import outnumbered
from smtstack.ringio.queue import IoRing
from smtstack.socket import Address
from smtstack.waiting import AS_TCP, Waiter, Waiting
from workloads import transports
from workloads.kv.arguments import Session
from workloads.kv.backend import Backend
from workloads.kv.commands import COMMANDS
from workloads.kv.entry import look_up
from workloads.kv.limits import Limits
from workloads.kv.resp import Command, CommandParser, RespError, error, parse_message
from workloads.kv.store import CommandError
from workloads.kv.strangers import InlineGuard, Stranger
from workloads.transports import MESSAGE_TRANSPORTS, Settings
from workloads.transports.contract import Incoming, Server
from workloads.transports.epoll import StreamMaker, wait
from workloads.transports.stream import Stream, StreamError
from workloads.transports.stream_server import MAX_BACKLOG, StreamServer

#: Replies gathered before they are sent.
_BATCH = 65_536
#: What begins and ends transactions.
_TRANSACTION = frozenset((b"MULTI", b"EXEC", b"DISCARD", b"RESET", b"QUIT"))
#: Bytes that a client may send after it was told that it is over.
_DRAIN = 1 << 20
#: And how long it may stay after that.
_PARTING_NS = 5_000_000_000


def _is_valid(args: Command) -> bool:
    try:
        look_up(args)
    except CommandError:
        return False
    return True


_GUARD = InlineGuard([name.upper().encode() for name in COMMANDS], _is_valid)


class _Connection:
    """A client on a stream."""

    __slots__ = ("busy", "commands", "done", "drained", "parser", "session", "stream", "wrong")

    def __init__(self, stream: Stream, limits: Limits, session: Session,
                 answer: Callable[[_Connection, bytes], None]) -> None:
        self.stream = stream
        self.parser = CommandParser(limits, _GUARD.check)
        self.session = session
        #: What is to be done, in order.
        self.commands: deque[Command] = deque()
        #: The store is at it.
        self.busy = False
        #: What the store calls with replies that took it some time.
        self.done = partial(answer, self)
        #: What was wrong behind the last command; it ends there.
        self.wrong: RespError | None = None
        #: Bytes it has sent since it was told so.
        self.drained = 0


class RespStreamServer(StreamServer):
    """RESP on streams, one command after the other for each client."""

    def __init__(self, make: StreamMaker, local: Address, limits: Limits, store: Backend,
                 waiting: Waiting = AS_TCP, ring: IoRing | None = None) -> None:
        super().__init__(make, local, limits.query, lambda _request: None, waiting, ring=ring)
        self._limits = limits
        self._store = store
        #: Clients that were told that it is over, and when they are cut off.
        self._parting: dict[Stream, int] = {}
        self._clients: dict[int, _Connection] = {}

    def received(self, stream: Stream, data: bytes) -> None:
        client = self._clients.get(stream.fd)
        if client is None:
            session = self._store.facts.connect(*[f"{ip}:{port}" for ip, port in (stream.peer, self.address)])
            session.patient = True
            client = self._clients[stream.fd] = _Connection(stream, self._limits, session, self._answer)
        if client.session.closing:
            client.drained += len(data)
            if client.drained > _DRAIN:
                self.forget(stream)
            return
        if client.wrong is not None:
            return
        commands, client.wrong = client.parser.take(data)
        client.commands += commands
        self._advance(client)

    def interest(self, stream: Stream) -> None:
        """Wait for what it waits for now; a client that has read its replies gets more."""
        client = self._clients.get(stream.fd)
        if client is None:
            super().interest(stream)
        else:
            self._advance(client)

    def _handle(self, events: list[tuple[int, int]]) -> None:
        super()._handle(events)
        # Close what should have been closed by the client.
        if self._parting:
            now = time.monotonic_ns()
            for stream in [stream for stream, until in self._parting.items() if until <= now]:
                self.forget(stream)

    def forget(self, stream: Stream) -> None:
        self._parting.pop(stream, None)
        client = self._clients.pop(stream.fd, None)
        if client is not None:
            # An answer of the store may still come.
            client.commands.clear()
            client.session.closing = True
            self._store.forget(client.session)
        super().forget(stream)

    def _advance(self, client: _Connection) -> None:
        """Do what can be done for a client, and watch for what it waits for."""
        stream, commands = client.stream, client.commands
        while commands and not client.busy and not client.session.closing and stream.backlog <= MAX_BACKLOG:
            client.busy = True
            replies = self._store.submit(client.session, commands, client.done, _BATCH)
            if replies is None:
                break
            client.busy = False
            stream.send(replies)
        if not stream.watched:
            return
        if not client.busy and (client.session.closing or (client.wrong is not None and not commands)):
            self._part(client)
            return
        reading = 0 if commands or client.wrong is not None else select.EPOLLIN
        self.watch(stream, reading | (select.EPOLLOUT if stream.writing else 0) or select.EPOLLRDHUP)

    def _answer(self, client: _Connection, replies: bytes) -> None:
        """The store has done what it was given."""
        stream = client.stream
        client.busy = False
        if not stream.watched:
            return
        try:
            stream.send(replies)
            self._advance(client)
        except StreamError as e:
            self.drop(stream, str(e))

    def _part(self, client: _Connection) -> None:
        """Say that it is over, once everything is with the kernel.

        The client closes. If we did, while it still sends, the kernel would cut it off before it has read why. We
        do that only after a while.
        """
        stream = client.stream
        if client.wrong is not None and not client.session.closing:
            client.session.closing = True
            self._counters["protocol_errors"] += 1
            why: object = client.wrong
            if isinstance(client.wrong, Stranger):
                self._counters["strangers"] += 1
                why = f"closed before anything was done: it {client.wrong.seen}"
            self.last_failure = f"{stream.peer[0]}:{stream.peer[1]}: {why}"
            stream.send(client.wrong.reply())
        client.commands.clear()
        if not stream.writing:
            self._parting.setdefault(stream, time.monotonic_ns() + _PARTING_NS)
            with suppress(OSError):
                stream.finish()
        self.watch(stream, select.EPOLLOUT if stream.writing else select.EPOLLIN)


class RespMessages:
    """RESP in messages: the handler of a :class:`~workloads.transports.contract.Server`."""

    def __init__(self, store: Backend, limit: int) -> None:
        self._store = store
        self._limit = limit
        self.protocol_errors = 0

    def handle(self, request: Incoming) -> None:
        """Do what a request says, or nothing of it if that is not RESP."""
        commands, wrong = parse_message(request.data, self._limit)
        if wrong is not None:
            self.protocol_errors += 1
            request.reply(wrong.reply())
            return
        last = next((name for args in reversed(commands) if (name := args[0].upper()) in _TRANSACTION), b"")
        if last == b"MULTI":
            request.reply(_UNFINISHED * len(commands))
            return
        self._store.facts.messages += 1
        session = Session(facts=self._store.facts)
        self._go_on(request, session, deque(commands), len(commands), b"")

    def _go_on(self, request: Incoming, session: Session, commands: deque[Command], count: int,
               replies: bytes) -> None:
        # What this session has agreed on may be less than what we take.
        limit = min(self._limit, request.longest)
        while commands and len(replies) <= limit and not session.closing:
            before = replies

            def done(more: bytes, before: bytes = before) -> None:
                self._go_on(request, session, commands, count, before + more)

            more = self._store.submit(session, commands, done, limit - len(replies))
            if more is None:
                return
            replies = replies + more if replies else more
        if len(replies) > limit:
            replies = error(f"ERR the replies are longer than a message, which has {limit} bytes "
                            f"(max_message_length); "
                            f"{count - len(commands)} of {count} commands were done")
        self._store.forget(session)
        request.reply(replies)


_UNFINISHED = error("ERR MULTI without EXEC: a transaction is one message, from MULTI to EXEC; nothing of this "
                    "message was done")


def open_front(settings: Settings, store: Backend, limits: Limits,
               ring: IoRing | None = None) -> tuple[Server, RespMessages | None]:
    """A front end at ``settings.local``; ``limits`` are those of clients on streams. ``ring``: whose sockets they
    are, if not this process'.

    Raises :class:`ConfigError`, :class:`~smtstack.errors.Unsupported`.
    """
    if settings.transport in MESSAGE_TRANSPORTS:
        messages = RespMessages(store, settings.limit)
        return transports.open_server(settings, messages.handle), messages
    if settings.local is None:
        raise ConfigError("a server needs an address: --addr IP:PORT")
    return RespStreamServer(transports.stream_maker(settings, server=True), settings.local, limits, store,
                            settings.waiting, ring), None


class Service:
    """Front ends and their store, driven together."""

    def __init__(self, servers: Sequence[Server], store: Backend, waiting: Waiting = AS_TCP) -> None:
        self._servers = list(servers)
        self._store = store
        self._waiter = Waiter(waiting, outnumbered)
        self._epoll: select.epoll | None = None
        own = store.fileno()
        if len(servers) > 1 or own is not None:
            self._epoll = select.epoll()
            for fd in [*(s.fileno() for s in servers), *([] if own is None else [own])]:
                self._epoll.register(fd, select.EPOLLIN)

    def drive(self, timeout_s: float) -> None:
        """One turn: wait, at most this long, until there is something to do, and do it."""
        wakes = [self._store.next_wake()]
        if self._epoll is not None:
            wakes += [server.next_wake() for server in self._servers]
        if (wake := min(filter(None, wakes), default=None)) is not None:
            timeout_s = min(timeout_s, max(0, wake - time.monotonic_ns()) / 1e9)
        if self._epoll is None:
            self._servers[0].drive(timeout_s)
        else:
            wait(self._epoll, self._waiter, timeout_s)
            for server in self._servers:
                server.poll()
        self._store.turn()

    def linger(self, timeout_s: float) -> None:
        """Let what was answered arrive."""
        self._store.turn()
        for server in self._servers:
            server.linger(timeout_s)

    def drops(self) -> tuple[int, int]:
        """(received, sent) frames lost for want of buffer, over all front ends."""
        drops = [server.drops() for server in self._servers]
        return sum(d[0] for d in drops), sum(d[1] for d in drops)

    def take_late_ns(self) -> int:
        """Most that a protocol timer was late since this was asked last."""
        return max(server.take_late_ns() for server in self._servers)

    def close(self) -> None:
        """Front ends and store stay open: they are whose opened them."""
        if self._epoll is not None:
            self._epoll.close()
