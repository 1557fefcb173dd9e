"""Every parameter of the transport, named as in the Homa kernel module, with its unit.

Defaults are those of the SMT module (branch main, ``homa_utils.c:homa_init``) unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from smtstack.errors import ConfigError
from smtstack.wire import homa, ipv4

#: Headers TSO copies into every packet: IPv4 and DATA.
PACKET_HEADERS = ipv4.HEADER_LEN + homa.DATA_LEN
#: packet_index of a retransmission is one byte, so a segment has at most this many packets.
MAX_SEGMENT_PACKETS = 256
INT_MAX = 0x7FFFFFFF


@dataclass(frozen=True, slots=True)
class TransportParams:
    """Settings of one endpoint. Immutable; checked when made, :class:`ConfigError` names the culprit."""

    mtu: int = 1500
    """Bytes of an IP packet. Both ends of profile ``linux`` must agree."""
    max_gso_size: int = 10_000
    """Bytes of the largest TSO segment, IP header included; at most 65535."""
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
    """Bytes granted beyond what has arrived; 0: ``unsched_bytes``."""
    max_incoming: int = 400_000
    """Bytes granted or unscheduled, not yet received, over all messages; more grants wait."""
    max_overcommit: int = 8
    """Messages that hold grants at a time."""
    max_rpcs_per_peer: int = 1
    """Of these, messages of one host."""
    grant_fifo_fraction: int = 50
    """Per mille of granted bytes that go to the oldest message, against starvation."""
    fifo_grant_increment: int = 10_000
    """Bytes of one such grant."""
    tick_ns: int = 1_000_000
    """Nanoseconds of a timer tick."""
    resend_ticks: int = 15
    """Ticks of silence before the first RESEND."""
    resend_interval: int = 10
    """Ticks between RESENDs, and between NEED_ACKs."""
    timeout_resends: int = 5
    """Unanswered RESENDs (or NEED_ACKs) after which an RPC fails."""
    request_ack_ticks: int = 2
    """Ticks after its response is sent before a server asks for an ACK."""
    max_rpcs_per_host: int = 20_000
    """Server RPCs one host may have with us; ours, against memory exhaustion."""
    max_server_rpcs: int = 100_000
    """The same over all hosts."""
    max_rx_bytes_per_host: int = 32 << 20
    """Bytes of unfinished incoming messages one host may occupy; ours."""
    max_rx_bytes: int = 256 << 20
    """The same over all hosts."""

    def __post_init__(self) -> None:
        if not 296 <= self.mtu <= 65535:
            raise ConfigError(f"mtu is {self.mtu}; 296 to 65535 bytes are possible")
        if not 0 < self.max_gso_size <= 65535:
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
                     "request_ack_ticks", "max_message_length", "fifo_grant_increment"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")

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
        return min(2 * self.max_message_length + 65536, INT_MAX)


#: For endpoints in software, on real interfaces. A round trip takes a hundred microseconds and more, not five,
#: and milliseconds under load: with the module's values they would wait for grants most of the time, and ask
#: for acknowledgements that are on their way. Nor can they sleep for just a few microseconds, as the pacer of a
#: fast link wants with a short queue.
SOFTWARE = TransportParams(unsched_bytes=60_000, window=200_000, max_incoming=1_000_000, request_ack_ticks=20,
                           throttle_min_bytes=1_500, max_nic_queue_ns=100_000)
