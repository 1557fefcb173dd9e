"""What the engine does and why, for whoever asks: an optional sink of events.

Off, it costs one look at an attribute that is None. On, every event has its time, the RPC it is about and a
reason. The time is the one that the endpoint was told last, or a clock's, where there is one: a driver looks at
its clock before it takes many packets, and by then some of them are not yet sent. Never a key, never a byte of a
message: headers and lengths only.

========= ======================================================================================================
event     what happened
========= ======================================================================================================
queued    a message waits to be sent. ``why`` "session": until there is one
blocked   a message has more to send and may not: ``why`` "grant", "pacer" (the link is busy) or "ring" (the NIC's)
granted   ``length`` is how far the message may be sent; by us, or (the message is ours) by a GRANT
sent      a segment or packet went to the NIC; ``text`` is its header
received  a packet came in
opened    ``count`` records of a message are authentic now; ``why`` "failed": so many more are not
doubted   bytes are missing and asked for with RESEND, or NEED_ACK asks for an acknowledgement; ``why`` says why
resent    ``count`` packets go once more; ``why`` is the packet that asked for it
delivered a message went to the application
freed     nothing of the RPC is left; ``why`` says what ended it
failed    a request of ours has no response; ``why`` is the reason
========= ======================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

from smtstack.errors import BadPacket
from smtstack.transport.rpc import Rpc
from smtstack.transport.segment import Segment
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4, show

if TYPE_CHECKING:
    from smtstack.transport.message import InMessage, OutMessage
    from smtstack.transport.pacer import Pacer, SrptQueue

QUEUED: Final = "queued"
BLOCKED: Final = "blocked"
GRANTED: Final = "granted"
SENT: Final = "sent"
RECEIVED: Final = "received"
OPENED: Final = "opened"
DOUBTED: Final = "doubted"
RESENT: Final = "resent"
DELIVERED: Final = "delivered"
FREED: Final = "freed"
FAILED: Final = "failed"
EVENTS: Final = (QUEUED, BLOCKED, GRANTED, SENT, RECEIVED, OPENED, DOUBTED, RESENT, DELIVERED, FREED, FAILED)
REQUEST: Final = "request"
RESPONSE: Final = "response"
#: Why a message waits.
SESSION: Final = "session"
GRANT: Final = "grant"
PACER: Final = "pacer"
RING: Final = "ring"
#: Of a segment's destination: the address without the shape.
_ADDRESS: Final = 0xFFFFFFFF


class TraceEvent:
    """One event. Offsets and lengths are bytes, as the wire counts them."""

    __slots__ = ("birth", "client", "count", "epoch", "ip", "length", "message", "name", "offset", "port", "rpc",
                 "text", "time", "total", "why")

    def __init__(self, time: int, name: str, ip: int, port: int, rpc: int, epoch: int, client: bool, *,
                 birth: int = 0, message: str = "", offset: int = -1, length: int = -1, total: int = -1,
                 count: int = -1, why: str = "", text: str = "") -> None:
        #: When, in the endpoint's nanoseconds.
        self.time = time
        #: One of :data:`EVENTS`.
        self.name = name
        #: The peer.
        self.ip = ip
        self.port = port
        #: The client's id of the RPC, the same at both ends; 0: it has none yet, ``birth`` tells which it is.
        self.rpc = rpc
        #: Key epoch, as on the wire.
        self.epoch = epoch
        #: Whether this end is the RPC's client.
        self.client = client
        #: Number of the RPC at this endpoint; 0: the event is about a packet, whose RPC may not be known here.
        self.birth = birth
        #: Which message: request, response; "": the RPC as a whole.
        self.message = message
        #: Where in the message, how much, and how long the message is; -1: does not apply.
        self.offset = offset
        self.length = length
        self.total = total
        #: Of what the event counts; -1: nothing.
        self.count = count
        self.why = why
        #: The header of a packet.
        self.text = text

    def __repr__(self) -> str:
        return (f"<{self.time} {self.name} {self.rpc} {self.message} {self.offset}+{self.length} {self.why} "
                f"{self.text}>")


class TraceSink(Protocol):
    """Takes what happens."""

    def event(self, event: TraceEvent) -> None:
        """One event, in order of time. Raises nothing."""


class Trace:
    """The hooks of one endpoint. ``now`` is set at every entrance, as most of the engine counts in ticks."""

    __slots__ = ("_blocked", "_clock", "_fmt", "_opened", "_sealed", "_sink", "now")

    def __init__(self, sink: TraceSink, fmt: homa.WireFormat, clock: Callable[[], int] | None) -> None:
        self._sink = sink
        self._clock = clock
        self._fmt = fmt
        self._sealed = fmt is homa.SMT or fmt is homa.LINUX
        self.now = 0
        #: What was said last of an RPC that waits: polling tells the same again and again.
        self._blocked: dict[int, str] = {}
        #: Authentic and failed records of unfinished messages, by RPC.
        self._opened: dict[int, tuple[int, int]] = {}

    def _time(self) -> int:
        return self.now if self._clock is None else self._clock()

    def _tell(self, name: str, rpc: Rpc, message: str, *, offset: int = -1, length: int = -1, total: int = -1,
              count: int = -1, why: str = "") -> None:
        peer = rpc.peer
        self._sink.event(TraceEvent(
            self._time(), name, peer.host.ip, peer.port, rpc.id & ~1, rpc.keys.wire_epoch, rpc.is_client,
            birth=rpc.birth, message=message, offset=offset, length=length, total=total, count=count, why=why))

    # -- messages of ours --------------------------------------------------------------------------------

    def waiting(self, rpc: Rpc, size: int) -> None:
        """A request of ``size`` bytes waits for a session."""
        self._tell(QUEUED, rpc, REQUEST, offset=0, length=size, total=size, why=SESSION)

    def queued(self, rpc: Rpc, out: OutMessage) -> None:
        """A message was given to the outbox."""
        self._tell(QUEUED, rpc, _ours(rpc), offset=0, length=out.granted, total=out.length)

    def blocked(self, rpc: Rpc, why: str) -> None:
        """A message has to wait, said once as long as it is so."""
        out = rpc.out
        if out is None or self._blocked.get(rpc.birth) == why:
            return
        self._blocked[rpc.birth] = why
        self._tell(BLOCKED, rpc, _ours(rpc), offset=out.sent_end(), length=out.length - out.sent_end(),
                   total=out.length, why=why)

    def paced(self, pacer: Pacer, srpt: SrptQueue) -> None:
        """Nothing may go now: the message that would be next waits for the link."""
        if srpt.heap and self.now < pacer.ready_at():
            rpc = srpt.heap[0][2]
            if rpc.out is not None and rpc.out.sendable():
                self.blocked(rpc, PACER)

    def ring_full(self, segment: Segment) -> None:
        """The NIC has no room for a segment: it will be tried again."""
        self._packet(BLOCKED, segment.header, 0, segment.dst & _ADDRESS, RING, segment)

    def sent(self, segment: Segment) -> None:
        """A segment goes to the driver."""
        self._packet(SENT, segment.header, segment.tos, segment.dst & _ADDRESS, "", segment)

    def was_granted(self, rpc: Rpc, out: OutMessage) -> None:
        """The peer lets us send more."""
        self._blocked.pop(rpc.birth, None)
        self._tell(GRANTED, rpc, _ours(rpc), offset=0, length=out.granted, total=out.length)

    def resent(self, rpc: Rpc, start: int, stop: int, packets: int, why: str) -> None:
        """``packets`` that overlap [start, stop) are queued once more."""
        out = rpc.out
        total = out.length if out is not None else -1
        self._tell(RESENT, rpc, _ours(rpc), offset=start, length=stop - start, total=total, count=packets, why=why)

    # -- messages of theirs ------------------------------------------------------------------------------

    def received(self, frame: bytes) -> None:
        """A frame for this endpoint."""
        ip = frame[wire_frame.IP_OFFSET:]
        total = int.from_bytes(ip[2:4], "big")
        self._packet(RECEIVED, ip[ipv4.HEADER_LEN:total], ip[1], int.from_bytes(ip[12:16], "big"), "", None,
                     int.from_bytes(ip[4:6], "big"))

    def grants(self, rpc: Rpc, offset: int) -> None:
        """We let the peer send up to ``offset``."""
        inm = rpc.inm
        total = inm.length if inm is not None else -1
        self._tell(GRANTED, rpc, _theirs(rpc), offset=0, length=offset, total=total)

    def opened(self, rpc: Rpc, inm: InMessage) -> None:
        """A packet of an unfinished message was taken: say what it opened, if anything."""
        records, failures = inm.authenticated(), inm.auth_failures
        before, failed = self._opened.get(rpc.birth, (0, 0))
        if (records, failures) == (before, failed):
            return
        self._opened[rpc.birth] = records, failures
        if failures > failed:
            self._tell(OPENED, rpc, _theirs(rpc), count=failures - failed, why="failed")
        if records != before:
            self._tell(OPENED, rpc, _theirs(rpc), count=records)

    def delivered(self, rpc: Rpc, size: int) -> None:
        """A whole message of ``size`` bytes goes to the application; sealed, its records have authenticated."""
        if self._sealed and rpc.birth not in self._opened and rpc.inm is None:
            self._tell(OPENED, rpc, _theirs(rpc), count=1)
        self._opened.pop(rpc.birth, None)
        self._tell(DELIVERED, rpc, _theirs(rpc), offset=0, length=size, total=size)

    def doubted(self, rpc: Rpc, ranges: list[tuple[int, int]], why: str) -> None:
        """``ranges`` (offset, length) are asked for, the ``rpc.resends`` th time since something came."""
        inm = rpc.inm
        total = inm.length if inm is not None else -1
        for offset, length in ranges:
            self._tell(DOUBTED, rpc, _theirs(rpc), offset=offset, length=length, total=total, count=rpc.resends,
                       why=why)

    def unacknowledged(self, rpc: Rpc) -> None:
        """Whether our response came is asked, the ``rpc.resends`` th time since something was heard."""
        self._tell(DOUBTED, rpc, _ours(rpc), count=rpc.resends, why="no acknowledgement")

    # -- the end -----------------------------------------------------------------------------------------

    def freed(self, rpc: Rpc, why: str) -> None:
        """Nothing of ``rpc`` is left."""
        self._blocked.pop(rpc.birth, None)
        self._opened.pop(rpc.birth, None)
        self._tell(FREED, rpc, "", why=why)

    def failed(self, rpc: Rpc, why: str) -> None:
        """The application hears that there is no response."""
        self._tell(FAILED, rpc, "", why=why)

    # -- packets -----------------------------------------------------------------------------------------

    def _packet(self, name: str, header: bytes, tos: int, ip: int, why: str, segment: Segment | None,
                identification: int = 0) -> None:
        """An event about a packet, or about a segment of ours, from its header."""
        size = -1
        if segment is not None:
            if segment.payload is not None:
                size = len(segment.payload)
                header = b"".join((header, segment.payload))
            elif segment.message is not None:
                size = segment.message.wire_size(segment.index)
        handshake = header[homa.FLAGS_OFFSET] & homa.HANDSHAKE != 0 and self._fmt is homa.SMT
        fmt = homa.HOMA if handshake else self._fmt
        try:
            packet = wire_frame.packet_untrusted(header + b"\0" if len(header) == fmt.data_len else header, fmt)
        except BadPacket:
            # It is counted where it is judged.
            return
        offset = length = total = -1
        if isinstance(packet, homa.Data):
            length = len(header) - fmt.data_len if size < 0 else size
            offset = packet.segment_offset + packet.offset_in_segment(identification)
            total = packet.message_length
        sender = packet.sender_id
        outwards = segment is not None
        text = show.parsed(show.Seen(packet, max(length, 0), b"", fmt, identification, tos), handshake)
        port = packet.dport if outwards else packet.sport
        if name == SENT:
            self._blocked.clear()
        self._sink.event(TraceEvent(
            self._time(), name, ip, port, sender & ~1, packet.epoch, (sender & 1 == 0) is outwards,
            message=(RESPONSE if sender & 1 else REQUEST) if total >= 0 else "", offset=offset, length=length,
            total=total, why="handshake" if handshake else why, text=text))


def _ours(rpc: Rpc) -> str:
    """The message that we send."""
    return REQUEST if rpc.is_client else RESPONSE


def _theirs(rpc: Rpc) -> str:
    """The message that we get."""
    return RESPONSE if rpc.is_client else REQUEST
