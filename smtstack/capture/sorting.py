"""Which frames of a capture are packets of a profile; and names and numbers of all that are not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container
from typing import NamedTuple

from smtstack.capture.links import Frame, find_untrusted
from smtstack.errors import ConfigError
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4, overlay, upstream
from smtstack.wire.ethernet import HEADER_LEN

#: The kernel module's branch smt-ng has the type elsewhere (reference §11.2).
_NG_TYPE_OFFSET = 11
_SMT_NG = "smt-ng"
#: A packet of the kernel module that may be of a sealed message or not; and one that is not.
_MODULE, _CLEAR = "linux, sealed or not", "linux, in clear"
#: Names kept of frames that are not ours; beyond, they are counted together.
_MAX_NAMES = 256
_TOTAL_LENGTH = slice(ipv4.TOTAL_LENGTH_OFFSET, ipv4.TOTAL_LENGTH_OFFSET + 2)
_IP_ID = slice(ipv4.IDENTIFICATION_OFFSET, ipv4.IDENTIFICATION_OFFSET + 2)
_INDEX = slice(homa.PACKET_INDEX_OFFSET, homa.PACKET_INDEX_OFFSET + 1)
#: Fields of DATA that are 0 in the first packet of a message, unless it was sent again.
_BEGINNING = (slice(homa.PLACE_OFFSET, homa.PLACE_OFFSET + homa.PLACE_LEN),
              slice(homa.SEGMENT_HIGH_OFFSET, homa.SEGMENT_HIGH_OFFSET + 2),
              slice(homa.SEGMENT_LOW_OFFSET, homa.SEGMENT_LOW_OFFSET + 2),
              slice(homa.RETRANSMIT_OFFSET, homa.RETRANSMIT_OFFSET + 1), _INDEX)
#: Of upstream Homa's DATA: the end of the message length, and bytes that are 0.
_LENGTH_END = homa.COMMON_LEN + 4
_NOTHING = slice(upstream.PLACE_OFFSET - 3, upstream.PLACE_OFFSET)
_RECORD_PREFIX = b"\x17\x03\x03"
_ACK_WITH_PROOF = homa.ACK_LEN + homa.PROOF_LEN
#: What a packet lacks to be a frame.
_ETHERNET = bytes(HEADER_LEN - 2) + b"\x08\x00"
_TCP = "TCP"


class Sorted(NamedTuple):
    """A packet of the profile."""

    #: From the IPv4 header on, padding included.
    packet: bytes
    fmt: homa.WireFormat


def find_packet(link_type: int, frame: bytes, wanted: Container[int]) -> Frame:
    """What :func:`~smtstack.capture.links.find_untrusted` finds, and also what has the shape of TCP."""
    found = find_untrusted(link_type, frame, wanted)
    if found.packet is None and found.name == _TCP:
        shaped = find_untrusted(link_type, frame, (ipv4.PROTO_TCP,))
        if shaped.packet is not None and _is_shaped(shaped.packet):
            return shaped
    return found


class Sorter:
    """Takes the frames of one capture. ``protocol`` is for another IP protocol number than the profile's."""

    def __init__(self, profile: str, protocol: int | None = None) -> None:
        if profile not in homa.FORMATS:
            raise ConfigError(f"unknown profile {profile!r}; there are {', '.join(homa.FORMATS)}")
        self.own = homa.FORMATS[profile]
        #: How packets are read, by IP protocol.
        self.formats = {self.own.protocol if protocol is None else protocol: self.own}
        if self.own is homa.HOMA and protocol is None:
            # Plain Homa as the kernel module speaks it.
            self.formats[homa.PROTO_LINUX] = homa.LINUX
        if self.own.tcp_shaped and protocol is None:
            self.formats[ipv4.PROTO_TCP] = self.own
        self._wanted = {*self.formats, *(fmt.protocol for fmt in homa.FORMATS.values())}
        self.frames = 0
        #: Frames that are no packets of the profile, by name.
        self.others: Counter[str] = Counter()
        #: Packets of the profile of which the capture did not keep all, by type.
        self.truncated: Counter[str] = Counter()
        #: What packets look like: they show the profile they are of.
        self._looks: Counter[str] = Counter()

    def take(self, link_type: int, frame: bytes, missing: int = 0) -> list[Sorted]:
        """The packet in a captured frame, of whose end ``missing`` bytes were not kept; none: it is counted.

        Of a super-frame, the packets that it is cut into.
        """
        self.frames += 1
        found = find_packet(link_type, frame, self._wanted)
        packet = found.packet
        if packet is None:
            if found.cut and missing:
                self.truncated["cut off in their headers"] += 1
            else:
                self._other(found.name)
            return []
        protocol = packet[ipv4.PROTOCOL_OFFSET]
        transport = packet[4 * (packet[0] & 15):]
        look = _look(packet, transport) if protocol != ipv4.PROTO_TCP or _is_shaped(packet) else ""
        if look:
            self._looks[look] += 1
        fmt = self.format_of(packet)
        if fmt is None:
            self._other(_TCP if protocol == ipv4.PROTO_TCP else f"IP protocol {protocol}")
            return []
        if missing and int.from_bytes(packet[_TOTAL_LENGTH], "big") > len(packet):
            self.truncated[_type_name(transport, fmt)] += 1
            return []
        if protocol != ipv4.PROTO_TCP or fmt.tcp_shaped:
            return [Sorted(packet, fmt)]
        return [Sorted(cut[HEADER_LEN:], fmt) for cut in overlay.cut_untrusted(_ETHERNET + packet)]

    def format_of(self, packet: bytes) -> homa.WireFormat | None:
        """How an IPv4 packet is read; None: not at all, as what is of TCP without the profile's shape of it."""
        protocol = packet[ipv4.PROTOCOL_OFFSET]
        if protocol != ipv4.PROTO_TCP:
            return self.formats.get(protocol)
        return self.own if wire_frame.carries(protocol, packet[4 * (packet[0] & 15):], self.own) else None

    def other(self, name: str) -> None:
        """A frame was not given to :meth:`take`, as it is none of the wire."""
        self.frames += 1
        self._other(name)

    def _other(self, name: str) -> None:
        if name not in self.others and len(self.others) >= _MAX_NAMES:
            name = "of other kinds"
        self.others[name] += 1

    @property
    def ignored(self) -> int:
        """Frames that are no packets of the profile."""
        return self.others.total()

    def looks_like(self) -> str:
        """The profile that most packets show they are of; "" if it is the one looked for, or none shows."""
        shown = [(count, name) for name, count in self._looks.items() if name != _MODULE]
        name = max(shown)[1] if shown else _MODULE if self._looks else self.own.name
        if name in (_MODULE, _CLEAR):
            # In clear, or too little of it to tell: both profiles read that.
            name = self.own.name if self.own in (homa.HOMA, homa.LINUX) else homa.LINUX.name
        return "" if name == self.own.name else name

    def why_nothing(self) -> str:
        """Why nothing of the capture could be verified, as far as its frames tell; "": they do not."""
        if not self.frames:
            return "the capture holds no packet"
        numbers = " or ".join(str(number) for number in sorted(self.formats))
        absent = f"no packet of profile {self.own.name} (IP protocol {numbers})"
        look = self.looks_like()
        if look == _SMT_NG:
            return (f"{self._looks[_SMT_NG]} packets look like those of the kernel module's branch smt-ng, which "
                    "smtnet does not speak")
        if look:
            count = sum(count for name, count in self._looks.items() if name.partition(",")[0] == look)
            return (f"{count} packets look like profile {look} (IP protocol {homa.FORMATS[look].protocol}), not "
                    f"{self.own.name}: try --profile {look}")
        if self.truncated:
            return (f"{self.truncated.total()} packets were captured in part only ({_listed(self.truncated)}): "
                    "capture whole packets, without a snap length")
        if self.ignored == self.frames:
            return f"{absent} among {self.frames} frames: {_listed(self.others)}"
        return ""


