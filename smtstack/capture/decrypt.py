"""A capture with plaintext twins: packet by packet in, blocks of a pcapng file out.

Every packet is passed on as it is, with a comment where there is something to say; right behind it come the
records it completed, as upper PDUs on an interface of their own, and what it completed of a handshake. Reads
on as it writes. Kept in memory: packets of records that are not whole yet (:data:`MAX_HELD` bytes), and digests of
packets, to tell repetitions (of :data:`MAX_MESSAGES` messages and :data:`MAX_DIGESTS` packets).
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from smtstack.capture import pcapng
from smtstack.capture.captured import HOST_SEGMENTS, Captured
from smtstack.capture.flows import Flow, Flows, of_handshake
from smtstack.capture.handshakes import Handshakes
from smtstack.capture.links import LINK_ETHERNET
from smtstack.capture.messages import clear_segments
from smtstack.capture.pieces import Incoming, LinuxIncoming, News, Piece, PlainIncoming, SmtIncoming
from smtstack.capture.sorting import Sorter
from smtstack.capture.twins import LINK_UPPER_PDU, upper_pdu
from smtstack.crypto.keys import KeyStore
from smtstack.errors import BadPacket
from smtstack.session.flights import MAX_FLIGHT, Flight
from smtstack.transport.params import TransportParams
from smtstack.transport.profile import SmtProfile
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4
from smtstack.wire.show import message_name

#: Bytes of unfinished records kept; beyond, the message heard of least lately is given up.
MAX_HELD = 256 << 20
#: Messages remembered, finished ones too.
MAX_MESSAGES = 1 << 16
#: Packets of which a digest is kept, some 200 bytes each; beyond, the message heard of least lately is forgotten.
MAX_DIGESTS = 1 << 20
#: Messages of one id and epoch of which packets may still come.
_MAX_TWICE = 4
_OFFLOAD = re.compile(r"\boffload: (hw|sw)\b")

_Key = tuple[Flow, int, int, bool]
#: Gives the lines of a keylog about the TLS handshake with this client random.
TlsLines = Callable[[bytes], "list[str]"]
#: Told of every flight of the handshake plane, and whose it is.
OnFlight = Callable[[Flow, Flight], None]


@dataclass(slots=True)
class Counts:
    """What was in a capture, and what became of it."""

    packets: int = 0
    """Packets of the profile, well-formed; the handshake plane's as well."""
    handshake_packets: int = 0
    handshakes: int = 0
    """TLS handshakes and 0-RTT hellos that began."""
    records: int = 0
    """Records decrypted, or pieces of plain messages: as many twins were written."""
    bytes: int = 0
    """Application bytes in them."""
    messages_complete: int = 0
    messages_incomplete: int = 0
    """Messages of which something did not come, did not authenticate, or came too late."""
    records_failed: int = 0
    """Records that were whole and authenticate under no session known."""
    unknown: int = 0
    """DATA packets between ends of which no session is known."""
    repeated: int = 0
    """DATA packets that had been there before."""
    acks_unproven: int = 0
    bad_packets: int = 0
    ignored: int = 0
    """Frames of other protocols, and of the host side of a NIC."""
    truncated: dict[str, int] = field(default_factory=dict)
    """Packets by type of which the capture kept the beginning only; in none of the counts above."""
    others: dict[str, int] = field(default_factory=dict)
    """The ignored frames by what they are."""


