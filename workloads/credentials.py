"""Throw-away credentials of one run: key files, or an authority with a certificate for every host.

Each host gets a folder of its own with what is its own only: of a key file the pairs it belongs to, of the
certificates its own and the authority's. The authority's private key is never written.
"""

from __future__ import annotations

import argparse
import datetime
import os
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import combinations
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from smtstack.crypto import keys
from smtstack.errors import ConfigError
from smtstack.wire.ipv4 import address
from workloads.transports import CERTIFIED, KEYED
from workloads.transports.tls import CA, CERTIFICATE, KEY, OPENSSL_CONF, SUITE

_KEYS = "run.keys"
#: How long certificates hold; from a day ago, as clocks of hosts differ.
_LIFE = datetime.timedelta(days=7)
_EARLIER = datetime.timedelta(days=1)
#: The ssl module cannot choose TLS 1.3 suites, OpenSSL's configuration can.
_OPENSSL_CONF_TEXT = f"""# The cipher suite of a run. OpenSSL reads this when OPENSSL_CONF names it.
openssl_conf = openssl_init
[openssl_init]
ssl_conf = ssl_sect
[ssl_sect]
system_default = system_default_sect
[system_default_sect]
Ciphersuites = {SUITE}
"""

_EXAMPLES = """examples:
  smtnet certs run.certs --host a=10.9.0.1 --host b=10.9.0.2
  OPENSSL_CONF=run.certs/b/openssl.cnf smtnet serve echo --transport tls --certs run.certs/b --addr 10.9.0.2:2000

The private key of the authority is thrown away, so no certificate can be added later.
"""


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where each host's credentials are, and the options that name them."""

    folder: Path
    transport: str

    def args(self, host: str) -> list[str]:
        """Options of ``smtnet serve`` and ``call`` on that host: the same, both ends prove who they are."""
        if self.transport in CERTIFIED:
            return ["--certs", str(self.folder / host)]
        if self.transport in KEYED:
            return ["--keys", str(self.folder / host / _KEYS)]
        return []

    def environment(self, host: str) -> dict[str, str]:
        """What that host's processes need in their environment beyond what they have."""
        if self.transport in CERTIFIED:
            return {"OPENSSL_CONF": str(self.folder / host / OPENSSL_CONF)}
        return {}


def make(folder: Path, transport: str, hosts: dict[str, str]) -> Credentials:
    """Fresh credentials for ``hosts`` (name: address) in ``folder``, which is made, readable by its owner only.

    Raises :class:`ConfigError` if the folder is there already or cannot be made.
    """
    folder = folder.absolute()
    try:
        folder.mkdir(mode=0o700, parents=True)
        for name in hosts:
            (folder / name).mkdir(mode=0o700)
        if transport in CERTIFIED:
            _make_certificates(folder, hosts)
        elif transport in KEYED:
            _make_keys(folder, transport, hosts)
    except FileExistsError:
        raise ConfigError(f"{folder} is there already; keys are never overwritten: "
                          "remove it or name another folder") from None
    except OSError as e:
        raise ConfigError(f"{folder}: {e.strerror}") from None
    return Credentials(folder, transport)


def _make_keys(folder: Path, transport: str, hosts: dict[str, str]) -> None:
    content = keys.generate(list(combinations(hosts.values(), 2)))
    pairs = content.pop("pairs")
    if transport == "smt":
        del content["linux"]
    for name, ip in hosts.items():
        own = {"pairs": [pair for pair in pairs if ip in pair["hosts"]]} if transport == "smt" else {}
        keys.write_key_file(folder / name / _KEYS, content | own)


def _make_certificates(folder: Path, hosts: dict[str, str]) -> None:
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = _name("smtnet throw-away authority")
    authority = (_certificate(authority_name, authority_name, authority_key.public_key())
                 .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                 .add_extension(_usage(signs_certificates=True), critical=True)
                 .sign(authority_key, hashes.SHA256()))
    for name, ip in hosts.items():
        key = ec.generate_private_key(ec.SECP256R1())
        own_address = x509.SubjectAlternativeName([x509.IPAddress(IPv4Address(ip))])
        certificate = (_certificate(_name(name), authority_name, key.public_key())
                       .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
                       .add_extension(_usage(signs_certificates=False), critical=True)
                       .add_extension(own_address, critical=False)
                       .sign(authority_key, hashes.SHA256()))
        files = {
            CA: authority.public_bytes(serialization.Encoding.PEM),
            CERTIFICATE: certificate.public_bytes(serialization.Encoding.PEM),
            KEY: key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                   serialization.NoEncryption()),
            OPENSSL_CONF: _OPENSSL_CONF_TEXT.encode(),
        }
        for file, content in files.items():
            _write_private(folder / name / file, content)


def _certificate(subject: x509.Name, issuer: x509.Name,
                 public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.timezone.utc)
    return (x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _EARLIER).not_valid_after(now + _LIFE))


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=False,
        content_commitment=False, key_encipherment=False, data_encipherment=False, key_agreement=False,
        encipher_only=False, decipher_only=False)


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as f:
        f.write(content)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``certs``."""
    parser = commands.add_parser(
        "certs", help="make certificates for tls and ktls", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write a throw-away authority and a certificate for each host, valid for a week, into a fresh "
                    "folder: FOLDER/NAME is for --certs on host NAME.")
    parser.add_argument("folder", type=Path, help="the folder to make")
    parser.add_argument("--host", action="append", required=True, metavar="NAME=IP", help="once for each host")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    make(args.folder, "tls", dict(_host(text) for text in args.host))
    return 0


def _host(text: str) -> tuple[str, str]:
    name, _equals, ip = text.partition("=")
    if not name or "/" in name or name in (".", ".."):
        raise ConfigError(f"--host {text!r}; NAME=IP, as in a=10.9.0.1")
    try:
        address(ip)
    except ValueError as e:
        raise ConfigError(f"--host {text!r}: {e}") from None
    return name, ip
