"""A TLS stream over TCP in memory: an application with a record map, a kernel's TCP, a NIC, and who looks at the
wire. For tests of TLS offload, without any I/O."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable

from smtstack.crypto.stream_gcm import (
    CHACHA20_POLY1305,
    CIPHERS,
    TLS12,
    TLS13,
    StreamKeys,
    frame_record,
    seal_framed,
)
from smtstack.nic.record_map import RecordMapWriter, map_bytes
from smtstack.nic.tls_device import TlsNic, TlsNicConfig
from smtstack.nic.tls_flow import DUMP, LINUX, TxFlow
from smtstack.wire import tcp

SRC, DST, SPORT, DPORT = 0x0A000001, 0x0A000002, 40000, 443
FLOW = tcp.flow_key(SRC, DST, SPORT, DPORT)
#: Stands in all that a test sends, every 16 bytes: no 31 bytes of it can pass unseen.
CANARY = b"canary of leaks!"
KINDS = [(TLS12, "aes-128-gcm"), (TLS12, "aes-256-gcm"), (TLS13, "aes-128-gcm"), (TLS13, "aes-256-gcm")]
ALL_KINDS = [(version, cipher) for version in (TLS12, TLS13) for cipher in CIPHERS]


def make_keys(version: int = TLS13, cipher: str = "aes-128-gcm", salt: int = 100) -> StreamKeys:
    iv = 4 if version == TLS12 and cipher != CHACHA20_POLY1305 else 12
    return StreamKeys(version, cipher, bytes(range(CIPHERS[cipher])), bytes(range(salt, salt + iv)))


def tcp_frame(seq: int, payload: bytes, flags: int = tcp.ACK, flow: bytes = FLOW, ident: int = 1) -> bytes:
    """A packet of a flow, with the right checksums."""
    total = 40 + len(payload)
    head = bytearray(b"\2\0\0\0\0\2\2\0\0\0\0\1\x08\0"
                     + struct.pack("!BBHHHBBH", 0x45, 0, min(total, 0xFFFF), ident, 0x4000, 64, 6, 0) + flow[:8])
    head[24:26] = (-int.from_bytes(head[14:34], "big") % 0xFFFF).to_bytes(2, "big")
    bare = bytes(head) + flow[8:] + struct.pack("!IIBBHHH", seq % 2**32, 7, 0x50, flags, 500, 0, 0) + payload
    return tcp.replace_payload(bare, tcp.parse_untrusted(bare), payload)


def text(size: int, seed: int = 0) -> bytes:
    """Plaintext that is full of canaries, and different for every seed."""
    unit = CANARY + seed.to_bytes(4, "big")
    return (unit * (size // len(unit) + 1))[:size]


class Stream:
    """What an application sends: framed, as its TCP has it, and sealed, as it must look on the wire."""

    def __init__(self, keys: StreamKeys | None = None, start: int = 1000, number: int = 0,
                 room: int = 1 << 20, records: int = 256, nonce: int = 0xFFFF_FFFF_FFFF_FFF0) -> None:
        self.keys = keys or make_keys()
        self.start = start
        self.number = number
        self.nonce = nonce
        self.buffer = bytearray(map_bytes(room, records))
        self.map = RecordMapWriter(self.buffer, start, number, records)
        self.plain = bytearray()
        self.sealed = bytearray()
        #: Where records begin in both.
        self.starts: list[int] = []
        self.sent = 0

    def push(self, payload: bytes, kind: int = 23, ready: bool = False) -> int:
        """One more record; ``ready``: sealed by software before TCP gets it. How long it is."""
        keys = self.keys
        framed = frame_record(keys, kind, payload, self.nonce % 2**64)
        number = self.number + len(self.starts)
        sealed = seal_framed(keys, number, framed)
        self.nonce += 1
        seq = (self.start + len(self.plain)) % 2**32
        if ready:
            assert self.map.append_sealed(seq, len(sealed))
            framed = sealed
        else:
            half = len(framed) // 2
            view = self.map.append(seq, framed[:half], framed[half:])
            assert view is not None
            assert view == framed
        self.starts.append(len(self.plain))
        self.plain += framed
        self.sealed += sealed
        return len(framed)

    def flow(self, policy: str = LINUX, resync: str = DUMP) -> TxFlow:
        return TxFlow(FLOW, self.keys, self.buffer, policy, resync)

    def packet(self, at: int, size: int, flags: int = tcp.ACK) -> bytes:
        """What the kernel gives the NIC: bytes from ``at`` on, counted from the first record."""
        assert size <= len(self.plain) - at
        return tcp_frame(self.start + at, bytes(self.plain[at:at + size]), flags)

    def record_start(self, at: int) -> int:
        """Where the record of a byte begins."""
        return max(start for start in self.starts if start <= at)


class Wire:
    """Keeps what passes: every byte must be the right one, and no canary be seen."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.packets: list[tuple[int, bytes]] = []
        self.canaries = 0
        self.wrong: list[int] = []

    def take(self, frames: list[bytes]) -> None:
        for frame in frames:
            packet = tcp.parse_untrusted(frame)
            assert tcp.checksum_ok(frame, packet)
            payload = frame[packet.payload_at:packet.end]
            at = tcp.distance(self.stream.start, packet.seq)
            self.packets.append((at, payload))
            self.canaries += payload.count(CANARY)
            if at >= 0 and payload != self.stream.sealed[at:at + len(payload)]:
                self.wrong.append(at)

    def received(self) -> bytes:
        """The stream as far as it is whole."""
        out = bytearray()
        for at, payload in sorted(self.packets):
            if 0 <= at <= len(out) < at + len(payload):
                out += payload[len(out) - at:]
        return bytes(out)


