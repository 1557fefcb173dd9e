"""Records packets at the smart NIC into a pcapng file: what leaves and enters it, and what drivers post.

The wire side is what the device emits, encrypted and cut, and what it receives. The host side is what the
driver posts, before the device has done anything to it: whole segments, and *plaintext* where the device
is to encrypt. It is the only place that shows which record number the device is about to use. Impairments
sit beyond both, so a frame that they drop on its way out is recorded all the same.

Who sealed a record cannot be seen on the wire: a comment on each frame that leaves says "offload: hw" if the
device did, and "offload: sw" if a record begins in the frame that came to the device sealed.

All endpoints of an interface append to one file, whole blocks at a time.
"""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path

from smtstack.capture import pcapng
from smtstack.errors import ConfigError
from smtstack.nic.descriptors import Descriptor, Resync, Send

_WIRE, _HOST = 0, 1
#: How a record begins that is sealed already (RFC 8446 §5.2).
_RECORD = b"\x17\x03\x03"
#: Bytes collected before they are written, if nothing else makes them be written.
_BUFFER = 1 << 16


def create_tap(path: Path, interface: str, host_side: bool) -> None:
    """Make the file; raises :class:`ConfigError` if it exists or cannot be made. Only its owner may read it."""
    head = pcapng.section("smtnet") + pcapng.interface(interface)
    if host_side:
        head += pcapng.interface(interface + pcapng.HOST_SIDE)
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{path} exists; captures are not overwritten: take another name") from None
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    with os.fdopen(fd, "wb") as f:
        f.write(head)


class Tap:
    """One endpoint's recording: the device's :class:`~smtstack.nic.device.Watcher`. Raises OSError when made."""

    def __init__(self, path: str, host_side: bool) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise ConfigError(f"{path} is no file")
        self._blocks: list[bytes] = []
        self._size = 0
        #: What the descriptors posted so far left behind, by queue: a RESYNC not yet followed by its segment.
        self._resyncs: dict[int, Resync] = {}
        #: Times the file could not be written; after the first nothing is recorded any more.
        self.errors = 0
        self._host_side = host_side

    def done(self, queue: int, descriptor: Descriptor, sequence: int, frames: list[bytes]) -> None:
        """Record what was posted, if that is wanted, and what left."""
        now = time.time_ns()
        if self._host_side:
            self._posted(queue, descriptor, sequence, now)
        comment = _sealed_by(descriptor)
        for frame in frames:
            self._add(pcapng.packet(_WIRE, now, frame, outwards=True, comment=comment))

    def arrived(self, frame: bytes) -> None:
        """Record what came."""
        self._add(pcapng.packet(_WIRE, time.time_ns(), frame, outwards=False))

    def left(self, queue: int, segment: bytes, frames: list[bytes], comment: str) -> None:
        """Record a segment of the kernel's, if the host side is wanted, and the frames that it became."""
        now = time.time_ns()
        if self._host_side:
            self._add(pcapng.packet(_HOST, now, segment, outwards=True, comment=f"queue {queue}"))
        for frame in frames:
            self._add(pcapng.packet(_WIRE, now, frame, outwards=True, comment=comment))

    def _posted(self, queue: int, descriptor: Descriptor, sequence: int, now: int) -> None:
        if isinstance(descriptor, Resync):
            self._resyncs[queue] = descriptor
            return
        comment = f"queue {queue}"
        resync = self._resyncs.pop(queue, None)
        if descriptor.context:
            comment += f", context {descriptor.context}, first record {sequence}"
            if resync is not None and resync.context == descriptor.context:
                comment += ", RESYNC before"
        frame = descriptor.route.frame(descriptor.tos, descriptor.ip_id, descriptor.header, descriptor.payload)
        self._add(pcapng.packet(_HOST, now, frame, outwards=True, comment=comment))

    def _add(self, block: bytes) -> None:
        self._blocks.append(block)
        self._size += len(block)
        if self._size > _BUFFER:
            self.flush()

    def flush(self) -> None:
        """Write what was recorded. In one piece: other endpoints write to the same file."""
        if not self._blocks:
            return
        data = b"".join(self._blocks)
        self._blocks.clear()
        self._size = 0
        if self.errors:
            return
        try:
            written = os.write(self._fd, data)
        except OSError:
            written = 0
        if written < len(data):
            self.errors += 1

    def close(self) -> None:
        """Write the rest."""
        self.flush()
        os.close(self._fd)


def _sealed_by(descriptor: Descriptor) -> str:
    """The comment on the frames a descriptor makes."""
    if not isinstance(descriptor, Send):
        return ""
    if descriptor.context:
        return f"offload: hw, context {descriptor.context}"
    return "offload: sw" if descriptor.payload.startswith(_RECORD) else ""
