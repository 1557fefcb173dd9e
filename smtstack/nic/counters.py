"""Counters of a NIC under the names the kernel and mlx5 use (``ethtool -S``)."""

from __future__ import annotations

from typing import Final

#: All of them; a compiled class has no ``__slots__`` to ask.
NAMES: Final = (
    "ifnet_reset", "ifnet_reset_dropped", "ifnet_reset_failed",
    "rx_bytes", "rx_csum_bad", "rx_dropped", "rx_errors", "rx_packets", "rx_tls_ctx", "rx_tls_decrypted_bytes",
    "rx_tls_decrypted_packets", "rx_tls_del", "rx_tls_err", "rx_tls_resync_req_end", "rx_tls_resync_req_pkt",
    "rx_tls_resync_req_skip", "rx_tls_resync_req_start", "rx_tls_resync_res_ok", "rx_tls_resync_res_retry",
    "rx_tls_resync_res_skip", "tx_bytes", "tx_dropped", "tx_gso_packets", "tx_packets", "tx_queue_stopped",
    "tx_tls_ctx", "tx_tls_del", "tx_tls_drop_bypass_req", "tx_tls_drop_no_sync_data", "tx_tls_dump_bytes",
    "tx_tls_dump_packets", "tx_tls_encrypted_bytes", "tx_tls_encrypted_packets", "tx_tls_fallback",
    "tx_tls_no_ctx", "tx_tls_no_fallback", "tx_tls_ooo", "tx_tls_pool_alloc", "tx_tls_pool_free",
    "tx_tls_refused", "tx_tls_resync_bytes", "tx_tls_skip_no_sync_data", "tx_tso_bytes", "tx_tso_packets",
)


class NicCounters:
    """Plain integers since the device was made."""

    __slots__ = NAMES

    def __init__(self) -> None:
        #: Flows that got a context here after their route had changed (FreeBSD's kern.ipc.tls.stats.ifnet), ...
        self.ifnet_reset = 0
        #: ... connections that were ended because of that, ...
        self.ifnet_reset_dropped = 0
        #: ... as no NIC could go on with them.
        self.ifnet_reset_failed = 0
        self.rx_bytes = 0
        #: Frames dropped for a wrong IP header checksum.
        self.rx_csum_bad = 0
        #: Frames dropped because the receive ring was full.
        self.rx_dropped = 0
        #: Frames that are no IPv4.
        self.rx_errors = 0
        self.rx_packets = 0
        #: Receive contexts created.
        self.rx_tls_ctx = 0
        #: Payload bytes of TCP passed up decrypted, and the packets they were in.
        self.rx_tls_decrypted_bytes = 0
        self.rx_tls_decrypted_packets = 0
        #: Receive contexts destroyed.
        self.rx_tls_del = 0
        #: Records whose tag was wrong.
        self.rx_tls_err = 0
        #: Asynchronous resyncs begun that had a place in the stream to ask for, ...
        self.rx_tls_resync_req_end = 0
        #: Packets with which a device that lost the records asked for a resync.
        self.rx_tls_resync_req_pkt = 0
        #: ... that had none, as the device had lost it again, ...
        self.rx_tls_resync_req_skip = 0
        #: ... and all that were begun.
        self.rx_tls_resync_req_start = 0
        #: Answers that the device took.
        self.rx_tls_resync_res_ok = 0
        #: Answers put off, for want of room in a queue.
        self.rx_tls_resync_res_retry = 0
        #: Answers that came too late, or to nothing that was asked.
        self.rx_tls_resync_res_skip = 0
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
        #: Segments for a context that were not whole records, or whose context or flow is gone or elsewhere: never
        #: sent in clear.
        self.tx_tls_drop_bypass_req = 0
        #: Packets of a TLS stream out of order whose record is no longer known, as it is acknowledged: dropped.
        self.tx_tls_drop_no_sync_data = 0
        #: Bytes of records given to the device for nothing but its state, and the pieces.
        self.tx_tls_dump_bytes = 0
        self.tx_tls_dump_packets = 0
        self.tx_tls_encrypted_bytes = 0
        self.tx_tls_encrypted_packets = 0
        #: Segments sealed by software though offload is on.
        self.tx_tls_fallback = 0
        #: Of these, for want of a context.
        self.tx_tls_no_ctx = 0
        #: Packets that software was to seal, of a record that is no longer known: dropped.
        self.tx_tls_no_fallback = 0
        #: Resyncs.
        self.tx_tls_ooo = 0
        #: Host objects for transmit contexts that were made, and that were given back.
        self.tx_tls_pool_alloc = 0
        self.tx_tls_pool_free = 0
        #: Times that TLS offload was to be switched on for a NIC that is not trusted.
        self.tx_tls_refused = 0
        #: Bytes of records before the packets for which the device was set back.
        self.tx_tls_resync_bytes = 0
        #: Packets from before TLS began, sent again as they were.
        self.tx_tls_skip_no_sync_data = 0
        self.tx_tso_bytes = 0
        #: Segments cut by TSO.
        self.tx_tso_packets = 0

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in NAMES}
