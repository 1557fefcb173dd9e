"""Applications' side of TLS offload: hand a direction of a TCP connection to the NIC that its packets leave by.

:func:`install_tx` and :func:`install_rx` tell *every* NIC of the network namespace of the flow, so that none sends
plaintext of it and each can go on with it after the route has changed; that of the route gets the context. What
these return is the application's end of what it shares with them: a record map, marks.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from smtstack.crypto.stream_gcm import Data, StreamKeys
from smtstack.errors import ConfigError, Unsupported
from smtstack.io import plaintext_guard, tcp_queries
from smtstack.io.memory import sealed_memory
from smtstack.io.tcp_queries import Routes
from smtstack.nic.marks import DEFAULT_ENTRIES, MarkReader, mark_bytes
from smtstack.nic.plaintext import PLAINTEXT_MARK
from smtstack.nic.record_map import DEFAULT_RECORDS, RecordMapWriter, map_bytes
from smtstack.nic.tls_flow import DUMP, LINUX, SCAN
from smtstack.tapnic import messages
from smtstack.wire.tcp import advance, flow_key

#: Bytes of records under way, where nobody says otherwise: as many as Linux lets a socket's send buffer grow to.
DEFAULT_ROOM: Final = 4 << 20
#: Seconds a NIC gets for an answer; it may be busy with packets.
_PATIENCE_S: Final = 10.0


class TxOffload:
    """The records of a connection that NICs are to encrypt. Made by :func:`install_tx`.

    The application puts each record in by :meth:`append`, framed but not encrypted, and writes the very same bytes
    to the socket, in that order and nothing else: what it writes that is encrypted already, it announces by
    :meth:`append_sealed`. Both give None or False while there is no room: until more is acknowledged.
    """

    def __init__(self, sock: socket.socket, nics: _Nics, records: RecordMapWriter, memory: mmap.mmap, seq: int,
                 acknowledged: tuple[int, int]) -> None:
        self.records = records
        """The record map, with the flow's words: ``owner``, ``aborted``, ``sent_bytes`` ..."""
        self.seq = seq
        """TCP sequence number of the next byte to be written to the socket."""
        self._sock = sock
        self._nics = nics
        self._memory = memory
        #: (sequence number of the first byte not acknowledged, bytes acknowledged by the kernel's count) once.
        self._acknowledged = acknowledged

    @property
    def device(self) -> str:
        """The interface whose NIC has the flow's context now; empty: none has, software encrypts."""
        return self._nics.by_number(self.records.owner)

    @property
    def aborted(self) -> bool:
        """A NIC has ended the connection rather than leak (policy ``freebsd``): to be told as ECONNABORTED."""
        return self.records.aborted

    def append(self, *parts: Data) -> memoryview | None:
        """Put in the next record: header, explicit nonce if any, plaintext, type byte in TLS 1.3, room for a tag.

        Its bytes in shared memory, to be written to the socket before any other; they stay as they are until all
        of them are acknowledged. None: there is no room.
        """
        view = self.records.append(self.seq, *parts)
        if view is not None:
            self.seq = advance(self.seq, len(view))
        return view

    def append_sealed(self, length: int) -> bool:
        """Announce a record of so many bytes that software has encrypted; False: there is no room."""
        if not self.records.append_sealed(self.seq, length):
            return False
        self.seq = advance(self.seq, length)
        return True

    def release(self) -> int:
        """Let go of the records that are wholly acknowledged by now; how many these were."""
        seq, count = self._acknowledged
        with contextlib.suppress(OSError):  # no connection any more: nothing more is acknowledged
            seq = advance(seq, tcp_queries.acknowledged_bytes(self._sock) - count)
        return self.records.release(seq)

    def take_context(self) -> None:
        """Have the NIC of the route encrypt (mode NIC), from the next packet on.

        Raises :class:`Unsupported` if the route's interface has no such NIC, OSError with ENOSPC if it has no
        context left, ENXIO if it refuses (its offload is off, or the cipher is not one of its).
        """
        self._nics.take(self._sock)

    def give_context(self) -> None:
        """No NIC's context any more (mode SW): NICs' software encrypts what is under way as plaintext."""
        self._nics.give()

    def close(self) -> None:
        """The application is done with the flow. NICs know it until all that was written is acknowledged, or the
        connection is gone: the kernel may have to send it again, still as plaintext."""
        self._nics.close()
        # What is left stays in the map: NICs look it up there for as long as TCP may send it.
        self.release()
        self.records.close()
        with contextlib.suppress(BufferError):  # somebody still has a record's bytes
            self._memory.close()


