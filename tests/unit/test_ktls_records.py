"""Kernel TLS: records and who seals them. All backends make the same bytes, which are those of published vectors
and of the one-shot encryptor that NICs are compared with; TCP sees no record before those in front of it."""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator, Sequence

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.crypto.stream_gcm import StreamKeys, frame_record, open_record_untrusted, seal_record
from smtstack.errors import AuthError, Unsupported
from smtstack.ktls import purepy
from smtstack.ktls.backends import Batched, InNic, OpenSsl, PurePython, Registry
from smtstack.ktls.connection import KtlsConnection
from smtstack.ktls.key_schedule import key_block, next_secret, prf, suite_named, traffic_params
from smtstack.ktls.params import LINUX_CIPHERS, TlsParams
from smtstack.ktls.records import ALERT, DATA, HANDSHAKE, OPENSSL, AeadMakers, Buffer
from smtstack.ktls.session import Backend, OutRecord, Refused, TlsSession
from smtstack.ktls.stats import TlsStats
from smtstack.ktls_io import coproc

KINDS = [(version, cipher) for version in (0x0303, 0x0304) for cipher in LINUX_CIPHERS]
#: Whether there is a backend "batched"; an older cryptography is refused by name.
CAN_BATCH = hasattr(AESGCM, "encrypt_into")
START = 0xFFFF_FFFF_FFFF_FFFE  # explicit nonces wrap


def params(version: int, cipher: str, number: int = 0, explicit_nonce: int = 0) -> TlsParams:
    key = bytes(range(1, 1 + LINUX_CIPHERS[cipher].key))
    iv = bytes(range(50, 54 if version == 0x0303 and cipher.endswith("gcm") else 62))
    return TlsParams(cipher, version, key, iv, number, explicit_nonce)


def keys(of: TlsParams) -> StreamKeys:
    return StreamKeys(of.version, of.cipher, of.key, of.iv)


def connect(backend: Backend, of: TlsParams, nic: bool = False, rules: str = "freebsd") -> KtlsConnection:
    made = KtlsConnection(Registry([backend]), TlsStats(), rules, nic, nic)
    made.txtls_enable(of)
    return made


def drained(made: KtlsConnection) -> bytes:
    """All of the queue, as TCP would have it; waits for processes."""
    out = bytearray()
    while made.queue.head() is not None:
        parts = made.queue.ready()
        if not parts:
            select.select([fd for backend in made.sealing() if (fd := backend.fileno()) is not None], [], [], 20)
            made.collect()
            continue
        data = b"".join(parts)
        out += data
        made.queue.sent(len(data))
    return bytes(out)


@pytest.fixture(scope="module")
def processes() -> Iterator[dict[str, Backend]]:
    made: dict[str, Backend] = {"coproc": coproc.open_backend("coproc")}
    try:
        made["openssl-noaesni"] = coproc.open_backend("openssl-noaesni")
    except Unsupported as e:
        print(e)
    yield made
    for backend in made.values():
        assert isinstance(backend, coproc.ProcessBackend)
        assert backend.users == 0
        backend.close()


# -- bytes ---------------------------------------------------------------------------------------------------

def test_pure_python_makes_what_the_standards_print():
    """Test case 4 of the GCM specification, with 16 and 32 bytes of key (case 16); RFC 8439 §2.8.2."""
    text = bytes.fromhex("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a72"
                         "1c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39")
    nonce = bytes.fromhex("cafebabefacedbaddecaf888")
    aad = bytes.fromhex("feedfacedeadbeeffeedfacedeadbeefabaddad2")
    key = bytes.fromhex("feffe9928665731c6d6a8f9467308308")
    for key_, tag in ((key, "5bc94fbc3221a5db94fae95ae7121a47"), (key * 2, "76fc6ece0f4e1768cddf8853bb2d551b")):
        aead = purepy.AesGcm(key_)
        sealed = aead.encrypt(nonce, text, aad)
        assert sealed[-16:].hex() == tag
        assert aead.decrypt(nonce, sealed, aad) == text
    lotion = (b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
              b"sunscreen would be it.")
    chacha = purepy.ChaCha20Poly1305(bytes(range(0x80, 0xA0)))
    sealed = chacha.encrypt(bytes.fromhex("070000004041424344454647"), lotion,
                            bytes.fromhex("50515253c0c1c2c3c4c5c6c7"))
    assert sealed[:4].hex() == "d31a8d34"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"


