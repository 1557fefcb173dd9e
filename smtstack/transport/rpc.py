"""RPCs and who they are with: hosts (cutoffs, budgets), peers (a host's port: session, RPCs), RPCs.

One module, as each of the three holds the others.
"""

from __future__ import annotations

from typing import Final

from smtstack.crypto.epochs import EpochKeys, Session
from smtstack.errors import LocalError
from smtstack.transport.message import InMessage, OutMessage
from smtstack.transport.params import INT_MAX, MAX_MTU, wire_length
from smtstack.transport.states import CLIENT, INCOMING, OUTGOING, SERVER, Input, State
from smtstack.wire.ipv4 import format_address
from smtstack.wire.naming import peer_key

#: What a host is assumed to want before its first CUTOFFS: everything unscheduled at priority 6
#: (homa_peertab.c of the module; reference §6.2).
FIRST_CUTOFFS: Final = (0, 0, 0, 0, 0, 0, INT_MAX, 0)
#: Longer ago than any interval.
_NEVER: Final = -(1 << 40)


class Host:
    """One IP address: how it wants unscheduled data, and what of our memory it uses."""

    __slots__ = ("acks", "cutoff_tick", "cutoff_version", "cutoffs", "doubted", "heard_tick", "ip", "kept",
                 "kept_bytes", "peers", "rx_bytes", "served", "server_rpcs")

    def __init__(self, ip: int) -> None:
        self.ip = ip
        self.cutoffs: tuple[int, ...] = FIRST_CUTOFFS
        #: Version of ``cutoffs``, echoed in DATA; 0: never heard.
        self.cutoff_version = 0
        #: Tick of the last CUTOFFS sent to it.
        self.cutoff_tick = -1
        #: Tick of its last valid packet about an RPC we know. Who rations RESENDs by host, as the kernel module
        #: does, shows by those for one RPC that the others need not be given up.
        self.heard_tick = -1
        #: Its ports we know.
        self.peers = 0
        self.server_rpcs = 0
        #: Bytes of its unfinished messages.
        self.rx_bytes = 0
        #: RPCs whose responses were sent whole and are not acknowledged, oldest first, and the bytes of these.
        self.kept: dict[Rpc, None] = {}
        self.kept_bytes = 0
        #: RPCs with it whose incoming message has not authenticated, oldest first.
        self.doubted: dict[Rpc, None] = {}
        #: Profile ``upstream``, where ids are the host's: RPCs that it began, by our id, whatever its port; and
        #: ours that it has answered and that are not acknowledged, (id, its port).
        self.served: dict[int, Rpc] = {}
        self.acks: list[tuple[int, int]] = []

    def unscheduled_priority(self, length: int) -> int:
        """The highest priority whose cutoff admits a message of ``length`` bytes."""
        cutoffs = self.cutoffs
        if length <= cutoffs[7]:
            return 7
        for priority in (6, 5, 4, 3, 2, 1):
            if cutoffs[priority] >= length:
                return priority
        return 0


class PendingPeer:
    """A peer with which a session is being made: what waits for it."""

    __slots__ = ("peer", "waiting")

    def __init__(self, peer: Peer) -> None:
        #: Becomes one of the others when the session is there; RPCs know it from the beginning.
        self.peer = peer
        #: Requests by RPC, in order.
        self.waiting: dict[Rpc, bytes] = {}


