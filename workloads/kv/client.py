"""A client of key-value servers that speak RESP, over every transport.

:func:`open_caller` gives the contract's :class:`Caller`; its calls are :class:`KvCall`, one or more commands each.
Over tcp, tls and ktls these are bytes on a stream, as any Redis client sends them, and replies come in order; over
smt, homa, linux and upstream a call is one RPC. :class:`KvClient` is the blocking client on top of it::

    with KvClient(Settings("tcp"), ("10.0.0.2", 6379)) as client:
        client.command("SET", "foo", "bar")
        client.pipeline([("GET", "foo"), ("INCR", "hits")])

        client.transaction([("INCR", "a"), ("INCR", "b")])

A command that may change something is sent at most once: if its reply does not come, nobody here knows whether it
was carried out, and :class:`KvUnknown` says so. Commands that only read are tried again.
"""

from __future__ import annotations

import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from smtstack.errors import ConfigError, PeerError, SmtError, Unsupported
from smtstack.socket import Address
from workloads import transports
from workloads.kv.commands import COMMANDS
from workloads.transports.contract import Call, Caller
from workloads.transports.framing import FramingError, Inbox
from workloads.transports.stream import Stream
from workloads.transports.stream_caller import StreamCaller

try:
    import hiredis
except ImportError:  # an extra
    hiredis = None  # type: ignore[assignment]

Arg = bytes | str | int | float
#: Commands that change nothing, whose reply does not depend on how often they were sent.
READS = frozenset(e.name.upper() for e in COMMANDS.values()
                  if not (e.write or e.local or e.stateful or e.immediate)) | {"PING", "ECHO", "COMMAND", "CONFIG",
                                                                               "SELECT"}
#: ... and words that make one of these something else.
_CHANGING = {"CONFIG": "GET"}
#: Seconds to wait for a reply, and how often a read is sent again.
TIMEOUT_S = 5.0
RETRIES = 2
#: In the place of a connection that is not there any more.
_NOWHERE = object()


class KvError(SmtError):
    """The server's answer is an error: ``ERR ...``, ``WRONGTYPE ...``."""


class KvUnknown(PeerError):
    """No reply came, and whether the commands were carried out is unknown."""


def require_hiredis() -> None:
    """Raises :class:`Unsupported` where there is none."""
    if hiredis is None:
        raise Unsupported("the key-value client needs hiredis: make venv, or pip install hiredis")


def pack(commands: Iterable[Sequence[Arg]]) -> bytes:
    """Commands as they go on the wire."""
    pack_command: Any = hiredis.pack_command  # its stub takes commands of one word only
    return b"".join([pack_command(tuple(command)) for command in commands])


class KvCall(Call):
    """Commands, and once it has finished their :meth:`replies`."""

    __slots__ = ("commands",)

    def __init__(self, commands: Sequence[Sequence[Arg]], peer: int = 0) -> None:
        super().__init__(pack(commands), peer)
        #: How many replies belong to it.
        self.commands = len(commands)

    def replies(self) -> list[Any]:
        """One for each command: bytes, int, list, None; an error is a ``hiredis.ReplyError``.

        Raises PeerError if the response is not that.
        """
        response: Any = self.response
        if isinstance(response, list):
            return response
        reader = hiredis.Reader()
        reader.feed(response)
        try:
            replies = [reader.gets() for _command in range(self.commands)]
        except hiredis.ProtocolError as e:
            raise PeerError(f"the response is not RESP: {e}") from None
        if reader.has_data() or any(reply is False for reply in replies):
            raise PeerError(f"the response does not hold {self.commands} replies")
        return replies


