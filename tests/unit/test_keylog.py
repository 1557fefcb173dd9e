"""Reading keylogs: what is in them, what is refused, and that no complaint repeats a secret."""

from __future__ import annotations

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.capture.keylog import Keylog
from smtstack.capture.reading import load_keylog
from smtstack.crypto.aead import DirectionKeys
from smtstack.crypto.keys import EarlySecrets, Endpoints, TrafficSecrets
from smtstack.crypto.padding import padding_named
from smtstack.errors import BadPacket, ConfigError
from smtstack.session import keylog as writing
from smtstack.session.established import Established
from smtstack.session.offer import Agreement, cipher_of
from smtstack.session_io.identity_files import open_keylog
from smtstack.wire.ipv4 import address

CLIENT, SERVER = ("10.0.0.1", 40_000), ("10.0.0.2", 2000)
SECRET, EARLY = bytes(range(32)), bytes(range(32, 64))
AGREED = Agreement("AES-256-GCM", 20, padding="buckets:256,1024")
AGREED_PADS_200 = padding_named(AGREED.padding)(200)
RANDOM = bytes(range(100, 132))
LINE = ("SMT_SECRET 10.0.0.1:40000 10.0.0.2:2000 1800000000000000000 AES-256-GCM,20,buckets:256,1024 "
        f"{SECRET.hex()}\n")
#: As the server receives, and as the client does.
AT_SERVER = Endpoints(address(SERVER[0]), SERVER[1], address(CLIENT[0]), CLIENT[1])
AT_CLIENT = Endpoints(address(CLIENT[0]), CLIENT[1], address(SERVER[0]), SERVER[1])


def read(*texts: str) -> Keylog:
    keylog = Keylog()
    for text in texts:
        keylog.add_untrusted(text)
    return keylog


def raw(*keys: DirectionKeys) -> list[tuple[bytes, bytes]]:
    """Keys and ivs, to compare."""
    return [(k.key, k.iv) for k in keys]


def established(is_client: bool, early: bytes = b"") -> Established:
    peer = SERVER if is_client else CLIENT
    mode = "ticket-fs" if early else "mtls"
    return Established(address(peer[0]), peer[1], is_client, mode, SECRET, AGREED, early)


def written(early: bytes = b"") -> str:
    """What both sides of a session write."""
    lines: list[str] = []
    log = writing.Keylog(lines.append)
    log.tls(f"EXPORTER_SECRET {RANDOM.hex()} {SECRET.hex()}")
    log.session(established(True, early), address(CLIENT[0]), CLIENT[1], 5)
    log.session(established(False, early), address(SERVER[0]), SERVER[1], 7)
    return "".join(lines)


def test_what_the_sessions_write_is_read():
    keylog = read(written())
    assert (keylog.secrets, keylog.tls_lines) == (2, 1)
    for ends in (AT_SERVER, AT_CLIENT):
        # Both sides wrote it down: that makes no two sessions.
        (session, early), = keylog.sessions(ends)
        assert not early
        assert raw(*session.schedule(3)) == raw(*TrafficSecrets(SECRET, ends, cipher_of(AGREED)).keys(3))
        assert session.numbers.index_bits == 20
        assert session.params.padding(200) == AGREED_PADS_200
    assert keylog.tls(RANDOM) == [f"EXPORTER_SECRET {RANDOM.hex()} {SECRET.hex()}"]
    assert keylog.tls(bytes(32)) == []


def test_an_early_secret_seals_what_the_client_says_in_epoch_0_and_nothing_else():
    keylog = read(written(EARLY))
    at_server = keylog.sessions(AT_SERVER)
    assert [early for _session, early in at_server] == [True, False]
    whole = EarlySecrets(EARLY, SECRET, AT_SERVER, cipher_of(AGREED), is_client=False)
    assert raw(at_server[0][0].schedule(0)[1]) == raw(whole.keys(0)[1])
    assert raw(*at_server[1][0].schedule(1)) == raw(*whole.keys(1))
    (session, early), = keylog.sessions(AT_CLIENT)
    assert not early
    whole = EarlySecrets(EARLY, SECRET, AT_CLIENT, cipher_of(AGREED), is_client=True)
    assert raw(session.schedule(0)[1]) == raw(whole.keys(0)[1])


