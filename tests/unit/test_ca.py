"""``smtnet ca``: folders that hosts can use, for sessions of smt and for the ssl module, and what it refuses."""

from __future__ import annotations

import datetime
import shutil
import ssl
import subprocess
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from smtstack.errors import ConfigError, HandshakeError
from smtstack.session.tls import TlsClient, TlsServer
from smtstack.session_io.identity_files import load_identity
from smtstack.session_io.tsig_file import read_tsig
from smtstack.wire.ipv4 import address
from tests.certificates import IP_A, IP_B
from tests.unit.test_tls import CHOICE, OFFER
from workloads.commands.main import main
from workloads.fleet import authority as ca

HOSTS = ("--host", "a=10.0.0.1", "--host", "b=10.0.0.2")
DAY = 24 * 3600


def handshake(client, server, utc=None, server_ip=IP_B):
    utc = int(time.time()) if utc is None else utc
    one, other = TlsClient(client, OFFER, server_ip, utc, True), TlsServer(server, IP_A, utc, True)
    other.finish(one.finish(other.answer(one.hello(), OFFER, CHOICE), CHOICE))
    assert one.secret == other.secret != b""
    return one.peer_name, other.peer_name


@pytest.mark.parametrize(("kind", "key"), [
    ("p256", ec.EllipticCurvePrivateKey), ("ed25519", ed25519.Ed25519PrivateKey)])
