"""What our engine says in the place of a recorded end, against what that end said: the same bytes, or a rule.

Pure: packets in, differences out. A difference is a packet of either side that has no equal of the other side at
the same time, and that no rule explains. This is the one place that says what may differ.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.transport.params import INT_MAX
from smtstack.wire import homa, show
from tests.performing import Performance
from tests.replay import Packet, Recording, packet

_MS: Final = 1_000_000
#: How far apart in time equal packets may be: programs do not run at once, and ticks begin anywhere.
SAME_NS: Final = 6 * _MS
#: A RESEND or NEED_ACK of the timer is so late at most, or early.
TICK_NS: Final = 2 * _MS
#: What is said in answer to a packet is said so soon.
AT_ONCE_NS: Final = 4 * _MS
#: By the module's sysctls of the same names, which are our defaults.
RESEND_TICKS: Final = 15
RESEND_INTERVAL: Final = 10
#: Keys and salts of the module's demo programs, by role bit.
_KEYS: Final = ((bytes.fromhex("8DD230A77A05EB71159129BCBCF64230"), bytes.fromhex("87C635C8")),
                (bytes.fromhex("6CCF62FF4BE61485D8BA29FE2E847A7F"), bytes.fromhex("B9FA5583")))
#: Bytes of a record beside data and segment headers; of a segment header; of headers before a packet's payload.
_RECORD, _SEGMENT, _HEADERS = 29, 20, 60


def body(p: Packet) -> bytes:
    """What must be the same: everything behind the Ethernet header."""
    return p.frame[14:]


def place(p: Packet) -> tuple[int, int, int]:
    """Where a DATA packet belongs: sender's id, offset of its record, place in that."""
    assert isinstance(p.header, homa.Data)
    if not p.sealed:
        return p.header.sender_id, int.from_bytes(p.payload[:4], "big"), 0
    return p.header.sender_id, p.header.segment_offset, p.ip.identification + p.header.packet_index


def nominal(p: Packet, mtu: int) -> tuple[int, int]:
    """Bytes of the message that the module takes DATA for: it cannot see those in a record (reference 5.3)."""
    _sender, start, index = place(p)
    if not p.sealed:
        return start, start + int.from_bytes(p.payload[4:8], "big")
    size = len(p.payload) - (_RECORD if index == 0 else 0)
    if index:
        start += index * (mtu - _HEADERS - _SEGMENT) - _RECORD
    return start, start + (size - _SEGMENT if size > _SEGMENT else size)


@dataclass
class Comparison:
    """What is left over, and what rules look at."""

    recording: Recording
    params: dict[str, Any]
    recorded: list[Packet]
    """Of the recorded end, without an equal today."""
    today: list[Packet]
    """Of our engine, without an equal in the recording."""
    all_today: list[Packet]
    explained: dict[str, int] = field(default_factory=dict)
    """Packets by the rule that explained them."""

    def of(self, kind: type[homa.Packet], rpc: int) -> list[Packet]:
        """Today's packets of a type about an RPC."""
        return [p for p in self.all_today if p.rpc == rpc and isinstance(p.header, kind)]

    def heard(self, kind: type[homa.Packet], rpc: int) -> list[Packet]:
        """The same of what the other end sent."""
        return [p for p in self.recording.theirs if p.rpc == rpc and isinstance(p.header, kind)]

    def said(self, rpc: int) -> list[Packet]:
        """DATA of the recorded end about an RPC."""
        return [p for p in self.recording.ours if p.rpc == rpc and isinstance(p.header, homa.Data)]

    def missing(self, rpc: int, at: int) -> list[tuple[int, int]]:
        """Gaps [start, end) in what had come of the other end's message before ``at``; one of all, if none had."""
        mtu = self.params.get("mtu", 1500)
        came = sorted(nominal(p, mtu) for p in self.heard(homa.Data, rpc) if p.at <= at)
        if not came:
            return [(0, 1 << 31)]
        length = self.length(rpc)
        gaps, end = [], 0
        for start, stop in came:
            if start > end:
                gaps.append((end, start))
            end = max(end, stop)
        return gaps + ([(end, length)] if end < length else [])

    def length(self, rpc: int) -> int:
        """Bytes of the other end's message; 0: it sent none."""
        headers = [p.header for p in self.heard(homa.Data, rpc)]
        return max((header.message_length for header in headers if isinstance(header, homa.Data)), default=0)


