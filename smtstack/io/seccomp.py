"""What a guarded process may not do, enforced by the kernel: a seccomp filter (Linux ``seccomp_filter.txt``)."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import threading
from collections.abc import Iterable
from typing import Final

from smtstack.errors import Unsupported
from smtstack.io import bpf

# Linux <linux/prctl.h>, <linux/seccomp.h>, <linux/audit.h>
_NO_NEW_PRIVILEGES: Final = 38
_SET_FILTER, _TO_ALL_THREADS = 1, 1
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF_0000, 0x0005_0000, 0x8000_0000
_EPERM: Final = 1
#: In struct seccomp_data: number of the call, architecture.
_NUMBER_AT, _ARCH_AT = 0, 4
_ARCH: Final = {"x86_64": 0xC000003E}
_SYS_SECCOMP: Final = 317
#: Numbers from here on are those of x32.
_X32: Final = 0x4000_0000
_JUMP_AT_LEAST: Final = 0x35

#: System calls of x86-64 that move packets, wait for them, or make something by which one could.
DENIED: Final = {
    "socket": 41, "connect": 42, "accept": 43, "sendto": 44, "recvfrom": 45, "sendmsg": 46, "recvmsg": 47,
    "bind": 49, "listen": 50, "socketpair": 53, "setsockopt": 54, "getsockopt": 55, "accept4": 288,
    "recvmmsg": 299, "sendmmsg": 307,
    "poll": 7, "select": 23, "epoll_wait": 232, "epoll_ctl": 233, "pselect6": 270, "ppoll": 271,
    "epoll_pwait": 281, "epoll_pwait2": 441,
    "ioctl": 16, "sendfile": 40, "splice": 275, "tee": 276, "vmsplice": 278,
    "io_setup": 206, "io_submit": 209, "io_getevents": 208, "io_uring_setup": 425, "io_uring_enter": 426,
    "io_uring_register": 427,
    "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "bpf": 321, "pidfd_getfd": 438, "setns": 308,
    "unshare": 272,
}


def filter_of(denied: Iterable[int], kill: bool) -> list[bpf.Instruction]:
    """Instructions that let all calls pass but ``denied`` ones, and those of other instruction sets."""
    numbers = list(denied)
    arch = _ARCH[platform.machine()]
    refuse = _KILL_PROCESS if kill else _ERRNO | _EPERM
    program: list[bpf.Instruction] = [
        (bpf.LD_WORD, 0, 0, _ARCH_AT), (bpf.JUMP_EQUAL, 1, 0, arch), (bpf.RETURN, 0, 0, _KILL_PROCESS),
        (bpf.LD_WORD, 0, 0, _NUMBER_AT), (_JUMP_AT_LEAST, len(numbers) + 1, 0, _X32)]
    for index, number in enumerate(numbers):
        program.append((bpf.JUMP_EQUAL, len(numbers) - index, 0, number))
    return [*program, (bpf.RETURN, 0, 0, _ALLOW), (bpf.RETURN, 0, 0, refuse)]


def guard(kill: bool = False) -> None:
    """From now on, and for good, none of :data:`DENIED` in any thread of this process, and in none that it starts:
    they fail with EPERM, or with ``kill`` end the process. Raises :class:`Unsupported`."""
    if platform.machine() not in _ARCH:
        raise Unsupported(f"a guarded process cannot be on {platform.machine()}, only on {', '.join(_ARCH)}")
    program = filter_of(DENIED.values(), kill)
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in program))
    argument = struct.pack("HP", len(program), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0) or libc.syscall(_SYS_SECCOMP, _SET_FILTER, _TO_ALL_THREADS,
                                                                  argument):
        raise Unsupported(f"seccomp: {os.strerror(ctypes.get_errno())}; a guarded process needs "
                          "CONFIG_SECCOMP_FILTER")


def guarded() -> bool:
    """Whether this thread is under a filter."""
    # Not by open(), which asks by ioctl whether it is a terminal.
    descriptor = os.open(f"/proc/self/task/{threading.get_native_id()}/status", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return any(line.split() == [b"Seccomp:", b"2"] for line in os.read(descriptor, 1 << 16).splitlines())
    finally:
        os.close(descriptor)
