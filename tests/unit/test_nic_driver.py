"""Driver and device under real endpoints: per-queue contexts never corrupt, nothing leaks, nothing is lost."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.aead import AES_256_GCM, CHACHA20_POLY1305
from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.nic.driver import ContextPolicy, NicDriver
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Request
from smtstack.transport.params import TransportParams
from smtstack.wire import homa
from smtstack.wire.ethernet import MAX_PATHS, path_mac
from tests.pair import CLIENT, MACS, SERVER, SERVER_PORT, Pair, pattern

#: No pacing: every segment is in the device's rings at once, where an arbiter can do its worst.
ALL_AT_ONCE = TransportParams(max_nic_queue_ns=10**12)
OFFLOAD = NicConfig(queues=2, tls_hw_tx_offload=True)
CANARY = b"\xca\x7a\x11yellow canary"
PROFILES = ["smt", "linux"]


def leaks(frames: list[bytes]) -> int:
    """Frames that carry the canary in clear."""
    return sum(CANARY in f for f in frames)


def singing(size: int) -> bytes:
    """A message with a canary in every packet it could be cut into."""
    return (CANARY * (size // len(CANARY) + 1))[:size]


# -- who shares a context ----------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
@given(seed=st.integers(0, 2**32), queues=st.integers(1, 4), budget=st.integers(1, 5),
       sizes=st.lists(st.one_of(st.integers(1, 2000), st.integers(1, 30_000)), min_size=2, max_size=8))
def test_contexts_per_queue_never_corrupt(profile, seed, queues, budget, sizes):
    config = NicConfig(queues=queues, tls_hw_tx_offload=True)
    pair = Pair(profile, config=config, params=ALL_AT_ONCE, arbiter=Random(seed).choice, budget=budget)
    for number, size in enumerate(sizes):
        pair.request(pattern(size, number))
    pair.run()
    pair.check()
    assert pair.records_failed() == 0
    counters = pair.client.nic.counters
    assert counters.tx_tls_encrypted_packets >= len(sizes)
    assert counters.tx_tls_fallback == 0


def two_messages(profile: str, policy: ContextPolicy) -> tuple[Pair, int]:
    """Two requests on two queues, served in turn: RESYNC, RESYNC, SEND, SEND; and records they failed."""
    pair = Pair(profile, config=OFFLOAD, params=ALL_AT_ONCE, policy=policy)
    for number in range(2):  # both queues have used their context: each message now begins with a RESYNC
        pair.request(pattern(500, number))
        pair.run()
    pair.check()
    before, resyncs = pair.records_failed(), pair.client.nic.counters.tx_tls_ooo
    for number in range(2, 4):
        pair.request(pattern(5000, number))
    pair.run()
    assert pair.client.nic.counters.tx_tls_ooo >= resyncs + 2
    return pair, pair.records_failed() - before


@pytest.mark.parametrize("profile", PROFILES)
def test_two_queues_of_one_session(profile):
    pair, failed = two_messages(profile, ContextPolicy.PER_QUEUE)
    pair.check()
    assert failed == 0

    # The same with a shared context: the receiver notices, software's retransmission repairs.
    pair, failed = two_messages(profile, ContextPolicy.SHARED)
    assert failed >= 2
    assert pair.server.endpoint.counters.resends_sent > 0
    pair.check()


@given(seed=st.integers(0, 2**32), sizes=st.lists(st.integers(1, 20_000), min_size=2, max_size=6))
def test_a_shared_context_corrupts_but_delivers_nothing_wrong(seed, sizes):
    pair = Pair(config=NicConfig(queues=3, tls_hw_tx_offload=True), params=ALL_AT_ONCE,
                policy=ContextPolicy.SHARED, arbiter=Random(seed).choice)
    for number, size in enumerate(sizes):
        pair.request(pattern(size, number))
    pair.run()
    assert all(data in pair.sent.values() for data in pair.delivered)
    assert len(pair.delivered) == len(set(pair.delivered))
    assert all(data == pair.sent[rpc][::-1] for rpc, data in pair.responses.items())
    assert len(pair.responses) + len(pair.failed) == len(sizes)


# -- the same bytes, whoever cuts and seals ----------------------------------------------------------------


def frames_with(profile: str, config: NicConfig, keys: Callable | None = None) -> list[bytes]:
    pair = Pair(profile, config=config, keys=keys)
    for number, size in enumerate((1, 1400, 1420, 2827, 8490, 9000, 50_000)):
        pair.request(pattern(size, number))
        pair.run()
    pair.check()
    offloaded = pair.client.nic.counters.tx_tls_encrypted_packets
    assert (offloaded > 0) == (config.tls_hw_tx_offload and profile != "homa")
    assert (pair.client.nic.counters.tx_tso_packets > 0) == config.tso
    return pair.frames


@pytest.mark.parametrize("profile", ["smt", "linux", "homa"])
def test_offloads_change_no_byte_on_the_wire(profile):
    plain = frames_with(profile, NicConfig(tso=False))
    for tso in (True, False):
        for tls in (True, False):
            for queues in (1, 3):
                assert frames_with(profile, NicConfig(queues=queues, tso=tso, tls_hw_tx_offload=tls)) == plain


def test_offload_of_aes_256_and_not_of_chacha():
    for cipher, offloads in ((AES_256_GCM, True), (CHACHA20_POLY1305, False)):
        params = SessionParams(cipher=cipher)
        pair = Pair(config=OFFLOAD, keys=lambda params=params: demo_keys("smt", params))  # type: ignore[misc]
        pair.request(pattern(20_000))
        pair.run()
        pair.check()
        counters = pair.client.nic.counters
        assert (counters.tx_tls_encrypted_packets > 0) is offloads
        assert (counters.tx_tls_fallback == 0) is offloads
        assert counters.tx_tls_no_ctx == 0


def test_padded_messages_offload_to_the_same_bytes():
    params = SessionParams(padding=lambda n: n + 3000)
    keys = lambda: demo_keys("smt", params)  # noqa: E731
    assert frames_with("smt", NicConfig(tls_hw_tx_offload=True), keys) == frames_with("smt", NicConfig(), keys)


# -- tso-seq -----------------------------------------------------------------------------------------------


def renumber(ip_id: int | None) -> Callable[[bytes], list[bytes]]:
    """A middlebox that gives IP IDs of its own: always the same, or (None) random ones."""
    rng = Random(1)

    def wire(frame: bytes) -> list[bytes]:
        new = (rng.randrange(1, 65536) if ip_id is None else ip_id).to_bytes(2, "big")
        header = frame[14:18] + new + frame[20:24] + b"\0\0" + frame[26:34]
        checksum = -int.from_bytes(header, "big") % 0xFFFF
        return [frame[:14] + header[:10] + checksum.to_bytes(2, "big") + header[12:] + frame[34:]]

    return wire


def sent_over(wire: Callable[[bytes], list[bytes]], tso_seq: bool, size: int = 30_000) -> Pair:
    pair = Pair(config=NicConfig(tso_seq=tso_seq), wire=wire)
    pair.request(pattern(size))
    pair.run()
    return pair


def test_tso_seq_places_packets_without_the_ip_id():
    pair = sent_over(renumber(0), tso_seq=True)
    pair.check()
    assert pair.server.endpoint.counters.resends_sent == pair.records_failed() == 0
    # The control: without it the packets of a segment fall onto each other.
    assert sent_over(renumber(0), tso_seq=False).server.endpoint.counters.data_redundant > 0


@pytest.mark.parametrize("size", [30_000, 10_000, 100])
def test_tso_seq_places_packets_whatever_the_ip_id(size):
    pair = sent_over(renumber(None), True, size)
    pair.check()
    assert pair.server.endpoint.counters.resends_sent == pair.records_failed() == 0


# -- bounded context memory --------------------------------------------------------------------------------


def many_sessions(config: NicConfig, process_each: bool) -> tuple[SmartNic, list[bytes]]:
    """Eight client ports send two requests each through one NIC; the frames, and the server was content."""
    nic = SmartNic(config)
    driver = NicDriver(nic, MACS[CLIENT], CLIENT, homa.PROTO_HOMA, MACS.get)
    server = Endpoint(SERVER, SERVER_PORT, "smt", demo_keys("smt"))
    clients = [Endpoint(CLIENT, 0x8000 + n, "smt", demo_keys("smt"), ALL_AT_ONCE) for n in range(8)]
    frames, sent = [], []
    for turn in range(2):
        for n, client in enumerate(clients):
            sent.append(singing(6000 + 10 * n + turn))
            client.send_request(SERVER, SERVER_PORT, sent[-1], 0)
            while (segment := client.poll_transmit(0)) is not None:
                assert driver.transmit(segment)
                if process_each:
                    frames += nic.process()
    frames += nic.process()
    delivered = []
    for frame in frames:
        server.handle_packet(frame, 0)
    while (event := server.next_event()) is not None:
        assert isinstance(event, Request)
        delivered.append(event.data)
    assert sorted(delivered) == sorted(sent)
    assert server.counters.records_failed == 0
    assert leaks(frames) == 0
    return nic, frames


def test_idle_contexts_are_evicted():
    nic, frames = many_sessions(NicConfig(tls_hw_tx_offload=True, max_contexts=1), process_each=True)
    counters = nic.counters
    assert (counters.tx_tls_ctx, counters.tx_tls_del) == (16, 15)
    assert (counters.tx_tls_fallback, counters.tx_tls_no_ctx) == (0, 0)
    assert counters.tx_tls_encrypted_packets == 16
    nic, enough = many_sessions(NicConfig(tls_hw_tx_offload=True, max_contexts=8), process_each=True)
    assert (nic.counters.tx_tls_ctx, nic.counters.tx_tls_del) == (8, 0)
    assert nic.counters.tx_tls_ooo == 8  # the second message of each begins elsewhere in the number space
    assert frames == enough == many_sessions(NicConfig(), process_each=True)[1]


def test_contexts_in_use_are_not_evicted():
    nic, frames = many_sessions(NicConfig(tls_hw_tx_offload=True, max_contexts=1), process_each=False)
    counters = nic.counters
    assert (counters.tx_tls_ctx, counters.tx_tls_del) == (1, 0)
    assert counters.tx_tls_fallback == counters.tx_tls_no_ctx == 14
    assert counters.tx_tls_encrypted_packets == 2
    assert frames == many_sessions(NicConfig(), process_each=False)[1]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_context_that_vanishes_costs_retransmissions_not_secrets(profile):
    pair = Pair(profile, config=OFFLOAD, params=ALL_AT_ONCE)
    for size in (20_000, 900):
        pair.request(singing(size))
    pair.client.post(0)
    for context in range(1, 10):
        pair.client.nic.destroy_context(context)
    assert pair.client.nic.process() == []
    counters = pair.client.nic.counters
    assert counters.tx_tls_drop_bypass_req == counters.tx_dropped > 2
    pair.run()
    pair.check()
    assert leaks(pair.frames) == 0


@pytest.mark.parametrize("size", [20, 900, 20_000])
def test_the_canary_detector_hears_a_canary(size):
    pair = Pair("homa", config=OFFLOAD)
    pair.request(singing(size))
    pair.run()
    pair.check()
    data = [f for f in pair.frames if f[47] == homa.DATA]
    assert leaks(pair.frames) >= len(data) // 2  # requests; responses are reversed
    for profile in PROFILES:
        sealed = Pair(profile, config=OFFLOAD)
        sealed.request(singing(size))
        sealed.run()
        assert leaks(sealed.frames) == 0


# -- full rings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smt", "linux", "homa"])
@pytest.mark.parametrize(("tso", "tls", "ring"), [(True, False, 1), (True, True, 1), (True, True, 2),
                                                (False, False, 1), (False, False, 7), (False, True, 1)])
def test_a_full_ring_delays_and_loses_nothing(profile, tso, tls, ring):
    config = NicConfig(ring_size=ring, tso=tso, tls_hw_tx_offload=tls)
    pair = Pair(profile, config=config, params=ALL_AT_ONCE, budget=1)
    for number in range(6):
        pair.request(pattern(20_000, number))
    pair.run()
    pair.check()
    assert pair.client.nic.counters.tx_queue_stopped > 0
    assert pair.records_failed() == 0
    assert pair.server.endpoint.counters.resends_sent == 0


def test_unknown_neighbours_cost_the_packet():
    pair = Pair()
    known = dict(MACS)
    known.pop(SERVER)
    driver = NicDriver(pair.client.nic, MACS[CLIENT], CLIENT, 146, known.get)
    pair.client.driver = driver
    pair.request(b"hello")
    pair.client.post(0)
    assert (driver.unresolved, pair.client.nic.process()) == (1, [])
    known[SERVER] = MACS[SERVER]
    pair.run()
    pair.check()
    known[SERVER] = b"\2moved"
    pair.request(b"again")
    pair.run()
    assert pair.frames[-1][:6] != b"\2moved"  # remembered ...
    driver.forget_routes()
    pair.frames.clear()
    pair.request(b"and again")
    pair.run()
    assert pair.frames[0][:6] == b"\2moved"  # ... until told otherwise


# -- paths -------------------------------------------------------------------------------------------------


def by_message(frames: list[bytes]) -> dict[tuple[int, int], set[bytes]]:
    """Destination MACs by destination and sender_id."""
    out: dict[tuple[int, int], set[bytes]] = {}
    for frame in frames:
        to, sender_id = int.from_bytes(frame[30:34], "big"), int.from_bytes(frame[54:62], "big")
        out.setdefault((to, sender_id), set()).add(frame[:6])
    return out


def spread(profile: str, paths: int, config: NicConfig, loss: float = 0.0) -> Pair:
    """Twelve messages of several segments, some frames of which are lost."""
    rng = Random(paths)
    pair = Pair(profile, config=config, wire=lambda f: [f] if rng.random() >= loss else [])
    for side in (pair.client, pair.server):
        side.driver.set_paths(paths)
    for number in range(12):
        pair.request(pattern(30_000, number))
    pair.run()
    pair.check()
    return pair


@pytest.mark.parametrize("config", [NicConfig(), NicConfig(queues=3, tls_hw_tx_offload=True),
                                    NicConfig(tso=False)])
@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_messages_take_path_after_path_and_none_leaves_its_own(profile, config):
    pair = spread(profile, 4, config, loss=0.02)
    assert sum(s.endpoint.counters.packets_resent for s in (pair.client, pair.server)) > 0
    taken = by_message(pair.frames)
    assert len(taken) == 24
    for (to, sender_id), macs in taken.items():
        # Data, retransmissions and control packets of either side.
        assert macs == {path_mac(MACS[to], sender_id // 2 % 4)}
    client = [next(iter(macs)) for (to, _id), macs in sorted(taken.items()) if to == SERVER]
    assert len(set(client[:4])) == 4
    assert client[4:] == client[:-4]


def test_a_single_path_is_the_neighbours_own_address():
    assert {frame[:6] for frame in spread("smt", 1, NicConfig()).frames} == {MACS[CLIENT], MACS[SERVER]}


def test_path_addresses_differ_and_belong_to_one_host():
    macs = {path_mac(mac, path): (mac, path) for mac in (*MACS.values(), b"\2\xff" + bytes(4))
            for path in range(MAX_PATHS)}
    assert len(macs) == 3 * MAX_PATHS
    for mac, (own, _path) in macs.items():
        assert mac not in MACS.values()
        assert (len(mac), mac[0], mac[2:]) == (6, own[0], own[2:])


@pytest.mark.parametrize("paths", [0, -1, 256])
def test_paths_that_cannot_be(paths):
    with pytest.raises(ConfigError, match="1 to 255"):
        Pair().client.driver.set_paths(paths)


# -- switching while traffic runs --------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
@given(seed=st.integers(0, 2**32), ring=st.integers(1, 8), budget=st.integers(0, 3), queues=st.integers(1, 3),
       sizes=st.lists(st.one_of(st.integers(1, 2000), st.integers(1, 40_000)), min_size=2, max_size=6))
def test_features_and_limits_may_change_at_any_time(profile, seed, ring, budget, queues, sizes):
    """Also between two tries to post one segment, and while contexts stand at numbers of long ago."""
    rng = Random(seed)
    config = NicConfig(queues=queues, ring_size=ring, tls_hw_tx_offload=True, max_contexts=4)
    pair = Pair(profile, config=config, params=ALL_AT_ONCE, budget=budget)
    exchange = pair.exchange

    def exchange_after_a_change(process: bool = True) -> bool:
        for side in (pair.client, pair.server):
            side.nic.set_feature(rng.choice(("tso", "tls-hw-tx-offload", "tso-seq")), rng.random() < 0.5)
            side.nic.context_limit = rng.randrange(5)
            side.driver.trim_contexts()
            side.driver.set_paths(rng.randint(1, 3))
        return exchange(process)

    pair.exchange = exchange_after_a_change  # type: ignore[method-assign]
    for number, size in enumerate(sizes):
        pair.request(CANARY + pattern(size, number))
    pair.run()
    pair.check()
    assert pair.records_failed() == 0
    assert leaks(pair.frames) == 0


def test_after_offload_was_off_the_next_segment_begins_with_a_resync():
    pair = Pair(config=NicConfig(tls_hw_tx_offload=True))
    nic = pair.client.nic
    for number, on in enumerate((True, False, True)):
        nic.set_feature("tls-hw-tx-offload", on)
        encrypted, resyncs = nic.counters.tx_tls_encrypted_packets, nic.counters.tx_tls_ooo
        pair.request(pattern(20, number))
        pair.run()
        assert (nic.counters.tx_tls_encrypted_packets > encrypted) is on
    assert nic.counters.tx_tls_ooo > resyncs
    assert (nic.counters.tx_tls_ctx, nic.counters.tx_tls_del) == (1, 0)
    pair.check()
    assert pair.records_failed() == 0


def test_a_lower_limit_destroys_the_contexts_longest_unused():
    pair = Pair(config=NicConfig(tls_hw_tx_offload=True, queues=3))
    for number in range(6):
        pair.request(pattern(100, number))
        pair.run()
    nic, driver = pair.client.nic, pair.client.driver
    assert nic.contexts() == 3
    latest = list(driver._contexts)[-1]
    nic.context_limit = 1
    driver.trim_contexts()
    assert nic.contexts() == 1
    assert list(driver._contexts) == [latest]
    pair.request(pattern(100, 7))
    pair.run()
    pair.check()
    nic.context_limit = 0
    driver.trim_contexts()
    assert nic.contexts() == 0
    fallback = nic.counters.tx_tls_no_ctx
    pair.request(pattern(100, 8))
    pair.run()
    pair.check()
    assert nic.counters.tx_tls_no_ctx > fallback


# -- keys that are over ------------------------------------------------------------------------------------


def test_the_device_forgets_keys_of_epochs_that_are_over():
    pair = Pair(keys=lambda: demo_keys("smt", SessionParams(key_update_records=4)), config=OFFLOAD)
    for number in range(12):
        pair.request(pattern(3000, number))
        pair.run()
    pair.check()
    nic = pair.client.nic
    assert nic.contexts() > 4
    held = len(pair.client.driver._contexts)
    pair.run(settle=True)  # time passes: the epochs are forgotten
    pair.client.driver.forget_routes()
    assert nic.contexts() == len(pair.client.driver._contexts) <= OFFLOAD.queues < held
    # Those in use are still there.
    created = nic.counters.tx_tls_ctx
    for number in range(OFFLOAD.queues):
        pair.request(pattern(100, number))
    pair.run()
    assert nic.counters.tx_tls_ctx <= created + OFFLOAD.queues
    assert pair.records_failed() == 0


def test_the_device_forgets_keys_of_sessions_that_are_over():
    pair = Pair(config=OFFLOAD)
    pair.request(pattern(3000))
    pair.client.post(0)
    pair.client.endpoint.end_session(SERVER, SERVER_PORT, "", 0)
    pair.client.driver.forget_routes()
    assert pair.client.nic.contexts() == 1  # what is posted needs it
    assert pair.client.nic.process()
    pair.client.driver.forget_routes()
    assert pair.client.nic.contexts() == 0
    # A message that outlives its keys is sealed by software.
    pair.client.endpoint.next_event()
    pair.request(pattern(3000))
    pair.session(pair.client).end()
    fallbacks = pair.client.nic.counters.tx_tls_fallback
    pair.run(limit_ns=1_000_000)
    assert pair.client.nic.contexts() == 0
    assert pair.client.nic.counters.tx_tls_fallback > fallbacks
