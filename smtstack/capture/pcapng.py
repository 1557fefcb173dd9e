"""Writing pcapng: blocks as bytes, so that several processes can append to one file.

Format: draft-ietf-opsawg-pcapng. Little endian, time stamps in nanoseconds, Ethernet.
"""

from __future__ import annotations

import struct

from smtstack.capture.pcapfile import HOST_SIDE, LINK_ETHERNET, MAX_BLOCK

__all__ = ["HOST_SIDE", "interface", "packet", "section"]

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER = 0x1A2B3C4D
#: Section length: whatever follows.
_UNKNOWN = (1 << 64) - 1
_COMMENT, _FLAGS, _IF_NAME, _TSRESOL, _USER_APPLICATION = 1, 2, 2, 9, 4
_INWARDS, _OUTWARDS = 1, 2
_END = bytes(4)

_PACKET_HEAD = struct.Struct("<IIIIIII")
#: The flags option of a packet, and the end of options.
_FLAG_OPTIONS = {flag: struct.pack("<HHI", _FLAGS, 4, flag) for flag in (_INWARDS, _OUTWARDS)}


def section(application: str) -> bytes:
    """The header every file begins with."""
    return _block(_SECTION, struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN)
                  + _option(_USER_APPLICATION, application.encode()) + _END)


def interface(name: str) -> bytes:
    """Describes an interface; they are numbered from 0 in the order of their descriptions."""
    return _block(_INTERFACE, struct.pack("<HHI", LINK_ETHERNET, 0, MAX_BLOCK)
                  + _option(_IF_NAME, name.encode()) + _option(_TSRESOL, b"\x09") + _END)


def packet(number: int, timestamp_ns: int, frame: bytes, outwards: bool, comment: str = "") -> bytes:
    """A whole frame seen on interface ``number``; ``timestamp_ns`` counts from 1970."""
    size = len(frame)
    flags = _FLAG_OPTIONS[_OUTWARDS if outwards else _INWARDS]
    options = flags + (_option(_COMMENT, comment.encode()) if comment else b"") + _END
    total = 32 + size + -size % 4 + len(options)
    head = _PACKET_HEAD.pack(_PACKET, total, number, timestamp_ns >> 32, timestamp_ns & 0xFFFFFFFF, size, size)
    return b"".join((head, frame, bytes(-size % 4), options, head[4:8]))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + size + body + size
