"""What the two ends of a session agree on, beside keys: cipher, split of numbers, lengths, padding, MTU, overlay.

The offer and the choice travel in clear beside the TLS flights (or in the hello of a ticket); both are bound into
the session's secret and confirmed under it, so who changes them on the way gets no session.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, replace

from smtstack.crypto import aead, padding
from smtstack.crypto.aead import Cipher
from smtstack.crypto.composite import CompositeNumber
from smtstack.errors import BadPacket, ConfigError, PeerError
from smtstack.transport.params import MAX_MTU, MIN_MTU

_FIXED = struct.Struct("!BIHBB")
#: Longest name of a padding policy on the wire.
MAX_PADDING_NAME = 200
#: Longest message that can be agreed on, in bytes.
MAX_MESSAGE = 1 << 30
#: Stands among the ciphers' numbers, as TLS's signalling values do among its suites: who has it takes DATA in the
#: shape of TCP. Who does not know it passes over it.
_OVERLAY = 0x80


@dataclass(frozen=True, slots=True)
class Agreement:
    """The parameters of one session. Raises :class:`ConfigError` for values that make none."""

    cipher: str = aead.AES_128_GCM.name
    #: Bits of record index in the composite number (paper Fig. 5).
    index_bits: int = 16
    #: Bytes of the longest message either side sends.
    max_message: int = 1_000_000
    #: Name of the padding policy, as ``padding.padding_named`` takes it.
    padding: str = "none"
    #: Bytes of the longest IP packet either side sends.
    mtu: int = MAX_MTU
    #: DATA of messages longer than a packet has the shape of TCP.
    overlay: bool = False

    def __post_init__(self) -> None:
        self._as_offer()

    def pack(self) -> bytes:
        """Bytes on the wire: an offer with one cipher."""
        return self._as_offer().pack()

    def _as_offer(self) -> Offer:
        return Offer((self.cipher,), self.index_bits, self.max_message, self.padding, self.mtu, self.overlay)


@dataclass(frozen=True, slots=True)
class Offer:
    """What one side would accept. Raises :class:`ConfigError` for values that make no session."""

    #: By name, the preferred first.
    ciphers: tuple[str, ...] = tuple(aead.CIPHERS)
    #: At least so many bits of record index.
    index_bits: int = 16
    #: At most so long messages, in bytes.
    max_message: int = 1_000_000
    #: The padding policy wanted; ``none``: whatever the other side wants.
    padding: str = "none"
    #: At most so long IP packets, in bytes. An endpoint offers no more than it takes itself.
    mtu: int = MAX_MTU
    #: DATA of messages longer than a packet may have the shape of TCP; if both sides offer it, it has.
    overlay: bool = False

    def __post_init__(self) -> None:
        if not self.ciphers:
            raise ConfigError(f"no cipher is offered; there are {', '.join(aead.CIPHERS)}")
        for name in self.ciphers:
            aead.cipher_named(name)
        CompositeNumber(self.index_bits)
        if not 0 < self.max_message <= MAX_MESSAGE:
            raise ConfigError(f"max_message is {self.max_message}; 1 to {MAX_MESSAGE} bytes are possible")
        if not MIN_MTU <= self.mtu <= MAX_MTU:
            raise ConfigError(f"mtu is {self.mtu}; {MIN_MTU} to {MAX_MTU} bytes are possible")
        padding.padding_named(self.padding)
        if len(self.padding) > MAX_PADDING_NAME:
            raise ConfigError(f"padding {self.padding[:20]}... is longer than {MAX_PADDING_NAME} characters")

    def within(self, mtu: int) -> Offer:
        """The offer of an end that takes IP packets of at most ``mtu`` bytes."""
        return replace(self, mtu=min(self.mtu, mtu))

    def pack(self) -> bytes:
        """Bytes on the wire: index bits, longest message, MTU, ciphers by number with the overlay's, padding by
        name."""
        names = list(aead.CIPHERS)
        numbers = bytes(names.index(aead.cipher_named(n).name) for n in self.ciphers)
        if self.overlay:
            numbers += bytes((_OVERLAY,))
        name = self.padding.encode("ascii")
        return _FIXED.pack(self.index_bits, self.max_message, self.mtu, len(numbers), len(name)) + numbers + name

    @classmethod
    def parse_untrusted(cls, data: bytes) -> Offer:
        """The inverse; raises :class:`BadPacket`. Ciphers we do not know are passed over."""
        if len(data) < _FIXED.size:
            raise BadPacket("an offer of parameters is cut short")
        index_bits, longest, mtu, count, name_len = _FIXED.unpack_from(data)
        if len(data) != _FIXED.size + count + name_len:
            raise BadPacket("an offer of parameters has the wrong length")
        names = list(aead.CIPHERS)
        numbers = data[_FIXED.size:_FIXED.size + count]
        try:
            return cls(tuple(names[n] for n in numbers if n < len(names)), index_bits, longest,
                       data[_FIXED.size + count:].decode("ascii"), mtu, _OVERLAY in numbers)
        except (ConfigError, UnicodeDecodeError) as e:
            raise BadPacket(f"an offer of parameters: {e}") from None


def agreement_untrusted(data: bytes) -> Agreement:
    """The choice a server sent; raises :class:`BadPacket`."""
    offer = Offer.parse_untrusted(data)
    if len(offer.ciphers) != 1:
        raise BadPacket("a choice of parameters names several ciphers")
    return Agreement(offer.ciphers[0], offer.index_bits, offer.max_message, offer.padding, offer.mtu,
                     offer.overlay)


def choose(offer: Offer, own: Offer) -> Agreement:
    """The server's choice: the client's favourite cipher that we allow, the larger index, the shorter message, the
    smaller MTU, the overlay if both want it.

    Our padding, or where we want none, the client's. Raises :class:`PeerError` without a common cipher.
    """
    cipher = next((c for c in offer.ciphers if c in own.ciphers), None)
    if cipher is None:
        raise PeerError(f"no common cipher: the client offers {', '.join(offer.ciphers)}, "
                        f"we allow {', '.join(own.ciphers)}")
    return Agreement(cipher, max(offer.index_bits, own.index_bits), min(offer.max_message, own.max_message),
                     own.padding if own.padding != "none" else offer.padding, min(offer.mtu, own.mtu),
                     offer.overlay and own.overlay)


def check_choice(offer: Offer, choice: Agreement) -> None:
    """Check that a server's choice is within our offer; raises :class:`PeerError`."""
    if choice.cipher not in offer.ciphers:
        raise PeerError(f"the server chose cipher {choice.cipher}, which we did not offer")
    if choice.index_bits < offer.index_bits or choice.max_message > offer.max_message:
        raise PeerError(f"the server chose {choice.index_bits} index bits and messages of {choice.max_message} "
                        f"bytes; we asked for {offer.index_bits} at least and {offer.max_message} at most")
    if choice.mtu > offer.mtu:
        raise PeerError(f"the server chose packets of {choice.mtu} bytes; our MTU is {offer.mtu}")
    if choice.overlay and not offer.overlay:
        raise PeerError("the server chose the overlay, which we did not offer")
    if offer.padding != "none" and choice.padding == "none":
        raise PeerError(f"the server chose no padding; we asked for {offer.padding}")


def binding(offer: Offer, choice: Agreement) -> bytes:
    """What of the parameters goes into a session's secret: 32 bytes."""
    packed = offer.pack()
    return hashlib.sha256(len(packed).to_bytes(2, "big") + packed + choice.pack()).digest()


def cipher_of(choice: Agreement) -> Cipher:
    """The cipher itself."""
    return aead.cipher_named(choice.cipher)
