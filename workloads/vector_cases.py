"""One wire test vector, both ways: our engine must make its bytes, and must understand them.

Vectors of the kernel module's branch main (profile ``linux``). Kinds: a DATA message (it has
``records``), a retransmission of a packet of one (``based_on``), a control packet (``type``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from smtstack.capture.decode import Decoder, Message
from smtstack.capture.links import LINK_RAW
from smtstack.crypto import tls12
from smtstack.crypto.aead import TAG_LEN, DirectionKeys
from smtstack.crypto.keys import LinuxKeys, linux_keys
from smtstack.crypto.session import Session
from smtstack.errors import AuthError, BadPacket
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.nic.driver import NicDriver
from smtstack.transport.counters import Counters
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Request, Response
from smtstack.transport.linux_message import RECORD_OVERHEAD, LinuxGeometry, nominal_range
from smtstack.transport.outbox import Outbox
from smtstack.transport.params import INT_MAX, TransportParams
from smtstack.transport.peers import Host, Peer
from smtstack.wire import homa, ipv4
from smtstack.wire.ethernet import HEADER_LEN as ETHERNET_LEN
from smtstack.wire.ethernet import Ethernet
from workloads.vector_file import Problem, Vector, first_difference

_MAC = b"\2\0\0\0\0\1"
_TICK_NS = 1_000_000
_HEADERS = ipv4.HEADER_LEN + homa.DATA_LEN
#: What a DATA vector may depend on; with anything else we would not know what to do.
_DATA_INPUTS = {"src_ip", "src_port", "dst_ip", "dst_port", "rpc_id", "key_role", "key", "salt",
                "registered_iv_8", "registered_rec_seq_8", "payload_rule", "payload_len", "mtu",
                "max_gso_size", "unsched_bytes", "cutoff_version", "tos"}
_CONTROL_INPUTS = {"src_ip", "src_port", "dst_ip", "dst_port", "sender_id", "type"}
_BASED_INPUTS = {"based_on", "packet_index", "priority_note"}
_RESEND_PRIORITY = 7

#: Control packets by vector name: ports and sender_id in, what the reference (§1.7 to §1.11, §6.5) and
#: the vector's description say out.
_CONTROLS: dict[str, Callable[[int, int, int], homa.Control]] = {
    "main_grant": lambda s, d, i: homa.Grant(s, d, i, 10_000, 3),
    "main_resend_first": lambda s, d, i: homa.Resend(s, d, i, 0, 100, _RESEND_PRIORITY),
    "main_resend_range": lambda s, d, i: homa.Resend(s, d, i, 2 * 1420 - 29, 1420, _RESEND_PRIORITY),
    "main_unknown": homa.Unknown,
    "main_busy": homa.Busy,
    "main_need_ack": homa.NeedAck,
    "main_ack_one": homa.Ack,
    "main_cutoffs_default": lambda s, d, i: homa.Cutoffs(
        s, d, i, (0, 0, 0, 0, 1_000_000, 15_000, 2_800, 200), 1),
    "main_cutoffs_after_sysctl": lambda s, d, i: homa.Cutoffs(
        s, d, i, (INT_MAX, 0, 0, 0, 1_000_000, 15_000, 2_800, 200), 2),
}


class UnknownVectorError(Exception):
    """A vector says something this check does not know: reported as a failure, never passed over."""


class _Station:
    """An endpoint of profile ``linux`` behind driver and device; time moves when it waits for the pacer."""

    def __init__(self, ip: int, port: int, keys: LinuxKeys, params: TransportParams, offload: bool) -> None:
        self.endpoint = Endpoint(ip, port, "linux", keys, params)
        self.nic = SmartNic(NicConfig(tls_hw_tx_offload=offload))
        self.driver = NicDriver(self.nic, _MAC, ip, self.endpoint.protocol, lambda _ip: _MAC)
        self.now = 0

    def transmit(self) -> list[bytes]:
        """IP packets of everything that waits to be sent."""
        out: list[bytes] = []
        while True:
            while (segment := self.endpoint.poll_transmit(self.now)) is not None:
                self.driver.transmit(segment)
            frames = self.nic.process()
            if not frames:
                return out
            out += [frame[ETHERNET_LEN:] for frame in frames]
            self.now += _TICK_NS

    def receive(self, packet: bytes) -> None:
        """One IP packet from the other side."""
        self.endpoint.handle_packet(Ethernet(_MAC, _MAC).pack() + packet, self.now)


class DataCase:
    """A vector of a whole message, with the keys of both roles."""

    def __init__(self, vector: Vector, roles: dict[str, DirectionKeys]) -> None:
        self.vector = vector
        unknown = sorted(set(vector.inputs) - _DATA_INPUTS)
        if unknown:
            raise UnknownVectorError(f"input {unknown[0]} is unknown")
        role = vector.get(vector.inputs, "key_role", str)
        own = linux_keys(vector.hex(vector.inputs, "key"), vector.hex(vector.inputs, "salt"))
        if role not in roles:
            raise UnknownVectorError(f"key_role {role} is unknown")
        both = {**roles, role: own}
        if any(vector.hex(vector.inputs, f"registered_{f}_8") != bytes(8) for f in ("iv", "rec_seq")):
            raise UnknownVectorError("sessions of ours are registered with a zero iv and rec_seq")
        self.keys = own
        self.rpc_id = vector.number("rpc_id", 1 << 64)
        if (role == "client") != (self.rpc_id & 1 == 0):
            raise UnknownVectorError(f"rpc_id {self.rpc_id} is not the {role}'s")
        self._make_keys = lambda: LinuxKeys(both["client"], both["server"], self.rpc_id & ~1)
        self.params = TransportParams(mtu=vector.number("mtu"), max_gso_size=vector.number("max_gso_size"),
                                      unsched_bytes=vector.number("unsched_bytes", 1 << 32))
        self.payload = _payload(vector.get(vector.inputs, "payload_rule", str),
                                vector.number("payload_len", 1_000_001))
        self.src = vector.address("src_ip"), vector.number("src_port")
        self.dst = vector.address("dst_ip"), vector.number("dst_port")

    def station(self, end: tuple[int, int], offload: bool = False) -> _Station:
        """A fresh endpoint at one of the two ends."""
        return _Station(*end, self._make_keys(), self.params, offload)

    def send(self, offload: bool) -> tuple[_Station, list[bytes]]:
        """The sender, and the DATA packets it makes of the message."""
        sender = self.station(self.src, offload)
        if self.rpc_id & 1:
            self._request_for(sender)
        else:
            sender.endpoint.send_request(*self.dst, self.payload, sender.now)
        packets = [p for p in sender.transmit() if p[ipv4.HEADER_LEN + homa.TYPE_OFFSET] == homa.DATA]
        return sender, packets

    def _request_for(self, server: _Station) -> None:
        client = self.station(self.dst)
        client.endpoint.send_request(*self.src, self.payload, client.now)
        for packet in client.transmit():
            server.receive(packet)
        event = server.endpoint.next_event()
        if not isinstance(event, Request):
            raise BadPacket("our server does not understand our own request")
        server.endpoint.send_reply(event.rpc, self.payload, server.now)

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
    """What is wrong with one vector of branch main, or with us; empty: nothing."""
    problems = vector.own_errors()
    try:
        if "based_on" in vector.inputs:
            problems += _check_retransmission(vector, by_name, roles)
        elif "records" in vector.entry:
            problems += _check_data(DataCase(vector, roles))
        elif "type" in vector.inputs:
            problems += _check_control(vector)
        else:
            raise UnknownVectorError("unknown kind of vector: neither records, based_on nor type")
    except UnknownVectorError as e:
        problems.append(Problem(str(e)))
    except BadPacket as e:
        problems.append(Problem(f"does not parse: {e}"))
    return problems


def _payload(rule: str, length: int) -> bytes:
    if rule.startswith("every byte 0x"):
        return bytes([int(rule[13:15], 16)]) * length
    if rule == "byte i = i mod 256":
        return bytes(i % 256 for i in range(length))
    raise UnknownVectorError(f"payload_rule {rule!r} is unknown")


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
        counters = sender.nic.counters
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
        if packet[1] != tos:
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
    return out + [Problem(f"derived {field} differs") for field, value in claimed.items()
                  if derived.get(field) != value]


def _check_retransmission(vector: Vector, by_name: dict[str, Vector],
                          roles: dict[str, DirectionKeys]) -> list[Problem]:
    unknown = sorted(set(vector.inputs) - _BASED_INPUTS)
    base = by_name.get(vector.get(vector.inputs, "based_on", str))
    if unknown or base is None or "records" not in base.entry:
        raise UnknownVectorError(f"input {unknown[0]} is unknown" if unknown else "based_on names no message")
    case = DataCase(base, roles)
    number = vector.number("packet_index")
    if not 0 <= number < len(base.packets):
        raise UnknownVectorError(f"its message has no packet {number}")
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
                             _RESEND_PRIORITY)
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
    nic = SmartNic()
    if segment is not None:
        NicDriver(nic, _MAC, src, homa.PROTO_LINUX, lambda _ip: _MAC).transmit(segment)
    return nic.process()[0][ETHERNET_LEN:]


def _check_control(vector: Vector) -> list[Problem]:
    unknown = sorted(set(vector.inputs) - _CONTROL_INPUTS)
    if unknown or vector.name not in _CONTROLS:
        raise UnknownVectorError(f"input {unknown[0]} is unknown" if unknown else "unknown control packet")
    wanted = _CONTROLS[vector.name](vector.number("src_port"), vector.number("dst_port"),
                                    vector.number("sender_id", 1 << 64))
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
