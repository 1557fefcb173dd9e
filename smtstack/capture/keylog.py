"""Keylogs: the secrets that a host wrote down, when asked to, of the sessions it had.

One line a secret. Of the sessions themselves, times in nanoseconds since 1970::

    SMT_SECRET <client ip:port> <server ip:port> <established> <cipher>,<index_bits>,<padding> <64 hex digits>
    SMT_EARLY_SECRET (the same)

and of the TLS handshakes before them, in the format of NSS (draft-ietf-tls-keylogfile)::

    <label> <client random, 64 hex digits> <secret, hex digits>

Of a forward-secret 0-RTT session the early secret seals what the client sends in epoch 0, and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from smtstack.crypto import aead, padding
from smtstack.crypto.composite import CompositeNumber
from smtstack.crypto.epochs import NO_KEYS, Session, SessionParams, SmtSession
from smtstack.crypto.keys import SECRET_LEN, Endpoints, KeyStore, TrafficSecrets
from smtstack.errors import BadPacket, ConfigError
from smtstack.wire import ipv4

SECRET, EARLY_SECRET = "SMT_SECRET", "SMT_EARLY_SECRET"
#: Characters of the longest line believed, and lines of the longest file.
MAX_LINE, MAX_LINES = 1024, 4_000_000

_NSS = re.compile(r"[A-Z0-9_]+ ([0-9a-fA-F]{64}) [0-9a-fA-F]+", re.ASCII)
_HEX_SECRET = re.compile(rf"[0-9a-fA-F]{{{2 * SECRET_LEN}}}", re.ASCII)

End = tuple[int, int]


@dataclass(frozen=True, slots=True, repr=False)
class LoggedSecret:
    """One line about a session. No repr: it holds the secret."""

    #: Address and port.
    client: End
    server: End
    #: Unix time in nanoseconds.
    established: int
    params: SessionParams
    secret: bytes
    #: Seals the client's first flight only.
    early: bool

    def session(self, ends: Endpoints) -> SmtSession | None:
        """The session as the side ``ends.local_ip`` receives it; None: it receives nothing under this secret."""
        if not self.early:
            return SmtSession(TrafficSecrets(self.secret, ends, self.params.cipher).keys, self.params)
        if (ends.local_ip, ends.local_port) != self.server:
            return None
        _none, early = TrafficSecrets(self.secret, ends, self.params.cipher).keys(0)
        return SmtSession(lambda _epoch, _oldest=0: (NO_KEYS, early), self.params)


class SeenKeys(KeyStore):
    """Keys for what a capture holds: two ends may have had several sessions one after the other.

    Which of them a record belongs to, authentication tells.
    """

    makes = SmtSession

    def __init__(self, secrets: Iterable[LoggedSecret] = ()) -> None:
        self._by_ends: dict[frozenset[End], dict[bytes, LoggedSecret]] = {}
        for secret in secrets:
            self.add(secret)

    def __repr__(self) -> str:
        return f"<SeenKeys of {len(self._by_ends)} pairs of ends>"

    def add(self, logged: LoggedSecret) -> None:
        """One more; both sides may have written it down, which makes it no second one."""
        known = self._by_ends.setdefault(frozenset((logged.client, logged.server)), {})
        known.setdefault(logged.secret, logged)

    def sessions(self, ends: Endpoints) -> list[tuple[SmtSession, bool]]:
        """All sessions these ends had, as ``ends.local_ip`` receives them, the oldest first; and whether early:
        such a one has no epoch but 0."""
        key = frozenset(((ends.local_ip, ends.local_port), (ends.peer_ip, ends.peer_port)))
        found = sorted(self._by_ends.get(key, {}).values(), key=lambda s: (s.established, not s.early))
        return [(session, logged.early) for logged in found if (session := logged.session(ends)) is not None]

    def session(self, ends: Endpoints) -> Session | None:
        """The newest."""
        found = self.sessions(ends)
        return found[-1][0] if found else None


class Keylog(SeenKeys):
    """What a keylog says, or several together."""

    def __init__(self) -> None:
        super().__init__()
        #: How many secrets of sessions were read, and how many lines of TLS.
        self.secrets = 0
        self.tls_lines = 0
        #: Lines of TLS, by the handshake's client random.
        self._tls: dict[bytes, list[str]] = {}

    def add_untrusted(self, text: str) -> None:
        """Read these lines; raises :class:`BadPacket` naming the first that is none (and no secret)."""
        for number, raw in enumerate(text.splitlines(), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            if number > MAX_LINES or len(line) > MAX_LINE:
                raise BadPacket(f"line {number} of the keylog: more than {MAX_LINES} lines of "
                                f"{MAX_LINE} characters are not read")
            label = line.split(" ", 1)[0]
            if label in (SECRET, EARLY_SECRET):
                try:
                    self.add(_secret_untrusted(line.split(" ")))
                except BadPacket as e:
                    raise BadPacket(f"line {number} of the keylog: {e}") from None
                self.secrets += 1
            elif (match := _NSS.fullmatch(line)) is not None:
                self._tls.setdefault(bytes.fromhex(match[1]), []).append(line)
                self.tls_lines += 1
            else:
                raise BadPacket(f"line {number} of the keylog is neither of {SECRET} nor of NSS's format")

    def tls(self, client_random: bytes) -> list[str]:
        """The lines of the handshake with this client random, each once."""
        return list(dict.fromkeys(self._tls.get(client_random, ())))


def _secret_untrusted(words: list[str]) -> LoggedSecret:
    if len(words) != 6:
        raise BadPacket(f"{words[0]} with {len(words) - 1} fields, not 5")
    label, client, server, when, parameters, secret = words
    if not _HEX_SECRET.fullmatch(secret):
        raise BadPacket(f"the secret is not {2 * SECRET_LEN} hex digits")
    if not (when.isascii() and when.isdigit()) or len(when) > 20:
        raise BadPacket(f"the time is no number of nanoseconds since 1970: {when[:30]!r}")
    parts = parameters.split(",", 2)
    if len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit()) or len(parts[1]) > 3:
        raise BadPacket(f"the parameters are not CIPHER,INDEX_BITS,PADDING: {parameters[:60]!r}")
    try:
        CompositeNumber(int(parts[1]))
        params = SessionParams(cipher=aead.cipher_named(parts[0]), index_bits=int(parts[1]),
                               padding=padding.padding_named(parts[2]))
    except ConfigError as e:
        raise BadPacket(str(e)) from None
    return LoggedSecret(_end_untrusted(client), _end_untrusted(server), int(when), params, bytes.fromhex(secret),
                        label == EARLY_SECRET)


def _end_untrusted(text: str) -> End:
    host, _colon, port = text.rpartition(":")
    try:
        if not (port.isascii() and port.isdigit()) or not 0 < int(port) < 1 << 16:
            raise ValueError
        return ipv4.address(host), int(port)
    except (ValueError, ConfigError):
        raise BadPacket(f"no address and port: {text[:40]!r}") from None
