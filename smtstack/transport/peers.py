"""What an endpoint knows of others: hosts (cutoffs, budgets) and peers (a host's port: session, RPCs)."""

from __future__ import annotations

from smtstack.crypto.session import EpochKeys, Session
from smtstack.transport.params import INT_MAX
from smtstack.transport.rpc import Rpc
from smtstack.wire.ipv4 import format_address

#: What a host is assumed to want before its first CUTOFFS: everything unscheduled at priority 6
#: (homa_peertab.c of the module; reference §6.2).
FIRST_CUTOFFS = (0, 0, 0, 0, 0, 0, INT_MAX, 0)


class Host:
    """One IP address: how it wants unscheduled data, and what of our memory it uses."""

    __slots__ = ("cutoff_tick", "cutoff_version", "cutoffs", "doubted", "ip", "peers", "rx_bytes",
                 "server_rpcs")

    def __init__(self, ip: int) -> None:
        self.ip = ip
        self.cutoffs: tuple[int, ...] = FIRST_CUTOFFS
        #: Version of ``cutoffs``, echoed in DATA; 0: never heard.
        self.cutoff_version = 0
        #: Tick of the last CUTOFFS sent to it.
        self.cutoff_tick = -1
        #: Its ports we know.
        self.peers = 0
        self.server_rpcs = 0
        #: Bytes of its unfinished messages.
        self.rx_bytes = 0
        #: RPCs with it whose incoming message has not authenticated, oldest first.
        self.doubted: dict[Rpc, None] = {}

    def unscheduled_priority(self, length: int) -> int:
        """The highest priority whose cutoff admits a message of ``length`` bytes."""
        cutoffs = self.cutoffs
        if length <= cutoffs[7]:
            return 7
        for priority in (6, 5, 4, 3, 2, 1):
            if cutoffs[priority] >= length:
                return priority
        return 0


class Peer:
    """One port of one host, with the session we share and all RPCs between us."""

    __slots__ = ("ack_keys", "acks", "host", "local_port", "port", "proven", "rpcs", "session")

    def __init__(self, host: Host, port: int, local_port: int, session: Session) -> None:
        self.host = host
        self.port = port
        self.local_port = local_port
        self.session = session
        #: By ``Rpc.key``.
        self.rpcs: dict[int, Rpc] = {}
        #: Ids of finished client RPCs not acknowledged yet, all of the epoch ``ack_keys``.
        self.acks: list[int] = []
        self.ack_keys: EpochKeys | None = None
        #: It authenticated, or we called it: keep it when memory is short.
        self.proven = False

    def __repr__(self) -> str:
        return f"{format_address(self.host.ip)}:{self.port}"