class ReplyInbox(Inbox):
    """Cuts a stream of replies: those of a call together, calls in the order in which they were sent."""

    __slots__ = ("_calls", "_reader", "_replies")

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._reader = hiredis.Reader()
        #: (number of the call, its replies) still to come.
        self._calls: deque[tuple[int, int]] = deque()
        self._replies: list[Any] = []

    def __len__(self) -> int:
        """1 if there is something of a call that is not whole."""
        return int(bool(self._replies) or self._reader.has_data())

    def expect(self, number: int, replies: int) -> None:
        """A call was sent."""
        self._calls.append((number, replies))

    def take(self, data: bytes) -> list[tuple[int, Any]]:
        """(number, replies) of the calls that ``data`` completes; raises :class:`FramingError`."""
        done: list[tuple[int, Any]] = []
        reader, calls = self._reader, self._calls
        reader.feed(data)
        try:
            while (reply := reader.gets()) is not False:
                if not calls:
                    raise FramingError("a reply to nothing that was asked")
                self._replies.append(reply)
                number, wanted = calls[0]
                if len(self._replies) == wanted:
                    calls.popleft()
                    done.append((number, self._replies))
                    self._replies = []
        except hiredis.ProtocolError as e:
            raise FramingError(f"not RESP: {e}") from None
        return done


class RespCaller(StreamCaller):
    """Calls as RESP on streams, pipelined. Every call is a :class:`KvCall`."""

    def frame(self, _number: int, data: bytes) -> bytes:
        """RESP needs no frame: replies come in order."""
        return data

    def begin(self, call: Call) -> None:
        super().begin(call)
        stream = call.handle
        if isinstance(stream, Stream) and isinstance(call, KvCall):
            assert isinstance(stream.inbox, ReplyInbox)
            stream.inbox.expect(call.number, call.commands)


def open_caller(settings: transports.Settings, peers: Sequence[Address], connections: int = 0) -> Caller:
    """Open a caller for :class:`KvCall` s; arguments and errors as of :func:`workloads.transports.open_caller`."""
    require_hiredis()
    if settings.transport in transports.MESSAGE_TRANSPORTS:
        return transports.open_caller(settings, peers, connections)
    make = transports.stream_maker(settings, server=False)

    def make_resp(sock: socket.socket, peer: Address) -> Stream:
        stream = make(sock, peer)
        stream.inbox = ReplyInbox(settings.limit)
        return stream

    local_ip = settings.local[0] if settings.local is not None else None
    return RespCaller(make_resp, peers, connections, local_ip, settings.waiting)


def finish(caller: Caller, call: Call, timeout_s: float) -> None:
    """Begin the only call that is under way, and wait for its end. Raises what it failed with."""
    caller.begin(call)
    end = time.monotonic() + timeout_s
    while call not in caller.finished:
        left = end - time.monotonic()
        if left <= 0:
            caller.abort(call)
            break
        caller.drive(left)
    caller.finished.clear()
    if call.error is not None:
        raise call.error


def is_error(reply: Any) -> bool:
    """Whether the server says that a command failed."""
    return isinstance(reply, hiredis.ReplyError)


def is_read(command: Sequence[Arg]) -> bool:
    """Whether a command can be sent again without doing anything twice."""
    words = [_word(part) for part in command[:2]]
    if words[0] in _CHANGING:
        return words[1:] == [_CHANGING[words[0]]]
    return words[0] in READS


