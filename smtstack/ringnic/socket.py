"""Frames over a ring, for a guarded process: what a packet socket is for others.

On its way nothing here makes a network system call, or asks a descriptor whether something came: packets are in
memory. To sleep it waits for a word in memory (futex); to have the monitor send, where that sleeps, it writes to
an eventfd. Both are counted.
"""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress
from typing import Final

from smtstack.errors import Unsupported
from smtstack.io.frame_socket import FrameSocket
from smtstack.io.neighbours import LIFETIME, PATIENCE
from smtstack.ringnic.bell import GUARDED_SLEEPS, LOST, MONITOR_SLEEPS, REFUSED, RESTARTS, Bell
from smtstack.rings.memory import SharedMemory
from smtstack.rings.steady import SteadyClock
from smtstack.rings.xsk import CertifiedXsk

#: How long to wait for a place in the transmit ring before a frame is given up, in seconds.
SEND_PATIENCE_S: Final = 0.1
_LOOK_S: Final = 0.0002
_ONE: Final = (1).to_bytes(8, "little")


class RingSocket(FrameSocket):
    """Made by :func:`smtstack.ringnic.client.open_ring`."""

    def __init__(self, interface: str, mac: bytes, memories: dict[str, SharedMemory], mappings: list[object],
                 xsk: CertifiedXsk, page: Bell, descriptors: dict[str, int], connection: socket.socket,
                 in_memory: bool = False) -> None:
        self.mac = mac
        self.send_drops = 0
        self.xsk = xsk
        self._interface = interface
        self.memories = memories
        self._mappings = mappings
        self._page = page
        self._words = page.words
        self._descriptors = descriptors
        self._bell = descriptors["bell"]
        self._life = descriptors["life"]
        #: The rings are not the kernel's.
        self._in_memory = in_memory
        #: Whoever serves us sees that we are gone when it is closed.
        self._connection = connection
        #: ip -> (MAC or None, when to ask again)
        self._known: dict[int, tuple[bytes | None, float]] = {}
        #: Time, as far as the host is to be believed.
        self.clock = SteadyClock(time.monotonic_ns)
        self._kicks = self._sleeps = 0
        self._closed = False

    def neighbour(self, ip: int) -> bytes | None:
        """MAC of the next hop towards ``ip``, as the host says. One that is wrong makes packets get lost."""
        mac, until = self._known.get(ip, (None, 0.0))
        if time.monotonic() < until:
            return mac
        mac = self._page.ask(ip, self._descriptors["question"], 2 * PATIENCE)
        self._known[ip] = (mac, time.monotonic() + (LIFETIME if mac else PATIENCE))
        return mac

    def watch(self, other: socket.socket) -> None:
        """Not here. Raises :class:`Unsupported`."""
        raise Unsupported("hosting=ring: a guarded process hears nothing but its ring: no workers that share a "
                          "port, and no session mode that asks DNS")

    def fileno(self) -> int:
        """Not here. Raises :class:`Unsupported`."""
        raise Unsupported("hosting=ring: a guarded process has no event loop, as it may wait for no descriptor")

    def receive(self, limit: int) -> list[bytes]:
        """The frames that wait, oldest first, at most ``limit``."""
        return self.xsk.receive(limit)

    def too_long(self) -> tuple[int, int]:
        """(how many IP packets longer than our MTU came, bytes of the longest): the host drops those."""
        return 0, 0

    def clear_error(self) -> None:
        """For when nothing came: raises :class:`Unsupported` if nobody serves us any more."""
        self._look_alive()

    def send(self, frames: list[bytes]) -> None:
        """Put frames into the transmit ring; waits a little for a full one, then counts a frame as lost."""
        at = self.xsk.send(frames)
        self._ring()
        if at == len(frames):
            return
        end = time.monotonic() + SEND_PATIENCE_S
        while at < len(frames):
            time.sleep(_LOOK_S)
            sent = self.xsk.send(frames, at)
            at += sent
            if sent:
                self._ring()
            elif time.monotonic() > end:
                self.send_drops += len(frames) - at
                self._look_alive()
                return

    def _ring(self) -> None:
        self._page.fence()
        if self._words[MONITOR_SLEEPS]:
            self._kicks += 1
            with suppress(BlockingIOError):  # rung often enough
                os.write(self._bell, _ONE)

    def wait(self, timeout_ns: int) -> None:
        """Sleep until the monitor says that a frame is there, or this long."""
        page, xsk = self._page, self.xsk
        xsk.tend(self.clock())
        self._words[GUARDED_SLEEPS] = 1
        page.fence()
        if not xsk.waiting():
            self._sleeps += 1
            page.sleep(timeout_ns)
        self._words[GUARDED_SLEEPS] = 0

    def _look_alive(self) -> None:
        try:
            ended = not os.read(self._life, 1)
        except BlockingIOError:
            return
        if ended:
            raise Unsupported(f"the ring of {self._interface} is dead: its control process and its monitor ended")

    def statistics(self) -> tuple[int, int]:
        """(frames received, frames that the host says it dropped)."""
        return self.xsk.received, self._words[LOST] if not self._closed else 0

    def more_counters(self) -> dict[str, int]:
        """What was refused of the host, and how often we slept or rang."""
        told = {} if self._closed else {"ring_monitor_restarts": self._words[RESTARTS],
                                        "ring_host_refused": self._words[REFUSED]}
        return {**self.xsk.counters(), "ring_refused": self.xsk.refused(), "ring_sleeps": self._sleeps,
                "ring_bells": self._kicks, "ring_clock_back": self.clock.turned_back,
                "ring_in_memory": int(self._in_memory), **told}

    def close(self) -> None:
        """Let go of the memory and of whoever serves us."""
        if self._closed:
            return
        self._closed = True
        self._connection.close()
        for memory in self.memories.values():
            memory.release()
        for mapping in self._mappings:
            mapping.close()  # type: ignore[attr-defined]
        self._page.close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)
