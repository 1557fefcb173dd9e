"""A packet as one line for people: who to whom, which message, which part of it.

    10.0.0.1:32768 > 10.0.0.2:2000 DATA rpc 42 client, 1440+1440 of 5000, granted 5000, prio 6
    10.0.0.2:2000 > 10.0.0.1:32768 RESEND rpc 42 server, 2880+1440, wants prio 7, prio 7

Only headers are shown, never a payload. Every field stands once, in :data:`FIELDS`: whoever adds one to a packet
adds a line there. The functions take whatever bytes there are and raise nothing: what is wrong with them is in the
line.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from smtstack.errors import BadPacket
from smtstack.wire import ethernet, homa, ipv4, upstream
from smtstack.wire import frame as wire_frame
from smtstack.wire.ipv4 import format_address

#: How a TLS record of application data begins (RFC 8446 §5.2); two bytes of length follow.
_RECORD: Final = b"\x17\x03\x03"
_RECORD_HEADER: Final = 5
#: In profile ``linux`` the number of the record comes next (RFC 5288 §3).
_NUMBER_LEN: Final = 8
#: How a packet is called that belongs to profile and protocol, but is none.
MALFORMED: Final = "malformed"


class Seen(NamedTuple):
    """A packet with what is known of it beside its transport header."""

    packet: homa.Packet
    #: Bytes behind the header of DATA, and the first of them.
    size: int
    payload: bytes
    fmt: homa.WireFormat
    #: IP ID: the place in the TSO segment, for a NIC that only counts.
    identification: int
    #: IP TOS: the priority in its top three bits.
    tos: int


class Field:
    """One field of a packet: its words, and where the value comes from."""

    __slots__ = ("text", "unless", "value")

    def __init__(self, text: str, value: Callable[[Any, Seen], object], unless: object = None) -> None:
        #: With ``{}`` for the value.
        self.text = text
        #: Of the packet; what else is known is the second argument.
        self.value = value
        #: The value that says nothing, so that the field is left out.
        self.unless = unless


def _place(p: homa.Data, s: Seen) -> str:
    """Offset and length in the message. A packet of profile ``linux`` says only which of its record it is."""
    if s.fmt is not homa.LINUX:
        at = str(p.segment_offset + p.offset_in_segment(s.identification))
    else:
        at = f"{p.segment_offset}[{p.index_in_segment(s.identification)}]"
    return f"{at}+{s.size} of {p.message_length}"


def _record(p: homa.Data, s: Seen) -> str:
    """What the header of a record says that begins with this packet; "": none does, as far as can be seen."""
    begins = p.offset_in_segment(s.identification) == 0 and p.index_in_segment(s.identification) == 0
    if not begins or len(s.payload) < _RECORD_HEADER or not s.payload.startswith(_RECORD):
        return ""
    text = f"{int.from_bytes(s.payload[3:_RECORD_HEADER], 'big')} B"
    if s.fmt is homa.LINUX and len(s.payload) >= _RECORD_HEADER + _NUMBER_LEN:
        text += f" number {int.from_bytes(s.payload[_RECORD_HEADER:_RECORD_HEADER + _NUMBER_LEN], 'big'):#x}"
    return text


def _range(p: homa.Resend, _s: Seen) -> str:
    return f"{p.offset}+{p.length}" if p.length >= 0 else "all that was sent"


def _entries(p: homa.Ack, s: Seen) -> str:
    if s.fmt is homa.UPSTREAM:
        return " ".join(f"{e.client_id}(>{e.server_port})" for e in p.acks)
    return " ".join(f"{e.client_id}({e.client_port}>{e.server_port})" for e in p.acks)


_EPOCH: Final = Field("epoch {}", lambda p, _s: p.epoch, 0)
#: What is shown of each packet type, in this order.
FIELDS: dict[type, tuple[Field, ...]] = {
    homa.Data: (
        Field("{}", _place),
        Field("granted {}", lambda p, _s: p.incoming),
        Field("segments of {}", lambda p, _s: p.segment_size, 0),
        Field("record of {}", _record, ""),
        Field("again", lambda p, _s: p.retransmit != 0, False),
        Field("shaped as TCP", lambda p, _s: p.overlay, False),
        Field("placed by NIC", lambda p, s: p.placed and s.fmt.extended and not p.overlay, False),
        Field("by sequence", lambda p, s: s.fmt is homa.UPSTREAM and not p.placed, False),
        Field("acknowledges {}", lambda p, _s: f"{p.acked_id}(>{p.acked_port})" if p.acked_id else "", ""),
        Field("incast", lambda p, _s: p.incast, False),
        Field("cutoffs {}", lambda p, _s: p.cutoff_version, 0),
        _EPOCH,
    ),
    homa.Grant: (
        Field("to {}", lambda p, _s: p.offset),
        Field("wants prio {}", lambda p, _s: p.priority),
        _EPOCH,
    ),
    homa.Resend: (
        Field("{}", _range),
        Field("wants prio {}", lambda p, _s: p.priority),
        _EPOCH,
    ),
    homa.Unknown: (_EPOCH,),
    homa.Busy: (_EPOCH,),
    homa.Freeze: (_EPOCH,),
    homa.NeedAck: (_EPOCH,),
    homa.Cutoffs: (
        Field("up to {} B", lambda p, _s: " ".join(str(c) for c in p.cutoffs)),
        Field("version {}", lambda p, _s: p.cutoff_version),
        _EPOCH,
    ),
    homa.Ack: (
        Field("and {}", _entries, ""),
        Field("proof", lambda p, _s: p.proof != b"", False),
        _EPOCH,
    ),
}
_NAMES: dict[type, str] = {
    homa.Data: "DATA", homa.Grant: "GRANT", homa.Resend: "RESEND", homa.Unknown: "UNKNOWN", homa.Busy: "BUSY",
    homa.Freeze: "FREEZE", homa.NeedAck: "NEED_ACK", homa.Cutoffs: "CUTOFFS", homa.Ack: "ACK"}


def rpc_name(sender_id: int) -> str:
    """The RPC, by its client's id, and who speaks."""
    return f"rpc {sender_id & ~1} {'server' if sender_id & 1 else 'client'}"


