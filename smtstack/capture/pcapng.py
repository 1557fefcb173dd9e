"""Writing pcapng: blocks as bytes, so that several processes can append to one file.

Format: draft-ietf-opsawg-pcapng. Little endian, time stamps in nanoseconds.
"""

from __future__ import annotations

import struct

from smtstack.capture.captured import HOST_SIDE, MAX_PACKET
from smtstack.capture.links import LINK_ETHERNET

__all__ = ["HOST_SIDE", "interface", "packet", "section", "tls_secrets"]

_SECTION, _INTERFACE, _PACKET, _SECRETS = 0x0A0D0D0A, 1, 6, 10
_BYTE_ORDER = 0x1A2B3C4D
#: Section length: whatever follows.
_UNKNOWN = (1 << 64) - 1
_COMMENT, _FLAGS, _IF_NAME, _TSRESOL, _USER_APPLICATION = 1, 2, 2, 9, 4
_INWARDS, _OUTWARDS = 1, 2
_TLS_KEY_LOG = 0x544C534B
_END = bytes(4)
#: Bytes of the longest option: their number has 16 bits.
_MAX_OPTION = 0xFFFF

_PACKET_HEAD = struct.Struct("<IIIIIII")
#: The flags option of a packet, by whether it left.
_FLAG_OPTIONS = {True: struct.pack("<HHI", _FLAGS, 4, _OUTWARDS), False: struct.pack("<HHI", _FLAGS, 4, _INWARDS),
                 None: b""}


def section(application: str) -> bytes:
    """The header every file begins with."""
    return _block(_SECTION, struct.pack("<IHHQ", _BYTE_ORDER, 1, 0, _UNKNOWN)
                  + _option(_USER_APPLICATION, application.encode()) + _END)


def interface(name: str, link_type: int = LINK_ETHERNET) -> bytes:
    """Describes an interface; they are numbered from 0 in the order of their descriptions."""
    return _block(_INTERFACE, struct.pack("<HHI", link_type, 0, MAX_PACKET)
                  + _option(_IF_NAME, name.encode()) + _option(_TSRESOL, b"\x09") + _END)


def tls_secrets(lines: str) -> bytes:
    """Secrets of TLS handshakes, in the format of NSS: readers decrypt with them what comes after."""
    data = lines.encode()
    return _block(_SECRETS, struct.pack("<II", _TLS_KEY_LOG, len(data)) + data + bytes(-len(data) % 4))


def packet(number: int, timestamp_ns: int, frame: bytes, outwards: bool | None, comment: str = "",
           missing: int = 0) -> bytes:
    """A frame seen on interface ``number``; ``timestamp_ns`` counts from 1970.

    ``missing``: how many bytes of its end were not kept.
    """
    size = len(frame)
    options = _FLAG_OPTIONS[outwards] + (_option(_COMMENT, comment.encode()) if comment else b"")
    if options:
        options += _END
    total = 32 + size + -size % 4 + len(options)
    head = _PACKET_HEAD.pack(_PACKET, total, number, timestamp_ns >> 32, timestamp_ns & 0xFFFFFFFF, size,
                             size + missing)
    return b"".join((head, frame, bytes(-size % 4), options, head[4:8]))


def _option(code: int, value: bytes) -> bytes:
    value = value[:_MAX_OPTION]
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def _block(kind: int, body: bytes) -> bytes:
    size = struct.pack("<I", 12 + len(body))
    return struct.pack("<I", kind) + size + body + size
