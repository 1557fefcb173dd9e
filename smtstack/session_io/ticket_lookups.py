"""Tickets looked up beside a loop that goes on meanwhile: threads ask DNS, the loop takes what they bring.

Only the questions are the threads'. What a ticket is worth is judged, and kept, in the loop's own.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from smtstack.errors import PeerError, SmtError
from smtstack.session.tickets import Ticket
from smtstack.session_io.ticket_dns import DnsTickets

#: Look-ups at a time; others wait for their turn.
MAX_LOOKUPS = 8
_Server = tuple[int, int]


class TicketLookups:
    """A :class:`~smtstack.session.tickets.TicketSource` that never waits.

    ``wake()`` is called in a thread of ours when something came: then call :meth:`collect`, and let those who
    wanted it ask again. Threads end when there is nothing to look up; none holds up the end of the process.
    """

    def __init__(self, source: DnsTickets, wake: Callable[[], None]) -> None:
        self._source = source
        self._wake = wake
        self._lock = threading.Lock()
        #: Of the threads, under the lock: what to look up next, and how many of them there are.
        self._wanted: deque[_Server] = deque()
        self._threads = 0
        #: What they bring.
        self._came: deque[tuple[_Server, tuple[Ticket, int] | SmtError]] = deque()
        #: Wanted, or being looked up.
        self._under_way: set[_Server] = set()
        #: Why there is no ticket, for those who ask for it again.
        self._failed: dict[_Server, SmtError] = {}

    def ticket(self, ip: int, port: int, utc: int) -> Ticket | None:
        """A verified ticket of that server; None: a thread looks it up. Raises :class:`PeerError`."""
        server = ip, port
        error = self._failed.pop(server, None)
        if error is not None:
            raise error
        known = self._source.known(ip, port, utc)
        if known is None and server not in self._under_way:
            self._source.lookups += 1
            self._under_way.add(server)
            self._look_up(server)
        return known

    def forget(self, ip: int, port: int) -> None:
        """The server did not take the ticket we had: ask again the next time."""
        self._source.forget(ip, port)

    def collect(self, utc: int) -> None:
        """Judge and keep what came; errors until the next call."""
        self._failed.clear()
        while self._came:
            server, came = self._came.popleft()
            self._under_way.discard(server)
            try:
                if isinstance(came, SmtError):
                    raise came
                self._source.keep(*server, *came, utc)
            except SmtError as e:
                self._failed[server] = e

    def close(self) -> None:
        """Look up nothing more."""
        with self._lock:
            self._wanted.clear()

    def _look_up(self, server: _Server) -> None:
        with self._lock:
            self._wanted.append(server)
            if self._threads == MAX_LOOKUPS:
                return
            self._threads += 1
        threading.Thread(target=self._work, daemon=True, name="smtnet ticket look-up").start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._threads -= 1
                    return
                server = self._wanted.popleft()
            came: tuple[Ticket, int] | SmtError = PeerError("the look-up broke off")
            try:
                came = self._source.ask(*server)
            except SmtError as e:
                came = e
            finally:
                self._came.append((server, came))
                self._wake()
