"""Keys and who makes them: key schedules, and stores with the keys of a key file, or with the public demo keys.

Key files are read and written by :mod:`smtstack.io.key_file`; docs/protocol.md, "Key schedule", is the
specification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from smtstack.compiled import mypyc_attr
from smtstack.crypto import aead, padding
from smtstack.crypto.aead import AES_128_GCM, Cipher, DirectionKeys
from smtstack.crypto.composite import CompositeNumber
from smtstack.crypto.epochs import (
    FIRST_ID,
    NO_KEYS,
    LinuxPlainSession,
    LinuxSession,
    Session,
    SessionParams,
    SmtSession,
)
from smtstack.crypto.replay import RecentIds
from smtstack.errors import ConfigError, LocalError
from smtstack.wire.ipv4 import address, format_address

FILE_VERSION: Final = 1
SECRET_LEN: Final = 32

#: Public constants of the kernel module's demo programs (module/smt_api.c; reference §3.5).
DEMO_CLIENT_KEY: Final = bytes.fromhex("8DD230A77A05EB71159129BCBCF64230")
DEMO_CLIENT_SALT: Final = bytes.fromhex("87C635C8")
DEMO_SERVER_KEY: Final = bytes.fromhex("6CCF62FF4BE61485D8BA29FE2E847A7F")
DEMO_SERVER_SALT: Final = bytes.fromhex("B9FA5583")
#: What ``demo`` means in profile ``smt``: as public as the above.
DEMO_SECRET: Final = DEMO_CLIENT_KEY + DEMO_SERVER_KEY


def expand_label(secret: bytes, label: str, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label of RFC 8446 §7.1, SHA-256."""
    name = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + bytes([len(context)]) + context
    return HKDFExpand(hashes.SHA256(), length, info).derive(secret)


def extract(salt: bytes, secret: bytes) -> bytes:
    """HKDF-Extract of RFC 5869, SHA-256."""
    mac = HMAC(salt, hashes.SHA256())
    mac.update(secret)
    return mac.finalize()


def linux_keys(key: bytes, salt: bytes) -> DirectionKeys:
    """One direction of profile ``linux``: nonce = 4-byte salt || 8-byte number."""
    if len(salt) != 4:
        raise ConfigError(f"a salt has 4 bytes, this one {len(salt)}")
    return DirectionKeys(AES_128_GCM, key, salt + bytes(8))


@dataclass(frozen=True, slots=True)
class Endpoints:
    """The four numbers that name a session, from one side."""

    local_ip: int
    local_port: int
    peer_ip: int
    peer_port: int


class TrafficSecrets:
    """Key schedule of one ``smt`` session: from its secret to the keys of (direction, epoch).

    Goes forward only: once an epoch is said to be the oldest that will be asked for, nobody, not even who gets
    hold of this object, can make the keys of those before it.
    """

    __slots__ = ("_cipher", "_epoch", "_rx", "_tx")

    def __init__(self, secret: bytes, ends: Endpoints, cipher: Cipher) -> None:
        self._cipher = cipher
        local = ends.local_ip.to_bytes(4, "big") + ends.local_port.to_bytes(2, "big")
        peer = ends.peer_ip.to_bytes(4, "big") + ends.peer_port.to_bytes(2, "big")
        prk = extract(b"smtnet session 1", secret)
        # The cipher and both names go in, so that no two sessions or ciphers ever share a key.
        suffix = cipher.name.encode()
        #: Epoch of the two secrets.
        self._epoch = 0
        self._tx = expand_label(prk, "smt traffic", local + peer + suffix, SECRET_LEN)
        self._rx = expand_label(prk, "smt traffic", peer + local + suffix, SECRET_LEN)

    def keys(self, epoch: int, oldest: int = 0) -> tuple[DirectionKeys, DirectionKeys]:
        """(ours, the peer's) for ``epoch``; each epoch's secret updates as in RFC 8446 §7.2.

        ``oldest``: no epoch before this one will be asked for again; at most ``epoch``.
        """
        if epoch < self._epoch:
            raise LocalError(f"the keys of epoch {epoch} are forgotten")
        while self._epoch < oldest:
            self._tx, self._rx = _next(self._tx), _next(self._rx)
            self._epoch += 1
        tx, rx = self._tx, self._rx
        for _step in range(epoch - self._epoch):
            tx, rx = _next(tx), _next(rx)
        return self._made_of(tx), self._made_of(rx)

    def _made_of(self, secret: bytes) -> DirectionKeys:
        return DirectionKeys(self._cipher, expand_label(secret, "key", b"", self._cipher.key_len),
                             expand_label(secret, "iv", b"", aead.IV_LEN))


