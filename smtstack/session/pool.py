"""X25519 key pairs made in advance: what of a handshake's work needs no peer (paper §4.5, Table 2)."""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from smtstack.errors import AuthError, Unsupported

SHARE_LEN = 32
#: Key pairs a pool keeps ready: a burst of so many new sessions finds them all made.
POOL_SIZE = 64


def make_key() -> tuple[X25519PrivateKey, bytes]:
    """A fresh key pair: (private key, share). Raises :class:`Unsupported` where OpenSSL lacks X25519."""
    try:
        key = X25519PrivateKey.generate()
    except UnsupportedAlgorithm:
        raise Unsupported("this OpenSSL has no X25519, which 0-RTT sessions need; use --session mtls") from None
    return key, key.public_key().public_bytes_raw()


def agree(own: X25519PrivateKey, share: bytes) -> bytes:
    """The common secret of RFC 7748 §6.1; raises :class:`AuthError` for a share that makes none."""
    if len(share) != SHARE_LEN:
        raise AuthError(f"a key share has {SHARE_LEN} bytes, this one {len(share)}")
    try:
        return own.exchange(X25519PublicKey.from_public_bytes(share))
    except ValueError:
        # The library refuses the points of low order, whose secret anybody knows: all zero.
        raise AuthError("a key share of low order: it makes no secret") from None


class KeyPool:
    """Key pairs, each given out once. Fill it after a fork, not before: processes must not share pairs."""

    def __init__(self, size: int = POOL_SIZE) -> None:
        self.size = size
        self._ready: list[tuple[X25519PrivateKey, bytes]] = []
        #: Pairs made when there was time for it.
        self.made_ahead = 0
        #: Pairs made while a session waited for one.
        self.made_now = 0

    def __len__(self) -> int:
        return len(self._ready)

    def take(self) -> tuple[X25519PrivateKey, bytes]:
        """A pair nobody else has: (private key, share)."""
        if self._ready:
            return self._ready.pop()
        self.made_now += 1
        return make_key()

    def refill(self, limit: int = 1) -> int:
        """Make at most ``limit`` of the missing pairs (some 50 µs each); how many were made. Call it when idle."""
        missing = min(limit, self.size - len(self._ready))
        for _ in range(missing):
            self._ready.append(make_key())
        made = max(0, missing)
        self.made_ahead += made
        return made
