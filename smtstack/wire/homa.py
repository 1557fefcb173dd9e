"""The Homa/SMT packet family: DATA, GRANT, RESEND, UNKNOWN, BUSY, CUTOFFS, FREEZE, NEED_ACK, ACK.

One layout serves smt, homa and linux; that of upstream Homa is in :mod:`~smtstack.wire.upstream`, which has the
packets of this module in other bytes. Multi-byte fields are big endian; the first 28 bytes are common:

====  ====  ==============================================================================
off   size  field
====  ====  ==============================================================================
0     2+2   source and destination port
4     4     DATA: byte offset of the packet in its TSO segment; only a ``tso-seq`` NIC writes it
8     2     DATA: segment size, the payload bytes TSO put into every packet but the last
10    1     key epoch of the RPC
11    1     flags; bit 0, DATA: bytes 4..7 were written (0 is an offset, too); bit 1, DATA: incast, the
            client awaits many responses, and this one is to come by grant but for its first packet;
            bit 2, every type: handshake, the packet is of the plane in clear that makes sessions
12    1     TCP's header length, 0xA0 in DATA: to a TSO engine it looks like a TCP header; 0xA2: it travels as
            one, under TCP's protocol number (docs/protocol.md, "The overlay")
13    1     packet type
14    2     DATA: high half of the segment's offset in the message
16    2     checksum, unused
18    2     DATA: low half of the segment's offset
20    8     sender_id: the RPC id as the sender sees it (client even, server odd)
====  ====  ==============================================================================

In profile ``linux`` bytes 4..11 are zero on sending and ignored on receipt, as in the kernel module
(branch main, ``homa_impl.h``). ``smt`` appends 16 bytes to ACK: a proof made with the session's key,
because an acknowledgement frees state that cannot be had again (docs/protocol.md, "ACK proof").
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple

from smtstack.errors import BadPacket

DATA: Final = 0x10
GRANT: Final = 0x11
RESEND: Final = 0x12
UNKNOWN: Final = 0x13
BUSY: Final = 0x14
CUTOFFS: Final = 0x15
FREEZE: Final = 0x16
NEED_ACK: Final = 0x17
ACK: Final = 0x18

TYPE_NAMES: Final = {DATA: "DATA", GRANT: "GRANT", RESEND: "RESEND", UNKNOWN: "UNKNOWN", BUSY: "BUSY",
                     CUTOFFS: "CUTOFFS", FREEZE: "FREEZE", NEED_ACK: "NEED_ACK", ACK: "ACK"}

COMMON_LEN: Final = 28
DATA_LEN: Final = 40
ACK_LEN: Final = 90
PROOF_LEN: Final = 16
#: Where fields begin, as in the table above: in every packet, and (from the place in the segment) in DATA.
SPORT_OFFSET: Final = 0
DPORT_OFFSET: Final = 2
SEGMENT_SIZE_OFFSET: Final = 8
EPOCH_OFFSET: Final = 10
FLAGS_OFFSET: Final = 11
TYPE_OFFSET: Final = 13
SENDER_ID_OFFSET: Final = 20
PLACE_OFFSET: Final = 4
PLACE_LEN: Final = 4
SEGMENT_HIGH_OFFSET: Final = 14
SEGMENT_LOW_OFFSET: Final = 18
RETRANSMIT_OFFSET: Final = 38
PACKET_INDEX_OFFSET: Final = 39
MAX_ACKS: Final = 5
NUM_PRIORITIES: Final = 8
#: Flag of DATA: a NIC wrote the packet's offset in its segment.
PLACED: Final = 0x01
#: Flag of DATA, set by the client: only one packet of the response may come without a grant. The response
#: carries it, too.
INCAST: Final = 0x02
#: Flag of every packet of the handshake plane of profile ``smt``: Homa in clear, beside the sealed plane.
HANDSHAKE: Final = 0x04
#: Byte 12 of DATA, where TCP has the length of its header: 40 bytes, in units of 4, in the high nibble.
TCP_HEADER_LENGTH: Final = 0xA0
TCP_HEADER_OFFSET: Final = 12
#: The same with one of TCP's reserved bits, which TCP never sets and every segmenter copies: DATA under TCP's
#: protocol number. Bytes 4..7 are then the packet's offset in the *message*, and the segment's offset is 0.
OVERLAY_HEADER_LENGTH: Final = 0xA2
#: What filters look for in bytes 12 and 13: header length with the reserved bit; the type, to TCP its flag ACK.
OVERLAY_MARK: Final = bytes((OVERLAY_HEADER_LENGTH, DATA))
#: Where TCP has its checksum: unused but under TCP's protocol number.
CHECKSUM_OFFSET: Final = 16

#: IP protocol numbers: IANA's for Homa, and the one the kernel module (branch main) uses. DATA in the shape of TCP
#: has TCP's.
PROTO_HOMA: Final = 146
PROTO_LINUX: Final = 253

COMMON: Final = struct.Struct("!HHIHBxBBHHHQ")
DATA_HEADER: Final = struct.Struct("!HHIHBBBBHHHQIIHBB")
_ACK_ENTRY: Final = struct.Struct("!QHH")
_ACK_BODY: Final = struct.Struct("!H" + 5 * "QHH")
_ACK_COUNT_LEN: Final = 2
_ENTRIES_AT: Final = COMMON_LEN + _ACK_COUNT_LEN
_GRANT: Final = struct.Struct("!IB")
_RESEND: Final = struct.Struct("!IIB")
_CUTOFFS: Final = struct.Struct("!8IH")


@dataclass(frozen=True, slots=True)
class WireFormat:
    """What differs between profiles on the wire."""

    name: str
    protocol: int
    #: Bytes 4..11 (packet offset, segment size, key epoch, flags) carry meaning.
    extended: bool
    #: ACK ends in a 16-byte proof.
    ack_proof: bool
    #: Where the packet type is, and how long the header of DATA.
    type_offset: int = TYPE_OFFSET
    data_len: int = DATA_LEN
    #: Packets may as well look like TCP's: protocol 6 and a pattern that no TCP sends.
    tcp_shaped: bool = False


SMT: Final = WireFormat("smt", PROTO_HOMA, extended=True, ack_proof=True)
HOMA: Final = WireFormat("homa", PROTO_HOMA, extended=True, ack_proof=False)
LINUX: Final = WireFormat("linux", PROTO_LINUX, extended=False, ack_proof=False)
#: Homa's own module. Also in the shape of TCP. Parsed and packed by :mod:`~smtstack.wire.upstream`.
UPSTREAM: Final = WireFormat("upstream", PROTO_HOMA, extended=False, ack_proof=False, type_offset=11, data_len=56,
                             tcp_shaped=True)
FORMATS: Final = {f.name: f for f in (SMT, HOMA, LINUX, UPSTREAM)}


@dataclass(frozen=True, slots=True)
class Data:
    """Header of one DATA packet; the payload follows it on the wire. Offsets and lengths in bytes."""

    sport: int
    dport: int
    sender_id: int
    message_length: int
    incoming: int
    segment_offset: int = 0
    segment_size: int = 0
    cutoff_version: int = 0
    retransmit: int = 0
    #: Index of the packet in its segment when it travels alone (a retransmission); added to the IP ID.
    packet_index: int = 0
    #: Offset in the segment, if ``placed``.
    packet_offset: int = 0
    epoch: int = 0
    #: A ``tso-seq`` NIC wrote ``packet_offset``; otherwise IP ID and ``packet_index`` tell the place.
    placed: bool = False
    #: The response comes by grant, but for one packet.
    incast: bool = False
    #: Upstream: an RPC of the sender's (by its even id) that the server of this port may forget; 0: none.
    acked_id: int = 0
    acked_port: int = 0
    #: It has the shape of TCP: ``packet_offset`` counts from the message's beginning, ``segment_offset`` is 0.
    overlay: bool = False

    def index_in_segment(self, identification: int) -> int:
        """Which packet of its segment the one with this IP ID is, where none was placed: 0, 1, ..."""
        return identification + self.packet_index & 0xFFFF

    def offset_in_segment(self, identification: int) -> int:
        """Where the payload of the packet with this IP ID lies in its segment, in bytes."""
        if self.placed:
            return self.packet_offset
        return self.index_in_segment(identification) * self.segment_size

    def pack(self) -> bytes:
        """The 40 header bytes."""
        return DATA_HEADER.pack(
            self.sport, self.dport, self.packet_offset, self.segment_size, self.epoch,
            (PLACED if self.placed else 0) | (INCAST if self.incast else 0),
            OVERLAY_HEADER_LENGTH if self.overlay else TCP_HEADER_LENGTH, DATA,
            self.segment_offset >> 16, 0,
            self.segment_offset & 0xFFFF, self.sender_id, self.message_length, self.incoming,
            self.cutoff_version, self.retransmit, self.packet_index)


@dataclass(frozen=True, slots=True)
class Grant:
    """The receiver allows bytes up to the absolute message ``offset``, to be sent at ``priority``."""

    sport: int
    dport: int
    sender_id: int
    offset: int
    priority: int
    epoch: int = 0

    def pack(self) -> bytes:
        """The 33 packet bytes."""
        return _common(self, GRANT) + _GRANT.pack(self.offset, self.priority)


@dataclass(frozen=True, slots=True)
class Resend:
    """Send ``length`` bytes from ``offset`` again, at ``priority``. Upstream, -1: all that was sent."""

    sport: int
    dport: int
    sender_id: int
    offset: int
    length: int
    priority: int
    epoch: int = 0

    def pack(self) -> bytes:
        """The 37 packet bytes."""
        return _common(self, RESEND) + _RESEND.pack(self.offset, self.length, self.priority)


@dataclass(frozen=True, slots=True)
class Unknown:
    """The sender of this packet does not know the RPC."""

    sport: int
    dport: int
    sender_id: int
    epoch: int = 0

    def pack(self) -> bytes:
        """The 28 packet bytes."""
        return _common(self, UNKNOWN)


@dataclass(frozen=True, slots=True)
class Busy:
    """Alive, but will not send yet; resets the peer's timers."""

    sport: int
    dport: int
    sender_id: int
    epoch: int = 0

    def pack(self) -> bytes:
        """The 28 packet bytes."""
        return _common(self, BUSY)


