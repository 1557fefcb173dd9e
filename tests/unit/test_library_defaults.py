"""What security rests on in libraries, asserted here: a release with other defaults fails these, not a user.

What an end does with bad certificates is in test_tls.py and test_identity.py, signed answers of DNS servers in
test_dns_consent.py.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.crypto.aead import CIPHERS
from smtstack.errors import SmtError

pytest.importorskip("OpenSSL", reason="pyOpenSSL is not installed")
from OpenSSL import SSL

from smtstack.session.pool import agree, make_key
from smtstack.session.tls import _make_context
from smtstack.session_io.state_file import SqliteState
from tests.handshakes import CLIENT_ID
from workloads.fleet.authority import make_folder
from workloads.transports import tls as streams


@pytest.mark.parametrize("server", [False, True])
@pytest.mark.parametrize("mutual", [False, True])
def test_our_contexts_speak_tls_1_3_alone_and_verify(server, mutual):
    context = _make_context(CLIENT_ID, server, mutual, False)
    assert context.set_options(0) & SSL.OP_NO_TICKET
    connection = SSL.Connection(context, None)
    assert context.get_verify_mode() == (
        SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT if not server or mutual else SSL.VERIFY_NONE)
    assert connection.get_cipher_list()[:2] == ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]
    assert context.get_session_cache_mode() == SSL.SESS_CACHE_OFF


@pytest.mark.parametrize("version", [SSL.TLS1_VERSION, SSL.TLS1_1_VERSION, SSL.TLS1_2_VERSION])
def test_an_older_tls_gets_no_answer_but_an_alert(version):
    older = SSL.Context(SSL.TLS_CLIENT_METHOD)
    older.set_min_proto_version(version)
    older.set_max_proto_version(version)
    older.set_cipher_list(b"ALL:@SECLEVEL=0")
    ours = _make_context(CLIENT_ID, True, False, False)
    client, server = SSL.Connection(older, None), SSL.Connection(ours, None)
    client.set_connect_state()
    server.set_accept_state()
    with pytest.raises(SSL.WantReadError):
        client.do_handshake()
    server.bio_write(client.bio_read(1 << 16))
    with pytest.raises(SSL.Error):
        server.do_handshake()


@pytest.mark.parametrize("name", CIPHERS)
@pytest.mark.parametrize("at", [0, 7, -16, -1])
def test_a_changed_byte_of_a_record_is_noticed(name, at):
    cipher = CIPHERS[name]
    aead = cipher.make(bytes(cipher.key_len))
    sealed = bytearray(aead.encrypt(bytes(12), b"something", b"header"))
    assert len(sealed) == len(b"something") + 16
    sealed[at] ^= 1
    with pytest.raises(InvalidTag):
        aead.decrypt(bytes(12), bytes(sealed), b"header")


@pytest.mark.parametrize("size", [0, 1, 15])
def test_no_tag_is_shorter_than_16_bytes(size):
    with pytest.raises((InvalidTag, ValueError)):
        AESGCM(bytes(16)).decrypt(bytes(12), bytes(size), None)


@pytest.mark.parametrize("share", [bytes(32), b"\1" + bytes(31)])
def test_shares_of_low_order_agree_on_nothing(share):
    key, _own = make_key()
    with pytest.raises(SmtError):
        agree(key, share)


@pytest.mark.parametrize("purpose", [ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH])
def test_the_streams_contexts(monkeypatch, tmp_path, purpose):
    """Transport tls: 1.3 alone, and the other side's certificate is looked at, by name where it is a server's."""
    make_folder(tmp_path / "certs", {"a": "10.0.0.1"})
    # Which suites there are is OpenSSL's configuration of a process.
    monkeypatch.setattr(ssl.SSLContext, "get_ciphers", lambda _self: [
        {"name": streams.SUITE, "protocol": "TLSv1.3"}])
    made = streams._context(tmp_path / "certs" / "a", server=purpose is ssl.Purpose.CLIENT_AUTH)
    assert made.minimum_version is made.maximum_version is ssl.TLSVersion.TLSv1_3
    assert made.verify_mode is ssl.CERT_REQUIRED
    assert made.check_hostname == (purpose is ssl.Purpose.SERVER_AUTH)


def test_the_servers_memory_is_written_before_a_hello_counts(tmp_path: Path):
    """As far as SQLite's settings say: what was committed outlives the process."""
    state = SqliteState(tmp_path / "state")
    state.tickets()
    assert state._db is not None
    assert state._db.execute("PRAGMA synchronous").fetchone()[0] >= 1
    assert state._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert (tmp_path / "state").stat().st_mode & 0o077 == 0
    state.close()
