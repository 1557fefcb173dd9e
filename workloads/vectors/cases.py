"""One wire test vector, both ways: our engine must make its bytes, and must understand them.

Vectors of the kernel module's branch main (profile ``linux``). Kinds: a DATA message (it has
``records``), a retransmission of a packet of one (``based_on``), a control packet (``type``).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from smtstack.capture.decode import Decoder, Message
from smtstack.capture.links import LINK_RAW
from smtstack.crypto import tls12
from smtstack.crypto.aead import TAG_LEN, DirectionKeys
from smtstack.crypto.epochs import Session
from smtstack.crypto.keys import LinuxKeys, demo_keys, linux_keys
from smtstack.errors import AuthError, BadPacket
from smtstack.nic.device import NicConfig
from smtstack.stack import make_stack
from smtstack.transport.counters import Counters
from smtstack.transport.events import Request, Response
from smtstack.transport.linux_message import RECORD_OVERHEAD, LinuxGeometry, nominal_range
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import INT_MAX, TransportParams
from smtstack.transport.rpc import Host, Peer, Rpc
from smtstack.wire import homa, ipv4
from smtstack.wire.ethernet import HEADER_LEN as ETHERNET_LEN
from smtstack.wire.ethernet import Ethernet
from workloads.vectors import state
from workloads.vectors.file import Problem, Vector, first_difference

_MAC = b"\2\0\0\0\0\1"
_TICK_NS = 1_000_000
_HEADERS = ipv4.HEADER_LEN + homa.DATA_LEN
#: What a DATA vector may depend on; with anything else we would not know what to do.
_DATA_INPUTS = {"src_ip", "src_port", "dst_ip", "dst_port", "rpc_id", "key_role", "key", "salt",
                "registered_iv_8", "registered_rec_seq_8", "payload_rule", "payload_len", "mtu",
                "max_gso_size", "unsched_bytes", "cutoff_version", "tos"}
_CONTROL_INPUTS = {"src_ip", "src_port", "dst_ip", "dst_port", "sender_id", "type"}
_BASED_INPUTS = {"based_on", "packet_index"}
#: Inputs that the body of a control packet may be given by.
_CONTROL_FIELDS: dict[int, tuple[str, ...]] = {
    homa.GRANT: ("offset", "priority"), homa.RESEND: ("offset", "length", "priority"), homa.UNKNOWN: (),
    homa.BUSY: (), homa.CUTOFFS: ("cutoffs",), homa.FREEZE: (), homa.NEED_ACK: (), homa.ACK: ("acks",)}
#: Those with no other fields, or numbers only.
_CONTROLS: dict[int, type[homa.Control]] = {
    homa.GRANT: homa.Grant, homa.RESEND: homa.Resend, homa.UNKNOWN: homa.Unknown, homa.BUSY: homa.Busy,
    homa.FREEZE: homa.Freeze, homa.NEED_ACK: homa.NeedAck}
_EVERY_BYTE = re.compile(r"every byte 0x([0-9a-fA-F]{2})\b")
_RESEND_PRIORITY = 7

_CUTOFFS = (0, 0, 0, 1_000_000, 15_000, 2_800, 200)
#: What control packets carry, by vector name: what the vector's description says and its inputs do not.
_BODIES: dict[str, dict[str, int | tuple[int, ...]]] = {
    "main_grant": {"offset": 10_000, "priority": 3},
    "main_resend_first": {"offset": 0, "length": 100, "priority": _RESEND_PRIORITY},
    "main_resend_range": {"offset": 2 * 1420 - 29, "length": 1420, "priority": _RESEND_PRIORITY},
    "main_ack_one": {"acks": ()},
    "main_cutoffs_default": {"cutoffs": (0, *_CUTOFFS), "cutoff_version": 1},
    "main_cutoffs_after_sysctl": {"cutoffs": (INT_MAX, *_CUTOFFS), "cutoff_version": 2},
}


class ContradictionError(Exception):
    """The inputs of a vector contradict each other."""


class _Station:
    """An endpoint of profile ``linux`` behind driver and device; time moves when it waits for the pacer."""

    def __init__(self, ip: int, port: int, keys: LinuxKeys, params: TransportParams, offload: bool) -> None:
        self.stack = make_stack(ip, port, "linux", keys, params, NicConfig(tls_hw_tx_offload=offload), _MAC,
                                lambda _ip: _MAC)
        self.endpoint = self.stack.endpoint
        self.now = 0

    def transmit(self) -> list[bytes]:
        """IP packets of everything that waits to be sent."""
        out: list[bytes] = []
        while frames := self.stack.transmit(self.now):
            out += [frame[ETHERNET_LEN:] for frame in frames]
            self.now += _TICK_NS
        return out

    def receive(self, packet: bytes) -> None:
        """One IP packet from the other side."""
        self.stack.receive([Ethernet(_MAC, _MAC).pack() + packet], self.now)


class DataCase:
    """A vector of a whole message, with the keys of both roles."""

    def __init__(self, vector: Vector, roles: dict[str, DirectionKeys]) -> None:
        self.vector = vector
        state.check_known(vector, _DATA_INPUTS, "acks", "cutoffs", "grant", "offset", "priority", "payload")
        role = vector.get(vector.inputs, "key_role", str)
        own = linux_keys(vector.hex(vector.inputs, "key"), vector.hex(vector.inputs, "salt"))
        set_name, _underscore, side = role.rpartition("_")
        prefix = f"{set_name}_" if set_name else ""
        if side not in ("client", "server") or role not in roles:
            raise state.NotApplicableError("key_role", f"{role} is none of the keys in the file")
        both = {"client": roles[f"{prefix}client"], "server": roles[f"{prefix}server"], side: own}
        vector.hex(vector.inputs, "registered_iv_8")
        if not state.rec_seq_starts_at_zero(vector):
            raise state.NotApplicableError("registered_rec_seq_8", "records of ours are numbered from 0")
        self.keys = own
        self.rpc_id = vector.number("rpc_id", 1 << 64)
        if (side == "client") != (self.rpc_id & 1 == 0):
            raise ContradictionError(f"rpc_id {self.rpc_id} is not the {side}'s")
        self._make_keys = lambda: LinuxKeys(both["client"], both["server"], self.rpc_id & ~1)
        self.params = TransportParams(mtu=vector.number("mtu"), max_gso_size=vector.number("max_gso_size"),
                                      unsched_bytes=vector.number("unsched_bytes", 1 << 32))
        self.payload = _payload(vector)
        self.state = state.state_of(vector, len(self.payload))
        self.src = vector.address("src_ip"), vector.number("src_port")
        self.dst = vector.address("dst_ip"), vector.number("dst_port")

    def station(self, end: tuple[int, int], offload: bool = False) -> _Station:
        """A fresh endpoint at one of the two ends."""
        return _Station(*end, self._make_keys(), self.params, offload)

    def send(self, offload: bool) -> tuple[_Station, list[bytes]]:
        """The sender, and the DATA packets it makes of the message."""
        sender = self.station(self.src, offload)
        if self.state.cutoffs is not None:
            self._tell(sender, homa.Cutoffs(self.dst[1], self.src[1], self.rpc_id ^ 1, self.state.cutoffs,
                                            self.vector.number("cutoff_version")))
        rpc = self._reply(sender) if self.rpc_id & 1 else (
            sender.endpoint.send_request(*self.dst, self.payload, sender.now))
        state.ride(rpc, self.state.acks)
        packets = sender.transmit()
        for offset, priority in self.state.grants or self._grants_shown(packets):
            self._tell(sender, homa.Grant(self.dst[1], self.src[1], self.rpc_id ^ 1, offset, priority))
            packets += sender.transmit()
        return sender, [p for p in packets if _type(p) == homa.DATA]

    def _tell(self, sender: _Station, packet: homa.Control) -> None:
        sender.receive(_control_packet(self.dst[0], self.src[0], packet))

    def _grants_shown(self, sent: list[bytes]) -> list[tuple[int, int]]:
        """For a message that is longer than what is sent unasked: the GRANT that the rest of its packets shows."""
        ours = [p for p in sent if _type(p) == homa.DATA]
        beyond = self.vector.packets[len(ours):]
        return [(len(self.payload), beyond[0][1] >> 5)] if beyond and len(beyond[0]) > 1 else []

    def _reply(self, server: _Station) -> Rpc:
        client = self.station(self.dst)
        client.endpoint.send_request(*self.src, self.payload, client.now)
        for _round in range(2):
            for packet in client.transmit():
                server.receive(packet)
            for packet in server.transmit():
                client.receive(packet)
        event = server.endpoint.next_event()
        if not isinstance(event, Request):
            raise BadPacket("our server does not understand our own request")
        server.endpoint.send_reply(event.rpc, self.payload, server.now)
        return event.rpc

    def received(self, packets: list[bytes]) -> bytes | None:
        """What an endpoint delivers that gets these packets; None: nothing."""
        receiver = self.station(self.dst)
        if self.rpc_id & 1:
            receiver.endpoint.send_request(*self.src, b"?", receiver.now)
        for packet in packets:
            receiver.receive(packet)
        event = receiver.endpoint.next_event()
        return event.data if isinstance(event, Request | Response) else None

    def decoded(self, packets: list[bytes]) -> tuple[bytes | None, int, int]:
        """(message, authentic records, bad records) by the capture decoder."""
        seen: list[Message] = []
        decoder = Decoder("linux", self._make_keys(), on_message=seen.append)
        for packet in packets:
            decoder.add(LINK_RAW, packet)
        result = decoder.result()
        return seen[0].data if seen else None, result.records_ok, result.records_bad


def check(vector: Vector, by_name: dict[str, Vector], roles: dict[str, DirectionKeys]) -> list[Problem]:
    """What is wrong with one vector of branch main, or with us; empty: nothing.

    Raises :class:`NotApplicableError`.
    """
    problems = vector.own_errors()
    try:
        if "based_on" in vector.inputs:
            problems += _check_retransmission(vector, by_name, roles)
        elif "records" in vector.entry:
            problems += _check_data(DataCase(vector, roles))
        elif "type" in vector.inputs:
            problems += _check_control(vector)
        else:
            raise state.NotApplicableError("inputs", "unknown kind of vector: neither records, based_on nor type")
    except ContradictionError as e:
        problems.append(Problem(str(e)))
    except BadPacket as e:
        problems.append(Problem(f"does not parse: {e}"))
    return problems


def _type(packet: bytes) -> int:
    return packet[ipv4.HEADER_LEN + homa.TYPE_OFFSET]


def _payload(vector: Vector) -> bytes:
    length = vector.number("payload_len", 1_000_001)
    for name in state.named(vector, "payload"):
        given = vector.hex(vector.inputs, name)
        if len(given) != length:
            raise ContradictionError(f"{name} has {len(given)} bytes, payload_len says {length}")
        return given
    rule = vector.get(vector.inputs, "payload_rule", str)
    if match := _EVERY_BYTE.match(rule):
        return bytes([int(match[1], 16)]) * length
    if rule == "byte i = i mod 256":
        return bytes(i % 256 for i in range(length))
    raise state.NotApplicableError("payload_rule", f"{rule!r} is unknown here")


def _compare(what: str, vector: Vector, got: list[bytes], dont_care: list[tuple[int, int]]) -> list[Problem]:
    out = []
    if len(got) != len(vector.packets):
        out.append(Problem(f"{what}: {len(got)} packets, the vector has {len(vector.packets)}"))
    masked = [(a + ipv4.HEADER_LEN, b + ipv4.HEADER_LEN) for a, b in dont_care]
    for n, (wanted, packet) in enumerate(zip(vector.packets, got, strict=False)):
        at = first_difference(wanted, packet, masked)
        if at is not None:
            out.append(Problem(f"{what}: differs", n, at))
    return out


def _check_data(case: DataCase) -> list[Problem]:
    vector = case.vector
    out: list[Problem] = []
    for offload, what in ((False, "sealed by software"), (True, "sealed by the device")):
        sender, packets = case.send(offload)
        out += _compare(what, vector, packets, vector.dont_care)
        counters = sender.stack.nic.counters
        if offload and (counters.tx_tls_fallback or not counters.tx_tls_encrypted_packets):
            out.append(Problem("the device was to seal, and did not"))
        if not offload:
            out += _check_inputs(vector, packets) + _check_records(case, packets)
    for packets, what in ((vector.packets, "in order"), (vector.packets[::-1], "in reverse order")):
        out += _check_receiving(case, packets, what)
    return out


def _check_receiving(case: DataCase, packets: list[bytes], what: str) -> list[Problem]:
    out = []
    if case.received(packets) != case.payload:
        out.append(Problem(f"received {what}: the endpoint does not deliver the payload"))
    records: list[Any] = case.vector.get(case.vector.entry, "records", list)
    if case.decoded(packets) != (case.payload, len(records), 0):
        out.append(Problem(f"decoded {what}: not {len(records)} authentic records with the payload"))
    return out


def _check_inputs(vector: Vector, packets: list[bytes]) -> list[Problem]:
    """The inputs that follow from first contact rather than decide anything, against what we sent."""
    tos, version = vector.number("tos"), vector.number("cutoff_version")
    out = []
    for n, packet in enumerate(packets):
        header = homa.parse_untrusted(packet[ipv4.HEADER_LEN:], homa.LINUX)
        granted = isinstance(header, homa.Data) and header.segment_offset >= header.incoming
        if packet[1] != tos and not granted:
            out.append(Problem(f"TOS is {packet[1]}, tos says {tos}", n, 1))
        if not isinstance(header, homa.Data) or header.cutoff_version != version:
            out.append(Problem(f"cutoff_version is not {version}", n))
    return out


def _check_records(case: DataCase, packets: list[bytes]) -> list[Problem]:
    """The vector's description of its records against what we sent."""
    vector = case.vector
    out = []
    at = 0
    records: list[Any] = vector.get(vector.entry, "records", list)
    for n, entry in enumerate(records):
        indexes: list[int] = vector.get(entry, "packet_indexes", list)
        pieces = [packets[i][_HEADERS:] for i in indexes if isinstance(i, int) and 0 <= i < len(packets)]
        sealed = b"".join(pieces)
        sequence = tls12.first_sequence(case.rpc_id) + n
        body = sealed[tls12.HEADER_LEN:]
        plain_len = max(0, len(body) - TAG_LEN)
        aad = tls12.aad(sequence, plain_len)
        try:
            plain = case.keys.decrypt(sequence, body, aad)
        except AuthError:
            out.append(Problem(f"record {n}: its packets are not the packets {indexes} we send"))
            continue
        ours: dict[str, Any] = {
            "index": n, "gso_offset": at, "rec_seq": sequence.to_bytes(8, "big").hex(),
            "nonce": case.keys.nonce(sequence).hex(), "aad": aad.hex(),
            "record_header": sealed[:tls12.HEADER_LEN].hex(), "plaintext_len": plain_len,
            "record_len_field": len(sealed) - 5, "plaintext": plain.hex(), "ciphertext": body[:-TAG_LEN].hex(),
            "tag": body[-TAG_LEN:].hex()}
        out += [Problem(f"record {n}: {field} differs") for field, value in ours.items()
                if entry.get(field) != value]
        at += sum(b - a for a, b in (nominal_range(0, i, len(p), 0) for i, p in enumerate(pieces)))
    geometry = LinuxGeometry(case.params)
    length = len(case.payload)
    single = length + RECORD_OVERHEAD <= geometry.packet_data
    derived: dict[str, Any] = {
        "unscheduled_incoming_field": geometry.unscheduled(length), "packets": len(packets),
        "records": len(records), "max_pkt_data": geometry.packet_data,
        "gso_pkt_data": (length if single else geometry.record_data) + RECORD_OVERHEAD}
    claimed: dict[str, Any] = vector.get(vector.entry, "derived", dict)
    for field in claimed:
        if field not in derived:
            raise state.NotApplicableError(f"derived.{field}", "a field that is unknown here")
    return out + [Problem(f"derived {field} differs") for field, value in claimed.items()
                  if derived[field] != value]