@dataclass(frozen=True, slots=True)
class Freeze:
    """Debugging aid of the kernel module (stop tracing); we count and ignore it."""

    sport: int
    dport: int
    sender_id: int
    epoch: int = 0

    def pack(self) -> bytes:
        """The 28 packet bytes."""
        return _common(self, FREEZE)


@dataclass(frozen=True, slots=True)
class NeedAck:
    """The server wants to free the RPC: has the client its response?"""

    sport: int
    dport: int
    sender_id: int
    epoch: int = 0

    def pack(self) -> bytes:
        """The 28 packet bytes."""
        return _common(self, NEED_ACK)


@dataclass(frozen=True, slots=True)
class Cutoffs:
    """``cutoffs[i]``: largest message, in bytes, that may be sent unscheduled at priority i."""

    sport: int
    dport: int
    sender_id: int
    cutoffs: tuple[int, ...]
    cutoff_version: int
    epoch: int = 0

    def pack(self) -> bytes:
        """The 62 packet bytes."""
        return _common(self, CUTOFFS) + _CUTOFFS.pack(*self.cutoffs, self.cutoff_version)


class AckEntry(NamedTuple):
    """One finished RPC: the client's (even) id and both ports; upstream does not say the client's, which is 0."""

    client_id: int
    client_port: int
    server_port: int


