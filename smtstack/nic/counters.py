"""Counters of a NIC under the names the kernel and mlx5 use (``ethtool -S``)."""

from __future__ import annotations

from typing import Final

#: All of them; a compiled class has no ``__slots__`` to ask.
NAMES: Final = (
    "rx_bytes", "rx_csum_bad", "rx_dropped", "rx_errors", "rx_packets", "tx_bytes", "tx_dropped",
    "tx_gso_packets", "tx_packets", "tx_queue_stopped", "tx_tls_ctx", "tx_tls_del", "tx_tls_drop_bypass_req",
    "tx_tls_encrypted_bytes", "tx_tls_encrypted_packets", "tx_tls_fallback", "tx_tls_no_ctx",
    "tx_tls_ooo", "tx_tso_bytes", "tx_tso_packets",
)


class NicCounters:
    """Plain integers since the device was made."""

    __slots__ = NAMES

    def __init__(self) -> None:
        self.rx_bytes = 0
        #: Frames dropped for a wrong IP header checksum.
        self.rx_csum_bad = 0
        #: Frames dropped because the receive ring was full.
        self.rx_dropped = 0
        #: Frames that are no IPv4.
        self.rx_errors = 0
        self.rx_packets = 0
        self.tx_bytes = 0
        self.tx_dropped = 0
        #: Segments that left whole, in the shape of TCP, for others to cut.
        self.tx_gso_packets = 0
        self.tx_packets = 0
        #: Times the driver found a TX ring full.
        self.tx_queue_stopped = 0
        #: Contexts created.
        self.tx_tls_ctx = 0
        #: Contexts destroyed.
        self.tx_tls_del = 0
        #: Segments for a context that were not whole records, or whose context is gone: never sent in clear.
        self.tx_tls_drop_bypass_req = 0
        self.tx_tls_encrypted_bytes = 0
        self.tx_tls_encrypted_packets = 0
        #: Segments sealed by software though offload is on.
        self.tx_tls_fallback = 0
        #: Of these, for want of a context.
        self.tx_tls_no_ctx = 0
        #: Resyncs.
        self.tx_tls_ooo = 0
        self.tx_tso_bytes = 0
        #: Segments cut by TSO.
        self.tx_tso_packets = 0

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in NAMES}
