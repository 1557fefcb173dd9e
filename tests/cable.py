"""Two SMT sockets joined by a cable inside this process: no interface, no root."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

import smtstack.socket
from smtstack.io.packet_socket import PacketSocket
from smtstack.socket import SmtContext, SmtSocket

CLIENT = ("10.0.0.1", 40_000)
SERVER = ("10.0.0.2", 2000)


class Cable(PacketSocket):
    """A packet socket to the packet loop, over one end of a socket pair."""

    def __init__(self, end: socket.socket) -> None:
        # Deliberately without super(): that would open a real one.
        self.mac = bytes(6)
        self.send_drops = 0
        self._end = end
        end.setblocking(False)
        self._readers = [end]
        self._both = None

    def fileno(self) -> int:
        return self._end.fileno() if self._both is None else self._both.fileno()

    def close(self) -> None:
        # As of the real one: a descriptor for event loops, which goes with the cable.
        if self._both is not None:
            self._both.close()
        self._end.close()

    def send(self, frames: list[bytes]) -> None:
        # What nobody takes is lost, as on a wire.
        with suppress(OSError):
            for frame in frames:
                self._end.send(frame)

    def receive(self, limit: int) -> list[bytes]:
        frames: list[bytes] = []
        with suppress(BlockingIOError):
            while len(frames) < limit:
                frames.append(self._end.recv(1 << 16))
        return frames

    def clear_error(self) -> None:
        pass

    def watch(self, other: socket.socket) -> None:
        self._readers.append(other)
        self._both = select.epoll()
        for reader in self._readers:
            self._both.register(reader, select.EPOLLIN)

    def wait(self, timeout_ns: int) -> None:
        select.select(self._readers, [], [], timeout_ns / 1e9)

    def statistics(self) -> tuple[int, int]:
        return 0, 0

    def too_long(self) -> tuple[int, int]:
        return 0, 0


def connect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next two sockets are connected, in this process."""
    wires = iter(socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM))
    monkeypatch.setattr(smtstack.socket, "PacketSocket", lambda *_args: Cable(next(wires)))
    monkeypatch.setattr(smtstack.socket, "interface_mtu", lambda _name: 1500)
    monkeypatch.setattr(smtstack.socket, "Neighbours", lambda _name: lambda _ip: bytes(6))


@contextmanager
def joined(monkeypatch: pytest.MonkeyPatch, context: SmtContext) -> Iterator[tuple[SmtSocket, SmtSocket]]:
    """A socket for clients and one for servers, both of ``context``."""
    connect(monkeypatch)
    with SmtSocket(CLIENT, context) as client, SmtSocket(SERVER, context) as server:
        yield client, server


def exchange(ends: tuple[SmtSocket, SmtSocket], data: bytes) -> None:
    """One request and its answer, which is the same."""
    client, server = ends
    future = client.send_request(SERVER, data)
    for _turn in range(1000):
        server.poll()
        while (request := server.receive(0)) is not None:
            request.reply(request.data)
        client.poll()
        if future.done():
            break
    assert future.result(0) == data