#: Takes the packets that it explains out of ``recorded`` and ``today``.
Rule = Callable[[Comparison], None]


def need_acks(c: Comparison) -> None:
    """NEED_ACKs have a pace of their own.

    The module asks every tick, our engine of these captures asked each ``resend_interval``. Today's comes
    ``request_ack_ticks`` after the whole response, then at that interval or later (:func:`unhurried`), and never
    after an ACK.
    """
    patience = c.params.get("request_ack_ticks", 2) * _MS
    acks = acknowledged(c.recording)
    right = set()
    for rpc in {p.rpc for p in c.today if isinstance(p.header, homa.NeedAck)}:
        asked = [p.at for p in c.of(homa.NeedAck, rpc)]
        sent = [p.at for p in c.of(homa.Data, rpc)]
        acked = acks.get(rpc, 1 << 62)
        first = [at for at in sent if at <= asked[0]]
        if (first and asked[0] >= first[-1] + patience - TICK_NS and asked[-1] <= acked + SAME_NS
                and unhurried(c, rpc, asked)):
            right.add(rpc)
    _explain(c, c.today, lambda p: p.rpc in right and isinstance(p.header, homa.NeedAck), "need_acks")
    asking = {p.rpc for p in c.all_today if isinstance(p.header, homa.NeedAck)} | acks.keys()
    _explain(c, c.recorded, lambda p: p.rpc in asking and isinstance(p.header, homa.NeedAck), "need_acks")


def unhurried(c: Comparison, rpc: int, asked: list[int]) -> bool:
    """Whether our questions about an RPC, at these times, are ``resend_interval`` apart, and more after five of
    which none was answered: twice that, then four times, up to sixteen times."""
    heard = [q.at for q in c.recording.theirs if q.rpc == rpc]
    for number, (before, at) in enumerate(pairwise(asked), 1):
        last = max((time for time in heard if time <= at), default=0)
        unanswered = sum(time > last for time in asked[:number])
        if at - before < (RESEND_INTERVAL << max(0, min(unanswered - 5, 4))) * _MS - TICK_NS:
            return False
    return True


def resend_at_need_ack(c: Comparison) -> None:
    """Our engine of these captures took a NEED_ACK for a sign that its response was lost, and sent RESEND at once.

    It may have overtaken the response: today the timer asks.
    """
    _explain(c, c.recorded, lambda p: isinstance(p.header, homa.Resend) and any(
        0 <= p.at - q.at <= AT_ONCE_NS for q in c.heard(homa.NeedAck, p.rpc)), "resend_at_need_ack")


def asked_twice(c: Comparison) -> None:
    """Our engine of these captures answered a RESEND by one of its own, even right after another; now not twice in
    ``resend_interval``."""
    resends = [p for p in c.recording.ours if isinstance(p.header, homa.Resend)]
    _explain(c, c.recorded, lambda p: isinstance(p.header, homa.Resend) and any(
        q.header == p.header and 0 < p.at - q.at < RESEND_INTERVAL * _MS for q in resends), "asked_twice")


