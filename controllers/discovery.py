"""Which cable is where, by LLDP: what to probe, what came back, and how that differs from the fabric. No I/O.

The controller has each switch send a probe out of every port but those to hosts; the switch at the other end
hands it to the controller. So each direction of a cable is tested by itself, all the way that frames take, and a
cable in the wrong port is seen. A probe carries a number that hosts never see, so none can make links up.
"""

from __future__ import annotations

import struct
from collections.abc import Collection
from dataclasses import dataclass

from controllers.fabric import Fabric, Link

#: A switch's port: (name, number).
End = tuple[str, int]

ETHERTYPE = 0x88CC
#: IEEE 802.1AB: the nearest bridge, which hands it to nobody else.
DESTINATION = bytes.fromhex("0180c200000e")
#: Probes without an answer after which a direction counts as lost. A saturated link may lose one or two.
PATIENCE = 4
# TLV types and subtypes of IEEE 802.1AB; 7: locally assigned, for chassis and for port.
_CHASSIS, _PORT, _TTL, _LOCAL = 1, 2, 3, 7
_SOURCE = bytes.fromhex("020000000000")
_NAME = b"smtnet"


@dataclass(frozen=True, slots=True)
class Findings:
    """The comparison, each a direction as ``s1:2 -> s5:1``, in order."""

    expected: tuple[str, ...]
    found: tuple[str, ...]
    """Expected, and the last probe came back."""
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    """A cable where the fabric has none, or has it elsewhere."""


class Discovery:
    """``period_s`` is the time between two probes of a port, ``nonce`` 8 bytes that nobody can guess."""

    def __init__(self, fabric: Fabric, period_s: float, nonce: bytes) -> None:
        self._fabric = fabric
        self._period_s = period_s
        self._nonce = nonce
        self._peer: dict[End, End] = {}
        for link in fabric.links:
            a, b = (link.a, link.a_port), (link.b, link.b_port)
            self._peer |= {a: b, b: a}
        self._hosts = {(h.switch, h.port) for h in fabric.hosts}
        self._next: dict[End, float] = {}
        self._unanswered: dict[End, int] = {}
        self._seen: dict[End, End] = {}

    def due(self, live: Collection[End], now: float) -> list[End]:
        """The ends to probe now, of those that are ``live`` (and no host's); the next of each is a period later.

        An end that is not live is forgotten: when it comes back it counts as good until probes are lost.
        """
        for end in [e for e in self._next if e not in live]:
            self._forget(end)
        ends = []
        for number, end in enumerate(sorted(e for e in live if e not in self._hosts)):
            if self._next.get(end, now) > now:
                continue
            # The first at once, the second at different times: no bursts from then on.
            first = end not in self._next
            self._next[end] = now + self._period_s * (1 + (number % 16 / 16 if first else 0))
            self._unanswered[end] = self._unanswered.get(end, 0) + 1
            if self._unanswered[end] > PATIENCE:
                self._seen.pop(end, None)
            ends.append(end)
        return ends

    def _forget(self, end: End) -> None:
        for known in (self._next, self._unanswered, self._seen):
            known.pop(end, None)

    def probe(self, end: End) -> bytes:
        """The frame to send out of that port."""
        chassis = _NAME + self._nonce + struct.pack("!Q", self._fabric.switch(end[0]).dpid)
        body = _tlv(_CHASSIS, bytes((_LOCAL,)) + chassis)
        body += _tlv(_PORT, bytes((_LOCAL,)) + struct.pack("!I", end[1]))
        body += _tlv(_TTL, struct.pack("!H", max(1, min(0xFFFF, round(PATIENCE * self._period_s)))))
        return DESTINATION + _SOURCE + struct.pack("!H", ETHERTYPE) + body + _tlv(0, b"")

    def received_untrusted(self, at: End, frame: bytes) -> bool:
        """A frame came in at a port; whether it is one of our probes."""
        origin = self._origin_untrusted(frame)
        if origin is None:
            return False
        self._unanswered[origin] = 0
        self._seen[origin] = at
        return True

    def _origin_untrusted(self, frame: bytes) -> End | None:
        fields: dict[int, bytes] = {}
        at = 14
        while len(frame) >= at + 2:
            head, = struct.unpack_from("!H", frame, at)
            kind, length = head >> 9, head & 0x1FF
            if not kind:
                break
            fields[kind] = frame[at + 2:at + 2 + length]
            at += 2 + length
        begin = bytes((_LOCAL,)) + _NAME + self._nonce
        chassis, port = fields.get(_CHASSIS, b""), fields.get(_PORT, b"")
        if not chassis.startswith(begin) or len(chassis) != len(begin) + 8 or len(port) != 5:
            return None
        switch = self._fabric.by_dpid(int.from_bytes(chassis[len(begin):], "big"))
        return None if switch is None else (switch.name, int.from_bytes(port[1:], "big"))

    def lost(self) -> set[Link]:
        """Links of which a direction is gone, or ends elsewhere: not to be used."""
        links = set()
        for end, peer in self._peer.items():
            where = self._seen.get(end)
            if (where is not None and where != peer) or self._unanswered.get(end, 0) > PATIENCE:
                link = self._fabric.link_at(*end)
                assert link is not None
                links.add(link)
        return links

    def complete(self, live: Collection[End]) -> bool:
        """Whether every end that is live has an answer."""
        return all(end in self._seen for end in live if end in self._peer)

    def findings(self) -> Findings:
        """What was found, beside what was expected."""
        found: list[str] = []
        missing: list[str] = []
        for end, peer in sorted(self._peer.items()):
            (found if self._seen.get(end) == peer else missing).append(_way(end, peer))
        unexpected = [_way(end, at) for end, at in sorted(self._seen.items()) if self._peer.get(end) != at]
        return Findings(tuple(sorted([*found, *missing])), tuple(found), tuple(missing), tuple(unexpected))


def is_lldp(frame: bytes) -> bool:
    """Whether a frame is LLDP, ours or not."""
    return frame[12:14] == ETHERTYPE.to_bytes(2, "big")


def _way(end: End, peer: End) -> str:
    return f"{end[0]}:{end[1]} -> {peer[0]}:{peer[1]}"


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!H", kind << 9 | len(value)) + value