def _check_retransmission(vector: Vector, by_name: dict[str, Vector],
                          roles: dict[str, DirectionKeys]) -> list[Problem]:
    state.check_known(vector, _BASED_INPUTS, "priority")
    base = by_name.get(vector.get(vector.inputs, "based_on", str))
    if base is None or "records" not in base.entry:
        raise state.NotApplicableError("based_on", "names no message in the file")
    priority = state.body_number(vector, "priority", homa.NUM_PRIORITIES, _RESEND_PRIORITY)
    case = DataCase(base, roles)
    number = vector.number("packet_index")
    if not 0 <= number < len(base.packets):
        raise ContradictionError(f"its message has no packet {number}")
    lost = base.packets[number]
    header = homa.parse_untrusted(lost[ipv4.HEADER_LEN:], homa.LINUX)
    if not isinstance(header, homa.Data):
        raise BadPacket("a packet of the message is not DATA")
    # The receiver asks by nominal position: all it knows of a packet is its size (reference §5.3).
    start, stop = nominal_range(header.segment_offset, int.from_bytes(lost[4:6], "big"), len(lost) - _HEADERS,
                                LinuxGeometry(case.params).packet_data)
    dont_care = vector.dont_care or base.dont_care
    out: list[Problem] = []
    for offload, what in ((False, "sealed by software"), (True, "sealed by the device")):
        sender, _packets = case.send(offload)
        resend = homa.Resend(header.dport, header.sport, header.sender_id ^ 1, start, stop - start,
                             priority)
        sender.receive(_control_packet(case.dst[0], case.src[0], resend))
        out += _compare(f"sent again, {what}", vector, sender.transmit(), dont_care)
    rest = base.packets[:number] + base.packets[number + 1:]
    if case.received(rest) is not None:
        out.append(Problem(f"packet {number} is not needed at all"))
    for packets, what in ((rest + vector.packets, "last"), (vector.packets + rest[::-1], "first")):
        out += _check_receiving(case, packets, f"with the retransmission {what}")
    return out