def message_name(sender_id: int) -> str:
    """The message that DATA with this ``sender_id`` is of."""
    return f"message {sender_id & ~1} {'response' if sender_id & 1 else 'request'}"


def parsed(seen: Seen, handshake: bool = False) -> str:
    """A packet that was parsed already, without the addresses; ``handshake``: of the plane in clear."""
    packet = seen.packet
    said = [f"{_NAMES[type(packet)]}{' handshake' if handshake else ''} {rpc_name(packet.sender_id)}"]
    for field in FIELDS[type(packet)]:
        value = field.value(packet, seen)
        if value != field.unless:
            said.append(field.text.format(value))
    return ", ".join([*said, f"prio {seen.tos >> 5}"])


def transport_untrusted(buf: bytes, fmt: homa.WireFormat | None = None, *, size: int | None = None,
                        identification: int = 0, tos: int = 0) -> str:
    """A transport packet, without the addresses.

    ``size``: payload bytes, where ``buf`` holds less of them (a TSO segment's header). ``fmt`` None: as it looks.
    """
    own, handshake = _format(buf, fmt, homa.PROTO_HOMA)
    if size is not None and len(buf) == own.data_len:
        buf += b"\0"
    try:
        return parsed(_seen(buf, own, size, identification, tos), handshake)
    except BadPacket as e:
        return f"{MALFORMED}: {e}"


def packet_untrusted(packet: bytes, fmt: homa.WireFormat | None = None) -> str:
    """An IPv4 packet from its header on, with padding perhaps. ``fmt`` None: as it looks."""
    try:
        ip = ipv4.parse_untrusted(packet)
    except BadPacket as e:
        return f"{MALFORMED}: {e}"
    src, dst = format_address(ip.src), format_address(ip.dst)
    buf = packet[ipv4.HEADER_LEN:ip.total_length]
    if fmt is None and not any(wire_frame.carries(ip.protocol, buf, known) for known in homa.FORMATS.values()):
        return f"{src} > {dst} IP protocol {ip.protocol}, {ip.total_length} B"
    own, handshake = _format(buf, fmt, ip.protocol)
    try:
        seen = _seen(buf, own, None, ip.identification, ip.tos)
    except BadPacket as e:
        return f"{src}{_port(buf, 0)} > {dst}{_port(buf, 2)} {MALFORMED}: {e}"
    return f"{src}:{seen.packet.sport} > {dst}:{seen.packet.dport} {parsed(seen, handshake)}"


def frame_untrusted(frame: bytes, fmt: homa.WireFormat | None = None) -> str:
    """An Ethernet frame. ``fmt`` None: as it looks."""
    try:
        header = ethernet.parse_untrusted(frame)
    except BadPacket as e:
        return f"{MALFORMED}: {e}"
    if header.ethertype != ethernet.ETHERTYPE_IPV4:
        return (f"{ethernet.format_mac(header.src)} > {ethernet.format_mac(header.dst)} "
                f"EtherType {header.ethertype:#06x}, {len(frame)} B")
    return packet_untrusted(frame[ethernet.HEADER_LEN:], fmt)


def _seen(buf: bytes, fmt: homa.WireFormat, size: int | None, identification: int, tos: int) -> Seen:
    packet = wire_frame.packet_untrusted(buf, fmt)
    payload = buf[fmt.data_len:] if isinstance(packet, homa.Data) else b""
    return Seen(packet, len(payload) if size is None else size, payload, fmt, identification, tos)


def _format(buf: bytes, fmt: homa.WireFormat | None, protocol: int) -> tuple[homa.WireFormat, bool]:
    """How to read a packet, and whether it is of the handshake plane, which is as profile ``homa``."""
    if fmt is None:
        fmt = homa.LINUX if protocol == homa.PROTO_LINUX else homa.UPSTREAM if upstream.tcp_shaped(buf) else None
    if fmt in (homa.SMT, None) and len(buf) >= homa.COMMON_LEN and buf[homa.FLAGS_OFFSET] & homa.HANDSHAKE:
        return homa.HOMA, True
    if fmt is None:
        # Only the proof of an ACK tells smt from homa.
        bare = len(buf) > homa.TYPE_OFFSET and buf[homa.TYPE_OFFSET] == homa.ACK \
            and len(buf) < homa.ACK_LEN + homa.PROOF_LEN
        fmt = homa.HOMA if bare else homa.SMT
    return fmt, False


def _port(buf: bytes, at: int) -> str:
    """A port of a packet that is none; "": not even that is there."""
    return f":{int.from_bytes(buf[at:at + 2], 'big')}" if len(buf) >= at + 2 else ""
