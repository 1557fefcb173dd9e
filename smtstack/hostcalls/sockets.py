"""The host's sockets: its kernel's UDP, and frames of an endpoint."""

from __future__ import annotations

import errno
import math
import os
import select
import socket
import struct
from typing import Final

from smtstack.io.neighbours import Neighbours
from smtstack.io.packet_socket import PacketSocket
from smtstack.wire.ipv4 import format_address

_RECEIVE_BUFFER: Final = 4 << 20
_SO_RCVBUFFORCE: Final = 33
#: Before data in a queue: whom they are for, or from.
HEAD: Final = struct.Struct("=IHxx")


class KernelUdp:
    """A UDP socket of the kernel's at (``ip``, ``port``), for :class:`~smtstack.hostcalls.channel.HostSocket`, and
    as the wire of a :class:`~smtstack.ringnic.monitor.MemoryMonitor` whose packets are datagrams behind
    :data:`HEAD`. Raises OSError."""

    def __init__(self, ip: int, port: int) -> None:
        self._sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BUFFER)
        self._sock.bind((format_address(ip), port))
        self._sock.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._names: dict[int, str] = {}

    def fileno(self) -> int:
        """For select."""
        return self._sock.fileno()

    def _name(self, address: int) -> str:
        name = self._names.get(address)
        if name is None:
            name = self._names[address] = format_address(address)
        return name

    def send(self, data: bytes, address: int, port: int) -> int:
        """Send a datagram. Raises OSError."""
        return self._sock.sendto(data, (self._name(address), port))

    def receive(self, room: int) -> tuple[bytes, int, int]:
        """The next datagram. Raises OSError."""
        data, (name, port) = self._sock.recvfrom(room)
        return data, int.from_bytes(socket.inet_aton(name), "big"), port

    def wait(self, timeout_s: float) -> bool:
        """Until there is one."""
        return bool(self._poll.poll(math.ceil(timeout_s * 1000)))

    def neighbour(self, _address: int) -> None:
        """The kernel finds its way itself."""
        return

    def close(self) -> None:
        """Give it back."""
        self._sock.close()


class UdpWire:
    """:class:`KernelUdp` in the shape of a packet socket."""

    def __init__(self, ip: int, port: int) -> None:
        self._udp = KernelUdp(ip, port)
        self.send_drops = 0

    def fileno(self) -> int:
        """For select."""
        return self._udp.fileno()

    def send(self, records: list[bytes]) -> None:
        """Datagrams; those that cannot be sent are lost, as by a NIC."""
        for record in records:
            address, port = HEAD.unpack_from(record)
            try:
                self._udp.send(record[HEAD.size:], address, port)
            except OSError:
                self.send_drops += 1

    def receive(self, limit: int) -> list[bytes]:
        """Datagrams that wait, at most ``limit``."""
        records: list[bytes] = []
        try:
            while len(records) < limit:
                data, address, port = self._udp.receive(1 << 16)
                records.append(HEAD.pack(address, port) + data)
        except OSError:
            pass
        return records

    def statistics(self) -> tuple[int, int]:
        """(received, dropped), which the kernel does not tell of a socket."""
        return 0, 0


class KernelFrames:
    """A packet socket, for :class:`~smtstack.hostcalls.channel.HostSocket`: one frame a call."""

    def __init__(self, packets: PacketSocket, interface: str) -> None:
        self._packets = packets
        self._neighbours = Neighbours(interface)

    def send(self, data: bytes, _address: int, _port: int) -> int:
        """Send a frame."""
        self._packets.send([data])
        return len(data)

    def receive(self, room: int) -> tuple[bytes, int, int]:
        """The next frame. Raises BlockingIOError."""
        frames = self._packets.receive(1)
        if not frames:
            raise BlockingIOError(11, "no frame")
        return frames[0][:room], 0, 0

    def wait(self, timeout_s: float) -> bool:
        """Until there is one."""
        self._packets.wait(int(timeout_s * 1e9))
        return True

    def neighbour(self, address: int) -> bytes | None:
        """By the kernel's routes and ARP."""
        return self._neighbours(address)


class OnlyNeighbours:
    """For :class:`~smtstack.hostcalls.channel.HostSocket`: answers where neighbours are, and has no socket."""

    def __init__(self, interface: str) -> None:
        self.neighbour = Neighbours(interface)

    def send(self, _data: bytes, _address: int, _port: int) -> int:
        """Not here. Raises OSError."""
        raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))

    def receive(self, _room: int) -> tuple[bytes, int, int]:
        """Not here. Raises OSError."""
        raise OSError(errno.ENETDOWN, os.strerror(errno.ENETDOWN))

    def wait(self, _timeout_s: float) -> bool:
        """At once."""
        return False
