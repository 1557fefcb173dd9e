"""The single operations a handshake is made of, each timed alone: our side of the paper's Table 2."""

from __future__ import annotations

import hashlib
import hmac
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519

from smtstack.crypto.aead import AES_128_GCM, IV_LEN
from smtstack.crypto.keys import SECRET_LEN, expand_label
from smtstack.errors import SmtError
from smtstack.session.identity import Identity
from smtstack.wire.ipv4 import address
from workloads.fleet.authority import Authority, make_key

Operation = Callable[[], object]
_SERVER = "10.0.0.2"
_TRANSCRIPT = bytes(32)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation."""

    name: str
    side: str
    """Whose work it is: ``server``, ``client`` or ``both``."""
    run: Operation
    paper_us: dict[str, float]
    """What the paper's Table 2 has for it, by side; empty: nothing."""


def steps() -> list[Step]:
    """All of them, in the order of a handshake. Keys and certificates are made here, for the occasion."""
    x_own, x_share = x25519.X25519PrivateKey.generate(), x25519.X25519PrivateKey.generate().public_key()
    p_own, p_share = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1()).public_key()
    chains = _Chains()
    own = chains.leaf
    content = b" " * 64 + b"TLS 1.3, server CertificateVerify\0" + _TRANSCRIPT
    found = [
        Step("key generation, X25519", "both", x25519.X25519PrivateKey.generate, {}),
        Step("key generation, P-256", "both", lambda: ec.generate_private_key(ec.SECP256R1()),
             {"server": 68, "client": 61}),
        Step("ECDH, X25519", "both", lambda: x_own.exchange(x_share), {}),
        Step("ECDH, P-256", "both", lambda: p_own.exchange(ec.ECDH(), p_share),
             {"server": 265, "client": 89}),
        Step("certificate encode", "server", lambda: own.public_bytes(serialization.Encoding.DER), {"server": 14}),
        Step("secrets (HKDF)", "both", lambda: secrets_of(bytes(32), _TRANSCRIPT), {"server": 49, "client": 49}),
        Step("Finished", "both", lambda: finished(bytes(32), _TRANSCRIPT), {"server": 44, "client": 43}),
        Step("verify certificate, CA at hand", "client", chains.verify, {"client": 483}),
        Step("verify certificate, one intermediate", "client", chains.verify_far, {}),
    ]
    sha256 = hashes.SHA256()
    ecdsa = _signature(ec.generate_private_key(ec.SECP256R1()), content, ec.ECDSA(sha256))
    pss = padding.PSS(padding.MGF1(sha256), 32)
    rsa_pss = _signature(rsa.generate_private_key(65537, 2048), content, pss, sha256)
    eddsa = _signature(ed25519.Ed25519PrivateKey.generate(), content)
    for name, (sign, verify), server_us, client_us in (
            ("ECDSA P-256", ecdsa, 138, 196), ("RSA 2048", rsa_pss, 1344, 67), ("Ed25519", eddsa, None, None)):
        found += [Step(f"CertVerify sign, {name}", "server", sign, {"server": server_us} if server_us else {}),
                  Step(f"CertVerify verify, {name}", "client", verify, {"client": client_us} if client_us else {})]
    return found


def measure(found: Sequence[Step], calls: int) -> dict[str, list[float]]:
    """Microseconds of every call, by name of the step. ``calls`` in a row each."""
    times: dict[str, list[float]] = {step.name: [] for step in found}
    for step in found:
        step.run()
    clock = time.perf_counter_ns
    for step in found:
        run, out = step.run, times[step.name]
        for _call in range(calls):
            start = clock()
            run()
            out.append((clock() - start) / 1000)
    return times


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """(first quartile, median, third)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


# -- what is timed ---------------------------------------------------------------------------------------------

def secrets_of(shared: bytes, transcript: bytes) -> list[bytes]:
    """The whole key schedule of RFC 8446 §7.1 for one session without a PSK, and the keys of both directions."""
    zero, nothing = bytes(SECRET_LEN), hashlib.sha256().digest()
    early = hmac.digest(zero, zero, "sha256")
    handshake = hmac.digest(expand_label(early, "derived", nothing, SECRET_LEN), shared, "sha256")
    master = hmac.digest(expand_label(handshake, "derived", nothing, SECRET_LEN), zero, "sha256")
    traffic = [expand_label(secret, label, transcript, SECRET_LEN)
               for secret, label in ((handshake, "c hs traffic"), (handshake, "s hs traffic"),
                                     (master, "c ap traffic"), (master, "s ap traffic"))]
    out = [expand_label(master, label, transcript, SECRET_LEN) for label in ("exp master", "res master")]
    for secret in traffic:
        out += [expand_label(secret, "key", b"", AES_128_GCM.key_len), expand_label(secret, "iv", b"", IV_LEN)]
    return out


def finished(secret: bytes, transcript: bytes) -> bytes:
    """The verify_data of RFC 8446 §4.4.4: made by one side, made again and compared by the other."""
    return hmac.digest(expand_label(secret, "finished", b"", SECRET_LEN), transcript, "sha256")


def _checked(verify: Operation) -> Operation:
    try:
        verify()
    except InvalidSignature:
        raise SmtError("a signature we just made does not verify: this OpenSSL is broken") from None
    return verify


def _signature(key: Any, content: bytes, *how: Any) -> tuple[Operation, Operation]:
    """Signing ``content``, and verifying that; ``how``: further arguments of the key's methods."""
    public, signature = key.public_key(), key.sign(content, *how)
    return lambda: key.sign(content, *how), _checked(lambda: public.verify(signature, content, *how))


class _Chains:
    """A leaf under the authority, and one under an intermediate; ECDSA P-256 throughout."""

    def __init__(self) -> None:
        root = Authority.make(depth=1)
        middle = Authority.make(above=root)
        leaf_key = make_key("p256")
        self.leaf, far = (above.issue("h2", _SERVER, leaf_key.public_key()) for above in (root, middle))
        self._near = (self.leaf.public_bytes(serialization.Encoding.DER),)
        self._far = tuple(c.public_bytes(serialization.Encoding.DER) for c in (far, middle.certificate))
        self._identity = Identity(self._near, leaf_key, (root.certificate,))
        self._utc = int(time.time())

    def verify(self) -> None:
        """Verify as a client does: parse what came, check the chain and the name."""
        self._identity.verify(self._near, address(_SERVER), self._utc, server=True)

    def verify_far(self) -> None:
        """Verify a certificate with an intermediate, as a client does."""
        self._identity.verify(self._far, address(_SERVER), self._utc, server=True)
