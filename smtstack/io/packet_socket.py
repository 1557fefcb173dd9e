"""An AF_PACKET socket for one endpoint: filtered by the kernel, with large buffers and drop statistics."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import select
import socket
import struct

from smtstack.compiled import mypyc_attr
from smtstack.errors import ConfigError, Unsupported
from smtstack.io import bpf
from smtstack.io.frame_socket import FrameSocket
from smtstack.io.ring import SOL_PACKET, ReceiveRing
from smtstack.io.send_batch import MOST, WORTH, SendBatch
from smtstack.io.shared_port import SharedPort
from smtstack.io.tcp_guard import TcpGuard
from smtstack.wire import homa
from smtstack.wire.ethernet import ETHERTYPE_IPV4, HEADER_LEN
from smtstack.wire.frame import (
    DPORT_AT,
    DST_AT,
    ETHERTYPE_AT,
    IP_OFFSET,
    PROTOCOL_AT,
    TCP_HEADER_AT,
    TRANSPORT_OFFSET,
)
from smtstack.wire.ipv4 import PROTO_TCP, VERSION_IHL, format_address
from smtstack.wire.overlay import HEAD, offload_head
from smtstack.wire.upstream import FLAGS, FLAGS_OFFSET, URGENT, URGENT_OFFSET

# Linux <linux/if_packet.h>, <asm-generic/socket.h>; Python has no names for these.
PACKET_STATISTICS = 6
PACKET_VNET_HDR = 15
PACKET_IGNORE_OUTGOING = 23
SO_SNDBUFFORCE = 32
SIOCGIFMTU = 0x8921
_SIOCGIFHWADDR = 0x8927
_IFNAMSIZ = 16

SEND_BUFFER = 4 << 20
#: How long to wait for a full transmit queue before a frame is given up, in ms.
SEND_PATIENCE_MS = 100
#: select() takes descriptors below this (FD_SETSIZE).
_SELECT_LIMIT = 1024


@mypyc_attr(allow_interpreted_subclasses=True)
class PacketSocket(FrameSocket):
    """Frames of one (address, port, protocol) on one interface. Needs CAP_NET_RAW.

    ``overlay``: also those in the shape of TCP, super-frames among them, which the host's own TCP never sees; that
    needs CAP_NET_ADMIN, and nf_tables in the kernel. ``upstream``: also those that upstream Homa sends in its
    shape of TCP, to which TCP has no answer.
    """

    def __init__(self, interface: str, ip: int, port: int, protocol: int, mtu: int,
                 shared: SharedPort | None = None, overlay: bool = False, upstream: bool = False) -> None:
        #: While it is there, the host's TCP does not see our packets; and the socket that sends these.
        self._tcp_guard = TcpGuard() if overlay else None
        self._offloading: socket.socket | None = None
        try:
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise Unsupported("raw sockets need root (or CAP_NET_RAW): run with sudo") from None
        try:
            self._claim = claim_port(interface, ip, port, protocol, shared is not None)
        except ConfigError:
            self._sock.close()
            self._close_overlay()
            raise
        try:
            # Filter first, then bind: no foreign packet is ever queued. Nor, before a worker has joined its
            # group, one that is another worker's: it would be served twice.
            ours = filter_program(ip, port, protocol, upstream)
            bpf.attach(self._sock, bpf.reject_all() if shared is not None else ours)
            self._sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            self._sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
            self._ring = ReceiveRing(self._sock, mtu + HEADER_LEN, overlay)
            self._batch = SendBatch(self._sock, mtu + HEADER_LEN)
            if overlay:
                self._offloading = offloading_socket(interface)
            self._sock.bind((interface, ETHERTYPE_IPV4))
            if shared is not None:
                # The kernel modules have something else in the place of the flags.
                self._join(shared, handshakes=protocol != homa.PROTO_LINUX and not upstream)
                bpf.attach(self._sock, ours)
            self._guard = _icmp_guard(protocol)
            #: Keeps the host's own TCP from the port; None: nothing of ours looks like TCP's.
            self._tcp_port = _tcp_port(ip, port) if upstream else None
        except OSError as e:
            self._sock.close()
            self._close_overlay()
            self._claim.close()
            if e.errno == errno.ENODEV:
                raise ConfigError(f"no interface {interface!r} here; 'ip link' lists them") from None
            raise Unsupported(f"packet socket on {interface}: {e.strerror}") from e
        self._sock.setblocking(False)
        self._interface = interface
        self.mac = self._sock.getsockname()[4]
        self._poll = select.poll()
        self._poll.register(self._sock, select.POLLIN)
        self._readers = [self._sock]
        self._selectable = self._sock.fileno() < _SELECT_LIMIT
        #: Both sockets as one descriptor, if there is another to watch.
        self._both: select.epoll | None = None
        self.send_drops = 0
        self._received = 0
        self._dropped = 0

    def _join(self, shared: SharedPort, handshakes: bool) -> None:
        shared.await_turn()
        shared.attach(self._sock, handshakes)
        shared.joined()

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

        Those in the shape of TCP are cut by who is behind, and only if their way needs it. Raises
        :class:`Unsupported` when the interface was removed: no other of that name takes its place.
        """
        count = len(frames)
        at = 0
        if self._offloading is not None and any(frame[PROTOCOL_AT] == PROTO_TCP for frame in frames):
            self._send_each(frames)
            return
        while count - at >= WORTH:
            stop = min(at + MOST, count)
            at += self._batch.send(frames, at)
            if at < stop:
                # One at a time, so that what is wrong is known, and dealt with, of each.
                self._send_each(frames[at:stop])
                at = stop
        if at < count:
            self._send_each(frames[at:] if at else frames)

    def _send_each(self, frames: list[bytes]) -> None:
        send = self._sock.send
        offloading = self._offloading
        for frame in frames:
            try:
                if offloading is not None and frame[PROTOCOL_AT] == PROTO_TCP:
                    offloading.sendmsg((offload_head(frame), memoryview(frame)[HEAD:]))
                else:
                    send(frame)
            except OSError as e:
                self._send_again(frame, e)

    def _send_again(self, frame: bytes, error: OSError) -> None:
        sock, parts = self._sock, [memoryview(frame)]
        if self._offloading is not None and frame[PROTOCOL_AT] == PROTO_TCP:
            sock, parts = self._offloading, [memoryview(offload_head(frame)), memoryview(frame)[HEAD:]]
        if error.errno in (errno.ENXIO, errno.ENODEV):
            raise Unsupported(f"interface {self._interface} was removed") from None
        # EMSGSIZE: somebody made the interface's MTU smaller than the one we started with. EINVAL: of a frame that
        # impairments made one that cannot be cut.
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.EMSGSIZE) and (
                sock is self._sock or error.errno != errno.EINVAL):
            raise error
        waiter = select.poll()
        waiter.register(sock, select.POLLOUT)
        waiter.poll(SEND_PATIENCE_MS)
        try:
            sock.sendmsg(parts)
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
        return self._received, self._dropped + self._ring.lost

    def close(self) -> None:
        """Give the sockets back. One that is watched is not ours."""
        if self._both is not None:
            self._both.close()
        self._ring.close()
        self._sock.close()
        self._close_overlay()
        self._guard.close()
        if self._tcp_port is not None:
            self._tcp_port.close()
        self._claim.close()

    def _close_overlay(self) -> None:
        if self._offloading is not None:
            self._offloading.close()
        if self._tcp_guard is not None:
            self._tcp_guard.close()


