"""Resumption: what a server gives a client so that their next session needs no certificates (RFC 8446 §2.2).

The server keeps nothing. It seals the key, the client's name and the limits under a key of its state, and the
client brings the sealed blob back. A client may use one more than once: each hello has randoms of its own, and
the server remembers hellos, so a session never repeats and a hello never counts twice.

What the server sends (over a channel that is authenticated)::

    version(1) flags(1) not_after(8)  offer: length(2) bytes  blob: length(2) bytes

The blob is ``key number(4) nonce(12) AES-256-GCM(version(1) secret(32) ip(4) since(8) not_after(8) flags(1) name
offer)``, name and offer with two bytes of length before them.

A resumed session gives something to resume with, too. Certificates are not looked at again meanwhile, so such a
chain of sessions ends (RFC 8446 §4.6.1 recommends so) ``MAX_CHAIN_S`` after the handshake it began with.
"""

from __future__ import annotations

import hmac
import secrets
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.crypto.keys import SECRET_LEN
from smtstack.errors import AuthError, BadPacket, ConfigError
from smtstack.session.offer import Offer
from smtstack.session.reader import Reader, vector
from smtstack.session.state import ServerState

VERSION = 2
#: Longest life in seconds: as a ticket's (paper §4.5).
MAX_LIFE_S = 3600
#: Seconds after the handshake that showed certificates in which sessions may be resumed from one another.
MAX_CHAIN_S = 24 * 3600
#: Longest blob in bytes.
MAX_BLOB = 1024
#: PSKs a client keeps, one for each server; the oldest makes room.
MAX_PSKS = 4096
_FS_REQUIRED = 1
_NONCE_LEN = 12
_KEY_NUMBER = struct.Struct("!I")
_SEALED = struct.Struct(f"!B{SECRET_LEN}sIQQB")
_GIVEN = struct.Struct("!BBQ")


@dataclass(frozen=True, slots=True)
class Psk:
    """What a client needs to resume: the key, and the blob that is worth nothing without it."""

    secret: bytes = field(repr=False)
    blob: bytes = field(repr=False)
    offer: Offer
    #: Only with a forward-secret key after the first flight.
    forward_secret_only: bool
    #: Unix seconds.
    not_after: int
    #: The server's, from the certificate it showed when all began; "": it is unknown.
    peer_name: str


@dataclass(frozen=True, slots=True)
class Resumable:
    """What a server finds in a blob of its own."""

    secret: bytes = field(repr=False)
    #: Only from this address: that is whom the name was verified for.
    client_ip: int
    #: "": the client showed no certificate.
    client_name: str
    offer: Offer
    forward_secret_only: bool
    #: Unix seconds of the handshake in which certificates were shown.
    since: int
    not_after: int


def grant(state: ServerState, resumption: bytes, client_ip: int, client_name: str, offer: Offer, *,
          forward_secret_only: bool, utc: int, since: int | None = None, life_s: int = MAX_LIFE_S) -> bytes:
    """What the client is sent; b"": certificates must be shown again first.

    ``resumption``: 32 bytes that both ends have from the session. ``since``: when certificates were shown; None:
    now. Raises :class:`ConfigError` for a longer life than allowed, and what ``state`` raises.
    """
    if not 0 < life_s <= MAX_LIFE_S:
        raise ConfigError(f"a resumption's life is 1 to {MAX_LIFE_S} s, not {life_s}")
    since = utc if since is None else since
    not_after = min(utc + life_s, since + MAX_CHAIN_S)
    if not_after <= utc:
        return b""
    key = state.sealing_key(utc)
    flags = _FS_REQUIRED if forward_secret_only else 0
    plain = (_SEALED.pack(VERSION, resumption, client_ip, since, not_after, flags) + vector(client_name.encode())
             + vector(offer.pack()))
    nonce = _nonce(key.key, plain)
    number = _KEY_NUMBER.pack(key.number)
    blob = number + nonce + AESGCM(key.key).encrypt(nonce, plain, number)
    return _GIVEN.pack(VERSION, flags, not_after) + vector(offer.pack()) + vector(blob)


def _nonce(key: bytes, plain: bytes) -> bytes:
    """Random, and of what is sealed: where randomness is the host's, and always the same, two that differ still
    have nonces of their own."""
    own = hmac.digest(key, b"nonce of a resumption", "sha256")
    return hmac.digest(own, secrets.token_bytes(_NONCE_LEN) + plain, "sha256")[:_NONCE_LEN]


