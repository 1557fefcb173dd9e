"""One end of UDP: datagrams to frames, frames to datagrams. Knows no socket and no clock.

A guarded process has a range of ports of its own, from :data:`FIRST_PORT` on as RAKIS has it; the host's kernel
keeps those below. What comes from elsewhere is counted and dropped: nobody behind a ring answers by ICMP.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from smtstack.errors import BadPacket, LocalError
from smtstack.udp.reassembly import Reassembly
from smtstack.udp.wire import (
    MAX_DATA,
    PROTO_UDP,
    Buffer,
    Datagram,
    pack_packets,
    pack_segment,
    parse_datagram_untrusted,
    parse_piece_untrusted,
)
from smtstack.wire import ethernet

#: Ports of the guarded process: from here on (RAKIS: 0xe000), to the last.
FIRST_PORT: Final = 0xE000
LAST_PORT: Final = 0xFFFF
_MULTICAST: Final = 0xE000_0000

Neighbours = Callable[[int], bytes | None]


class UdpStack:
    """The end at (``ip``, ``port``) with packets of at most ``mtu`` bytes; ``neighbours`` says to which MAC an
    address goes. ``first``: where identifications begin."""

    def __init__(self, ip: int, port: int, mac: bytes, mtu: int, neighbours: Neighbours, first: int = 0) -> None:
        if not FIRST_PORT <= port <= LAST_PORT:
            raise LocalError(f"UDP port {port} is the host's kernel's; a guarded process has {FIRST_PORT} to "
                             f"{LAST_PORT}")
        self.ip = ip
        self.port = port
        self._mac = mac
        self._mtu = mtu
        self._neighbours = neighbours
        self._next = first & 0xFFFF
        self.reassembly = Reassembly()
        self.sent = self.received = self.fragments_sent = self.fragments_received = 0
        self.bad = self.not_ours = self.unresolved = 0

    def send(self, dst: int, dport: int, data: bytes) -> list[bytes]:
        """Frames of a datagram; none if nobody knows where its address is. Raises :class:`LocalError` for one
        that cannot be."""
        if len(data) > MAX_DATA:
            raise LocalError(f"a datagram of {len(data)} bytes; UDP has at most {MAX_DATA}")
        if not 0 < dport <= LAST_PORT:
            raise LocalError(f"UDP port {dport}: there are 1 to {LAST_PORT}")
        mac = self._neighbours(dst)
        if mac is None:
            self.unresolved += 1
            return []
        packets = pack_packets(self.ip, dst, pack_segment(Datagram(self.ip, self.port, dst, dport, data)),
                               self._mtu, self._next)
        if len(packets) > 1:
            # Only those of fragmented packets have a meaning (RFC 6864).
            self._next = self._next + 1 & 0xFFFF
            self.fragments_sent += len(packets)
        self.sent += 1
        head = mac + self._mac + ethernet.ETHERTYPE_IPV4.to_bytes(2, "big")
        return [head + packet for packet in packets]

    def receive(self, frame: Buffer, now: int) -> Datagram | None:
        """A frame came at ``now`` (ns): a datagram for us, if it made one whole. Raises nothing, whatever it is.
        A view of one is not kept."""
        try:
            piece = parse_piece_untrusted(frame)
            if piece.protocol != PROTO_UDP or piece.dst != self.ip or piece.src >= _MULTICAST or not piece.src:
                self.not_ours += 1
                return None
            if not piece.whole:
                self.fragments_received += 1
                whole = self.reassembly.add(piece, now)
                if whole is None:
                    return None
                piece = whole
            datagram = parse_datagram_untrusted(piece)
        except BadPacket:
            self.bad += 1
            return None
        if datagram.dport != self.port or not datagram.sport:
            self.not_ours += 1
            return None
        self.received += 1
        return datagram

    def counters(self) -> dict[str, int]:
        """What passed, and what did not."""
        fragments = self.reassembly
        return {"udp_sent": self.sent, "udp_received": self.received, "udp_fragments_sent": self.fragments_sent,
                "udp_fragments_received": self.fragments_received, "udp_bad": self.bad,
                "udp_not_ours": self.not_ours, "udp_unresolved": self.unresolved,
                "udp_fragment_timeouts": fragments.timeouts, "udp_fragment_overlaps": fragments.overlaps,
                "udp_fragment_evicted": fragments.evicted, "udp_fragment_duplicates": fragments.duplicates}
