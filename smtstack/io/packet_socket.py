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
from smtstack.wire import homa
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
#: select() takes descriptors below this (FD_SETSIZE).
_SELECT_LIMIT = 1024
#: How long workers of one port wait for each other, in seconds: to take a message, to start.
SHARE_PATIENCE_S = 1
JOIN_PATIENCE_S = 10
_JOINED = b"joined"

#: Flags and low word of sender_id, counted from the IP header: where a fan-out program starts to read.
_FLAGS = 20 + homa.FLAGS_OFFSET
_SENDER_ID_LOW = 20 + 24


@dataclass(frozen=True, slots=True)
class Fanout:
    """Several processes share one port: the kernel spreads *messages* over them by RPC id.

    Handshakes are the first worker's. What it tells the others goes over sockets made before they were forked.
    """

    group: int
    """Any 16-bit number, the same in all workers."""
    workers: int
    index: int = 0
    """Which of them this is."""
    inbox: socket.socket | None = None
    """What the first tells this one; None: it is the first."""
    outboxes: tuple[socket.socket, ...] = ()
    """The first's, one for each other."""

    @classmethod
    def among(cls, group: int, workers: int) -> list[Fanout]:
        """One for each worker. Make them before the workers are forked."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers - 1)]
        for ours, theirs in pairs:
            # A worker that is stopped for longer holds up all handshakes: they are refused.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SHARE_PATIENCE_S, 0))
            theirs.settimeout(JOIN_PATIENCE_S)
        first = cls(group, workers, 0, None, tuple(ours for ours, _theirs in pairs))
        return [first, *(cls(group, workers, n, theirs) for n, (_ours, theirs) in enumerate(pairs, 1))]

    def share(self, message: bytes) -> bool:
        """Tell the others; False if one of them does not take it."""
        try:
            for box in self.outboxes:
                box.send(message)
        except OSError:
            return False
        return True

    def await_turn(self) -> None:
        """Workers are numbered in the order they join, and the first must be the first."""
        if self.inbox is not None:
            try:
                said = self.inbox.recv(len(_JOINED))
            except OSError:
                said = b""
            if said != _JOINED:
                raise Unsupported("the first worker of this port did not start")
            self.inbox.setblocking(False)

    def joined(self) -> None:
        """Let the others join."""
        self.share(_JOINED)

    def close(self) -> None:
        """For who made the workers, when all of them are forked."""
        for box in (self.inbox, *self.outboxes):
            if box is not None:
                box.close()


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
                self._join(fanout, protocol)
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
        self._readers = [self._sock]
        self._selectable = self._sock.fileno() < _SELECT_LIMIT
        #: Both sockets as one descriptor, if there is another to watch.
        self._both: select.epoll | None = None
        #: Frames given up because the transmit queue stayed full.
        self.send_drops = 0
        self._received = 0
        self._dropped = 0

    def _join(self, fanout: Fanout, protocol: int) -> None:
        fanout.await_turn()
        self._sock.setsockopt(SOL_PACKET, PACKET_FANOUT, fanout.group | FANOUT_CBPF << 16)
        # The kernel module leaves anything in these bytes of its control packets.
        program = fanout_program(fanout.workers, protocol != homa.PROTO_LINUX)
        bpf.attach(self._sock, program, SOL_PACKET, PACKET_FANOUT_DATA)
        fanout.joined()

    def watch(self, other: socket.socket) -> None:
        """Wake up for another socket as well; who reads it is the caller's affair."""
        self._poll.register(other, select.POLLIN)
        self._readers.append(other)
        self._selectable &= other.fileno() < _SELECT_LIMIT
        self._both = select.epoll()
        for reader in self._readers:
            self._both.register(reader, select.EPOLLIN)

    def fileno(self) -> int:
        """For select and asyncio."""
        return self._sock.fileno() if self._both is None else self._both.fileno()

    def receive(self, limit: int) -> list[bytes]:
        """The frames that wait, oldest first, at most ``limit``."""
        return self._ring.take(limit)

    def too_long(self) -> tuple[int, int]:
        """(how many IP packets longer than our MTU came, bytes of the longest)."""
        return self._ring.too_long, max(0, self._ring.longest - HEADER_LEN)

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
        if timeout_ns < 2_000_000 and self._selectable:
            # poll() counts in milliseconds, far too coarse for the pacer; select() costs five times as much.
            select.select(self._readers, [], [], timeout_ns / 1e9)
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
        """Give the sockets back. One that is watched is not ours."""
        if self._both is not None:
            self._both.close()
        self._ring.close()
        self._sock.close()
        self._guard.close()
        self._claim.close()


def filter_program(ip: int, port: int, protocol: int) -> list[bpf.Instruction]:
    """Frames to one (address, port, protocol), fragments included: the endpoint drops those."""
    return bpf.match([(bpf.LD_HALF, 12, ETHERTYPE_IPV4), (bpf.LD_BYTE, 14, VERSION_IHL),
                      (bpf.LD_BYTE, 23, protocol), (bpf.LD_WORD, 30, ip), (bpf.LD_HALF, 36, port)])


def fanout_program(workers: int, handshakes: bool) -> list[bpf.Instruction]:
    """Number of the worker a frame is for. It sees the frame from the IP header on.

    ``handshakes``: the header has flags, and packets of the handshake plane are for worker 0.
    """
    first = [(bpf.LD_BYTE, 0, 0, _FLAGS), (bpf.JUMP_SET, 0, 1, homa.HANDSHAKE), (bpf.RETURN, 0, 0, 0)]
    by_id = [(bpf.LD_WORD, 0, 0, _SENDER_ID_LOW), (bpf.RSH, 0, 0, 1), (bpf.MOD, 0, 0, workers),
             (bpf.RETURN_A, 0, 0, 0)]
    return first + by_id if handshakes else by_id


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

