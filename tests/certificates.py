"""Authorities and identities for tests, good ones and every kind of bad one."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from smtstack.session.identity import Identity
from smtstack.wire.ipv4 import address

#: When all this takes place, in seconds of Unix time; certificates hold an hour before and after.
UTC = 1_800_000_000
HOUR = 3600
A, B = "10.0.0.1", "10.0.0.2"
IP_A, IP_B = address(A), address(B)
NAMES = {A: "a", B: "b"}
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def new_key(kind: str) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey:
    """Of kind p256, p384, ed25519 or rsa."""
    if kind == "ed25519":
        return ed25519.Ed25519PrivateKey.generate()
    if kind == "rsa":
        return rsa.generate_private_key(65_537, 2048)
    return ec.generate_private_key(ec.SECP384R1() if kind == "p384" else ec.SECP256R1())


@dataclass(frozen=True)
class Leaf:
    """What a host's certificate says; the default is good."""

    before: int = UTC - HOUR
    after: int = UTC + HOUR
    uses: Sequence[x509.ObjectIdentifier] | None = BOTH
    signs: bool = True
    is_ca: bool = False
    dns: Sequence[str] | None = None
    ips: Sequence[str] | None = None
    kind: str = ""


GOOD = Leaf()


class Authority:
    """Signs whatever it is told."""

    def __init__(self, kind: str = "p256", name: str = "authority", parent: Authority | None = None,
                 utc: int = UTC) -> None:
        self.kind = kind
        self.key = new_key(kind)
        self.parent = parent
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer = parent or self
        self.certificate = _sign(
            _builder(self.name, signer.name, self.key, utc - 24 * HOUR, utc + 24 * HOUR)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True), signer.key)

    def identity(self, name: str, ip: str, leaf: Leaf = GOOD, names: Mapping[str, str] = NAMES,
                 trust: Sequence[Authority] = ()) -> Identity:
        """An identity of ours; it believes ``trust``, or our root."""
        key = new_key(leaf.kind or self.kind)
        chain = [self.leaf(name, ip, key, leaf)]
        root = self
        while root.parent is not None:
            chain.append(root.certificate)
            root = root.parent
        roots = tuple(a.certificate for a in trust) or (root.certificate,)
        assert not isinstance(key, rsa.RSAPrivateKey)
        return Identity(tuple(c.public_bytes(Encoding.DER) for c in chain), key, roots, names)

    def leaf(self, name: str, ip: str, key, leaf: Leaf = GOOD) -> x509.Certificate:
        """A host's certificate."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        dns = [name] if leaf.dns is None else leaf.dns
        ips = [ip] if leaf.ips is None else leaf.ips
        builder = (_builder(subject, self.name, key, leaf.before, leaf.after)
                   .add_extension(x509.BasicConstraints(ca=leaf.is_ca, path_length=None), critical=True)
                   .add_extension(x509.KeyUsage(
                       digital_signature=leaf.signs, key_cert_sign=leaf.is_ca, crl_sign=False,
                       content_commitment=False, key_encipherment=False, data_encipherment=False,
                       key_agreement=not leaf.signs, encipher_only=False, decipher_only=False), critical=True))
        if dns or ips:
            alternatives = [*map(x509.DNSName, dns), *(x509.IPAddress(IPv4Address(i)) for i in ips)]
            builder = builder.add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        if leaf.uses is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(leaf.uses), critical=False)
        return _sign(builder, self.key)


def pair(kind: str = "p256") -> tuple[Identity, Identity]:
    """Hosts ``a`` and ``b`` of one authority."""
    authority = Authority(kind)
    return authority.identity("a", A), authority.identity("b", B)


def _builder(subject: x509.Name, issuer: x509.Name, key, before: int, after: int) -> x509.CertificateBuilder:
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.datetime.fromtimestamp(before, datetime.timezone.utc))
            .not_valid_after(datetime.datetime.fromtimestamp(after, datetime.timezone.utc)))


def _sign(builder: x509.CertificateBuilder, key) -> x509.Certificate:
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())
