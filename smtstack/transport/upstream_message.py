"""Profile ``upstream``: messages in clear, cut as upstream Homa cuts them."""

from __future__ import annotations

from smtstack.crypto.epochs import EpochKeys, Session
from smtstack.errors import ConfigError
from smtstack.transport.message import InMessage, OutMessage
from smtstack.transport.params import TransportParams
from smtstack.transport.profile import Profile
from smtstack.transport.rpc import Rpc
from smtstack.transport.stream_message import StreamIn
from smtstack.wire import homa, ipv4, upstream


class UpstreamOut(OutMessage):
    """A message whose segments are its packets, each with a header of its own.

    Of packets cut by the device only the sequence would say which is which, and a kernel reads that in its GRO
    hook only. A packet ends where the bytes do that need no grant (``homa_outgoing.c:homa_message_out_fill``).
    """

    __slots__ = ("_data", "_unasked")

    def __init__(self, data: bytes, mss: int, unsched_bytes: int) -> None:
        length = len(data)
        unscheduled = min(length, unsched_bytes)
        #: Packets that need no grant.
        self._unasked = -(-unscheduled // mss)
        self.init(length, self._unasked - (unscheduled - length) // mss, mss, unscheduled)
        self._data = data

    def start(self, index: int) -> int:
        beyond = index - self._unasked
        return index * self.mss if beyond < 0 else self.unscheduled + beyond * self.mss

    def index_at(self, offset: int) -> int:
        """The packet with the byte at ``offset``."""
        if offset < self.unscheduled:
            return offset // self.mss
        return self._unasked + (offset - self.unscheduled) // self.mss

    def payload(self, index: int) -> bytes:
        stop = self.start(index + 1) if index + 1 < self.count else self.length
        return self._data[self.start(index):stop]

    def packet_range(self, index: int, packet: int, size: int) -> tuple[int, int]:
        at = self.start(index)
        return at, at + size


class UpstreamProfile(Profile[Session]):
    """Upstream Homa's format: nothing is sealed."""

    __slots__ = ()

    def __init__(self, params: TransportParams) -> None:
        if params.incast_threshold:
            raise ConfigError("incast_threshold: profile upstream cannot mark requests, as Homa's module cannot; "
                              "leave it at 0")
        super().__init__(homa.UPSTREAM, params)

    def outgoing(self, rpc: Rpc, session: Session, data: bytes) -> OutMessage:
        mtu = min(rpc.peer.mtu, self.params.mtu)
        return UpstreamOut(data, mtu - ipv4.HEADER_LEN - upstream.DATA_LEN, self.params.unsched_bytes)

    def incoming(self, rpc: Rpc, session: Session, length: int) -> InMessage:
        return StreamIn(length)

    def open_whole(self, session: Session, keys: EpochKeys, sender_id: int, length: int,
                   payload: bytes) -> bytes | None:
        return payload if len(payload) == length else None
