"""What must not be set back with the disk: the trusted state of a device, two slots in a small file.

It says which device is the one, the sequence number of its last durable commit and, if it is ``sealed``, the root
of its hash tree; a ``counter`` is trusted with the number alone, as a monotonic counter in hardware would be. It
only helps where whoever can put back an old disk cannot put back an old state with it: on another disk, another
host, or in hardware that this file stands for. Written to alternate slots, so that a torn write leaves the other
one::

    slot       one sector: nonce 12, AES-256-GCM of the rest (the slot's number is authenticated), tag 16
    the rest   magic 8, generation u64, count u32, count x (device 16, sequence u64, root 32), zeros

Two devices are in it only while one takes the other's place (the key-value store's log written anew).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.errors import AuthError
from smtstack.storage.device import SECTOR, BlockDevice
from smtstack.storage.keys import derive
from smtstack.storage.layout import NO_ROOT

_HEAD: Final = struct.Struct("<8sQI")
_ITEM: Final = struct.Struct("<16sQ32s")
_MAGIC: Final = b"smttrs01"
_NONCE: Final = 12
_SIZE: Final = 256
_TAG: Final = 16
SLOTS: Final = 2
_MOST: Final = 2


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a device has come. ``root`` is NO_ROOT for a counter."""

    sequence: int
    root: bytes = NO_ROOT


class TrustedState:
    """On a small device of :data:`SLOTS` sectors, which it closes with itself.

    ``kind``: ``sealed`` or ``counter``. Raises :class:`AuthError` if there is something but nothing that this key
    sealed, OSError.
    """

    def __init__(self, device: BlockDevice, key: bytes, kind: str) -> None:
        self._device = device
        self._kind = kind
        self._aead = AESGCM(derive(key, bytes(16), b"trusted " + kind.encode()))
        self._generation = 0
        self._marks: dict[bytes, Mark] = {}
        found = [self._read(slot) for slot in range(SLOTS)]
        valid = [one for one in found if one is not None]
        if valid:
            self._generation, self._marks = max(valid, key=lambda one: one[0])
        elif any(device.read(0, 1)):
            # The first store goes to slot 1: where only that is torn, nothing was ever promised.
            raise AuthError("the trusted state cannot be opened: another key, another kind, or it was changed")

    def mark(self, device: bytes) -> Mark | None:
        """How far this device has come; None: it is not the one, or there is none yet."""
        return self._marks.get(device)

    @property
    def empty(self) -> bool:
        """Whether nothing was ever stored."""
        return not self._generation

    def store(self, device: bytes, mark: Mark) -> None:
        """From now on this device is the one, and it has come so far; on stable storage when it returns.

        Raises OSError; :class:`AuthError` for a number below what there was.
        """
        before = self._marks.get(device)
        if before is not None and mark.sequence < before.sequence:
            raise AuthError(f"the trusted state is at {before.sequence} already, not {mark.sequence}")
        self._write({device: mark})

    def adopt(self, device: bytes, mark: Mark) -> None:
        """Another device may take the place of the one there is, which holds as well until the next ``store``."""
        self._write({**self._marks, device: mark})

    def close(self) -> None:
        """Give it back."""
        self._device.close()

    def _write(self, marks: Mapping[bytes, Mark]) -> None:
        if len(marks) > _MOST:
            raise ValueError("two devices at most")
        generation = self._generation + 1
        rest = _HEAD.pack(_MAGIC, generation, len(marks))
        for device, mark in marks.items():
            rest += _ITEM.pack(device, mark.sequence, mark.root if self._kind == "sealed" else NO_ROOT)
        slot, nonce = generation % SLOTS, os.urandom(_NONCE)
        sealed = nonce + self._aead.encrypt(nonce, rest.ljust(_SIZE, b"\0"), bytes([slot]))
        self._device.write(slot, sealed.ljust(SECTOR, b"\0"))
        self._device.flush()
        self._generation, self._marks = generation, dict(marks)

    def _read(self, slot: int) -> tuple[int, dict[bytes, Mark]] | None:
        buf = self._device.read(slot, 1)
        try:
            rest = self._aead.decrypt(buf[:_NONCE], buf[_NONCE:_NONCE + _SIZE + _TAG], bytes([slot]))
        except InvalidTag:
            return None
        _magic, generation, count = _HEAD.unpack_from(rest)
        marks = {}
        for i in range(count):
            device, sequence, root = _ITEM.unpack_from(rest, _HEAD.size + i * _ITEM.size)
            marks[device] = Mark(sequence, root)
        return generation, marks
