"""What a socket needs to make sessions by handshakes: files, DNS, the clock, the other workers of its port."""

from __future__ import annotations

import contextlib
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path

from smtstack.errors import ConfigError
from smtstack.io.shared_port import SharedPort
from smtstack.session.config import SessionConfig
from smtstack.session.manager import Role, SessionManager
from smtstack.session.offer import Offer
from smtstack.session.resumption import PskStore
from smtstack.session.state import MemoryState, ServerState
from smtstack.session_io.identity_files import keylog_wanted, load_identity
from smtstack.session_io.psk_file import PskFile
from smtstack.session_io.state_file import SqliteState
from smtstack.session_io.ticket_dns import DnsTickets, TicketPublisher
from smtstack.session_io.ticket_lookups import TicketLookups
from smtstack.session_io.tsig_file import TSIG, read_tsig


@dataclass(frozen=True, slots=True)
class SessionOptions:
    """How a socket makes its sessions."""

    certs: Path
    """Folder of this host's credentials."""
    mode: str = "mtls"
    offer: Offer = field(default_factory=Offer)
    client_auth: bool = True
    key_update_records: int = 0
    dns: tuple[str, int] | None = None
    publish: bool = False
    """This is a server: its tickets go to ``dns``."""
    state: Path | None = None
    keylog: Path | None = None
    psks: PskStore | Path | None = None
    idle_s: float = 0.0
#: What a thread says that looked up a ticket; what workers say begins otherwise.
_TICKETS = b"t"


class SessionHost:
    """Makes the manager and serves it. An :class:`~smtstack.loop.KeyHost`."""

    def __init__(self, options: SessionOptions, ip: int, port: int, mtu: int, shared: SharedPort | None) -> None:
        """Raises :class:`ConfigError`, and for a server whose tickets DNS does not take, :class:`PeerError`."""
        identity = load_identity(options.certs)
        config = SessionConfig(identity, options.mode, options.offer, options.client_auth,
                               options.key_update_records, idle_ns=int(options.idle_s * 1e9)).within(mtu)
        role = Role.ALONE
        if shared is not None and shared.workers > 1:
            if not shared.inbox and not shared.outboxes:
                raise ConfigError("workers that share sessions must know each other: "
                                  "make them by SharedPort.among")
            role = Role.LEADER if shared.index == 0 else Role.FOLLOWER
        self.inbox: socket.socket | None = shared.inbox if shared is not None else None
        keeps = options.state is not None and role is not Role.FOLLOWER
        self._sqlite = SqliteState(options.state) if options.state is not None and keeps else None
        state: ServerState = self._sqlite if self._sqlite is not None else MemoryState()
        self._publisher: TicketPublisher | None = None
        by_ticket = options.mode.startswith("ticket")
        #: A client's; None: there are none to be had.
        self.tickets = DnsTickets(identity, options.dns) if by_ticket and options.dns is not None else None
        self._lookups: TicketLookups | None = None
        self._waker: socket.socket | None = None
        if self.tickets is not None and role is Role.ALONE:
            self.inbox, self._waker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._waker.setblocking(False)
            self._lookups = TicketLookups(self.tickets, self._wake)
        self.manager = SessionManager(
            config, time.time_ns, tickets=self._lookups, state=state, role=role,
            psks=PskFile(options.psks) if isinstance(options.psks, Path) else options.psks,
            keylog=keylog_wanted(options.keylog),
            share=shared.share if shared is not None and role is Role.LEADER else None)
        self._makes_keys = (by_ticket or options.mode.startswith("psk")) and role is not Role.FOLLOWER
        if by_ticket and options.publish and role is not Role.FOLLOWER:
            try:
                self._publisher = self._make_publisher(options, config, state, ip, port)
                self._publisher.publish(int(time.time()))
            except BaseException:
                self.close()
                raise

    @staticmethod
    def _make_publisher(options: SessionOptions, config: SessionConfig, state: ServerState, ip: int,
                        port: int) -> TicketPublisher:
        if options.dns is None:
            raise ConfigError(f"session mode {options.mode} needs a DNS server to publish the tickets in")
        return TicketPublisher(config.identity, state, ip, port, config.offer,
                               forward_secret_only=options.mode == "ticket-fs", client_auth=config.mutual,
                               server=options.dns, key=read_tsig(options.certs / TSIG))

    def deliver(self, message: bytes, now: int) -> None:
        """Another worker made or ended a session, or a ticket came."""
        if self._lookups is None:
            self.manager.deliver(message, now)
        else:
            self._lookups.collect(int(time.time()))
            self.manager.tickets_came(now)

    def _wake(self) -> None:
        """In a thread. Where the loop has not read what was said before, or is gone, there is nothing to add."""
        assert self._waker is not None
        with contextlib.suppress(OSError):
            self._waker.send(_TICKETS)

    def idle(self) -> None:
        """Make a key in advance, publish a ticket that is due."""
        if self._makes_keys:
            self.manager.pool.refill()
        if self._publisher is not None:
            self._publisher.tend(int(time.time()))

    @property
    def last_failure(self) -> str:
        """What went wrong last, for people; "": nothing."""
        # Without a new ticket clients live on the last one for a while; it is tried again soon.
        unpublished = self._publisher.failure if self._publisher is not None else ""
        return unpublished or self.manager.last_failure

    def counters(self) -> dict[str, int]:
        """Counters of sessions, and of keys made in advance."""
        pool = self.manager.pool
        return {**self.manager.counters(), "keys_made_ahead": pool.made_ahead, "keys_made_now": pool.made_now}

    def close(self) -> None:
        """Close files, look up nothing more."""
        if self._lookups is not None:
            self._lookups.close()
        if self._sqlite is not None:
            self._sqlite.close()
        for end in (self.inbox, self._waker):
            if end is not None:
                end.close()
