"""What an application says of one direction of a connection when it turns kernel TLS on, and how FreeBSD and Linux
judge it: two tables of rules, tried in order, whose first broken one gives the errno.

FreeBSD: ``struct tls_enable`` and ktls(4), as ``ktls_create_session`` checks it. Linux: ``struct
tls_crypto_info`` of ``<linux/tls.h>``, as ``setsockopt(SOL_TLS)`` checks it.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from smtstack.crypto.stream_gcm import CIPHERS, TLS12, TLS13

VERSION_1_2: Final = TLS12
VERSION_1_3: Final = TLS13
#: Ciphers by the length of their keys. The rules know CBC; no backend has it.
KEY_LENGTHS: Final = {**CIPHERS, "aes-128-cbc": 16, "aes-256-cbc": 32}
AUTH_ALGORITHMS: Final = ("hmac-sha1", "hmac-sha2-256", "hmac-sha2-384")

# <linux/tls.h>, <linux/tcp.h>, <linux/socket.h>; Python has no names for these.
TCP_ULP: Final = 31
SOL_TLS: Final = 282
TLS_TX: Final = 1
TLS_RX: Final = 2
TLS_TX_ZEROCOPY_RO: Final = 3
TLS_RX_EXPECT_NO_PAD: Final = 4
TLS_SET_RECORD_TYPE: Final = 1
TLS_GET_RECORD_TYPE: Final = 2


class LinuxCipher(NamedTuple):
    """How ``struct tls12_crypto_info_*`` lies behind version and cipher type (16 bits each, the host's order)."""

    number: int
    iv: int
    key: int
    salt: int

    @property
    def size(self) -> int:
        """Bytes of the structure."""
        return 4 + self.iv + self.key + self.salt + 8


LINUX_CIPHERS: Final = {"aes-128-gcm": LinuxCipher(51, 8, 16, 4), "aes-256-gcm": LinuxCipher(52, 8, 32, 4),
                        "chacha20-poly1305": LinuxCipher(54, 12, 32, 0)}


@dataclass(frozen=True, slots=True)
class TlsParams:
    """Keys of one direction. ``repr`` has none of them."""

    cipher: str
    """One of :data:`KEY_LENGTHS`; another is refused by the rules."""
    version: int
    """0x0303 or 0x0304 (the rules know 0x0301 and 0x0302, too)."""
    key: bytes
    iv: bytes
    """12 bytes; TLS 1.2 with GCM: the 4 bytes of salt."""
    number: int = 0
    """The number of the next record."""
    explicit_nonce: int = 0
    """TLS 1.2 with GCM: the 64 bits that the next record carries. To begin anywhere at random, as FreeBSD does;
    each record adds 1."""
    auth_algorithm: str = ""
    auth_key: bytes = b""
    flags: int = 0

    def __repr__(self) -> str:
        return f"<TlsParams {self.version:#06x} {self.cipher}>"

    @property
    def explicit(self) -> bool:
        """Whether each record carries 8 bytes of its nonce."""
        return self.version < VERSION_1_3 and self.cipher.endswith("-gcm")


class Asked(NamedTuple):
    """A request to turn TLS on in one direction, and the state of its socket."""

    params: TlsParams
    enabled: bool = True
    """``kern.ipc.tls.enable``."""
    cbc_enabled: bool = True
    """``kern.ipc.tls.cbc_enable``."""
    ext_pgs: bool = True
    """Whether buffers of pages can be had (FreeBSD's ``mb_use_ext_pgs``)."""
    listening: bool = False
    installed: TlsParams | None = None
    """What this direction has already."""
    other: TlsParams | None = None
    """What the other direction has (Linux)."""
    in_nic: bool = False
    """Whether this direction's records are sealed by a NIC (Linux: no new keys there)."""


class Rule(NamedTuple):
    """``broken`` says whether a request breaks it; ``error`` is the errno it is refused with."""

    text: str
    broken: Callable[[Asked], bool]
    error: int


def _aead_version(a: Asked) -> bool:
    return a.params.version not in (VERSION_1_2, VERSION_1_3)


def _gcm(a: Asked) -> bool:
    return a.params.cipher.endswith("-gcm")


def _cbc(a: Asked) -> bool:
    return a.params.cipher.endswith("-cbc")


def _chacha(a: Asked) -> bool:
    return a.params.cipher == "chacha20-poly1305"


def _gcm_iv(a: Asked) -> bool:
    return len(a.params.iv) != (4 if a.params.version == VERSION_1_2 else 12)


def _rekey_refused(a: Asked) -> bool:
    return a.installed is not None and a.installed.version != VERSION_1_3


def _changes(a: Asked) -> bool:
    return a.installed is not None and (a.params.version, a.params.cipher) != (a.installed.version,
                                                                               a.installed.cipher)


def _differs(a: Asked) -> bool:
    return a.other is not None and (a.params.version, a.params.cipher) != (a.other.version, a.other.cipher)


#: TCP_TXTLS_ENABLE, TCP_RXTLS_ENABLE.
FREEBSD: Final = (
    Rule("kern.ipc.tls.enable is 0", lambda a: not a.enabled, errno.ENOTSUP),
    Rule("the socket listens", lambda a: a.listening, errno.EINVAL),
    Rule("this direction has its keys already", lambda a: a.installed is not None, errno.EALREADY),
    Rule("kern.ipc.tls.cbc_enable is 0", lambda a: _cbc(a) and not a.cbc_enabled, errno.ENOTSUP),
    Rule("there are no buffers of pages", lambda a: not a.ext_pgs, errno.ENXIO),
    Rule("the major version is 3", lambda a: a.params.version >> 8 != 3, errno.EINVAL),
    Rule("the minor version is 1 to 4", lambda a: not 1 <= a.params.version & 0xFF <= 4, errno.EINVAL),
    Rule("there is a key", lambda a: not a.params.key, errno.EINVAL),
    Rule("flags are 0", lambda a: a.params.flags != 0, errno.EINVAL),
    Rule("the cipher is known", lambda a: a.params.cipher not in KEY_LENGTHS, errno.EINVAL),
    Rule("an AEAD has no other authentication",
         lambda a: not _cbc(a) and bool(a.params.auth_algorithm or a.params.auth_key), errno.EINVAL),
    Rule("an AEAD is of TLS 1.2 or 1.3", lambda a: not _cbc(a) and _aead_version(a), errno.EINVAL),
    Rule("GCM: 4 bytes of iv in TLS 1.2, 12 in 1.3", lambda a: _gcm(a) and _gcm_iv(a), errno.EINVAL),
    Rule("ChaCha20-Poly1305: 12 bytes of iv", lambda a: _chacha(a) and len(a.params.iv) != 12, errno.EINVAL),
    Rule("CBC has a known HMAC", lambda a: _cbc(a) and a.params.auth_algorithm not in AUTH_ALGORITHMS,
         errno.EINVAL),
    Rule("SHA-2 is of TLS 1.2", lambda a: _cbc(a) and a.params.auth_algorithm != "hmac-sha1"
         and a.params.version != VERSION_1_2, errno.EINVAL),
    Rule("CBC has an HMAC key", lambda a: _cbc(a) and not a.params.auth_key, errno.EINVAL),
    Rule("CBC is of TLS 1.0 to 1.2", lambda a: _cbc(a) and a.params.version > VERSION_1_2, errno.EINVAL),
    Rule("CBC in TLS 1.0: 16 bytes of iv", lambda a: _cbc(a) and a.params.version == 0x0301
         and len(a.params.iv) != 16, errno.EINVAL),
    Rule("the key has its cipher's length",
         lambda a: len(a.params.key) != KEY_LENGTHS.get(a.params.cipher), errno.EINVAL),
)

#: setsockopt(SOL_TLS, TLS_TX or TLS_RX) on a connected socket that has the ULP.
LINUX: Final = (
    Rule("keys are new for TLS 1.3 only", _rekey_refused, errno.EBUSY),
    Rule("the version is TLS 1.2 or 1.3", _aead_version, errno.EINVAL),
    Rule("both directions have one version and cipher", _differs, errno.EINVAL),
    Rule("new keys are of the same version and cipher", _changes, errno.EINVAL),
    Rule("the cipher is known", lambda a: a.params.cipher not in LINUX_CIPHERS, errno.EINVAL),
    Rule("the structure has its cipher's size", lambda a: len(a.params.key) != KEY_LENGTHS[a.params.cipher]
         or len(a.params.iv) != (4 if a.params.explicit else 12), errno.EINVAL),
    Rule("a NIC keeps its keys", lambda a: a.installed is not None and a.in_nic, errno.EOPNOTSUPP),
)
RULES: Final = {"freebsd": FREEBSD, "linux": LINUX}


def first_broken(rules: str, asked: Asked) -> Rule | None:
    """The rule of ``freebsd`` or ``linux`` that refuses this, or None: it may be turned on."""
    for rule in RULES[rules]:
        if rule.broken(asked):
            return rule
    return None


def pack_crypto_info(params: TlsParams) -> bytes:
    """``struct tls12_crypto_info_*`` for Linux. KeyError for a cipher that it has not."""
    layout = LINUX_CIPHERS[params.cipher]
    salt, iv = params.iv[:layout.salt], params.iv[layout.salt:]
    if params.explicit:
        iv = params.explicit_nonce.to_bytes(8, "big")
    return struct.pack(f"=HH{layout.iv}s{layout.key}s{layout.salt}s8s", params.version, layout.number, iv,
                       params.key, salt, params.number.to_bytes(8, "big"))


def parse_crypto_info(data: bytes) -> TlsParams:
    """The other way; raises OSError(EINVAL) for what is no such structure, as ``setsockopt`` does."""
    if len(data) < 4:
        raise OSError(errno.EINVAL, "shorter than struct tls_crypto_info")
    version, number = struct.unpack_from("=HH", data)
    cipher = next((name for name, layout in LINUX_CIPHERS.items() if layout.number == number), "")
    if not cipher:
        raise OSError(errno.EINVAL, f"there is no cipher {number}")
    layout = LINUX_CIPHERS[cipher]
    if len(data) != layout.size:
        raise OSError(errno.EINVAL, f"{cipher} has a structure of {layout.size} bytes, not {len(data)}")
    iv, key, salt, at = struct.unpack_from(f"={layout.iv}s{layout.key}s{layout.salt}s8s", data, 4)
    params = TlsParams(cipher, version, key, salt + iv, int.from_bytes(at, "big"))
    if params.explicit:
        return TlsParams(cipher, version, key, salt, params.number, int.from_bytes(iv, "big"))
    return params
