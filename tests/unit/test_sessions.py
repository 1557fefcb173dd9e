"""Key schedule, sessions, key epochs and key files: against plain hashlib, and through endpoints."""

from __future__ import annotations

import gc
import hashlib
import hmac
import json
import stat
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.crypto import keys as key_module
from smtstack.crypto.aead import (
    AES_128_GCM,
    CIPHERS,
    INTEGRITY_LIMIT,
    Cipher,
    DirectionKeys,
    cipher_named,
)
from smtstack.crypto.epochs import EPOCHS_AHEAD, MAX_LATE, NO_KEYS, EpochKeys, SessionParams, SmtSession
from smtstack.crypto.keys import (
    DEMO_SECRET,
    EarlySecrets,
    Endpoints,
    LinuxKeys,
    PairKeys,
    PlainKeys,
    TrafficSecrets,
    demo_keys,
)
from smtstack.errors import ConfigError, LocalError
from smtstack.io import key_file as files
from smtstack.transport.endpoint import Endpoint
from smtstack.wire import homa
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, Pair, pattern

ENDS = Endpoints(CLIENT, CLIENT_PORT, SERVER, SERVER_PORT)
SOME_KEYS = DirectionKeys(AES_128_GCM, bytes(range(16)), bytes(range(100, 112)))


