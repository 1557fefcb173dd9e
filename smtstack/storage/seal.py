"""How one sector is sealed in each mode.

| mode | on the disk | tag |
|---|---|---|
| plain | as it is | none |
| xts | AES-256-XTS, tweak = sector number, 64 bits little-endian, then zeros (plain64) | none |
| xts+hmac | the same | HMAC-SHA256 of (sector, session, version, what is on the disk), 128 bits of it |
| aead | AES-256-GCM, nonce = version 64 bits, sector 32 bits; the sector number is authenticated | of GCM |

Where a hash tree wants a tag, ``plain`` and ``xts`` have that of ``xts+hmac``. A version is never used twice in a
session: it is the number of the commit. The key of ``aead`` is one of the session (random at each opening of a
device), so a disk that was set back to an older state has no nonce used twice, either.
"""

from __future__ import annotations

import struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from smtstack.errors import AuthError
from smtstack.storage.keys import derive
from smtstack.storage.layout import authentic, keyed, same

_TWEAK: Final = struct.Struct("<QQ")
_NONCE: Final = struct.Struct("<QI")
_BOUND: Final = struct.Struct("<QQQ")
TAG: Final = 16
NO_TAG: Final = bytes(TAG)
#: Two keys in one.
_XTS_KEY: Final = 64
#: Sessions whose keys are kept: each that wrote a sector that is still there has one.
_SESSIONS: Final = 1024


class Sealer:
    """Seals and opens sectors of one device (its 16 bytes) with keys of its own."""

    def __init__(self, mode: str, tagged: bool, master: bytes, device: bytes) -> None:
        self._mode = mode
        self._tagged = tagged
        self._master = master
        self._device = device
        self._xts = AES(derive(master, device, b"xts", _XTS_KEY))
        self._mac = keyed(derive(master, device, b"sector"))
        self._aead: dict[int, AESGCM] = {}

    def seal(self, sector: int, session: int, version: int, data: bytes) -> tuple[bytes, bytes]:
        """What goes to the disk, and the tag."""
        if self._mode == "aead":
            sealed = self._aead_of(session).encrypt(_NONCE.pack(version, sector), data,
                                                    sector.to_bytes(8, "little"))
            return sealed[:-TAG], sealed[-TAG:]
        if self._mode != "plain":
            code = Cipher(self._xts, XTS(_TWEAK.pack(sector, 0))).encryptor()
            data = code.update(data) + code.finalize()
        if not self._tagged:
            return data, NO_TAG
        return data, authentic(self._mac, _BOUND.pack(sector, session, version), data)[:TAG]

    def open(self, sector: int, session: int, version: int, tag: bytes, sealed: bytes) -> bytes:
        """The data. Raises :class:`AuthError` if it is not what was sealed under that tag; without tags never."""
        if self._mode == "aead":
            try:
                return self._aead_of(session).decrypt(_NONCE.pack(version, sector), sealed + tag,
                                                      sector.to_bytes(8, "little"))
            except InvalidTag:
                raise _changed(sector) from None
        if self._tagged and not same(
                authentic(self._mac, _BOUND.pack(sector, session, version), sealed)[:TAG], tag):
            raise _changed(sector)
        if self._mode == "plain":
            return sealed
        code = Cipher(self._xts, XTS(_TWEAK.pack(sector, 0))).decryptor()
        return code.update(sealed) + code.finalize()

    def _aead_of(self, session: int) -> AESGCM:
        found = self._aead.get(session)
        if found is None:
            if len(self._aead) >= _SESSIONS:
                self._aead.clear()
            found = self._aead[session] = AESGCM(derive(self._master, self._device,
                                                        b"aead" + session.to_bytes(8, "little")))
        return found


def _changed(sector: int) -> AuthError:
    return AuthError(f"sector {sector} was changed on the disk, or it belongs elsewhere")