@dataclass(frozen=True, slots=True)
class Ack:
    """The client has its responses: of the RPC in the header, and of up to five more."""

    sport: int
    dport: int
    sender_id: int
    acks: tuple[AckEntry, ...] = ()
    epoch: int = 0
    #: 16 bytes in profile ``smt``, empty elsewhere.
    proof: bytes = b""

    def body(self) -> bytes:
        """Count and entries, bytes 28..90: what the proof of profile ``smt`` covers."""
        count = len(self.acks)
        return _ACK_BODY.pack(count, *chain.from_iterable(self.acks), *_NO_ENTRIES[3 * count:])

    def pack(self) -> bytes:
        """The 90 packet bytes, 106 with a proof."""
        return _common(self, ACK) + self.body() + self.proof


_NO_ENTRIES: Final = (0,) * (3 * MAX_ACKS)

Control = Grant | Resend | Unknown | Busy | Freeze | NeedAck | Cutoffs | Ack
Packet = Data | Control


def _common(p: Control, kind: int) -> bytes:
    return COMMON.pack(p.sport, p.dport, 0, 0, p.epoch, 0, kind, 0, 0, 0, p.sender_id)


def _grant(buf: bytes, sport: int, dport: int, sid: int, epoch: int) -> Grant:
    offset, priority = _GRANT.unpack_from(buf, COMMON_LEN)
    return Grant(sport, dport, sid, offset, priority & 7, epoch)


