"""How one end begins and accepts sessions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from smtstack.errors import ConfigError
from smtstack.session.established import MODES
from smtstack.session.identity import Identity
from smtstack.session.offer import Offer


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """Raises :class:`ConfigError` for a mode there is not."""

    identity: Identity
    mode: str = "mtls"
    """How we begin sessions, and (``ticket``, ``psk``) what we accept besides TLS handshakes; one of ``MODES``."""
    offer: Offer = field(default_factory=Offer)
    client_auth: bool = True
    """A server demands a certificate of its clients, in every mode but ``tls``."""
    key_update_records: int = 0
    """Records after which new RPCs use the next key epoch. 0: half the AEAD's limit."""
    handshake_ns: int = 5_000_000_000
    """A handshake that takes longer has failed."""
    idle_ns: int = 0
    """A server forgets a session that carried nothing for so long. 0: never."""
    max_sessions: int = 1 << 16
    """A server refuses more, and so many handshakes under way (half-open ones displace the oldest)."""
    max_handshakes: int = 1024

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ConfigError(f"unknown session mode {self.mode!r}; there are {', '.join(MODES)}")

    def within(self, mtu: int) -> SessionConfig:
        """The settings of an end that takes IP packets of at most ``mtu`` bytes."""
        return replace(self, offer=self.offer.within(mtu))

    @property
    def mutual(self) -> bool:
        """Whether clients show who they are."""
        return self.client_auth and self.mode != "tls"