def test_hosts_of_one_authority_believe_each_other(tmp_path, kind, key):
    folder = tmp_path / "ca"
    assert main(["ca", str(folder), *HOSTS, "--key", kind]) == 0
    a, b = (load_identity(folder / name) for name in "ab")
    assert isinstance(a.private_key, key)
    assert a.names == b.names == {"10.0.0.1": "a", "10.0.0.2": "b"}
    assert handshake(a, b) == ("b", "a")
    for path in (folder, *folder.rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert not list(folder.rglob("ca.key.pem"))
    # Another authority, though of the same name, is another.
    assert main(["ca", str(tmp_path / "other"), *HOSTS, "--key", kind]) == 0
    stranger = load_identity(tmp_path / "other" / "b")
    with pytest.raises(HandshakeError, match="unable to get local issuer certificate"):
        handshake(a, stranger)


def test_certificates_hold_as_long_as_wanted(tmp_path):
    ca.make_folder(tmp_path / "ca", {"a": "10.0.0.1", "b": "10.0.0.2"}, days=2)
    a, b = (load_identity(tmp_path / "ca" / name) for name in "ab")
    now = int(time.time())
    # From a day before, as clocks differ.
    for good in (now - DAY + 60, now + 2 * DAY - 60):
        handshake(a, b, good)
    for bad, words in ((now - DAY - 60, "not yet valid"), (now + 2 * DAY + 60, "has expired")):
        with pytest.raises(HandshakeError, match=words):
            handshake(a, b, bad)


@pytest.mark.parametrize("kind", ca.KINDS)
def test_other_tools_accept_the_certificates(tmp_path, kind):
    folder = tmp_path / "ca"
    ca.make_folder(folder, {"a": "10.0.0.1", "b.lab": "10.0.0.2"}, kind)
    context = ssl.create_default_context(cafile=folder / "a" / "ca.pem")
    context.load_cert_chain(folder / "a" / "cert.pem", folder / "a" / "key.pem")
    certificate = x509.load_pem_x509_certificate((folder / "b.lab" / "cert.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["b.lab"]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed (Debian: openssl); it verifies the rest")
    for purpose in ("sslserver", "sslclient"):
        verified = subprocess.run(["openssl", "verify", "-x509_strict", "-purpose", purpose, "-verify_ip",
                                   "10.0.0.2", "-verify_hostname", "b.lab", "-CAfile", folder / "ca.pem",
                                   folder / "b.lab" / "cert.pem"], capture_output=True, text=True, check=False)
        assert verified.returncode == 0, verified.stderr
        assert verified.stdout.endswith(": OK\n")


@pytest.mark.parametrize("kind", ca.KINDS)
def test_hosts_can_be_added_where_the_key_was_kept(tmp_path, kind):
    folder = tmp_path / "ca"
    assert main(["ca", str(folder), *HOSTS, "--keep-key", "--key", kind]) == 0
    assert (folder / "ca.key.pem").stat().st_mode & 0o777 == 0o600
    before = (folder / "a" / "cert.pem").read_bytes()
    assert main(["ca", str(folder), "--host", "c=10.0.0.3", "--add"]) == 0
    assert (folder / "a" / "cert.pem").read_bytes() == before
    assert not (folder / "c" / "ca.key.pem").exists()
    a, c = load_identity(folder / "a"), load_identity(folder / "c")
    assert type(c.private_key) is type(a.private_key)
    # Those that were there know the new one's name.
    assert handshake(a, c, server_ip=address("10.0.0.3")) == ("c", "a")
    shutil.rmtree(folder / "b")
    assert main(["ca", str(folder), "--host", "d=10.0.0.4", "--add"]) == 0
    assert not (folder / "b").exists()
    assert list(load_identity(folder / "d").names.values()) == ["a", "b", "c", "d"]


def test_certificates_end_with_their_authority(tmp_path):
    folder = tmp_path / "ca"
    ca.make_folder(folder, {"a": "10.0.0.1"}, days=2, keep_key=True)
    ca.add_hosts(folder, {"b": "10.0.0.2"}, days=300)
    a, b = (load_identity(folder / name).leaf.not_valid_after_utc for name in "ab")
    assert abs((b - a).total_seconds()) < 60


def test_publishers_share_a_key_with_the_dns_server(tmp_path):
    folder = tmp_path / "ca"
    assert main(["ca", str(folder), *HOSTS, "--publisher", "b", "--publisher", "b", "--keep-key"]) == 0
    key = read_tsig(folder / "tsig.key")
    assert read_tsig(folder / "b" / "tsig.key") == key
    assert not (folder / "a" / "tsig.key").exists()
    assert main(["ca", str(folder), "--host", "c=10.0.0.3", "--add", "--publisher", "c"]) == 0
    assert read_tsig(folder / "c" / "tsig.key") == key


@pytest.mark.parametrize(("arguments", "words"), [
    (["--host", "a"], "NAME=IP, as in a=10.9.0.1"),
    (["--host", "a=10.0.0"], "is no IPv4 address"),
    (["--host", "a=10.0.0.1", "--host", "a=10.0.0.2"], "is given twice"),
    (["--host", "a=10.0.0.1", "--host", "b=10.0.0.1"], "have one address"),
    (["--host", "=10.0.0.1"], "is no name for a host"),
    (["--host", "..=10.0.0.1"], "is no name for a host"),
    (["--host", "a/b=10.0.0.1"], "is no name for a host"),
    (["--host=-a=10.0.0.1"], "is no name for a host"),
    (["--host", "hosts=10.0.0.1"], "is no name for a host"),
    (["--host", f"{'a' * 65}=10.0.0.1"], "is no name for a host"),
    (["--host", "a\n=10.0.0.1"], "is no name for a host"),
    (["--host", "a=10.0.0.1", "--publisher", "b"], "--publisher b is none of the hosts given with --host: a"),
    (["--host", "a=10.0.0.1", "--add"], "has no ca.key.pem"),
    (["--host", "a=10.0.0.1", "--add", "--keep-key"], "--keep-key is for a new folder"),
])
def test_what_makes_no_sense_is_refused_and_nothing_is_made(tmp_path, capsys, arguments, words):
    folder = tmp_path / "ca"
    assert main(["ca", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
    assert not folder.exists()


@pytest.mark.parametrize("days", ["0", "-1", "x", "3651"])
def test_days_are_bounded(tmp_path, capsys, days):
    with pytest.raises(SystemExit):
        main(["ca", str(tmp_path / "ca"), *HOSTS, "--days", days])
    assert "from 1 to 3,650 d" in capsys.readouterr().err


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "ca"
    ca.make_folder(folder, {"a": "10.0.0.1"}, keep_key=True)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match="ca is there already; keys are never overwritten"):
        ca.make_folder(folder, {"b": "10.0.0.2"})
    with pytest.raises(ConfigError, match="has a host a already"):
        ca.add_hosts(folder, {"a": "10.0.0.3"})
    with pytest.raises(ConfigError, match=r"hosts a and b have one address, 10\.0\.0\.1"):
        ca.add_hosts(folder, {"b": "10.0.0.1"})
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files
    (folder / "ca.key.pem").chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        ca.add_hosts(folder, {"b": "10.0.0.2"})
    with pytest.raises(ConfigError, match=r"Not a directory"):
        ca.make_folder(folder / "hosts" / "x", {"b": "10.0.0.2"})


def test_an_authority_that_has_expired_adds_nobody(tmp_path, monkeypatch):
    folder = tmp_path / "ca"
    now = ca._now()
    monkeypatch.setattr(ca, "_now", lambda: now - datetime.timedelta(days=30))
    ca.make_folder(folder, {"a": "10.0.0.1"}, keep_key=True)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="has expired: make a new one"):
        ca.add_hosts(folder, {"b": "10.0.0.2"})
