"""A receive ring shared with the kernel (PACKET_MMAP): frames without a system call each."""

from __future__ import annotations

import mmap
import socket
import struct

# Linux <linux/if_packet.h>
SOL_PACKET = 263
PACKET_RX_RING = 5
PACKET_VERSION = 10
TPACKET_V2 = 1

#: status, length on the wire, captured length, where the frame starts in its slot: struct tpacket2_hdr.
_SLOT = struct.Struct("=IIIH")
#: Bytes before the frame in a slot, with room for what newer kernels put there.
_SLOT_EXTRA = 128
RING_BYTES = 8 << 20
#: Slots of a ring for the largest frames, at the least.
_MIN_SLOTS = 128
_BLOCK = 1 << 16


class ReceiveRing:
    """Slots of one size that the kernel fills in order and this side empties in order.

    A slot's first word says whose it is: 0 the kernel's, else ours. While the next slot is the kernel's there
    is nothing to receive, and finding that out costs one look at memory. The socket polls readable while
    slots wait.
    """

    __slots__ = ("_at", "_longest", "_map", "_slot", "_stop", "_words", "longest", "slots", "too_long")

    def __init__(self, sock: socket.socket, frame_size: int) -> None:
        """Frames longer than ``frame_size`` may be cut. Raises OSError, with the socket as it was."""
        # A power of two, so that slots fill blocks and never straddle two.
        slot = 1 << (frame_size + _SLOT_EXTRA - 1).bit_length()
        block = max(_BLOCK, slot)
        size = max(RING_BYTES, _MIN_SLOTS * slot)
        sock.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        sock.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("IIII", block, size // block, slot, size // slot))
        self._longest = frame_size
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
            _status, length, size, offset = _SLOT.unpack_from(memory, at << 2)
            if length > self._longest:
                self.too_long += 1
                self.longest = max(self.longest, length)
            start = (at << 2) + offset
            frames.append(memory[start:start + size])
            words[at] = 0
            at += self._slot
            if at == self._stop:
                at = 0
            if len(frames) == limit:
                break
        self._at = at
        return frames

    def close(self) -> None:
        """Unmap. The socket may be closed before or after."""
        self._words.release()
        self._map.close()
