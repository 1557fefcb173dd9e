"""Programs in the kernel's eBPF, assembled by hand: the one that says to which queue of a TAP a packet goes.

Linux ``bpf(2)``, ``<linux/bpf.h>``. Needs CAP_BPF or root.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct

from smtstack.errors import Unsupported
from smtstack.nic.plaintext import PLAINTEXT_MARK, PLAINTEXT_MASK

_SYS_BPF = {"x86_64": 321, "aarch64": 280}
_PROG_LOAD, _SOCKET_FILTER = 5, 1
# Fields of struct __sk_buff that a program sees.
_MARK_AT, _HASH_AT = 8, 68
# Operations: load a word by a pointer; 64-bit: move, and, add, modulo by a constant; 32-bit move of a register;
# jump if not equal to a register; leave.
_LOAD, _MOVE, _MOVE_WORD, _AND_WORD, _MOD, _ADD, _JUMP_UNEQUAL, _EXIT = (
    0x61, 0xB7, 0xB4, 0x54, 0x97, 0x07, 0x5D, 0x95)


def _instruction(code: int, target: int, source: int = 0, offset: int = 0, constant: int = 0) -> bytes:
    return struct.pack("=BBhI", code, source << 4 | target, offset, constant & 0xFFFFFFFF)


def steering_program(queues: int) -> bytes:
    """Instructions that choose one of twice ``queues`` queues: by the packet's flow, and the upper half for those
    that are marked as plaintext (:mod:`smtstack.nic.plaintext`)."""
    return b"".join((
        _instruction(_LOAD, 0, 1, _HASH_AT), _instruction(_MOD, 0, constant=queues),
        _instruction(_LOAD, 2, 1, _MARK_AT), _instruction(_AND_WORD, 2, constant=PLAINTEXT_MASK),
        _instruction(_MOVE_WORD, 3, constant=PLAINTEXT_MARK),
        _instruction(_JUMP_UNEQUAL, 2, 3, 1), _instruction(_ADD, 0, constant=queues), _instruction(_EXIT, 0)))


def load(program: bytes) -> int:
    """Give a program to the kernel, which checks it; its descriptor. Raises :class:`Unsupported`."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise Unsupported(f"a TAP's queues cannot be chosen on {platform.machine()}: only on "
                          f"{', '.join(_SYS_BPF)}; use hosting=inline")
    code, license_name = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    # union bpf_attr: type, number of instructions, where they are, licence, no log.
    attributes = ctypes.create_string_buffer(struct.pack(
        "=IIQQIIQI", _SOCKET_FILTER, len(program) // 8, ctypes.addressof(code), ctypes.addressof(license_name),
        0, 0, 0, 0) + bytes(72))
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.syscall(number, _PROG_LOAD, attributes, len(attributes) - 1)
    if descriptor < 0:
        raise Unsupported("the kernel takes no eBPF program, by which a NIC with hosting=tap knows plaintext: "
                          f"{os.strerror(ctypes.get_errno())}; it needs root, and CONFIG_BPF_SYSCALL")
    return int(descriptor)
