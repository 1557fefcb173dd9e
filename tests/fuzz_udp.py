"""Targets of the fuzzer: UDP/IP of a guarded process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smtstack.errors import BadPacket
from smtstack.udp.reassembly import Reassembly
from smtstack.udp.wire import (
    Datagram,
    Piece,
    pack_packets,
    pack_segment,
    parse_datagram_untrusted,
    parse_piece_untrusted,
)

if TYPE_CHECKING:
    from tests.fuzz import Target

_SEGMENT = pack_segment(Datagram(1, 57344, 2, 57345, bytes(300)))
_FRAMES = [bytes(12) + b"\x08\0" + packet for mtu in (1500, 100)
           for packet in pack_packets(1, 2, _SEGMENT, mtu, 5)]


def _datagram(buf: bytes) -> None:
    parse_datagram_untrusted(Piece(1, 2, 17, 0, 0, False, buf))


def _fragments(buf: bytes) -> None:
    """Fragments of eight bytes each, where three bytes of the input say: whatever they are, memory is bounded."""
    made = Reassembly(max_packets=4, max_bytes=2000)
    for at in range(0, len(buf) - 2, 3):
        ident, place, length = buf[at:at + 3]
        made.add(Piece(1, 2, 17, ident & 7, 8 * (place >> 1), bool(place & 1), bytes(8 + 8 * (length & 7))), at)
        assert 0 <= made.taken <= 2000
        assert len(made) <= 4


def targets() -> list[Target]:
    """All of them."""
    from tests.fuzz import Target

    of = "smtstack.udp"
    return [
        Target(f"{of}.wire.parse_piece_untrusted", parse_piece_untrusted, _FRAMES, (BadPacket,), share=0.2),
        Target(f"{of}.wire.parse_datagram_untrusted", _datagram, [_SEGMENT], (BadPacket,), share=0.1),
        Target(f"{of}.reassembly.Reassembly.add", _fragments, [bytes(range(60))], (), share=0.1)]
