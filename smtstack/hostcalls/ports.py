"""UDP by each interface, under one contract: the kernel's socket, each call an exit, calls in a queue, or the
guarded process' own UDP/IP over a ring."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from smtstack.hostcalls.channel import HostProcess
from smtstack.hostcalls.frames import QueuedSocket
from smtstack.hostcalls.sockets import HEAD, KernelUdp, UdpWire
from smtstack.ringnic.client import open_ring
from smtstack.rings.layout import RingConfig
from smtstack.udp.stack import FIRST_PORT, UdpStack
from smtstack.udp.wire import PROTO_UDP

#: (address, port, data): whom it is for, or who sent it.
Message = tuple[int, int, bytes]
#: Of a queue of calls. The fill ring, of twice the entries, does not take all frames: some are left to send.
_QUEUE: Final = RingConfig(frames=4096, frame_size=2048, entries=1024)


class DatagramPort(ABC):
    """Datagrams of one address and port."""

    @abstractmethod
    def send(self, messages: list[Message]) -> int:
        """Send these; how many went as far as it is known."""

    @abstractmethod
    def receive(self, limit: int) -> list[Message]:
        """Datagrams that wait, oldest first, at most ``limit``."""

    @abstractmethod
    def wait(self, timeout_ns: int) -> None:
        """Until one is there, or so long."""

    @abstractmethod
    def counters(self) -> dict[str, int]:
        """What this interface counts."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


class NativeUdp(DatagramPort):
    """The kernel's socket, by system calls of our own."""

    def __init__(self, ip: int, port: int) -> None:
        self._sock = KernelUdp(ip, port)
        self._calls = 0

    def send(self, messages: list[Message]) -> int:
        """A system call for each."""
        sent = 0
        for address, port, data in messages:
            self._calls += 1
            try:
                self._sock.send(data, address, port)
            except OSError:
                continue
            sent += 1
        return sent

    def receive(self, limit: int) -> list[Message]:
        """A system call for each, and one that finds none."""
        got: list[Message] = []
        try:
            while len(got) < limit:
                self._calls += 1
                data, address, port = self._sock.receive(1 << 16)
                got.append((address, port, data))
        except OSError:
            pass
        return got

    def wait(self, timeout_ns: int) -> None:
        """By poll(2)."""
        self._calls += 1
        self._sock.wait(timeout_ns / 1e9)

    def counters(self) -> dict[str, int]:
        """System calls."""
        return {"system_calls": self._calls}

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class CalledUdp(DatagramPort):
    """The host's socket, each call an exit; ``exit_ns``: what leaving an enclave is said to cost beside."""

    def __init__(self, ip: int, port: int, exit_ns: int = 0) -> None:
        self._host = HostProcess(lambda: KernelUdp(ip, port), True, exit_ns)
        self._calls = self._host.calls

    def send(self, messages: list[Message]) -> int:
        """An exit for each."""
        sent = 0
        for address, port, data in messages:
            try:
                self._calls.send(data, address, port)
            except OSError:
                continue
            sent += 1
        return sent

    def receive(self, limit: int) -> list[Message]:
        """An exit for each, and one that finds none."""
        got: list[Message] = []
        while len(got) < limit and (one := self._calls.receive()) is not None:
            got.append((one[1], one[2], one[0]))
        return got

    def wait(self, timeout_ns: int) -> None:
        """An exit."""
        self._calls.wait(timeout_ns)

    def counters(self) -> dict[str, int]:
        """Exits, and results that were refused."""
        return self._calls.counters()

    def close(self) -> None:
        """End the host's process."""
        self._host.close()


class QueuedUdp(DatagramPort):
    """The host's socket, by a queue of calls that another process works off."""

    def __init__(self, ip: int, port: int) -> None:
        self._socket = QueuedSocket(bytes(6), lambda: UdpWire(ip, port), lambda _ip: None, _QUEUE)

    def send(self, messages: list[Message]) -> int:
        """Into the queue."""
        self._socket.send([HEAD.pack(address, port) + data for address, port, data in messages])
        return len(messages)

    def receive(self, limit: int) -> list[Message]:
        """What the host says that came; too short for a record is dropped."""
        return [(*HEAD.unpack_from(record), record[HEAD.size:]) for record in self._socket.receive(limit)
                if len(record) >= HEAD.size]

    def wait(self, timeout_ns: int) -> None:
        """Until the host wakes us."""
        self._socket.wait(timeout_ns)

    def counters(self) -> dict[str, int]:
        """What the queue's rings count."""
        return self._socket.more_counters()

    def close(self) -> None:
        """End the host's process."""
        self._socket.close()


class RingUdp(DatagramPort):
    """Our own UDP/IP over a ring on ``interface``; ``certified=False`` believes the host, ``zero_copy`` hands out
    the host's memory (see :meth:`receive`)."""

    def __init__(self, interface: str, ip: int, port: int, mtu: int, certified: bool = True,
                 zero_copy: bool = False, neighbours: Callable[[int], bytes | None] | None = None) -> None:
        self._socket = open_ring(interface, ip, FIRST_PORT, PROTO_UDP, certified)
        self._stack = UdpStack(ip, port, self._socket.mac, mtu, neighbours or self._socket.neighbour,
                               time.time_ns() & 0xFFFF)
        self._zero_copy = zero_copy

    def send(self, messages: list[Message]) -> int:
        """Into the transmit ring; fragments where they must be."""
        make = self._stack.send
        self._socket.send([frame for address, port, data in messages for frame in make(address, port, data)])
        return len(messages)

    def receive(self, limit: int) -> list[Message]:
        """Datagrams that came. With ``zero_copy`` packets are parsed where they lie, in memory that the host may
        change meanwhile: a frame is ours again only when its datagram has been made."""
        take, now = self._stack.receive, self._socket.clock()
        if self._zero_copy:
            return [(got.src, got.sport, got.data) for got in self._socket.xsk.receive_in_place(
                limit, lambda frame: take(frame, now)) if got is not None]
        return [(got.src, got.sport, got.data) for frame in self._socket.receive(limit)
                if (got := take(frame, now)) is not None]

    def wait(self, timeout_ns: int) -> None:
        """Until the monitor wakes us."""
        self._socket.wait(timeout_ns)

    def counters(self) -> dict[str, int]:
        """What UDP and the ring count."""
        return {**self._stack.counters(), **self._socket.more_counters()}

    def close(self) -> None:
        """Give the ring back."""
        self._socket.close()

