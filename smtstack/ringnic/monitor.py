"""The monitor: the process that makes the system calls which a guarded one may not.

It has the socket and the page, and nothing secret: packets are sealed before they get where it can see them. It
asks the kernel to send what is in the transmit ring, and wakes the guarded process when something has come. One
that is lazy, or stopped, makes packets late; the control process starts another if it dies.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import signal
import socket
import time
from typing import Final

from smtstack.io import xdp
from smtstack.io.packet_socket import PacketSocket
from smtstack.ringnic.bell import GUARDED_SLEEPS, LOST, MONITOR_SLEEPS, REFUSED, Bell
from smtstack.rings.host import MemoryHost
from smtstack.rings.layout import CONSUMER_AT, PRODUCER_AT, RX, TX, RingConfig

# Linux <linux/prctl.h>
_SET_DEATH_SIGNAL, _SET_NAME = 1, 15
#: What it is called in ps.
NAME: Final = "ring-monitor"
#: It sleeps no longer than this, in seconds; and where the kernel could not send just now.
_LONGEST_S: Final = 1.0
_AGAIN_S: Final = 0.001
#: Packets taken off the wire at a time.
_BATCH: Final = 64
#: Of the kernel's statistics, how old they may be.
_STATISTICS_NS: Final = 10_000_000
_NOW_AND_THEN: Final = (errno.EAGAIN, errno.EBUSY, errno.ENOBUFS, errno.ENETDOWN)


class Monitor:
    """Serves one guarded process. ``bell``: an eventfd by which that wakes us."""

    def __init__(self, sock: socket.socket, config: RingConfig, page: Bell, bell: int) -> None:
        self._sock = sock
        self._page = page
        self._bell = bell
        self._maps = [xdp.map_ring(sock.fileno(), ring, config.ring_bytes(ring)) for ring in (TX, RX)]
        self._tx, self._rx = (_words(mapping) for mapping in self._maps)
        self._epoll = select.epoll()
        # By edges: what has come once and is not taken wakes nobody again.
        self._epoll.register(sock, select.EPOLLIN | select.EPOLLET)
        self._epoll.register(bell, select.EPOLLIN)
        self._statistics_at = 0

    def run(self) -> None:
        """Until somebody ends the process. Raises OSError if the interface is gone."""
        words, fence = self._page.words, self._page.fence
        while True:
            stuck = self._work()
            words[MONITOR_SLEEPS] = 1
            fence()
            if self._pending() and not stuck:
                words[MONITOR_SLEEPS] = 0
                continue
            self._sleep(_AGAIN_S if stuck else _LONGEST_S)
            words[MONITOR_SLEEPS] = 0

    def _pending(self) -> bool:
        tx, rx, words = self._tx, self._rx, self._page.words
        return (tx[PRODUCER_AT >> 2] != tx[CONSUMER_AT >> 2]
                or (words[GUARDED_SLEEPS] != 0 and rx[PRODUCER_AT >> 2] != rx[CONSUMER_AT >> 2]))

    def _work(self) -> bool:
        """Send, and wake whoever sleeps although something came; whether packets stay that cannot go now."""
        tx, rx = self._tx, self._rx
        stuck = False
        while not stuck and tx[PRODUCER_AT >> 2] != (before := tx[CONSUMER_AT >> 2]):
            try:
                self._sock.send(b"", socket.MSG_DONTWAIT)
            except OSError as e:
                if e.errno not in _NOW_AND_THEN:
                    raise
            # Some at a time, of which it says EAGAIN, too. If none went, it is no use to ask again at once.
            stuck = tx[CONSUMER_AT >> 2] == before
        if self._page.words[GUARDED_SLEEPS] and rx[PRODUCER_AT >> 2] != rx[CONSUMER_AT >> 2]:
            self._page.wake()
        return stuck

    def _sleep(self, timeout_s: float) -> None:
        if (now := time.monotonic_ns()) >= self._statistics_at:
            self._statistics_at = now + _STATISTICS_NS
            lost, refused = xdp.statistics(self._sock)
            self._page.words[LOST], self._page.words[REFUSED] = lost & 0xFFFFFFFF, refused & 0xFFFFFFFF
        for descriptor, _events in self._epoll.poll(timeout_s):
            if descriptor == self._bell:
                os.read(self._bell, 8)


class MemoryMonitor:
    """Serves one guarded process whose rings are in memory: is their host, with a packet socket for the wire."""

    def __init__(self, packets: PacketSocket, host: MemoryHost, page: Bell, bell: int) -> None:
        self._packets = packets
        self._host = host
        self._page = page
        self._bell = bell
        self._epoll = select.epoll()
        self._epoll.register(packets, select.EPOLLIN)
        self._epoll.register(bell, select.EPOLLIN)

    def run(self) -> None:
        """Until somebody ends the process. Raises SmtError if the interface is gone."""
        page, host, packets = self._page, self._host, self._packets
        host.resume()
        while True:
            sent = host.collect()
            if sent:
                packets.send(sent)
            came = packets.receive(_BATCH)
            if came:
                host.deliver(came)
                page.fence()
                if page.words[GUARDED_SLEEPS]:
                    page.wake()
            if not sent and not came:
                self._sleep()

    def _sleep(self) -> None:
        words = self._page.words
        words[LOST] = (self._host.dropped + self._packets.statistics()[1] + self._packets.send_drops) & 0xFFFFFFFF
        words[MONITOR_SLEEPS] = 1
        self._page.fence()
        if not self._host.has_work():
            for descriptor, _events in self._epoll.poll(_LONGEST_S):
                if descriptor == self._bell:
                    os.read(self._bell, 8)
        words[MONITOR_SLEEPS] = 0


def _words(mapping: mmap.mmap) -> memoryview:
    view = memoryview(mapping)
    return view[:len(view) & ~3].cast("I")


def become(parent: int) -> None:
    """Make this forked process a monitor by name, which ends with its parent."""
    libc = ctypes.CDLL(None)
    libc.prctl(_SET_NAME, NAME.encode(), 0, 0, 0)
    libc.prctl(_SET_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)