def _is_shaped(packet: bytes) -> bool:
    """Whether an IPv4 packet of TCP's protocol is in truth one of ours, or upstream Homa's."""
    transport = packet[4 * (packet[0] & 15):]
    return homa.tcp_shaped(transport) or upstream.tcp_shaped(transport)


def _look(packet: bytes, transport: bytes) -> str:
    """The profile a packet shows it is of; "" if it might be of several."""
    if len(transport) < homa.COMMON_LEN:
        return ""
    protocol, kind = packet[ipv4.PROTOCOL_OFFSET], transport[homa.TYPE_OFFSET]
    if protocol in (homa.PROTO_HOMA, ipv4.PROTO_TCP) and upstream.tcp_shaped(transport):
        return _look_upstream(transport)
    if protocol == homa.PROTO_LINUX:
        if kind not in homa.TYPE_NAMES:
            return ""
        if kind != homa.DATA or any((*packet[_IP_ID], *transport[_INDEX])):
            return _MODULE
        return homa.LINUX.name if _begins_record(transport) else _CLEAR
    if protocol not in (homa.PROTO_HOMA, ipv4.PROTO_TCP):
        return ""
    if kind not in homa.TYPE_NAMES:
        return _SMT_NG if transport[_NG_TYPE_OFFSET] in homa.TYPE_NAMES else ""
    if transport[homa.FLAGS_OFFSET] & homa.HANDSHAKE:
        return homa.SMT.name
    if kind == homa.ACK:
        size = int.from_bytes(packet[_TOTAL_LENGTH], "big") - ipv4.HEADER_LEN
        return homa.SMT.name if size >= _ACK_WITH_PROOF else homa.HOMA.name
    if kind != homa.DATA or len(transport) < homa.DATA_LEN + len(_RECORD_PREFIX):
        return ""
    if _begins_record(transport):
        return homa.SMT.name
    # What begins a message tells; the middle of a record may look like anything.
    begins = not any((*packet[_IP_ID], *(byte for place in _BEGINNING for byte in transport[place])))
    return homa.HOMA.name if begins else ""


def _look_upstream(transport: bytes) -> str:
    """The profile of a packet with upstream Homa's pattern, which the module's branch smt-ng has as well: that has
    a record and its offset where upstream's DATA has the packet's own offset and nothing (reference §11.2)."""
    if transport[upstream.TYPE_OFFSET] != homa.DATA or len(transport) <= upstream.DATA_LEN:
        return ""
    length = int.from_bytes(transport[homa.COMMON_LEN:_LENGTH_END], "big")
    place = int.from_bytes(transport[upstream.PLACE_OFFSET:upstream.DATA_LEN], "big")
    plain = not any(transport[_NOTHING]) and (place < length or place == upstream.BY_SEQUENCE)
    return homa.UPSTREAM.name if plain else _SMT_NG


def _begins_record(transport: bytes) -> bool:
    return transport.startswith(_RECORD_PREFIX, homa.DATA_LEN)


def _type_name(transport: bytes, fmt: homa.WireFormat) -> str:
    if len(transport) <= fmt.type_offset:
        return "cut off in their headers"
    return homa.TYPE_NAMES.get(transport[fmt.type_offset], "of unknown types")


def _listed(counts: Counter[str]) -> str:
    """The most frequent of them."""
    shown = ", ".join(f"{count} {name}" for name, count in counts.most_common(4))
    return shown + (", ..." if len(counts) > 4 else "")