def _next(secret: bytes) -> bytes:
    return expand_label(secret, "traffic upd", b"", SECRET_LEN)


class EarlySecrets:
    """Key schedule of a forward-secret 0-RTT session, in which two secrets have a part.

    The early one seals what the client says before it has heard from the server: epoch 0 towards the server.
    All else comes from the forward-secret one, which a client knows only after the answer: until then
    (``secret`` is empty) it has keys to send under epoch 0 and no others; ``SmtSession.complete`` adds them.
    """

    __slots__ = ("_early", "_is_client", "_secrets")

    def __init__(self, early: bytes, secret: bytes, ends: Endpoints, cipher: Cipher, is_client: bool) -> None:
        tx, rx = TrafficSecrets(early, ends, cipher).keys(0)
        self._early: DirectionKeys | None = tx if is_client else rx
        self._is_client = is_client
        self._secrets = TrafficSecrets(secret, ends, cipher) if secret else None

    def keys(self, epoch: int, oldest: int = 0) -> tuple[DirectionKeys, DirectionKeys]:
        """(ours, the peer's) for ``epoch``; see :meth:`TrafficSecrets.keys`.

        Raises :class:`LocalError` for what only the server's answer can tell.
        """
        if self._secrets is None:
            if epoch or self._early is None:
                raise LocalError("the server has not answered: there are keys for the first flight only")
            return self._early, NO_KEYS
        tx, rx = self._secrets.keys(epoch, oldest)
        if oldest:
            self._early = None
        if epoch or self._early is None:
            return tx, rx
        return (self._early, rx) if self._is_client else (tx, self._early)


@mypyc_attr(allow_interpreted_subclasses=True)
class KeyStore:
    """Makes sessions; one for each profile."""

    #: What :meth:`session` makes: an endpoint refuses a store that is for another profile.
    makes: type[Session] = Session

    def session(self, ends: Endpoints) -> Session | None:
        """A fresh session between these ends, or None: no key for this peer, no communication."""
        raise NotImplementedError


class PlainKeys(KeyStore):
    """Profile ``homa``: sessions without protection."""

    def __init__(self, first_id: int = 2) -> None:
        self._first_id = first_id

    def session(self, ends: Endpoints) -> Session | None:
        """Always a session: nothing is protected."""
        return Session(first_id=self._first_id)


class UpstreamKeys(KeyStore):
    """Profile ``upstream``: nothing is protected. Ids are counted over all sessions of this store, as they are the
    host's: its peers' modules know an RPC by address and id alone."""

    def __init__(self, first_id: int = FIRST_ID) -> None:
        self._next_id = first_id

    def _take_id(self) -> int:
        rpc_id = self._next_id
        self._next_id += 2
        return rpc_id

    def session(self, ends: Endpoints) -> Session | None:
        """Always a session."""
        session = Session(self._take_id)
        session.current.guard = RecentIds()
        return session


class PairKeys(KeyStore):
    """Profile ``smt``: a secret for each pair of hosts."""

    makes = SmtSession

    def __init__(self, pairs: dict[frozenset[int], bytes], params: SessionParams | None = None,
                 default: bytes | None = None) -> None:
        self._pairs = pairs
        self._default = default
        self.params = params or SessionParams()

    def __repr__(self) -> str:
        return f"<PairKeys of {len(self._pairs)} pairs>"

    def session(self, ends: Endpoints) -> Session | None:
        """A session under the pair's secret; None if the pair has none."""
        secret = self._pairs.get(frozenset((ends.local_ip, ends.peer_ip)), self._default)
        if secret is None:
            return None
        return SmtSession(TrafficSecrets(secret, ends, self.params.cipher).keys, self.params)