def acks_of_other_ports(c: Comparison) -> None:
    """In the module all sockets of a host share one list of what to acknowledge, and any packet takes one along.

    Ours acknowledge their own. All else in the record is the same, and so is the packet around it.
    """
    for p in list(c.today):
        for q in c.recorded:
            if (isinstance(p.header, homa.Data) and body(p)[:_HEADERS] == body(q)[:_HEADERS]
                    and abs(p.at - q.at) <= SAME_NS and place(p)[2] == 0
                    and _opened(p, [x for x in c.all_today if isinstance(x.header, homa.Data)])
                    == _opened(q, [x for x in c.recording.ours if isinstance(x.header, homa.Data)]) != b""):
                c.today.remove(p)
                c.recorded.remove(q)
                _count(c, "acks_of_other_ports", 2)
                break


def _opened(first: Packet, packets: list[Packet]) -> bytes:
    """Plaintext of the record that begins in ``first``, acknowledgements blanked."""
    return b"".join(head[:8] + bytes(12) + data for head, data in segments(first, packets))


def segments(first: Packet, packets: list[Packet]) -> list[tuple[bytes, bytes]]:
    """(header, data) of each packet of the record that begins in ``first``; by the reference, not by our code.

    None, where it is not whole and authentic. In clear, of the packet.
    """
    if not first.sealed:
        return [(first.payload[:_SEGMENT], first.payload[_SEGMENT:])]
    sender, start, _index = place(first)
    pieces = {place(p)[2]: p.payload for p in packets if place(p)[:2] == (sender, start)}
    record = b"".join(pieces[i] for i in range(len(pieces)) if i in pieces)
    length = int.from_bytes(record[3:5], "big")
    if length < 24 or len(record) < 5 + length:
        return []
    key, salt = _KEYS[sender & 1]
    sequence = record[5:13]
    try:
        plain = AESGCM(key).decrypt(salt + sequence, record[13:5 + length],
                                    sequence + record[:3] + (length - 24).to_bytes(2, "big"))
    except InvalidTag:
        return []
    out, at = [], 0
    while at < len(plain):
        end = at + _SEGMENT + int.from_bytes(plain[at + 4:at + 8], "big")
        out.append((plain[at:at + _SEGMENT], plain[at + _SEGMENT:end]))
        at = end
    return out


def acknowledged(recording: Recording) -> dict[int, int]:
    """Client's ids that the other end acknowledged, and when first: by ACK, or inside of a record."""
    out: dict[int, int] = {}
    data = [p for p in recording.theirs if isinstance(p.header, homa.Data)]
    for p in recording.theirs:
        ids = []
        if isinstance(p.header, homa.Ack):
            ids = [p.rpc, *(entry.client_id for entry in p.header.acks)]
        elif isinstance(p.header, homa.Data) and not p.header.sender_id & 1 and place(p)[2] == 0:
            ids = [int.from_bytes(head[8:16], "big") for head, _data in segments(p, data)]
        for rpc in ids:
            out.setdefault(rpc, p.at)
    return out


def asked_before_the_reply(c: Comparison) -> None:
    """A RESEND came within milliseconds of the reply: BUSY before it, or the packets again after it."""
    def early(p: Packet) -> bool:
        sent = c.said(p.rpc)
        return (isinstance(p.header, homa.Busy) or (isinstance(p.header, homa.Data) and p.header.retransmit == 1)
                ) and bool(sent) and abs(p.at - sent[0].at) <= AT_ONCE_NS and any(
                    abs(p.at - q.at) <= AT_ONCE_NS for q in c.heard(homa.Resend, p.rpc))
    _explain(c, c.today, early, "asked_before_the_reply")
    _explain(c, c.recorded, early, "asked_before_the_reply")


def cutoffs_on_their_way(c: Comparison) -> None:
    """CUTOFFS came while the recorded end already made the packet. Ours has them, and goes at their priority."""
    for p in list(c.today):
        for q in c.recorded:
            if (isinstance(p.header, homa.Data) and isinstance(q.header, homa.Data) and place(p) == place(q)
                    and replace(p.header, cutoff_version=q.header.cutoff_version) == q.header
                    and p.payload == q.payload and abs(p.at - q.at) <= SAME_NS
                    and any(isinstance(x.header, homa.Cutoffs) and 0 <= p.at - x.at <= AT_ONCE_NS
                            and x.header.cutoff_version == p.header.cutoff_version
                            and p.ip.tos >> 5 == _priority(x.header, p.header.message_length)
                            for x in c.recording.theirs)):
                c.today.remove(p)
                c.recorded.remove(q)
                _count(c, "cutoffs_on_their_way", 2)
                break


