"""Every parameter of the transport, named as in the Homa kernel module, with its unit.

Defaults are those of the SMT module (branch main, ``homa_utils.c:homa_init``) unless said otherwise;
:data:`UPSTREAM` has those of upstream Homa.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from smtstack.errors import ConfigError
from smtstack.wire import homa, ipv4
from smtstack.wire.ethernet import FRAME_OVERHEAD, HEADER_LEN

#: Headers TSO copies into every packet: IPv4 and DATA.
PACKET_HEADERS: Final = ipv4.HEADER_LEN + homa.DATA_LEN
#: packet_index of a retransmission is one byte, so a segment has at most this many packets.
MAX_SEGMENT_PACKETS: Final = 256
#: Bytes of an IP packet that every end takes, and that none exceeds.
MIN_MTU: Final = 296
MAX_MTU: Final = 65535
INT_MAX: Final = 0x7FFFFFFF
#: RESENDs that a host may leave unanswered before anything is concluded from it, and before they come less often
#: (``timeout_resends`` of the module).
MIN_RESENDS: Final = 5


@dataclass(frozen=True, slots=True)
class TransportParams:
    """Settings of one endpoint. Immutable; checked when made, :class:`ConfigError` names the culprit."""

    mtu: int = 1500
    """Bytes of the longest IP packet that we send or take. Sessions by handshake agree on the smaller one; without
    these, both ends must have the same."""
    max_gso_size: int = 10_000
    """Bytes of the largest TSO segment, IP header included; at most 65535. 0: every packet by itself, as profile
    ``upstream`` always does."""
    max_message_length: int = 1_000_000
    """Bytes of the longest message an application may send or gets delivered."""
    unsched_bytes: int = 10_000
    """Bytes sent without waiting for a grant, rounded up to a whole segment."""
    link_mbps: int = 10_000
    """Rate of the host's link in Mbit/s, for the pacer."""
    max_nic_queue_ns: int = 2_000
    """Nanoseconds of estimated NIC queue above which the pacer holds data back."""
    throttle_min_bytes: int = 1_000
    """Bytes; messages shorter than this bypass the pacer."""
    pacer_fifo_fraction: int = 50
    """Per mille of paced bytes that go to the oldest message, not the shortest."""
    num_priorities: int = 8
    """Priorities in use, 0 (lowest) to ``num_priorities - 1``."""
    max_sched_prio: int = 3
    """Highest priority that grants hand out."""
    unsched_cutoffs: tuple[int, ...] = (INT_MAX, 0, 0, 0, 1_000_000, 15_000, 2_800, 200)
    """``[i]``: bytes of the largest message to be sent unscheduled to us at priority i."""
    cutoff_version: int = 1
    """Version of ``unsched_cutoffs``; peers that echo another are told ours. Not 0."""
    window: int = 0
    """Bytes granted beyond what has arrived; 0: ``unsched_bytes``, and in profile ``upstream`` ``max_incoming``
    over the number of messages that hold grants and one."""
    max_incoming: int = 400_000
    """Bytes granted or unscheduled, not yet received, over all messages; more grants wait."""
    max_overcommit: int = 8
    """Messages that hold grants at a time."""
    max_rpcs_per_peer: int = 1
    """Messages of one host among those that hold grants. More where they come by different paths: one fills one
    path. On a single path its sender serves the shortest first all the same; more of its messages then hold
    places that other hosts' could have."""
    grant_fifo_fraction: int = 50
    """Per mille of granted bytes that go to the oldest message, against starvation."""
    grant_increment: int = 1
    """Bytes that a GRANT adds at least, but for a message's last; ours. The more, the fewer GRANTs, and the
    smaller the window is at times. At most half of ``window`` and of ``max_incoming`` counts."""
    fifo_grant_increment: int = 10_000
    """Bytes of one such grant."""
    incast_threshold: int = 0
    """RPCs under way as a client above which new requests are marked, for their responses to come by grant
    (SIGCOMM'18 §3.6; the module has no such thing); 0: none is. Not in profile ``linux``."""
    incast_unsched_bytes: int = 500
    """Bytes of a marked request's response sent without a grant, rounded up to a whole packet; ours as a
    server."""
    tick_ns: int = 1_000_000
    """Nanoseconds of a timer tick."""
    resend_ticks: int = 15
    """Ticks of silence before the first RESEND."""
    resend_interval: int = 10
    """Ticks between RESENDs of an RPC, and between NEED_ACKs."""
    resend_doublings: int = 4
    """How often that doubles after the fifth: a process that does not run must not find thousands of RESENDs, nor
    may one that runs again wait long for the next. Ours."""
    timeout_resends: int = 5
    """Intervals of silence after ``resend_ticks`` after which a host counts as gone, and its RPCs fail."""
    timeout_resends_served: int = 0
    """RESENDs (or NEED_ACKs) after which an RPC that others began is dropped, whatever else its host says (0: that
    does not count): who gives a false address makes us send so many packets there."""
    stalled_ticks: int = 10_000
    """Ticks without progress after which an RPC fails though its host lives."""
    keep_response_ticks: int = 30_000
    """Ticks for which a response is kept that a living host does not acknowledge; ours."""
    max_kept_bytes_per_host: int = 64 << 20
    """Bytes of responses sent whole and not acknowledged to one host; the oldest make room. Ours."""
    max_kept_bytes: int = 256 << 20
    """Bytes of responses kept for all hosts together; the oldest of the host that adds one make room."""
    timeout_ticks: int = 100
    """Ticks of an RPC's own silence after which it is given up. Profile ``upstream`` only, which does not count by
    host (``timeout_resends``)."""
    need_ack_interval: int = 1
    """Ticks between NEED_ACKs of an RPC. Profile ``upstream`` only; its module asks every tick, and for ever."""
    hijack_tcp: int = 0
    """1: our requests go in the shape of TCP. Profile ``upstream`` only; what answers has the shape of what it
    answers."""
    request_ack_ticks: int = 2
    """Ticks after its response is sent before a server asks for an ACK."""
    max_rpcs_per_host: int = 20_000
    """Server RPCs one host may have with us; ours, against memory exhaustion."""
    max_server_rpcs: int = 100_000
    """Requests in progress from all hosts together."""
    max_rx_bytes_per_host: int = 32 << 20
    """Bytes of unfinished incoming messages one host may occupy; ours."""
    max_rx_bytes: int = 256 << 20
    """Bytes of unfinished messages from all hosts together."""
    max_held_bytes: int = 4 << 20
    """Bytes of frames kept for sessions that are still being made, 256 more counted for each; ours. The oldest
    make room."""
    held_ticks: int = 5_000
    """Ticks after which such a frame is forgotten."""

    def __post_init__(self) -> None:
        if not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ConfigError(f"mtu is {self.mtu}; {MIN_MTU} to {MAX_MTU} bytes are possible")
        if not 0 <= self.max_gso_size <= 65535:
            raise ConfigError(f"max_gso_size is {self.max_gso_size}; at most 65535 bytes")
        if len(self.unsched_cutoffs) != homa.NUM_PRIORITIES:
            raise ConfigError("unsched_cutoffs needs 8 values, index = priority")
        if not 1 <= self.num_priorities <= homa.NUM_PRIORITIES:
            raise ConfigError(f"num_priorities is {self.num_priorities}; 1 to 8")
        if not 0 <= self.max_sched_prio < self.num_priorities:
            raise ConfigError(f"max_sched_prio is {self.max_sched_prio}; 0 to num_priorities - 1")
        if not 1 <= self.cutoff_version <= 0xFFFF:
            raise ConfigError("cutoff_version is 16 bits and not 0, which means 'never heard'")
        for name in ("unsched_bytes", "link_mbps", "max_incoming", "max_overcommit", "max_rpcs_per_peer",
                     "tick_ns", "resend_ticks", "resend_interval", "timeout_resends",
                     "request_ack_ticks", "max_message_length", "fifo_grant_increment", "grant_increment",
                     "incast_unsched_bytes", "held_ticks", "timeout_ticks",
                     "need_ack_interval", "stalled_ticks", "keep_response_ticks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.resend_doublings <= 16:
            raise ConfigError(f"resend_doublings is {self.resend_doublings}; 0 to 16")
        if self.timeout_resends_served < 0:
            raise ConfigError(f"timeout_resends_served is {self.timeout_resends_served}; at least 0, which is as "
                              "timeout_resends")
        if self.incast_threshold < 0:
            raise ConfigError(f"incast_threshold is {self.incast_threshold}; at least 0, which marks no request")

    @property
    def silence_ticks(self) -> int:
        """Ticks of a host's silence after which its RPCs fail."""
        return self.resend_ticks + self.timeout_resends * self.resend_interval

    @property
    def segment_payload(self) -> int:
        """Payload bytes of every full packet of a segment (the ``mss`` TSO cuts with)."""
        return self.mtu - PACKET_HEADERS

    @property
    def segment_packets(self) -> int:
        """Packets of a full TSO segment (``smt_outgoing.c:smt_message_out_init``)."""
        return min(MAX_SEGMENT_PACKETS,
                   max(1, (self.max_gso_size - PACKET_HEADERS) // self.segment_payload))

    @property
    def max_wire_length(self) -> int:
        """Longest message_length accepted off the wire: sealing and padding at most double a message."""
        return wire_length(self.max_message_length)


def wire_length(max_message: int) -> int:
    """Most bytes a message of ``max_message`` may claim to have on the wire."""
    return min(2 * max_message + 65536, INT_MAX)


#: Upstream Homa (HomaModule 9edb958): the defaults of its sysctls ``net.homa.*``, by their names. Ours are
#: ``keep_response_ticks``, where the module knows no end, and ``num_priorities`` behind ``unsched_cutoffs``.
UPSTREAM: Final = TransportParams(
    max_gso_size=0, unsched_bytes=40_000, link_mbps=25_000, max_nic_queue_ns=5_000, window=0, max_incoming=400_000,
    max_rpcs_per_peer=8, fifo_grant_increment=50_000, resend_ticks=5, resend_interval=5, resend_doublings=0,
    timeout_ticks=100, request_ack_ticks=2, keep_response_ticks=10_000,
    unsched_cutoffs=(0, 0, 0, 0, 1_000_000, 15_000, 2_800, 200))

#: For endpoints in software, on real interfaces. A round trip takes a hundred microseconds and more, not five,
#: and milliseconds under load: with the module's values they would wait for grants most of the time, and ask
#: for acknowledgements that are on their way. Nor can they sleep for just a few microseconds, as the pacer of a
#: fast link wants with a short queue. And a process may not be scheduled for seconds without being dead: its
#: peers wait for 6 s (the module: 65 ms).
SOFTWARE: Final = TransportParams(
    unsched_bytes=60_000, window=200_000, max_incoming=1_000_000, request_ack_ticks=20, throttle_min_bytes=1_500,
    max_nic_queue_ns=100_000, timeout_resends=600, timeout_ticks=6_000, need_ack_interval=10)

#: The same where the wire takes super-frames: what one holds costs little more than a packet, and a GRANT costs as
#: much. So segments are as long as IP allows, grants are given for some of them at a time, and to several messages
#: of a host: else who waits for a GRANT, or for a pacer that does not know how fast memory is, sleeps meanwhile.
SOFTWARE_OVERLAY: Final = replace(
    SOFTWARE, max_gso_size=65_535, unsched_bytes=129_600, window=1_000_000, max_incoming=4_000_000,
    grant_increment=64_800, max_rpcs_per_peer=4, link_mbps=100_000)

#: Round trip between endpoints in software, links not counted: 0.3 to 2 ms, by what else the machine does.
SOFTWARE_RTT_NS: Final = 800_000
#: From this rate on software is the bottleneck, and :data:`SOFTWARE` does.
FAST_MBPS: Final = 1000
#: The rate below which everything takes longer because of the link: time is counted in its round trips.
SLOW_MBPS: Final = 100
#: Round trips of silence before a RESEND, at that rate and below. It is for what was lost: what only waits in the
#: network would come twice, and W4 at 80 % load has messages wait for 50 of them. (The module's 5 ms are 300.)
PATIENCE_RTTS: Final = 100


def software(link_mbps: int | None, overlay: bool = False) -> TransportParams:
    """Parameters of an endpoint in software behind a link of ``link_mbps``; None: of unknown rate.

    :data:`SOFTWARE` for fast and unknown links, with the overlay :data:`SOFTWARE_OVERLAY`. On a slower one its
    windows would be many round trips of queue in the network, and a segment of its size would keep a short message
    waiting for several. There, bytes are in proportion to what the link carries in a round trip, as in the
    SIGCOMM'18 paper (about 10 KB).
    """
    fast = SOFTWARE_OVERLAY if overlay else SOFTWARE
    if link_mbps is None:
        return fast
    if link_mbps >= FAST_MBPS:
        return replace(fast, link_mbps=link_mbps)
    if link_mbps < 1:
        raise ConfigError(f"link_mbps is {link_mbps}; it must be at least 1")
    frame_ns = (SOFTWARE.mtu + HEADER_LEN + FRAME_OVERHEAD) * 8000 // link_mbps
    # A full frame is stored and forwarded at the host's own link and at the receiver's.
    rtt_ns = SOFTWARE_RTT_NS + 2 * frame_ns
    rtt_bytes = max(10_000, rtt_ns * link_mbps // 8000)
    # A segment holds the link for a quarter of a round trip at most; then SRPT may choose another message.
    packets = max(1, rtt_ns // (4 * frame_ns))
    patience = max(SOFTWARE.resend_ticks, PATIENCE_RTTS * SLOW_MBPS // max(SLOW_MBPS, link_mbps))
    # A round trip of 10 KB takes this much longer.
    tick_ns = SOFTWARE.tick_ns * max(SLOW_MBPS, link_mbps) // link_mbps
    # As long as on a fast link, but for what the first RESEND waits longer; five are sent at the least.
    silence = SOFTWARE.silence_ticks * SOFTWARE.tick_ns // tick_ns
    resends = max(MIN_RESENDS, (silence - patience) // SOFTWARE.resend_interval)
    return replace(
        SOFTWARE, link_mbps=link_mbps,
        # What fills the link until the first grant can be there, and keeps it full from then on. A grant for every
        # packet would wake sender and receiver as often, and packets come one by one here.
        unsched_bytes=min(SOFTWARE.unsched_bytes, rtt_bytes), window=rtt_bytes + rtt_bytes // 4,
        grant_increment=rtt_bytes // 4,
        # In the same proportion: most of it waits in the last switch while several senders hold grants.
        max_incoming=SOFTWARE.max_incoming * rtt_bytes // SOFTWARE.window,
        max_gso_size=min(SOFTWARE.max_gso_size, PACKET_HEADERS + packets * SOFTWARE.segment_payload),
        # Two full packets: one on the wire, one to follow while we sleep.
        max_nic_queue_ns=max(SOFTWARE.max_nic_queue_ns, 2 * frame_ns),
        # Not queued is only what the link has sent in 20 us.
        throttle_min_bytes=min(SOFTWARE.throttle_min_bytes, 20_000 * link_mbps // 8000),
        tick_ns=tick_ns, timeout_resends=resends, timeout_ticks=patience + resends * SOFTWARE.resend_interval,
        # What is silent for less may just wait in a switch: at high load, others have sent so much before.
        resend_ticks=patience, request_ack_ticks=max(SOFTWARE.request_ack_ticks, patience))
