"""What the transport hands to the driver: one TSO segment, or one packet."""

from __future__ import annotations

from typing import Final

from smtstack.transport.message import OutMessage

#: Added to the address of a segment that goes in the shape of TCP: as IP protocol 6, with TCP's checksum.
AS_TCP: Final = 1 << 40


class Segment:
    """A transport header and the payload it stands before, to one destination.

    The payload is given, or (``payload is None``) is segment ``index`` of ``message``, for the driver to
    have sealed by software (``message.payload``) or to pass to an offloading NIC (``message.framed``).
    A payload longer than ``mss`` must be cut; every packet gets the same header, IP ID counts them.
    """

    __slots__ = ("dst", "flow", "header", "index", "message", "mss", "payload", "posted", "tos")

    def __init__(self, dst: int, tos: int, header: bytes, payload: bytes | None, mss: int = 0,
                 message: OutMessage | None = None, index: int = 0, flow: int = 0) -> None:
        #: IPv4 address as an integer; with :data:`AS_TCP` added, in the shape of TCP.
        self.dst = dst
        #: Priority in the top three bits.
        self.tos = tos
        self.header = header
        self.payload = payload
        #: Payload bytes of a full packet.
        self.mss = mss
        self.message = message
        self.index = index
        #: Segments with one value stay in order, on one TX queue: the RPC id.
        self.flow = flow
        #: The driver's: payload bytes it has posted already, when the ring had no room for all.
        self.posted = 0

    def sealed(self) -> bytes:
        """The payload as it goes on the wire."""
        if self.payload is not None:
            return self.payload
        assert self.message is not None
        return self.message.payload(self.index)
