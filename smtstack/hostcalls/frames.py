"""Frames for SMT by calls of the host, each an exit, or by a queue of calls: what stands beside a ring in figures,
and nowhere else."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any, Final

from smtstack.errors import SmtError, Unsupported
from smtstack.hostcalls.channel import HostProcess, become, end
from smtstack.hostcalls.sockets import KernelFrames, OnlyNeighbours
from smtstack.io.frame_socket import FrameSocket
from smtstack.io.memory import sealed_memory
from smtstack.io.packet_socket import PacketSocket, interface_mac
from smtstack.ringnic.bell import SIZE, Bell
from smtstack.ringnic.messages import places
from smtstack.ringnic.monitor import MemoryMonitor
from smtstack.ringnic.socket import RingSocket
from smtstack.rings.host import MemoryHost
from smtstack.rings.layout import RINGS, UMEM, RingConfig
from smtstack.rings.memory import SharedMemory
from smtstack.rings.xsk import CertifiedXsk

_NAME: Final = "host-queue"


class CalledFrames(FrameSocket):
    """Frames of an endpoint, each by a call to the host. Ends the host's process when it is closed."""

    def __init__(self, interface: str, ip: int, port: int, protocol: int, mtu: int, exit_ns: int = 0) -> None:
        self.mac = interface_mac(interface)
        self.send_drops = 0
        self._host = HostProcess(
            lambda: KernelFrames(PacketSocket(interface, ip, port, protocol, mtu), interface), False, exit_ns)
        self._calls = self._host.calls
        self._received = 0
        self._known: dict[int, bytes | None] = {}

    def neighbour(self, ip: int) -> bytes | None:
        """MAC of the next hop, as the host says, asked once."""
        if ip not in self._known:
            self._known[ip] = self._calls.neighbour(ip)
        return self._known[ip]

    def watch(self, _other: socket.socket) -> None:
        """Not here. Raises :class:`Unsupported`."""
        raise Unsupported("frames by host calls: nothing else can be waited for")

    def fileno(self) -> int:
        """Not here. Raises :class:`Unsupported`."""
        raise Unsupported("frames by host calls have no descriptor")

    def receive(self, limit: int) -> list[bytes]:
        """A call for each, and one more that finds none."""
        frames: list[bytes] = []
        while len(frames) < limit and (got := self._calls.receive()) is not None:
            frames.append(got[0])
        self._received += len(frames)
        return frames

    def too_long(self) -> tuple[int, int]:
        """Not known."""
        return 0, 0

    def clear_error(self) -> None:
        """Nothing to clear."""

    def send(self, frames: list[bytes]) -> None:
        """A call for each."""
        for frame in frames:
            try:
                self._calls.send(frame)
            except OSError:
                self.send_drops += 1

    def wait(self, timeout_ns: int) -> None:
        """A call."""
        self._calls.wait(timeout_ns)

    def statistics(self) -> tuple[int, int]:
        """(frames received, 0): what the host drops it need not say."""
        return self._received, 0

    def more_counters(self) -> dict[str, int]:
        """Calls, and what was refused of their results."""
        return self._calls.counters()

    def close(self) -> None:
        """End the host's process."""
        self._host.close()


class QueuedSocket(RingSocket):
    """Rings in memory behind which a process of ours is the host: a queue of calls, which nobody waits for.

    ``make``: the host's wire, made in its process; ``mac``: of the interface.
    """

    def __init__(self, mac: bytes, make: Callable[[], Any], neighbours: Callable[[int], bytes | None],
                 config: RingConfig | None = None) -> None:
        config = config or RingConfig()
        with ExitStack() as undo:
            where, size = places(config)
            rings, mapping = sealed_memory("smtnet-rings", size)
            frames, umem = sealed_memory("smtnet-umem", config.umem_bytes)
            shared, page = sealed_memory("smtnet-page", SIZE)
            for descriptor in (rings, frames, shared):
                os.close(descriptor)
            views: Mapping[str, Any] = {UMEM: umem, **{
                ring: memoryview(mapping)[at:at + config.ring_bytes(ring)] for ring, at in where.items()}}
            bell, question = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
            life, alive = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, life)
            ours = os.getpid()
            self.host = os.fork()
            if not self.host:
                try:
                    become(ours, _NAME)
                    with suppress(OSError, SmtError):
                        host = MemoryHost({name: SharedMemory(name, views[name]) for name in (UMEM, *RINGS)},
                                          config)
                        MemoryMonitor(make(), host, Bell(page), bell).run()
                finally:
                    os._exit(1)
            os.close(alive)
            undo.callback(end, self.host)
            memories = {name: SharedMemory(name, view) for name, view in views.items()}
            near, far = socket.socketpair()
            far.close()
            self._next_hop = neighbours
            super().__init__("queue", mac, memories, [], CertifiedXsk(memories, config), Bell(page),
                             {"bell": bell, "question": question, "life": life}, near, True)
            undo.pop_all()
        self._views = [view for view in views.values() if isinstance(view, memoryview)]
        self._memory_of_all = [mapping, umem]

    def neighbour(self, ip: int) -> bytes | None:
        """MAC of the next hop, as the host said when it was asked first."""
        return self._next_hop(ip)

    def close(self) -> None:
        """End the host's process, too."""
        if self.host:
            super().close()
            end(self.host)
            self.host = 0
            for view in self._views:
                view.release()
            for mapping in self._memory_of_all:
                mapping.close()


class QueuedFrames(QueuedSocket):
    """Frames of an endpoint, by a queue of calls. Where neighbours are the host is asked by a call each."""

    def __init__(self, interface: str, ip: int, port: int, protocol: int, mtu: int, exit_ns: int = 0) -> None:
        self._asked = HostProcess(lambda: OnlyNeighbours(interface), False, exit_ns)
        known: dict[int, bytes | None] = {}

        def neighbour(address: int) -> bytes | None:
            if address not in known:
                known[address] = self._asked.calls.neighbour(address)
            return known[address]

        try:
            super().__init__(interface_mac(interface), lambda: PacketSocket(interface, ip, port, protocol, mtu),
                             neighbour)
        except BaseException:
            self._asked.close()
            raise

    def close(self) -> None:
        """End the host's processes."""
        super().close()
        self._asked.close()
