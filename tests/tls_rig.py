"""A TLS stream over TCP in memory: an application with a record map, a kernel's TCP, a NIC, and who looks at the
wire. For tests of TLS offload, without any I/O."""

from __future__ import annotations

import heapq
import struct
from collections.abc import Callable
from itertools import product

from smtstack.crypto.stream_gcm import (
    CHACHA20_POLY1305,
    CIPHERS,
    TLS12,
    TLS13,
    StreamKeys,
    apply_keystream,
    frame_record,
    inner_untrusted,
    open_record_untrusted,
    record_len_untrusted,
    seal_framed,
)
from smtstack.errors import AuthError
from smtstack.nic.marks import AMBIGUOUS, DECRYPTED, ENCRYPTED, MarkReader, Range, mark_bytes
from smtstack.nic.record_map import RecordMapWriter, map_bytes
from smtstack.nic.rx_resync import RxResync
from smtstack.nic.tls_device import TlsNic, TlsNicConfig
from smtstack.nic.tls_flow import DUMP, LINUX, RxFlow, TxFlow
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


def offloaded(stream: Stream, policy: str = LINUX, resync: str = DUMP, **config) -> tuple[TlsNic, Wire]:
    """A NIC that has the stream's context, and the wire behind it."""
    nic = make_nic(**config)
    assert nic.add_flow(stream.flow(policy, resync))
    return nic, Wire(stream)


def send_all(stream: Stream, nic: TlsNic, wire: Wire, step: int, at: int = 0) -> None:
    """The rest of a stream, so many bytes a packet."""
    while at < len(stream.plain):
        size = min(step, len(stream.plain) - at)
        wire.take(nic.transmit(stream.packet(at, size), marked=True))
        at += size


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


class Receiver:
    """The other end: a NIC, a kernel that keeps the first copy of every byte, an application that opens records.

    Whatever happens, what the NIC passes up is the packet as it came, or its plaintext, and marked as such.
    """

    def __init__(self, stream: Stream, resync: str, nic: TlsNic | None = None, context: bool = True,
                 entries: int = 64) -> None:
        self.stream = stream
        self.nic = nic or make_nic()
        self.buffer = bytearray(mark_bytes(entries))
        self.flow = RxFlow(FLOW, stream.keys, self.buffer, stream.start % 2**32, stream.number, resync)
        self.nic.add_flow(self.flow, context)
        self.marks = MarkReader([self.buffer], stream.start % 2**32)
        self.resync = RxResync(self.marks, resync)
        #: What the kernel has: the first copy of each byte, and of which it has one.
        self.bytes = bytearray(len(stream.plain))
        self.have = bytearray(len(stream.plain))
        self.as_opened = self._as_opened()
        #: What was delivered, which records' tags were wrong, and how each record came.
        self.delivered: list[bytes] = []
        self.bad: list[int] = []
        self.how: list[str] = []
        self.at = 0

    def _as_opened(self) -> bytes:
        """The stream as a device passes it up decrypted: framed, and with the tags."""
        stream = self.stream
        out = bytearray(stream.plain)
        for start, end in zip(stream.starts, [*stream.starts[1:], len(out)], strict=True):
            out[end - 16:end] = stream.sealed[end - 16:end]
            assert start < end
        return bytes(out)

    def put(self, at: int, data: bytes) -> None:
        """Bytes come to the kernel, by whatever way."""
        end = at + len(data)
        if not any(self.have[at:end]):
            self.bytes[at:end] = data
        else:
            for n, byte in enumerate(data):
                if not self.have[at + n]:
                    self.bytes[at + n] = byte
        self.have[at:end] = b"\1" * len(data)

    def lose(self, at: int, size: int) -> None:
        """The kernel had no room for what came."""
        self.have[at:at + size] = bytes(size)

    def take(self, at: int, size: int, payload: bytes | None = None) -> bool:
        """A packet arrives from the wire; whether it was passed up decrypted."""
        genuine = payload is None
        wire = bytes(self.stream.sealed[at:at + size]) if payload is None else payload
        frame = tcp_frame(self.stream.start + at, wire)
        before = self.nic.counters.rx_tls_decrypted_packets
        up = self.nic.receive(frame)
        decrypted = self.nic.counters.rx_tls_decrypted_packets > before
        packet = tcp.parse_untrusted(up)
        assert tcp.checksum_ok(up, packet)
        got = up[packet.payload_at:packet.end]
        if not decrypted:
            assert up == frame
        elif genuine:
            assert got == self.as_opened[at:at + size], f"not its plaintext: {at}"
        self.put(at, got)
        return decrypted

    def read(self) -> None:
        """The application takes what is whole."""
        stream = self.stream
        whole = self.have.find(0, self.at)
        whole = len(self.have) if whole < 0 else whole
        while self.at + 5 <= whole:
            length = record_len_untrusted(stream.keys, self.bytes[self.at:self.at + 5])
            assert length, "the application lost the records"
            seq = (stream.start + self.at) % 2**32
            self.resync.head(seq, length, stream.number + len(self.how), whole - self.at)
            if self.at + length > whole:
                break
            self._record(bytes(self.bytes[self.at:self.at + length]), self.at + length < whole)
            self.at += length
            self.marks.release((stream.start + self.at) % 2**32)

    def _record(self, record: bytes, queued: bool) -> None:
        seq = (self.stream.start + self.at) % 2**32
        number = self.stream.number + len(self.how)
        ranges = self.marks.forms(seq, len(record))
        form = ranges[0].form if len(ranges) == 1 else AMBIGUOUS
        data = self._open(record, number, ranges)
        self.how.append({DECRYPTED: "device", ENCRYPTED: "software"}.get(form, "mixed"))
        if data is None:
            self.bad.append(number)
        else:
            self.delivered.append(data)
        self.resync.record(seq, len(record), number, form, queued)

    def _open(self, record: bytes, number: int, ranges: list[Range]) -> bytes | None:
        keys = self.stream.keys
        at = keys.header_len
        if all(r.form == DECRYPTED for r in ranges):
            return record[at:-16] if keys.version == TLS12 else inner_untrusted(record[at:-16])[1]
        unsure = [r for r in ranges if r.form == AMBIGUOUS]
        # The copy that came decrypted came first.
        for choice in product((True, False), repeat=len(unsure)):
            sealed = bytearray(record)
            taken = dict(zip((r.start for r in unsure), choice, strict=True))
            for r in ranges:
                if r.form == DECRYPTED or taken.get(r.start):
                    low, high = max(r.start, at), min(r.end, len(record) - 16)
                    if low < high:
                        sealed[low:high] = apply_keystream(keys, number, record[:at], low - at, record[low:high])
            try:
                return open_record_untrusted(keys, number, bytes(sealed))[1]
            except AuthError:
                continue
        return None
