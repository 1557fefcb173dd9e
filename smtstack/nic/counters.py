"""Counters of a NIC under the names the kernel and mlx5 use (``ethtool -S``)."""

from __future__ import annotations


class NicCounters:
    """Plain integers since the device was made."""

    __slots__ = (
        "rx_bytes", "rx_csum_bad", "rx_dropped", "rx_errors", "rx_packets", "tx_bytes", "tx_dropped",
        "tx_packets", "tx_queue_stopped", "tx_tls_ctx", "tx_tls_del", "tx_tls_drop_bypass_req",
        "tx_tls_encrypted_bytes", "tx_tls_encrypted_packets", "tx_tls_fallback", "tx_tls_no_ctx",
        "tx_tls_ooo", "tx_tso_bytes", "tx_tso_packets",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    rx_bytes: int
    rx_csum_bad: int
    """Frames dropped for a wrong IP header checksum."""
    rx_dropped: int
    """Frames dropped because the receive ring was full."""
    rx_errors: int
    """Frames that are no IPv4."""
    rx_packets: int
    tx_bytes: int
    tx_dropped: int
    tx_packets: int
    tx_queue_stopped: int
    """Times the driver found a TX ring full."""
    tx_tls_ctx: int
    """Contexts created."""
    tx_tls_del: int
    """Contexts destroyed."""
    tx_tls_drop_bypass_req: int
    """Segments for a context that were not whole records, or whose context is gone: never sent in clear."""
    tx_tls_encrypted_bytes: int
    tx_tls_encrypted_packets: int
    tx_tls_fallback: int
    """Segments sealed by software though offload is on."""
    tx_tls_no_ctx: int
    """Of these, for want of a context."""
    tx_tls_ooo: int
    """Resyncs."""
    tx_tso_bytes: int
    tx_tso_packets: int
    """Segments cut by TSO."""

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}
