"""A TAP interface with several queues: the kernel's side of a NIC that is a process (Linux ``tuntap.txt``).

A frame comes and goes with a header that says what is left to do to it (``struct virtio_net_hdr``): a checksum to
complete, a segment of up to 64 KB to cut. That is what a descriptor of a NIC's TX ring says.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from pathlib import Path
from typing import Final

from smtstack.errors import ConfigError, Unsupported
from smtstack.io import ebpf

# Linux <linux/if_tun.h>, <linux/sockios.h>, <linux/if.h>, <linux/rtnetlink.h>; Python has no names for these.
_TUNSETIFF, _TUNSETOFFLOAD, _TUNSETSTEERINGEBPF = 0x400454CA, 0x400454D0, 0x800454E0
_IFF_TAP, _IFF_NO_PI, _IFF_MULTI_QUEUE, _IFF_VNET_HDR, _IFF_TUN_EXCL = 0x2, 0x1000, 0x100, 0x4000, 0x8000
_OFFLOAD_CSUM, _OFFLOAD_TSO4, _OFFLOAD_TSO_ECN = 0x1, 0x2, 0x8
_SIOCSIFMTU, _SIOCSIFHWADDR, _SIOCSIFTXQLEN, _SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8922, 0x8924, 0x8943, 0x8913, 0x8914
_ARPHRD_ETHER, _IFF_UP = 1, 1
_RTM_NEWLINK, _REQUEST_ACK, _NLMSG_ERROR, _IFLA_GROUP = 16, 5, 2, 27
_HEADER, _IFINFO = struct.Struct("=IHHII"), struct.Struct("=BxHiII")

#: struct virtio_net_hdr: flags, kind of segment, bytes of its headers, payload of each packet it is cut to; where
#: the checksum begins, and how far behind that it stands.
VNET: Final = struct.Struct("=BBHHHH")
VNET_LEN: Final = VNET.size
#: Flags: the checksum is to be completed; it is known to be right.
NEEDS_CSUM: Final = 1
DATA_VALID: Final = 2
#: Kinds of segments: none, TCP over IPv4; and a bit for one with ECN's CWR.
GSO_NONE: Final = 0
GSO_TCPV4: Final = 1
GSO_ECN: Final = 0x80
#: Bytes of the longest frame with its header.
LONGEST: Final = VNET_LEN + 14 + (1 << 16)
#: Frames that each queue holds for the NIC.
QUEUE_LENGTH: Final = 1000


class TapInterface:
    """The interface, until :meth:`close` or the end of the process; made down, in the namespace of the thread that
    makes it. ``queues`` are the descriptors of its queues: as many for plaintext that is to be encrypted, behind
    those for everything else. Reading gives a frame behind its header (:data:`VNET`), and so is written.

    Raises :class:`ConfigError` if there is an interface of that name, :class:`Unsupported` without root or TUN.
    """

    def __init__(self, name: str, mac: bytes, mtu: int, queues: int, group: int) -> None:
        self.name = name
        self.queues: list[int] = []
        self.half = queues
        try:
            for number in range(2 * queues):
                self.queues.append(_open_queue(name, first=not number))
            self.set_tso(True)
            program = ebpf.load(ebpf.steering_program(queues))
            try:
                fcntl.ioctl(self.queues[0], _TUNSETSTEERINGEBPF, struct.pack("i", program))
            finally:
                os.close(program)
            self.index = socket.if_nametoindex(name)
            _configure(name, self.index, mac, mtu, group)
        except OSError as e:
            self.close()
            if e.errno == errno.EBUSY:
                raise ConfigError(f"there is an interface {name!r} already") from None
            raise Unsupported(f"TAP interface {name}: {e.strerror}; hosting=tap needs root, /dev/net/tun, and "
                              "Linux 4.16 or newer") from None
        except BaseException:
            self.close()
            raise

    def set_tso(self, on: bool) -> None:
        """Whether the kernel may leave it to the NIC to cut segments of TCP; checksums always are the NIC's."""
        more = _OFFLOAD_TSO4 | _OFFLOAD_TSO_ECN if on else 0
        fcntl.ioctl(self.queues[0], _TUNSETOFFLOAD, _OFFLOAD_CSUM | more)

    def close(self) -> None:
        """The interface goes away."""
        for descriptor in self.queues:
            os.close(descriptor)
        self.queues = []


def _open_queue(name: str, first: bool) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # The first makes the interface, and must not join one that somebody else has.
        flags = _IFF_TAP | _IFF_NO_PI | _IFF_MULTI_QUEUE | _IFF_VNET_HDR | (_IFF_TUN_EXCL if first else 0)
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _configure(name: str, index: int, mac: bytes, mtu: int, group: int) -> None:
    label = name.encode()
    # Before it is up: nothing is to be on the wire that no program sent.
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        fcntl.ioctl(s, _SIOCSIFHWADDR, struct.pack("16sH6s16x", label, _ARPHRD_ETHER, mac))
        fcntl.ioctl(s, _SIOCSIFMTU, struct.pack("16si20x", label, mtu))
        fcntl.ioctl(s, _SIOCSIFTXQLEN, struct.pack("16si20x", label, QUEUE_LENGTH))
    # The group has no ioctl.
    request = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0) + struct.pack("=HHI", 8, _IFLA_GROUP, group)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        s.send(_HEADER.pack(_HEADER.size + len(request), _RTM_NEWLINK, _REQUEST_ACK, 1, 0) + request)
        answer = s.recv(4096)
    kind = _HEADER.unpack_from(answer)[1]
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _NLMSG_ERROR else errno.EPROTO
    if code:
        raise OSError(code, os.strerror(code))


def set_up(name: str) -> None:
    """Bring an interface up, in the namespace of this thread."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        flags = struct.unpack_from("16sH", fcntl.ioctl(s, _SIOCGIFFLAGS, struct.pack("16s24x", name.encode())))[1]
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | _IFF_UP))
