"""The device of a NIC that is a process: TLS, and checksums and segmentation where single packets are wanted."""

from __future__ import annotations

from typing import Final

from smtstack.errors import BadPacket
from smtstack.nic.device import TAP_FEATURES, NicConfig
from smtstack.nic.tls_device import TLS_FEATURES, TlsNic, TlsNicConfig
from smtstack.nicshare.tap import Tap
from smtstack.wire import tcp

CONFIG: Final = NicConfig(tls_hw_tx_offload=True, tls_hw_rx_offload=True)


class TapNic:
    """What the process moves frames through: device and driver in one, as settings see it. ``number`` tells the
    NICs of a host apart, ``super_frames``: whoever is at the other end of the cable takes segments uncut."""

    def __init__(self, number: int, mtu: int, super_frames: bool) -> None:
        self.tls = TlsNic(TlsNicConfig(number, max_contexts=CONFIG.max_contexts, mtu=mtu))
        self.counters = self.tls.counters
        self.watcher: Tap | None = None
        self.tso = True
        self.rx_checksum = True
        self._super_frames = super_frames

    # -- settings ------------------------------------------------------------------------------------------

    @property
    def nic(self) -> TapNic:
        """Itself: it is its own driver."""
        return self

    @property
    def config(self) -> NicConfig:
        """What the hardware is like."""
        return CONFIG

    @property
    def context_limit(self) -> int:
        """TLS contexts there may be at once."""
        return self.tls.context_limit

    @context_limit.setter
    def context_limit(self, limit: int) -> None:
        self.tls.context_limit = limit

    def features(self) -> dict[str, bool]:
        """Every feature and whether it is on."""
        return {name: self._get(name) for name in TAP_FEATURES}

    def _get(self, name: str) -> bool:
        return bool(getattr(self.tls if name in TLS_FEATURES else self, name.replace("-", "_")))

    def set_feature(self, name: str, on: bool) -> None:
        """Switch one. Of TLS offload it decides for flows that come from now on, as with Linux."""
        if name in TLS_FEATURES:
            self.tls.set_feature(name, on)
        else:
            setattr(self, name.replace("-", "_"), on)

    def watch(self, tap: Tap | None) -> None:
        """Record all that passes; None: no longer."""
        self.watcher = tap

    def trim_contexts(self) -> None:
        """The limit was lowered: who tends the flows takes contexts away (:mod:`smtstack.tapnic.flows`)."""

    def set_paths(self, paths: int) -> None:
        """Not for packets of the kernel's: what chooses paths by itself has a device of its own."""

    # -- transmit ------------------------------------------------------------------------------------------

    def passed(self, frame: memoryview, cut: int) -> None:
        """Count a frame that needs nothing here; ``cut``: payload of each packet that it becomes; 0: it is one."""
        counters = self.counters
        counters.tx_packets += 1
        counters.tx_bytes += len(frame)
        if cut:
            head = _head_len(frame)
            counters.tx_tso_packets += 1
            counters.tx_tso_bytes += len(frame) - head
            if self._super_frames:
                counters.tx_gso_packets += 1
                return
            more = -(-(len(frame) - head) // cut) - 1
            counters.tx_packets += more
            counters.tx_bytes += more * head

    def segment(self, frame: bytes, cut: int) -> list[bytes]:
        """A segment of a marked socket, sealed; what is left to do to it stays to be done. Empty: dropped."""
        self.tls.tx.whole = True
        frames = self.tls.transmit(frame, cut, marked=True)
        self.tls.tx.whole = False
        return frames

    def packets(self, frame: bytes, cut: int, needs_csum: bool, start: int, offset: int,
                marked: bool) -> list[bytes]:
        """The packets that a segment becomes on the wire."""
        frames = self.tls.transmit(frame, cut, needs_csum, start, offset, marked)
        if self.watcher is not None:
            self.watcher.left(int(marked), frame, frames, "offload: hw" if marked else "")
        return frames

    # -- receive -------------------------------------------------------------------------------------------

    @property
    def looks_into(self) -> bool:
        """Whether there is a flow whose packets may be decrypted."""
        return self.tls.receives()

    def arrived(self, frame: memoryview, cut: int) -> None:
        """Count a frame that nobody looks into; ``cut``: payload of each packet that it was; 0: it is one."""
        self.counters.rx_packets += 1
        self.counters.rx_bytes += len(frame)
        if cut:
            self._count_merged(frame, cut)

    def receive(self, frame: bytes, needs_csum: bool, cut: int = 0) -> bytes:
        """The frame for the kernel of one off the wire, with its checksum as complete as it came."""
        counters = self.counters
        decrypted = counters.rx_tls_decrypted_packets
        passed_up = self.tls.receive(frame, needs_csum)
        if cut:
            more = self._count_merged(frame, cut)
            if counters.rx_tls_decrypted_packets > decrypted:
                counters.rx_tls_decrypted_packets += more
        return passed_up

    def _count_merged(self, frame: memoryview | bytes, cut: int) -> int:
        """Count the packets that the port has put together, as they were on the wire, but for one; how many."""
        if self._super_frames:
            return 0
        head = _head_len(frame)
        more = -(-(len(frame) - head) // cut) - 1
        self.counters.rx_packets += more
        self.counters.rx_bytes += more * head
        return more

    def singles(self, frame: bytes, cut: int, needs_csum: bool, start: int, offset: int) -> list[bytes]:
        """The packets of a frame that came with something left to do to it."""
        try:
            if cut:
                packet = tcp.parse_untrusted(frame)
                return tcp.cut(frame, packet, frame[packet.payload_at:packet.end], cut)
            return [tcp.finish_checksum(frame, start, offset) if needs_csum else frame]
        except BadPacket:
            self.counters.rx_errors += 1
            return []


def _head_len(frame: memoryview | bytes) -> int:
    """Bytes of the headers of a segment of TCP over IPv4, as the kernel makes or merges them."""
    tcp_at = tcp.IP_AT + (frame[tcp.IP_AT] & 15) * 4
    return tcp_at + (frame[tcp_at + 12] >> 4) * 4
