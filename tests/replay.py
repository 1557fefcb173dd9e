"""Recorded conversations with the real SMT module, read: who said what when, and the plan to say one side anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtstack.capture.decode import Decoder, Message
from smtstack.capture.files import CaptureFile
from smtstack.capture.links import LINK_ETHERNET
from smtstack.capture.pcapfile import Reader
from smtstack.crypto.keys import demo_keys
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa
from smtstack.wire.frame import PROTOCOL_AT
from smtstack.wire.ipv4 import IPv4, address
from tests.performing import Plan

#: Of a module as it is loaded (reference: CUTOFFS of its captures).
UNSCHED_CUTOFFS = (0, 0, 0, 0, 1_000_000, 15_000, 2_800, 200)
_MS = 1_000_000
#: For how long the engine's timers go on after the last recorded packet.
_AFTER_NS = 20 * _MS


@dataclass(frozen=True, slots=True)
class Packet:
    """A frame, when it was seen (ns since the first), and what its headers say."""

    at: int
    frame: bytes
    ip: IPv4
    header: homa.Packet
    payload: bytes
    sealed: bool

    @property
    def rpc(self) -> int:
        """The client's id."""
        return self.header.sender_id & ~1


def packet(at: int, frame: bytes, sealed: bool) -> Packet:
    """Parse a frame of profile ``linux``."""
    return Packet(at, frame, *wire_frame.parse_untrusted(frame, homa.LINUX), sealed)


@dataclass(frozen=True, slots=True)
class Recording:
    """A conversation, from the view of the end whose place we take."""

    packets: list[Packet]
    messages: dict[int, bytes]
    """By the sender's id, which is even for requests and odd for responses."""
    ip: int
    """Our address."""
    sealed: bool
    """Else it is the module's plain Homa."""

    @property
    def ours(self) -> list[Packet]:
        """What that end sent."""
        return [p for p in self.packets if p.ip.src == self.ip]

    @property
    def theirs(self) -> list[Packet]:
        """What it got."""
        return [p for p in self.packets if p.ip.src != self.ip]


def load(path: Path, ip: str, sealed: bool = True) -> Recording:
    """A capture, and the end at ``ip``."""
    with CaptureFile(path).open() as stream:
        found = [(c.timestamp_ns, c.frame) for c in Reader(stream).frames_untrusted()]
    found = [(at, frame) for at, frame in found if frame[PROTOCOL_AT] == homa.PROTO_LINUX]
    said: list[Message] = []
    decoder = Decoder("linux", demo_keys("linux"), on_message=said.append)
    for _at, frame in found:
        decoder.add(LINK_ETHERNET, frame)
    decoder.result()
    messages = {m.sender_id: m.data for m in said if m.data is not None}
    packets = [packet(at - found[0][0], frame, sealed) for at, frame in found]
    return Recording(packets, messages, address(ip), sealed)


def first_data(packets: Sequence[Packet]) -> dict[int, Packet]:
    """The first DATA packet of each message, by its sender's id."""
    out: dict[int, Packet] = {}
    for p in packets:
        if isinstance(p.header, homa.Data):
            out.setdefault(p.header.sender_id, p)
    return out


def learnt(recording: Recording) -> list[tuple[int, int, bytes]]:
    """CUTOFFS that the other end said before the capture begins, as far as that end's first packets show."""
    out = []
    versions: dict[int, Packet] = {}
    for p in recording.ours:
        if isinstance(p.header, homa.Data):
            versions.setdefault(p.header.sport, p)
    for port, p in versions.items():
        assert isinstance(p.header, homa.Data)
        if p.header.cutoff_version:
            header = homa.Cutoffs(p.header.dport, port, p.header.sender_id ^ 1, UNSCHED_CUTOFFS,
                                  p.header.cutoff_version).pack()
            ip = IPv4(p.ip.dst, p.ip.src, homa.PROTO_LINUX, 20 + len(header)).pack()
            out.append((-_MS, port, p.frame[6:12] + p.frame[:6] + p.frame[12:14] + ip + header))
    return out


def plan(recording: Recording, software: bool, params: dict[str, Any]) -> Plan:
    """What our engine must do to say the same. ``software``, ``params``: as in :class:`Plan`."""
    ours = first_data(recording.ours)
    requests = [p for sender_id, p in ours.items() if not sender_id & 1]
    first_ids: dict[int, int] = {}
    for p in requests:
        port = p.header.sport
        first_ids[port] = min(first_ids.get(port, p.rpc), p.rpc)
    packets = recording.packets
    return Plan(
        ip=recording.ip, peer_ip=(recording.theirs[0].ip.src), sealed=recording.sealed, software=software,
        params=params,
        frames=learnt(recording) + [(p.at, p.header.dport, p.frame) for p in recording.theirs],
        requests=[(p.at, p.header.sport, p.header.dport, recording.messages[p.rpc]) for p in requests],
        first_ids=first_ids,
        replies={i & ~1: (p.at, recording.messages[i]) for i, p in ours.items() if i & 1},
        ports=tuple(sorted({p.header.sport for p in recording.ours})),
        until=packets[-1].at + _AFTER_NS)
