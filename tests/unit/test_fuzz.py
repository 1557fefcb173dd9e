"""A million hostile inputs: parsers raise nothing but BadPacket, endpoints nothing at all, and RPCs survive."""

from __future__ import annotations

from random import Random

import pytest

from smtstack.crypto.aead import Cipher
from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import PairKeys, demo_keys
from smtstack.errors import BadPacket
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.params import TransportParams
from smtstack.wire import ethernet, homa, ipv4
from tests import fuzz
from tests.fake_negotiator import Fake
from tests.fuzz_engine import Round, content
from tests.pair import CLIENT, CLIENT_PORT, MACS, SERVER, SERVER_PORT, Pair, pattern
from tests.patience import FACTOR

INPUTS = 1_100_000
ENOUGH = 1_000_000
SECONDS = 150 * FACTOR


def test_every_untrusted_function_has_a_target():
    functions = list(fuzz.untrusted_functions())
    assert len(functions) > 8
    missing = fuzz.without_target(functions, fuzz.targets())
    assert not missing, f"give these a target in tests/fuzz.py: {missing}"
    # The control: one nobody knows is noticed, public or in a module without targets.
    for stranger in ("smtstack.wire.homa.parse_more_untrusted", "smtstack.io.raw._read_untrusted",
                     "smtstack.capture.pcapfile.Reader.more_untrusted"):
        assert fuzz.without_target([*functions, stranger], fuzz.targets()) == [stranger]


def test_what_is_kept_brings_nothing_down():
    targets = fuzz.targets()
    fed, crashes = fuzz.feed_kept(fuzz.CORPUS, targets)
    assert crashes == []
    assert fed > 100
    files = set(fuzz.CORPUS.rglob("*.bin"))
    assert files == {path for target in targets for path in fuzz.kept(fuzz.CORPUS, target)}, "of no target"
    assert {target.function for target in targets} == {t.function for t in targets if fuzz.kept(fuzz.CORPUS, t)}
    assert sum(path.stat().st_size for path in files) < 200_000


def test_a_kept_input_that_brings_a_target_down_is_reported(tmp_path):
    """And what a run finds is kept, to be fed first from then on."""
    def call(buf: bytes) -> None:
        if buf[:1] == b"!":
            raise IndexError("boo")

    target = fuzz.Target("smtstack.wire.toy_untrusted", call, [b"!"])
    fuzz.keep(tmp_path, target, b"harmless")
    assert fuzz.feed_kept(tmp_path, [target]) == (1, [])
    with pytest.raises(fuzz.FuzzError) as found:
        fuzz.fuzz_target(target, 100, Random(1))
    path = fuzz.keep(tmp_path, target, found.value.buffer)
    fed, (crash,) = fuzz.feed_kept(tmp_path, [target])
    assert fed == 2
    assert path.name in crash
    assert "IndexError: boo" in crash


def test_a_million_inputs():
    report = fuzz.run(INPUTS, seed=1, seconds=SECONDS)
    print(f"{report.inputs} inputs ({report.engine_inputs} to endpoints) in {report.seconds:.1f} s")
    assert report.crashes == []
    assert report.of_rounds("escaped") == []
    assert report.of_rounds("forged") == []
    assert report.of_rounds("unbounded") == []
    assert report.inputs >= ENOUGH, f"only {report.inputs} inputs within {SECONDS} s"
    # The inputs are neither all nonsense nor all genuine.
    for function, count, refused in report.targets:
        if "open" in function or "parse" in function or "frames" in function:
            assert count * 0.01 < refused < count, function


def test_forged_packets_kill_no_rpc_of_smt():
    # The second half with the overlay.
    for seed in (*range(64, 72), *range(100, 108)):
        a_round = Round("smt", seed)
        assert a_round.overlay == (seed >= 96)
        findings = a_round.run(10_000)
        assert findings.escaped == []
        assert findings.forged == []
        assert findings.killed == [], f"Round('smt', {seed}).run(10_000)"
        assert len(a_round.asked) > 50


@pytest.mark.parametrize("seed", [8, 9, 11, 24, 25, 31, 40, 57])
def test_forgers_gain_nothing_where_sessions_are_made_by_handshakes(seed):
    a_round = Round("smt", seed)
    assert a_round.negotiated
    findings = a_round.run(5000)
    assert findings.escaped == findings.forged == findings.killed == findings.unbounded == []
    counters = a_round.pair.server.endpoint.counters
    assert counters.frames_held > 0
    # Forged flags: handed on, and nothing else.
    heard = a_round.pair.server.endpoint._negotiator
    assert isinstance(heard, Fake)
    assert heard.heard


