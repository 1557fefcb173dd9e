"""The host's half of proxies where its kernel has no io_uring, and of exits: operations done by system calls.

What cannot be done at once waits here for its socket to be ready, by an epoll that is the caller's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from smtstack.rings.uring_host import MemoryUring
from smtstack.rings.uring_layout import (
    ACCEPT,
    ADDRESS_LEN,
    CLOSE,
    CONNECT,
    DATA_ONLY,
    FSYNC,
    LISTEN,
    LOCK,
    NAME,
    OPENAT,
    POLL,
    READ,
    READY,
    RECV,
    SEND,
    SHUTDOWN,
    SIZE,
    SOCKET,
    TRUNCATE,
    WRITE,
    Submission,
)

_BACKLOG: Final = 1024
#: struct sockaddr_in: family, port, address.
_ADDRESS: Final = struct.Struct("=H2s4s8x")
_IN, _OUT = select.EPOLLIN, select.EPOLLOUT
#: The operations that may have to wait, and for what.
_WAITS_FOR: Final = {RECV: _IN, ACCEPT: _IN, SEND: _OUT, CONNECT: _OUT}
#: How long a poll waits at most: nothing else is done meanwhile.
LONGEST_POLL_MS: Final = 100
#: What a file may be opened with; never across a symbolic link.
_OPEN: Final = os.O_RDWR | os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND

Done = Callable[[int], None]
#: Whose buffers, what, and who is told.
_Waiting = tuple[MemoryUring, Submission, Done]


def pack_address(ip: str, port: int) -> bytes:
    """A struct sockaddr_in. Raises OSError for what is no IPv4 address."""
    return _ADDRESS.pack(socket.AF_INET, port.to_bytes(2, "big"), socket.inet_aton(ip))


def unpack_address(data: bytes) -> tuple[str, int]:
    """IP and port, whatever the family is said to be."""
    _family, port, ip = _ADDRESS.unpack(data[:ADDRESS_LEN])
    return socket.inet_ntoa(ip), int.from_bytes(port, "big")


def is_allowed(path: Path, allowed: Sequence[Path]) -> bool:
    """Whether a path is one of these, or below one of these folders, with all symbolic links followed."""
    if not path.is_absolute():
        return False
    real = Path(os.path.realpath(path))
    return any(real == one or one in real.parents for one in (Path(os.path.realpath(one)) for one in allowed))


class Calls:
    """Does operations. ``allowed``: files and folders that may be opened."""

    def __init__(self, epoll: select.epoll, allowed: Sequence[Path]) -> None:
        self._epoll = epoll
        self._allowed = allowed
        #: By descriptor: what waits to read, and to write.
        self._waiting: dict[int, dict[int, deque[_Waiting]]] = {}
        self._do: dict[int, Callable[[MemoryUring, Submission], int]] = {
            READ: self._read, WRITE: self._write, FSYNC: self._fsync, RECV: self._recv, SEND: self._send,
            ACCEPT: self._accept, CONNECT: self._connect, SHUTDOWN: self._shutdown, CLOSE: self._close,
            OPENAT: self._openat, LISTEN: self._listen, SOCKET: self._socket, NAME: self._name, SIZE: self._size,
            TRUNCATE: self._truncate, LOCK: self._lock, POLL: self._poll}

    def begin(self, memory: MemoryUring, entry: Submission, done: Done) -> None:
        """Do it, now or when it can be done; ``memory`` has its buffer, and ``done`` is told what it came to."""
        direction = _WAITS_FOR.get(entry.code)
        waiting = self._waiting.get(entry.descriptor, {})
        if direction is not None and waiting.get(direction):
            waiting[direction].append((memory, entry, done))
            return
        result = self._try(memory, entry)
        if result != -errno.EAGAIN or direction is None or entry.flags & socket.MSG_DONTWAIT:
            done(result)
            return
        queues = self._waiting.setdefault(entry.descriptor, {_IN: deque(), _OUT: deque()})
        queues[direction].append((memory, entry, done))
        self._watch(entry.descriptor)

    def ready(self, descriptor: int, mask: int) -> bool:
        """The epoll says so of a descriptor; whether anything waited for it."""
        queues = self._waiting.get(descriptor)
        if queues is None:
            return False
        for direction, queue in queues.items():
            # Errors and ends are for both.
            if not mask & direction and not mask & ~(_IN | _OUT):
                continue
            while queue:
                memory, entry, done = queue[0]
                result = _connected(entry) if entry.code == CONNECT else self._try(memory, entry)
                if result == -errno.EAGAIN:
                    break
                queue.popleft()
                done(result)
        self._watch(descriptor)
        return True

    def _watch(self, descriptor: int) -> None:
        queues = self._waiting[descriptor]
        mask = sum(direction for direction, queue in queues.items() if queue)
        try:
            self._epoll.modify(descriptor, mask)
        except FileNotFoundError:
            self._epoll.register(descriptor, mask)
        if not mask:
            self._epoll.unregister(descriptor)
            del self._waiting[descriptor]

    def _try(self, memory: MemoryUring, entry: Submission) -> int:
        operation = self._do.get(entry.code)
        try:
            return operation(memory, entry) if operation is not None else -errno.EINVAL
        except OSError as e:
            return -(e.errno or errno.EIO)
        except (IndexError, ValueError, OverflowError):
            # What is asked for is in no buffer of ours, or no number for a call.
            return -errno.EFAULT

    def _read(self, memory: MemoryUring, entry: Submission) -> int:
        data = os.pread(entry.descriptor, entry.length, entry.offset)
        if data:
            memory.write(entry.address, data)
        return len(data)

    def _write(self, memory: MemoryUring, entry: Submission) -> int:
        return os.pwrite(entry.descriptor, memory.read(entry.address, entry.length), entry.offset)

    def _fsync(self, memory: MemoryUring, entry: Submission) -> int:
        (os.fdatasync if entry.flags & DATA_ONLY else os.fsync)(entry.descriptor)
        return 0

    def _recv(self, memory: MemoryUring, entry: Submission) -> int:
        with _Borrowed(entry.descriptor) as sock:
            data = sock.recv(entry.length, socket.MSG_DONTWAIT)
        if data:
            memory.write(entry.address, data)
        return len(data)

    def _send(self, memory: MemoryUring, entry: Submission) -> int:
        with _Borrowed(entry.descriptor) as sock:
            return sock.send(memory.read(entry.address, entry.length), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def _accept(self, memory: MemoryUring, entry: Submission) -> int:
        poll = select.poll()
        poll.register(entry.descriptor, select.POLLIN)
        if not poll.poll(0):
            return -errno.EAGAIN
        with _Borrowed(entry.descriptor) as listener:
            sock, (ip, port) = listener.accept()
        memory.write(entry.address, pack_address(ip, port))
        return sock.detach()

    def _connect(self, memory: MemoryUring, entry: Submission) -> int:
        ip, port = unpack_address(memory.read(entry.address, ADDRESS_LEN))
        with _Borrowed(entry.descriptor) as sock:
            sock.setblocking(False)
            result = sock.connect_ex((ip, port))
            if not result:
                sock.setblocking(True)
        return -errno.EAGAIN if result == errno.EINPROGRESS else -result

    def _shutdown(self, memory: MemoryUring, entry: Submission) -> int:
        with _Borrowed(entry.descriptor) as sock:
            sock.shutdown(entry.length)
        return 0

    def _close(self, memory: MemoryUring, entry: Submission) -> int:
        queues = self._waiting.pop(entry.descriptor, {})
        if queues:
            self._epoll.unregister(entry.descriptor)
        os.close(entry.descriptor)
        for queue in queues.values():
            for _memory, _entry, done in queue:
                done(-errno.ECANCELED)
        return 0

    # -- by exits only -------------------------------------------------------------------------------------

    def _openat(self, memory: MemoryUring, entry: Submission) -> int:
        path = Path(os.fsdecode(memory.read(entry.address, entry.length)))
        if not is_allowed(path, self._allowed):
            return -errno.EACCES
        return os.open(path, entry.flags & _OPEN | os.O_CLOEXEC | os.O_NOFOLLOW, entry.offset & 0o777)

    def _listen(self, memory: MemoryUring, entry: Submission) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Those that it accepts have it, too.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind(unpack_address(memory.read(entry.address, entry.length)))
            sock.listen(_BACKLOG)
            return sock.detach()

    def _socket(self, memory: MemoryUring, entry: Submission) -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind(unpack_address(memory.read(entry.address, entry.length)))
            return sock.detach()

    def _name(self, memory: MemoryUring, entry: Submission) -> int:
        with _Borrowed(entry.descriptor) as sock:
            memory.write(entry.address, pack_address(*sock.getsockname()))
        return 0

    def _size(self, memory: MemoryUring, entry: Submission) -> int:
        return os.fstat(entry.descriptor).st_size

    def _truncate(self, memory: MemoryUring, entry: Submission) -> int:
        os.ftruncate(entry.descriptor, entry.offset)
        return 0

    def _lock(self, memory: MemoryUring, entry: Submission) -> int:
        fcntl.flock(entry.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return 0

    def _poll(self, memory: MemoryUring, entry: Submission) -> int:
        poll = select.poll()
        for descriptor, events in READY.iter_unpack(memory.read(entry.address, entry.length)):
            poll.register(descriptor, events)
        ready = poll.poll(min(entry.offset, LONGEST_POLL_MS))
        memory.write(entry.address, b"".join(READY.pack(*each) for each in ready))
        return len(ready) * READY.size


def _connected(entry: Submission) -> int:
    with _Borrowed(entry.descriptor) as sock:
        result: int = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        sock.setblocking(True)
    return -result


class _Borrowed:
    """A socket object of a descriptor, which stays open."""

    __slots__ = ("_sock",)

    def __init__(self, descriptor: int) -> None:
        # With all arguments nothing is asked of the kernel.
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, descriptor)

    def __enter__(self) -> socket.socket:
        return self._sock

    def __exit__(self, *_exception: object) -> None:
        self._sock.detach()
