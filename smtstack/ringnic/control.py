"""The control process of an interface with hosting ``ring``::

    python -m smtstack.ringnic.control DESCRIPTOR INTERFACE PID

It gives the ring to a guarded process that asks (a local socket in the interface's network namespace,
:mod:`smtstack.ringnic.messages`): makes the memory and the AF_XDP socket, loads the program that splits the
traffic, forks the monitor, starts another if that dies, and answers where neighbours are. It is part of the
untrusted host. Ends when nobody holds the other end of DESCRIPTOR any more.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from smtstack.errors import ConfigError, SmtError
from smtstack.io import xdp
from smtstack.io.memory import sealed_memory
from smtstack.io.namespaces import CLONE_NEWNET
from smtstack.io.neighbours import Neighbours
from smtstack.io.packet_socket import claim_port, interface_mtu
from smtstack.ringnic import messages
from smtstack.ringnic.bell import RESTARTS, SIZE, Bell
from smtstack.ringnic.monitor import Monitor, become
from smtstack.rings.layout import ENTRY_LEN, RINGS, UMEM, RingConfig

_QUEUE: Final = 16
#: A monitor that did not live so long, in seconds, is not started again.
_LEAST_LIFE_S: Final = 0.2
_NAME: Final = "ring-control"
_SET_NAME: Final = 15
_SIOCGIFHWADDR: Final = 0x8927


class Ring:
    """A guarded process' ring: all that goes when it goes."""

    def __init__(self, interface: str, opening: messages.Opening, config: RingConfig) -> None:
        """Raises :class:`SmtError`."""
        self._config = config
        self._neighbours = Neighbours(interface)
        with ExitStack() as undo:
            # Other sockets of ours on the interface are not to have the port, too.
            undo.enter_context(claim_port(interface, opening.ip, opening.port, opening.protocol))
            umem, self._umem = sealed_memory("smtnet-umem", config.umem_bytes)
            undo.callback(os.close, umem)
            page, mapping = sealed_memory("smtnet-page", SIZE)
            undo.callback(os.close, page)
            self._page = Bell(mapping)
            undo.callback(self._page.close)
            self._bell, self.question = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK) for _ in range(2))
            undo.callback(os.close, self._bell)
            undo.callback(os.close, self.question)
            self._socket = xdp.XdpSocket(interface, self._umem, config)
            undo.callback(self._socket.close)
            program = xdp.XdpProgram(interface, self._socket, opening.ip, opening.port, opening.protocol)
            undo.callback(program.close)
            # Whoever reads from it sees its end when we and the monitor are gone.
            life, self._alive = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            undo.callback(os.close, life)
            undo.callback(os.close, self._alive)
            self._program = program
            self.descriptors = [self._socket.fileno(), umem, page, self._bell, self.question, life]
            self.monitor = -1
            self.watch = -1
            self.start_monitor()
            undo.callback(self._end_monitor)
            self._undo = undo.pop_all()

    def start_monitor(self) -> None:
        """Fork it. What it does not need it does not keep."""
        ours = os.getpid()
        self._started = time.monotonic()
        self.monitor = os.fork()
        if self.monitor:
            self.watch = os.pidfd_open(self.monitor)
            return
        code = 1
        try:
            become(ours)
            self._program.close()
            with suppress(OSError):
                Monitor(xdp.open_again(self._socket.fileno()), self._config, self._page, self._bell).run()
        finally:
            os._exit(code)

    def restart_monitor(self) -> bool:
        """The monitor ended: start another one. False: it ended as soon as it had begun, as where the interface is
        gone; there is none now."""
        self._reap()
        self.monitor = -1
        now = time.monotonic()
        if now - self._started < _LEAST_LIFE_S:
            return False
        self._page.words[RESTARTS] = (self._page.words[RESTARTS] + 1) & 0xFFFFFFFF
        self.start_monitor()
        return True

    def answer(self) -> None:
        """Say where the neighbour is that the guarded process asks for."""
        with suppress(BlockingIOError):
            os.read(self.question, 8)
        address = self._page.question()
        if address is not None:
            self._page.answer(self._neighbours(address))

    def describe(self) -> list[dict[str, object]]:
        """The rings as the kernel says that they are."""
        with xdp.open_again(os.dup(self._socket.fileno())) as sock:
            offsets = xdp.offsets(sock)
        return [{"name": ring, "entries": self._config.ring_entries(ring), **offsets[ring],
                 "length": offsets[ring]["descriptors"] + self._config.ring_entries(ring) * ENTRY_LEN[ring]}
                for ring in RINGS]

    def _reap(self) -> None:
        os.waitpid(self.monitor, 0)
        os.close(self.watch)

    def _end_monitor(self) -> None:
        if self.monitor < 0:
            return
        with suppress(ProcessLookupError):
            os.kill(self.monitor, signal.SIGKILL)
        self._reap()

    def close(self) -> None:
        """End the monitor, let the packets go to the kernel again, give all back."""
        self._undo.close()