def test_every_rpc_of_upstream_ends_whatever_is_forged():
    """Nothing is proven there, so a forger may well end one; but none hangs, and nothing grows."""
    for seed in range(6):
        a_round = Round("upstream", seed)
        findings = a_round.run(5000)
        assert findings.escaped == findings.unbounded == []
        assert not [what for what in findings.killed if "never ended" in what], f"Round('upstream', {seed})"
        assert len(a_round.asked) > 20


def test_the_same_seed_is_the_same_attack():
    first, again = Round("homa", 3), Round("homa", 3)
    assert first.run(2000) == again.run(2000)
    assert first.pair.frames == again.pair.frames
    assert first.pair.now == again.pair.now
    assert first.pair.server.endpoint.counters.snapshot() == again.pair.server.endpoint.counters.snapshot()
    assert Round("homa", 4).run(2000) != first.findings


# -- controls: the fuzzers see what they are there to see --------------------------------------------------


def test_an_unexpected_exception_is_reported_with_its_input():
    def fragile(buf: bytes) -> None:
        if len(buf) > 3 and buf[3] == 0xFF:
            raise IndexError("as a careless parser would")
        raise BadPacket("fine")

    target = fuzz.Target("fragile", fragile, [bytes(20)])
    with pytest.raises(fuzz.FuzzError, match=r"fragile raised IndexError.*\non 000000ff"):
        fuzz.fuzz_target(target, 10_000, Random(1))