def expand_label(secret: bytes, label: bytes, context: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with nothing but hmac, up to one hash long."""
    name = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + bytes([len(context)]) + context
    return hmac.new(secret, info + b"\1", hashlib.sha256).digest()[:length]


def smt_session(params: SessionParams) -> SmtSession:
    session = demo_keys("smt", params).session(ENDS)
    assert isinstance(session, SmtSession)
    return session


@pytest.mark.parametrize("cipher", CIPHERS.values(), ids=lambda c: c.name)
def test_whole_conversations_under_every_cipher(cipher):
    pair = Pair(keys=lambda: demo_keys("smt", SessionParams(cipher=cipher)))
    for size in (1, 1418, 1419, 30_000):
        pair.request(pattern(size, size))
    pair.run(settle=True)
    pair.check()
    assert cipher_named(cipher.name.lower()) is cipher


def test_sides_with_different_keys_understand_nothing():
    secrets = iter([DEMO_SECRET, DEMO_SECRET[::-1]])
    pair = Pair(keys=lambda: PairKeys({}, default=next(secrets)))
    pair.request(b"hello")
    pair.run()
    assert (pair.delivered, len(pair.failed)) == ([], 1)
    assert pair.records_failed() > 0


def test_keys_change_after_so_many_records():
    pair = Pair(keys=lambda: demo_keys("smt", SessionParams(key_update_records=6)))
    for size in range(1, 41):
        pair.request(pattern(size * 100, size))
        pair.run()
    pair.run(settle=True)
    pair.check()
    epochs = [f[44] for f in pair.frames if f[47] == 0x10 and f[36:38] == b"\x07\xd0"]
    assert epochs == sorted(epochs)
    assert set(epochs) == set(range(max(epochs) + 1))
    assert max(epochs) >= 10
    ids = [(f[44], f[54:62]) for f in pair.frames if f[47] == 0x10 and f[36:38] == b"\x07\xd0"]
    assert (1, (2).to_bytes(8, "big")) in ids  # ids start over: the key is another


def test_an_exhausted_key_seals_nothing_more():
    small = Cipher("AES-128-GCM", 16, 4, AESGCM)
    params = SessionParams(cipher=small, key_update_records=1 << 40)
    pair = Pair(keys=lambda: demo_keys("smt", params))
    send = pair.client.endpoint.send_request
    with pytest.raises(LocalError, match="all the records"):
        send(SERVER, SERVER_PORT, pattern(50_000), 0)  # six records at once
    for _ in range(4):
        pair.request(b"x")
    with pytest.raises(LocalError, match="all the records"):
        send(SERVER, SERVER_PORT, b"x", 0)
    assert pair.client.endpoint.snapshot()["rpcs"] == 4


def test_keys_change_at_half_the_ciphers_limit():
    session = smt_session(SessionParams(cipher=Cipher("AES-128-GCM", 16, 100, AESGCM)))
    session.current.sealed, session.current.opened = 30, 19
    assert session.begin_rpc()[0].epoch == 0
    session.current.opened = 20
    assert session.begin_rpc()[0].epoch == 1


def leave(session: SmtSession, tick: int = 0, proven: bool = True) -> EpochKeys:
    """One request, in a new epoch; ``proven``: it is answered."""
    session.update_keys()
    keys, _id = session.begin_rpc(tick)
    keys.active -= 1
    if proven:
        session.proved(keys, tick)
    return keys


def test_used_up_ids_move_the_epoch_and_none_serves_twice():
    session = smt_session(SessionParams(index_bits=48))
    assert session.id_limit == 1 << 16
    used: set[tuple[int, int]] = set()
    for epoch in range(EPOCHS_AHEAD + 1):
        for number in range(2, 1 << 16, 2):
            keys, rpc_id = session.begin_rpc()
            assert (keys.epoch, rpc_id) == (epoch, number)
            assert (keys.epoch, rpc_id) not in used
            used.add((keys.epoch, rpc_id))
            keys.active -= 1
    # The peer answered nothing: it might not follow further.
    with pytest.raises(LocalError, match=r"used up.*the peer answered nothing under the last 4 keys"):
        session.begin_rpc()
    session.proved(session.current)
    assert session.begin_rpc()[0].epoch == EPOCHS_AHEAD + 1


def test_keys_may_not_change_faster_than_they_are_forgotten():
    session = smt_session(SessionParams(late_ticks=100))
    for epoch in range(1, MAX_LATE + 1):
        assert leave(session, epoch).epoch == epoch
    assert leave(session, 50).epoch == MAX_LATE
    session.next_id = session.id_limit
    with pytest.raises(LocalError, match="16 lasted less than 100 ticks"):
        session.begin_rpc()
    session.next_id = 1000
    assert session.forget(100) == 101  # the first was left at tick 1
    assert leave(session, 100).epoch == MAX_LATE
    assert session.forget(101) == 102
    assert leave(session, 101).epoch == MAX_LATE + 1


def test_an_rpc_that_lasts_keeps_its_keys_and_holds_up_nothing():
    session = smt_session(SessionParams(late_ticks=1))
    slow, slow_id = session.begin_rpc()
    for epoch in range(1, 200):
        assert leave(session, epoch).epoch == epoch
        session.forget(epoch + 1)
    assert session.own_keys(0) is None
    assert not session.issued(0, slow_id)
    assert slow.rx.decrypt(2, slow.rx.encrypt(2, b"", b""), b"") == b""
    # The wire has 8 bits for the epoch: only after so many it must end, or the ids will.
    assert [leave(session, 300).epoch, leave(session, 301).epoch] == [200, 200]
    session.next_id = session.id_limit
    with pytest.raises(LocalError, match="an RPC still runs under the key of epoch 0"):
        session.begin_rpc()
    assert session.request_keys(201) is None
    slow.active -= 1
    assert session.request_keys(201) is not None
    assert session.begin_rpc()[0].epoch == 201


def test_a_long_rpc_survives_many_key_updates():
    pair = Pair(keys=lambda: demo_keys("smt", SessionParams(key_update_records=1, late_ticks=20)))
    pair.answering = False
    pair.request(b"slow")
    pair.run(limit_ns=1_000_000)
    pair.answering = True
    slow, = pair.unanswered
    keys = slow.rpc.keys
    for size in range(1, 301):
        pair.request(pattern(size, size))
        pair.run(limit_ns=100_000_000)
        pair.now += 2_000_000
        for side in (pair.client, pair.server):
            side.endpoint.handle_timeout(pair.now)
    session = pair.session(pair.client)
    assert 100 < session.current.epoch <= 200
    pair.server.endpoint.send_reply(slow.rpc, slow.data[::-1], pair.now)
    pair.delivered.append(slow.data)
    assert keys.tx.retired
    assert keys.tx is not NO_KEYS
    pair.run(settle=True)
    pair.check()
    # Acknowledged, and with that the last use of the keys.
    assert pair.server.endpoint.snapshot()["rpcs"] == 0
    assert keys.tx is keys.rx is NO_KEYS


def test_window_of_epochs_a_peer_may_use():
    session = smt_session(SessionParams(late_ticks=10))
    for newest in range(300):
        for ahead in range(-1 if newest else 0, EPOCHS_AHEAD + 1):
            keys = session.request_keys(newest + ahead & 0xFF)
            assert keys is not None
            assert keys.epoch == newest + ahead
            assert session.request_keys(newest + ahead & 0xFF) is keys  # and so its replay guard
        for far in (-2, EPOCHS_AHEAD + 1, 100, 200):
            assert session.request_keys(newest + far & 0xFF) is None
        nxt = session.request_keys(newest + 1 & 0xFF)
        assert nxt is not None
        session.forget(20 * newest)
        session.accept(nxt, 20 * newest)
        assert session.current is nxt
    # Nobody left the last before it was proved: it stays as long as that may take.
    assert session.request_keys(299 & 0xFF) is not None
    session.forget(300 * 20)
    assert session.request_keys(299 & 0xFF) is None
    assert session.request_keys(300 & 0xFF) is session.current


def test_a_worker_that_saw_no_request_of_some_epochs_follows():
    worker = smt_session(SessionParams())
    newest = worker.request_keys(EPOCHS_AHEAD)
    assert newest is not None
    worker.accept(newest, 5)
    assert worker.current is newest
    for epoch in range(EPOCHS_AHEAD):
        late = worker.request_keys(epoch)
        assert late is not None
        assert late.epoch == epoch
        assert late.rx.key == TrafficSecrets(DEMO_SECRET, ENDS, AES_128_GCM).keys(epoch)[1].key
    worker.forget(5 + worker.params.late_ticks)
    assert all(worker.request_keys(epoch) is None for epoch in range(EPOCHS_AHEAD))
    with pytest.raises(LocalError, match="forgotten"):
        worker.schedule(EPOCHS_AHEAD - 1)


def test_both_ends_use_one_row_of_epochs():
    pair = Pair(keys=lambda: demo_keys("smt", SessionParams(late_ticks=20)))
    for number in range(4):
        pair.request(b"round %d" % number)
        pair.run()
        assert pair.session(pair.server).current.epoch == pair.session(pair.client).current.epoch == number
        if number < 3:
            pair.session(pair.client).update_keys()
    rpc = pair.server.endpoint.send_request(CLIENT, CLIENT_PORT, b"back", pair.now)
    assert (rpc.keys.epoch, rpc.id) == (3, 2)


def test_peers_that_change_keys_too_fast_cost_bounded_memory():
    session = smt_session(SessionParams())
    for epoch in range(1, 100):
        keys = session.request_keys(epoch)
        assert keys is not None
        session.accept(keys, 0)
    assert session.request_keys(99 - 2 * MAX_LATE) is not None
    assert session.request_keys(99 - 2 * MAX_LATE - 1) is None


def test_requests_of_a_forgotten_epoch_are_refused():
    pair = Pair(keys=lambda: demo_keys("smt", SessionParams(key_update_records=1)))
    for size in (1, 2):
        pair.request(pattern(size))
        pair.run()
    counters = pair.server.endpoint.counters
    pair.deliver(pair.frames[0], pair.server)
    assert (counters.replays, counters.key_unknown) == (1, 0)
    old = pair.session(pair.server).request_keys(0)
    assert old is not None
    keys = old.tx, old.rx
    assert not any(k.retired for k in keys)
    pair.run(settle=True)
    assert pair.now >= 400 * 1_000_000
    assert all(k.retired for k in keys)
    assert old.tx is old.rx is NO_KEYS
    pair.deliver(pair.frames[0], pair.server)
    assert (counters.replays, counters.key_unknown) == (1, 1)
    pair.check()


def test_late_requests_of_the_last_epoch_are_taken():
    """Lost when the keys change, and sent again under the key they were sealed with."""
    lost = 0

    def wire(frame: bytes) -> list[bytes]:
        nonlocal lost
        if frame[47] == homa.DATA and not frame[61] & 1 and frame[44] == 0 and lost < 3:
            lost += 1
            return []
        return [frame]

    pair = Pair(keys=lambda: demo_keys("smt"), wire=wire)
    for number in range(3):
        pair.request(b"lost %d" % number)
    pair.session(pair.client).update_keys()
    pair.request(b"under the next key")
    pair.run()
    pair.check()
    assert lost == 3
    assert pair.delivered[0] == b"under the next key"


def test_no_two_directions_epochs_ports_hosts_or_ciphers_share_a_key():
    seen: dict[bytes, object] = {}
    for cipher in CIPHERS.values():
        for ends in (ENDS, Endpoints(CLIENT, 0x8001, SERVER, 2000), Endpoints(CLIENT, 0x8000, SERVER, 2001),
                     Endpoints(SERVER, 0x8000, CLIENT, 2000), Endpoints(CLIENT, 0x8000, SERVER + 1, 2000)):
            peer = Endpoints(ends.peer_ip, ends.peer_port, ends.local_ip, ends.local_port)
            mine, theirs = TrafficSecrets(DEMO_SECRET, ends, cipher), TrafficSecrets(DEMO_SECRET, peer, cipher)
            for epoch in (2, 0, 1):
                tx, rx = mine.keys(epoch)
                assert [(k.key, k.iv) for k in theirs.keys(epoch)] == [(rx.key, rx.iv), (tx.key, tx.iv)]
                for what, keys in (("tx", tx), ("rx", rx)):
                    for secret in (keys.key[:16], keys.iv):
                        assert seen.setdefault(secret, (cipher, ends, epoch, what)) == (cipher, ends, epoch, what)
    assert len(seen) == 3 * 5 * 3 * 2 * 2


def test_key_schedule_by_hand():
    prk = hmac.new(b"smtnet session 1", DEMO_SECRET, hashlib.sha256).digest()
    here, there = bytes.fromhex("0a0000018000"), bytes.fromhex("0a00000207d0")
    secret = expand_label(prk, b"smt traffic", here + there + b"AES-128-GCM", 32)
    for epoch in range(3):
        tx, _rx = TrafficSecrets(DEMO_SECRET, ENDS, AES_128_GCM).keys(epoch)
        assert (tx.key, tx.iv) == (expand_label(secret, b"key", b"", 16), expand_label(secret, b"iv", b"", 12))
        secret = expand_label(secret, b"traffic upd", b"", 32)


def held_by(thing: object) -> list[bytes]:
    """All bytes an object of our own holds, directly or in others of these: compiled ones have no slots to ask."""
    out: list[bytes] = []
    for value in gc.get_referents(thing):
        if isinstance(value, bytes):
            out.append(value)
        elif type(value).__module__.startswith("smtstack."):
            out += held_by(value)
    return out


def test_the_schedule_goes_forward_only():
    free, bound = (TrafficSecrets(DEMO_SECRET, ENDS, AES_128_GCM) for _ in range(2))
    first = set(held_by(bound))
    assert len(first) == 2
    for epoch in range(1, 6):
        keys = bound.keys(epoch, epoch - 1)
        assert [(k.key, k.iv) for k in keys] == [(k.key, k.iv) for k in free.keys(epoch)]
        bound.keys(epoch, epoch)
        secrets = set(held_by(bound))
        assert len(secrets) == 2
        assert not secrets & first
        first |= secrets
        with pytest.raises(LocalError, match=f"epoch {epoch - 1} are forgotten"):
            bound.keys(epoch - 1)
    assert free.keys(0)[0].key == TrafficSecrets(DEMO_SECRET, ENDS, AES_128_GCM).keys(0)[0].key


def test_early_and_forward_secret_keys():
    """Only the client's first epoch comes from the early secret."""
    early, later = bytes(32), bytes(range(32))
    there = Endpoints(SERVER, SERVER_PORT, CLIENT, CLIENT_PORT)
    client = EarlySecrets(early, later, ENDS, AES_128_GCM, is_client=True)
    server = EarlySecrets(early, later, there, AES_128_GCM, is_client=False)
    old, new = (TrafficSecrets(s, ENDS, AES_128_GCM) for s in (early, later))
    for epoch in range(3):
        tx, rx = client.keys(epoch)
        assert [k.key for k in server.keys(epoch)] == [rx.key, tx.key]
        assert tx.key == (new if epoch else old).keys(epoch)[0].key
        assert rx.key == new.keys(epoch)[1].key
    begun = EarlySecrets(early, b"", ENDS, AES_128_GCM, is_client=True)
    assert begun.keys(0)[0].key == old.keys(0)[0].key
    assert begun.keys(0)[1] is NO_KEYS
    with pytest.raises(LocalError, match="first flight only"):
        begun.keys(1)
    # What nobody asks for again is gone.
    for secrets in (client, server):
        secrets.keys(1, 1)
        assert not {old.keys(0)[0].key, *held_by(old)} & set(held_by(secrets))
        with pytest.raises(LocalError, match="forgotten"):
            secrets.keys(0)


# -- key files ---------------------------------------------------------------------------------------------


def key_file(path: Path, change: dict[str, object] | None = None, mode: int = 0o600) -> str:
    content = files.generate([("10.0.0.1", "10.0.0.2")])
    content.update(change or {})
    path.write_text(json.dumps(content))
    path.chmod(mode)
    return str(path)


def test_a_generated_key_file_serves_both_profiles(tmp_path):
    path = tmp_path / "keys.json"
    files.write_key_file(path, files.generate([("10.0.0.1", "10.0.0.2")]))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        files.write_key_file(path, {})
    for profile in ("smt", "linux"):
        pair = Pair(profile, keys=partial(files.load, str(path), profile))
        pair.request(pattern(20_000))
        pair.run()
        pair.check()
        demo = Pair(profile)
        demo.request(pattern(20_000))
        demo.run()
        assert len(demo.frames) == len(pair.frames)
        assert demo.frames[0] != pair.frames[0]  # not the keys everybody knows
    assert isinstance(files.load("demo", "linux"), LinuxKeys)
    assert isinstance(files.load("/nonexistent", "homa"), PlainKeys)
    with pytest.raises(ConfigError, match=r"no key for 10\.0\.0\.3: there is no fall-back to plaintext"):
        Pair(keys=lambda: files.load(str(path), "smt")).client.endpoint.send_request(SERVER + 1, 1, b"x", 0)


def test_packets_of_hosts_without_a_key_are_counted_and_dropped(tmp_path):
    path = key_file(tmp_path / "keys", {"pairs": [{"hosts": ["10.0.0.7", "10.0.0.8"], "secret": "00" * 32}]})
    stores = iter([demo_keys("smt"), files.load(path, "smt")])
    pair = Pair(keys=lambda: next(stores))
    pair.request(b"x")
    pair.run()
    assert (pair.delivered, len(pair.failed)) == ([], 1)
    assert pair.server.endpoint.counters.no_session > 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_key_files_others_could_touch_are_refused(tmp_path, mode):
    with pytest.raises(ConfigError, match="chmod 600"):
        files.load(key_file(tmp_path / "keys", mode=mode), "smt")


ROLE = {"key": "00" * 16, "salt": "00" * 4}


@pytest.mark.parametrize(("profile", "change", "why"), [
    ("smt", {"smtnet_keys": 2}, "smtnet_keys"), ("smt", {"pairs": []}, '"pairs"'),
    ("smt", {"pairs": [{"hosts": ["10.0.0.1", "10.0.0.2"], "secret": "00" * 31}]}, "31 bytes"),
    ("smt", {"pairs": [{"hosts": ["10.0.0.1", "10.0.0.2"], "secret": "zz"}]}, "ValueError"),
    ("smt", {"pairs": [{"hosts": ["10.0.0.1"], "secret": "00" * 32}]}, "ValueError"),
    ("smt", {"pairs": [{"hosts": ["10.0.0.1", "h2"], "secret": "00" * 32}]}, "no IPv4 address"),
    ("smt", {"pairs": [{"secret": "00" * 32}]}, "hosts"), ("smt", {"pairs": 7}, "TypeError"),
    ("smt", {"cipher": "ROT13"}, "AES-128-GCM"), ("smt", {"padding": "much"}, "power-of-two"),
    # Not when the first session is made, at a server inside handle_packet.
    ("smt", {"index_bits": 99}, "index_bits"), ("smt", {"index_bits": None}, "TypeError"),
    ("linux", {"linux": {"client": ROLE}}, "server"), ("linux", {"linux": []}, "TypeError"),
    ("linux", {"linux": {"client": ROLE, "server": {**ROLE, "key": "00" * 32}}}, "key of 16"),
    ("linux", {"linux": {"client": ROLE, "server": {**ROLE, "salt": "00" * 12}}}, "salt has 4"),
])
def test_wrong_key_files_say_what_is_wrong(tmp_path, profile, change, why):
    with pytest.raises(ConfigError, match=why):
        files.load(key_file(tmp_path / "keys", change), profile)


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '"x"', "{}", "\0\xff"])
def test_what_is_no_key_file(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text, encoding="latin-1")
    path.chmod(0o600)
    for source in (str(path), str(tmp_path / "missing"), str(tmp_path)):
        with pytest.raises(ConfigError):
            files.load(source, "smt")


