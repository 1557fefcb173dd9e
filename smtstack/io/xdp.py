"""AF_XDP sockets: packets in memory that a process shares with the kernel (Linux ``af_xdp.rst``), and the program
that says which of an interface's packets go there.

The kernel's XDP runs in the driver ("native"), and copies: a veth has no other way. One socket has queue 0 of an
interface. All that is not its packets goes on to the host's kernel as ever.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import stat
import struct
import time
from contextlib import suppress
from typing import Final

from smtstack.errors import ConfigError, Unsupported
from smtstack.io import ebpf
from smtstack.io.memory import address_of
from smtstack.io.xdp_udp import fragment_map, udp_split_program
from smtstack.rings.layout import (
    COMPLETION,
    CONSUMER_AT,
    ENTRIES_AT,
    FILL,
    FLAGS_AT,
    PRODUCER_AT,
    RINGS,
    RX,
    TX,
    RingConfig,
)
from smtstack.udp.wire import PROTO_UDP
from smtstack.wire.ethernet import ETHERTYPE_IPV4
from smtstack.wire.frame import DPORT_AT, DST_AT, ETHERTYPE_AT, IP_OFFSET, PROTOCOL_AT
from smtstack.wire.ipv4 import VERSION_IHL

# Linux <linux/if_xdp.h>, <linux/bpf.h>, <linux/if_link.h>; Python has no names for these.
AF_XDP: Final = 44
_SOL_XDP: Final = 283
_MMAP_OFFSETS, _UMEM_REG, _STATISTICS = 1, 4, 7
_RING_OPTION: Final = {RX: 2, TX: 3, FILL: 5, COMPLETION: 6}
_RING_OFFSET: Final = {RX: 0, TX: 0x8000_0000, FILL: 0x1_0000_0000, COMPLETION: 0x1_8000_0000}
#: In the order of the answer to XDP_MMAP_OFFSETS.
_OFFSETS_OF: Final = (RX, TX, FILL, COMPLETION)
_BIND_COPY: Final = 2
_MAP_CREATE, _MAP_UPDATE, _LINK_CREATE = 0, 2, 28
_MAP_XSK, _PROG_XDP, _ATTACH_XDP, _IN_DRIVER = 17, 6, 37, 4
_PASS: Final = 2
#: Fields of struct xdp_md, and the number of the helper bpf_redirect_map.
_DATA, _DATA_END, _QUEUE, _REDIRECT_MAP = 0, 4, 16, 51
#: In an IP header's flags and offset: more fragments, or not the first one.
_FRAGMENT: Final = 0x3FFF
_FRAGMENT_AT: Final = IP_OFFSET + 6
#: The queue that a socket has.
QUEUE: Final = 0
#: Largest MTU of an interface with such a program: a packet, what the kernel puts before and behind it, in a page.
LARGEST_MTU: Final = 1792 - 14
#: A socket that was closed has its queue until the kernel gets to it: so long, in seconds, another one waits.
_BUSY_S: Final = 0.5
_LOOK_S: Final = 0.005


class XdpSocket:
    """A socket on ``interface``, bound, with its frames in ``umem``. Needs root.

    Raises :class:`ConfigError` if the interface's queue has a socket, :class:`Unsupported` if the kernel cannot.
    """

    def __init__(self, interface: str, umem: mmap.mmap, config: RingConfig) -> None:
        try:
            self._sock = socket.socket(AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        except OSError as e:
            raise Unsupported(f"AF_XDP: {e.strerror}; hosting=ring needs root, and a kernel with "
                              "CONFIG_XDP_SOCKETS") from None
        try:
            self._sock.setsockopt(_SOL_XDP, _UMEM_REG, struct.pack(
                "=QQIIII", address_of(umem), config.umem_bytes, config.frame_size, 0, 0, 0))
            for ring in RINGS:
                self._sock.setsockopt(_SOL_XDP, _RING_OPTION[ring], struct.pack("=I", config.ring_entries(ring)))
            _bind(self._sock.fileno(), struct.pack("=HHIII", AF_XDP, _BIND_COPY, socket.if_nametoindex(interface),
                                                   QUEUE, 0))
        except OSError as e:
            self._sock.close()
            if e.errno == errno.EBUSY:
                raise ConfigError(f"{interface} has a guarded process already, and a ring for one only") from None
            raise Unsupported(f"AF_XDP on {interface}: {e.strerror}") from None

    def fileno(self) -> int:
        """The descriptor, by which others may have the rings."""
        return self._sock.fileno()

    def close(self) -> None:
        """Give it up; the memory stays as long as it is mapped."""
        self._sock.close()


def _bind(descriptor: int, address: bytes) -> None:
    bind, end = ctypes.CDLL(None, use_errno=True).bind, time.monotonic() + _BUSY_S
    while bind(descriptor, address, len(address)):
        error = ctypes.get_errno()
        if error != errno.EBUSY or time.monotonic() > end:
            raise OSError(error, os.strerror(error))
        time.sleep(_LOOK_S)


def open_again(descriptor: int) -> socket.socket:
    """A socket object of a descriptor that another process sent; it owns it."""
    return socket.socket(AF_XDP, socket.SOCK_RAW, 0, fileno=descriptor)


def map_ring(descriptor: int, ring: str, length: int) -> mmap.mmap:
    """The memory of a ring of a socket; a page that is not there would end us by SIGBUS. Raises OSError for other
    descriptors."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        raise OSError(errno.ENOTSOCK, os.strerror(errno.ENOTSOCK))
    return mmap.mmap(descriptor, length, offset=_RING_OFFSET[ring])


