"""Key schedule of 0-RTT sessions, modelled on RFC 8446 §7.1 with HKDF-SHA256.

::

    early      = Extract(32 zero bytes, ECDH(client, ticket) | PSK)
    sealing    = Expand-Label(early, "smt ticket client", H(head), 16)          the client's certificate
    binder     = HMAC(Expand-Label(early, "smt ticket binder" | "smt psk binder", "", 32), H(hello less binder))
    0-RTT      = Expand-Label(early, "smt early traffic", H(hello), 32)

    master     = early, or forward-secret: Extract(Expand-Label(early, "derived", H(""), 32), ECDHE)
    resumption = Expand-Label(master, "smt resumption", H(hello, head of the answer), 32)
    MAC        = HMAC(Expand-Label(master, "smt answer", "", 32), H(hello, answer less MAC))
    session    = 0-RTT, or forward-secret: Expand-Label(master, "smt traffic", H(hello, answer), 32)

H is SHA-256 over a context string, both ends' addresses and what is named. So all of it depends on every byte
of the hello, and of the answer where there was one; and nothing of one session fits another pair of ends.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import IntEnum

from smtstack.crypto.keys import SECRET_LEN, Endpoints, expand_label, extract

#: Bytes of a binder, and of the MAC of an answer.
MAC_LEN = 32
SEALING_LEN = 16
_CONTEXT = b"smtnet early 1"
_NOTHING = hashlib.sha256().digest()


class Kind(IntEnum):
    """What a client holds beforehand."""

    TICKET = 1
    PSK = 2


_BINDER_LABELS = {Kind.TICKET: "smt ticket binder", Kind.PSK: "smt psk binder"}


class Transcript:
    """The hash over what was said so far, beginning with who says it to whom."""

    def __init__(self, ends: Endpoints, is_client: bool) -> None:
        local = ends.local_ip.to_bytes(4, "big") + ends.local_port.to_bytes(2, "big")
        peer = ends.peer_ip.to_bytes(4, "big") + ends.peer_port.to_bytes(2, "big")
        self._hash = hashlib.sha256(_CONTEXT + (local + peer if is_client else peer + local))

    def add(self, data: bytes) -> bytes:
        """Append; the hash then."""
        self._hash.update(data)
        return self._hash.digest()

    def copy(self) -> Transcript:
        """Another that goes on from here."""
        other = object.__new__(Transcript)
        other._hash = self._hash.copy()
        return other


class EarlySecret:
    """What client and server know before the answer."""

    def __init__(self, kind: Kind, shared: bytes) -> None:
        self._kind = kind
        self._early = extract(bytes(SECRET_LEN), shared)

    def sealing(self, head: bytes) -> bytes:
        """AES key for the client's certificate; ``head``: the hash up to there."""
        return expand_label(self._early, "smt ticket client", head, SEALING_LEN)

    def binder(self, hello: bytes) -> bytes:
        """Shows that whoever made the hello has the secret; ``hello``: the hash without binder."""
        key = expand_label(self._early, _BINDER_LABELS[self._kind], b"", SECRET_LEN)
        return hmac.digest(key, hello, "sha256")

    def traffic(self, hello: bytes) -> bytes:
        """Seals the first flight; ``hello``: the hash with binder."""
        return expand_label(self._early, "smt early traffic", hello, SECRET_LEN)

    def master(self, ecdhe: bytes = b"") -> MasterSecret:
        """With ``ecdhe``, of two keys that are thrown away, nobody can make it again later."""
        if not ecdhe:
            return MasterSecret(self._early)
        return MasterSecret(extract(expand_label(self._early, "derived", _NOTHING, SECRET_LEN), ecdhe))


class MasterSecret:
    """What client and server know after the answer."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def resumption(self, head: bytes) -> bytes:
        """The PSK of the next session; ``head``: the hash through the server's share."""
        return expand_label(self._secret, "smt resumption", head, SECRET_LEN)

    def mac(self, answer: bytes) -> bytes:
        """Shows that the answer is the server's; ``answer``: the hash without MAC."""
        key = expand_label(self._secret, "smt answer", b"", SECRET_LEN)
        return hmac.digest(key, answer, "sha256")

    def traffic(self, answer: bytes) -> bytes:
        """The forward-secret session's; ``answer``: the hash with MAC."""
        return expand_label(self._secret, "smt traffic", answer, SECRET_LEN)
