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
#: Probes, each overtaken by the answer to a later one, after which a direction counts as lost. A saturated link
#: may lose one or two.
PATIENCE = 4
#: Share of a period: an answer that has taken longer is doubted, and probes follow each other so fast until it is
#: known. A direction that always takes longer gets twice what it took last.
_DOUBT = 0.2
#: Probes without an answer where nothing overtook them: the switches or the machine may stand still.
LONG_PATIENCE = 16
#: Periods within which a loss is noticed, if other probes pass: one until the next probe, the rest for doubts.
NOTICED_PERIODS = 1 + (PATIENCE + 1) * _DOUBT
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


@dataclass(slots=True)
class _Way:
    """What is known of the direction of a cable that begins at an end."""

    next: float
    """When the next probe is due, if nothing is doubted."""
    at: End | None = None
    """Where the last one came in."""
    number: int = 0
    """The number of the last probe, among all probes."""
    sent_at: float = 0.0
    unanswered: int = 0
    """Probes since the last that was answered."""
    first_at: float = 0.0
    """When the first of these was sent."""
    first: int = 0
    """The number of the first probe since the last that was answered."""
    overtaken: int = 0
    """How many of these are older than one that was answered."""
    checked: bool = False
    """Whether the other direction was asked for comparison since the last probe."""
    answer_s: float | None = None
    """What the last answer took; None: there was none yet."""

    @property
    def lost(self) -> bool:
        """Not to be used."""
        return self.overtaken >= PATIENCE or self.unanswered > LONG_PATIENCE


class Discovery:
    """``period_s`` is the time between two probes of a port, ``nonce`` 8 bytes that nobody can guess.

    That a probe did not come back says little on a machine that may stand still; that a later one did, by another
    way, says that it is lost. So a probe that is late is followed by one in the other direction, for comparison.
    """

    def __init__(self, fabric: Fabric, period_s: float, nonce: bytes) -> None:
        self._fabric = fabric
        self._period_s = period_s
        self._nonce = nonce
        self._peer: dict[End, End] = {}
        for link in fabric.links:
            a, b = (link.a, link.a_port), (link.b, link.b_port)
            self._peer |= {a: b, b: a}
        self._hosts = {(h.switch, h.port) for h in fabric.hosts}
        self._ways: dict[End, _Way] = {}
        self._sent = 0
        self._newest = 0
        """The latest probe that is known to have been answered."""
        self._now = 0.0

    def due(self, live: Collection[End], now: float) -> list[End]:
        """The ends to probe now, in this order, of those that are ``live`` (and no host's).

        An end that is not live is forgotten: when it comes back it counts as good until probes are lost.
        """
        self._now = now
        for end in [e for e in self._ways if e not in live]:
            del self._ways[end]
        ends: list[End] = []
        for number, end in enumerate(sorted(e for e in live if e not in self._hosts)):
            way = self._ways.get(end)
            if way is None:
                # The first at once, the second at different times: no bursts from then on.
                way = self._ways[end] = _Way(now)
                self._send(way, end, ends, self._period_s * (1 + number % 16 / 16))
                continue
            late = way.unanswered > 0 and not way.lost and now >= way.sent_at + self._wait_s(way)
            overtaken = late and way.number < self._newest
            way.overtaken += overtaken
            compare = late and (overtaken or not way.checked)
            if now >= way.next or (overtaken and not way.lost):
                self._send(way, end, ends, self._period_s)
            if compare:
                way.checked = not overtaken
                self._send_other(end, ends)
        return ends

    def _wait_s(self, way: _Way) -> float:
        """How long an answer may take before it is doubted."""
        if way.answer_s is None:
            return self._period_s
        return max(_DOUBT * self._period_s, 2 * way.answer_s)

    def _send_other(self, end: End, ends: list[End]) -> None:
        """A probe in the other direction, unless one is under way already."""
        peer = self._peer.get(end)
        other = self._ways.get(peer) if peer is not None else None
        if peer is not None and other is not None and not other.unanswered:
            self._send(other, peer, ends, self._period_s)

    def _send(self, way: _Way, end: End, ends: list[End], again_s: float) -> None:
        self._sent += 1
        way.number, way.sent_at, way.checked, way.next = self._sent, self._now, False, self._now + again_s
        if not way.unanswered:
            way.first, way.first_at = self._sent, self._now
        way.unanswered += 1
        ends.append(end)

    def probe(self, end: End) -> bytes:
        """The frame to send out of that port."""
        chassis = _NAME + self._nonce + struct.pack("!Q", self._fabric.switch(end[0]).dpid)
        body = _tlv(_CHASSIS, bytes((_LOCAL,)) + chassis)
        body += _tlv(_PORT, bytes((_LOCAL,)) + struct.pack("!I", end[1]))
        body += _tlv(_TTL, struct.pack("!H", max(1, min(0xFFFF, round(LONG_PATIENCE * self._period_s)))))
        return DESTINATION + _SOURCE + struct.pack("!H", ETHERTYPE) + body + _tlv(0, b"")

    def received_untrusted(self, at: End, frame: bytes, now: float | None = None) -> bool:
        """A frame came in at a port; whether it is a probe of ours. ``now``: None: when the last were sent."""
        origin = self._origin_untrusted(frame)
        if origin is None:
            return False
        way = self._ways.setdefault(origin, _Way(self._now))
        way.at = at
        if way.unanswered:
            # It may be any of those that are out. The first is the one that proves least.
            self._newest = max(self._newest, way.first)
            way.answer_s = (self._now if now is None else now) - way.first_at
        way.unanswered = way.overtaken = 0
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
            way = self._ways.get(end)
            if way is not None and (way.lost or way.at not in (None, peer)):
                link = self._fabric.link_at(*end)
                assert link is not None
                links.add(link)
        return links

    def complete(self, live: Collection[End]) -> bool:
        """Whether every end that is live has an answer."""
        return all(self._at(end) is not None for end in live if end in self._peer)

    def _at(self, end: End) -> End | None:
        way = self._ways.get(end)
        return None if way is None or way.lost else way.at

    def findings(self) -> Findings:
        """What was found, beside what was expected."""
        found: list[str] = []
        missing: list[str] = []
        for end, peer in sorted(self._peer.items()):
            (found if self._at(end) == peer else missing).append(_way(end, peer))
        unexpected = [_way(end, at) for end in sorted(self._ways)
                      if (at := self._at(end)) is not None and self._peer.get(end) != at]
        return Findings(tuple(sorted([*found, *missing])), tuple(found), tuple(missing), tuple(unexpected))


def is_lldp(frame: bytes) -> bool:
    """Whether a frame is LLDP, ours or not."""
    return frame[12:14] == ETHERTYPE.to_bytes(2, "big")


def _way(end: End, peer: End) -> str:
    return f"{end[0]}:{end[1]} -> {peer[0]}:{peer[1]}"


def _tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!H", kind << 9 | len(value)) + value