def _priority(said: homa.Cutoffs, length: int) -> int:
    return max(i for i, cutoff in enumerate((INT_MAX, *said.cutoffs[1:])) if cutoff >= length)


def forgotten(c: Comparison) -> None:
    """Our engine of these captures forgot an RPC after five unanswered questions, and said UNKNOWN from then on.

    Today the packets asked for are sent again, at that very time.
    """
    for q in list(c.recorded):
        if not isinstance(q.header, homa.Unknown):
            continue
        asked = [x for x in c.heard(homa.Resend, q.rpc) if 0 <= q.at - x.at <= AT_ONCE_NS]
        again = [p for p in c.today if isinstance(p.header, homa.Data) and p.rpc == q.rpc and p.header.retransmit
                 and any(p.at - x.at <= AT_ONCE_NS for x in asked) and abs(p.at - q.at) <= AT_ONCE_NS
                 and any(place(x) == place(p) and x.payload == p.payload for x in c.said(q.rpc))]
        if again:
            c.recorded.remove(q)
            c.today[:] = [p for p in c.today if p not in again]
            _count(c, "forgotten", 1 + len(again))


def more_patience(c: Comparison) -> None:
    """That engine gave up where today's goes on asking, and makes longer and longer pauses."""
    def goes_on(p: Packet) -> bool:
        if not isinstance(p.header, homa.Resend):
            return False
        last = max((q.at for q in c.recording.ours if q.rpc == p.rpc and isinstance(q.header, homa.Resend)),
                   default=0)
        asked = [q.at for q in c.of(homa.Resend, p.rpc) if q.at <= p.at]
        return p.at > last and unhurried(c, p.rpc, asked) and not c.heard(homa.Data, p.rpc)
    _explain(c, c.today, goes_on, "more_patience")


def grants_in_steps(c: Comparison) -> None:
    """The module grants once for all packets that came together, we after each.

    No GRANT goes beyond ``window`` bytes after what has come, all grow, the last grants everything, at the lowest
    priority, as no other message comes meanwhile. (The module's may have another: at times it serves the oldest.)
    """
    window = c.params.get("window", 0) or c.params.get("unsched_bytes", 10_000)
    right = set()
    for rpc in {p.rpc for p in c.today if isinstance(p.header, homa.Grant)}:
        grants = [(p, p.header) for p in c.of(homa.Grant, rpc) if isinstance(p.header, homa.Grant)]
        offsets = [g.offset for _p, g in grants]
        mtu = c.params.get("mtu", 1500)
        came = [sum(b - a for a, b in {nominal(q, mtu) for q in c.heard(homa.Data, rpc) if q.at <= p.at})
                for p, _g in grants]
        if (offsets == sorted(set(offsets)) and offsets[-1] == c.length(rpc)
                and all(g.offset <= size + window for (_p, g), size in zip(grants, came, strict=True))
                and {g.priority for _p, g in grants} == {0}):
            right.add(rpc)
    for side in (c.today, c.recorded):
        _explain(c, side, lambda p: p.rpc in right and isinstance(p.header, homa.Grant), "grants_in_steps")


def withheld_record(c: Comparison) -> None:
    """The module does not send the last record of some messages before it is asked to (reference 9.1); we do."""
    said = [p for p in c.recording.ours if isinstance(p.header, homa.Data)]
    firsts = {place(p) for p in said if isinstance(p.header, homa.Data) and not p.header.retransmit}
    again = {place(p): p for p in said if place(p) not in firsts}
    ours = {place(p) for p in c.today if isinstance(p.header, homa.Data) and not p.header.retransmit
            and place(p) in again and p.payload == again[place(p)].payload}
    for side in (c.recorded, c.today):
        _explain(c, side, lambda p: isinstance(p.header, homa.Data) and place(p) in ours, "withheld_record")


