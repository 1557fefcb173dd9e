"""The block store for programs that speak NBD: fio, nbdcopy, qemu, and the kernel where it has the module nbd.

The protocol is that of the NetworkBlockDevice project (doc/proto.md): fixed newstyle handshake, simple replies,
one export without a name. A client's requests become commands of an
:class:`~workloads.blocks.initiator.Initiator`, as many under way as its queue is deep. What is not whole blocks
is EINVAL: the export says that its blocks are of 4096 bytes. A client is trusted no more than any other: what it
sends and is none of the protocol ends its connection. """

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Final

from smtstack.errors import BadPacket
from workloads.blocks.capsule import BLOCK, Opcode, Status
from workloads.blocks.initiator import ERRNO, BlockCall, Initiator

_HELLO: Final = b"NBDMAGICIHAVEOPT\0\3"  # fixed newstyle, and no 124 zeros
_OPTION: Final = Struct(">8sII")
_ANSWER: Final = Struct(">QIII")
_REQUEST: Final = Struct(">IHHQQI")
_REPLY: Final = Struct(">IIQ")
_ANSWER_MAGIC, _REQUEST_MAGIC, _REPLY_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
#: Options, and answers to them.
_EXPORT_NAME, _ABORT, _LIST, _INFO, _GO = 1, 2, 3, 6, 7
_ACK, _SERVER, _OF_INFO, _UNSUPPORTED = 1, 2, 3, 1 << 31 | 1
#: Requests, and their flag.
READ, WRITE, DISCONNECT, FLUSH, WRITE_ZEROES = 0, 1, 2, 3, 6
FUA: Final = 1
#: There are flags; flush, FUA and write zeroes are understood.
_FLAGS: Final = 1 | 4 | 8 | 64
#: Bytes of a request, and of an option, at most.
MOST: Final = 32 << 20
_LONGEST_OPTION: Final = 8192
_KINDS: Final = {READ: Opcode.READ, WRITE: Opcode.WRITE, WRITE_ZEROES: Opcode.WRITE_ZEROES}
_CHUNK: Final = 1 << 18


@dataclass(frozen=True, slots=True)
class NbdRequest:
    """A request of a client."""

    kind: int
    fua: bool
    cookie: int
    offset: int
    length: int


def request_untrusted(buf: bytes) -> NbdRequest:
    """The 28 bytes that a request begins with; raises :class:`BadPacket`."""
    if len(buf) != _REQUEST.size:
        raise BadPacket(f"a request of {len(buf)} bytes")
    magic, flags, kind, cookie, offset, length = _REQUEST.unpack(buf)
    if magic != _REQUEST_MAGIC:
        raise BadPacket(f"no NBD request: it begins with {magic:#x}")
    if kind in (READ, WRITE) and length > MOST:
        raise BadPacket(f"a request of {length} bytes; at most {MOST}")
    return NbdRequest(kind, bool(flags & FUA), cookie, offset, length)


def option_untrusted(buf: bytes) -> tuple[int, int]:
    """(option, bytes of its data) of the 16 bytes that an option begins with; raises :class:`BadPacket`."""
    if len(buf) != _OPTION.size:
        raise BadPacket(f"an option of {len(buf)} bytes")
    magic, option, length = _OPTION.unpack(buf)
    if magic != b"IHAVEOPT" or length > _LONGEST_OPTION:
        raise BadPacket(f"no NBD option: {magic!r}, {length} bytes")
    return option, length


@dataclass(slots=True)
class _UnderWay:
    """A request, and what there is of its answer."""

    request: NbdRequest
    left: int
    error: int
    parts: list[bytes]