def make_nic(number: int = 1, **config) -> TlsNic:
    return TlsNic(TlsNicConfig(number, **config))


class Tcp:
    """A kernel's TCP in virtual time: window, cumulative and selective acknowledgements, fast retransmit, timeout.

    ``lose`` says of each packet (where it begins, how often this was sent before) whether the wire loses it.
    """

    RTO = 50

    def __init__(self, stream: Stream, nic: TlsNic, lose: Callable[[int, int], bool], mss: int = 1000,
                 window: int = 20) -> None:
        self.stream, self.nic, self.lose, self.mss, self.window = stream, nic, lose, mss, window
        self.wire = Wire(stream)
        self.now = 0
        self.una = self.next = 0
        self.attempts: dict[int, int] = {}
        #: All that was given to the NIC: (where, bytes).
        self.log: list[tuple[int, int]] = []
        self.events: list[tuple[int, int, str, int, int]] = []
        self.got: list[tuple[int, int]] = []
        self.sacked: list[tuple[int, int]] = []
        self.duplicates = 0
        self.recover = -1
        self.rtx_next = 0
        self.last_progress = 0
        self.timeouts = 0

    def send(self, at: int, size: int) -> None:
        self.log.append((at, size))
        attempt = self.attempts[at] = self.attempts.get(at, -1) + 1
        frames = self.nic.transmit(self.stream.packet(at, size), marked=True)
        self.wire.take(frames)
        if frames and not self.lose(at, attempt):
            heapq.heappush(self.events, (self.now + 1, len(self.log), "data", at, size))

    def run(self) -> None:
        """Until all is acknowledged."""
        total = len(self.stream.plain)
        while self.una < total:
            while self.next < total and self.next - self.una + self.mss <= self.window * self.mss:
                size = min(self.mss, total - self.next)
                self.next += size
                self.send(self.next - size, size)
            if not self.events or self.events[0][0] > self.last_progress + self.RTO:
                self._timeout()
                continue
            self.now, _, kind, at, size = heapq.heappop(self.events)
            if kind == "data":
                self._arrive(at, size)
            else:
                self._acknowledged(at)
            assert self.now < 100_000, "it does not end"

    def _arrive(self, at: int, size: int) -> None:
        self.got.append((at, at + size))
        edge = 0
        for low, high in sorted(self.got):
            if low <= edge:
                edge = max(edge, high)
        heapq.heappush(self.events, (self.now + 1, len(self.got), "ack", edge, 0))

    def _acknowledged(self, edge: int) -> None:
        self.sacked = sorted(self.got)
        if edge > self.una:
            self.una = edge
            self.duplicates = 0
            self.last_progress = self.now
            self.stream.map.release((self.stream.start + edge) % 2**32)
            if edge >= self.recover:
                self.recover = -1
        elif edge == self.una:
            self.duplicates += 1
            if self.duplicates == 3 and self.recover < 0:
                self.recover, self.rtx_next = self.next, self.una
        if self.recover >= 0:
            self._fill_hole()

    def _fill_hole(self) -> None:
        """The next of the packets that others behind them say are lost, once each recovery."""
        at = max(self.rtx_next, self.una)
        highest = max(high for _low, high in self.sacked)
        while at < highest:
            size = min(self.mss, self.next - at)
            if not any(low <= at and at + size <= high for low, high in self.sacked):
                self.rtx_next = at + size
                self.send(at, size)
                return
            at += size
        self.rtx_next = at

    def _timeout(self) -> None:
        self.timeouts += 1
        self.now = max(self.now, self.last_progress + self.RTO)
        self.last_progress = self.now
        self.duplicates = 0
        self.recover = self.next
        self.rtx_next = self.una
        size = min(self.mss, self.next - self.una)
        self.rtx_next += size
        self.send(self.una, size)
