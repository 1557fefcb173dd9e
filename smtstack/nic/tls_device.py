"""A NIC between a host's kernel and the wire: segmentation, checksums, TLS offload for the host's own TCP.

What a TAP interface hands over goes through :meth:`TlsNic.transmit`, what comes off the wire through
:meth:`TlsNic.receive`. Frames of no flow, TCP or not, are forwarded with what the kernel left to the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smtstack.crypto.stream_gcm import AES_128_GCM, AES_256_GCM
from smtstack.errors import BadPacket, ConfigError
from smtstack.nic.counters import NicCounters
from smtstack.nic.tls_driver import TlsTxDriver, TxState
from smtstack.nic.tls_flow import RxFlow, TxFlow
from smtstack.nic.tls_rx_driver import TlsRxDriver
from smtstack.nic.tls_tx import TlsTxDevice
from smtstack.wire import tcp

#: What can be switched, by ethtool's names. It counts for contexts made from then on.
TLS_FEATURES: Final = ("tls-hw-tx-offload", "tls-hw-rx-offload")


@dataclass(frozen=True, slots=True)
class TlsNicConfig:
    """What the hardware is like."""

    number: int
    """Tells the NICs of a host apart, from 1: what :attr:`~smtstack.nic.record_map.FlowWords.owner` says."""
    max_contexts: int = 1024
    """TLS contexts that fit the device's memory, those of both directions and of other protocols together."""
    ciphers: tuple[str, ...] = (AES_128_GCM, AES_256_GCM)
    """What the device encrypts; flows of others are sealed and opened by software."""
    mtu: int = 1500
    queues: int = 1
    """TX queues. Packets of one flow belong to one queue."""
    ring_size: int = 1024
    """Descriptors a TX queue holds."""


