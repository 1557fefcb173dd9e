"""Who a host is, and whom it believes: certificates, a private key, and the names of addresses.

OpenSSL verifies chains, in TLS handshakes and for tickets alike (``trusting`` and ``chain_error`` serve both).
From when to when a certificate holds, whom it is for and what it may be used for is judged here. Keys are ECDSA on
P-256 or Ed25519.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto
from OpenSSL.SSL import X509VerificationCodes

from smtstack.errors import ConfigError, HandshakeError
from smtstack.wire.ipv4 import format_address

PrivateKey: TypeAlias = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey: TypeAlias = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

#: Certificates of a chain, the leaf among them, and their bytes: more is refused unread.
MAX_CHAIN = 5
MAX_CHAIN_BYTES = 16_384
#: OpenSSL's X509_V_FLAG_NO_CHECK_TIME: the time is an argument, and a store keeps the first that it is given.
_NO_CHECK_TIME = 0x200000
_MAX_NAMES_SHOWN = 4
_MAX_NAME_SHOWN = 80

#: What ``cryptography`` raises at foreign certificates it cannot read, depending on what is wrong; of some it only
#: warns, which is an error where warnings are.
_UNREADABLE = (CryptographyDeprecationWarning, ValueError, TypeError, UnsupportedAlgorithm,
               x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.InvalidVersion)
_CODES = X509VerificationCodes
#: OpenSSL's own words (``X509_verify_cert_error_string``), which pyOpenSSL has no function for.
_TEXTS = {
    _CODES.ERR_CERT_HAS_EXPIRED: "certificate has expired",
    _CODES.ERR_CERT_NOT_YET_VALID: "certificate is not yet valid",
    _CODES.ERR_CERT_SIGNATURE_FAILURE: "certificate signature failure",
    _CODES.ERR_DEPTH_ZERO_SELF_SIGNED_CERT: "self-signed certificate",
    _CODES.ERR_SELF_SIGNED_CERT_IN_CHAIN: "self-signed certificate in certificate chain",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT: "unable to get issuer certificate",
    _CODES.ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY: "unable to get local issuer certificate",
    _CODES.ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE: "unable to verify the first certificate",
    _CODES.ERR_INVALID_CA: "invalid CA certificate",
    _CODES.ERR_PATH_LENGTH_EXCEEDED: "path length constraint exceeded",
    _CODES.ERR_CERT_CHAIN_TOO_LONG: "certificate chain too long",
    _CODES.ERR_INVALID_PURPOSE: "unsuitable certificate purpose",
    _CODES.ERR_UNHANDLED_CRITICAL_EXTENSION: "unhandled critical extension",
}


@dataclass(frozen=True, eq=False)
class Identity:
    """One host's credentials. Raises :class:`ConfigError` for a key we cannot use or not of our certificate.

    Equal to nothing but itself, as what is made from one (TLS contexts) is kept beside it.
    """

    #: Our certificate and those between it and a trusted one, each in DER.
    chain: tuple[bytes, ...]
    private_key: PrivateKey = field(repr=False)
    #: Certificates of the authorities we believe.
    trust: tuple[x509.Certificate, ...] = field(repr=False)
    #: From the text of an address to the name that its certificate must bear. Other addresses need a certificate
    #: for the address.
    names: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def __post_init__(self) -> None:
        if not self.chain or not self.trust:
            raise ConfigError("an identity needs a certificate and that of an authority")
        if len(self.chain) > MAX_CHAIN or sum(map(len, self.chain)) > MAX_CHAIN_BYTES:
            raise ConfigError(f"our certificate chain is longer than {MAX_CHAIN} certificates or "
                              f"{MAX_CHAIN_BYTES} bytes: no peer would accept it")
        try:
            leaf = x509.load_der_x509_certificate(self.chain[0])
            own = _spki(_key_of(leaf))
        except (ValueError, HandshakeError) as e:
            raise ConfigError(f"our certificate: {e}") from None
        if not isinstance(self.private_key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
            raise ConfigError("our private key is neither of P-256 nor Ed25519")
        if _spki(self.private_key.public_key()) != own:
            raise ConfigError("our private key is not that of our certificate")

    def __repr__(self) -> str:
        return f"<Identity {shown(leaf_names(self.leaf))}>"

    @cached_property
    def leaf(self) -> x509.Certificate:
        """Our own certificate."""
        return x509.load_der_x509_certificate(self.chain[0])

    @cached_property
    def _store(self) -> crypto.X509Store:
        made = crypto.X509Store()
        trusting(made, self.trust)
        return made

    def verify(self, chain: tuple[bytes, ...], ip: int, utc: int, *, server: bool) -> str:
        """Check that the host at ``ip`` may show this chain (DER, leaf first) at ``utc``; whom it names.

        ``server``: it acts as a server, else as a client. Raises :class:`HandshakeError`.
        """
        if not 0 < len(chain) <= MAX_CHAIN or sum(map(len, chain)) > MAX_CHAIN_BYTES:
            raise HandshakeError(f"the peer's certificate chain is empty, or longer than {MAX_CHAIN} certificates "
                                 f"or {MAX_CHAIN_BYTES} bytes")
        try:
            # OpenSSL alone would not mind bytes after a certificate.
            leaf, *others = (x509.load_der_x509_certificate(c) for c in chain)
            first, *rest = (crypto.X509.from_cryptography(c) for c in (leaf, *others))
        except (*_UNREADABLE, crypto.Error):
            raise HandshakeError("the peer's certificate is not readable") from None
        try:
            verified = crypto.X509StoreContext(self._store, first, rest).get_verified_chain()
        except crypto.X509StoreContextError as e:
            raise HandshakeError(chain_error(e.errors[0])) from None
        for certificate in verified:
            check_time(parsed(certificate), utc)
        return self.check_leaf(leaf, ip, server=server)

    def check_leaf(self, leaf: x509.Certificate, ip: int, *, server: bool) -> str:
        """What OpenSSL leaves to us of :meth:`verify`: key, use and name. For a chain that is verified."""
        _key_of(leaf)
        _check_use(leaf, server)
        address = format_address(ip)
        names = leaf_names(leaf)
        wanted = self.names.get(address, address)
        # A name in ``hosts`` must not be met by an address of the same text, nor the other way round.
        kind = "DNS" if address in self.names else "IP"
        if (kind, wanted.lower()) not in names:
            where = wanted if wanted == address else f"{wanted} ({address})"
            raise HandshakeError(f"the peer's certificate is not for {where}, but for {shown(names)}")
        return wanted

    def sign(self, context: bytes, data: bytes) -> bytes:
        """Our signature of ``data`` for the use that ``context`` names; :func:`verify_signature` checks it."""
        content = _signed(context, data)
        if isinstance(self.private_key, ed25519.Ed25519PrivateKey):
            return self.private_key.sign(content)
        return self.private_key.sign(content, ec.ECDSA(hashes.SHA256()))


def verify_signature(leaf: bytes, context: bytes, data: bytes, signature: bytes) -> None:
    """Check that the key of this certificate (DER) made this signature; raises :class:`HandshakeError`.

    It says nothing about the certificate: :meth:`Identity.verify` does.
    """
    try:
        key = _key_of(x509.load_der_x509_certificate(leaf))
    except _UNREADABLE:
        raise HandshakeError("the peer's certificate is not readable") from None
    content = _signed(context, data)
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, content)
        else:
            key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise HandshakeError("the peer's signature is not of its certificate's key or of other data") from None


def trusting(store: crypto.X509Store, trust: tuple[x509.Certificate, ...]) -> None:
    """Make OpenSSL verify chains up to these certificates, at any time: :func:`check_time` is the caller's."""
    store.set_flags(_NO_CHECK_TIME)
    for certificate in trust:
        store.add_cert(crypto.X509.from_cryptography(certificate))