def offsets(sock: socket.socket) -> dict[str, dict[str, int]]:
    """Where the kernel says that a ring's indices, flags and entries are."""
    words = struct.unpack("=16Q", sock.getsockopt(_SOL_XDP, _MMAP_OFFSETS, 128))
    return {ring: dict(zip(("producer", "consumer", "descriptors", "flags"), words[4 * n:4 * n + 4], strict=True))
            for n, ring in enumerate(_OFFSETS_OF)}


#: What :func:`offsets` must say.
EXPECTED_OFFSETS: Final = {"producer": PRODUCER_AT, "consumer": CONSUMER_AT, "descriptors": ENTRIES_AT,
                           "flags": FLAGS_AT}


def statistics(sock: socket.socket) -> tuple[int, int]:
    """(packets lost for want of a frame or a place in the ring, descriptors that the kernel refused)."""
    dropped, bad_rx, bad_tx, full, no_frame, _no_packet = struct.unpack(
        "=6Q", sock.getsockopt(_SOL_XDP, _STATISTICS, 48))
    return dropped + full + no_frame, bad_rx + bad_tx


class XdpProgram:
    """Packets of one (address, port, protocol) go to ``sock``, until :meth:`close` or the end of the process; of
    UDP those of all ports from ``port`` on."""

    def __init__(self, interface: str, sock: XdpSocket, ip: int, port: int, protocol: int) -> None:
        self._descriptors: list[int] = []
        try:
            table = self._keep(ebpf.call(
                _MAP_CREATE, struct.pack("=IIII", _MAP_XSK, 4, 4, QUEUE + 1) + bytes(104)))
            key, value = (ctypes.create_string_buffer(struct.pack("=I", n)) for n in (QUEUE, sock.fileno()))
            ebpf.call(_MAP_UPDATE, struct.pack("=IIQQQ", table, 0, ctypes.addressof(key),
                                               ctypes.addressof(value), 0))
            program = self._keep(ebpf.load_program(_PROG_XDP, self._code(table, ip, port, protocol)))
            self._keep(ebpf.call(_LINK_CREATE, struct.pack(
                "=IIII", program, socket.if_nametoindex(interface), _ATTACH_XDP, _IN_DRIVER) + bytes(48)))
        except NotImplementedError:
            self.close()
            raise Unsupported("hosting=ring: bpf(2) is not known on this machine; use hosting=inline") from None
        except OSError as e:
            self.close()
            if e.errno == errno.EBUSY:
                raise ConfigError(f"{interface} has another XDP program: 'ip link set dev {interface} xdp off' "
                                  "removes it") from None
            raise Unsupported(f"XDP on {interface}: {e.strerror}; hosting=ring needs root, Linux 5.9 or newer, "
                              "and an interface whose driver has XDP, as veth, with an MTU of at most "
                              f"{LARGEST_MTU}") from None

    def _code(self, table: int, ip: int, port: int, protocol: int) -> bytes:
        if protocol == PROTO_UDP:
            return udp_split_program(table, self._keep(fragment_map()), ip, port)
        return split_program(table, ip, port, protocol)

    def _keep(self, descriptor: int) -> int:
        self._descriptors.append(descriptor)
        return descriptor

    def close(self) -> None:
        """All packets go to the host's kernel again."""
        for descriptor in reversed(self._descriptors):
            with suppress(OSError):
                os.close(descriptor)
        self._descriptors = []


