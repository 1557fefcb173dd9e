"""How sessions of transport smt begin, as a socket takes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtstack.crypto import aead
from smtstack.session.offer import Offer
from smtstack.socket import Address

#: The mode where nobody says one.
MODE = "mtls"
#: Modes that need a DNS server; modes that need an earlier session.
FROM_TICKETS = ("ticket", "ticket-fs")
FROM_SESSIONS = ("psk", "psk-fs")
#: What results tell of a transport's counters: how sessions began, or did not.
COUNTERS = ("handshakes", "early_accepted", "handshakes_failed", "early_refused", "sessions_lost")


def summary(mode: str | None, counters: Sequence[Mapping[str, int]]) -> dict[str, Any]:
    """For results: mode and counters of all sockets; nothing where there are no sessions of smt (None)."""
    if mode is None:
        return {}
    return {"session": {"mode": mode, **{name: sum(each.get(name, 0) for each in counters) for name in COUNTERS}}}


@dataclass(frozen=True, slots=True)
class SessionSettings:
    """How sessions begin at one end. Without meaning where keys come from a file."""

    mode: str = MODE
    dns: Address | None = None
    """The DNS server that has the tickets."""
    state: Path | None = None
    """File of what a server must not forget; None: in memory."""
    keylog: Path | None = None
    """Where the secrets of all sessions are added; None: nowhere."""
    cipher: str | None = None
    """The only one accepted; None: any."""
    index_bits: int = 16
    padding: str = "none"
    key_update_records: int = 0
    """0: half of what the cipher allows."""

    def offer(self, max_message: int) -> Offer:
        """What this end would agree to. Raises :class:`ConfigError` for what cannot be."""
        ciphers = tuple(aead.CIPHERS) if self.cipher is None else (self.cipher,)
        return Offer(ciphers, self.index_bits, max_message, self.padding)