@given(st.sampled_from(sorted(OPENSSL)), st.binary(max_size=100), st.binary(max_size=30),
       st.binary(min_size=12, max_size=12))
@settings(deadline=None)
def test_pure_python_is_openssl(cipher, data, aad, nonce):
    key = bytes(range(LINUX_CIPHERS[cipher].key))
    makers: AeadMakers = purepy.MAKERS
    ours, theirs = makers[cipher](key), OPENSSL[cipher](key)
    sealed = ours.encrypt(nonce, data, aad)
    assert sealed == theirs.encrypt(nonce, data, aad)
    assert ours.decrypt(nonce, sealed, aad) == data


@pytest.mark.parametrize(("version", "cipher"), KINDS)
def test_all_backends_make_the_same_bytes(version, cipher, processes):
    """Those of the encryptor that everything is compared with, for every type and length, across the wrap of the
    explicit nonce."""
    of = params(version, cipher, 41, START)
    writes = [(DATA, b"a"), (ALERT, b"\1\0"), (DATA, bytes(300)), (HANDSHAKE, bytes(5)),
              (DATA, bytes(range(256)) * 3)]
    expected, number, nonce = b"", 41, START
    for kind, data in writes:
        expected += seal_record(keys(of), number, kind, data, nonce)
        number, nonce = number + 1, nonce + 1 & (1 << 64) - 1
    for backend in (OpenSsl(), PurePython(), *([Batched()] if CAN_BATCH else []), *processes.values()):
        made = connect(backend, of)
        for kind, data in writes:
            made.write(data, kind)
        assert drained(made) == expected, backend.name
        made.close()
        assert not any(made.stats.gauges().values()), backend.name
        assert backend.users == 0
    nic = connect(InNic(), of, nic=True)
    for kind, data in writes:
        nic.write(data, kind)
    plain = [frame_record(keys(of), kind, data, START + n & (1 << 64) - 1)
             for n, (kind, data) in enumerate(writes)]
    assert drained(nic) == b"".join(plain)


@pytest.mark.parametrize(("version", "cipher"), KINDS)
def test_all_backends_open_what_the_reference_sealed_and_nothing_else(version, cipher, processes):
    of = params(version, cipher)
    record = seal_record(keys(of), 7, ALERT, b"\2\50", 99)
    for backend in (OpenSsl(), PurePython(), *([Batched()] if CAN_BATCH else []), *processes.values()):
        session = TlsSession(of, "rx", TlsStats())
        session.attach(backend, backend.attach(session))
        assert backend.open_untrusted(session, 7, record) == (ALERT, b"\2\50")
        with pytest.raises(AuthError):
            backend.open_untrusted(session, 8, record)
        for at in range(len(record)):
            broken = bytearray(record)
            broken[at] ^= 1
            # Version and length are judged before, by who cuts the stream.
            if at not in range(1, 5) and backend.name == "openssl":
                with pytest.raises(AuthError):
                    backend.open_untrusted(session, 7, broken)
        session.free()


def test_a_masked_openssl_is_measured_or_refused(processes):
    ours = coproc.seconds_a_record()
    masked = processes.get("openssl-noaesni")
    if masked is None:
        pytest.skip("OPENSSL_ia32cap has no effect on this machine, and the backend was refused")
    assert isinstance(masked, coproc.ProcessBackend)
    assert masked.seconds_a_record > 2 * ours


def test_a_mask_without_effect_is_refused(monkeypatch):
    monkeypatch.setattr(coproc.WithoutAesNi, "environment", {})
    with pytest.raises(Unsupported, match="would be a wrong name"):
        coproc.open_backend("openssl-noaesni")