def told_more(c: Comparison) -> None:
    """What is sent again says how far all is granted by now, and a RESEND has granted what it asks for."""
    for p in list(c.today):
        for q in c.recorded:
            if (isinstance(p.header, homa.Data) and isinstance(q.header, homa.Data) and p.header.retransmit
                    and q.header.retransmit and abs(p.at - q.at) <= SAME_NS
                    and q.header.incoming <= p.header.incoming <= p.header.message_length
                    and _without_incoming(p) == _without_incoming(q)):
                c.today.remove(p)
                c.recorded.remove(q)
                _count(c, "told_more", 2)
                break


def _without_incoming(p: Packet) -> bytes:
    return p.frame[14:66] + p.frame[70:]


def gaps_by_rpc(c: Comparison) -> None:
    """The module asks for one gap of one RPC of a host at a time; we for all gaps of each RPC.

    Ours name gaps that there are, of the size there is, and come when nothing has come for ``resend_ticks``. The
    module's RESEND of nothing, (0, 0), is a question whether the client lives.
    """
    def right(p: Packet) -> bool:
        if not isinstance(p.header, homa.Resend):
            return False
        missing = c.missing(p.rpc, p.at)
        wanted = p.header.offset, p.header.offset + p.header.length
        silence = min((p.at - q.at for q in c.heard(homa.Data, p.rpc) if q.at <= p.at), default=1 << 62)
        return (wanted in missing or (missing == [(0, 1 << 31)] and wanted == (0, 100))) and (
            silence >= (RESEND_TICKS - 1) * _MS)
    _explain(c, c.today, right, "gaps_by_rpc")
    _explain(c, c.recorded, lambda p: isinstance(p.header, homa.Resend) and p.header.length == 0, "gaps_by_rpc")
    asked = {(p.rpc, p.header.offset) for p in c.all_today if isinstance(p.header, homa.Resend)}
    _explain(c, c.recorded, lambda p: isinstance(p.header, homa.Resend) and (p.rpc, p.header.offset) in asked,
             "gaps_by_rpc")


def cutoffs_of_the_lowest(c: Comparison) -> None:
    """A fresh module says 0 for priority 0, and takes that for everything (reference 1.10), as we say."""
    for p in list(c.today):
        for q in list(c.recorded):
            if (isinstance(p.header, homa.Cutoffs) and isinstance(q.header, homa.Cutoffs)
                    and abs(p.at - q.at) <= SAME_NS and q.header.cutoffs[0] == 0
                    and p.header == replace(q.header, cutoffs=(INT_MAX, *q.header.cutoffs[1:]))):
                c.today.remove(p)
                c.recorded.remove(q)
                _count(c, "cutoffs_of_the_lowest", 2)
                break


def answered_already(c: Comparison) -> None:
    """The module is BUSY with a response that is here until its application has read it; for us the RPC is over.

    UNKNOWN says so, and the server that hears it forgets the RPC.
    """
    def over(p: Packet) -> bool:
        return not c.missing(p.rpc, p.at) and not p.header.sender_id & 1
    unknown = [p for p in c.today if isinstance(p.header, homa.Unknown) and over(p)]
    busy = [p for p in c.recorded if isinstance(p.header, homa.Busy) and over(p)]
    for p in unknown:
        for q in busy:
            if q.rpc == p.rpc:
                c.today.remove(p)
                c.recorded.remove(q)
                busy.remove(q)
                _count(c, "answered_already", 2)
                break


