"""A NIC between a host's kernel and the wire: segmentation, checksums, TLS offload for the host's own TCP.

What a TAP interface hands over goes through :meth:`TlsNic.transmit`, what comes off the wire through
:meth:`TlsNic.receive`. Frames of no flow, TCP or not, are forwarded with what the kernel left to the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from smtstack.crypto.stream_gcm import AES_128_GCM, AES_256_GCM
from smtstack.errors import BadPacket, ConfigError
from smtstack.nic.counters import NicCounters
from smtstack.nic.tls_flow import RxFlow, TxFlow
from smtstack.wire import tcp


@dataclass(frozen=True, slots=True)
class TlsNicConfig:
    """What the hardware is like."""

    number: int
    """Tells the NICs of a host apart, from 1: what :attr:`~smtstack.nic.record_map.FlowWords.owner` says."""
    max_contexts: int = 1024
    """TLS contexts that fit the device's memory, those of both directions and of other protocols together."""
    ciphers: tuple[str, ...] = (AES_128_GCM, AES_256_GCM)
    """What the device encrypts; flows of others are sealed and opened by software."""


class TlsNic:
    """One NIC: driver half and device half, and the flows of TCP they know."""

    def __init__(self, config: TlsNicConfig, counters: NicCounters | None = None) -> None:
        """``counters``: shared with another device of the same NIC; None: its own."""
        if config.number < 1:
            raise ConfigError("a NIC's number is 1 or more: 0 means none")
        self.config = config
        self.counters = counters or NicCounters()
        #: Contexts that may be there at once; a setting can lower it below the hardware's ``max_contexts``.
        self.context_limit = config.max_contexts
        #: Contexts that another device in the same memory holds, SMT's: whoever has both says so.
        self.contexts_elsewhere = 0
        self._tx: dict[bytes, TxFlow] = {}
        self._rx: dict[bytes, RxFlow] = {}

    # -- control path --------------------------------------------------------------------------------------

    def add_flow(self, flow: TxFlow | RxFlow, context: bool = True) -> bool:
        """Know a flow from now on; whether it has a context in the device (never, without ``context``).

        Every NIC of a host knows every flow, so that none sends its plaintext; that of the route has the context.
        False for want of room (ENOSPC): software does it, with the same bytes on the wire. Raises
        :class:`~smtstack.errors.ConfigError` where the flow's buffer is none.
        """
        raise NotImplementedError

    def remove_flow(self, flow: TxFlow | RxFlow) -> None:
        """Forget a flow with its context and keys. Marked packets that still come are dropped."""
        raise NotImplementedError

    # -- packets -------------------------------------------------------------------------------------------

    def transmit(self, frame: bytes, gso_size: int = 0, needs_csum: bool = False, csum_start: int = 0,
                 csum_offset: int = 0, marked: bool = False) -> list[bytes]:
        """Frames for the wire of one that the kernel sends, with what its virtio_net_hdr says; empty: dropped.

        ``gso_size``: payload bytes of each packet of a super-frame of TCP over IPv4; 0: it is one packet.
        ``marked``: it comes from a socket whose stream holds plaintext records. With payload it leaves sealed, or
        not at all.
        """
        if marked and not self._is_empty(frame):
            self.counters.tx_tls_drop_bypass_req += 1
            self.counters.tx_dropped += 1
            return []
        return self._forward(frame, gso_size, needs_csum, csum_start, csum_offset)

    @staticmethod
    def _is_empty(frame: bytes) -> bool:
        """Whether it is a packet of TCP without payload: an acknowledgement, the begin or end of a connection."""
        try:
            return tcp.parse_untrusted(frame).length == 0
        except BadPacket:
            return False

    def _forward(self, frame: bytes, gso_size: int, needs_csum: bool, csum_start: int,
                 csum_offset: int) -> list[bytes]:
        counters = self.counters
        try:
            if gso_size:
                packet = tcp.parse_untrusted(frame)
                frames = tcp.cut(frame, packet, frame[packet.payload_at:packet.end], gso_size)
                counters.tx_tso_packets += 1
                counters.tx_tso_bytes += packet.length
            else:
                frames = [tcp.finish_checksum(frame, csum_start, csum_offset) if needs_csum else frame]
        except BadPacket:
            # The kernel asked for what this device does not do: it offers neither TSO over IPv6 nor UDP's.
            counters.tx_dropped += 1
            return []
        counters.tx_packets += len(frames)
        counters.tx_bytes += sum(map(len, frames))
        return frames

    def receive(self, frame: bytes) -> bytes:
        """The frame for the kernel of one off the wire: the same, or with its records decrypted in place."""
        counters = self.counters
        counters.rx_packets += 1
        counters.rx_bytes += len(frame)
        return frame