def test_nothing_prints_a_key():
    store = PairKeys({frozenset((CLIENT, SERVER)): DEMO_SECRET})
    current = smt_session(SessionParams()).current
    for thing in (SOME_KEYS, store, store.session(ENDS), demo_keys("linux"), current):
        text = f"{thing!r} {thing}"
        for secret in (SOME_KEYS.key, DEMO_SECRET, key_module.DEMO_CLIENT_KEY):
            assert repr(secret)[2:-1] not in text
            assert secret.hex() not in text.lower()
    with pytest.raises(ConfigError) as error:
        DirectionKeys(AES_128_GCM, b"short and secret", b"iv")
    assert "secret" not in str(error.value)


def test_a_key_that_saw_too_many_forgeries_is_used_no_longer():
    pair = Pair()
    pair.request(b"one")
    pair.run()
    for end in (pair.client, pair.server):
        peer = next(iter(end.endpoint._table.peers.values()))
        peer.session.current.failed = INTEGRITY_LIMIT + 1
        assert peer.session.request_keys(0) is None
        assert peer.session.request_keys(1) is not None
    pair.request(b"two")
    pair.run()
    pair.check()
    assert {f[44] for f in pair.frames if f[47] == homa.DATA} == {0, 1}


def test_a_client_that_starts_over_repeats_no_number_in_later_epochs():
    # Two processes with one key file, each of which gets as far as epoch 1.
    used = set()
    for first_id in (1000, 5000):
        params = SessionParams(key_update_records=4, first_id=first_id)
        session = PairKeys({}, params, default=bytes(32)).session(ENDS)
        assert isinstance(session, SmtSession)
        for _ in range(6):
            keys, rpc_id = session.begin_rpc()
            session.reserve(keys, rpc_id, 1)
            assert (keys.epoch, rpc_id) not in used
            used.add((keys.epoch, rpc_id))
            keys.active -= 1
    assert {epoch for epoch, _id in used} == {0, 1}


@pytest.mark.parametrize(("profile", "other"),
                         [("smt", "linux"), ("linux", "smt"), ("homa", "smt"), ("smt", "homa")])
def test_keys_of_another_profile_are_refused_at_once(profile, other):
    with pytest.raises(ConfigError, match=f"profile {profile} needs"):
        Endpoint(CLIENT, CLIENT_PORT, profile, demo_keys(other))


def test_late_requests_are_taken_for_as_long_as_a_silent_host_is_waited_for():
    for params, ticks in ((SessionParams(), 6015), (SessionParams(late_ticks=7), 7)):
        session = smt_session(params)
        session.outlive(6015)
        session.begin_rpc()
        session.update_keys()
        keys, _id = session.begin_rpc(100)
        assert keys.epoch == 1
        session.proved(keys, 100)
        assert session.forget_at == 100 + ticks
