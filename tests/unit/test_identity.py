"""Whom a host believes: chains, names, uses, signatures; and its credentials on disk."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import ConfigError, HandshakeError
from smtstack.session.established import Established
from smtstack.session.identity import MAX_CHAIN, Identity, verify_signature
from smtstack.session.offer import Agreement
from smtstack.session_io.identity_files import keylog_wanted, load_identity, load_names, open_keylog
from smtstack.wire.ipv4 import address
from tests.certificates import GOOD, HOUR, IP_A, IP_B, NAMES, UTC, A, Authority, B, Leaf, new_key, pair

CLIENT_ONLY = (ExtendedKeyUsageOID.CLIENT_AUTH,)
ROOT = Authority()
OURS = ROOT.identity("a", A)

#: What is wrong with b's certificate, and what ``a`` says about it.
BAD = {
    "wrong CA": (lambda: Authority().identity("b", B).chain, "certificate signature failure"),
    "unknown CA": (lambda: Authority(name="o").identity("b", B).chain, "unable to get local issuer certificate"),
    "self-signed": (lambda: (Authority().certificate.public_bytes(Encoding.DER),), "self-signed certificate"),
    "expired": (lambda: _b(Leaf(after=UTC - 1)), "certificate has expired"),
    "not yet valid": (lambda: _b(Leaf(before=UTC + 1)), "certificate is not yet valid"),
    "wrong name": (lambda: ROOT.identity("c", B).chain, r"not for b \(10\.0\.0\.2\), but for 10\.0\.0\.2, c"),
    "name of another": (lambda: ROOT.identity("a", A).chain, r"not for b \(10\.0\.0\.2\), but for 10\.0\.0\.1, a"),
    "wildcard": (lambda: _b(Leaf(dns=["*"])), r"not for b .* but for \*, 10\.0\.0\.2$"),
    "name in the subject only": (lambda: _b(Leaf(dns=[], ips=[])), "but for nobody"),
    "client's only": (lambda: _b(Leaf(uses=CLIENT_ONLY)), "must not be used as a server's"),
    "no signatures": (lambda: _b(Leaf(signs=False)), "must not be used for signatures"),
    "authority": (lambda: _b(Leaf(is_ca=True)), "that of an authority, not of a host"),
    "P-384": (lambda: (_der(ROOT.leaf("b", B, new_key("p384"))),), "neither of P-256 nor Ed25519"),
    "RSA": (lambda: (_der(ROOT.leaf("b", B, new_key("rsa"))),), "neither of P-256 nor Ed25519"),
    "no chain": (lambda: (), "empty, or longer than"),
    "long chain": (lambda: _b(GOOD) * (MAX_CHAIN + 1), "longer than 5 certificates"),
    "large chain": (lambda: (*_b(GOOD), bytes(20_000)), "or 16384 bytes"),
    "bytes after it": (lambda: (_b(GOOD)[0] + b"x",), "not readable"),
    "garbage": (lambda: (b"\x30\x03garbage",), "not readable"),
}


def _b(leaf):
    return ROOT.identity("b", B, leaf).chain


def _der(certificate):
    return certificate.public_bytes(Encoding.DER)


@pytest.mark.parametrize("what", BAD)
def test_a_bad_certificate_is_refused_with_the_reason(what):
    make, words = BAD[what]
    with pytest.raises(HandshakeError, match=f"the peer's certificate.*{words}"):
        OURS.verify(make(), IP_B, UTC, server=True)
    # The control: one that is right passes.
    assert OURS.verify(_b(GOOD), IP_B, UTC, server=True) == "b"


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_a_good_one_names_its_host(kind):
    a, b = pair(kind)
    assert a.verify(b.chain, IP_B, UTC, server=True) == "b"
    assert b.verify(a.chain, IP_A, UTC, server=False) == "a"


def test_the_time_is_the_callers():
    chain = _b(GOOD)
    for utc in (UTC - HOUR, UTC, UTC + HOUR):
        OURS.verify(chain, IP_B, utc, server=True)
    for utc in (UTC - HOUR - 1, UTC + HOUR + 1):
        with pytest.raises(HandshakeError, match="not accepted"):
            OURS.verify(chain, IP_B, utc, server=True)


def test_the_time_counts_for_the_whole_chain():
    middle = Authority("ed25519", "middle", ROOT)
    chain = middle.identity("b", B, Leaf(after=UTC + 48 * HOUR)).chain
    OURS.verify(chain, IP_B, UTC + 24 * HOUR, server=True)
    with pytest.raises(HandshakeError, match="certificate has expired"):
        OURS.verify(chain, IP_B, UTC + 24 * HOUR + 1, server=True)


def test_an_address_without_a_name_needs_a_certificate_for_the_address():
    nameless = ROOT.identity("a", A, names={})
    assert nameless.verify(_b(GOOD), IP_B, UTC, server=True) == B
    with pytest.raises(HandshakeError, match=r"not for 10\.0\.0\.3, but for"):
        nameless.verify(_b(GOOD), address("10.0.0.3"), UTC, server=True)
    # A name that looks like the address is no address, nor the other way round.
    with pytest.raises(HandshakeError, match=r"not for 10\.0\.0\.2"):
        nameless.verify(_b(Leaf(dns=[B], ips=[])), IP_B, UTC, server=True)
    named = ROOT.identity("a", A, names={B: B})
    assert named.verify(_b(Leaf(dns=[B], ips=[])), IP_B, UTC, server=True) == B
    with pytest.raises(HandshakeError, match=r"not for 10\.0\.0\.2"):
        named.verify(_b(Leaf(dns=[], ips=[B])), IP_B, UTC, server=True)


def test_names_are_the_same_in_any_case():
    assert OURS.verify(_b(Leaf(dns=["B"])), IP_B, UTC, server=True) == "b"


def test_a_certificate_without_extended_key_usage_serves_both_ways():
    for server in (True, False):
        OURS.verify(_b(Leaf(uses=None)), IP_B, UTC, server=server)
    OURS.verify(_b(Leaf(uses=CLIENT_ONLY)), IP_B, UTC, server=False)


def test_a_chain_by_way_of_another_authority():
    middle = Authority("ed25519", "middle", ROOT)
    chain = middle.identity("b", B).chain
    assert len(chain) == 2
    assert OURS.verify(chain, IP_B, UTC, server=True) == "b"
    with pytest.raises(HandshakeError, match="unable to get local issuer certificate"):
        OURS.verify(chain[:1], IP_B, UTC, server=True)
    # A host is no authority.
    host = ROOT.identity("b", B)
    rogue = Authority()
    rogue.name, rogue.key = host.leaf.subject, host.private_key
    forged = _der(rogue.leaf("c", B, new_key("p256"), Leaf(dns=["b"])))
    with pytest.raises(HandshakeError, match="not accepted: invalid CA certificate"):
        OURS.verify((forged, *host.chain), IP_B, UTC, server=True)


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_certificate_is_accepted(position, flip):
    (leaf,) = CHAIN
    changed = bytearray(leaf)
    changed[position % len(leaf)] ^= flip
    with pytest.raises(HandshakeError):
        OURS.verify((bytes(changed),), IP_B, UTC, server=True)


CHAIN = _b(GOOD)


def test_a_certificate_that_the_library_only_warns_of():
    """A serial number below zero (RFC 5280 §4.1.2.2); here, where warnings are errors."""
    (leaf,) = CHAIN
    at = leaf.index(bytes.fromhex("A003020102 02")) + 7
    changed = leaf[:at] + bytes((leaf[at] | 0x80,)) + leaf[at + 1:]
    for judge in (lambda: OURS.verify((changed,), IP_B, UTC, server=True),
                  lambda: verify_signature(changed, b"test", b"data", b"signature")):
        with pytest.raises(HandshakeError, match="the peer's certificate is not readable"):
            judge()


@given(st.binary(max_size=300))
def test_no_other_error_comes_of_foreign_bytes(garbage):
    with pytest.raises(HandshakeError):
        OURS.verify((garbage,), IP_B, UTC, server=True)
    with pytest.raises(HandshakeError):
        verify_signature(garbage, b"test", b"data", b"signature")
    with pytest.raises(HandshakeError):
        verify_signature(CHAIN[0], b"test", b"data", garbage)


@pytest.mark.parametrize("kind", ["p256", "ed25519"])
def test_signatures_are_of_one_key_for_one_use_of_one_text(kind):
    a, b = pair(kind)
    signature = a.sign(b"smt test", b"data")
    verify_signature(a.chain[0], b"smt test", b"data", signature)
    for leaf, context, data, wrong in (
            (b.chain[0], b"smt test", b"data", signature),
            (a.chain[0], b"smt other", b"data", signature),
            (a.chain[0], b"smt test", b"Data", signature),
            (a.chain[0], b"smt tes", b"tdata", signature),
            (a.chain[0], b"smt test", b"data", signature[:-1]),
            (a.chain[0], b"smt test", b"data", b"")):
        with pytest.raises(HandshakeError, match="the peer's signature"):
            verify_signature(leaf, context, data, wrong)


def test_an_identity_whose_key_is_not_its_certificates():
    a, b = pair()
    with pytest.raises(ConfigError, match="not that of our certificate"):
        Identity(a.chain, b.private_key, a.trust)
    with pytest.raises(ConfigError, match="needs a certificate and that of an authority"):
        Identity((), b.private_key, a.trust)
    with pytest.raises(ConfigError, match="needs a certificate and that of an authority"):
        Identity(a.chain, a.private_key, ())
    with pytest.raises(ConfigError, match="no peer would accept it"):
        Identity(a.chain * 6, a.private_key, a.trust)
    with pytest.raises(ConfigError, match="our certificate"):
        Identity((b"garbage",), a.private_key, a.trust)
    rsa = new_key("rsa")
    with pytest.raises(ConfigError, match="neither of P-256 nor Ed25519"):
        Identity((_der(ROOT.leaf("a", A, rsa)),), rsa, a.trust)  # type: ignore[arg-type]


def test_no_key_shows_in_a_repr():
    a, _b = pair()
    assert repr(a) == "<Identity 10.0.0.1, a>"


def test_names_out_of_certificates_are_printed_with_care():
    with pytest.raises(HandshakeError) as caught:
        OURS.verify(_b(Leaf(dns=["x" * 200, *"cdefg"])), IP_B, UTC, server=True)
    assert str(caught.value).endswith("but for 10.0.0.2, c, d, e, ...")
    with pytest.raises(HandshakeError) as caught:
        OURS.verify(_b(Leaf(dns=["x" * 200 + "\x1b[2J\n"], ips=[])), IP_B, UTC, server=True)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


# -- files ---------------------------------------------------------------------------------------------------

def _pem(key):
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.fixture
def folder(tmp_path):
    a = ROOT.identity("a", A)
    (tmp_path / "ca.pem").write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    (tmp_path / "cert.pem").write_bytes(a.leaf.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").touch(0o600)
    (tmp_path / "key.pem").write_bytes(_pem(a.private_key))
    (tmp_path / "hosts").write_text("# of this lab\n10.0.0.1 a a.lab\n\n10.0.0.2\tb  # the server\n10.0.0.1 a\n")
    return tmp_path


def test_a_folder_is_an_identity(folder):
    loaded = load_identity(folder)
    assert loaded.names == NAMES
    assert loaded.verify(CHAIN, IP_B, UTC, server=True) == "b"
    verify_signature(loaded.chain[0], b"x", b"y", loaded.sign(b"x", b"y"))
    (folder / "hosts").unlink()
    assert load_identity(folder).names == {}


def test_a_folder_that_makes_no_identity_is_named(folder):
    def says(words):
        with pytest.raises(ConfigError, match=words):
            load_identity(folder)

    (folder / "key.pem").chmod(0o640)
    says(r"key\.pem can be read by others \(mode 640\); chmod 600")
    (folder / "key.pem").chmod(0o600)
    good = (folder / "key.pem").read_bytes()
    (folder / "key.pem").write_text("no key")
    says(r"key\.pem is no private key in PEM")
    rsa = new_key("rsa")
    (folder / "key.pem").write_bytes(_pem(rsa))
    says(r"key\.pem is neither of P-256 nor Ed25519")
    other = new_key("p256")
    (folder / "key.pem").write_bytes(_pem(other))
    says("our private key is not that of our certificate")
    (folder / "key.pem").write_bytes(good)
    for text, words in (("10.0.0.1\n", "hosts, line 1: 'ADDRESS NAME'"), ("a 10.0.0.1\n", "hosts, line 1"),
                        ("10.0.0.1 a\n10.0.0.1 b\n", r"hosts, line 2: 10\.0\.0\.1 has the name a already")):
        (folder / "hosts").write_text(text)
        says(words)
    (folder / "hosts").unlink()
    (folder / "cert.pem").write_text("no certificate")
    says(r"cert\.pem holds no certificates in PEM")
    (folder / "cert.pem").write_bytes(bytes((1 << 20) + 1))
    says("longer than")
    (folder / "ca.pem").unlink()
    says(r"ca\.pem: No such file or directory; 'smtnet ca' makes such folders")


def test_names_by_address(tmp_path):
    (tmp_path / "hosts").write_text("")
    assert load_names(tmp_path / "hosts") == {}


def test_a_key_log_is_private_and_grows(tmp_path):
    path = tmp_path / "keys.log"
    session = Established(IP_B, 2000, True, "mtls", bytes(range(32)), Agreement(padding="buckets:64,512"))
    for log in (open_keylog(path), open_keylog(path)):
        log.tls("CLIENT_RANDOM 00 11")
        log.session(session, IP_A, 40_000, 7)
    assert path.stat().st_mode & 0o777 == 0o600
    line = f"SMT_SECRET 10.0.0.1:40000 10.0.0.2:2000 7 AES-128-GCM,16,buckets:64,512 {bytes(range(32)).hex()}"
    assert path.read_text().splitlines() == ["CLIENT_RANDOM 00 11", line] * 2
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by others"):
        open_keylog(path)
    (tmp_path / "link").symlink_to(path)
    for bad in (tmp_path / "link", tmp_path, tmp_path / "none" / "log"):
        with pytest.raises(ConfigError, match="key log"):
            open_keylog(bad)


def test_sslkeylogfile_gets_the_lines_of_tls_and_no_others(tmp_path, monkeypatch):
    session = Established(IP_B, 2000, True, "mtls", bytes(range(32)), Agreement())
    own, theirs = tmp_path / "own", tmp_path / "theirs"
    monkeypatch.delenv("SSLKEYLOGFILE", raising=False)
    assert keylog_wanted(None) is None
    for path, environment in ((own, None), (None, theirs), (own, theirs)):
        if environment is not None:
            monkeypatch.setenv("SSLKEYLOGFILE", str(environment))
        log = keylog_wanted(path)
        assert log is not None
        log.tls("CLIENT_RANDOM 00 11")
        log.session(session, IP_A, 40_000, 7)
    assert theirs.read_text() == "CLIENT_RANDOM 00 11\n" * 2
    assert theirs.stat().st_mode & 0o777 == 0o600
    assert [line.split()[0] for line in own.read_text().splitlines()] == ["CLIENT_RANDOM", "SMT_SECRET"] * 2
    theirs.chmod(0o644)
    with pytest.raises(ConfigError, match=r"\(SSLKEYLOGFILE\): .*theirs can be read by others"):
        keylog_wanted(own)
    # The control: of our own file it is not said.
    own.chmod(0o644)
    with pytest.raises(ConfigError, match=r"^key log: .*own can be read by others"):
        keylog_wanted(own)


def test_the_line_of_a_session_names_the_client_first_and_the_early_secret_before(tmp_path):
    log = open_keylog(tmp_path / "log")
    session = Established(IP_A, 40_000, False, "ticket-fs", b"s" * 32, Agreement(), early=b"e" * 32)
    log.session(session, IP_B, 2000, 8)
    ends = "10.0.0.1:40000 10.0.0.2:2000 8 AES-128-GCM,16,none"
    assert (tmp_path / "log").read_text() == (f"SMT_EARLY_SECRET {ends} {(b'e' * 32).hex()}\n"
                                              f"SMT_SECRET {ends} {(b's' * 32).hex()}\n")
