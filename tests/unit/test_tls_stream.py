"""TLS records of a stream, piece by piece: what any cut gives is a slice of what one shot gives."""

from __future__ import annotations

from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.stream_gcm import (
    AES_128_GCM,
    AES_256_GCM,
    CHACHA20_POLY1305,
    CIPHERS,
    TLS12,
    TLS13,
    RecordCrypto,
    StreamKeys,
    apply_keystream,
    frame_record,
    open_record_untrusted,
    record_len_untrusted,
    seal_framed,
    seal_record,
)
from smtstack.errors import AuthError, ConfigError

KINDS = [(version, cipher) for version in (TLS12, TLS13) for cipher in CIPHERS]


def make_keys(version: int = TLS13, cipher: str = AES_128_GCM) -> StreamKeys:
    iv = 4 if version == TLS12 and cipher != CHACHA20_POLY1305 else 12
    return StreamKeys(version, cipher, bytes(range(CIPHERS[cipher])), bytes(range(100, 100 + iv)))


@pytest.mark.parametrize(("version", "cipher"), KINDS)
def test_a_record_is_what_the_rfcs_say(version, cipher):
    """Put together by hand from the text of RFC 5288, 7905 and 8446."""
    keys = make_keys(version, cipher)
    number, explicit, data = 0x0102030405, 0xA1A2A3A4A5A6A7A8, b"hello"
    aead = (ChaCha20Poly1305 if cipher == CHACHA20_POLY1305 else AESGCM)(keys.key)
    xored = bytes(a ^ b for a, b in zip(keys.iv, number.to_bytes(12, "big"), strict=False))
    if version == TLS13:
        header = bytes.fromhex("1703030016")
        want = header + aead.encrypt(xored, b"hello\x15", header)
    elif cipher == CHACHA20_POLY1305:
        aad = number.to_bytes(8, "big") + bytes.fromhex("1503030005")
        want = bytes.fromhex("1503030015") + aead.encrypt(xored, data, aad)
    else:
        aad = number.to_bytes(8, "big") + bytes.fromhex("1503030005")
        nonce = explicit.to_bytes(8, "big")
        want = bytes.fromhex("150303001d") + nonce + aead.encrypt(keys.iv + nonce, data, aad)
    sealed = seal_record(keys, number, 21, data, explicit)
    assert sealed == want
    assert len(sealed) == len(data) + keys.overhead == len(frame_record(keys, 21, data, explicit))
    assert open_record_untrusted(keys, number, sealed) == (21, data)


@given(st.sampled_from(KINDS), st.integers(0, 2**64 - 1), st.binary(max_size=3000),
       st.lists(st.integers(0, 3000), max_size=8))
def test_pieces_are_slices_of_the_whole(kind, number, data, cuts):
    keys = make_keys(*kind)
    framed = frame_record(keys, 23, data, explicit_nonce=number ^ 77)
    sealed = seal_framed(keys, number, framed)
    at = keys.header_len
    header = framed[:at]
    assert record_len_untrusted(keys, header[:5]) == len(sealed)
    body, tag = framed[at:-16], sealed[-16:]
    ends = sorted({min(cut, len(body)) for cut in cuts} | {0, len(body)})
    sealing, opening = RecordCrypto(keys, number, header), RecordCrypto(keys, number, header, encrypt=False)
    for start, end in pairwise(ends):
        part = sealed[at + start:at + end]
        assert sealing.update(body[start:end]) == part
        assert opening.update(part) == body[start:end]
        assert apply_keystream(keys, number, header, start, body[start:end]) == part
        assert apply_keystream(keys, number, header, start, part) == body[start:end]
    assert sealing.tag() == tag
    assert opening.verify(tag)


@pytest.mark.parametrize(("version", "cipher"), KINDS)
def test_what_was_changed_does_not_verify(version, cipher):
    keys = make_keys(version, cipher)
    sealed = seal_record(keys, 5, 23, b"some data", 9)
    for at in (0, 3, 5, len(sealed) - 20, len(sealed) - 1):
        forged = bytearray(sealed)
        forged[at] ^= 1
        with pytest.raises(AuthError):
            open_record_untrusted(keys, 5, bytes(forged))
    with pytest.raises(AuthError):
        open_record_untrusted(keys, 6, sealed)
    at = keys.header_len
    opening = RecordCrypto(keys, 5, sealed[:at], encrypt=False)
    opening.update(sealed[at:-16])
    assert not opening.verify(bytes(16))


def test_padding_of_tls_1_3_ends_where_the_type_is():
    keys = make_keys()
    framed = frame_record(keys, 0, b"data\x16" + bytes(300))
    assert open_record_untrusted(keys, 1, seal_framed(keys, 1, framed)) == (22, b"data")
    with pytest.raises(AuthError, match="content type"):
        open_record_untrusted(keys, 1, seal_framed(keys, 1, frame_record(keys, 0, bytes(40))))


def test_headers_that_cannot_be():
    tls12, tls13 = make_keys(TLS12), make_keys(TLS13)
    assert record_len_untrusted(tls12, bytes.fromhex("1703030018")) == 29
    for text in ("1703030017", "1803030040", "1303030040", "1703020040", "1702030040", "1703034101", "17030300"):
        assert record_len_untrusted(tls12, bytes.fromhex(text)) == 0, text
    assert record_len_untrusted(tls12, bytes.fromhex("1503030040")) == 69
    assert record_len_untrusted(tls13, bytes.fromhex("1503030040")) == 0
    assert record_len_untrusted(tls13, bytes.fromhex("1703030011")) == 22
    assert record_len_untrusted(tls13, bytes.fromhex("1703030010")) == 0


def test_keys_that_do_not_fit_are_refused():
    for version, cipher, key, iv in ((0x0302, AES_128_GCM, 16, 12), (TLS13, "rc4", 16, 12),
                                     (TLS13, AES_256_GCM, 16, 12), (TLS12, AES_128_GCM, 16, 12),
                                     (TLS13, AES_128_GCM, 16, 4)):
        with pytest.raises(ConfigError):
            StreamKeys(version, cipher, bytes(key), bytes(iv))
    with pytest.raises(ConfigError):
        frame_record(make_keys(), 23, bytes(16385))
    assert "00" not in repr(make_keys()).replace("0x0304", "")
