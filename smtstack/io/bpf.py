"""Classic BPF programs for packet sockets (Linux ``filter.txt``): small enough to write by hand."""

from __future__ import annotations

import ctypes
import socket
import struct
from collections.abc import Sequence

#: (code, jump if true, jump if false, constant)
Instruction = tuple[int, int, int, int]

LD_WORD, LD_HALF, LD_BYTE = 0x20, 0x28, 0x30
JUMP_EQUAL = 0x15
#: Jumps if any bit of the constant is set.
JUMP_SET = 0x45
RSH, MOD = 0x74, 0x94
RETURN, RETURN_A = 0x06, 0x16
ACCEPT = 0x40000

SO_ATTACH_FILTER = 26


def match(fields: list[tuple[int, int, int]], more: Sequence[Instruction] = ()) -> list[Instruction]:
    """Accept a packet whose every (load, offset, value) matches; the rest never reaches the socket.

    ``more``, after these, goes on to the instruction behind it to accept, and one further to refuse.
    """
    program: list[Instruction] = []
    for number, (load, offset, value) in enumerate(fields):
        # Both instructions of every field after this one, and the accept, are jumped over on a mismatch.
        miss = 2 * (len(fields) - number - 1) + len(more) + 1
        program += [(load, 0, 0, offset), (JUMP_EQUAL, 0, miss, value)]
    return [*program, *more, (RETURN, 0, 0, ACCEPT), (RETURN, 0, 0, 0)]


def reject_all() -> list[Instruction]:
    """Accept nothing: for a socket that is there only to be there."""
    return [(RETURN, 0, 0, 0)]


def attach(sock: socket.socket, program: list[Instruction], level: int = socket.SOL_SOCKET,
           option: int = SO_ATTACH_FILTER) -> None:
    """Give ``program`` to the kernel (``struct sock_fprog``)."""
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code)
    # "HP" in native alignment is struct sock_fprog: a length, padding, a pointer.
    sock.setsockopt(level, option, struct.pack("HP", len(program), ctypes.addressof(buffer)))