def _resend(buf: bytes, sport: int, dport: int, sid: int, epoch: int) -> Resend:
    offset, length, priority = _RESEND.unpack_from(buf, COMMON_LEN)
    return Resend(sport, dport, sid, offset, length, priority & 7, epoch)


def _cutoffs(buf: bytes, sport: int, dport: int, sid: int, epoch: int) -> Cutoffs:
    values = _CUTOFFS.unpack_from(buf, COMMON_LEN)
    return Cutoffs(sport, dport, sid, values[:NUM_PRIORITIES], values[NUM_PRIORITIES], epoch)


def _ack(buf: bytes, sport: int, dport: int, sid: int, epoch: int) -> Ack:
    count = int.from_bytes(buf[COMMON_LEN:COMMON_LEN + _ACK_COUNT_LEN], "big")
    if count > MAX_ACKS:
        # The kernel module reads past its packet here (reference §9.2); we refuse.
        raise BadPacket(f"ACK claims {count} entries, at most {MAX_ACKS} fit")
    used = buf[_ENTRIES_AT:_ENTRIES_AT + _ACK_ENTRY.size * count]
    entries = tuple(map(AckEntry._make, _ACK_ENTRY.iter_unpack(used)))
    return Ack(sport, dport, sid, entries, epoch, bytes(buf[ACK_LEN:ACK_LEN + PROOF_LEN]))


_PARSERS: dict[int, tuple[int, Callable[[bytes, int, int, int, int], Control]]] = {
    GRANT: (33, _grant),
    RESEND: (37, _resend),
    UNKNOWN: (28, lambda _b, s, d, i, e: Unknown(s, d, i, e)),
    BUSY: (28, lambda _b, s, d, i, e: Busy(s, d, i, e)),
    CUTOFFS: (62, _cutoffs),
    FREEZE: (28, lambda _b, s, d, i, e: Freeze(s, d, i, e)),
    NEED_ACK: (28, lambda _b, s, d, i, e: NeedAck(s, d, i, e)),
    ACK: (ACK_LEN, _ack),
}


def tcp_shaped(transport: bytes) -> bool:
    """Whether what follows an IP header of TCP's protocol is DATA of ours in the shape of TCP, and not TCP."""
    return transport[TCP_HEADER_OFFSET:TYPE_OFFSET + 1] == OVERLAY_MARK


def parse_untrusted(buf: bytes, fmt: WireFormat = SMT) -> Packet:
    """The packet whose transport header starts ``buf``, in any format but upstream's; raises :class:`BadPacket`.

    ``buf`` must be trimmed to the IP total length: Ethernet pads short frames. For DATA only the
    header is parsed; the payload is ``buf[40:]`` and never empty.
    """
    if len(buf) < COMMON_LEN:
        raise BadPacket(f"{len(buf)} bytes are too few for a Homa header")
    kind = buf[TYPE_OFFSET]
    if kind == DATA:
        return _data(buf, fmt)
    try:
        minimum, parser = _PARSERS[kind]
    except KeyError:
        raise BadPacket(f"unknown packet type {kind:#04x}") from None
    if kind == ACK and fmt.ack_proof:
        minimum += PROOF_LEN
    if len(buf) < minimum:
        raise BadPacket(f"{TYPE_NAMES[kind]} of {len(buf)} bytes, expected {minimum}")
    sport, dport, _seq, _size, epoch, _doff, _type, _hi, _sum, _lo, sender_id = COMMON.unpack_from(buf)
    return parser(buf, sport, dport, sender_id, epoch if fmt.extended else 0)


def _data(buf: bytes, fmt: WireFormat) -> Data:
    if len(buf) <= DATA_LEN:
        raise BadPacket(f"DATA of {len(buf)} bytes carries no payload")
    (sport, dport, seq, size, epoch, flags, doff, _type, hi, _sum, lo, sender_id, length, incoming, version,
     retransmit, index) = DATA_HEADER.unpack_from(buf)
    if length == 0:
        raise BadPacket("DATA of a message of length 0")
    if not fmt.extended:
        seq = size = epoch = flags = 0
    return Data(sport, dport, sender_id, length, incoming, (hi << 16) | lo, size, version, retransmit,
                index, seq, epoch, bool(flags & PLACED), bool(flags & INCAST),
                overlay=fmt.extended and doff == OVERLAY_HEADER_LENGTH)
