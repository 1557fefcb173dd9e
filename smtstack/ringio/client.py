"""Starts the host's process behind TCP and files of this one, asks it for rings, and checks what it gets::

    with Proxies([folder]) as proxies:
        ring = proxies.rings[0]
        with ProxyFile(ring, folder / "log") as file:
            file.pwrite(b"hello", 0)
            file.fdatasync()
        listener = ProxyListener(ring, ("127.0.0.1", 7001))

After that a process may put itself under a filter (:func:`smtstack.io.seccomp.guard`), and goes on.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.io.memory import address_of, map_untrusted, other_ranges
from smtstack.ringio.host import DESCRIPTORS
from smtstack.ringio.queue import IoRing
from smtstack.ringnic import messages
from smtstack.ringnic.bell import SIZE, Bell
from smtstack.rings.checker import Range
from smtstack.rings.memory import SharedMemory
from smtstack.rings.uring import CertifiedUring, Descriptors
from smtstack.rings.uring_checker import POINTERS, SharedUring, check_urings
from smtstack.rings.uring_layout import MEMORIES, UringConfig

#: Seconds that the host gets to start on a loaded machine, and to end; and what was sent to leave.
_PATIENCE_S: Final = 20.0
_LINGER_S: Final = 1.0


class Proxies:
    """TCP and files of the host's. ``allowed``: files and folders (absolute) that it may open for us; ``rings``:
    one for each thread; ``certified=False``: believe the host in everything; ``backing``: ``kernel`` for its
    io_uring, ``memory`` for system calls behind rings in memory, empty: the kernel's if there is one; ``exits``:
    no ring, each operation an exit to the host's process; ``exit_ns``: what each is said to cost beside, a model.

    Raises :class:`ConfigError` if the host's memory may not be used, :class:`Unsupported` if there is no host.
    """

    def __init__(self, allowed: Sequence[Path] = (), rings: int = 1, certified: bool = True, backing: str = "",
                 exits: bool = False, exit_ns: int = 0, config: UringConfig | None = None) -> None:
        self._config = config or UringConfig()
        self._certified = certified
        self._exits = exits
        self._exit_ns = exit_ns
        self._mappings: list[mmap.mmap] = []
        self._memories: list[SharedMemory] = []
        self._pages: list[Bell] = []
        self._open: list[int] = []
        self._closed = False
        #: Whose the rings are, as :mod:`smtstack.ringnic.messages` names it.
        self.backing = ""
        self.rings: list[IoRing] = []
        self._host, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603 - our own module
                [sys.executable, "-m", "smtstack.ringio.host", str(theirs.fileno())], stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()], start_new_session=True)
        try:
            self._ask(rings, backing, allowed)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """The number of the host's process."""
        return self._process.pid

    def _ask(self, count: int, backing: str, allowed: Sequence[Path]) -> None:
        config = self._config
        self._host.settimeout(_PATIENCE_S)
        asked = {"rings": count, "backing": backing, "allow": [os.path.abspath(path) for path in allowed],
                 "entries": config.entries, "buffers": config.buffers, "buffer_size": config.buffer_size}
        checked: list[SharedUring] = []
        descriptors = Descriptors()
        try:
            self._host.send(json.dumps(asked).encode())
            for _number in range(count):
                answer, given, _flags, _address = socket.recv_fds(self._host, messages.LONGEST, len(DESCRIPTORS))
                self._open += given
                fields = messages.read_untrusted(answer)
                messages.check(fields)
                if len(given) != len(DESCRIPTORS):
                    raise ConfigError("the host sent too few descriptors")
                self._take(fields, dict(zip(DESCRIPTORS, given, strict=True)), checked, descriptors)
        except OSError as e:
            raise Unsupported(f"the host's process behind TCP and files: {e.strerror or e}") from None

    def _take(self, fields: dict[str, Any], given: dict[str, int], checked: list[SharedUring],
              descriptors: Descriptors) -> None:
        """Map a ring's memories, check them, and all those before beside them."""
        config = self._config
        mappings = {name: map_untrusted(given[name], -(-config.bytes_of(name) // mmap.PAGESIZE) * mmap.PAGESIZE)
                    for name in MEMORIES}
        self._mappings += mappings.values()
        starts = {name: address_of(mapping) for name, mapping in mappings.items()}
        try:
            checked.append(said_untrusted(fields, given["bell"], starts,
                                          {name: len(mapping) for name, mapping in mappings.items()}))
            base = int(fields["base"])
            if not 0 <= base < 1 << 63:
                raise ValueError
            self.backing = str(fields["backing"])
        except (TypeError, ValueError, KeyError, OverflowError):
            raise ConfigError("the host's memory is refused: it does not say where what is") from None
        theirs = {memory.start for uring in checked for memory in uring.memories}
        ours = [Range("memory of ours", start, length) for start, length in other_ranges(theirs)]
        check_urings(checked, config, ours)
        memories = {name: SharedMemory(name, mapping) for name, mapping in mappings.items()}
        self._memories += memories.values()
        page = Bell(map_untrusted(given["page"], SIZE))
        self._pages.append(page)
        # The kernel has used these queues for nobody before: their indices are 0.
        uring = CertifiedUring(memories, config, base, self._certified, descriptors)
        self.rings.append(IoRing(uring, page, given["bell"], given["ask"], given["answer"], given["life"],
                                 self._exits, self._exit_ns))

    def counters(self) -> dict[str, int]:
        """Sums over all rings; ``iouring_in_memory`` says that they are not the kernel's."""
        counted: Counter[str] = Counter()
        for ring in self.rings:
            counted.update(ring.counters())
        return {**counted, "iouring_in_memory": int(self.backing == messages.MEMORY)}

    def refused(self) -> int:
        """What was not believed; 0 with an honest host."""
        return sum(ring.uring.refused() for ring in self.rings)

    def close(self) -> None:
        """Wait a moment for what is being sent, and end the host's process: it closes what is open. May be called
        twice."""
        if self._closed:
            return
        self._closed = True
        try:
            for ring in self.rings:
                ring.until(lambda ring=ring: not ring.going_out, _LINGER_S)  # type: ignore[misc]
        except SmtError:
            pass  # it ended before us
        self._host.close()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for memory in self._memories:
            memory.release()
        for page in self._pages:
            page.close()
        for mapping in self._mappings:
            mapping.close()
        for descriptor in self._open:
            os.close(descriptor)

    def __enter__(self) -> Proxies:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


def said_untrusted(fields: dict[str, Any], descriptor: int, starts: dict[str, int],
                   lengths: dict[str, int]) -> SharedUring:
    """What the host says of a ring, whose memories we have mapped at ``starts``, for the checker. Raises
    TypeError, ValueError, KeyError, OverflowError for what is not there."""
    entries, completions, buffer_size = (int(fields[name]) for name in ("entries", "completions", "buffer_size"))
    pointers = [starts[memory] + int(offset)
                for (memory, _wanted), offset in zip(POINTERS.values(), fields["pointers"], strict=True)]
    memories = [Range(name, starts[name], lengths[name]) for name in MEMORIES]
    return SharedUring(descriptor, memories, entries, completions, buffer_size, pointers)
