"""A profile fixes wire format, segmentation and record protection: ``smt``, ``homa`` or ``linux``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

from smtstack.crypto import tls13
from smtstack.crypto.epochs import NO_KEYS, EpochKeys, LinuxPlainSession, LinuxSession, Session, SmtSession
from smtstack.errors import AuthError, ConfigError, LocalError
from smtstack.transport.linux_message import Acks, LinuxGeometry, LinuxIn, LinuxOut
from smtstack.transport.linux_plain import LinuxPlainGeometry, LinuxPlainIn, LinuxPlainOut
from smtstack.transport.message import InMessage, OutMessage
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.transport.stream_message import Geometry, PlainOut, SealedIn, SealedOut, SealedPacket, StreamIn
from smtstack.wire import homa

#: MTUs of peers for which the cut of messages is kept.
_MAX_CUTS: Final = 64


S = TypeVar("S", bound=Session)


class Profile(Generic[S]):
    """How messages of one profile are made and taken apart, under its kind of session. One object an endpoint."""

    __slots__ = ("fmt", "params")

    #: What its key store must make: S. Checked when an endpoint is made, so nothing here needs to.
    session_type: type[Session] = Session
    #: An ACK is its peer's own, and speaks for nobody else.
    acks_are_proven = False

    def __init__(self, fmt: homa.WireFormat, params: TransportParams) -> None:
        self.fmt = fmt
        self.params = params

    def outgoing(self, rpc: Rpc, session: S, data: bytes) -> OutMessage:
        """``data`` as a message of ``rpc``; raises LocalError if it cannot be numbered."""
        raise NotImplementedError

    def incoming(self, rpc: Rpc, session: S, length: int) -> InMessage:
        """An empty message of ``rpc`` to receive into."""
        raise NotImplementedError

    def open_whole(self, session: S, keys: EpochKeys, sender_id: int, length: int,
                   payload: bytes) -> bytes | None:
        """Plaintext of a message that came in one packet; None: take the long way. Raises AuthError.

        ``sender_id`` is below the session's ``id_limit``.
        """
        return None

    def prove_ack(self, session: S, keys: EpochKeys, ack: homa.Ack) -> bytes:
        """Proof that the client itself acknowledges; empty where the profile has none."""
        return b""

    def ack_proven(self, session: S, keys: EpochKeys, ack: homa.Ack) -> bool:
        """Whether the acknowledgement is the client's own."""
        return True


class _Cuts:
    """How messages are cut by the MTU of a peer, plainly and as the response to a marked request."""

    __slots__ = ("_last", "_made", "_mtu", "_params", "_sealed")

    def __init__(self, params: TransportParams, sealed: bool) -> None:
        self._params = params
        self._sealed = sealed
        #: The others by MTU; the oldest make room, as peers choose these.
        self._made: dict[int, tuple[Geometry, Geometry]] = {}
        self._mtu = params.mtu
        self._last = self._make(params.mtu)

    def of(self, mtu: int) -> tuple[Geometry, Geometry]:
        """For IP packets of at most so many bytes."""
        if mtu != self._mtu:
            made = self._made.get(mtu)
            if made is None:
                if len(self._made) >= _MAX_CUTS:
                    del self._made[next(iter(self._made))]
                made = self._made[mtu] = self._make(mtu)
            self._mtu, self._last = mtu, made
        return self._last

    def _make(self, mtu: int) -> tuple[Geometry, Geometry]:
        params = replace(self._params, mtu=min(mtu, self._params.mtu))
        return Geometry(params, self._sealed), Geometry(_marked(params), self._sealed)


class HomaProfile(Profile[Session]):
    """The baseline: nothing sealed."""

    __slots__ = ("_cuts",)

    def __init__(self, params: TransportParams) -> None:
        super().__init__(homa.HOMA, params)
        self._cuts = _Cuts(params, sealed=False)

    def outgoing(self, rpc: Rpc, session: Session, data: bytes) -> OutMessage:
        whole, marked = self._cuts.of(rpc.peer.mtu)
        return PlainOut(data, marked if rpc.flags and not rpc.is_client else whole)

    def incoming(self, rpc: Rpc, session: Session, length: int) -> InMessage:
        return StreamIn(length)

    def open_whole(self, session: Session, keys: EpochKeys, sender_id: int, length: int,
                   payload: bytes) -> bytes | None:
        return payload if len(payload) == length else None