def _control_packet(src: int, dst: int, packet: homa.Control) -> bytes:
    """IP packet of a control packet as outbox, driver and device make it."""
    params = TransportParams()
    outbox = Outbox(packet.sport, homa.LINUX, params, Counters())
    peer = Peer(Host(dst), packet.dport, packet.sport, Session(), params.max_message_length)
    outbox.control(peer, packet)
    segment = outbox.poll(0)
    assert segment is not None
    stack = make_stack(src, packet.sport, "linux", demo_keys("linux"), params, None, _MAC, lambda _ip: _MAC)
    stack.add(segment)
    frame, = stack.transmit(0)
    return frame[ETHERNET_LEN:]


def _control(vector: Vector) -> homa.Control:
    """The control packet that the inputs describe; where neither they nor we know its body, the vector's own."""
    kind, s, d = vector.number("type"), vector.number("src_port"), vector.number("dst_port")
    i = vector.number("sender_id", 1 << 64)
    fields = _CONTROL_FIELDS.get(kind)
    if fields is None:
        raise state.NotApplicableError("type", f"{kind} is no control packet known here")
    state.check_known(vector, {*_CONTROL_INPUTS, *(("cutoff_version",) if kind == homa.CUTOFFS else ())}, *fields)
    shown = _shown(vector, kind)
    known: dict[str, Any] = _BODIES.get(vector.name, {})

    def number(what: str, limit: int = 1 << 32) -> int:
        return state.body_number(vector, what, limit, known.get(what, getattr(shown, what, 0)))

    if kind == homa.CUTOFFS:
        version = vector.number("cutoff_version") if "cutoff_version" in vector.inputs else (
            known.get("cutoff_version", getattr(shown, "cutoff_version", 0)))
        table = state.cutoffs_of(vector) or known.get("cutoffs", getattr(shown, "cutoffs", (0,) * 8))
        return homa.Cutoffs(s, d, i, table, version)
    if kind == homa.ACK:
        acks = state.acks_of(vector)
        if acks is None:
            acks = known.get("acks", getattr(shown, "acks", ()))
        if len(acks) > homa.MAX_ACKS:
            raise state.NotApplicableError("acks", f"{len(acks)} entries, of which {homa.MAX_ACKS} fit")
        return homa.Ack(s, d, i, tuple(homa.AckEntry(*entry) for entry in acks))
    limits = {"priority": homa.NUM_PRIORITIES}
    make: Callable[..., homa.Control] = _CONTROLS[kind]
    return make(s, d, i, *(number(field, limits.get(field, 1 << 32)) for field in fields))


