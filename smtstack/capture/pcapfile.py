"""Capture files: classic pcap and pcapng in, classic pcap out (pcapng out: pcapng.py).

Formats: draft-ietf-opsawg-pcap and draft-ietf-opsawg-pcapng; link types from the registry at
tcpdump.org/linktypes.html. A capture is input from outside like any packet, so everything that reads it
ends in ``_untrusted``, raises only :class:`~smtstack.errors.BadPacket` and allocates at most
:data:`MAX_BLOCK` bytes on the word of a length field.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from smtstack.errors import BadPacket
from smtstack.wire import ethernet

LINK_ETHERNET = 1
LINK_RAW = 101
LINK_SLL = 113
LINK_SLL2 = 276
#: Raw IP under its registered number, as written by some BSDs, and "raw IPv4".
_RAW_LINKS = (LINK_RAW, 12, 14, 228)

#: How the name of an interface ends whose packets never were on a wire: what a driver posts to its NIC.
HOST_SIDE = " host"

#: Bytes of the longest packet or block believed; tcpdump's largest snap length is a quarter of it.
MAX_BLOCK = 1 << 20

_MAGIC_US, _MAGIC_NS = 0xA1B2C3D4, 0xA1B23C4D
_MAGIC_NG = 0x0A0D0D0A
_BYTE_ORDER_NG = 0x1A2B3C4D
_IDB, _SPB, _EPB, _DSB = 1, 3, 6, 10
#: "TLSK": the secrets of a block are TLS's, as in a keylog.
_TLS_SECRETS = 0x544C534B
_OPT_IF_NAME, _OPT_TSRESOL, _OPT_TSOFFSET = 2, 9, 14
_OPT_COMMENT, _OPT_FLAGS = 1, 2
_MAX_COMMENT = 8192
_NS = 1_000_000_000
#: Upper bits of a classic header's link type tell about frame check sequences.
_LINK_MASK = 0xFFFF
_VLAN_TAGS = (0x8100, 0x88A8)


class Captured(NamedTuple):
    """One packet of a capture file."""

    #: Nanoseconds since 1970; 0 where the file has no time (pcapng simple packets).
    timestamp_ns: int
    #: ``LINKTYPE_`` number: what ``frame`` begins with.
    link_type: int
    frame: bytes
    #: Name of the interface, where the file has one (pcapng).
    interface: str = ""
    #: What is noted with the packet (pcapng), line by line.
    comment: str = ""
    #: Whether it left or entered; None: the file does not say (pcapng).
    outwards: bool | None = None


class _Interface(NamedTuple):
    """What a pcapng interface description block says."""

    link_type: int
    snap_length: int
    #: Time stamps count units of ``numerator / denominator`` nanoseconds.
    numerator: int
    denominator: int
    offset_ns: int
    name: str


class Reader:
    """Packets of one capture file, front to back. Tells pcap from pcapng by itself."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        #: Packets (at most one) that the end of the file cut off; they are not delivered.
        self.truncated = 0
        #: Contents of the blocks with TLS secrets met so far, in the format of NSS (pcapng).
        self.tls_secrets: list[bytes] = []
        #: Delivered packets of which the capture kept the beginning only (its snap length).
        self.shortened = 0

    def frames_untrusted(self) -> Iterator[Captured]:
        """Every packet; raises :class:`BadPacket` where the file is no capture, or is damaged."""
        magic = self._stream.read(4)
        if len(magic) < 4:
            raise BadPacket("not a capture: shorter than a magic number")
        if int.from_bytes(magic, "big") == _MAGIC_NG:
            yield from self._pcapng_untrusted()
            return
        for order in "<>":
            number = struct.unpack(order + "I", magic)[0]
            if number in (_MAGIC_US, _MAGIC_NS):
                yield from self._pcap_untrusted(order, 1 if number == _MAGIC_NS else 1000)
                return
        raise BadPacket(f"not a capture: it begins with {magic.hex()}, neither pcap nor pcapng")

    # -- classic -----------------------------------------------------------------------------------------

    def _pcap_untrusted(self, order: str, unit_ns: int) -> Iterator[Captured]:
        head = self._stream.read(20)
        if len(head) < 20:
            raise BadPacket("not a capture: the pcap header is cut short")
        link_type = struct.unpack(order + "HHiIII", head)[5] & _LINK_MASK
        packet = struct.Struct(order + "IIII")
        while head := self._stream.read(16):
            if len(head) < 16:
                self.truncated += 1
                return
            seconds, fraction, size, original = packet.unpack(head)
            if size > MAX_BLOCK:
                raise BadPacket(f"damaged capture: a packet of {size} bytes")
            frame = self._stream.read(size)
            if len(frame) < size:
                self.truncated += 1
                return
            self.shortened += size < original
            yield Captured(seconds * _NS + fraction * unit_ns, link_type, frame)

    # -- pcapng ------------------------------------------------------------------------------------------

    def _pcapng_untrusted(self) -> Iterator[Captured]:
        order = self._section_untrusted()
        interfaces: list[_Interface] = []
        while order is not None and (head := self._stream.read(8)):
            if len(head) < 8:
                self.truncated += 1
                return
            if int.from_bytes(head[:4], "big") == _MAGIC_NG:
                # A new section may have another byte order, and starts numbering interfaces afresh.
                order = self._section_untrusted(head[4:])
                interfaces = []
                continue
            kind, size = struct.unpack(order + "II", head)
            body = self._body_untrusted(order, size, 8)
            if body is None:
                return
            if kind == _IDB:
                interfaces.append(_interface_untrusted(order, body))
            elif kind == _EPB:
                yield self._enhanced_untrusted(order, body, interfaces)
            elif kind == _SPB:
                yield self._simple_untrusted(order, body, interfaces)
            elif kind == _DSB:
                self._secrets_untrusted(order, body)

    def _section_untrusted(self, size_field: bytes = b"") -> str | None:
        """Byte order of the section whose header comes next; None if the file ends inside it."""
        head = size_field + self._stream.read(8 - len(size_field))
        for order in "<>":
            if head[4:] == struct.pack(order + "I", _BYTE_ORDER_NG):
                size = struct.unpack(order + "I", head[:4])[0]
                return order if self._body_untrusted(order, size, 12) is not None else None
        raise BadPacket("damaged capture: a pcapng section without a byte-order magic")

    def _body_untrusted(self, order: str, size: int, consumed: int) -> bytes | None:
        """Rest of a block of ``size`` bytes, its closing length checked and removed; None: cut off."""
        if not consumed + 4 <= size <= MAX_BLOCK or size % 4:
            raise BadPacket(f"damaged capture: a pcapng block of {size} bytes")
        rest = self._stream.read(size - consumed)
        if len(rest) < size - consumed:
            self.truncated += 1
            return None
        if rest[-4:] != struct.pack(order + "I", size):
            raise BadPacket("damaged capture: the two lengths of a pcapng block differ")
        return rest[:-4]

    def _enhanced_untrusted(self, order: str, body: bytes, interfaces: list[_Interface]) -> Captured:
        if len(body) < 20:
            raise BadPacket("damaged capture: a pcapng packet block that is too short")
        number, high, low, size, original = struct.unpack_from(order + "IIIII", body)
        if number >= len(interfaces):
            raise BadPacket(f"damaged capture: a packet of interface {number}, which is not described")
        if size > len(body) - 20:
            raise BadPacket(f"damaged capture: a packet of {size} bytes in a block of {len(body)}")
        interface = interfaces[number]
        time = (high << 32 | low) * interface.numerator // interface.denominator + interface.offset_ns
        self.shortened += size < original
        comments: list[str] = []
        outwards: bool | None = None
        for code, value in _options_untrusted(order, body, 20 + size + -size % 4):
            if code == _OPT_COMMENT:
                comments.append(value.decode(errors="replace"))
            elif code == _OPT_FLAGS and len(value) == 4:
                outwards = {1: False, 2: True}.get(struct.unpack(order + "I", value)[0] & 3)
        return Captured(time, interface.link_type, body[20:20 + size], interface.name,
                        "\n".join(comments)[:_MAX_COMMENT], outwards)

    def _secrets_untrusted(self, order: str, body: bytes) -> None:
        if len(body) < 8:
            raise BadPacket("damaged capture: a pcapng block of secrets that is too short")
        kind, size = struct.unpack_from(order + "II", body)
        if size > len(body) - 8:
            raise BadPacket(f"damaged capture: {size} bytes of secrets in a block of {len(body)}")
        if kind == _TLS_SECRETS:
            self.tls_secrets.append(body[8:8 + size])

    def _simple_untrusted(self, order: str, body: bytes, interfaces: list[_Interface]) -> Captured:
        if len(body) < 4 or not interfaces:
            raise BadPacket("damaged capture: a simple packet block too short or without an interface")
        original = struct.unpack_from(order + "I", body)[0]
        size = min(original, interfaces[0].snap_length or original, len(body) - 4)
        self.shortened += size < original
        return Captured(0, interfaces[0].link_type, body[4:4 + size], interfaces[0].name)


