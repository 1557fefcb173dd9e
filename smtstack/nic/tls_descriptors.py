"""What a driver posts to a device that offloads TLS over TCP, and what the device says when it is done.

Everything the device needs is in the descriptor itself. What sets a context takes effect at the next
:class:`Fence` of the queue: a driver that leaves it out has the packet behind it encrypted with what was there
before.
"""

from __future__ import annotations

from smtstack.crypto.stream_gcm import StreamKeys
from smtstack.wire.tcp import TcpPacket


class TcpSend:
    """Send a packet or a super-frame of TCP, encrypted by a context or as it is."""

    __slots__ = ("context", "frame", "gso_size", "packet", "payload")

    def __init__(self, frame: bytes, packet: TcpPacket, payload: bytes, gso_size: int, context: int = 0) -> None:
        #: Headers are taken from here; TCP's checksum is always made anew.
        self.frame = frame
        self.packet = packet
        #: In place of the frame's; as long as that.
        self.payload = payload
        #: Payload bytes of each packet; 0: it is one packet.
        self.gso_size = gso_size
        #: TLS context; 0: the payload goes out as it is.
        self.context = context


class SetStatic:
    """Give a context its keys and the number of the next record (static parameters)."""

    __slots__ = ("context", "keys", "number")

    def __init__(self, context: int, keys: StreamKeys, number: int) -> None:
        self.context = context
        self.keys = keys
        self.number = number


class SetProgress:
    """Tell a context that the next byte it gets begins a record, at this TCP sequence number."""

    __slots__ = ("context", "seq")

    def __init__(self, context: int, seq: int) -> None:
        self.context = context
        self.seq = seq


class Dump:
    """Have a context encrypt bytes of a record that nobody is sent: it needs what they leave behind."""

    __slots__ = ("context", "data")

    def __init__(self, context: int, data: bytes) -> None:
        self.context = context
        #: At most the MTU.
        self.data = data


class Fence:
    """A NOP before which everything posted to the queue has taken effect."""

    __slots__ = ()


class GetProgress:
    """Ask a context how far it is; the answer is a :class:`Progress`."""

    __slots__ = ("context",)

    def __init__(self, context: int) -> None:
        self.context = context


TlsDescriptor = TcpSend | SetStatic | SetProgress | Dump | Fence | GetProgress


class DumpDone:
    """A DUMP was worked off."""

    __slots__ = ("length",)

    def __init__(self, length: int) -> None:
        self.length = length


class Progress:
    """Where a context stands: for whom it is not at a record it knows, ``seq`` says nothing."""

    __slots__ = ("authenticates", "context", "number", "seq", "tracker")

    def __init__(self, context: int, seq: int, number: int, tracker: str, authenticates: bool) -> None:
        self.context = context
        #: TCP sequence number of the header from which on the device counts.
        self.seq = seq
        self.number = number
        #: ``start``, ``tracking`` or ``searching``.
        self.tracker = tracker
        #: Whether it encrypts, or decrypts.
        self.authenticates = authenticates


class Failed:
    """A packet was dropped rather than sent: its context is gone, or not at its bytes."""

    __slots__ = ("context",)

    def __init__(self, context: int) -> None:
        self.context = context


Completion = DumpDone | Progress | Failed
