"""A receive ring shared with the kernel (PACKET_MMAP): frames without a system call each."""

from __future__ import annotations

import mmap
import socket
import struct

from smtstack.wire.overlay import is_overlay

# Linux <linux/if_packet.h>
SOL_PACKET = 263
PACKET_RX_RING = 5
PACKET_COPY_THRESH = 7
PACKET_VERSION = 10
SO_RCVBUFFORCE = 33
TPACKET_V2 = 1

#: status, length on the wire, captured length, where the frame starts in its slot: struct tpacket2_hdr.
_SLOT = struct.Struct("=IIIH")
#: Bytes before the frame in a slot, with room for what newer kernels put there.
_SLOT_EXTRA = 128
RING_BYTES = 8 << 20
#: Slots of a ring for the largest frames, at the least.
_MIN_SLOTS = 128
_BLOCK = 1 << 16
#: In a slot's status: the whole frame, which did not fit the slot, waits in the socket's own queue, too.
_COPY = 2
#: Bytes of memory that frames may occupy there.
LONG_FRAMES = 32 << 20


class ReceiveRing:
    """Slots of one size that the kernel fills in order and this side empties in order.

    A slot's first word says whose it is: 0 the kernel's, else ours. While the next slot is the kernel's there
    is nothing to receive, and finding that out costs one look at memory. The socket polls readable while
    slots wait.

    With ``super_frames`` a frame that does not fit its slot comes whole all the same: the kernel keeps it in the
    socket's queue, without a copy, and the slot says so (packet(7), PACKET_COPY_THRESH). Slots stay small.
    """

    __slots__ = ("_at", "_longest", "_map", "_slot", "_sock", "_stop", "_words", "longest", "lost", "slots",
                 "too_long")

    def __init__(self, sock: socket.socket, frame_size: int, super_frames: bool = False) -> None:
        """Frames longer than ``frame_size`` may be cut. Raises OSError, with the socket as it was."""
        # A power of two, so that slots fill blocks and never straddle two.
        slot = 1 << (frame_size + _SLOT_EXTRA - 1).bit_length()
        block = max(_BLOCK, slot)
        size = max(RING_BYTES, _MIN_SLOTS * slot)
        if super_frames:
            sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, LONG_FRAMES)
            sock.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, 1)
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", block, size // block, slot, size // slot))
        self._longest = frame_size
        #: Where long frames are to be had; None: nowhere.
        self._sock = sock if super_frames else None
        #: Super-frames of which the kernel had no room for more than the beginning.
        self.lost = 0
        #: Frames that were longer than they may be, and the longest of these in bytes.
        self.too_long = self.longest = 0
        #: Frames it holds; what comes when it is full is dropped, and counted by the kernel.
        self.slots = size // slot
        self._map = mmap.mmap(sock.fileno(), size)
        self._words = memoryview(self._map).cast("I")
        #: The next slot, and the size of all, in words.
        self._at = 0
        self._slot = slot // 4
        self._stop = size // 4

    def take(self, limit: int) -> list[bytes]:
        """The frames that wait, oldest first, at most ``limit``."""
        words = self._words
        at = self._at
        if not words[at]:
            return []
        frames = []
        memory = self._map
        while words[at]:
            status, length, size, offset = _SLOT.unpack_from(memory, at << 2)
            start = (at << 2) + offset
            if length <= self._longest:
                frames.append(memory[start:start + size])
            else:
                frame = self._long(status, length, memory[start:start + size])
                if frame:
                    frames.append(frame)
            words[at] = 0
            at += self._slot
            if at == self._stop:
                at = 0
            if len(frames) == limit:
                break
        self._at = at
        return frames

    def _long(self, status: int, length: int, start: bytes) -> bytes:
        """The whole of a frame that is longer than the interface's; or what there is of it. Empty: it is lost."""
        whole = start
        if status & _COPY:
            assert self._sock is not None
            # One for each slot that says so, in the same order.
            whole = self._sock.recv(length)
        if not is_overlay(start):
            self.too_long += 1
            self.longest = max(self.longest, length)
        elif self._sock is not None and len(whole) < length:
            self.lost += 1
            return b""
        return whole

    def close(self) -> None:
        """Unmap. The socket may be closed before or after."""
        self._words.release()
        self._map.close()