class LinuxKeys(KeyStore):
    """Profile ``linux``: one key for all clients, one for all servers (reference §3.5)."""

    makes = LinuxSession

    def __init__(self, client: DirectionKeys, server: DirectionKeys, first_id: int = 2) -> None:
        self.client = client
        self.server = server
        self._next_id = first_id

    def _take_id(self) -> int:
        rpc_id = self._next_id
        self._next_id += 2
        return rpc_id

    def session(self, ends: Endpoints) -> Session | None:
        """A session with the shared keys; ids are counted over all sessions of this store."""
        return LinuxSession(self.client, self.server, self._take_id)


class LinuxNoKeys(KeyStore):
    """Profile ``linux`` in clear, for a module whose socket has no keys. Ids are counted over all sessions."""

    makes = LinuxPlainSession

    def __init__(self, first_id: int = FIRST_ID) -> None:
        self._next_id = first_id

    def _take_id(self) -> int:
        rpc_id = self._next_id
        self._next_id += 2
        return rpc_id

    def session(self, ends: Endpoints) -> Session | None:
        """Always a session: nothing is protected."""
        return LinuxPlainSession(self._take_id)


def demo_keys(profile: str, params: SessionParams | None = None, first_id: int = 2) -> KeyStore:
    """The public keys everybody knows: for vectors, captures and tests, never for secrets."""
    if profile == "linux":
        return LinuxKeys(linux_keys(DEMO_CLIENT_KEY, DEMO_CLIENT_SALT),
                         linux_keys(DEMO_SERVER_KEY, DEMO_SERVER_SALT), first_id)
    if profile == "smt":
        return PairKeys({}, params, default=DEMO_SECRET)
    if profile == "upstream":
        return UpstreamKeys(first_id)
    return PlainKeys(first_id)


def keys_from(content: dict[str, Any], profile: str, first_id: int = FIRST_ID) -> KeyStore:
    """Keys for profile ``smt`` or ``linux`` from the JSON object of a key file.

    Raises :class:`ConfigError` for what makes no sense, and KeyError, TypeError, ValueError or AttributeError for
    ``content`` of another shape.
    """
    return _linux_from(content, first_id) if profile == "linux" else _pairs_from(content, first_id)


def _linux_from(content: dict[str, Any], first_id: int) -> LinuxKeys:
    if "linux" not in content:
        raise ConfigError('the key file has no "linux" section, which profile linux needs')
    roles = content["linux"]
    client, server = (linux_keys(bytes.fromhex(roles[r]["key"]), bytes.fromhex(roles[r]["salt"]))
                      for r in ("client", "server"))
    return LinuxKeys(client, server, first_id)


def _pairs_from(content: dict[str, Any], first_id: int) -> PairKeys:
    pairs: dict[frozenset[int], bytes] = {}
    for entry in content.get("pairs", []):
        a, b = (address(h) for h in entry["hosts"])
        secret = bytes.fromhex(entry["secret"])
        if len(secret) != SECRET_LEN:
            raise ConfigError(f"the secret of {format_address(a)} and {format_address(b)} has "
                              f"{len(secret)} bytes, not {SECRET_LEN}")
        pairs[frozenset((a, b))] = secret
    if not pairs:
        raise ConfigError('the key file has no "pairs", which profile smt needs')
    index_bits = int(content.get("index_bits", 16))
    # Refuses what makes no sense here, and not at the first message.
    numbers = CompositeNumber(index_bits)
    params = SessionParams(cipher=aead.cipher_named(content.get("cipher", AES_128_GCM.name)),
                           index_bits=index_bits,
                           first_id=first_id if first_id < numbers.id_limit // 2 else FIRST_ID,
                           padding=padding.padding_named(content.get("padding", "none")))
    return PairKeys(pairs, params)
