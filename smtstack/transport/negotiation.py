"""What an endpoint asks of whoever makes its sessions by talking to the peer.

Key files know all keys beforehand; a handshake does not, and needs packets of its own. They travel on the
*handshake plane*: packets of the same address, port and protocol with flag HANDSHAKE (header byte +11). The
endpoint passes them on unseen and sends what the negotiator has to send. On its own plane an endpoint of profile
``smt`` still sends nothing but sealed records.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

from smtstack.compiled import mypyc_attr
from smtstack.crypto.epochs import Session, SmtSession
from smtstack.crypto.keys import Endpoints, KeyStore
from smtstack.transport.params import MAX_MTU, TransportParams
from smtstack.transport.segment import Segment


class SessionUser(Protocol):
    """What a negotiator sees of its :class:`~smtstack.transport.endpoint.Endpoint`, which says what each does."""

    ip: int
    port: int
    params: TransportParams

    def install(self, ip: int, port: int, session: Session, now: int, *, max_message: int,
                mtu: int = MAX_MTU, overlay: bool = False, early: bool = False) -> None:
        """There is a session with this peer."""

    def refuse(self, ip: int, port: int, detail: str, now: int) -> None:
        """There will be no session with this peer."""

    def end_session(self, ip: int, port: int, detail: str, now: int) -> None:
        """The session with this peer is over."""

    def has_rpcs(self, ip: int, port: int) -> bool:
        """Whether RPCs with this peer are under way."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Negotiator(KeyStore):
    """A key store that makes sessions by handshakes. One belongs to one endpoint.

    Time is ``now``, as at :class:`~smtstack.transport.endpoint.Endpoint`. The negotiator answers by calling
    ``Endpoint.install``, ``Endpoint.refuse`` and ``Endpoint.end_session``.
    """

    makes = SmtSession

    def session(self, ends: Endpoints) -> Session | None:
        """Never at once: a packet of an unknown peer is held until a handshake says who that is."""
        return None

    @abstractmethod
    def attach(self, endpoint: SessionUser) -> None:
        """The endpoint this works for; called once, by it."""

    @abstractmethod
    def want(self, ip: int, port: int, now: int) -> None:
        """Requests wait for a session with this peer; called once until it is installed or refused."""

    @abstractmethod
    def lost(self, ip: int, port: int, now: int) -> None:
        """RPCs of ours timed out and the peer answers no others: it may have forgotten the session."""

    @abstractmethod
    def handle_packet(self, frame: bytes, now: int) -> None:
        """Take a frame of the handshake plane. Raises nothing."""

    @abstractmethod
    def poll_transmit(self, now: int) -> Segment | None:
        """The next segment of the handshake plane, or None."""

    @abstractmethod
    def next_timeout(self) -> int | None:
        """When to call :meth:`handle_timeout` at the latest; None: nothing is pending."""

    @abstractmethod
    def handle_timeout(self, now: int) -> None:
        """Let timers act."""