@dataclass(slots=True)
class _Guest:
    """A connection, and the ring it was given."""

    connection: socket.socket
    ring: Ring | None = None


class Control:
    """Serves the guarded processes of one interface."""

    def __init__(self, interface: str, starter: socket.socket, config: RingConfig | None = None) -> None:
        self._interface = interface
        self._config = config or RingConfig()
        self._starter = starter
        self._epoll = select.epoll()
        self._guests: dict[int, _Guest] = {}
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(messages.address(interface))
        except OSError as e:
            raise ConfigError(f"another process controls the ring of {interface}: {e.strerror}") from None
        self._listener.listen(_QUEUE)
        mtu = interface_mtu(interface)
        if mtu > xdp.LARGEST_MTU:
            raise ConfigError(f"hosting=ring: the MTU of {interface} is {mtu}; at most {xdp.LARGEST_MTU}")
        for readable in (self._listener, starter):
            self._epoll.register(readable, select.EPOLLIN)

    def run(self) -> None:
        """Until whoever started us is gone."""
        while True:
            for descriptor, _events in self._epoll.poll():
                if descriptor == self._starter.fileno():
                    return
                if descriptor == self._listener.fileno():
                    self._accept()
                elif descriptor in self._guests:
                    self._hear(self._guests[descriptor])
                else:
                    self._serve(descriptor)

    def _accept(self) -> None:
        connection, _address = self._listener.accept()
        uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        if uid not in (0, os.geteuid()):
            connection.close()
            return
        self._guests[connection.fileno()] = _Guest(connection)
        self._epoll.register(connection, select.EPOLLIN)

    def _hear(self, guest: _Guest) -> None:
        try:
            message = guest.connection.recv(messages.LONGEST)
        except OSError:
            message = b""
        if not message:
            self._forget(guest)
            return
        try:
            if guest.ring is not None:
                raise ConfigError("one ring each")
            guest.ring = ring = Ring(self._interface, messages.Opening.read_untrusted(message), self._config)
            for watched in (ring.watch, ring.question):
                self._epoll.register(watched, select.EPOLLIN)
            answer = json.dumps({
                "mac": _mac(self._interface).hex(), "frame_size": self._config.frame_size,
                "frames": self._config.frames, "entries": self._config.entries, "rings": ring.describe(),
                UMEM: self._config.umem_bytes}).encode()
            with suppress(OSError):  # it went away: the next recv says so
                socket.send_fds(guest.connection, [answer], ring.descriptors)
        except SmtError as e:
            with suppress(OSError):
                guest.connection.send(messages.refusal(e))

    def _serve(self, descriptor: int) -> None:
        for guest in self._guests.values():
            ring = guest.ring
            if ring is not None and descriptor == ring.question:
                ring.answer()
            elif ring is not None and descriptor == ring.watch:
                self._epoll.unregister(descriptor)
                if ring.restart_monitor():
                    self._epoll.register(ring.watch, select.EPOLLIN)
                else:
                    self._epoll.unregister(ring.question)
                    ring.close()
                    guest.ring = None

    def _forget(self, guest: _Guest) -> None:
        del self._guests[guest.connection.fileno()]
        self._epoll.unregister(guest.connection)
        guest.connection.close()
        if guest.ring is not None:
            for watched in (guest.ring.watch, guest.ring.question):
                self._epoll.unregister(watched)
            guest.ring.close()

    def close(self) -> None:
        """Nobody has a ring any more."""
        for guest in list(self._guests.values()):
            self._forget(guest)
        self._listener.close()
        self._epoll.close()


def _mac(interface: str) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        answer = fcntl.ioctl(s, _SIOCGIFHWADDR, struct.pack("16s24x", interface.encode()))
        return bytes(answer[18:24])


def main(descriptor: int, interface: str, pid: int) -> None:
    """Serve until the other end of ``descriptor`` is closed; says there when it is ready, or why not. ``pid``: in
    whose network namespace the interface is; 0: here."""
    ctypes.CDLL(None).prctl(_SET_NAME, _NAME.encode(), 0, 0, 0)
    with socket.socket(fileno=descriptor) as starter:
        try:
            if pid:
                with open(f"/proc/{pid}/ns/net", "rb") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET):
                        raise ConfigError(f"process {pid}: {os.strerror(ctypes.get_errno())}")
            control = Control(interface, starter)
        except SmtError as e:
            starter.send(messages.refusal(e))
            return
        starter.send(b"{}")
        try:
            control.run()
        finally:
            control.close()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
