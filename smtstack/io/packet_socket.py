"""An AF_PACKET socket for one endpoint: filtered by the kernel, with large buffers and drop statistics."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct
from dataclasses import dataclass

from smtstack.errors import ConfigError, Unsupported
from smtstack.io import bpf
from smtstack.io.ring import SOL_PACKET, ReceiveRing
from smtstack.wire.ethernet import ETHERTYPE_IPV4, HEADER_LEN
from smtstack.wire.ipv4 import VERSION_IHL, format_address

# Linux <linux/if_packet.h>, <asm-generic/socket.h>; Python has no names for these.
PACKET_STATISTICS = 6
PACKET_FANOUT = 18
PACKET_FANOUT_DATA = 22
PACKET_IGNORE_OUTGOING = 23
FANOUT_CBPF = 6
SO_SNDBUFFORCE = 32
SIOCGIFMTU = 0x8921
_IFNAMSIZ = 16

SEND_BUFFER = 4 << 20
#: How long to wait for a full transmit queue before a frame is given up, in ms.
SEND_PATIENCE_MS = 100

#: Low word of sender_id, counted from the IP header: where a fan-out program starts to read.
_SENDER_ID_LOW = 20 + 24


@dataclass(frozen=True, slots=True)
class Fanout:
    """Several processes share one port: the kernel spreads *messages* over them by RPC id."""

    group: int
    """Any 16-bit number, the same in all workers."""
    workers: int


class PacketSocket:
    """Frames of one (address, port, protocol) on one interface. Needs CAP_NET_RAW."""

    def __init__(self, interface: str, ip: int, port: int, protocol: int, mtu: int,
                 fanout: Fanout | None = None) -> None:
        try:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise Unsupported("raw sockets need root (or CAP_NET_RAW): run with sudo") from None
        try:
            self._claim = claim_port(interface, ip, port, protocol, fanout is not None)
        except ConfigError:
            self._sock.close()
            raise
        try:
            # Filter first, then bind: no foreign packet is ever queued. Nor, before a worker has joined its
            # group, one that is another worker's: it would be served twice.
            ours = filter_program(ip, port, protocol)
            bpf.attach(self._sock, bpf.reject_all() if fanout is not None else ours)
            self._sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
            self._ring = ReceiveRing(self._sock, mtu + HEADER_LEN)
            self._sock.bind((interface, ETHERTYPE_IPV4))
            if fanout is not None:
                self._join(fanout)
                bpf.attach(self._sock, ours)
            self._guard = _icmp_guard(protocol)
        except OSError as e:
            self._sock.close()
            self._claim.close()
            if e.errno == errno.ENODEV:
                raise ConfigError(f"no interface {interface!r} here; 'ip link' lists them") from None
            raise Unsupported(f"packet socket on {interface}: {e.strerror}") from e
        self._sock.setblocking(False)
        self._interface = interface
        self.mac: bytes = self._sock.getsockname()[4]
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        #: Frames given up because the transmit queue stayed full.
        self.send_drops = 0
        self._received = 0
        self._dropped = 0

    def _join(self, fanout: Fanout) -> None:
        self._sock.setsockopt(SOL_PACKET, PACKET_FANOUT, fanout.group | FANOUT_CBPF << 16)
        bpf.attach(self._sock, fanout_program(fanout.workers), SOL_PACKET, PACKET_FANOUT_DATA)

    def fileno(self) -> int:
        """For select and asyncio."""
        return self._sock.fileno()

    def receive(self, limit: int) -> list[bytes]:
        """The frames that wait, oldest first, at most ``limit``."""
        return self._ring.take(limit)

    def clear_error(self) -> None:
        """For when nothing came: an interface that went down leaves the socket readable until it was asked why."""
        self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def send(self, frames: list[bytes]) -> None:
        """Send frames; waits a little for a full queue, then counts a frame as lost, as a link would.

        Raises :class:`Unsupported` when the interface was removed: no other of that name takes its place.
        """
        send = self._sock.send
        for frame in frames:
            try:
                send(frame)
            except OSError as e:
                self._send_again(frame, e)

    def _send_again(self, frame: bytes, error: OSError) -> None:
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise Unsupported(f"interface {self._interface} was removed") from None
        # EMSGSIZE: somebody made the interface's MTU smaller than the one we started with.
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.EMSGSIZE):
            raise error
        waiter = select.poll()
        waiter.register(self._sock, select.POLLOUT)
        waiter.poll(SEND_PATIENCE_MS)
        try:
            self._sock.send(frame)
        except OSError:
            self.send_drops += 1

    def wait(self, timeout_ns: int) -> None:
        """Block until a frame is there, or this long."""
        if timeout_ns < 2_000_000 and self._sock.fileno() < 1024:
            # poll() counts in milliseconds, far too coarse for the pacer; select() costs five times as much.
            select.select([self._sock], [], [], timeout_ns / 1e9)
        else:
            # Rounded up: waking early would spin until the deadline.
            self._poll.poll(-(-timeout_ns // 1_000_000))

    def statistics(self) -> tuple[int, int]:
        """(frames received, frames dropped for want of buffer) since the socket was made."""
        packets, drops = struct.unpack("II", self._sock.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))
        self._received += packets
        self._dropped += drops
        return self._received, self._dropped

    def close(self) -> None:
        """Give the sockets back."""
        self._ring.close()
        self._sock.close()
        self._guard.close()
        self._claim.close()


def filter_program(ip: int, port: int, protocol: int) -> list[bpf.Instruction]:
    """Frames to one (address, port, protocol), fragments included: the endpoint drops those."""
    return bpf.match([(bpf.LD_HALF, 12, ETHERTYPE_IPV4), (bpf.LD_BYTE, 14, VERSION_IHL),
                      (bpf.LD_BYTE, 23, protocol), (bpf.LD_WORD, 30, ip), (bpf.LD_HALF, 36, port)])


def fanout_program(workers: int) -> list[bpf.Instruction]:
    """Number of the worker a frame is for. It sees the frame from the IP header on."""
    return [(bpf.LD_WORD, 0, 0, _SENDER_ID_LOW), (bpf.RSH, 0, 0, 1), (bpf.MOD, 0, 0, workers),
            (bpf.RETURN_A, 0, 0, 0)]


def claim_port(interface: str, ip: int, port: int, protocol: int, shared: bool = False) -> socket.socket:
    """A lock on the port, until it is closed or the process ends; raises :class:`ConfigError` if taken.

    Packet sockets know no ports: two on one port would both get and serve every request. An abstract
    unix name is the network namespace's own, as a port is, and the kernel frees it. Workers (``shared``)
    leave it to the first of them; who starts them sees to it that nobody else has it.
    """
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0smtnet {interface} {format_address(ip)}:{port} {protocol}")
    except OSError as e:
        if e.errno == errno.EADDRINUSE and not shared:
            claim.close()
            raise ConfigError(f"{format_address(ip)}:{port} is in use by another socket on {interface}; "
                              "take another port") from None
    return claim


def _icmp_guard(protocol: int) -> socket.socket:
    """A raw socket that takes nothing: without one the host answers "protocol unreachable" to our peers."""
    guard = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    bpf.attach(guard, bpf.reject_all())
    return guard


def interface_mtu(interface: str) -> int:
    """MTU of an interface in bytes; raises :class:`ConfigError` if there is none.

    Not from /sys, which shows the network namespace it was mounted in: on a Mininet host, another one.
    """
    name = interface.encode()
    if len(name) < _IFNAMSIZ:
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            answer = fcntl.ioctl(s, SIOCGIFMTU, struct.pack("16si20x", name, 0))
            return int(struct.unpack_from("16si", answer)[1])
    raise ConfigError(f"no interface {interface!r} here; 'ip link' lists them")

