"""The control process of an interface with hosting ``ring``::

    python -m smtstack.ringnic.control DESCRIPTOR INTERFACE PID

It gives a ring to each guarded process that asks (a local socket in the interface's network namespace,
:mod:`smtstack.ringnic.messages`; :mod:`smtstack.ringnic.given`), has another monitor started if one dies, and
answers where neighbours are. It is part of the untrusted host. Ends when nobody holds the other end of DESCRIPTOR
any more.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from smtstack.errors import ConfigError, SmtError
from smtstack.io import xdp
from smtstack.io.namespaces import CLONE_NEWNET
from smtstack.io.packet_socket import interface_mac, interface_mtu
from smtstack.ringnic import messages
from smtstack.ringnic.given import Ring, give
from smtstack.rings.layout import RingConfig

_QUEUE: Final = 16
_NAME: Final = "ring-control"
_SET_NAME: Final = 15


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
                raise ConfigError("a guarded process has one ring")
            # Of one that has ended, the end may be heard later than who comes after it.
            self._forget_ended(guest)
            guest.ring = ring = give(self._interface, messages.Opening.read_untrusted(message), self._config)
            for watched in (ring.watch, ring.question):
                self._epoll.register(watched, select.EPOLLIN)
            answer = json.dumps({
                "mac": interface_mac(self._interface).hex(), "frame_size": self._config.frame_size,
                "backing": ring.BACKING, "rings": ring.describe()}).encode()
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

    def _forget_ended(self, asking: _Guest) -> None:
        poll = select.poll()
        for descriptor, guest in self._guests.items():
            if guest is not asking:
                poll.register(descriptor, 0)
        for descriptor, _events in poll.poll(0):
            self._forget(self._guests[descriptor])

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
