"""Decode a capture: count packets, open and verify every record, put messages together.

Passive and suspicious. It needs no context: a capture may begin in mid-conversation, have holes, hold
packets twice and out of order. Roles follow from sender_id (even: the client's side speaks). Everything
is judged after the last packet, so memory is that of the captured payloads.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from smtstack.capture.flows import Flow, Flows, of_handshake
from smtstack.capture.linux import LinuxMessage
from smtstack.capture.messages import PlainMessage, SeenMessage, Tally
from smtstack.capture.pcapfile import ipv4_untrusted
from smtstack.capture.smt import SmtMessage
from smtstack.crypto.keys import KeyStore
from smtstack.errors import BadPacket, ConfigError
from smtstack.transport.params import TransportParams
from smtstack.transport.profile import SmtProfile
from smtstack.wire import homa, ipv4

#: Sessions go from one epoch to the next; a larger step in a capture is a hole, or a forged packet.
_EPOCH_STEP = 4


@dataclass(frozen=True, slots=True)
class Result:
    """What a capture held."""

    packets: dict[str, int]
    """Packets by type name; repetitions count."""
    retransmitted: int
    """DATA packets marked as retransmissions."""
    records_ok: int
    """Records that authenticated, each once however often it was sent."""
    records_bad: int
    """Records of which a copy is whole and does not authenticate, or of which copies of one packet differ
    without each being part of an authentic record. Records that never became whole count nowhere."""
    messages: int
    """Messages of which at least one DATA packet was seen."""
    messages_complete: int
    """Those of which everything is there and (if sealed) authentic."""
    bytes: int
    """Application bytes of the complete messages."""
    nonce_reuse: int
    """How many times a used (key, nonce) came with other bytes that authenticate as well."""
    ignored: int
    """Frames of other protocols."""
    bad_packets: int
    """Packets of ours that are malformed, contradict others, or (ACK of profile ``smt``) prove nothing."""
    handshake_packets: int
    """Packets of the handshake plane (profile ``smt``): in clear, and in none of the counts above but the bad."""


class Message(NamedTuple):
    """One message of a capture."""

    flow: Flow
    sender_id: int
    #: As on the wire, 8 bits; 0 but in profile ``smt``.
    epoch: int
    #: Plaintext; None: incomplete, or not authentic.
    data: bytes | None


class Decoder:
    """Takes frames one by one, gives a :class:`Result` in the end.

    ``profile`` is smt, homa or linux. Profile ``homa`` reads both our own layout and that of the kernel
    module, by IP protocol; ``linux`` reads the module's plain Homa as well. ``protocol`` is for captures
    made with another IP protocol number than the profile's; the layout is then the profile's own.
    """

    def __init__(self, profile: str, keys: KeyStore, protocol: int | None = None) -> None:
        if profile not in homa.FORMATS:
            raise ConfigError(f"unknown profile {profile!r}; there are {', '.join(homa.FORMATS)}")
        own = homa.FORMATS[profile]
        #: Wire format by IP protocol.
        self._formats = {own.protocol if protocol is None else protocol: own}
        if own is homa.HOMA and protocol is None:
            self._formats[homa.PROTO_LINUX] = homa.LINUX
        self._own = own
        self._flows = Flows(keys)
        self._packets: Counter[str] = Counter()
        self._retransmitted = 0
        self._ignored = 0
        self._bad = 0
        self._unknown_links: set[int] = set()
        #: Frames of IP protocols that another profile speaks.
        self._others: Counter[int] = Counter()
        self._sealed_as_plain = 0
        self._acks: Counter[tuple[Flow, homa.Ack]] = Counter()
        self._acks_unproven = 0
        self._handshake = 0
        #: By flow, sender_id, epoch byte and which round of the 256 epoch bytes it is; in order of appearance.
        #: Several where these ends had several sessions, each of which counts from the first id and epoch 0.
        self._seen: dict[tuple[Flow, int, int, int], list[SeenMessage]] = {}
        #: Newest epoch of a session, by its two ends, counted on from the first epoch byte seen.
        self._newest: dict[frozenset[tuple[int, int]], int] = {}
        self._messages: list[Message] = []
        self._result: Result | None = None

    # -- frames ------------------------------------------------------------------------------------------

    def add(self, link_type: int, frame: bytes) -> None:
        """Take one captured frame; whatever it holds, it is at worst counted."""
        try:
            packet = ipv4_untrusted(link_type, frame)
            if packet is None or len(packet) < ipv4.HEADER_LEN:
                self._ignored += 1
                return
            fmt = self._formats.get(packet[9])
            if fmt is None:
                self._ignored += 1
                self._others[packet[9]] += 1
                return
        except BadPacket:
            self._ignored += 1
            self._unknown_links.add(link_type)
            return
        try:
            self._packet_untrusted(packet, fmt)
        except BadPacket:
            self._bad += 1

    def _packet_untrusted(self, packet: bytes, fmt: homa.WireFormat) -> None:
        ip = ipv4.parse_untrusted(packet)
        transport = packet[ipv4.HEADER_LEN:ip.total_length]
        if fmt is homa.SMT and of_handshake(transport):
            homa.parse_untrusted(transport, homa.HOMA)
            self._handshake += 1
            return
        header = homa.parse_untrusted(transport, fmt)
        flow = Flow(ip.src, header.sport, ip.dst, header.dport)
        self._packets[homa.TYPE_NAMES[transport[homa.TYPE_OFFSET]]] += 1
        if isinstance(header, homa.Ack) and fmt.ack_proof:
            self._acks[flow, header] += 1
        if not isinstance(header, homa.Data):
            return
        payload = transport[homa.DATA_LEN:]
        self._retransmitted += header.retransmit != 0
        key = (flow, header.sender_id, header.epoch, self._round(flow, header.epoch))
        index = ip.identification + header.packet_index & 0xFFFF
        self._message(key, fmt, header, index, payload).add(header, index, payload)
        if self._own is homa.HOMA and payload.startswith(b"\x17\x03\x03"):
            self._sealed_as_plain += 1

    def _message(self, key: tuple[Flow, int, int, int], fmt: homa.WireFormat, header: homa.Data, index: int,
                 payload: bytes) -> SeenMessage:
        """The message this packet is of."""
        flow, sender_id, epoch, _round = key
        seen = self._seen.setdefault(key, [])
        if not seen:
            seen.append(self._new_message(fmt, flow, sender_id, epoch))
        if not any(message.takes(header, index, payload) for message in reversed(seen)):
            seen.append(self._new_message(fmt, flow, sender_id, epoch))
        return next(message for message in reversed(seen) if message.takes(header, index, payload))

    def _round(self, flow: Flow, epoch: int) -> int:
        """How often the epoch byte has come round: ids begin anew with every epoch, the byte repeats."""
        ends = frozenset(((flow.src, flow.sport), (flow.dst, flow.dport)))
        newest = self._newest.setdefault(ends, epoch)
        step = (epoch - newest + 128 & 0xFF) - 128
        if 0 < step <= _EPOCH_STEP:
            self._newest[ends] = newest + step
        return newest + step >> 8

    def _new_message(self, fmt: homa.WireFormat, flow: Flow, sender_id: int, epoch: int) -> SeenMessage:
        if self._own is homa.SMT:
            return SmtMessage(self._flows.smt(flow), sender_id, epoch)
        if self._own is homa.LINUX:
            return LinuxMessage(self._flows.linux(flow, sender_id & 1 == 0), sender_id)
        return PlainMessage(module=fmt is homa.LINUX)

    # -- the end -----------------------------------------------------------------------------------------

    def result(self) -> Result:
        """Judge everything. No frame may be added afterwards."""
        if self._result is not None:
            return self._result
        tally = Tally()
        self._messages = [Message(flow, sender_id, epoch, message.evaluate(tally))
                          for (flow, sender_id, epoch, _round), seen in self._seen.items() for message in seen]
        for (flow, ack), count in self._acks.items():
            if not self._ack_proven(flow, ack, tally):
                self._acks_unproven += count
        whole = [m.data for m in self._messages if m.data is not None]
        self._result = Result(
            packets={name: self._packets[name] for name in homa.TYPE_NAMES.values() if self._packets[name]},
            retransmitted=self._retransmitted,
            records_ok=tally.records_ok,
            records_bad=tally.records_bad,
            messages=len(self._messages),
            messages_complete=len(whole),
            bytes=sum(map(len, whole)),
            nonce_reuse=tally.ledger.reuse,
            ignored=self._ignored,
            bad_packets=self._bad + tally.bad_packets + self._acks_unproven,
            handshake_packets=self._handshake)
        return self._result

    def messages(self) -> list[Message]:
        """Every message of the capture, in order of its first packet."""
        self.result()
        return self._messages

    def _ack_proven(self, flow: Flow, ack: homa.Ack, tally: Tally) -> bool:
        way = self._flows.smt(flow)
        if way is None:
            return False
        profile = SmtProfile(TransportParams())
        for session, keys in way.epochs(ack.epoch):
            if profile.ack_proven(session, keys, ack):
                tally.ledger.observe(keys.rx, profile.ack_number(session, ack), ack.body(), ack.proof)
                return True
        return False

    def hints(self) -> list[str]:
        """What a person should know about the result: probable causes, one sentence each."""
        result = self.result()
        out: list[str] = []
        if result.records_bad and not result.records_ok:
            out.append("not one record authenticates: these are probably not the keys of this capture "
                       "(--keys demo is right for the kernel module's demo programs)")
        elif result.records_bad:
            out.append(f"{result.records_bad} records are not authentic: changed on the way, or sealed "
                       "under other keys")
        if result.nonce_reuse:
            out.append(f"{result.nonce_reuse} times a nonce was used again for other bytes: confidentiality "
                       "and integrity under that key are gone")
        out += [f"no key for {ipv4.format_address(src)} -> {ipv4.format_address(dst)}; its records count as bad"
                for src, dst in sorted({(f.src, f.dst) for f in self._flows.unknown})]
        if self._acks_unproven:
            out.append(f"{self._acks_unproven} ACKs carry no valid proof (counted in bad_packets)")
        if self._sealed_as_plain:
            out.append(f"{self._sealed_as_plain} packets begin with a TLS record, which profile homa does "
                       "not have; try --profile linux or smt")
        if not result.packets:
            out += self._nothing_found()
        return out

    def _nothing_found(self) -> list[str]:
        numbers = " or ".join(str(p) for p in sorted(self._formats))
        out = [f"no packet of profile {self._own.name} (IP protocol {numbers}) in this capture"]
        out += [f"{self._others[fmt.protocol]} packets have IP protocol {fmt.protocol}: try --profile {fmt.name}"
                for fmt in homa.FORMATS.values() if self._others[fmt.protocol]]
        if self._bad:
            out.append(f"{self._bad} packets of that protocol are malformed; the kernel module's branch smt-ng "
                       "uses IP protocol 146 with another layout, which smtnet does not speak")
        if self._unknown_links:
            out.append(f"link type {min(self._unknown_links)} is not one of Ethernet, Linux cooked and raw IP")
        return out