class SmtProfile(Profile[SmtSession]):
    """The paper's design: TLS 1.3 records under composite numbers."""

    __slots__ = ("_cuts", "_max_wire")
    session_type = SmtSession
    acks_are_proven = True

    def __init__(self, params: TransportParams) -> None:
        super().__init__(homa.SMT, params)
        self._max_wire = params.max_wire_length
        self._cuts = _Cuts(params, sealed=True)

    def outgoing(self, rpc: Rpc, session: SmtSession, data: bytes) -> OutMessage:
        padded = len(data)
        if session.pads:
            padded = max(padded, session.params.padding(padded))
        geo, marked = self._cuts.of(rpc.peer.mtu)
        if padded <= geo.packet_plain:
            return SealedPacket(session, rpc.keys, rpc.id, data, padded, geo.mss)
        # A mark is a wish of who knows whom: records of one packet must not make a message too long to number.
        if rpc.flags and not rpc.is_client and padded <= marked.record_plain * session.numbers.max_records:
            geo = marked
        out = SealedOut(session, rpc.keys, rpc.id, data, padded, geo)
        if out.length > self._max_wire:
            raise LocalError(f"{len(data)} bytes become {out.length} by padding; the peer would refuse more than "
                             f"{self._max_wire}")
        return out

    def incoming(self, rpc: Rpc, session: SmtSession, length: int) -> InMessage:
        return SealedIn(session, rpc.keys, rpc.id ^ 1, length)

    def open_whole(self, session: SmtSession, keys: EpochKeys, sender_id: int, length: int,
                   payload: bytes) -> bytes | None:
        try:
            # CompositeNumber.first(), without the call.
            opened = tls13.open_single_untrusted(keys.rx, sender_id << session.numbers.index_bits, payload)
        except AuthError:
            keys.failed += 1
            raise
        if opened is None:
            return None
        keys.opened += 1
        return opened[1] if opened[0] else None

    def prove_ack(self, session: SmtSession, keys: EpochKeys, ack: homa.Ack) -> bytes:
        if keys.tx is NO_KEYS:
            raise LocalError(f"the keys of epoch {keys.epoch} are forgotten")
        # A single ACK may be asked for often, but is the same record every time.
        session.reserve(keys, ack.sender_id, 1)
        return keys.tx.encrypt(self.ack_number(session, ack), b"", ack.body())

    def ack_proven(self, session: SmtSession, keys: EpochKeys, ack: homa.Ack) -> bool:
        if ack.sender_id >= session.id_limit:
            return False
        try:
            keys.rx.decrypt(self.ack_number(session, ack), ack.proof, ack.body())
        except AuthError:
            return False
        return True

    @staticmethod
    def ack_number(session: SmtSession, ack: homa.Ack) -> int:
        """Record number of the proof of an ACK."""
        # Each RPC heads at most one batch, and its single ACK is always the same bytes: no nonce
        # ever covers two different things.
        number = session.numbers.ack_batch if ack.acks else session.numbers.ack_single
        return number(ack.sender_id)


class LinuxProfile(Profile[LinuxSession]):
    """The kernel module's format, branch main."""

    __slots__ = ("_geo",)
    session_type = LinuxSession

    def __init__(self, params: TransportParams) -> None:
        _no_marks(params)
        super().__init__(homa.LINUX, params)
        self._geo = LinuxGeometry(params)

    def outgoing(self, rpc: Rpc, session: LinuxSession, data: bytes) -> OutMessage:
        return LinuxOut(session.client if rpc.is_client else session.server, rpc.id, data, self._geo,
                        _riding(rpc, data, self._geo.packet_data))

    def incoming(self, rpc: Rpc, session: LinuxSession, length: int) -> InMessage:
        return LinuxIn(session.server if rpc.is_client else session.client, rpc.id ^ 1, length, self._geo)


class LinuxPlainProfile(Profile[LinuxPlainSession]):
    """Plain Homa of the kernel module, branch main: its format without keys, not ours of profile ``homa``."""

    __slots__ = ("_geo",)
    session_type = LinuxPlainSession

    def __init__(self, params: TransportParams) -> None:
        _no_marks(params)
        super().__init__(homa.LINUX, params)
        self._geo = LinuxPlainGeometry(params)

    def outgoing(self, rpc: Rpc, session: LinuxPlainSession, data: bytes) -> OutMessage:
        return LinuxPlainOut(data, self._geo, _riding(rpc, data, self._geo.packet_data))

    def incoming(self, rpc: Rpc, session: LinuxPlainSession, length: int) -> InMessage:
        return LinuxPlainIn(length)


def _no_marks(params: TransportParams) -> None:
    if params.incast_threshold:
        raise ConfigError("incast_threshold: profile linux cannot mark requests, as the kernel module cannot; "
                          "leave it at 0")


def _riding(rpc: Rpc, data: bytes, packet_data: int) -> Acks:
    """Acknowledgements for the packets of a message, one in each; they are taken from those that wait."""
    if not rpc.is_client:
        return []
    peer = rpc.peer
    packets = -(-len(data) // packet_data)
    acks = [(acked, peer.local_port, peer.port) for acked in peer.acks[:packets]]
    del peer.acks[:packets]
    return acks


def _marked(params: TransportParams) -> TransportParams:
    """How the response to a marked request is cut: into segments of one packet, as only whole ones are sent."""
    return replace(params, max_gso_size=min(params.mtu, params.max_gso_size),
                   unsched_bytes=params.incast_unsched_bytes)


def make_profile(name: str, params: TransportParams, makes: type[Session]) -> Profile[Any]:
    """The profile called ``name``, for sessions of type ``makes``; raises :class:`ConfigError`."""
    if name == "smt":
        return SmtProfile(params)
    if name == "homa":
        return HomaProfile(params)
    if name == "linux":
        return LinuxPlainProfile(params) if makes is LinuxPlainSession else LinuxProfile(params)
    raise ConfigError(f"unknown profile {name!r}; there are smt, homa and linux")
