"""Capture files: classic pcap and pcapng in, classic pcap out (pcapng: pcapng_reader.py, pcapng.py).

Formats: draft-ietf-opsawg-pcap, with the variants that libpcap reads. A capture is input from outside like any
packet, so everything that reads it ends in ``_untrusted``, raises only :class:`~smtstack.errors.BadPacket` and
allocates within bounds on the word of a length field. A file that holds more than is read is *too large*; one
that contradicts itself is *damaged*.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import BinaryIO

from smtstack.capture import pcapng_reader
from smtstack.capture.captured import (
    HOST_SIDE,
    MAX_PACKET,
    NS,
    Captured,
    Remarks,
    bounded_time,
    skip_untrusted,
)
from smtstack.capture.links import LINK_ETHERNET
from smtstack.errors import BadPacket

__all__ = ["HOST_SIDE", "LINK_ETHERNET", "MAX_PACKET", "Captured", "Reader", "Writer"]

_MAGIC_US, _MAGIC_NS = 0xA1B2C3D4, 0xA1B23C4D
#: "Modified" pcap (Alexey Kuznetzov's patch): eight bytes more before each packet.
_MAGIC_MODIFIED = 0xA1B2CD34
_MODIFIED_LEN = 8
#: Upper bits of a classic header's link type tell about frame check sequences.
_LINK_MASK = 0xFFFF
#: Some writers say 0 where nothing was cut off.
_NO_SNAP_LENGTH = 0
#: What others begin with: captures that smtnet does not read, named so that people know what to do.
_FOREIGN = ((b"snoop\0", "a snoop capture"), (b"GMBU", "a capture of Microsoft Network Monitor"),
            (b"RTSS", "a capture of Microsoft Network Monitor"), (b"TRSNIFF data", "a capture of Sniffer"),
            (b"\xac\x01\x00\x1c", "an Ixia capture"), (b"\xab\x01\x00\x1c", "an Ixia capture"),
            (b"\x1c\x00\x01\xac", "an Ixia capture"), (b"\x1c\x00\x01\xab", "an Ixia capture"),
            (b"PK\x03\x04", "a zip file"))


class Reader(Remarks):
    """Packets of one capture file, front to back. Tells pcap from pcapng by itself."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def frames_untrusted(self) -> Iterator[Captured]:
        """Every packet; raises :class:`BadPacket` where the file is no capture, is damaged, or is too large."""
        magic = self._stream.read(4)
        if len(magic) < 4:
            raise BadPacket(f"not a capture: it has {len(magic)} bytes" if magic else "not a capture: it is empty")
        if int.from_bytes(magic, "big") == pcapng_reader.MAGIC:
            yield from pcapng_reader.Blocks(self._stream, self).packets_untrusted()
            return
        for order in "<>":
            number = struct.unpack(order + "I", magic)[0]
            if number in (_MAGIC_US, _MAGIC_NS, _MAGIC_MODIFIED):
                yield from self._pcap_untrusted(order, number)
                return
        for begins, what in _FOREIGN:
            if begins.startswith(magic):
                raise BadPacket(f"{what} ({magic.hex()}), which smtnet does not read: editcap makes pcapng of "
                                "captures")
        raise BadPacket(f"not a capture: it begins with {magic.hex()}, neither pcap nor pcapng")

    def _pcap_untrusted(self, order: str, magic: int) -> Iterator[Captured]:
        head = self._stream.read(20)
        if len(head) < 20:
            raise BadPacket("not a capture: the pcap header is cut short")
        major, minor, _zone, _accuracy, snap_length, network = struct.unpack(order + "HHiIII", head)
        if major != 2:
            raise BadPacket(f"a pcap file of version {major}.{minor}; versions 2.0 to 2.4 are read")
        unit_ns = 1 if magic == _MAGIC_NS else 1000
        packet = struct.Struct(order + "IIII")
        extra = _MODIFIED_LEN if magic == _MAGIC_MODIFIED else 0
        while head := self._stream.read(16 + extra):
            if len(head) < 16 + extra:
                self.truncated += 1
                return
            seconds, fraction, size, original = packet.unpack_from(head)
            if minor < 3 or (minor == 3 and size > original):
                # So it was before version 2.3, and in some files of it.
                size, original = original, size
            if size > MAX_PACKET:
                if snap_length != _NO_SNAP_LENGTH and size > snap_length:
                    raise BadPacket(f"damaged capture: a packet of {size} bytes, where the header allows "
                                    f"{snap_length}")
                skip_untrusted(self._stream, size)
                self.oversized += 1
                continue
            frame = self._stream.read(size)
            if len(frame) < size:
                self.truncated += 1
                return
            missing = max(0, original - size)
            self.shortened += missing > 0
            yield Captured(bounded_time(seconds * NS + fraction * unit_ns), network & _LINK_MASK, frame,
                           missing=missing)


class Writer:
    """Classic pcap, little endian, nanoseconds."""

    def __init__(self, stream: BinaryIO, link_type: int = LINK_ETHERNET) -> None:
        self._stream = stream
        stream.write(struct.pack("<IHHiIII", _MAGIC_NS, 2, 4, 0, 0, MAX_PACKET, link_type))

    def write(self, timestamp_ns: int, frame: bytes) -> None:
        """Append one packet; ``timestamp_ns`` counts from 1970."""
        seconds, rest = divmod(timestamp_ns, NS)
        self._stream.write(struct.pack("<IIII", seconds, rest, len(frame), len(frame)) + frame)
