"""``smtnet ca``: an authority, and a folder with a certificate for each host.

``FOLDER/NAME`` is all that host NAME needs for sessions of smt, tls and ktls: ``ca.pem``, ``cert.pem``,
``key.pem``, ``hosts`` with the names of all hosts' addresses, and ``openssl.cnf``. ``FOLDER`` itself keeps
``ca.pem`` and ``hosts``, with --keep-key ``ca.key.pem``, so that hosts can be added, and with --publisher
``tsig.key``, which that host's folder has, too: who has it may put tickets into DNS.
"""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from smtstack.errors import ConfigError
from smtstack.session.identity import PrivateKey, PublicKey
from smtstack.session_io.identity_files import CA, CERTIFICATE, HOSTS, KEY, load_certificates, load_key, load_names
from smtstack.session_io.tsig_file import TSIG, make_tsig, read_tsig, write_tsig
from smtstack.wire.ipv4 import address, format_address
from workloads.transports.tls import OPENSSL_CONF, SUITE

CA_KEY = "ca.key.pem"
KINDS = ("p256", "ed25519")
DAYS = 7
#: Certificates hold from so long before they are made, as clocks of hosts differ.
_EARLIER = datetime.timedelta(days=1)
#: A label of a host name (RFC 1123 §2.1), and underscores.
_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
#: Longest common name of a certificate (RFC 5280, appendix A.1).
_MAX_NAME = 64
#: The ssl module cannot choose TLS 1.3 suites, OpenSSL's configuration can.
_OPENSSL_CONF_TEXT = f"""# The cipher suite of transport tls. OpenSSL reads this when OPENSSL_CONF names it.
openssl_conf = openssl_init
[openssl_init]
ssl_conf = ssl_sect
[ssl_sect]
system_default = system_default_sect
[system_default_sect]
Ciphersuites = {SUITE}
"""

@dataclass(frozen=True, slots=True)
class Authority:
    """Who signs certificates."""

    certificate: x509.Certificate
    key: PrivateKey

    @classmethod
    def make(cls, kind: str = KINDS[0], days: int = DAYS, depth: int = 0,
             above: Authority | None = None) -> Authority:
        """A fresh one with a key of ``kind``. ``depth``: how many others may stand between it and a host;
        ``above``: who signs for it, by default itself."""
        key = make_key(kind)
        name = _subject("smtnet throw-away authority" if above is None else "smtnet throw-away intermediate")
        issuer, signer = (name, key) if above is None else (above.certificate.subject, above.key)
        builder = (_certificate(name, issuer, key.public_key(), _now() + datetime.timedelta(days=days))
                   .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
                   .add_extension(key_usage(signs_certificates=True), critical=True)
                   .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False))
        if above is not None:
            of_issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
            builder = builder.add_extension(of_issuer, critical=False)
        return cls(builder.sign(signer, _digest(signer)), key)

    def issue(self, name: str, ip: str, public: PublicKey, days: int = DAYS) -> x509.Certificate:
        """A certificate for host ``name`` at ``ip``, as server and as client; it ends with ours at the latest."""
        until = min(_now() + datetime.timedelta(days=days), self.certificate.not_valid_after_utc)
        own = x509.SubjectAlternativeName([x509.DNSName(name), x509.IPAddress(IPv4Address(ip))])
        uses = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return (_certificate(_subject(name), self.certificate.subject, public, until)
                .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                .add_extension(key_usage(signs_certificates=False), critical=True)
                .add_extension(uses, critical=False)
                .add_extension(own, critical=False)
                .add_extension(issuer_id, critical=False)
                .sign(self.key, _digest(self.key)))


def make_folder(folder: Path, hosts: dict[str, str], kind: str = KINDS[0], days: int = DAYS,
                keep_key: bool = False, publishers: Sequence[str] = ()) -> None:
    """Make ``folder``, readable by its owner only, with a new authority and ``hosts`` (name: address).

    ``publishers``: those of them that put tickets into DNS.

    Raises :class:`ConfigError` if it is there already, cannot be made, or hosts share an address.
    """
    check_hosts(hosts)
    _check_publishers(publishers, hosts)
    authority = Authority.make(kind, days)
    try:
        folder.mkdir(mode=0o700, parents=True)
        _write(folder / CA, authority.certificate.public_bytes(Encoding.PEM))
        if keep_key:
            _write(folder / CA_KEY, _pem(authority.key))
        _make_hosts(folder, authority, hosts, hosts, kind, days)
        _share_tsig(folder, publishers)
    except FileExistsError as e:
        raise ConfigError(f"{e.filename} is there already; keys are never overwritten: remove it or name another "
                          "folder, or give --add") from None
    except OSError as e:
        raise ConfigError(f"{e.filename or folder}: {e.strerror}") from None


