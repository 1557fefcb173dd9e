"""Reading pcapng (draft-ietf-opsawg-pcapng, and the Packet Block that came before it).

What is allocated on the word of a length field is bounded by the type of the block (:data:`BOUNDS`): a keylog is
longer than any packet. A block that is not read is passed over, however long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from smtstack.capture.captured import (
    MAX_PACKET,
    MAX_SECRETS,
    NS,
    Captured,
    Remarks,
    bounded_time,
    skip_untrusted,
)
from smtstack.errors import BadPacket

MAGIC = 0x0A0D0D0A
_BYTE_ORDER = 0x1A2B3C4D
_IDB, _PB, _SPB, _NRB, _ISB, _EPB, _JOURNAL, _DSB = 1, 2, 3, 4, 5, 6, 9, 10
#: Without packets of a network in them.
_SILENT = {_NRB, _ISB, 0x00000BAD, 0x40000BAD}
_NAMES = {_JOURNAL: "journal entries of systemd", 0x80000001: "Darwin's process information"}
#: "TLSK": the secrets of a block are TLS's, as in a keylog.
_TLS_SECRETS = 0x544C534B
#: Names of the blocks read, and bytes of the longest one read, by type. Packets may have long comments.
BOUNDS: dict[int, tuple[str, int]] = {
    MAGIC: ("section header", 1 << 20), _IDB: ("interface description", 1 << 20),
    _PB: ("packet block", 2 * MAX_PACKET), _SPB: ("simple packet block", 2 * MAX_PACKET),
    _EPB: ("enhanced packet block", 2 * MAX_PACKET), _DSB: ("block of secrets", 256 << 20)}
_PACKETS = {_PB, _SPB, _EPB}
#: Interfaces one section may describe.
_MAX_INTERFACES = 1 << 16
_OPT_IF_NAME, _OPT_TSRESOL, _OPT_TSOFFSET = 2, 9, 14
_OPT_COMMENT, _OPT_FLAGS = 1, 2
_MAX_COMMENT = 8192


class _Interface(NamedTuple):
    """What an interface description block says."""

    link_type: int
    snap_length: int
    #: Time stamps count units of ``numerator / denominator`` nanoseconds.
    numerator: int
    denominator: int
    offset_ns: int
    name: str


class _CutOffError(Exception):
    """The file ends inside a block."""


class Blocks:
    """The blocks of a file, after its first four bytes. What is no packet goes into ``remarks``."""

    def __init__(self, stream: BinaryIO, remarks: Remarks) -> None:
        self._stream = stream
        self._remarks = remarks
        self._order = "<"
        self._interfaces: list[_Interface] = []
        self._secret_bytes = 0

    def packets_untrusted(self) -> Iterator[Captured]:
        """Every packet; raises :class:`BadPacket` where the file is damaged, or holds too much to be read."""
        try:
            self._section_untrusted(b"")
            while head := self._stream.read(8):
                if len(head) < 8:
                    raise _CutOffError
                if int.from_bytes(head[:4], "big") == MAGIC:
                    # A new section may have another byte order, and starts numbering interfaces afresh.
                    self._section_untrusted(head[4:])
                    continue
                kind, size = struct.unpack(self._order + "II", head)
                body = self._body_untrusted(kind, size, 8)
                if body is None:
                    continue
                if kind in _PACKETS:
                    yield self._packet_untrusted(kind, body)
                elif kind == _IDB:
                    if len(self._interfaces) == _MAX_INTERFACES:
                        raise BadPacket(f"too large a capture: more than {_MAX_INTERFACES} interfaces")
                    self._interfaces.append(_interface_untrusted(self._order, body))
                else:
                    self._secrets_untrusted(body)
        except _CutOffError:
            self._remarks.truncated += 1

    def _section_untrusted(self, size_field: bytes) -> None:
        """The rest of a section header, of which the type is read, and perhaps the length."""
        head = size_field + self._stream.read(8 - len(size_field))
        for order in "<>":
            if head[4:] == struct.pack(order + "I", _BYTE_ORDER):
                self._order = order
                self._interfaces = []
                self._body_untrusted(MAGIC, struct.unpack(order + "I", head[:4])[0], 12)
                return
        raise BadPacket("damaged capture: a pcapng section without a byte-order magic")

    def _body_untrusted(self, kind: int, size: int, consumed: int) -> bytes | None:
        """The rest of a block, its closing length checked and removed; None: of a kind, or length, not read."""
        name, bound = BOUNDS.get(kind, ("block", 0))
        if size < consumed + 4 or size % 4:
            raise BadPacket(f"damaged capture: a pcapng {name} of {size} bytes")
        if size > bound:
            if kind in BOUNDS and kind not in _PACKETS:
                raise BadPacket(f"too large: a pcapng {name} of {size} bytes; at most {bound} are read")
            self._skip_untrusted(size - consumed - 4)
            rest = self._stream.read(4)
            if kind in _PACKETS:
                self._remarks.oversized += 1
            elif kind not in _SILENT:
                self._remarks.passed_over[_NAMES.get(kind, f"pcapng blocks of type {kind:#010x}")] += 1
        else:
            rest = self._stream.read(size - consumed)
            if len(rest) < size - consumed:
                raise _CutOffError
        if rest[-4:] != struct.pack(self._order + "I", size):
            raise BadPacket("damaged capture: the two lengths of a pcapng block differ")
        return rest[:-4] if size <= bound else None

    def _skip_untrusted(self, size: int) -> None:
        if size <= MAX_PACKET:
            if len(self._stream.read(size)) < size:
                raise _CutOffError
        else:
            # That long, it rather is the length that is wrong.
            skip_untrusted(self._stream, size)

    def _packet_untrusted(self, kind: int, body: bytes) -> Captured:
        if kind == _SPB:
            return self._simple_untrusted(body)
        if len(body) < 20:
            raise BadPacket("damaged capture: a pcapng packet block that is too short")
        number, high, low, size, original = struct.unpack_from(self._order + "IIIII", body)
        if kind == _PB:
            # The interface has 16 bits here; the others count packets that were dropped.
            number = struct.unpack_from(self._order + "H", body)[0]
        if number >= len(self._interfaces):
            raise BadPacket(f"damaged capture: a packet of interface {number}, which is not described")
        if size > len(body) - 20:
            raise BadPacket(f"damaged capture: a packet of {size} bytes in a block of {len(body)}")
        interface = self._interfaces[number]
        time = (high << 32 | low) * interface.numerator // interface.denominator + interface.offset_ns
        comments: list[str] = []
        outwards: bool | None = None
        for code, value in _options_untrusted(self._order, body, 20 + size + -size % 4):
            if code == _OPT_COMMENT:
                comments.append(value.decode(errors="replace"))
            elif code == _OPT_FLAGS and len(value) == 4:
                outwards = {1: False, 2: True}.get(struct.unpack(self._order + "I", value)[0] & 3)
        missing = max(0, original - size)
        self._remarks.shortened += missing > 0
        return Captured(bounded_time(time), interface.link_type, body[20:20 + size], interface.name,
                        "\n".join(comments)[:_MAX_COMMENT], outwards, missing)

    def _simple_untrusted(self, body: bytes) -> Captured:
        if len(body) < 4 or not self._interfaces:
            raise BadPacket("damaged capture: a simple packet block too short or without an interface")
        interface = self._interfaces[0]
        original = struct.unpack_from(self._order + "I", body)[0]
        size = min(original, interface.snap_length or original, len(body) - 4)
        self._remarks.shortened += size < original
        return Captured(0, interface.link_type, body[4:4 + size], interface.name, missing=original - size)

    def _secrets_untrusted(self, body: bytes) -> None:
        if len(body) < 8:
            raise BadPacket("damaged capture: a pcapng block of secrets that is too short")
        kind, size = struct.unpack_from(self._order + "II", body)
        if size > len(body) - 8:
            raise BadPacket(f"damaged capture: {size} bytes of secrets in a block of {len(body)}")
        if kind != _TLS_SECRETS:
            self._remarks.passed_over[f"pcapng blocks of secrets of kind {kind:#010x}"] += 1
            return
        self._secret_bytes += size
        if self._secret_bytes > MAX_SECRETS:
            raise BadPacket(f"too large: more than {MAX_SECRETS} bytes of secrets")
        self._remarks.tls_secrets.append(body[8:8 + size])


def _interface_untrusted(order: str, body: bytes) -> _Interface:
    if len(body) < 8:
        raise BadPacket("damaged capture: a pcapng interface description that is too short")
    link_type, _reserved, snap_length = struct.unpack_from(order + "HHI", body)
    numerator, denominator, offset = 1000, 1, 0
    name = ""
    for code, value in _options_untrusted(order, body, 8):
        if code == _OPT_TSRESOL and len(value) == 1:
            base = 2 if value[0] & 0x80 else 10
            numerator, denominator = NS, base ** (value[0] & 0x7F)
        elif code == _OPT_IF_NAME:
            name = value.decode(errors="replace")
        elif code == _OPT_TSOFFSET and len(value) == 8:
            offset = struct.unpack(order + "q", value)[0] * NS
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