def test_a_process_that_dies_fails_records_and_the_connection():
    backend = coproc.open_backend("coproc")
    made = connect(backend, params(0x0304, "aes-128-gcm"))
    made.write(b"before")
    drained(made)
    backend._process.kill()
    backend._process.wait()
    with pytest.raises(OSError) as failed:
        made.write(b"after")
    assert failed.value.errno == errno.EIO
    assert made.queue.head() is None
    made.close()
    backend.close()


def test_a_ring_that_is_full_takes_the_rest_later(processes):
    backend = processes["coproc"]
    of = params(0x0304, "aes-128-gcm")
    made = connect(backend, of)
    made.stats.set_knob("maxlen", 64)
    data = bytes(range(256)) * 64
    made.write(data)
    assert len(made.queue) == 256
    assert drained(made) == b"".join(seal_record(keys(of), n, DATA, data[64 * n:64 * n + 64]) for n in range(256))
    made.close()


# -- the registry --------------------------------------------------------------------------------------------

class OnlyChaCha(OpenSsl):
    name, priority, ciphers = "only-chacha", 99, frozenset({"chacha20-poly1305"})


class Picky(OpenSsl):
    name, priority = "picky", 98

    def attach(self, session):
        raise Refused("never")


def test_the_first_backend_that_takes_a_session_has_it():
    registry = Registry([PurePython(), OpenSsl(), OnlyChaCha(), Picky()])
    assert registry.names() == ["only-chacha", "picky", "openssl", "purepy"]
    for cipher, name in (("chacha20-poly1305", "only-chacha"), ("aes-256-gcm", "openssl")):
        session = TlsSession(params(0x0304, cipher), "tx", TlsStats())
        assert registry.attach(session).name == name
        with pytest.raises(OSError) as busy:
            registry.deregister(name)
        assert busy.value.errno == errno.EBUSY
        session.free()
        registry.deregister(name)
    with pytest.raises(OSError) as unknown:
        registry.deregister("openssl")
    assert unknown.value.errno == errno.ENOENT
    with pytest.raises(OSError) as twice:
        registry.register(PurePython())
    assert twice.value.errno == errno.EEXIST
    registry.deregister("purepy")
    session = TlsSession(params(0x0304, "aes-128-gcm"), "tx", TlsStats())
    with pytest.raises(OSError) as none:
        registry.attach(session)
    assert none.value.errno == errno.EPROTONOSUPPORT
    registry.deregister("picky")
    with pytest.raises(OSError) as no_mode:
        registry.attach(session, "nic")
    assert no_mode.value.errno == errno.ENXIO


# -- framing -------------------------------------------------------------------------------------------------

writes = st.lists(st.tuples(st.sampled_from([DATA, DATA, DATA, ALERT, HANDSHAKE]),
                            st.binary(min_size=1, max_size=200), st.booleans()), max_size=12)


@given(st.sampled_from(KINDS), writes, st.integers(64, 100),
       st.sampled_from(["openssl", "batched"] if CAN_BATCH else ["openssl"]))
@settings(deadline=None)
def test_whatever_is_written_is_in_records_of_its_type_in_order(kind, calls, most, backend):
    """No record mixes types or is longer than it may be, and MSG_MORE fills those of data."""
    of = params(*kind)
    made = connect(OpenSsl() if backend == "openssl" else Batched(), of)
    made.stats.set_knob("maxlen", most)
    pieces: list[tuple[int, bytes]] = []  # as they must be cut
    open_piece = False
    for what, data, more in calls:
        if what != DATA:
            if len(data) > most or more:
                with pytest.raises(OSError) as refused:
                    made.write(data, what, more)
                assert refused.value.errno == (errno.EINVAL if more else errno.EMSGSIZE)
                continue
            pieces.append((what, data))
            open_piece = False
        else:
            rest = data
            if open_piece:
                whole = pieces[-1][1] + rest
                pieces[-1] = (DATA, whole[:most])
                rest = whole[most:]
            pieces += [(DATA, rest[at:at + most]) for at in range(0, len(rest), most)]
            open_piece = more and len(pieces[-1][1]) < most
        made.write(data, what, more)
    made.flush()
    expected = b"".join(seal_record(keys(of), n, what, data, n) for n, (what, data) in enumerate(pieces))
    assert drained(made) == expected
    assert made.open_bytes == 0
    made.close()
    assert not any(made.stats.gauges().values())


