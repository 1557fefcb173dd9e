"""Decode a capture: count packets, open and verify every record, put messages together.

Passive and suspicious. It needs no context: a capture may begin in mid-conversation, have holes, hold
packets twice and out of order. Roles follow from sender_id (even: the client's side speaks). Messages are
judged after the last packet, or when there is no room for more (``window.py``). What is kept of those judged:
20 to 40 bytes a record, to notice a nonce used again, and as much a message.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from smtstack.capture.flows import Flow, Flows, of_handshake
from smtstack.capture.linux import LinuxMessage
from smtstack.capture.messages import PlainMessage, SeenMessage, Tally
from smtstack.capture.smt import SmtMessage
from smtstack.capture.sorting import Sorter
from smtstack.capture.window import Key, Waiting, Window
from smtstack.crypto.keys import KeyStore
from smtstack.errors import BadPacket
from smtstack.transport.params import TransportParams
from smtstack.transport.profile import SmtProfile
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4
from smtstack.wire.naming import EPOCHS, wire_epoch

#: Sessions go from one epoch to the next; a larger step in a capture is a hole, or a forged packet.
_EPOCH_STEP = 4
#: Pairs of ends whose newest epoch is remembered, and ACKs that wait to be judged: the keys of an epoch are the
#: easier to name the more was opened.
_MAX_ENDS, _MAX_ACKS = 16_384, 16_384


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
    """Messages of which everything is there and (if sealed) authentic."""
    bytes: int
    """Application bytes of the complete messages."""
    nonce_reuse: int
    """How many times a used (key, nonce) came with other bytes that authenticate as well."""
    ignored: int
    """Frames that are no packets of the profile."""
    bad_packets: int
    """Packets of ours that are malformed, contradict others, or (ACK of profile ``smt``) prove nothing."""
    handshake_packets: int
    """Packets of the handshake plane (profile ``smt``): in clear, and in none of the counts above but the bad."""
    truncated: dict[str, int]
    """Packets by type of which the capture kept the beginning only; in none of the counts above."""
    others: dict[str, int]
    """The ignored frames by what they are."""


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

    ``profile`` is smt, homa, linux or upstream, whose packets may have TCP's protocol. Profile ``homa`` reads both
    our own layout and that of the kernel module, by IP protocol; ``linux`` reads the module's plain Homa as well.
    ``protocol`` is for captures made with another IP protocol number than the profile's; the layout is then the
    profile's own. ``on_message`` gets every message when it is judged.
    """

    def __init__(self, profile: str, keys: KeyStore, protocol: int | None = None, *,
                 on_message: Callable[[Message], None] | None = None) -> None:
        self.sorter = Sorter(profile, protocol)
        self._own = self.sorter.own
        self._flows = Flows(keys)
        self._on_message = on_message
        self._packets: Counter[str] = Counter()
        self._retransmitted = 0
        self._bad = 0
        self._acks: OrderedDict[tuple[Flow, homa.Ack], int] = OrderedDict()
        self._acks_proven = 0
        self._acks_unproven = 0
        self._handshake = 0
        #: Of the packets of profile ``upstream``: those in the shape of TCP.
        self.tcp_shaped = 0
        self._window = Window(self._judge)
        self._tally = Tally()
        self._messages = 0
        self._complete = 0
        self._bytes = 0
        #: Newest epoch of a session, by its two ends, counted on from the first epoch byte seen.
        self._newest: OrderedDict[frozenset[tuple[int, int]], int] = OrderedDict()
        self._result: Result | None = None

    # -- frames ------------------------------------------------------------------------------------------

    def add(self, link_type: int, frame: bytes, missing: int = 0) -> None:
        """Take one captured frame, of whose end ``missing`` bytes were not kept; it is at worst counted."""
        for found in self.sorter.take(link_type, frame, missing):
            try:
                self._packet_untrusted(*found)
            except BadPacket:
                self._bad += 1

    def _packet_untrusted(self, packet: bytes, fmt: homa.WireFormat) -> None:
        ip = ipv4.parse_untrusted(packet)
        transport = packet[ipv4.HEADER_LEN:ip.total_length]
        if fmt is homa.SMT and of_handshake(transport):
            homa.parse_untrusted(transport, homa.HOMA)
            self._handshake += 1
            return
        header = wire_frame.packet_untrusted(transport, fmt)
        flow = Flow(ip.src, header.sport, ip.dst, header.dport)
        self._packets[homa.TYPE_NAMES[transport[fmt.type_offset]]] += 1
        self.tcp_shaped += fmt.tcp_shaped and ip.protocol == ipv4.PROTO_TCP
        if isinstance(header, homa.Ack) and fmt.ack_proof:
            self._acks[flow, header] = self._acks.get((flow, header), 0) + 1
            if len(self._acks) > _MAX_ACKS:
                self._judge_ack(*self._acks.popitem(last=False))
        if not isinstance(header, homa.Data):
            return
        payload = transport[fmt.data_len:]
        self._retransmitted += header.retransmit != 0
        key = (flow, header.sender_id, header.epoch, self._round(flow, header.epoch))
        index = header.index_in_segment(ip.identification)
        entry = self._window.entry(key)
        message = self._message(entry, flow, fmt, header, index, payload)
        held = message.held
        message.add(header, index, payload)
        self._window.grown(key, entry, message.held - held)

    def _message(self, entry: Waiting, flow: Flow, fmt: homa.WireFormat, header: homa.Data, index: int,
                 payload: bytes) -> SeenMessage:
        """The message this packet is of."""
        for message in reversed(entry.messages):
            if message.takes(header, index, payload):
                return message
        entry.messages.append(self._new_message(fmt, flow, header.sender_id, header.epoch))
        return entry.messages[-1]

    def _round(self, flow: Flow, epoch: int) -> int:
        """How often the epoch byte has come round: ids begin anew with every epoch, the byte repeats."""
        ends = frozenset(((flow.src, flow.sport), (flow.dst, flow.dport)))
        newest = self._newest.setdefault(ends, epoch)
        self._newest.move_to_end(ends)
        if len(self._newest) > _MAX_ENDS:
            self._newest.popitem(last=False)
        step = wire_epoch(epoch - newest + EPOCHS // 2) - EPOCHS // 2
        if 0 < step <= _EPOCH_STEP:
            self._newest[ends] = newest + step
        return (newest + step) // EPOCHS

    def _new_message(self, fmt: homa.WireFormat, flow: Flow, sender_id: int, epoch: int) -> SeenMessage:
        if self._own is homa.SMT:
            return SmtMessage(self._flows.smt(flow), sender_id, epoch)
        if self._own is homa.LINUX:
            return LinuxMessage(self._flows.linux(flow, sender_id & 1 == 0), sender_id)
        return PlainMessage(module=fmt is homa.LINUX)

    # -- judging -----------------------------------------------------------------------------------------

    def _judge(self, key: Key, entry: Waiting) -> bool:
        """Count what was seen under ``key``; whether a message of it is complete."""
        flow, sender_id, epoch, _round = key
        tally = self._tally
        complete = entry.complete
        for message in entry.messages:
            tally.late, fresh = entry.late, tally.fresh
            data = message.evaluate(tally)
            # Late, it is a repetition or the rest, unless another session of these ends says so.
            another = not entry.late or (self._several(flow) and tally.fresh > fresh)
            self._messages += another
            if data is not None and (another or not complete):
                self._complete += 1
                self._bytes += len(data)
            complete |= data is not None
            if self._on_message is not None:
                self._on_message(Message(flow, sender_id, epoch, data))
        return complete

    def _several(self, flow: Flow) -> bool:
        way = self._flows.smt(flow) if self._own is homa.SMT else None
        return way is not None and way.several

    def _judge_ack(self, seen: tuple[Flow, homa.Ack], count: int) -> None:
        if self._ack_proven(*seen):
            self._acks_proven += count
        else:
            self._acks_unproven += count

    def _ack_proven(self, flow: Flow, ack: homa.Ack) -> bool:
        way = self._flows.smt(flow)
        if way is None:
            return False
        profile = SmtProfile(TransportParams())
        for session, keys in way.epochs(ack.epoch):
            if profile.ack_proven(session, keys, ack):
                self._tally.ledger.observe(keys.rx, profile.ack_number(session, ack), ack.body(), ack.proof)
                return True
        return False

    def result(self) -> Result:
        """Judge what is left. No frame may be added afterwards."""
        if self._result is not None:
            return self._result
        for key, entry in self._window.rest():
            self._judge(key, entry)
        for seen, count in self._acks.items():
            self._judge_ack(seen, count)
        tally, sorter = self._tally, self.sorter
        self._result = Result(
            packets={name: self._packets[name] for name in homa.TYPE_NAMES.values() if self._packets[name]},
            retransmitted=self._retransmitted,
            records_ok=tally.records_ok,
            records_bad=tally.records_bad,
            messages=self._messages,
            messages_complete=self._complete,
            bytes=self._bytes,
            nonce_reuse=tally.ledger.reuse,
            ignored=sorter.ignored,
            bad_packets=self._bad + tally.bad_packets + self._acks_unproven,
            handshake_packets=self._handshake,
            truncated=dict(sorter.truncated.most_common()),
            others=dict(sorter.others.most_common()))
        return self._result

    # -- for people --------------------------------------------------------------------------------------

    def why_nothing(self) -> str:
        """Why nothing of this capture was verified, in one sentence; "": something was."""
        result = self.result()
        if self._own in (homa.HOMA, homa.UPSTREAM) and self.sorter.looks_like():
            # Records look like any other data to whoever knows no records.
            return self.sorter.why_nothing()
        if result.records_ok or result.messages_complete or self._acks_proven:
            return ""
        if result.records_bad and not self.sorter.looks_like():
            return ("not one record authenticates: these are probably not the keys of this capture (--keys demo "
                    "is right for the kernel module's demo programs)" + self._without_keys())
        data = result.packets.get("DATA", 0)
        return self.sorter.why_nothing() or (
            f"{self._bad} packets of profile {self._own.name} are malformed, and none is not"
            if self._bad and not result.packets and not result.handshake_packets else
            f"{result.handshake_packets} packets are of handshakes, which are in clear, and none is of a message"
            if result.handshake_packets and not data else
            f"not one of {data} DATA packets belongs to a record or message that is whole{self._without_keys()}"
            if data else f"{sum(result.packets.values())} packets, and none of them is DATA")

    def _without_keys(self) -> str:
        pairs = self._pairs_without_keys()
        return f"; no key for {pairs[0]}" + (" and others" if len(pairs) > 1 else "") if pairs else ""

    def _pairs_without_keys(self) -> list[str]:
        return [f"{ipv4.format_address(src)} -> {ipv4.format_address(dst)}"
                for src, dst in sorted(self._flows.unknown)]

    def hints(self) -> list[str]:
        """What a person should know about the result: probable causes, one sentence each."""
        result = self.result()
        out: list[str] = []
        if why := self.why_nothing():
            return [f"nothing was verified: {why}"]
        if result.records_bad:
            out.append(f"{result.records_bad} records are not authentic: changed on the way, or sealed "
                       "under other keys")
        if result.nonce_reuse:
            out.append(f"{result.nonce_reuse} times a nonce was used again for other bytes: confidentiality "
                       "and integrity under that key are gone")
        out += [f"no key for {pair}; its records count as bad" for pair in self._pairs_without_keys()]
        if self._acks_unproven:
            out.append(f"{self._acks_unproven} ACKs carry no valid proof (counted in bad_packets)")
        return out
