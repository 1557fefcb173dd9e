"""The one contract under which every workload runs over every transport.

A :class:`Caller` begins :class:`Call` s at any of its peers and finishes them in any order; a
:class:`Server` hands each request to a handler, which answers now or later. Neither has a thread: both move
while somebody drives them, or are polled by an event loop that watches ``fileno()`` and ``next_wake()``, so
that one process can serve several transports at once::

    wait until a fileno() is readable, or the earliest next_wake(); then poll() all of them

Times are ``time.perf_counter_ns()`` where they are measured, ``time.monotonic_ns()`` where they are waited for.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from smtstack.errors import PeerError
from smtstack.socket import Address

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10 has none


def rpc_to(peer: Address) -> str:
    """What failed, for people."""
    return f"RPC to {peer[0]}:{peer[1]}"


class Call:
    """One request and what became of it: ``response``, or ``error``."""

    #: The transport's own, from :meth:`Caller.begin` on.
    handle: object
    number: int

    __slots__ = ("data", "ended", "error", "handle", "number", "peer", "response", "started")

    def __init__(self, data: bytes, peer: int = 0, started: int = 0) -> None:
        self.data = data
        #: Index into the caller's peers.
        self.peer = peer
        #: When it was begun, or should have been (open loop).
        self.started = started
        #: When it finished; 0: under way.
        self.ended = 0
        self.response: bytes | None = None
        self.error: PeerError | None = None


class Incoming(Protocol):
    """A request to be answered, once, now or later, in any order."""

    data: bytes

    @property
    def longest(self) -> int:
        """Bytes of the longest answer that this client takes."""

    def reply(self, data: bytes) -> bool:
        """Answer; False if the client is gone."""


Handler = Callable[[Incoming], object]


class Transport(ABC):
    """What both ends have in common."""

    @abstractmethod
    def fileno(self) -> int:
        """Readable when there is something to do. The same for the whole life."""

    @abstractmethod
    def next_wake(self) -> int | None:
        """``time.monotonic_ns()`` at which to poll at the latest; None: not before it is readable."""

    @abstractmethod
    def poll(self) -> None:
        """Do all that can be done without waiting."""

    @abstractmethod
    def drive(self, timeout_s: float) -> None:
        """Wait, at most this long, until there is something to do, and do it. That may finish no call yet."""

    @abstractmethod
    def linger(self, timeout_s: float) -> None:
        """Let what is under way towards the peers arrive, at most this long."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """What the transport counts, since it was opened."""

    def drops(self) -> tuple[int, int]:
        """(received, sent) frames that this host's own buffers lost. Streams never see any."""
        return 0, 0

    def take_late_ns(self) -> int:
        """Most that a protocol timer of ours was late since this was asked last."""
        return 0

    @abstractmethod
    def close(self) -> None:
        """Give everything back. What is under way is lost."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class Caller(Transport):
    """Begins calls at ``peers``. Finished ones are in ``finished``: whoever drives takes them out."""

    def __init__(self, peers: Sequence[Address]) -> None:
        self.peers = list(peers)
        self.finished: deque[Call] = deque()

    def prepare(self, concurrency: int) -> None:
        """Get ready for that many calls under way. Raises PeerError if a peer cannot be reached."""

    @abstractmethod
    def begin(self, call: Call) -> None:
        """Send the request. Raises ConfigError where the peer can never be asked (no key for it)."""

    @abstractmethod
    def abort(self, call: Call) -> None:
        """Give up a call that is under way: it finishes now, with an error."""

    def fail(self, call: Call, error: PeerError) -> None:
        """The call finishes now, with this error."""
        call.error = error
        call.ended = time.perf_counter_ns()
        self.finished.append(call)


class Server(Transport):
    """Gives requests to its handler."""

    #: Why the client that failed last did, and who it was; "": none has.
    last_failure: str = ""

    def failure(self) -> str:
        """Why the client that failed last did (smt: why there is no session), and who it was; empty: none has."""
        return self.last_failure
