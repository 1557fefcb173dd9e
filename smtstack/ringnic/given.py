"""What the control process gives to one guarded process: a ring, and a monitor behind it.

The ring is the kernel's (AF_XDP) for who comes first. An interface's queue has one; who comes later, or where the
kernel or the interface has none, gets rings in memory laid out the same way, whose host is the monitor itself.
"""

from __future__ import annotations

import os
import signal
import time
from abc import abstractmethod
from contextlib import ExitStack, suppress
from typing import Final

from smtstack.errors import SmtError
from smtstack.io import xdp
from smtstack.io.memory import sealed_memory
from smtstack.io.neighbours import Neighbours
from smtstack.io.packet_socket import PacketSocket, claim_port, interface_mtu
from smtstack.ringnic.bell import RESTARTS, SIZE, Bell
from smtstack.ringnic.messages import KERNEL, MEMORY, Opening, places
from smtstack.ringnic.monitor import MemoryMonitor, Monitor, become
from smtstack.rings.host import MemoryHost
from smtstack.rings.layout import ENTRY_LEN, RINGS, UMEM, RingConfig
from smtstack.rings.memory import SharedMemory
from smtstack.udp.wire import PROTO_UDP

#: A monitor that did not live so long, in seconds, is not started again.
_LEAST_LIFE_S: Final = 0.2


class Ring:
    """A guarded process' ring: all that goes when it goes. ``descriptors``: those of ``messages.DESCRIPTORS``."""

    BACKING: str

    def __init__(self, interface: str, opening: Opening, config: RingConfig) -> None:
        """Raises :class:`SmtError`."""
        self._interface = interface
        self._opening = opening
        self._config = config
        self._neighbours = Neighbours(interface)
        self.monitor = self.watch = -1
        with ExitStack() as undo:
            umem, self._umem = sealed_memory("smtnet-umem", config.umem_bytes)
            undo.callback(os.close, umem)
            page, mapping = sealed_memory("smtnet-page", SIZE)
            undo.callback(os.close, page)
            self._page = Bell(mapping)
            undo.callback(self._page.close)
            self._bell, self.question = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
            undo.callback(os.close, self._bell)
            undo.callback(os.close, self.question)
            # Whoever reads from it sees its end when we and the monitor are gone.
            life, alive = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, life)
            undo.callback(os.close, alive)
            self.descriptors = [self._open(undo), umem, page, self._bell, self.question, life]
            self.start_monitor()
            undo.callback(self._end_monitor)
            self._undo = undo.pop_all()

    @abstractmethod
    def _open(self, undo: ExitStack) -> int:
        """Make the rings; the descriptor by which to map them. What is to be closed goes to ``undo``."""

    @abstractmethod
    def describe(self) -> list[dict[str, object]]:
        """The rings, as a guarded process is told of them."""

    def start_monitor(self) -> None:
        """Fork it."""
        self._started = time.monotonic()
        ours = os.getpid()
        self.monitor = os.fork()
        if self.monitor:
            self.watch = os.pidfd_open(self.monitor)
            return
        try:
            become(ours)
            with suppress(OSError, SmtError):
                self._serve()
        finally:
            os._exit(1)

    @abstractmethod
    def _serve(self) -> None:
        """In the monitor: until it ends. Raises OSError, SmtError."""

    def restart_monitor(self) -> bool:
        """The monitor ended: start another one. False: it ended as soon as it had begun, as where the interface is
        gone; there is none now."""
        self._reap()
        if time.monotonic() - self._started < _LEAST_LIFE_S:
            return False
        self._page.words[RESTARTS] = (self._page.words[RESTARTS] + 1) & 0xFFFFFFFF
        try:
            self.start_monitor()
        except SmtError:
            return False
        return True

    def answer(self) -> None:
        """Say where the neighbour is that the guarded process asks for."""
        with suppress(BlockingIOError):
            os.read(self.question, 8)
        address = self._page.question()
        if address is not None:
            self._page.answer(self._neighbours(address))

    def _reap(self) -> None:
        os.waitpid(self.monitor, 0)
        os.close(self.watch)
        self.monitor = -1

    def _end_monitor(self) -> None:
        if self.monitor < 0:
            return
        with suppress(ProcessLookupError):
            os.kill(self.monitor, signal.SIGKILL)
        self._reap()

    def close(self) -> None:
        """End the monitor, let the packets go to the kernel again, give all back."""
        self._undo.close()


class KernelRing(Ring):
    """An AF_XDP socket, and the program that splits the interface's traffic."""

    BACKING = KERNEL

    def _open(self, undo: ExitStack) -> int:
        opening = self._opening
        # Other sockets of ours on the interface are not to have the port, too.
        undo.enter_context(claim_port(self._interface, opening.ip, opening.port, opening.protocol))
        self._socket = xdp.XdpSocket(self._interface, self._umem, self._config)
        undo.callback(self._socket.close)
        self._program = xdp.XdpProgram(self._interface, self._socket, opening.ip, opening.port, opening.protocol)
        undo.callback(self._program.close)
        return self._socket.fileno()

    def describe(self) -> list[dict[str, object]]:
        """The rings, as the kernel says that they are."""
        with xdp.open_again(os.dup(self._socket.fileno())) as sock:
            offsets = xdp.offsets(sock)
        return [{"name": ring, "entries": self._config.ring_entries(ring), **offsets[ring],
                 "length": offsets[ring]["descriptors"] + self._config.ring_entries(ring) * ENTRY_LEN[ring]}
                for ring in RINGS]

    def _serve(self) -> None:
        # Ours is a copy: it is to go with the control process.
        self._program.close()
        Monitor(xdp.open_again(self._socket.fileno()), self._config, self._page, self._bell).run()


class MemoryRing(Ring):
    """Rings in memory, and a packet socket."""

    BACKING = MEMORY

    def _open(self, undo: ExitStack) -> int:
        where, size = places(self._config)
        descriptor, mapping = sealed_memory("smtnet-rings", size)
        undo.callback(os.close, descriptor)
        view = memoryview(mapping)
        self._memories = {UMEM: SharedMemory(UMEM, self._umem), **{
            ring: SharedMemory(ring, view[at:at + self._config.ring_bytes(ring)]) for ring, at in where.items()}}
        return descriptor

    def describe(self) -> list[dict[str, object]]:
        """The rings, which are as the kernel's would be."""
        return [{"name": ring, "entries": self._config.ring_entries(ring), **xdp.EXPECTED_OFFSETS,
                 "length": self._config.ring_bytes(ring)} for ring in RINGS]

    def start_monitor(self) -> None:
        """Fork it, with a new socket: where the old one's was, the one before it knew."""
        opening = self._opening
        self._packets = PacketSocket(self._interface, opening.ip, opening.port, opening.protocol,
                                     interface_mtu(self._interface))
        try:
            super().start_monitor()
        finally:
            # The monitor has it now.
            self._packets.close()

    def _serve(self) -> None:
        MemoryMonitor(self._packets, MemoryHost(self._memories, self._config), self._page, self._bell).run()


def give(interface: str, opening: Opening, config: RingConfig) -> Ring:
    """A ring for an endpoint on ``interface``: the kernel's if there is one; for UDP no other one will do. Raises
    :class:`SmtError`."""
    try:
        return KernelRing(interface, opening, config)
    except SmtError:
        if opening.protocol == PROTO_UDP:
            # A packet socket has no state by which fragments would follow, and the kernel would answer, too.
            raise
        # Where the reason is another one, as a port that is taken, it holds here, too.
        return MemoryRing(interface, opening, config)