def add_hosts(folder: Path, hosts: dict[str, str], kind: str | None = None, days: int = DAYS,
              publishers: Sequence[str] = ()) -> None:
    """Add ``hosts`` to a folder that keeps its authority's key; all hosts learn their names.

    ``kind``: None is that of the authority. Raises :class:`ConfigError`.
    """
    if not (folder / CA_KEY).is_file():
        raise ConfigError(f"{folder} has no {CA_KEY}: hosts can be added to what 'smtnet ca --keep-key' made")
    certificate, *_ = load_certificates(folder / CA)
    authority = Authority(certificate, load_key(folder / CA_KEY))
    if certificate.not_valid_after_utc <= _now():
        raise ConfigError(f"the authority of {folder} has expired: make a new one")
    present = {name: ip for ip, name in load_names(folder / HOSTS).items()}
    if known := sorted(present.keys() & hosts.keys()):
        raise ConfigError(f"{folder} has a host {known[0]} already; keys are never overwritten")
    everybody = present | hosts
    check_hosts(everybody)
    _check_publishers(publishers, hosts)
    kind = kind or KINDS[isinstance(authority.key, ed25519.Ed25519PrivateKey)]
    try:
        _make_hosts(folder, authority, hosts, everybody, kind, days)
        _share_tsig(folder, publishers)
    except FileExistsError as e:
        raise ConfigError(f"{e.filename} is there already; keys are never overwritten") from None
    except OSError as e:
        raise ConfigError(f"{e.filename or folder}: {e.strerror}") from None


def check_hosts(hosts: dict[str, str]) -> None:
    """Raises :class:`ConfigError` for what is no host name with an address."""
    owners: dict[str, str] = {}
    for name, ip in hosts.items():
        proper = len(name) <= _MAX_NAME and all(map(_LABEL.fullmatch, name.split(".")))
        if not proper or name in (CA, CA_KEY, HOSTS, TSIG):
            raise ConfigError(f"{name!r} is no name for a host: letters, digits, '-' and '_', as in h1 or b.lab")
        try:
            key = format_address(address(ip))
        except ValueError as e:
            raise ConfigError(f"host {name}: {e}") from None
        if key in owners:
            raise ConfigError(f"hosts {owners[key]} and {name} have one address, {ip}")
        owners[key] = name


def make_key(kind: str) -> PrivateKey:
    """A fresh private key, of one of ``KINDS``."""
    return ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def _make_hosts(folder: Path, authority: Authority, new: dict[str, str], everybody: dict[str, str], kind: str,
                days: int) -> None:
    names = "".join(f"{ip} {name}\n" for name, ip in everybody.items()).encode()
    for name, ip in new.items():
        (folder / name).mkdir(mode=0o700)
        key = make_key(kind)
        _write(folder / name / CA, authority.certificate.public_bytes(Encoding.PEM))
        certificate = authority.issue(name, ip, key.public_key(), days)
        _write(folder / name / CERTIFICATE, certificate.public_bytes(Encoding.PEM))
        _write(folder / name / KEY, _pem(key))
        _write(folder / name / OPENSSL_CONF, _OPENSSL_CONF_TEXT.encode())
    for place in (folder, *(folder / name for name in everybody)):
        # Who moved a host's folder away gets the names when it asks for them.
        if place.is_dir():
            _replace(place / HOSTS, names)


def _check_publishers(publishers: Sequence[str], hosts: dict[str, str]) -> None:
    for name in publishers:
        if name not in hosts:
            raise ConfigError(f"--publisher {name} is none of the hosts given with --host: {', '.join(hosts)}")


def _share_tsig(folder: Path, publishers: Sequence[str]) -> None:
    if not publishers:
        return
    if not (folder / TSIG).exists():
        write_tsig(folder / TSIG, make_tsig())
    key = read_tsig(folder / TSIG)
    for name in dict.fromkeys(publishers):
        write_tsig(folder / name / TSIG, key)


def _certificate(subject: x509.Name, issuer: x509.Name, public: PublicKey,
                 until: datetime.datetime) -> x509.CertificateBuilder:
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(_now() - _EARLIER).not_valid_after(until))


def key_usage(signs_certificates: bool) -> x509.KeyUsage:
    """An authority's certificate signs others, a host's its handshakes, and neither does anything else."""
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=False,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False)


def _digest(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()


def _subject(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def _pem(key: PrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(content)


def _replace(path: Path, content: bytes) -> None:
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    _write(new, content)
    new.rename(path)