class Peer:
    """One port of one host, with the session we share and all RPCs between us."""

    __slots__ = ("ack_keys", "acks", "early", "flags", "heard_tick", "host", "key", "local_port", "max_message",
                 "max_wire", "mtu", "overlay", "port", "proven", "rpcs", "session")

    def __init__(self, host: Host, port: int, local_port: int, session: Session, max_message: int,
                 mtu: int = MAX_MTU, overlay: bool = False) -> None:
        self.host = host
        self.port = port
        #: Its place in the endpoint's tables.
        self.key = peer_key(host.ip, port)
        self.local_port = local_port
        self.session = session
        #: By ``Rpc.key``.
        self.rpcs: dict[int, Rpc] = {}
        #: Ids of finished client RPCs not acknowledged yet, all of the epoch ``ack_keys``.
        self.acks: list[int] = []
        self.ack_keys: EpochKeys | None = None
        #: It authenticated, or we called it: keep it when memory is short.
        self.proven = False
        #: Tick of its last message that authenticated.
        self.heard_tick = -1
        #: We send 0-RTT data under this session, and cannot open what comes back yet.
        self.early = False
        #: Profile ``upstream``: the shape of its last packet, as ``Rpc.flags``.
        self.flags = 0
        #: DATA of messages longer than a packet has the shape of TCP, in both directions.
        self.overlay = overlay
        self.limit(max_message, mtu)

    def limit(self, max_message: int, mtu: int) -> None:
        """Messages, and IP packets of messages, have at most so many bytes, in both directions."""
        self.max_message = max_message
        self.mtu = mtu
        #: The longest message_length it may claim on the wire.
        self.max_wire = wire_length(max_message)

    def bad_length(self, size: int) -> LocalError:
        """What to raise for a message that must not be sent in this session."""
        return LocalError(f"a message of {size} bytes; 1 to {self.max_message} are possible with {self} "
                          "(max_message_length, or less where the peer takes less)")

    def __repr__(self) -> str:
        return f"{format_address(self.host.ip)}:{self.port}"


class Rpc:
    """One RPC at one side. Also the handle applications hold; ``cookie`` is theirs."""

    __slots__ = (
        "armed_tick", "birth", "cookie", "flags", "heard_tick", "id", "inm", "is_client", "key", "keys", "out",
        "peer", "queued", "resend_tick", "resends", "resent_tick", "state",
    )

    def __init__(self, peer: Peer, rpc_id: int, key: int, keys: EpochKeys, is_client: bool, birth: int,
                 tick: int) -> None:
        #: As this side sees it: even at the client, odd at the server. 0: WAITING for a session.
        self.id = rpc_id
        #: Place in ``peer.rpcs``: see :func:`~smtstack.wire.naming.rpc_key`.
        self.key = key
        self.peer = peer
        self.keys = keys
        self.is_client = is_client
        self.state: State = OUTGOING if is_client else INCOMING
        self.out: OutMessage | None = None
        self.inm: InMessage | None = None
        self.cookie: object = None
        #: Of our DATA packets: INCAST if the client marked the request, or nothing. Profile ``upstream``: whether
        #: our packets go in the shape of TCP.
        self.flags = 0
        #: Age among all RPCs of the endpoint, for the FIFO shares.
        self.birth = birth
        #: Last tick at which the peer made progress or said BUSY.
        self.heard_tick = tick
        #: RESENDs or NEED_ACKs since then.
        self.resends = 0
        #: Tick of the last RESEND or NEED_ACK we sent, and of the last time we sent all again for an UNKNOWN.
        self.resend_tick = self.resent_tick = _NEVER
        #: Tick at which the timer looks at this RPC; -1: not.
        self.armed_tick = -1
        #: In the sender's SRPT heap.
        self.queued = False

    def move(self, what: Input) -> State:
        """Apply ``what`` by the table; raises :class:`LocalError` for what cannot happen."""
        state = (CLIENT if self.is_client else SERVER)[self.state][what]
        if state is None:
            side = "client" if self.is_client else "server"
            raise LocalError(f"{side} RPC {self.id} is {self.state.name}: {what.name} is impossible")
        self.state = state
        return state

    def alive(self, tick: int) -> None:
        """The peer made progress with it, or says that it will: RESENDs are counted anew."""
        self.heard_tick = tick
        self.resends = 0

    def __repr__(self) -> str:
        return f"<Rpc {self.id} {'client' if self.is_client else 'server'} {self.state.name} {self.peer}>"