def test_nothing_to_write():
    freebsd = connect(OpenSsl(), params(0x0304, "aes-128-gcm"))
    with pytest.raises(OSError) as empty:
        freebsd.write(b"")
    assert empty.value.errno == errno.EINVAL
    linux = connect(OpenSsl(), params(0x0304, "aes-128-gcm"), rules="linux")
    linux.write(b"")
    assert linux.queue.head() is None
    linux.write(b"x", more=True)
    assert linux.queue.head() is None
    linux.write(b"")
    assert len(linux.queue) == 1
    with pytest.raises(OSError) as off:
        KtlsConnection(Registry([OpenSsl()]), TlsStats()).write(b"x")
    assert off.value.errno == errno.ENOTCONN


# -- readiness -----------------------------------------------------------------------------------------------

class Manual(OpenSsl):
    """Seals when it is told to."""

    name, asynchronous = "manual", True

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[OutRecord] = []

    def submit(self, records: Sequence[OutRecord]) -> None:
        self.waiting += records

    def seal(self, record: OutRecord) -> None:
        super().submit([record])


@given(st.permutations(range(6)))
def test_tcp_sees_nothing_at_or_after_a_record_that_is_late(order):
    backend, of = Manual(), params(0x0304, "aes-128-gcm")
    made = connect(backend, of)
    made.stats.set_knob("maxlen", 64)
    made.write(bytes(6 * 64))
    sealed = [seal_record(keys(of), n, DATA, bytes(64)) for n in range(6)]
    assert made.stats.counters["stats.sw_tx_inqueue"] == 6
    ready: set[int] = set()
    sent = b""
    for n in order:
        backend.seal(backend.waiting[n])
        ready.add(n)
        prefix = next((at for at in range(7) if at not in ready), 6)
        parts = b"".join(made.queue.ready())
        assert sent + parts == b"".join(sealed[:prefix])
        # TCP takes it in two bites, not at the end of a record.
        for bite in (parts[:len(parts) // 3], parts[len(parts) // 3:]):
            made.queue.sent(len(bite))
            sent += bite
    assert made.queue.head() is None
    assert made.queue.backlog == 0
    assert made.stats.counters["stats.sw_tx_inqueue"] == 0
    made.close()
    assert backend.users == 0


def test_a_record_that_cannot_be_sealed_ends_the_connection_with_eio():
    backend = Manual()
    made = connect(backend, params(0x0304, "aes-128-gcm"))
    made.stats.set_knob("maxlen", 64)
    made.write(bytes(3 * 64))
    first, second, _third = backend.waiting
    backend.seal(first)
    made.collect()
    second.fail()
    with pytest.raises(OSError) as failed:
        made.collect()
    assert failed.value.errno == errno.EIO
    # Neither it nor anything else, and it stays so.
    assert made.queue.ready() == []
    with pytest.raises(OSError) as still:
        made.write(b"x")
    assert still.value.errno == errno.EIO
    assert made.stats.counters["stats.failed_crypto"] == 1
    made.close()
    assert not any(made.stats.gauges().values())


# -- sessions ------------------------------------------------------------------------------------------------

def test_ten_thousand_sessions_leave_no_reference_and_no_key():
    backend, of = OpenSsl(), params(0x0304, "aes-128-gcm")
    registry, stats = Registry([backend, InNic()]), TlsStats()
    ended: list[TlsSession] = []
    for n in range(10_000):
        made = KtlsConnection(registry, stats, nic_tx=bool(n % 2))
        made.txtls_enable(of)
        made.rxtls_enable(of)
        assert made.tx is not None
        assert made.rx is not None
        if n % 1000 == 0:
            ended += [made.tx, made.rx.session]
        made.write(b"x")
        if n % 3 == 0 and n % 2:
            made.set_txtls_mode("sw")
        if n % 5:
            drained(made)
        made.close()
    assert not any(stats.gauges().values())
    assert backend.users == 0
    assert stats.counters["stats.offload_total"] == 20_000 + len(range(3, 10_000, 6))
    for session in ended:
        assert session.references == 0
        assert not any(session._key)
        assert not any(session._iv)
        with pytest.raises(Exception, match="its key is gone"):
            _ = session.key
    # The control: one that is not closed is seen.
    made = KtlsConnection(registry, stats)
    made.txtls_enable(of)
    assert stats.gauges()["stats.active"] == backend.users == 1
    assert made.tx is not None
    assert any(made.tx._key)


def test_a_record_keeps_its_session_through_a_switch_of_modes():
    of = params(0x0304, "aes-128-gcm")
    stats = TlsStats(**{"ifnet.permitted": 0})
    backend = Manual()
    made = KtlsConnection(Registry([backend, InNic()]), stats, nic_tx=True)
    made.txtls_enable(of)
    stats.set_knob("ifnet.permitted", 1)
    made.write(b"by software")
    old = made.tx
    made.set_txtls_mode("nic")
    made.write(b"by the NIC")
    assert old is not None
    assert old.references == 1
    # Nothing of the second before the first, and never both in one piece.
    assert made.queue.ready() == []
    backend.seal(backend.waiting[0])
    first = b"".join(made.queue.ready())
    assert first == seal_record(keys(of), 0, DATA, b"by software")
    made.queue.sent(len(first))
    assert old.references == 0
    assert b"".join(made.queue.ready()) == frame_record(keys(of), DATA, b"by the NIC")
    made.close()
    assert not any(stats.gauges().values())


# -- key schedules -------------------------------------------------------------------------------------------

def test_traffic_keys_of_rfc_8448():
    secret = bytes.fromhex("9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5")
    made = traffic_params(suite_named("TLS_AES_128_GCM_SHA256"), secret)
    assert (made.key.hex(), made.iv.hex()) == ("17422dda596ed5d9acd890e3c63f5051", "5b78923dee08579033e523d9")
    assert len(next_secret(suite_named("TLS_AES_256_GCM_SHA384"), bytes(48))) == 48


def test_prf_of_tls_1_2():
    """The vector for P_SHA256 that the TLS working group published (mailing list, 2009)."""
    out = prf(suite_named("ECDHE-RSA-AES128-GCM-SHA256"), bytes.fromhex("9bbe436ba940f017b17652849a71db35"),
              b"test label", bytes.fromhex("a0ba9f936cda311827a6f796ffd5198c"), 100)
    assert out.hex().startswith("e3f229ba727be17b8d122620557cd453c2aab21d07c3d495329b52d4e61edb5a")
    assert out.hex().endswith("87347b66")


def test_a_key_block_is_cut_as_the_standard_says():
    suite = suite_named("ECDHE-ECDSA-AES256-GCM-SHA384")
    client, server = key_block(suite, bytes(48), b"c" * 32, b"s" * 32, 1)
    block = prf(suite, bytes(48), b"key expansion", b"s" * 32 + b"c" * 32, 72)
    assert client.key + server.key + client.iv + server.iv == block
    assert (client.number, server.number, len(client.iv)) == (1, 1, 4)
    with pytest.raises(Unsupported, match="AES128-SHA"):
        suite_named("AES128-SHA")


def opened(of: TlsParams, stream: bytes) -> list[tuple[int, bytes]]:
    """Records of a stream by the reference."""
    out: list[tuple[int, bytes]] = []
    at = 0
    while at < len(stream):
        size = 5 + int.from_bytes(stream[at + 3:at + 5], "big")
        out.append(open_record_untrusted(keys(of), len(out), stream[at:at + size]))
        at += size
    return out


@pytest.mark.skipif(not CAN_BATCH, reason="batched needs cryptography 47 or newer")
def test_a_write_of_many_records_is_the_write():
    of = params(0x0304, "aes-256-gcm")
    made = connect(Batched(), of)
    data: Buffer = memoryview(bytes(range(256)) * 400)
    made.write(data)
    records = opened(of, drained(made))
    assert b"".join(data for _kind, data in records) == bytes(data)
    assert [len(data) for _kind, data in records] == [16_384] * 6 + [102_400 - 6 * 16_384]