class Export:
    """The namespace of ``initiator`` for one client, on ``connection``, from its first byte to its last."""

    def __init__(self, initiator: Initiator, connection: socket.socket) -> None:
        self._initiator = initiator
        self._connection = connection
        self._size = initiator.sectors * BLOCK
        granted = initiator.granted
        assert granted is not None
        self._most = granted.max_blocks
        self._flags_sent = False
        self._transmitting = False
        self._ending = False
        self._in = bytearray()
        self._out = bytearray(_HELLO)
        self._under_way: dict[BlockCall, tuple[_UnderWay, int]] = {}
        #: Requests that were answered.
        self.requests = 0

    def run(self, stopped: Callable[[], bool], look_s: float = 0.1) -> None:
        """Until the client goes, or ``stopped`` says so. Raises :class:`BadPacket` for one that speaks no NBD,
        OSError."""
        self._connection.setblocking(False)
        waiter = select.poll()
        waiter.register(self._initiator.fileno(), select.POLLIN)
        while not stopped():
            # A client that sends and never reads is not read from any more.
            events = (select.POLLOUT if self._out else 0) | (select.POLLIN if len(self._out) < MOST else 0)
            waiter.register(self._connection.fileno(), events)
            wake = self._initiator.next_wake()
            left_ns = look_s * 1e9 if wake is None else min(look_s * 1e9, max(0, wake - time.monotonic_ns()))
            ready = dict(waiter.poll(left_ns / 1e6))
            mask = ready.get(self._connection.fileno(), 0)
            if mask & ~select.POLLOUT and not self._receive():
                return
            self._initiator.poll()
            self._settle()
            if self._out and not self._send():
                return
            if self._ending and not self._out and not self._under_way:
                return

    def _receive(self) -> bool:
        """Take what the client has sent; False: it is gone."""
        try:
            data = self._connection.recv(_CHUNK)
        except BlockingIOError:
            return True
        self._in += data
        self._take()
        return bool(data)

    def _send(self) -> bool:
        try:
            del self._out[:self._connection.send(self._out)]
        except BlockingIOError:
            pass
        except (BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _take(self) -> None:
        """What is there as a whole."""
        while not self._ending:
            if not self._flags_sent:
                if len(self._in) < 4:
                    return
                if int.from_bytes(self._in[:4], "big") & ~3:
                    raise BadPacket("flags that NBD does not have")
                del self._in[:4]
                self._flags_sent = True
            elif not self._transmitting:
                if len(self._in) < _OPTION.size:
                    return
                option, length = option_untrusted(bytes(self._in[:_OPTION.size]))
                if len(self._in) < _OPTION.size + length:
                    return
                data = bytes(self._in[_OPTION.size:_OPTION.size + length])
                del self._in[:_OPTION.size + length]
                self._option(option, data)
            else:
                if len(self._in) < _REQUEST.size:
                    return
                request = request_untrusted(bytes(self._in[:_REQUEST.size]))
                whole = _REQUEST.size + (request.length if request.kind == WRITE else 0)
                if len(self._in) < whole:
                    return
                data = bytes(self._in[_REQUEST.size:whole])
                del self._in[:whole]
                self._begin(request, data)

    # -- handshake -----------------------------------------------------------------------------------------

    def _option(self, option: int, data: bytes) -> None:
        size_and_flags = self._size.to_bytes(8, "big") + _FLAGS.to_bytes(2, "big")
        if option == _EXPORT_NAME:
            self._out += size_and_flags
            self._transmitting = True
        elif option in (_INFO, _GO):
            blocks = b"".join(size.to_bytes(4, "big") for size in (BLOCK, BLOCK, MOST))
            self._answer(option, _OF_INFO, b"\0\0" + size_and_flags)
            self._answer(option, _OF_INFO, b"\0\3" + blocks)
            self._answer(option, _ACK)
            self._transmitting = option == _GO
        elif option == _LIST and not data:
            self._answer(option, _SERVER, bytes(4))
            self._answer(option, _ACK)
        elif option == _ABORT:
            self._answer(option, _ACK)
            self._ending = True
        else:
            self._answer(option, _UNSUPPORTED)

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._out += _ANSWER.pack(_ANSWER_MAGIC, option, kind, len(data)) + data

    # -- transmission --------------------------------------------------------------------------------------

    def _begin(self, request: NbdRequest, data: bytes) -> None:
        if request.kind == DISCONNECT:
            self._ending = True
            return
        if request.kind == FLUSH:
            self._commands(request, [BlockCall(Opcode.FLUSH)])
            return
        opcode = _KINDS.get(request.kind)
        first, odd = divmod(request.offset, BLOCK)
        blocks, rest = divmod(request.length, BLOCK)
        if opcode is None or odd or rest or request.offset + request.length > self._size:
            self._reply(request, errno.EINVAL)
            return
        self._commands(request, [
            BlockCall(opcode, at, some := min(self._most, first + blocks - at),
                      data[(at - first) * BLOCK:(at - first + some) * BLOCK], fua=request.fua)
            for at in range(first, first + blocks, self._most)])

    def _commands(self, request: NbdRequest, calls: list[BlockCall]) -> None:
        if not calls:
            self._reply(request, 0)
            return
        one = _UnderWay(request, len(calls), 0, [b""] * len(calls))
        for index, call in enumerate(calls):
            self._under_way[call] = one, index
            call.started = time.perf_counter_ns()
            self._initiator.begin(call)

    def _settle(self) -> None:
        """Answer what has finished."""
        finished = self._initiator.finished
        while finished:
            call = finished.popleft()
            assert isinstance(call, BlockCall)
            found = self._under_way.pop(call, None)
            if found is None:
                continue  # a client's before this one
            one, index = found
            if call.status == Status.SUCCESS:
                one.parts[index] = call.response or b""
            else:
                status = Status(call.status) if call.status is not None else None
                one.error = ERRNO.get(status, errno.EIO) if status is not None else errno.EIO
            one.left -= 1
            if not one.left:
                self._reply(one.request, one.error, b"".join(one.parts))

    def _reply(self, request: NbdRequest, error: int, data: bytes = b"") -> None:
        self.requests += 1
        self._out += _REPLY.pack(_REPLY_MAGIC, error, request.cookie)
        if request.kind == READ and not error:
            self._out += data