class Decrypter:
    """Made for one file. ``tls_lines``: where the TLS secrets to be written come from; None: none are."""

    def __init__(self, profile: str, keys: KeyStore, protocol: int | None = None, *,
                 tls_lines: TlsLines | None = None, on_flight: OnFlight | None = None) -> None:
        self.sorter = Sorter(profile, protocol)
        self._own = self.sorter.own
        self._flows = Flows(keys)
        self._profile = SmtProfile(TransportParams())
        self._tls_lines = tls_lines
        self._on_flight = on_flight
        self._handshakes = Handshakes()
        self._live: OrderedDict[_Key, list[Incoming]] = OrderedDict()
        self._held = 0
        self._digests = 0
        #: Flights in parts.
        self._parts: dict[_Key, list[bytes]] = {}
        self._interfaces: dict[tuple[str, int], int] = {}
        self.counts = Counts()

    @staticmethod
    def begin() -> bytes:
        """What the file begins with."""
        return pcapng.section("smtnet pcap decrypt")

    def add(self, captured: Captured) -> bytes:
        """One packet of the capture and what there is to say about it."""
        said: list[str] = [captured.comment] if captured.comment else []
        # Before the twins' interfaces: they are numbered as their descriptions come in the file.
        name = captured.interface or "capture"
        described = self._describe(name, captured.link_type)
        twins: list[bytes] = []
        if captured.interface.endswith(pcapng.HOST_SIDE):
            self.sorter.other(HOST_SEGMENTS)
            packets = []
        else:
            packets = self.sorter.take(captured.link_type, captured.frame, captured.missing)
        for found in packets:
            try:
                self._packet_untrusted(*found, captured, said, twins)
            except BadPacket as e:
                self.counts.bad_packets += 1
                said.append(f"malformed: {e}")
        own = self._packet(name, captured.link_type, captured.timestamp_ns, captured.frame, captured.outwards,
                           "\n".join(said), captured.missing)
        return b"".join([described, *own, *twins])

    def finish(self) -> Counts:
        """The counts, after the last packet."""
        counts = self.counts
        counts.handshakes = self._handshakes.begun
        counts.ignored = self.sorter.ignored
        counts.truncated = dict(self.sorter.truncated.most_common())
        counts.others = dict(self.sorter.others.most_common())
        for key in list(self._live):
            self._give_up(key)
        return counts

    def why_nothing(self) -> str:
        """Why nothing of this capture was opened, in one sentence; "": something was. After :meth:`finish`."""
        counts, own = self.counts, self._own
        if own in (homa.HOMA, homa.UPSTREAM) and self.sorter.looks_like():
            return self.sorter.why_nothing()
        if counts.records:
            return ""
        if counts.unknown and not self.sorter.looks_like():
            return f"{counts.unknown} packets are of sessions that the keys given do not name"
        if counts.records_failed and not self.sorter.looks_like():
            return (f"not one of {counts.records_failed} records is authentic: they are of other sessions of "
                    "these ends than the keys given name, or changed on the way")
        return self.sorter.why_nothing() or (
            f"{counts.bad_packets} packets of profile {own.name} are malformed, and none is not"
            if not counts.packets else
            f"{counts.handshake_packets} packets are of handshakes, which are in clear, and no record is whole"
            if counts.handshake_packets else f"no record is whole in {counts.packets} packets")

    # -- packets -----------------------------------------------------------------------------------------

    def _packet_untrusted(self, packet: bytes, fmt: homa.WireFormat, captured: Captured, said: list[str],
                          twins: list[bytes]) -> None:
        ip = ipv4.parse_untrusted(packet)
        transport = packet[ipv4.HEADER_LEN:ip.total_length]
        handshake = fmt is homa.SMT and of_handshake(transport)
        header = wire_frame.packet_untrusted(transport, homa.HOMA if handshake else fmt)
        flow = Flow(ip.src, header.sport, ip.dst, header.dport)
        counts = self.counts
        counts.packets += 1
        counts.handshake_packets += handshake
        if isinstance(header, homa.Ack) and fmt.ack_proof and not handshake and not self._ack_proven(flow, header):
            counts.acks_unproven += 1
            said.append("the proof of this ACK is of no session known")
        if not isinstance(header, homa.Data):
            return
        key = flow, header.sender_id, header.epoch, handshake
        fed = self._feed(key, fmt, header, header.index_in_segment(ip.identification),
                         transport[fmt.data_len:], captured)
        if fed is None:
            counts.unknown += 1
            said.append("no session of these ends is known: not decrypted")
            return
        message, news = fed
        name = message_name(header.sender_id)
        if news.repeated:
            counts.repeated += 1
            said.append(f"{name}: this packet was there before")
        if news.failed:
            counts.records_failed += news.failed
            said.append(f"{name}: not authentic under any session known" if fmt is not homa.HOMA else
                        f"{name}: no packet of Homa as the kernel module speaks it")
        if handshake:
            self._flight(key, news, captured, said, twins)
            return
        for piece in news.pieces:
            counts.records += 1
            counts.bytes += len(piece.data)
            text = f"{name} {_describe(piece)}"
            if piece.number is not None:
                text += f", offload: {message.offload()}"
            twins += self._packet("plaintext", LINK_UPPER_PDU, captured.timestamp_ns,
                                  upper_pdu(flow, piece.data, text), captured.outwards, text)

    def _feed(self, key: _Key, fmt: homa.WireFormat, header: homa.Data, index: int, payload: bytes,
              captured: Captured) -> tuple[Incoming, News] | None:
        messages = self._live.get(key)
        if messages is None:
            first = self._new(key, fmt, header, payload)
            if first is None:
                return None
            messages = self._live[key] = [first]
        self._live.move_to_end(key)
        offload = _OFFLOAD.search(captured.comment)
        known = [(message, message.knows(header, index, payload)) for message in messages]
        repeated = next((message for message, knows in known if knows), None)
        if repeated is not None:
            return repeated, News(repeated=True)
        # The first that misses something: another may only have begun with a packet that somebody changed.
        message = next((message for message, knows in known if knows is False and not message.complete), None)
        if message is None:
            message = self._new(key, fmt, header, payload)
            if message is None:
                return None
            messages.append(message)
            if len(messages) > _MAX_TWICE:
                self._close(messages.pop(0), plane=key[3])
        held, digests, was_complete = message.held, message.digests, message.complete
        news = message.feed(header, index, payload)
        if offload is not None:
            message.sealed_by(offload[1])
        self._held += message.held - held
        self._digests += message.digests - digests
        self.counts.messages_complete += message.complete and not was_complete and not key[3]
        while self._held > MAX_HELD or self._digests > MAX_DIGESTS or len(self._live) > MAX_MESSAGES:
            self._give_up(next(iter(self._live)))
        return message, news

    def _new(self, key: _Key, fmt: homa.WireFormat, header: homa.Data, payload: bytes) -> Incoming | None:
        flow, sender_id, epoch, handshake = key
        if handshake or self._own in (homa.HOMA, homa.UPSTREAM):
            return PlainIncoming(module=fmt is homa.LINUX)
        if self._own is homa.SMT:
            way = self._flows.smt(flow)
            return SmtIncoming(way, sender_id, epoch) if way is not None else None
        if clear_segments(payload, header.message_length) is not None:
            return PlainIncoming(module=True)
        keys = self._flows.linux(flow, sender_id & 1 == 0)
        return LinuxIncoming(keys, sender_id) if keys is not None else None

    def _give_up(self, key: _Key) -> None:
        for message in self._live.pop(key):
            self._close(message, plane=key[3])
        self._parts.pop(key, None)

    def _close(self, message: Incoming, plane: bool = False) -> None:
        self._held -= message.held
        self._digests -= message.digests
        self.counts.messages_incomplete += not message.complete and not plane

    def _ack_proven(self, flow: Flow, ack: homa.Ack) -> bool:
        way = self._flows.smt(flow)
        return way is not None and any(self._profile.ack_proven(session, keys, ack)
                                       for session, keys in way.epochs(ack.epoch))

    # -- the handshake plane -----------------------------------------------------------------------------

    def _flight(self, key: _Key, news: News, captured: Captured, said: list[str], twins: list[bytes]) -> None:
        flow, sender_id, _epoch, _handshake = key
        if not news.pieces:
            return
        parts = self._parts.setdefault(key, [])
        parts += [piece.data for piece in news.pieces]
        if news.pieces[-1].nth + 1 < news.pieces[-1].of:
            if sum(map(len, parts)) > MAX_FLIGHT:
                parts.clear()
                raise BadPacket(f"a flight of more than {MAX_FLIGHT} bytes")
            return
        seen = self._handshakes.flight_untrusted(flow, sender_id, b"".join(self._parts.pop(key)))
        said.append(seen.comment)
        if self._on_flight is not None:
            self._on_flight(flow, seen.flight)
        if seen.client_random and self._tls_lines is not None and (lines := self._tls_lines(seen.client_random)):
            twins.append(pcapng.tls_secrets("".join(f"{line}\n" for line in lines)))
        for twin in seen.frames:
            twins += self._packet("handshakes", LINK_ETHERNET, captured.timestamp_ns, twin.frame, None,
                                  twin.comment)

    # -- blocks ------------------------------------------------------------------------------------------

    def _describe(self, interface: str, link_type: int) -> bytes:
        """The block that must come before the first packet of an interface; empty if it was written."""
        if (interface, link_type) in self._interfaces:
            return b""
        self._interfaces[interface, link_type] = len(self._interfaces)
        return pcapng.interface(interface, link_type)

    def _packet(self, interface: str, link_type: int, timestamp_ns: int, frame: bytes, outwards: bool | None,
                comment: str, missing: int = 0) -> list[bytes]:
        described = self._describe(interface, link_type)
        number = self._interfaces[interface, link_type]
        return [described, pcapng.packet(number, timestamp_ns, frame, outwards, comment, missing)]


def _describe(piece: Piece) -> str:
    what = "piece" if piece.number is None else "record"
    text = f"{what} {piece.nth + 1}" + (f" of {piece.of}" if piece.of else "")
    if piece.epoch is not None:
        text += f", epoch {piece.epoch}"
    if piece.number is not None:
        text += f", number {piece.number:#x}"
    return f"{text}, {len(piece.data)} bytes"