# Operations: loads of a word, half, byte by a pointer; moves; additions; jumps; a 64-bit constant; call; leave.
_LOAD, _LOAD_HALF, _LOAD_BYTE, _MOVE_REG, _MOVE = 0x61, 0x69, 0x71, 0xBF, 0xB7
_ADD, _AND, _JUMP_ABOVE_REG, _JUMP_UNEQUAL_WORD, _CONSTANT64, _CALL, _EXIT = (
    0x07, 0x57, 0x2D, 0x56, 0x18, 0x85, 0x95)


def split_program(table: int, ip: int, port: int, protocol: int) -> bytes:
    """Instructions that give IPv4 packets of (address, port, protocol), whole and without options, to the socket
    in ``table`` for their queue, and all else to the host's kernel; these too, while there is no socket."""
    def swapped(value: int, size: int) -> int:
        return int.from_bytes(value.to_bytes(size, "big"), "little")

    same = [(_LOAD_HALF, ETHERTYPE_AT, swapped(ETHERTYPE_IPV4, 2)), (_LOAD_BYTE, IP_OFFSET, VERSION_IHL),
            (_LOAD_BYTE, PROTOCOL_AT, protocol), (_LOAD, DST_AT, swapped(ip, 4)),
            (_LOAD_HALF, DPORT_AT, swapped(port, 2))]
    checks = [(ebpf.instruction(load, 5, 2, offset), value) for load, offset, value in same]
    # Register 2: the packet, 3: its end, 5: what is looked at.
    code = [ebpf.instruction(_LOAD, 2, 1, _DATA), ebpf.instruction(_LOAD, 3, 1, _DATA_END),
            ebpf.instruction(_MOVE_REG, 4, 2), ebpf.instruction(_ADD, 4, constant=DPORT_AT + 2)]
    rest: list[bytes | tuple[int, int, int]] = [(_JUMP_ABOVE_REG, 4, 0)]
    for load, value in checks:
        rest += [load, (_JUMP_UNEQUAL_WORD, 5, value)]
    rest += [ebpf.instruction(_LOAD_HALF, 5, 2, _FRAGMENT_AT),
             ebpf.instruction(_AND, 5, constant=swapped(_FRAGMENT, 2)), (_JUMP_UNEQUAL_WORD, 5, 0)]
    take = [ebpf.instruction(_LOAD, 2, 1, _QUEUE), ebpf.instruction(_CONSTANT64, 1, 1, constant=table),
            ebpf.instruction(0, 0), ebpf.instruction(_MOVE, 3, constant=_PASS),
            ebpf.instruction(_CALL, 0, constant=_REDIRECT_MAP), ebpf.instruction(_EXIT, 0)]
    for number, step in enumerate(rest):
        if isinstance(step, bytes):
            code.append(step)
            continue
        operation, register, value = step
        miss = len(rest) - number - 1 + len(take)
        source = 3 if operation == _JUMP_ABOVE_REG else 0
        code.append(ebpf.instruction(operation, register, source, miss, value))
    return b"".join((*code, *take, ebpf.instruction(_MOVE, 0, constant=_PASS), ebpf.instruction(_EXIT, 0)))
