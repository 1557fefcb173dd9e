"""The wire of a NIC that is a process: packet sockets on the cable's end, which nobody else uses."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
from typing import Final

from smtstack.errors import ConfigError, Unsupported
from smtstack.io import ethtool
from smtstack.io.packet_socket import PACKET_IGNORE_OUTGOING, PACKET_STATISTICS, PACKET_VNET_HDR, SO_SNDBUFFORCE
from smtstack.io.ring import SO_RCVBUFFORCE, SOL_PACKET
from smtstack.io.send_batch import MOST, WORTH, SendBatch
from smtstack.io.tun import LONGEST, set_up
from smtstack.wire.ethernet import HEADER_LEN

# Linux <linux/if_packet.h>; Python has no names for these.
_ETH_P_ALL, _PACKET_ADD_MEMBERSHIP, _PACKET_MR_PROMISC = 3, 1, 1
#: Bytes: a sender's whole window waits here while the processor is away.
RECEIVE_BUFFER: Final = 32 << 20
SEND_BUFFER: Final = 8 << 20
#: How long to wait for a full transmit queue before a frame is given up, in ms.
_PATIENCE_MS: Final = 100


class WireEnd:
    """Sends frames out of ``interface``, which it brings up, and receives all that come in there.

    Frames have a header in front, both ways, that says what is left to do to them (:data:`smtstack.io.tun.VNET`):
    the port cuts and completes checksums, unless who is at the other end of the cable takes them as they are
    (``super_frames``), and puts packets together again that follow each other (:meth:`coalesce`). That is the
    kernel's own code, on an interface that only the NIC uses. Raises :class:`ConfigError` where there is no such
    interface, :class:`Unsupported` without root.
    """

    def __init__(self, interface: str, mtu: int, super_frames: bool) -> None:
        self.interface = interface
        self.send_drops = 0
        self._dropped = 0
        try:
            self._plain = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            self._whole = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        except PermissionError:
            raise Unsupported("packet sockets need root (or CAP_NET_RAW): run with sudo") from None
        try:
            for offloads in ((ethtool.TX_CSUM,), (ethtool.TSO,), (ethtool.GSO,)):
                ethtool.switch(interface, offloads, super_frames)
            self.coalesce(True)
            set_up(interface)
            index = socket.if_nametoindex(interface)
            whole = self._whole
            whole.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
            whole.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            whole.setsockopt(SOL_PACKET, _PACKET_ADD_MEMBERSHIP,
                             struct.pack("iHH8x", index, _PACKET_MR_PROMISC, 0))
            whole.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
            whole.bind((interface, _ETH_P_ALL))
            self._plain.bind((interface, 0))
            for sock in (self._plain, whole):
                sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
                sock.setblocking(False)
            self._batch = SendBatch(self._plain, mtu + HEADER_LEN)
        except OSError as e:
            self.close()
            # if_nametoindex gives no errno.
            if e.errno in (None, errno.ENODEV):
                raise ConfigError(f"no interface {interface!r} here; 'ip link' lists them") from None
            raise Unsupported(f"packet socket on {interface}: {e.strerror}") from None
        self._buffer = bytearray(LONGEST)
        self._view = memoryview(self._buffer)
        self._receive_into = whole.recv_into

    def coalesce(self, on: bool) -> None:
        """Whether packets of TCP that follow each other are received as one segment."""
        ethtool.switch(self.interface, (ethtool.GRO,), on)

    def fileno(self) -> int:
        """Readable when frames wait."""
        return self._whole.fileno()

    def receive(self) -> memoryview | None:
        """The next frame that waits, behind its header; it holds until the next call. None: there is none."""
        try:
            return self._view[:self._receive_into(self._buffer)]
        except BlockingIOError:
            return None
        except OSError as e:
            if e.errno == errno.ENETDOWN:
                return None
            raise

    def send(self, frames: list[bytes]) -> None:
        """Send frames of at most the MTU; one for which there is no room for 100 ms is lost, and counted."""
        count, at = len(frames), 0
        while count - at >= WORTH:
            stop = min(at + MOST, count)
            at += self._batch.send(frames, at)
            if at < stop:
                self._send_each(frames[at:stop])
                at = stop
        if at < count:
            self._send_each(frames[at:])

    def send_whole(self, segment: bytes | memoryview) -> None:
        """Send a segment that others will cut, behind its header."""
        self._send_one(self._whole, segment)

    def _send_each(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._send_one(self._plain, frame)

    def _send_one(self, sock: socket.socket, data: bytes | memoryview) -> None:
        try:
            sock.send(data)
        except OSError as e:
            if e.errno in (errno.EAGAIN, errno.ENOBUFS):
                waiter = select.poll()
                waiter.register(sock, select.POLLOUT)
                waiter.poll(_PATIENCE_MS)
                with contextlib.suppress(OSError):
                    sock.send(data)
                    return
            elif e.errno not in (errno.ENETDOWN, errno.EMSGSIZE, errno.EINVAL, errno.ENXIO, errno.ENODEV):
                raise
            self.send_drops += 1

    def drops(self) -> int:
        """Frames that came and found no room, since the start."""
        self._dropped += struct.unpack("II", self._whole.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        return self._dropped

    def close(self) -> None:
        """Give the sockets back."""
        self._plain.close()
        self._whole.close()