def check_time(certificate: x509.Certificate, utc: int) -> None:
    """Check that a certificate holds at ``utc``, ends included; raises :class:`HandshakeError`."""
    when = datetime.datetime.fromtimestamp(utc, datetime.timezone.utc)
    if when < certificate.not_valid_before_utc:
        raise HandshakeError(chain_error(_CODES.ERR_CERT_NOT_YET_VALID))
    if when > certificate.not_valid_after_utc:
        raise HandshakeError(chain_error(_CODES.ERR_CERT_HAS_EXPIRED))


def chain_error(code: int) -> str:
    """What OpenSSL's verification error ``code`` means, for people."""
    return f"the peer's certificate is not accepted: {_TEXTS.get(code, f'OpenSSL verification error {code}')}"


def parsed(certificate: crypto.X509) -> x509.Certificate:
    """A certificate for ``cryptography``, which is stricter than OpenSSL; raises :class:`HandshakeError`."""
    try:
        return certificate.to_cryptography()
    except _UNREADABLE:
        raise HandshakeError("the peer's certificate is not readable") from None


def leaf_names(leaf: x509.Certificate) -> set[tuple[str, str]]:
    """Whom a certificate is for: pairs of ``DNS`` or ``IP`` and the text. Its subject counts for nothing."""
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    except _UNREADABLE:
        raise HandshakeError("the peer's certificate is not readable") from None
    return ({("DNS", name.lower()) for name in names.get_values_for_type(x509.DNSName)}
            | {("IP", str(ip)) for ip in names.get_values_for_type(x509.IPAddress)})


def shown(names: set[tuple[str, str]]) -> str:
    """Names out of a certificate for a message: printable, not too many."""
    texts = sorted("".join(c if c.isprintable() else "?" for c in text[:_MAX_NAME_SHOWN]) for _kind, text in names)
    more = ["..."] if len(texts) > _MAX_NAMES_SHOWN else []
    return ", ".join(texts[:_MAX_NAMES_SHOWN] + more) or "nobody"


def _check_use(leaf: x509.Certificate, server: bool) -> None:
    """By key usage, basic constraints and extended key usage (RFC 5280 §4.2.1); an absent one allows all."""
    use = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
    role = "a server's" if server else "a client's"
    try:
        for extension in leaf.extensions:
            value = extension.value
            if isinstance(value, x509.BasicConstraints) and value.ca:
                raise HandshakeError("the peer's certificate is that of an authority, not of a host")
            if isinstance(value, x509.KeyUsage) and not value.digital_signature:
                raise HandshakeError("the peer's certificate must not be used for signatures")
            if isinstance(value, x509.ExtendedKeyUsage) and use not in value \
                    and ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE not in value:
                raise HandshakeError(f"the peer's certificate must not be used as {role}")
    except _UNREADABLE:
        raise HandshakeError("the peer's certificate is not readable") from None


def _key_of(certificate: x509.Certificate) -> PublicKey:
    try:
        key = certificate.public_key()
    except _UNREADABLE:
        raise HandshakeError("the peer's certificate is not readable") from None
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise HandshakeError("the peer's certificate has a key that is neither of P-256 nor Ed25519")


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _signed(context: bytes, data: bytes) -> bytes:
    """What is signed, so that no signature serves for another use; the form of RFC 8446 §4.4.3."""
    return b" " * 64 + context + b"\0" + data
