"""Records and their numbers: against RFC 8448, the reference, and plain AEAD calls."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from hypothesis import assume, given
from hypothesis import strategies as st

from smtstack.crypto import keys as key_module
from smtstack.crypto import tls12, tls13
from smtstack.crypto.aead import AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305, Cipher, DirectionKeys
from smtstack.crypto.composite import CompositeNumber
from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import demo_keys, linux_keys
from smtstack.errors import AuthError, ConfigError, LocalError
from tests.pair import SERVER, SERVER_PORT, Pair, pattern

SEQUENCES = st.integers(0, (1 << 64) - 1)
EACH_CIPHER = pytest.mark.parametrize("cipher", [AES_128_GCM, AES_256_GCM, CHACHA20_POLY1305],
                                      ids=lambda c: c.name)


def some_keys(cipher: Cipher = AES_128_GCM) -> DirectionKeys:
    return DirectionKeys(cipher, bytes(range(cipher.key_len)), bytes(range(100, 112)))


# -- TLS 1.3 records ---------------------------------------------------------------------------------------

# RFC 8448 section 3, "Simple 1-RTT Handshake": application traffic secrets, the keys derived from them, and
# the records in which either side sends the bytes 0 to 49 (the server after a ticket, so as record 1).
RFC8448 = [
    ("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
     "17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9", 0,
     "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e"
     "1f5a6292a2977014bd1e3deae63aeebb21694915e4"),
    ("a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
     "9f02283b6c9c07efc26bb9f2ac92e356", "cf782b88dd83549aadf1e984", 1,
     "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c"
     "4bf2e5f0a21c0047c2abf332540dd032e167c2955d"),
]


@pytest.mark.parametrize(("secret", "key", "iv", "number", "record"), RFC8448, ids=["client", "server"])
def test_rfc_8448(secret, key, iv, number, record):
    secret, record = bytes.fromhex(secret), bytes.fromhex(record)
    assert key_module.expand_label(secret, "key", b"", 16).hex() == key
    assert key_module.expand_label(secret, "iv", b"", 12).hex() == iv
    keys = DirectionKeys(AES_128_GCM, bytes.fromhex(key), bytes.fromhex(iv))
    assert tls13.seal(keys, number, bytes(range(50)), last=True) == record
    assert tls13.open_untrusted(keys, number, record) == (True, bytes(range(50)))


@EACH_CIPHER
@given(number=SEQUENCES, data=st.binary(max_size=300), last=st.booleans(), padding=st.integers(0, 40))
def test_tls13_record_by_hand(cipher, number, data, last, padding):
    keys = some_keys(cipher)
    nonce = bytes(a ^ b for a, b in zip(keys.iv, bytes(4) + number.to_bytes(8, "big"), strict=True))
    inner = data + (b"\x17" if last else b"\x57") + bytes(padding)
    aad = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
    aead = (ChaCha20Poly1305 if cipher is CHACHA20_POLY1305 else AESGCM)(keys.key)
    record = tls13.seal(keys, number, data, last, padding)
    assert record == aad + aead.encrypt(nonce, inner, aad)
    assert len(record) == len(data) + padding + tls13.OVERHEAD == tls13.record_length_untrusted(record, 0)
    assert tls13.open_untrusted(keys, number, record) == (last, data)
    # What the NIC gets is the same with the plaintext in place.
    assert tls13.frame(data, last, padding) == aad + inner + bytes(16)


@given(number=SEQUENCES, other=SEQUENCES, bit=st.integers(0, 8 * 42 - 1))
def test_any_changed_bit_or_number_fails(number, other, bit):
    keys = some_keys()
    record = bytearray(tls13.seal(keys, number, b"twenty bytes of data", last=True))
    assume(number != other)
    with pytest.raises(AuthError):
        tls13.open_untrusted(keys, other, bytes(record))
    record[bit >> 3] ^= 1 << (bit & 7)
    with pytest.raises(AuthError):
        tls13.open_untrusted(keys, number, bytes(record))


@pytest.mark.parametrize("inner", [bytes(1), bytes(100), b"data\x16", b"data\x15\0\0", b"\x58"])
def test_authentic_records_without_a_proper_type(inner):
    keys = some_keys()
    aad = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
    with pytest.raises(AuthError):
        tls13.open_untrusted(keys, 5, aad + keys.encrypt(5, inner, aad))


@pytest.mark.parametrize(("length", "whole"), [(0, 0), (16, 0), (17, 22), (16384 + 17, 16384 + 22),
                                               (16384 + 18, 0), (0xFFFF, 0)])
def test_tls13_record_length(length, whole):
    header = b"\x17\x03\x03" + length.to_bytes(2, "big")
    assert tls13.record_length_untrusted(b"xyz" + header, 3) == whole
    for wrong in (b"\x16\x03\x03", b"\x17\x02\x03", b"\x17\x03\x04"):
        assert tls13.record_length_untrusted(wrong + header[3:], 0) == 0


# -- TLS 1.2 records ---------------------------------------------------------------------------------------

SECTION_13_1 = bytes.fromhex("""
    45c000ad 00004000 40fd2492 0a000001 0a000002
    8000 07d0 00000000 00000000 a0 10 0000 0000 0000 0000000000000002 00000040 00000040 0000 00 00
    17 0303 006c 0000000000010000
    48c1d6cdb6c7148b2ce3e905055a7bc758d8e114a46ff97bccaa74b38de2a57dce4277c41a6ddc5ce34996a9c127d0b6bb14b04e
    e73d28d454bdf4c5255001e4b6e913302d986dc7364637871d15bdf95e069e6f 89568f6afb4661fb51ba2af4cd169a54""")


def test_the_kernel_modules_first_packet():
    pair = Pair("linux")
    pair.request(b"\x3f" * 64)
    pair.run()
    pair.check()
    # An endpoint's host is first heard of: priority 6, cutoff version 0. All 173 bytes of reference §13.1.
    assert pair.frames[0][14:] == SECTION_13_1


def test_tls12_record_of_the_reference():
    keys = linux_keys(key_module.DEMO_CLIENT_KEY, key_module.DEMO_CLIENT_SALT)
    plain = bytes.fromhex("00000000 00000040 0000000000000000 0000 0000") + b"\x3f" * 64
    number = tls12.first_sequence(2)
    assert number == 0x10000
    assert keys.nonce(number).hex() == "87c635c80000000000010000"
    assert tls12.aad(number, 84).hex() == "0000000000010000" + "170303" + "0054"
    record = tls12.seal(keys, number, plain)
    assert record == SECTION_13_1[60:]
    assert tls12.open_untrusted(keys, number, record) == plain
    # The explicit nonce on the wire is ignored, as the module ignores it; everything else counts.
    assert tls12.open_untrusted(keys, number, record[:5] + b"whatever" + record[13:]) == plain
    for changed in (record[:-1] + b"?", record[:20] + b"?" + record[21:], record[:-1], record + b"?"):
        with pytest.raises(AuthError):
            tls12.open_untrusted(keys, number, changed)
    assert tls12.frame(number, plain) == record[:13] + plain + bytes(16)
    assert tls12.record_length_untrusted(record) == len(record)


@given(st.integers(0, (1 << 64) - 1))
def test_tls12_numbers_drop_the_role_bit(rpc_id):
    assert tls12.first_sequence(rpc_id) == tls12.first_sequence(rpc_id ^ 1) == (rpc_id % 2**49 // 2) * 65536


@pytest.mark.parametrize(("record", "whole"), [
    (b"\x17\x03\x03\x00\x19" + bytes(8), 30), (b"\x17\x03\x03\x00\x18" + bytes(8), 0),
    (b"\x17\x03\x03\xff\xff" + bytes(8), 65540), (b"\x17\x03\x03\x00\x19" + bytes(7), 0),
    (b"\x16\x03\x03\x00\x19" + bytes(8), 0), (b"\x17\x03\x01\x00\x19" + bytes(8), 0), (b"", 0)])
def test_tls12_record_length(record, whole):
    assert tls12.record_length_untrusted(record) == whole


@pytest.mark.parametrize("size", range(29))
def test_tls12_opening_a_stump_is_an_auth_error(size):
    with pytest.raises(AuthError):
        tls12.open_untrusted(some_keys(), 1, bytes(size))


# -- composite numbers -------------------------------------------------------------------------------------

BITS = st.integers(4, 48)


@given(BITS, st.data())
def test_two_messages_never_share_a_number(bits, data):
    numbers = CompositeNumber(bits)
    ids = st.integers(0, numbers.id_limit - 1)
    a, b = data.draw(ids), data.draw(ids)
    index = st.integers(0, numbers.max_records - 1)
    i, j = data.draw(index), data.draw(index)
    mine = [numbers.first(a, i + 1) + i, numbers.ack_single(a), numbers.ack_batch(a)]
    theirs = [numbers.first(b, j + 1) + j, numbers.ack_single(b), numbers.ack_batch(b)]
    assert len(set(mine)) == 3
    assert (a == b) or not set(mine) & set(theirs)
    assert [numbers.split(n) for n in mine] == [(a, i), (a, (1 << bits) - 2), (a, (1 << bits) - 1)]
    assert max(mine) < 1 << 64


@given(BITS)
def test_what_does_not_fit_is_refused(bits):
    numbers = CompositeNumber(bits)
    assert numbers.first(numbers.id_limit - 1, numbers.max_records) == (numbers.id_limit - 1) << bits
    with pytest.raises(LocalError, match="does not fit"):
        numbers.first(numbers.id_limit)
    with pytest.raises(LocalError, match="exceeds"):
        numbers.first(2, numbers.max_records + 1)


@pytest.mark.parametrize("bits", [3, 49, 0, -1, 64])
def test_absurd_splits(bits):
    with pytest.raises(ConfigError, match="index_bits"):
        CompositeNumber(bits)


def test_a_message_of_too_many_records_is_refused_before_anything_is_sealed():
    params = SessionParams(index_bits=4)  # 14 records of up to 8618 bytes
    pair = Pair(keys=lambda: demo_keys("smt", params))
    pair.request(pattern(100_000))
    with pytest.raises(LocalError, match="index bits"):
        pair.client.endpoint.send_request(SERVER, SERVER_PORT, pattern(200_000), 0)
    session = pair.client.endpoint._table.peers[SERVER << 16 | SERVER_PORT].session
    assert session.current.sealed <= 14
    pair.run(settle=True)
    pair.check()
    assert pair.client.endpoint.snapshot()["rpcs"] == 0