def _interface_untrusted(order: str, body: bytes) -> _Interface:
    if len(body) < 8:
        raise BadPacket("damaged capture: a pcapng interface description that is too short")
    link_type, _reserved, snap_length = struct.unpack_from(order + "HHI", body)
    numerator, denominator, offset = 1000, 1, 0
    name = ""
    for code, value in _options_untrusted(order, body, 8):
        if code == _OPT_TSRESOL and len(value) == 1:
            base = 2 if value[0] & 0x80 else 10
            numerator, denominator = _NS, base ** (value[0] & 0x7F)
        elif code == _OPT_IF_NAME:
            name = value.decode(errors="replace")
        elif code == _OPT_TSOFFSET and len(value) == 8:
            offset = struct.unpack(order + "q", value)[0] * _NS
    return _Interface(link_type, snap_length, numerator, denominator, offset, name)


def _options_untrusted(order: str, body: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + 4 <= len(body):
        code, size = struct.unpack_from(order + "HH", body, at)
        value = body[at + 4:at + 4 + size]
        if len(value) < size:
            raise BadPacket("damaged capture: a pcapng option reaches beyond its block")
        if code == 0:
            return
        yield code, value
        at += 4 + size + -size % 4


def ipv4_untrusted(link_type: int, frame: bytes) -> bytes | None:
    """The IPv4 packet in a captured frame (padding after it included); None: another protocol.

    Knows Ethernet (VLAN tags are skipped), Linux cooked captures (SLL, SLL2) and raw IP; raises
    :class:`BadPacket` for a frame cut off in its link header and for other link types.
    """
    if link_type in _RAW_LINKS:
        return frame if frame[:1] and frame[0] >> 4 == 4 else None
    try:
        type_at, at = {LINK_ETHERNET: (12, 14), LINK_SLL: (14, 16), LINK_SLL2: (0, 20)}[link_type]
    except KeyError:
        raise BadPacket(f"link type {link_type}; Ethernet (1), SLL (113), SLL2 (276) and raw IP (101) "
                        "are known") from None
    if len(frame) < at:
        raise BadPacket(f"frame of {len(frame)} bytes ends in its link header")
    protocol = frame[type_at] << 8 | frame[type_at + 1]
    while protocol in _VLAN_TAGS:
        if len(frame) < at + 4:
            raise BadPacket("frame ends in a VLAN tag")
        protocol = frame[at + 2] << 8 | frame[at + 3]
        at += 4
    return frame[at:] if protocol == ethernet.ETHERTYPE_IPV4 else None


class Writer:
    """Classic pcap, little endian, nanoseconds."""

    def __init__(self, stream: BinaryIO, link_type: int = LINK_ETHERNET) -> None:
        self._stream = stream
        stream.write(struct.pack("<IHHiIII", _MAGIC_NS, 2, 4, 0, 0, MAX_BLOCK, link_type))

    def write(self, timestamp_ns: int, frame: bytes) -> None:
        """Append one packet; ``timestamp_ns`` counts from 1970."""
        seconds, rest = divmod(timestamp_ns, _NS)
        self._stream.write(struct.pack("<IIII", seconds, rest, len(frame), len(frame)) + frame)