class KvClient:
    """One server, one caller, blocking. Not for several threads.

    With a ``database`` (which is asked for at once, so what :meth:`command` raises may come here) every request
    begins with its SELECT: a message knows of no other, and a connection may be a new one.
    """

    def __init__(self, settings: transports.Settings, peer: Address, timeout_s: float = TIMEOUT_S,
                 retries: int = RETRIES, database: int | None = None) -> None:
        self._caller = open_caller(settings, [peer], 1)
        self._timeout_s = timeout_s
        self._retries = retries
        #: None: none was chosen.
        self._database: int | None = None
        self._in_messages = settings.transport in transports.MESSAGE_TRANSPORTS
        #: Of :meth:`watch`: versions by database and key, in messages; the connection that Redis's WATCH was said
        #: on.
        self._versions: dict[int | None, dict[bytes, int]] = {}
        self._watching: object = None
        self._connection: object = None
        if database is not None:
            try:
                self.select(database)
            except SmtError:
                self.close()
                raise

    def command(self, *command: Arg) -> Any:
        """The reply; raises :class:`KvError` if it is an error, and what :meth:`pipeline` raises."""
        (reply,) = self.pipeline([command])
        if is_error(reply):
            raise KvError(str(reply))
        return reply

    def select(self, database: Arg) -> None:
        """The database of what follows, over every transport. Raises as :meth:`command`."""
        (reply,) = self._pipeline([("SELECT", database)])
        if is_error(reply):
            raise KvError(str(reply))
        self._database = int(database)

    def pipeline(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        """All replies; errors are among them.

        Raises :class:`KvUnknown` if they may have been carried out and no reply tells, another PeerError if they
        were not, or changed nothing.
        """
        if not commands or not all(commands):
            raise ConfigError("there is no command")
        if self._database is not None:
            selected, *replies = self._pipeline([("SELECT", self._database), *commands])
            if is_error(selected):
                raise KvError(f"{selected}: the server has fewer databases than before, and took "
                              f"these commands for another one")
            return replies
        return self._pipeline(commands)

    def _pipeline(self, commands: Sequence[Sequence[Arg]]) -> list[Any]:
        once = not all(map(is_read, commands))
        for left in reversed(range(1 if once else 1 + self._retries)):
            # A lost connection is made anew. If that fails, nothing was sent.
            self._caller.prepare(1)
            call = KvCall(commands)
            try:
                finish(self._caller, call, self._timeout_s)
                return call.replies()
            except PeerError as e:
                if once:
                    names = ", ".join(dict.fromkeys(_word(command[0]) for command in commands))
                    raise KvUnknown(f"{e}; whether {names} was carried out is unknown") from None
                if not left:
                    raise
            finally:
                # None if it never left.
                self._connection = getattr(call, "handle", None)
        raise AssertionError

    def watch(self, *keys: Arg) -> None:
        """The next :meth:`transaction` is done only if none of these keys is changed from now on."""
        if self._in_messages:
            wanted = [key if isinstance(key, bytes) else str(key).encode() for key in keys]
            for key, version in zip(wanted, self.command("SMT.VERSIONS", *wanted), strict=True):
                self._versions.setdefault(self._database, {}).setdefault(key, version)
            return
        before = self._watching
        self.command("WATCH", *keys)
        # Watched on another connection than what was watched before: the server has forgotten that.
        self._watching = self._connection if before in {None, self._connection} else _NOWHERE

    def unwatch(self) -> None:
        """UNWATCH: go on as if nothing was watched."""
        self._versions = {}
        watching, self._watching = self._watching, None
        if watching is not None:
            self.command("UNWATCH")

    def transaction(self, commands: Sequence[Sequence[Arg]]) -> list[Any] | None:
        """Commands that are done together, nothing between them; it is one message, and sent at most once.

        Their replies, errors among them; None: nothing was done, as a key that was watched may have changed (or
        the connection was lost, which has the server forget who watches what). Raises :class:`KvError` if one of
        them is no command, so that none was done, and what :meth:`pipeline` raises.
        """
        versions, self._versions = self._versions, {}
        watching, self._watching = self._watching, None
        if watching is not None:
            self._caller.prepare(1)
            if not isinstance(watching, Stream) or not watching.watched:
                self.command("UNWATCH")
                return None
        # In front of MULTI, and with it in one message.
        demand: list[Sequence[Arg]] = []
        for database, of_keys in versions.items():
            watch = ("SMT.WATCH", *(word for pair in of_keys.items() for word in pair))
            if database == self._database:
                demand.append(watch)
            else:
                demand += [("SELECT", database or 0), watch, ("SELECT", self._database or 0)]
        replies = self.pipeline([*demand, ("MULTI",), *commands, ("EXEC",)])
        done = replies[-1]
        wrong = next(filter(is_error, replies), None)
        if is_error(done):
            raise KvError(str(done) if wrong is done else f"{done} ({wrong})")
        if done is not None and not isinstance(done, list):
            raise PeerError("the reply to EXEC is no list")
        return done

    def close(self) -> None:
        """Give everything back."""
        self._caller.close()

    def __enter__(self) -> KvClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _word(part: Arg) -> str:
    return (part.decode("latin-1") if isinstance(part, bytes) else str(part)).upper()
