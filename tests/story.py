"""Protocol tests that read as exchanges: what the applications do, every frame, when, and what becomes of it.

    story('''
        ask 100                          the client's application sends a request of 100 bytes
        @0us    > DATA 2 0+122 of 122    "lost" after it: the path loses it
        @5us    server gets 100
        reply 7                          the server's application answers
        ...''')

A line that begins with a time is what has to happen, in this order and nothing else: a frame as it leaves (``>``
the client's, ``<`` the server's), or what an application gets. Other lines are what the test does, once all that
stands before them has happened. A mismatch prints the story that was told beside the one that came true, which is
also how a new story is written: tell what is done, look at the rest, and judge it by docs/protocol.md.

Done can be: ``ask N`` and ``reply N`` (bytes; the oldest request is answered), ``wait TIME``, ``again N`` (the
N-th frame is sent once more, by somebody), ``forge > KIND ID`` (UNKNOWN, BUSY or NEED_ACK is sent, by somebody),
``server dies``, ``stop`` (the rest is not looked at; without it the story goes on until nothing is pending).
Behind a frame can stand ``lost``, ``twice`` and ``late TIME``.

Frames name the message by its sender's id: even ids ask, odd ones answer. DATA has ``offset+bytes of length``, as
the headers say: sealed bytes in profile ``smt``; in ``linux``, where none says a packet's offset,
``segment.packet``. Of a handshake only flights are told, each in one line.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from smtstack.crypto.keys import KeyStore
from smtstack.session.flights import Kind
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, MemoryPair
from smtstack.stack import Stack
from smtstack.transport.endpoint import FIRST_CLIENT_PORT
from smtstack.transport.events import Failed, Request
from smtstack.transport.params import TransportParams
from smtstack.wire import ethernet, homa, ipv4
from smtstack.wire import frame as wire_frame

#: One way, whatever the frame's length.
DELAY_NS = 5_000
#: More than a story tells: what goes on for so long beyond its end is cut off.
_BEYOND = 30
_MAX_STEPS = 200_000
_TOLD = re.compile(r"@\S+ +(.*?)(?: +(lost|twice|late \S+))?")
_SIMPLE: dict[str, type[homa.Unknown | homa.Busy | homa.NeedAck]] = {
    "UNKNOWN": homa.Unknown, "BUSY": homa.Busy, "NEED_ACK": homa.NeedAck}


@dataclass(frozen=True)
class Line:
    """One line of a story."""

    text: str
    """Without what becomes of a frame, and with single blanks."""
    fate: str = ""
    done: bool = False
    """Something that the test does."""

    def __str__(self) -> str:
        return f"{self.text}  {self.fate}".rstrip()


def lines_of(text: str) -> list[Line]:
    """The lines of a story; what stands behind two blanks and a "(" is a remark."""
    found = []
    for raw in filter(str.strip, text.splitlines()):
        said = re.split(r"\s{2,}\(", raw.strip())[0].strip()
        told = _TOLD.fullmatch(said)
        if told is None:
            found.append(Line(" ".join(said.split()), done=True))
        else:
            found.append(Line(f"{said.split()[0]} {' '.join(told[1].split())}", told[2] or ""))
    return found


def _ns(text: str) -> int:
    number, unit = re.findall(r"[\d.]+|\w+", text)
    return round(float(number) * {"us": 10**3, "ms": 10**6, "s": 10**9}[unit])


def show_time(ns: int) -> str:
    """As short as it can be said: ``5us``, ``15.01ms``, ``6s``; below a tenth of a microsecond nothing is."""
    for unit, size in (("s", 10**9), ("ms", 10**6)):
        if ns >= size:
            return f"{ns / size:.5f}".rstrip("0").rstrip(".") + unit
    return f"{ns / 1000:.1f}".removesuffix(".0") + "us"


def show_packet(packet: homa.Packet, identification: int, size: int) -> str:
    """One packet in one line, as stories have it."""
    shown = f"{type(packet).__name__.upper()} {packet.sender_id}"
    match packet:
        case homa.Data():
            at: object = packet.segment_offset + packet.offset_in_segment(identification)
            if not packet.segment_size:
                at = f"{packet.segment_offset}.{identification + packet.packet_index}"
            shown = f"DATA {packet.sender_id} {at}+{size} of {packet.message_length}"
            shown += " again" if packet.retransmit else ""
        case homa.Grant():
            shown += f" to {packet.offset}"
        case homa.Resend():
            shown += f" {packet.offset}+{packet.length}"
        case homa.NeedAck():
            shown = f"NEED_ACK {packet.sender_id}"
        case homa.Ack():
            shown += "".join(f",{entry.client_id}" for entry in packet.acks)
        case homa.Cutoffs():
            shown = "CUTOFFS"
    return shown + (f" epoch {packet.epoch}" if packet.epoch else "")


class Teller:
    """Two ends and a path between them, which do what a story says."""

    def __init__(self, story: list[Line], profile: str, params: TransportParams | None,
                 keys: Callable[[], KeyStore] | None) -> None:
        self._pair = MemoryPair(profile, params, keys=keys)
        self._format = homa.FORMATS[profile]
        self._story = story
        self._told = [line for line in story if not line.done]
        self._now = 0
        self._flying: list[tuple[int, int, bool, bytes]] = []
        self._count = 0
        self._frames: list[tuple[bool, bytes]] = []
        self._unanswered: list[Request] = []
        self._server_lives = True
        self._at = 0
        self._wake = 0
        self._stopped = False
        self._happened = 0
        #: What came true, with what was done in between.
        self.true: list[Line] = []

    # -- what is done ------------------------------------------------------------------------------------

    def _act(self) -> None:
        """Do what the story says next, as far as all before it has happened."""
        before = sum(not line.done for line in self._story[:self._at])
        while self._at < len(self._story) and self._happened >= before and not self._stopped:
            line = self._story[self._at]
            if not line.done:
                before += 1
            elif self._now < self._wake or (line.text.startswith("reply") and not self._unanswered):
                return
            else:
                self.true.append(line)
                self._do(line.text.split())
            self._at += 1

    def _do(self, words: list[str]) -> None:
        match words:
            case ["ask", size]:
                self._pair.client.endpoint.send_request(SERVER_IP, SERVER_PORT, bytes(int(size)), self._now)
            case ["reply", size]:
                self._pair.server.endpoint.send_reply(self._unanswered.pop(0).rpc, bytes(int(size)), self._now)
            case ["wait", time]:
                self._wake = self._now + _ns(time)
            case ["again", number]:
                self._fly(*self._frames[int(number) - 1])
            case ["forge", ">" | "<" as way, kind, sender_id]:
                self._forge(way == ">", kind, int(sender_id))
            case ["server", "dies"]:
                self._server_lives = False
            case ["stop"]:
                self._stopped = True
            case _:
                raise ValueError(f"no story knows what this is: {' '.join(words)}")

    def _forge(self, to_server: bool, kind: str, sender_id: int) -> None:
        ports = (FIRST_CLIENT_PORT, SERVER_PORT) if to_server else (SERVER_PORT, FIRST_CLIENT_PORT)
        ips = (CLIENT_IP, SERVER_IP) if to_server else (SERVER_IP, CLIENT_IP)
        packet = _SIMPLE[kind](*ports, sender_id).pack()
        ip = ipv4.IPv4(*ips, self._format.protocol, ipv4.HEADER_LEN + len(packet))
        self._fly(to_server, ethernet.Ethernet(b"\2abcde", b"\2fghij").pack() + ip.pack() + packet)

    def _fly(self, to_server: bool, frame: bytes, late: int = 0) -> None:
        self._count += 1
        heapq.heappush(self._flying, (self._now + DELAY_NS + late, self._count, to_server, frame))

    # -- what happens ------------------------------------------------------------------------------------

    def _happens(self, text: str) -> str:
        """Note it; gives what becomes of it."""
        fate = self._told[self._happened].fate if self._happened < len(self._told) else ""
        self._happened += 1
        self.true.append(Line(f"@{show_time(self._now)} {text}", fate))
        self._act()
        return fate

    def _send(self, from_client: bool, frame: bytes) -> None:
        fate = ""
        shown = self._shown(frame)
        if shown:
            self._frames.append((from_client, frame))
            fate = self._happens(f"{'>' if from_client else '<'} {shown}")
        if fate == "twice":
            self._fly(from_client, frame)
        if fate != "lost":
            self._fly(from_client, frame, _ns(fate.split()[1]) if fate.startswith("late") else 0)

    def _shown(self, frame: bytes) -> str:
        """As stories have it; "" for packets of the handshake plane that begin no flight."""
        if wire_frame.is_handshake(frame):
            ip, packet, payload = wire_frame.parse_untrusted(frame, homa.HOMA)
            match packet:
                case homa.Data(segment_offset=0, packet_index=0) if ip.identification == 0:
                    return Kind(payload[1]).name + (" again" if packet.retransmit else "")
            return ""
        ip, packet, payload = wire_frame.parse_untrusted(frame, self._format)
        return show_packet(packet, ip.identification, len(payload))

    def _events(self, name: str, side: Stack) -> None:
        while (event := side.endpoint.next_event()) is not None:
            if isinstance(event, Request):
                self._unanswered.append(event)
            self._happens(f"{name} fails: {event.reason.name}" if isinstance(event, Failed)
                          else f"{name} gets {len(event.data)}")

    def _step(self) -> bool:
        """Go on to whatever happens next; False when nothing is left to happen."""
        ends = [(True, "client", self._pair.client)]
        if self._server_lives:
            ends.append((False, "server", self._pair.server))
        for from_client, _name, side in ends:
            for frame in side.transmit(self._now):
                self._send(from_client, frame)
        due = [t for _c, _n, side in ends if (t := side.endpoint.next_timeout()) is not None]
        due += [self._flying[0][0]] if self._flying else []
        due += [self._wake] if self._wake > self._now else []
        if not due:
            return False
        self._now = max(self._now, min(due))
        while self._flying and self._flying[0][0] <= self._now:
            _at, _count, to_server, frame = heapq.heappop(self._flying)
            if to_server and self._server_lives:
                self._pair.server.receive([frame], self._now)
            elif not to_server:
                self._pair.client.receive([frame], self._now)
        for _from_client, name, side in ends:
            side.endpoint.handle_timeout(self._now)
            self._events(name, side)
        self._act()
        return True

    def tell(self) -> list[Line]:
        """What comes true, until nothing is left to happen."""
        self._act()
        for _step in range(_MAX_STEPS):
            if self._stopped or self._happened > len(self._told) + _BEYOND or not self._step():
                return self.true
        raise AssertionError(f"still busy after {_MAX_STEPS} steps")


def beside(told: list[Line], true: list[Line]) -> str:
    """Two stories side by side, with a mark where they differ."""
    width = max((len(str(line)) for line in told), default=0) + 2
    return "\n".join(f"{' ' if a == b else '!'} {a or ''!s:{width}} {b or ''}".rstrip()
                     for a, b in zip_longest(told, true))


def story(text: str, profile: str = "smt", params: TransportParams | None = None,
          keys: Callable[[], KeyStore] | None = None) -> None:
    """Fail unless what the story tells is what happens."""
    told = lines_of(text)
    true = Teller(told, profile, params, keys).tell()
    if told != true:
        raise AssertionError(f"told, and what came true:\n{beside(told, true)}")