def offloading_socket(interface: str) -> socket.socket:
    """Sends super-frames with the header that says how to cut them, and receives nothing. Raises OSError."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        sock.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        sock.bind((interface, 0))
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def filter_program(ip: int, port: int, protocol: int, upstream: bool = False) -> list[bpf.Instruction]:
    """Frames to one (address, port, protocol), fragments included: the endpoint drops those.

    Where the protocol is Homa's, of TCP's those in our shape of it, too (who did not agree to that counts it), or
    with ``upstream`` those that only upstream Homa sends.
    """
    to_us = [(bpf.LD_HALF, ETHERTYPE_AT, ETHERTYPE_IPV4), (bpf.LD_BYTE, IP_OFFSET, VERSION_IHL),
             (bpf.LD_WORD, DST_AT, ip), (bpf.LD_HALF, DPORT_AT, port)]
    if protocol != homa.PROTO_HOMA:
        return bpf.match([*to_us, (bpf.LD_BYTE, PROTOCOL_AT, protocol)])
    marks = [(bpf.LD_BYTE, TRANSPORT_OFFSET + FLAGS_OFFSET, FLAGS),
             (bpf.LD_HALF, TRANSPORT_OFFSET + URGENT_OFFSET, URGENT)] if upstream else [
                 (bpf.LD_HALF, TCP_HEADER_AT, int.from_bytes(homa.OVERLAY_MARK, "big"))]
    rest = 2 * len(marks) + 1
    shaped: list[bpf.Instruction] = [(bpf.JUMP_EQUAL, 0, rest, PROTO_TCP)]
    for number, (load, offset, value) in enumerate(marks, 1):
        shaped += [(load, 0, 0, offset), (bpf.JUMP_EQUAL, 0, rest - 2 * number, value)]
    native = [(bpf.LD_BYTE, 0, 0, PROTOCOL_AT), (bpf.JUMP_EQUAL, len(shaped), 0, protocol)]
    return bpf.match(to_us, [*native, *shaped])


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


def _tcp_port(ip: int, port: int) -> socket.socket | None:
    """A TCP socket that has our port, so that no connection of the host's gets it; None: one has it already.

    The host's TCP gets packets in the shape of TCP as well. With their flags, SYN and RST, it is silent unless
    they hit a connection of these very ports and addresses. Servers of TCP may listen on the port all the same.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((format_address(ip), port))
    except OSError:
        sock.close()
        return None
    return sock


def interface_mac(interface: str) -> bytes:
    """MAC address of an interface. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        return bytes(fcntl.ioctl(s, _SIOCGIFHWADDR, struct.pack("16s24x", interface.encode()))[18:24])


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