def psk_untrusted(data: bytes, resumption: bytes, peer_name: str) -> Psk:
    """The client's side of :func:`grant`; raises :class:`BadPacket`."""
    reader = Reader(data, "a resumption")
    version, flags, not_after = _GIVEN.unpack(reader.take(_GIVEN.size))
    offer = Offer.parse_untrusted(reader.vector(2))
    blob = reader.vector(2)
    reader.end()
    if version != VERSION or flags & ~_FS_REQUIRED or not 0 < len(blob) <= MAX_BLOB:
        raise BadPacket("a resumption of another version")
    return Psk(resumption, blob, offer, bool(flags & _FS_REQUIRED), not_after, peer_name)


def open_untrusted(state: ServerState, blob: bytes, utc: int) -> Resumable:
    """What we sealed; raises :class:`AuthError` for what we did not, or longer ago than keys live."""
    start = _KEY_NUMBER.size + _NONCE_LEN
    if not start < len(blob) <= MAX_BLOB:
        raise AuthError("a resumption of the wrong length")
    key = state.opening_key(_KEY_NUMBER.unpack_from(blob)[0], utc)
    if key is None:
        raise AuthError("a resumption under a key that this server has not, or no longer")
    try:
        plain = AESGCM(key.key).decrypt(blob[_KEY_NUMBER.size:start], blob[start:], blob[:_KEY_NUMBER.size])
    except InvalidTag:
        raise AuthError("a resumption that this server did not seal") from None
    reader = Reader(plain, "a resumption")
    try:
        version, secret, ip, since, not_after, flags = _SEALED.unpack(reader.take(_SEALED.size))
        if version != VERSION:
            raise AuthError("a resumption of another version")
        name = reader.vector(2).decode()
        offer = Offer.parse_untrusted(reader.vector(2))
    except (BadPacket, UnicodeDecodeError):
        # We sealed it, with another program.
        raise AuthError("a resumption of another version") from None
    return Resumable(secret, ip, name, offer, bool(flags & _FS_REQUIRED), since, not_after)


class PskStore:
    """A client's PSKs, one for each server (ip, port)."""

    def __init__(self) -> None:
        self._psks: dict[tuple[int, int], Psk] = {}

    def __len__(self) -> int:
        return len(self._psks)

    def put(self, ip: int, port: int, psk: Psk) -> None:
        """Keep it in place of an older one."""
        self._psks.pop((ip, port), None)
        if len(self._psks) >= MAX_PSKS:
            del self._psks[next(iter(self._psks))]
        self._psks[ip, port] = psk

    def get(self, ip: int, port: int, utc: int) -> Psk | None:
        """The one for this server, unless it expired."""
        psk = self._psks.get((ip, port))
        if psk is not None and psk.not_after < utc:
            del self._psks[ip, port]
            return None
        return psk

    def drop(self, ip: int, port: int) -> None:
        """The server did not take it."""
        self._psks.pop((ip, port), None)

    def to_dict(self) -> dict[str, Any]:
        """For a file that only its owner can read: it has keys in it."""
        return {"smtnet_psks": VERSION, "psks": [
            {"ip": ip, "port": port, "secret": p.secret.hex(), "blob": p.blob.hex(), "offer": p.offer.pack().hex(),
             "forward_secret_only": p.forward_secret_only, "not_after": p.not_after, "peer_name": p.peer_name}
            for (ip, port), p in self._psks.items()]}

    @classmethod
    def from_dict(cls, content: Any) -> PskStore:
        """The inverse; raises :class:`ConfigError` for something else."""
        store = cls()
        try:
            if content["smtnet_psks"] != VERSION:
                raise ValueError("another version")
            for entry in content["psks"][:MAX_PSKS]:
                secret = bytes.fromhex(entry["secret"])
                if len(secret) != SECRET_LEN:
                    raise ValueError(f"a secret has {SECRET_LEN} bytes")
                store.put(int(entry["ip"]), int(entry["port"]),
                          Psk(secret, bytes.fromhex(entry["blob"]),
                              Offer.parse_untrusted(bytes.fromhex(entry["offer"])),
                              bool(entry["forward_secret_only"]), int(entry["not_after"]),
                              str(entry["peer_name"])))
        except (KeyError, TypeError, ValueError, BadPacket) as e:
            raise ConfigError(f"no PSKs of smtnet: {type(e).__name__}: {e}") from None
        return store
