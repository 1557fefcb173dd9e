"""Programs in the kernel's eBPF, assembled by hand: the one that says to which queue of a TAP a packet goes. That
of a guarded process is in :mod:`smtstack.io.xdp`.

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


def instruction(code: int, target: int, source: int = 0, offset: int = 0, constant: int = 0) -> bytes:
    return struct.pack("=BBhI", code, source << 4 | target, offset, constant & 0xFFFFFFFF)


def steering_program(queues: int) -> bytes:
    """Instructions that choose one of twice ``queues`` queues: by the packet's flow, and the upper half for those
    that are marked as plaintext (:mod:`smtstack.nic.plaintext`)."""
    return b"".join((
        instruction(_LOAD, 0, 1, _HASH_AT), instruction(_MOD, 0, constant=queues),
        instruction(_LOAD, 2, 1, _MARK_AT), instruction(_AND_WORD, 2, constant=PLAINTEXT_MASK),
        instruction(_MOVE_WORD, 3, constant=PLAINTEXT_MARK),
        instruction(_JUMP_UNEQUAL, 2, 3, 1), instruction(_ADD, 0, constant=queues), instruction(_EXIT, 0)))


def load(program: bytes) -> int:
    """Give a program to the kernel, which checks it; its descriptor. Raises :class:`Unsupported`."""
    try:
        return load_program(_SOCKET_FILTER, program)
    except NotImplementedError:
        raise Unsupported(f"a TAP's queues cannot be chosen on {platform.machine()}: only on "
                          f"{', '.join(_SYS_BPF)}; use hosting=inline") from None
    except OSError as e:
        raise Unsupported("the kernel takes no eBPF program, by which a NIC with hosting=tap knows plaintext: "
                          f"{e.strerror}; it needs root, and CONFIG_BPF_SYSCALL") from None


def load_program(kind: int, program: bytes) -> int:
    """Give the kernel a program of a kind of ``enum bpf_prog_type``; its descriptor. Raises OSError,
    NotImplementedError: not on this machine."""
    code, license_name = ctypes.create_string_buffer(program), ctypes.create_string_buffer(b"GPL")
    # union bpf_attr: type, number of instructions, where they are, licence, no log.
    return call(_PROG_LOAD, struct.pack("=IIQQIIQI", kind, len(program) // 8, ctypes.addressof(code),
                                        ctypes.addressof(license_name), 0, 0, 0, 0) + bytes(72))


def call(command: int, attributes: bytes) -> int:
    """bpf(2) with a ``union bpf_attr``; what it returns. Raises OSError, NotImplementedError."""
    number = _SYS_BPF.get(platform.machine())
    if number is None:
        raise NotImplementedError
    buffer = ctypes.create_string_buffer(attributes)
    result = ctypes.CDLL(None, use_errno=True).syscall(number, command, buffer, len(attributes))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)