def _shown(vector: Vector, kind: int) -> homa.Packet | None:
    """The vector's packet, if it is one."""
    for packet in vector.packets:
        transport = packet[ipv4.HEADER_LEN:]
        with suppress(BadPacket):
            if transport[homa.TYPE_OFFSET:homa.TYPE_OFFSET + 1] == bytes([kind]):
                return homa.parse_untrusted(transport, homa.LINUX)
    return None


def _check_control(vector: Vector) -> list[Problem]:
    wanted = _control(vector)
    packet = _control_packet(vector.address("src_ip"), vector.address("dst_ip"), wanted)
    out = _compare("built", vector, [packet], vector.dont_care)
    if vector.number("type") != packet[ipv4.HEADER_LEN + homa.TYPE_OFFSET]:
        out.append(Problem("type is not the packet's"))
    for n, theirs in enumerate(vector.packets):
        try:
            header = ipv4.parse_untrusted(theirs)
            transport = theirs[ipv4.HEADER_LEN:header.total_length]
            parsed = homa.parse_untrusted(transport, homa.LINUX)
        except BadPacket as e:
            out.append(Problem(f"does not parse: {e}", n))
            continue
        if parsed != wanted:
            out.append(Problem(f"parsed as {parsed}, which should be {wanted}", n))
        at = first_difference(transport, parsed.pack(), vector.dont_care)
        if at is not None:
            out.append(Problem("parsed and packed again: differs", n, at + ipv4.HEADER_LEN))
    return out
