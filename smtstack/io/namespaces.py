"""Network namespaces: which one a process is in, what is in it, and whether it is still there."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from smtstack.errors import ConfigError, Unsupported

# Linux <asm-generic/socket.h>, <linux/sockios.h>, <linux/sched.h>; Python has no names for these.
SO_NETNS_COOKIE = 71
SIOCGIFINDEX = 0x8933
CLONE_NEWNET = 0x40000000
IFNAMSIZ = 16

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace."""

    cookie: int
    """Never used again until the machine restarts; before Linux 5.14 the inode, which is used again."""
    inode: int


def locate(interface: str, pid: int | None = None) -> Namespace:
    """The network namespace of process ``pid`` (None: ours), which must have ``interface``.

    Raises :class:`ConfigError` if it has not, or there is no such process.
    """
    try:
        inode = os.stat(f"/proc/{pid or 'self'}/ns/net").st_ino
    except PermissionError:
        raise Unsupported(f"the network of process {pid} needs root: run with sudo") from None
    except OSError:
        raise ConfigError(f"no process {pid}; --pid is any process on that host") from None
    cookie, exists = within(pid, lambda: (_cookie(), interface_exists(interface)))
    if not exists:
        if pid is None:
            raise ConfigError(f"no interface {interface!r} here; 'ip link' lists them, --pid is for other hosts")
        raise ConfigError(f"no interface {interface!r} on the host of process {pid}; 'ip link' lists them")
    return Namespace(cookie or inode, inode)


def interface_exists(interface: str) -> bool:
    """Whether our namespace has it."""
    name = interface.encode()
    if not 0 < len(name) < IFNAMSIZ:
        return False
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            fcntl.ioctl(s, SIOCGIFINDEX, struct.pack("16s24x", name))
        except OSError as e:
            if e.errno in (errno.ENODEV, errno.ENXIO):
                return False
            raise
    return True


def within(pid: int | None, look: Callable[[], T]) -> T:
    """The value of ``look()`` in the network namespace of process ``pid`` (None: ours). Raises as it does.

    A thread goes there, since only a thread's namespace can be changed and left again.
    """
    if pid is None:
        return look()
    values: list[T] = []
    errors: list[Exception] = []

    def visit() -> None:
        try:
            with open(f"/proc/{pid}/ns/net", "rb") as f:
                if ctypes.CDLL(None, use_errno=True).setns(f.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            values.append(look())
        except Exception as e:
            errors.append(e)

    thread = threading.Thread(target=visit, name=f"namespace of {pid}")
    thread.start()
    thread.join()
    if not errors:
        return values[0]
    if isinstance(errors[0], PermissionError):
        raise Unsupported(f"the network of process {pid} needs root: run with sudo") from None
    if isinstance(errors[0], OSError):
        raise ConfigError(f"process {pid}: {errors[0].strerror}; --pid is any process on that host") from None
    raise errors[0]


def _cookie() -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            return int(struct.unpack("Q", s.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])
        except OSError:
            return 0


def pid_namespace() -> int:
    """Inode of our pid namespace: what /proc shows us is all that is in it."""
    return os.stat("/proc/self/ns/pid").st_ino


class Census:
    """Which network namespaces there are, as far as we can see: of processes, and mounted where one sees it."""

    def __init__(self) -> None:
        self._inhabited: set[int] = set()
        #: A process of every mount namespace.
        mounts: dict[int, str] = {}
        for pid in _pids():
            with contextlib.suppress(OSError):
                self._inhabited.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
                mounts.setdefault(os.stat(f"/proc/{pid}/ns/mnt").st_ino, pid)
        self._mounts = list(mounts.values())

    def knows(self, inode: int) -> bool:
        """Whether the network namespace ``inode`` is still there."""
        if inode in self._inhabited:
            return True
        name = f" net:[{inode}] "
        for pid in self._mounts:
            with contextlib.suppress(OSError), open(f"/proc/{pid}/mountinfo") as f:
                if any(name in line for line in f):
                    return True
        return False


def _pids() -> Iterator[str]:
    return (name for name in os.listdir("/proc") if name.isdigit())