class RxOffload:
    """What NICs say of the bytes that arrive on a connection. Made by :func:`install_rx`."""

    def __init__(self, nics: _Nics, marks: MarkReader, memories: list[mmap.mmap], seq: int) -> None:
        self.marks = marks
        """Which bytes came up decrypted, by TCP sequence number; questions of NICs, and answers to them."""
        self.seq = seq
        """TCP sequence number of the first byte that the application read from the socket after the call."""
        self._nics = nics
        self._memories = memories

    def close(self) -> None:
        """Nothing is decrypted by NICs any more, from the next packet on."""
        self._nics.close()
        self.marks.close()
        for memory in self._memories:
            with contextlib.suppress(BufferError):
                memory.close()


def install_tx(sock: socket.socket, keys: StreamKeys, number: int, *, policy: str = LINUX, resync: str = DUMP,
               room: int = DEFAULT_ROOM, records: int = DEFAULT_RECORDS) -> TxOffload:
    """Turn a connected TCP socket into one whose records NICs encrypt, from the next byte written on.

    ``keys`` are those of this direction, ``number`` that of the next record. ``policy`` says what a NIC does with
    a packet of the flow when the context is another's (:data:`~smtstack.nic.tls_flow.POLICIES`), ``resync`` how
    the device gets its state back after a packet out of order (:data:`~smtstack.nic.tls_flow.TX_RESYNCS`).
    ``room`` and ``records``: bytes and records that may be under way. The socket is marked as one of plaintext
    from now on.

    Raises :class:`Unsupported` if the interface of the route has no NIC of its own (hosting ``tap``), without
    root, and for IPv6; :class:`LocalError` for a socket that is not connected; OSError with ENOSPC if the NIC has
    no context left, ENXIO if it refuses (offload is off, or not this cipher), EBUSY while records of an earlier
    offload of the connection are not acknowledged. After an error the socket is as before.
    """
    own, own_port, peer, peer_port = tcp_queries.addresses(sock)
    flow = flow_key(own, peer, own_port, peer_port)
    plaintext_guard.install()
    seq, _read = tcp_queries.sequences(sock)
    descriptor, memory = sealed_memory("smtnet records", map_bytes(room, records))
    nics = _Nics(own, peer)
    record_map = None
    try:
        record_map = RecordMapWriter(memoryview(memory), seq, number, records)
        acknowledged = (advance(seq, -tcp_queries.unsent_or_unacknowledged(sock)),
                        tcp_queries.acknowledged_bytes(sock))
        nics.register(lambda context: messages.tx_request(flow, keys, policy, resync, context),
                      lambda: descriptor)
        tcp_queries.set_mark(sock, PLAINTEXT_MARK)
    except BaseException:
        nics.close()
        if record_map is not None:
            record_map.close()
        memory.close()
        raise
    finally:
        os.close(descriptor)
    return TxOffload(sock, nics, record_map, memory, seq, acknowledged)


def install_rx(sock: socket.socket, keys: StreamKeys, number: int, *, resync: str = SCAN,
               entries: int = DEFAULT_ENTRIES) -> RxOffload:
    """Have NICs decrypt what arrives on a connected TCP socket: the next byte to be read begins record ``number``.

    ``resync``: how a device that lost the records' beginnings finds them
    (:data:`~smtstack.nic.tls_flow.RX_RESYNCS`); ``entries``: marks that each NIC has room for. Raises as
    :func:`install_tx` does.
    """
    own, own_port, peer, peer_port = tcp_queries.addresses(sock)
    flow = flow_key(peer, own, peer_port, own_port)
    seq = _read_position(sock)
    nics = _Nics(own, peer)
    memories: list[mmap.mmap] = []
    descriptors: list[int] = []

    def fresh() -> int:
        descriptor, memory = sealed_memory("smtnet marks", mark_bytes(entries))
        descriptors.append(descriptor)
        memories.append(memory)
        return descriptor

    try:
        nics.register(lambda context: messages.rx_request(flow, keys, resync, context, seq, number), fresh)
        marks = MarkReader([memoryview(memory) for memory in memories], seq)
    except BaseException:
        nics.close()
        for memory in memories:
            memory.close()
        raise
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return RxOffload(nics, marks, memories, seq)


def has_nic(sock: socket.socket) -> bool:
    """Whether the connection's packets leave now by an interface with a NIC of its own (hosting ``tap``)."""
    own, _own_port, peer, _peer_port = tcp_queries.addresses(sock)
    with contextlib.suppress(Unsupported):
        _connect(_route(own, peer)).close()
        return True
    return False


