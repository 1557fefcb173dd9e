"""How full the buffers of a shaped interface get, looked at every few milliseconds while something runs.

By rtnetlink itself (Linux <linux/rtnetlink.h>, <linux/gen_stats.h>): a look takes a tenth of a millisecond, where
starting ``tc`` takes several.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress

from topo.shaping import queues_of

#: Seconds between two looks: what a link of 100 Mbit/s sends meanwhile is 50 KB.
_LOOK_S = 0.004
_RTM_GETTCLASS, _DUMP = 42, 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
#: struct tcmsg: family, interface, handle, parent, info.
_TCMSG = struct.Struct("=B3xiIII")
_TCA_STATS2, _TCA_STATS_QUEUE = 7, 3
#: struct gnet_stats_queue: packets and bytes that wait.
_QUEUE = struct.Struct("=II")


class Backlog:
    """From :meth:`start` to :meth:`stop`; ``peak``: the most bytes that were seen in the buffer of one priority.
    ``interface`` is one of our own namespace, with a rate."""

    def __init__(self, interface: str) -> None:
        self._index = socket.if_nametoindex(queues_of(interface))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"backlog of {interface}", daemon=True)
        self.peak = 0

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> int:
        """No more looks; :attr:`peak`."""
        self._over.set()
        self._thread.join()
        return self.peak

    def _watch(self) -> None:
        # A network that is broken already is somebody else's to report.
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as sock, suppress(OSError):
            while not self._over.wait(_LOOK_S):
                self.peak = max(self.peak, *waiting(sock, self._index), 0)


def waiting(sock: socket.socket, index: int) -> list[int]:
    """Bytes that wait in each class of the interface with that index. Raises OSError."""
    request = _TCMSG.pack(0, index, 0, 0, 0)
    sock.send(_HEADER.pack(_HEADER.size + len(request), _RTM_GETTCLASS, _DUMP, 1, 0) + request)
    found: list[int] = []
    while True:
        for kind, body in _messages(sock.recv(65_536)):
            if kind == _NLMSG_DONE:
                return found
            if kind == _NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, f"no traffic classes of interface {index}")
            for name, value in _attributes(body[_TCMSG.size:]):
                if name == _TCA_STATS2:
                    found += [_QUEUE.unpack_from(queue)[1] for inner, queue in _attributes(value)
                              if inner == _TCA_STATS_QUEUE]


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, body) of each."""
    while data:
        length, kind, _flags, _sequence, _port = _HEADER.unpack_from(data)
        yield kind, data[_HEADER.size:length]
        data = data[length + 3 & ~3:]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, value) of each; nested ones have a flag in the type."""
    while data:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[length + 3 & ~3:]