def test_sessions_of_one_pair_of_ends_come_in_order_and_others_not_at_all():
    later = LINE.replace("1800000000000000000", "1800000000000000009").replace(SECRET.hex(), EARLY.hex())
    keylog = read(later + LINE)
    assert [raw(*s.schedule(0)) for s, _early in keylog.sessions(AT_SERVER)] == [
        raw(*TrafficSecrets(secret, AT_SERVER, cipher_of(AGREED)).keys(0)) for secret in (SECRET, EARLY)]
    assert keylog.session(Endpoints(AT_SERVER.local_ip, 2001, AT_SERVER.peer_ip, 40_000)) is None


def test_comments_and_empty_lines_are_passed_over():
    assert read(f"# a comment\n\n   \n{LINE}").secrets == 1


@pytest.mark.parametrize(("line", "why"), [
    ("SMT_SECRET", "0 fields, not 5"),
    (LINE.replace(" 10.0.0.2:2000", ""), "4 fields"),
    (LINE.replace("10.0.0.1:40000", "10.0.0.1"), "no address and port"),
    (LINE.replace("10.0.0.1:40000", "10.0.0.256:40000"), "no address and port"),
    (LINE.replace("10.0.0.1:40000", "10.0.0.1:0"), "no address and port"),
    (LINE.replace("10.0.0.1:40000", "10.0.0.1:65536"), "no address and port"),
    (LINE.replace("1800000000000000000", "soon"), "the time is no number"),
    (LINE.replace("AES-256-GCM", "DES"), "DES"),
    (LINE.replace(",20,", ",99,"), "index_bits"),
    (LINE.replace(",20,", ","), "CIPHER,INDEX_BITS,PADDING"),
    (LINE.replace("buckets:256,1024", "much"), "padding"),
    (LINE.replace(SECRET.hex(), SECRET.hex()[:-1]), "64 hex digits"),
    (LINE.replace(SECRET.hex(), SECRET.hex()[:-1] + "g"), "64 hex digits"),
    ("Dear diary", "neither"),
    ("EXPORTER_SECRET 1234 5678", "neither"),
    ("#\n" + "x" * 2000, "1024 characters"),
])
def test_a_bad_line_is_named_and_no_secret_repeated(line, why):
    with pytest.raises(BadPacket) as caught:
        read(f"# one\n{line}\n")
    text = str(caught.value)
    assert why in text
    assert "line 2" in text or "line 3" in text
    assert SECRET.hex()[:16] not in text


def test_nothing_shows_a_secret():
    keylog = read(LINE)
    logged, = next(iter(keylog._by_ends.values())).values()
    assert SECRET.hex() not in repr(keylog) + repr(logged)
    assert str(SECRET) not in repr(keylog) + repr(logged)


@given(st.one_of(st.text(), st.text().map(lambda t: f"SMT_SECRET {t}"),
                 st.lists(st.sampled_from([*LINE.split(), "", ":", ",", "\n", "0"])).map(" ".join)))
def test_any_text_is_read_or_refused(text):
    try:
        keylog = read(text)
    except BadPacket:
        return
    assert keylog.secrets + keylog.tls_lines <= len(text.splitlines())


def test_files(tmp_path):
    path = tmp_path / "log"
    open_keylog(path).session(established(False), address(SERVER[0]), SERVER[1], 7)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    other = tmp_path / "other"
    other.write_text(LINE)
    assert load_keylog(path, other).secrets == 2
    for content, why in ((b"\xff", "ASCII"), (b"Dear diary", f"{other}: line 1")):
        other.write_bytes(content)
        with pytest.raises(ConfigError, match=why):
            load_keylog(path, other)
    with pytest.raises(ConfigError, match="No such file"):
        load_keylog(tmp_path / "none")
