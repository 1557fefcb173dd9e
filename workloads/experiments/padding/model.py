"""What padding costs and hides, computed: bytes on the wire, and the entropy of the lengths one sees there."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from smtstack.crypto import tls13
from smtstack.crypto.padding import padding_named
from smtstack.transport.params import PACKET_HEADERS, SOFTWARE, TransportParams
from smtstack.transport.stream_message import Geometry
from smtstack.wire.ethernet import HEADER_LEN
from workloads.load.distributions import WORKLOADS, Distribution, workload

#: What is compared; the last is the example of docs/protocol.md.
POLICIES = ("none", "power-of-two", "buckets:256,1024,8192")


def frame_bytes(length: int, params: TransportParams = SOFTWARE) -> int:
    """Bytes of the DATA frames, Ethernet headers included, of a message of ``length`` bytes, padding included."""
    geometry = Geometry(params, sealed=True)
    if length <= geometry.packet_plain:
        sealed, packets = length + tls13.OVERHEAD, 1
    else:
        sealed = length + -(-length // geometry.record_plain) * tls13.OVERHEAD
        full, rest = divmod(sealed, geometry.segment)
        packets = full * -(-geometry.segment // geometry.mss) + -(-rest // geometry.mss)
    return sealed + packets * (HEADER_LEN + PACKET_HEADERS)


def sent_bytes(sizes: Iterable[int], policy: str, params: TransportParams = SOFTWARE) -> int:
    """:func:`frame_bytes` of many messages under ``policy``."""
    pad = padding_named(policy)
    return sum(frame_bytes(pad(size), params) * count for size, count in Counter(sizes).items())


@dataclass(frozen=True, slots=True)
class Cost:
    """A policy on one workload. Shares are of the same without padding."""

    workload: str
    policy: str
    mean_bytes: float
    """Mean length of the messages, without padding."""
    message_share: float
    """Bytes the messages have more, as a share: 0.39."""
    wire_share: float
    """Bytes the frames have more, headers and all, as a share."""
    lengths: int
    """Different lengths an onlooker sees."""
    entropy_bits: float
    """What a length tells of a message, in bits: the entropy of the lengths seen."""


def cost(sizes: Distribution, policy: str, params: TransportParams = SOFTWARE) -> Cost:
    """Computed from the workload's table, so to its 25 bins."""
    pad = padding_named(policy)
    mean = sizes.mean()
    seen: dict[int, float] = {}
    for size, share in sizes.items():
        seen[pad(size)] = seen.get(pad(size), 0.0) + share
    plain = sum(frame_bytes(size, params) * share for size, share in sizes.items())
    padded = sum(frame_bytes(length, params) * share for length, share in seen.items())
    longer = sum(pad(size) * share for size, share in sizes.items())
    return Cost(sizes.name, policy, mean, longer / mean - 1, padded / plain - 1, len(seen),
                -sum(share * math.log2(share) for share in seen.values()) + 0.0)


def costs(params: TransportParams = SOFTWARE) -> list[Cost]:
    """Every policy on W1 to W5."""
    return [cost(workload(name), policy, params) for name in WORKLOADS for policy in POLICIES]