def _read_position(sock: socket.socket) -> int:
    """TCP sequence number of the next byte that is read from a socket."""
    while True:
        # The kernel tells how far it has received, and how much of that was not read; more may come in between.
        before = tcp_queries.unread(sock)
        _written, received = tcp_queries.sequences(sock)
        if tcp_queries.unread(sock) == before:
            return advance(received, -before)


def _route(own: int, peer: int) -> str:
    routes = Routes()
    try:
        index = routes.way_out(own, peer, PLAINTEXT_MARK)
    finally:
        routes.close()
    if index:
        with contextlib.suppress(OSError):
            return socket.if_indextoname(index)
    raise Unsupported("there is no route to the peer of this connection")


def _connect(interface: str) -> socket.socket:
    """A connection to the NIC of an interface; raises :class:`Unsupported` if it has none."""
    nic = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    nic.settimeout(_PATIENCE_S)
    try:
        nic.connect(messages.address(interface))
    except OSError as e:
        nic.close()
        if e.errno not in (errno.ECONNREFUSED, errno.ENOENT):
            raise
        raise Unsupported(f"{interface} has no NIC of its own, which TLS of kernel TCP could be left to: use "
                          "--nic-hosting tap, or link option hosting=tap") from None
    return nic


class _Nics:
    """Connections to all NICs of the network namespace, for one direction of one flow."""

    def __init__(self, own: int, peer: int) -> None:
        self._own = own
        self._peer = peer
        self._nics: dict[str, socket.socket] = {}
        self._numbers: dict[int, str] = {}

    def register(self, request: Callable[[bool], bytes], descriptor: Callable[[], int]) -> None:
        """Tell all of the flow, by a request with or without a context, and the descriptor of what is shared; that
        of the route is to have the context, and is told last."""
        favourite = _route(self._own, self._peer)
        self._nics[favourite] = _connect(favourite)
        for _index, interface in socket.if_nameindex():
            if interface != favourite:
                with contextlib.suppress(Unsupported):
                    self._nics[interface] = _connect(interface)
        ordered = [name for name in self._nics if name != favourite] + [favourite]
        for interface in ordered:
            context = interface == favourite
            reply = _ask(self._nics[interface], request(context), descriptor())
            self._numbers[int(reply["number"])] = interface
            if reply["busy"] or (context and not reply["context"]):
                raise _refusal(interface, reply)

    def by_number(self, number: int) -> str:
        """The interface of a NIC; empty: none."""
        return self._numbers.get(number, "")

    def take(self, sock: socket.socket) -> None:
        """A context at the NIC of the route as it is now."""
        interface = _route(self._own, self._peer)
        nic = self._nics.get(interface)
        if nic is None:
            raise Unsupported(f"{interface} has no NIC of its own that knows this connection")
        reply = _ask(nic, messages.context_request(True))
        if not reply["context"]:
            raise _refusal(interface, reply)

    def give(self) -> None:
        """No context at any."""
        for nic in self._nics.values():
            with contextlib.suppress(OSError):
                _ask(nic, messages.context_request(False))

    def close(self) -> None:
        """They hear that the application is done."""
        for nic in self._nics.values():
            nic.close()
        self._nics = {}


def _ask(nic: socket.socket, request: bytes, descriptor: int | None = None) -> dict[str, Any]:
    """A NIC's answer. Raises OSError with ENXIO if it is gone, :class:`ConfigError` with what it refuses."""
    try:
        socket.send_fds(nic, [request], [] if descriptor is None else [descriptor])
        message = nic.recv(messages.LONGEST)
    except (BrokenPipeError, ConnectionResetError):
        message = b""
    if not message:
        raise OSError(errno.ENXIO, "the NIC is gone")
    reply = messages.read_untrusted(message)
    if "error" in reply:
        raise ConfigError(str(reply["error"]))
    return reply


def _refusal(interface: str, reply: dict[str, Any]) -> OSError:
    if reply.get("busy"):
        return OSError(errno.EBUSY, "records of an earlier offload of this connection are not acknowledged yet")
    if reply.get("full"):
        return OSError(errno.ENOSPC, f"the NIC of {interface} has no TLS context left")
    if reply.get("hooked"):
        return OSError(errno.ENXIO, f"filters of tc may mirror packets of {interface}, with plaintext in them: "
                                    f"tc qdisc del dev {interface} clsact (or ingress)")
    return OSError(errno.ENXIO, f"the NIC of {interface} does not take this flow: its TLS offload is off, or the "
                                "cipher is not one of its")