#: Where the recorded end was smtnet as it was then.
OURS: Final[tuple[Rule, ...]] = (need_acks, resend_at_need_ack, asked_twice, asked_before_the_reply,
                                 cutoffs_on_their_way, forgotten, more_patience)
#: Where it was the module itself.
MODULE: Final[tuple[Rule, ...]] = (
    need_acks, grants_in_steps, withheld_record, told_more, gaps_by_rpc, cutoffs_of_the_lowest,
    acks_of_other_ports, answered_already, asked_before_the_reply)


def _count(c: Comparison, rule: str, number: int) -> None:
    c.explained[rule] = c.explained.get(rule, 0) + number


def _explain(c: Comparison, side: list[Packet], what: Callable[[Packet], bool], rule: str) -> None:
    kept = [p for p in side if not what(p)]
    if len(kept) < len(side):
        _count(c, rule, len(side) - len(kept))
    side[:] = kept


def compare(recording: Recording, done: Performance, params: dict[str, Any], rules: Iterable[Rule]) -> Comparison:
    """What is different and not explained is what remains in ``recorded`` and ``today``."""
    ours = [packet(at, frame, recording.sealed) for at, frame in done.sent]
    left, new = _unequal(recording.ours, ours)
    c = Comparison(recording, params, left, new, ours)
    for rule in rules:
        rule(c)
    return c


def _unequal(recorded: list[Packet], today: list[Packet]) -> tuple[list[Packet], list[Packet]]:
    """Packets of both sides without an equal at the same time on the other."""
    waiting: defaultdict[bytes, list[Packet]] = defaultdict(list)
    for p in recorded:
        waiting[body(p)].append(p)
    paired: set[int] = set()
    new = []
    for p in today:
        equal = next((q for q in waiting[body(p)] if abs(q.at - p.at) <= SAME_NS), None)
        if equal is None:
            new.append(p)
        else:
            waiting[body(p)].remove(equal)
            paired.add(id(equal))
    return [p for p in recorded if id(p) not in paired], new


def judge(recording: Recording, done: Performance) -> list[str]:
    """What must hold of any conversation, as sentences about what does not."""
    ours = [packet(at, frame, recording.sealed) for at, frame in done.sent]
    sealed: dict[tuple[int, int, int], bytes] = {}
    wrong = [f"other bytes than the first time: {line(p)}" for p in ours if isinstance(p.header, homa.Data)
             and sealed.setdefault(place(p), p.payload) != p.payload]
    for _at, rpc, data in done.delivered:
        if data != recording.messages.get(rpc):
            wrong.append(f"request {rpc} was delivered with other bytes")
    for _at, rpc, data in done.answered:
        if data != recording.messages.get(rpc | 1):
            wrong.append(f"response {rpc} was delivered with other bytes")
    for what, got, role in (("request", done.delivered, 0), ("response", done.answered, 1)):
        ids = sorted(rpc for _at, rpc, _data in got)
        theirs = {p.header.sender_id for p in recording.theirs if isinstance(p.header, homa.Data)}
        wanted = sorted(i & ~1 for i in recording.messages if i & 1 == role and i in theirs)
        if ids != wanted:
            wrong.append(f"delivered {what}s {ids}, came {wanted}")
    acks = acknowledged(recording)
    kept = sum(rpc not in acks for _at, rpc, _data in done.delivered)
    if kept < done.left["server_rpcs"]:
        wrong.append(f"{done.left['server_rpcs']} RPCs are remembered, {kept} are not acknowledged")
    return wrong + [f"failed: {rpc}, {reason}" for _at, rpc, reason in done.failed]


def line(p: Packet) -> str:
    """For assertions."""
    return f"{p.at / _MS:.3f} ms {show.frame_untrusted(p.frame, homa.LINUX)}"


def told(c: Comparison) -> str:
    """What is different, for assertions; empty: nothing."""
    return "\n".join([f"- {line(p)}" for p in c.recorded] + [f"+ {line(p)}" for p in c.today])