@pytest.mark.interpreted("compiled methods call each other without looking them up: none can be replaced")
def test_an_engine_that_lets_something_escape_is_caught(monkeypatch):
    monkeypatch.setattr(Endpoint, "_tell_cutoffs", lambda *_args: 1 // 0)
    findings = Round("smt", 1).run(1000)
    assert "ZeroDivisionError" in findings.escaped[0]
    assert "on frame" in findings.escaped[0]


def test_an_engine_that_believes_forgeries_is_caught(monkeypatch):
    # Profile homa believes everything: played to the oracle of smt, it must be found out.
    a_round = Round("homa", 2)
    a_round.profile = "smt"
    findings = a_round.run(5000)
    assert findings.forged
    assert findings.killed


def test_state_beyond_its_bounds_is_caught(monkeypatch):
    monkeypatch.setattr("tests.fuzz_engine.MAX_PEERS", 3)
    assert Round("smt", 1).run(3000).unbounded


# -- what fuzzing brought to light, one packet each ---------------------------------------------------------


def frame(packet: homa.Packet, to_server: bool, payload: bytes = b"", profile: str = "smt") -> bytes:
    """A forged frame."""
    transport = packet.pack() + payload
    src, dst = (CLIENT, SERVER) if to_server else (SERVER, CLIENT)
    ip = ipv4.IPv4(src, dst, homa.FORMATS[profile].protocol, 20 + len(transport))
    return ethernet.Ethernet(MACS[dst], MACS[src]).pack() + ip.pack() + transport


def to_client(packet: type, *args: int, payload: bytes = b"") -> bytes:
    return frame(packet(SERVER_PORT, CLIENT_PORT, *args), False, payload)


def to_server(packet: type, *args: int, payload: bytes = b"", profile: str = "smt") -> bytes:
    return frame(packet(CLIENT_PORT, SERVER_PORT, *args), True, payload, profile)


@pytest.mark.parametrize("size", [100, 50_000])
def test_a_forged_response_packet_does_not_cost_the_request(size):
    lossy = True
    pair = Pair(wire=lambda f: [] if lossy else [f])
    pair.request(pattern(size))
    pair.exchange()  # what is not granted has not been sent; the rest is lost
    pair.deliver(to_client(homa.Data, 3, 5000, 5000, 0, 1440, payload=bytes(100)), pair.client)
    lossy = False
    pair.run()
    pair.check()


def test_a_forged_long_record_does_not_cost_the_rpc():
    pair = Pair()
    header = b"\x17\x03\x03" + (16401).to_bytes(2, "big")
    forged = to_server(homa.Data, 2, 20_000, 20_000, 0, 1440, payload=header + bytes(1435))
    pair.deliver(forged, pair.server)
    pair.request(pattern(2000))
    pair.run()
    pair.check()


def test_need_ack_for_an_absurd_id_raises_nothing():
    pair = Pair(keys=lambda: demo_keys("smt", SessionParams(key_update_records=1)))
    for size in (1, 2):
        pair.request(pattern(size))
        pair.run()
    for epoch in range(3):
        pair.deliver(to_client(homa.NeedAck, (1 << 64) - 1, epoch), pair.client)


def test_acks_at_the_ciphers_limit_raise_nothing():
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    small = Cipher("AES-128-GCM", 16, 4, AESGCM)
    pair = Pair(keys=lambda: PairKeys({}, SessionParams(small, key_update_records=1 << 40), default=bytes(32)))
    rpc = pair.request(b"x")
    pair.run()
    for _ in range(10):
        pair.deliver(to_client(homa.NeedAck, rpc.id | 1), pair.client)


def test_linux_ids_beyond_the_record_numbers_are_no_new_ids():
    pair = Pair("linux")
    pair.request(b"once only")
    pair.run(settle=True)
    genuine = pair.frames[0]
    pair.deliver(genuine[:54] + (2 + (1 << 49)).to_bytes(8, "big") + genuine[62:], pair.server)
    pair.run()
    assert pair.delivered == [b"once only"]


def test_linux_records_cut_in_another_way_do_no_lasting_harm():
    pair = Pair("linux")
    data = pattern(5000)  # one record of 5109 bytes, four packets
    pair.request(data)
    pair.client.post(0)
    record = b"".join(f[74:] for f in pair.client.nic.process())
    # Sizes that put packets 1 and 2 within the message, as the module reckons.
    for index, piece in ((2, record[13 + 3629:]), (1, record[13:13 + 3629]), (0, record[:13])):
        forged = to_server(homa.Data, 2, 5000, 5000, 0, 0, 0, 0, index, payload=piece, profile="linux")
        pair.server.endpoint.handle_packet(forged, 0)
    assert pair.server.endpoint.snapshot()["incoming"] == 1
    pair.run()
    assert pair.delivered == [data]


def test_resends_do_not_pile_up():
    # The responses never arrive, so the server keeps them.
    pair = Pair(params=TransportParams(max_message_length=200_000),
                wire=lambda f: [] if f[47] == homa.DATA and f[26:30] == SERVER.to_bytes(4, "big") else [f])
    pair.request(content(1, 200_000))
    pair.run(limit_ns=10_000_000)
    server = pair.server.endpoint
    before = server.counters.packets_resent
    for _ in range(100):
        pair.deliver(to_server(homa.Resend, 2, 0, 200_000, 7), pair.server)
    assert 0 < server.counters.packets_resent - before < 400  # the response has 144 packets


def test_forgeries_in_the_name_of_others_leave_memory_for_the_genuine():
    pair = Pair(params=TransportParams(max_rx_bytes_per_host=300_000, max_rx_bytes=500_000))
    for host in range(3, 6):
        forged = bytearray(to_server(homa.Data, 2, 250_000, 250_000, 248_000, 1440, payload=bytes(1000)))
        forged[29] = host
        pair.server.endpoint.handle_packet(bytes(forged), 0)
    pair.request(pattern(30_000))
    pair.run()
    pair.check()


def test_forged_responses_leave_memory_for_the_genuine():
    lossy = True
    pair = Pair(params=TransportParams(max_rx_bytes_per_host=300_000), wire=lambda f: [] if lossy else [f])
    for size in (100, 200, 300):
        pair.request(pattern(size))
    pair.exchange()
    for rpc in pair.sent:
        forged = to_client(homa.Data, rpc.id | 1, 250_000, 250_000, 248_000, 1440, payload=bytes(1000))
        pair.deliver(forged, pair.client)
    assert pair.client.endpoint.snapshot()["rx_bytes"] <= 300_000
    lossy = False
    pair.run()
    pair.check()


def test_empty_forgeries_make_room_for_the_genuine():
    pair = Pair(params=TransportParams(max_rpcs_per_host=4))
    for number in range(4):
        forged = to_server(homa.Data, 1000 + 2 * number, 10, 10, 5000, 1440, payload=bytes(100))
        pair.deliver(forged, pair.server)
    pair.request(b"genuine")
    pair.exchange()
    assert pair.delivered == [b"genuine"]


# NEED_ACK is the wrong question while a response waits for grants: a client that has not got it all says
# nothing, and the server would give up. The module asks RESEND(0, 0) then, and hears BUSY (reference §6.5).
def test_a_response_that_waits_for_grants_outlives_the_dead_ahead_of_it():
    answered = set()

    def wire(arriving: bytes) -> list[bytes]:
        rpc = int.from_bytes(arriving[54:62], "big") >> 1
        if rpc < 3 and arriving[47] == homa.DATA and arriving[26:30] == SERVER.to_bytes(4, "big"):
            answered.add(rpc)
        # The servers of RPCs 1 and 2 are gone after what they send unasked. Theirs are shorter: granted first.
        return [] if rpc in answered and arriving[47] != homa.DATA else [arriving]

    pair = Pair(wire=wire)
    for size in (40_000, 45_000, 50_000):
        pair.request(content(size, size))
    pair.run()
    assert [len(data) for data in pair.responses.values()] == [50_000]
    assert len(pair.failed) == 2