class TlsNic:
    """One NIC: driver half and device half, and the flows of TCP they know."""

    def __init__(self, config: TlsNicConfig, counters: NicCounters | None = None) -> None:
        """``counters``: shared with another device of the same NIC; None: its own."""
        if config.number < 1:
            raise ConfigError("a NIC's number is 1 or more: 0 means none")
        if config.queues < 1 or config.ring_size < 64:
            raise ConfigError("a NIC has at least one queue, and a ring at least 64 descriptors")
        self.config = config
        self.counters = counters or NicCounters()
        #: Contexts that may be there at once; a setting can lower it below the hardware's ``max_contexts``.
        self.context_limit = config.max_contexts
        #: Contexts that another device in the same memory holds, SMT's: whoever has both says so.
        self.contexts_elsewhere = 0
        self.tls_hw_tx_offload = True
        self.tls_hw_rx_offload = True
        #: The device half of transmit: for who posts descriptors, or looks at what is posted.
        self.tx = TlsTxDevice(self.counters, config.queues, config.ring_size)
        self._driver = TlsTxDriver(self.tx, self.counters, config.number, config.mtu)
        self._rx = TlsRxDriver(self.counters)

    # -- control path --------------------------------------------------------------------------------------

    def set_mtu(self, mtu: int) -> None:
        """Bytes of the longest IP packet, so of the longest DUMP."""
        self._driver.mtu = mtu

    def set_feature(self, name: str, on: bool) -> None:
        """Switch one of :data:`TLS_FEATURES`; flows that have a context keep it. Raises :class:`ConfigError`."""
        if name not in TLS_FEATURES:
            raise ConfigError(f"unknown TLS feature {name!r}; there are {', '.join(TLS_FEATURES)}")
        setattr(self, name.replace("-", "_"), on)

    def contexts(self) -> int:
        """Contexts of this device in use, of both directions."""
        return len(self.tx) + self._rx.contexts()

    def flows(self) -> int:
        """Flows that are known, of both directions."""
        return len(self._driver.flows) + len(self._rx.flows)

    def add_flow(self, flow: TxFlow | RxFlow, context: bool = True) -> bool:
        """Know a flow from now on; whether it has a context in the device (never, without ``context``).

        Every NIC of a host knows every flow, so that none sends its plaintext; that of the route has the context.
        Adding a flow again gives it one, or without ``context`` takes it away. False for want of room (ENOSPC), or
        where the device does not do that: then software does it, with the same bytes on the wire. Raises
        :class:`~smtstack.errors.ConfigError` where the flow's buffer is none.
        """
        if isinstance(flow, TxFlow):
            state = self._driver.flows.get(flow.flow)
            if state is None:
                state = self._driver.flows[flow.flow] = TxState(flow)
            if not context:
                self._take_context(state)
            elif not state.context and self._may_have_one(self.tls_hw_tx_offload, flow.keys.cipher):
                state.context = self.tx.create_context()
                state.expected = state.number = -1
                state.answer = 0
            if state.context:
                state.records.owner = self.config.number
            return state.context != 0
        has_one = self._rx.has_context(flow.flow)
        wants = context and (has_one or self._may_have_one(self.tls_hw_rx_offload, flow.keys.cipher))
        return self._rx.add(flow, wants)

    def _may_have_one(self, offload: bool, cipher: str) -> bool:
        if not offload or cipher not in self.config.ciphers:
            return False
        if self.contexts() + self.contexts_elsewhere < self.context_limit:
            return True
        self.counters.tx_tls_no_ctx += 1
        return False

    def _take_context(self, state: TxState) -> None:
        if state.context:
            self.tx.destroy_context(state.context)
            state.context = 0
            if state.records.owner == self.config.number:
                state.records.owner = 0

    def remove_flow(self, flow: TxFlow | RxFlow) -> None:
        """Forget a flow with its context and keys, if it is known. Marked packets that still come are dropped."""
        if isinstance(flow, RxFlow):
            self._rx.remove(flow.flow)
            return
        state = self._driver.flows.pop(flow.flow, None)
        if state is not None:
            self._take_context(state)
            state.records.close()

    def reset(self) -> None:
        """The device goes down: all contexts are lost. Flows stay known, and are software's from now on."""
        for state in self._driver.flows.values():
            self._take_context(state)
        self._rx.reset()

    # -- packets -------------------------------------------------------------------------------------------

    def transmit(self, frame: bytes, gso_size: int = 0, needs_csum: bool = False, csum_start: int = 0,
                 csum_offset: int = 0, marked: bool = False, queue: int = 0) -> list[bytes]:
        """Frames for the wire of one that the kernel sends, with what its virtio_net_hdr says; empty: dropped.

        ``gso_size``: payload bytes of each packet of a super-frame of TCP over IPv4; 0: it is one packet.
        ``marked``: it comes from a socket whose stream holds plaintext records. With payload it leaves sealed, or
        not at all.
        """
        if (marked or self._driver.flows) and tcp.is_tcp(frame):
            try:
                packet = tcp.parse_untrusted(frame)
            except BadPacket:
                packet = None
            if packet is not None and (marked or packet.flow in self._driver.flows):
                return self._transmit_tcp(frame, packet, gso_size, marked, queue)
        if marked:
            # Nobody can say that it has no payload.
            self.counters.tx_tls_drop_bypass_req += 1
            self.counters.tx_dropped += 1
            return []
        return self._forward(frame, gso_size, needs_csum, csum_start, csum_offset)

    def _transmit_tcp(self, frame: bytes, packet: tcp.TcpPacket, gso_size: int, marked: bool,
                      queue: int) -> list[bytes]:
        driver, device = self._driver, self.tx
        out: list[bytes] = []
        while not driver.transmit(queue, frame, packet, gso_size, marked):
            out += device.process(queue)
        out += device.process(queue)
        if device.completions:
            driver.completed()
        return out

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

    def receives(self) -> bool:
        """Whether there are flows that arrive, so that :meth:`receive` may change a frame."""
        return bool(self._rx.flows)

    def receive(self, frame: bytes, needs_csum: bool = False) -> bytes:
        """The frame for the kernel of one off the wire: the same, or with its records decrypted in place.

        What was done is in the flow's marks by then. ``needs_csum``: the checksum field has the sum of the pseudo
        header alone, so it is to be left as it is, and was right: packets that the port has put together.
        """
        counters = self.counters
        counters.rx_packets += 1
        counters.rx_bytes += len(frame)
        if self._rx.flows and tcp.is_tcp(frame):
            return self._rx.receive_untrusted(frame, needs_csum)
        return frame
