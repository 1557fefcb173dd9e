"""Decoding captures: what our own engine said, what the kernel module said, and what nobody should say."""

from __future__ import annotations

import argparse
import heapq
import json
import random
from dataclasses import dataclass, field
from itertools import count, pairwise
from pathlib import Path

import pytest

from smtstack.capture.decode import Decoder, Message, Result
from smtstack.capture.links import LINK_ETHERNET, LINK_RAW
from smtstack.capture.pcapfile import Reader, Writer
from smtstack.crypto import keys, tls12, tls13
from smtstack.crypto.epochs import SessionParams, SmtSession
from smtstack.crypto.keys import Endpoints, KeyStore, LinuxKeys, PairKeys, demo_keys, linux_keys
from smtstack.errors import ConfigError
from smtstack.io import key_file
from smtstack.nic.device import NicConfig
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, make_side
from smtstack.transport.events import Request, Response
from smtstack.transport.linux_message import SEGMENT_HEADER
from smtstack.transport.params import TransportParams
from smtstack.wire import homa
from smtstack.wire.frame import PAYLOAD_AT, TYPE_AT
from smtstack.wire.ipv4 import IPv4
from tests.golden import golden
from workloads.commands import pcap

PROFILES = ("smt", "homa", "linux")
SEALED = ("smt", "linux")
CLIENT_PORT = 0x8000
#: Around the edges of packets, records and segments of the three profiles, and a long one.
SIZES = (1, 64, 1391, 1392, 1404, 1407, 1408, 1418, 1419, 1420, 1421, 2827, 5000, 8491, 8492, 8618, 20_000, 70_000)


@dataclass
class Talk:
    """A conversation: what was put on the wire, what arrived, and what it was about."""

    sent: list[bytes] = field(default_factory=list)
    arrived: list[bytes] = field(default_factory=list)
    #: Plaintext by (id with role bit, wire epoch).
    messages: dict[tuple[int, int], bytes] = field(default_factory=dict)


def talk(profile: str, sizes: tuple[int, ...] = SIZES, *, seed: int = 0, loss: float = 0.0, twice: float = 0.0,
         late: float = 0.0, params: TransportParams | None = None, nic: NicConfig | None = None,
         store: KeyStore | None = None, port: int = CLIENT_PORT) -> Talk:
    """Requests of these sizes, three at a time, each answered by its reverse and a byte more."""
    out = Talk()
    rng = random.Random(seed)
    client = make_side(CLIENT_IP, port, profile, store or demo_keys(profile), params, nic)
    server = make_side(SERVER_IP, SERVER_PORT, profile, store or demo_keys(profile), params, nic)
    flying: list[tuple[int, int, int, bytes]] = []
    number = count()
    now = 1
    waiting, running, quiet = list(sizes), 0, 0
    while waiting or running or quiet < 40:
        quiet = 0 if waiting or running else quiet + 1
        while waiting and running < 3:
            data = rng.randbytes(waiting.pop(0))
            rpc = client.endpoint.send_request(SERVER_IP, SERVER_PORT, data, now)
            out.messages[rpc.id, rpc.keys.epoch & 0xFF] = data
            running += 1
        for side in (client, server):
            for frame in side.transmit(now):
                out.sent.append(frame)
                for _copy in range(0 if rng.random() < loss else 1 + (rng.random() < twice)):
                    delay = 5_000 + (rng.randrange(300_000) if rng.random() < late else 0)
                    heapq.heappush(flying, (now + delay, next(number), side is client, frame))
        due = [t for s in (client, server) if (t := s.endpoint.next_timeout()) is not None]
        due += [flying[0][0]] if flying else []
        if not due:
            break
        now = max(now + 1, min(due))
        while flying and flying[0][0] <= now:
            _at, _n, to_server, frame = heapq.heappop(flying)
            out.arrived.append(frame)
            (server if to_server else client).receive([frame], now)
        for side in (client, server):
            side.endpoint.handle_timeout(now)
        while (event := server.endpoint.next_event()) is not None:
            assert isinstance(event, Request)
            data = event.data[::-1] + b"!"
            out.messages[event.rpc.id, event.rpc.keys.epoch & 0xFF] = data
            server.endpoint.send_reply(event.rpc, data, now)
        while (event := client.endpoint.next_event()) is not None:
            assert isinstance(event, Response)
            running -= 1
    return out


class Collector(Decoder):
    """Keeps the messages."""

    def __init__(self, profile: str, store: KeyStore, protocol: int | None = None) -> None:
        self._collected: list[Message] = []
        super().__init__(profile, store, protocol, on_message=self._collected.append)

    def messages(self) -> list[Message]:
        self.result()
        return self._collected


def decode(profile: str, frames: list[bytes], store: KeyStore | None = None) -> Collector:
    decoder = Collector(profile, store or demo_keys(profile))
    for frame in frames:
        decoder.add(LINK_ETHERNET, frame)
    return decoder


def found(decoder: Collector) -> dict[tuple[int, int], bytes | None]:
    return {(m.sender_id, m.epoch): m.data for m in decoder.messages()}


def is_data(frame: bytes) -> bool:
    return frame[TYPE_AT] == homa.DATA


def flip(frame: bytes, at: int) -> bytes:
    """One bit changed, ``at`` bytes into the payload."""
    at = PAYLOAD_AT + at if at >= 0 else len(frame) + at
    return frame[:at] + bytes([frame[at] ^ 1]) + frame[at + 1:]


def ip_packet(header: homa.Data | homa.Ack, payload: bytes = b"", ip_id: int = 0) -> bytes:
    """An IP packet from client to server as nobody's engine would send it."""
    body = header.pack() + payload
    ip = IPv4(CLIENT_IP, SERVER_IP, homa.PROTO_HOMA, 20 + len(body), ip_id)
    return ip.pack() + body


def check_clean(result: Result) -> None:
    assert (result.records_bad, result.nonce_reuse, result.bad_packets, result.ignored) == (0, 0, 0, 0)


# -- our own engine --------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_everything_said_is_found(profile, offload, seed):
    rate = 0.1 if seed else 0.0
    mtu, gso = ((1500, 10_000), (1500, 65_535), (9000, 30_000), (1500, 1400))[seed]
    said = talk(profile, seed=seed, params=TransportParams(mtu=mtu, max_gso_size=gso),
                nic=NicConfig(tls_hw_tx_offload=offload, tso_seq=seed == 1, tso=seed != 2),
                loss=rate, twice=rate, late=rate)
    totals = set()
    for capture in (said.sent, said.arrived):
        decoder = decode(profile, capture)
        result = decoder.result()
        check_clean(result)
        assert found(decoder) == said.messages
        assert (result.messages, result.messages_complete) == (len(said.messages), len(said.messages))
        assert result.bytes == sum(map(len, said.messages.values()))
        assert sum(result.packets.values()) == len(capture)
        assert result.packets["DATA"] == sum(map(is_data, capture))
        assert decoder.hints() == []
        totals.add(result.records_ok)
    # Loss, repetition and retransmission change no record.
    assert len(totals) == 1
    assert (totals == {0}) == (profile == "homa")
    assert (result.retransmitted > 0) == (seed > 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_order_does_not_matter(profile):
    said = talk(profile, seed=5, loss=0.1, twice=0.1)
    shuffled = random.Random(1).sample(said.arrived, len(said.arrived))
    assert decode(profile, shuffled).result() == decode(profile, said.arrived).result()


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("seed", range(6))
def test_holes_are_neither_good_nor_bad(profile, seed):
    gso = random.Random(seed).choice([1400, 10_000, 30_000, 65_535])
    said = talk(profile, seed=seed, params=TransportParams(max_gso_size=gso))
    rng = random.Random(seed)
    full = decode(profile, said.sent).result()
    late = said.sent[rng.randrange(len(said.sent)):]
    holey = [f for f in said.sent if rng.random() > 0.2]
    for capture in (late, holey):
        decoder = decode(profile, capture)
        result = decoder.result()
        check_clean(result)
        assert result.messages_complete < full.messages_complete
        assert all(data in (None, said.messages[key]) for key, data in found(decoder).items())
        assert (result.records_ok < full.records_ok) == (profile != "homa")


def test_records_after_a_hole_are_verified():
    # Segments of 45 packets of 1440 bytes hold four records of 16200 bytes.
    said = talk("smt", (200_000,), params=TransportParams(max_gso_size=65_535, unsched_bytes=200_000))
    request = [f for f in said.sent if is_data(f) and f[TYPE_AT + 14] == 2]
    edges = [*range(0, 13 * 16_200, 16_200), 200_000 + 13 * tls13.OVERHEAD]
    for lost in ((), (0,), (0, 45), (0, 12, 24, 36), range(50), range(100, 110), range(0, 139, 25)):
        whole = [all(n not in lost for n in range(start // 1440, -(-stop // 1440)))
                 for start, stop in pairwise(edges)]
        result = decode("smt", [f for n, f in enumerate(request) if n not in lost]).result()
        check_clean(result)
        assert result.records_ok == sum(whole)


def test_plain_homa_of_the_module_stands_beside_its_records():
    # The 20-byte segment header in clear, as in captures of the module without keys.
    data = bytes(range(256)) * 10
    frames = []
    for ip_id, at in enumerate(range(0, len(data), 1420)):
        piece = data[at:at + 1420]
        header = homa.Data(CLIENT_PORT, SERVER_PORT, 40, len(data), len(data))
        body = header.pack() + SEGMENT_HEADER.pack(at, len(piece), 0, 0, 0) + piece
        ip = IPv4(CLIENT_IP, SERVER_IP, homa.PROTO_LINUX, 20 + len(body), ip_id)
        frames.append(bytes(12) + b"\x08\x00" + ip.pack() + body)
    # Before TSO cuts it, the same is one long frame.
    joined = b"".join(f[PAYLOAD_AT:] for f in frames)
    ip = IPv4(CLIENT_IP, SERVER_IP, homa.PROTO_LINUX, 60 + len(joined))
    uncut = frames[0][:14] + ip.pack() + frames[0][34:PAYLOAD_AT] + joined
    for profile in ("linux", "homa"):
        for capture in (frames, frames[::-1] + frames, [uncut]):
            decoder = decode(profile, capture)
            check_clean(decoder.result())
            assert found(decoder) == {(40, 0): data}
    sealed = talk("linux", (64, 5000))
    result = decode("linux", frames + sealed.sent).result()
    assert (result.messages_complete, result.records_ok) == (5, 4)


def test_key_updates_are_followed_from_anywhere():
    def store() -> PairKeys:
        return PairKeys({}, SessionParams(key_update_records=8, late_ticks=0), default=keys.DEMO_SECRET)

    said = talk("smt", (64,) * 1200, store=store(), twice=0.2)
    assert {epoch for _id, epoch in said.messages} == set(range(256)), "the test should see the byte wrap"
    result = decode("smt", said.arrived, store()).result()
    check_clean(result)
    assert result.records_ok == result.messages_complete == 2 * 1200
    middle = said.sent[-200:]
    result = decode("smt", middle, store()).result()
    check_clean(result)
    assert result.records_ok > 50


def test_a_port_used_by_a_later_client():
    first = talk("smt", (64, 3000))
    second = talk("smt", (64, 3000), port=CLIENT_PORT + 1, seed=1)
    result = decode("smt", first.sent + second.sent).result()
    check_clean(result)
    assert (result.messages, result.messages_complete) == (8, 8)


def test_other_protocols_are_ignored():
    said = talk("smt", (64,))
    tcp = bytes(12) + b"\x08\x00" + IPv4(1, 2, 6, 40).pack() + bytes(20)
    arp = bytes(12) + b"\x08\x06" + bytes(46)
    result = decode("smt", [tcp, *said.sent, arp, bytes(5)]).result()
    assert (result.ignored, result.bad_packets, result.records_bad) == (3, 0, 0)


def test_another_ip_protocol_number():
    said = talk("smt", (64,))
    frames = []
    for frame in said.sent:
        ip = IPv4(int.from_bytes(frame[26:30], "big"), int.from_bytes(frame[30:34], "big"), 200,
                  int.from_bytes(frame[16:18], "big"), int.from_bytes(frame[18:20], "big"))
        frames.append(frame[:14] + ip.pack() + frame[34:])
    assert decode("smt", frames).result().ignored == len(frames)
    decoder = Decoder("smt", demo_keys("smt"), protocol=200)
    for frame in frames:
        decoder.add(LINK_ETHERNET, frame)
    assert decoder.result().messages_complete == 2


# -- the detectors fire ----------------------------------------------------------------------------------


def with_changed_copy(frames: list[bytes], at: int, how: str) -> list[bytes]:
    """One DATA packet with one bit flipped: instead of the right one, after it, or before it."""
    n = next(i for i, f in enumerate(frames) if is_data(f) and len(f) > 1500)
    changed = flip(frames[n], at)
    return {"instead": [*frames[:n], changed, *frames[n + 1:]], "after": [*frames, changed],
            "before": [changed, *frames]}[how]


@pytest.mark.parametrize("profile", SEALED)
@pytest.mark.parametrize("how", ["instead", "after", "before"])
@pytest.mark.parametrize("at", [0, 3, 4, 20, 700, -1])
def test_a_flipped_bit_is_a_bad_record(profile, how, at):
    said = talk(profile, (64, 20_000))
    clean = decode(profile, said.sent).result()
    decoder = decode(profile, with_changed_copy(said.sent, at, how))
    result = decoder.result()
    assert result.records_bad == 1
    assert result.nonce_reuse == 0
    # Where the right copy is there as well, it is found, whichever came first.
    spoiled = how == "instead"
    assert result.records_ok == clean.records_ok - spoiled
    assert result.messages_complete == clean.messages_complete - spoiled
    assert any("not authentic" in hint for hint in decoder.hints())


@pytest.mark.parametrize("how", ["after", "before"])
def test_without_records_a_changed_copy_is_a_bad_packet(how):
    said = talk("homa", (64, 20_000))
    result = decode("homa", with_changed_copy(said.sent, 700, how)).result()
    assert result.bad_packets == 1


@pytest.mark.parametrize("profile", SEALED)
def test_a_changed_copy_of_an_unfinished_record_is_noticed(profile):
    said = talk(profile, (20_000,))
    n = next(i for i, f in enumerate(said.sent) if is_data(f) and len(f) > 1500)
    result = decode(profile, [said.sent[n], flip(said.sent[n], 100)]).result()
    assert (result.records_ok, result.records_bad) == (0, 1)


@pytest.mark.parametrize("profile", SEALED)
@pytest.mark.parametrize("sizes", [(64,), (5000,), (20_000,)])
def test_another_plaintext_under_the_same_nonce_is_reuse(profile, sizes):
    # A client that starts over with the same key counts its ids from the beginning.
    first, second = talk(profile, sizes, seed=1), talk(profile, sizes, seed=2)
    one = decode(profile, first.sent).result()
    assert one.nonce_reuse == 0
    decoder = decode(profile, first.sent + second.sent)
    result = decoder.result()
    assert result.nonce_reuse == one.records_ok == result.records_ok
    assert result.records_bad == 0
    assert any("nonce" in hint for hint in decoder.hints())


def test_reuse_across_clients_of_one_static_key():
    # All clients of the module's wildcard session share key and id space (reference §3.5).
    first, second = talk("linux", (64,), seed=1), talk("linux", (64,), seed=2, port=CLIENT_PORT + 1)
    assert decode("linux", first.sent + second.sent).result().nonce_reuse == 2


def test_reuse_in_the_last_packet_only():
    # In counter mode equal plaintext prefixes stay equal: only the end of the record differs.
    key = linux_keys(keys.DEMO_CLIENT_KEY, keys.DEMO_CLIENT_SALT)
    frames = []
    for last in (b"a", b"b"):
        data = bytes(2000) + last
        plain = SEGMENT_HEADER.pack(0, 1407, 0, 0, 0) + data[:1407]
        plain += SEGMENT_HEADER.pack(1407, len(data) - 1407, 0, 0, 0) + data[1407:]
        record = tls12.seal(key, tls12.first_sequence(2), plain)
        header = homa.Data(CLIENT_PORT, SERVER_PORT, 2, len(data), len(data)).pack()
        for ip_id, at in enumerate((0, 1440)):
            body = header + record[at:at + 1440]
            ip = IPv4(CLIENT_IP, SERVER_IP, homa.PROTO_LINUX, 20 + len(body), ip_id)
            frames.append(bytes(12) + b"\x08\x00" + ip.pack() + body)
    assert frames[0] == frames[2]
    result = decode("linux", frames).result()
    assert (result.records_ok, result.records_bad, result.nonce_reuse) == (1, 0, 1)


@pytest.mark.parametrize("profile", SEALED)
def test_identical_retransmissions_are_no_reuse(profile):
    said = talk(profile, (64, 20_000))
    result = decode(profile, said.sent * 3).result()
    check_clean(result)
    assert result.records_ok == decode(profile, said.sent).result().records_ok


def other_keys(profile: str) -> KeyStore:
    if profile == "linux":
        return LinuxKeys(linux_keys(bytes(16), bytes(4)), linux_keys(bytes(15) + b"\1", bytes(4)))
    return PairKeys({}, default=bytes(32))


@pytest.mark.parametrize("profile", SEALED)
def test_wrong_keys(profile):
    said = talk(profile)
    right = decode(profile, said.sent).result()
    decoder = decode(profile, said.sent, other_keys(profile))
    result = decoder.result()
    assert (result.records_ok, result.records_bad) == (0, right.records_ok)
    assert result.messages_complete == 0
    assert any("keys" in hint for hint in decoder.hints())


def test_a_pair_without_a_key_is_named():
    said = talk("smt", (64,))
    decoder = decode("smt", said.sent, PairKeys({frozenset((1, 2)): bytes(32)}))
    assert decoder.result().records_bad == 2
    assert any("no key for 10.0.0.1 -> 10.0.0.2" in hint for hint in decoder.hints())


def test_a_message_cut_short_is_not_complete():
    said = talk("smt", (20_000,))
    request = [f for f in said.sent if is_data(f) and f[TYPE_AT + 14] == 2]
    # The clear length ends with the first segment; the packets after it vanish.
    size = 6 * 1440
    frames = []
    for frame in request[:6]:
        changed = bytearray(frame)
        changed[TYPE_AT + 15:TYPE_AT + 19] = size.to_bytes(4, "big")
        frames.append(bytes(changed))
    assert frames[0] != request[0]
    result = decode("smt", frames).result()
    assert (result.records_ok, result.records_bad, result.messages_complete) == (1, 0, 0)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_packet_that_claims_another_length_is_bad(profile):
    said = talk(profile, (5000,))
    frame = bytearray(next(f for f in said.sent if is_data(f)))
    frame[TYPE_AT + 18] ^= 1
    result = decode(profile, [*said.sent, bytes(frame)]).result()
    assert (result.bad_packets, result.messages_complete) == (1, 2)


def demo_session() -> SmtSession:
    session = demo_keys("smt").session(Endpoints(CLIENT_IP, CLIENT_PORT, SERVER_IP, SERVER_PORT))
    assert isinstance(session, SmtSession)
    return session


def test_acks_prove_themselves():
    said = talk("smt", (64,) * 30)
    acks = [f for f in said.sent if f[TYPE_AT] == homa.ACK]
    assert acks
    decoder = decode("smt", [*said.sent, flip(acks[0], -1)])
    assert decoder.result().bad_packets == 1
    assert any("proof" in hint for hint in decoder.hints())


def test_an_ack_under_a_used_number_is_reuse():
    session = demo_session()
    tx = session.schedule(0)[0]
    number = session.numbers.ack_batch(2)
    decoder = Decoder("smt", demo_keys("smt"))
    for other in (4, 6):
        ack = homa.Ack(CLIENT_PORT, SERVER_PORT, 2, (homa.AckEntry(other, CLIENT_PORT, SERVER_PORT),))
        proof = tx.encrypt(number, b"", ack.body())
        decoder.add(LINK_RAW, ip_packet(homa.Ack(ack.sport, ack.dport, 2, ack.acks, 0, proof)))
    assert (decoder.result().nonce_reuse, decoder.result().bad_packets) == (1, 0)


def test_records_that_changed_places_are_bad():
    session = demo_session()
    tx = session.schedule(0)[0]
    first = session.numbers.first(2)
    records = [tls13.seal(tx, first + n, bytes([n]) * 100, n == 2) for n in range(3)]
    size = len(records[0])

    def verdict(order: tuple[int, ...]) -> tuple[int, int]:
        decoder = Decoder("smt", demo_keys("smt"))
        for place, n in enumerate(order):
            header = homa.Data(CLIENT_PORT, SERVER_PORT, 2, 3 * size, 3 * size, place * size, size)
            decoder.add(LINK_RAW, ip_packet(header, records[n]))
        return decoder.result().records_ok, decoder.result().records_bad

    assert verdict((0, 1, 2)) == (3, 0)
    assert verdict((0, 2, 1)) == (1, 2)
    assert verdict((1, 0, 2)) == (1, 2)


def test_malformed_packets_are_counted():
    said = talk("smt", (64, 5000))
    frame = next(f for f in said.sent if is_data(f))
    wrong_type = bytearray(frame)
    wrong_type[TYPE_AT] = 0x55
    wrong_sum = bytearray(frame)
    wrong_sum[24] ^= 1
    result = decode("smt", [*said.sent, bytes(wrong_type), bytes(wrong_sum), frame[:50]]).result()
    assert result.bad_packets == 3
    assert result.messages_complete == 4


def test_noise_never_raises():
    rng = random.Random(3)
    said = {p: talk(p, (64, 5000, 20_000), seed=1, loss=0.1) for p in PROFILES}
    for profile in PROFILES:
        for _round in range(40):
            frames = []
            for frame in said[profile].sent:
                damaged = bytearray(frame)
                for _n in range(rng.choice([0, 0, 1, 5])):
                    at = rng.randrange(14, len(damaged))
                    damaged[at] = rng.randrange(256)
                    damaged[24:26] = bytes(2)
                    damaged[24:26] = (0xFFFF - int.from_bytes(damaged[14:34], "big") % 0xFFFF).to_bytes(2, "big")
                frames.append(bytes(damaged[:rng.choice([len(damaged), rng.randrange(len(damaged))])]))
            decoder = decode(profile, frames)
            decoder.result()
            decoder.hints()


def test_unknown_profile():
    with pytest.raises(ConfigError, match="smt-ng"):
        Decoder("smt-ng", demo_keys("smt"))


# -- the command -----------------------------------------------------------------------------------------


def command(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    pcap.add_parser(parser.add_subparsers())
    args = parser.parse_args(["pcap", "decode", *map(str, argv)])
    code: int = args.run(args)
    return code


def save(path: Path, frames: list[bytes]) -> Path:
    with path.open("wb") as stream:
        writer = Writer(stream)
        for n, frame in enumerate(frames):
            writer.write(n * 1000, frame)
    return path


FIELDS = {"packets", "retransmitted", "records_ok", "records_bad", "messages", "messages_complete", "bytes",
          "nonce_reuse", "ignored", "bad_packets", "handshake_packets", "truncated", "others"}


def test_command_json(tmp_path, capsys):
    said = talk("smt", (64, 20_000), seed=1, loss=0.1)
    file = save(tmp_path / "a.pcap", said.sent)
    assert command(file, "--profile", "smt", "--keys", "demo", "--json") == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert set(result) == FIELDS
    assert result["messages_complete"] == 4
    assert err == ""
    save(file, [*said.sent, flip(next(f for f in said.sent if is_data(f)), 30)])
    assert command(file, "--keys", "demo", "--json") == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["records_bad"] == 1
    assert "not authentic" in err
    save(file, said.sent + talk("smt", (64, 20_000), seed=2).sent)
    assert command(file, "--keys", "demo", "--json") == 1
    assert json.loads(capsys.readouterr().out)["nonce_reuse"] > 0


def test_command_table(tmp_path, capsys):
    file = save(tmp_path / "a.pcap", talk("linux", (64,)).sent)
    assert command(file, "--profile", "linux", "--keys", "demo") == 0
    out = capsys.readouterr().out
    assert "records authentic" in out
    assert "2, 2 of them complete" in out


def test_command_mentions_what_it_could_not_read(tmp_path, capsys):
    file = save(tmp_path / "a.pcap", talk("linux", (64,)).sent)
    file.write_bytes(file.read_bytes()[:-1])
    assert command(file, "--profile", "smt", "--keys", "demo") == 1
    err = capsys.readouterr().err
    assert "in the middle of a packet" in err
    assert "try --profile linux" in err


def test_command_errors(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        command(tmp_path / "none.pcap", "--keys", "demo")
    file = tmp_path / "a.pcap"
    file.write_text("certainly no capture")
    with pytest.raises(ConfigError, match="not a capture"):
        command(file, "--keys", "demo")
    with pytest.raises(ConfigError, match="key file"):
        command(file, "--keys", tmp_path / "none.keys")
    with pytest.raises(ConfigError, match="directory"):
        command(tmp_path, "--keys", "demo")


def test_command_with_a_key_file(tmp_path):
    content = key_file.generate([("10.0.0.1", "10.0.0.2")])
    path = tmp_path / "run.keys"
    key_file.write_key_file(path, content)
    for profile in SEALED:
        store = key_file.load(str(path), profile)
        file = save(tmp_path / f"{profile}.pcap", talk(profile, (5000,), store=store).sent)
        assert command(file, "--profile", profile, "--keys", path) == 0
        assert command(file, "--profile", profile, "--keys", "demo") == 1


# -- the kernel module -----------------------------------------------------------------------------------

#: Packet counts and records as the captures' own notes have them: DATA, retransmitted, control, records.
MODULE = {
    "main-homa-gso10000-loss10.server":
        (98, 15, {"NEED_ACK": 146, "RESEND": 27, "ACK": 4, "BUSY": 10, "GRANT": 4}, 0),
    "main-homa-gso10000-lossless.server": (88, 0, {"GRANT": 4}, 0),
    "main-smt-gso10000-loss10.client":
        (100, 15, {"NEED_ACK": 56, "ACK": 6, "RESEND": 21, "UNKNOWN": 1, "BUSY": 8, "GRANT": 6}, 28),
    "main-smt-gso10000-loss10.server":
        (97, 16, {"NEED_ACK": 63, "ACK": 5, "RESEND": 20, "UNKNOWN": 1, "GRANT": 7, "BUSY": 8}, 28),
    "main-smt-gso10000-lossless.server": (92, 0, {"GRANT": 8}, 28),
    "main-smt-gso1400-loss10.server":
        (103, 18, {"NEED_ACK": 128, "RESEND": 34, "ACK": 6, "BUSY": 12, "UNKNOWN": 2, "GRANT": 12}, 92),
    "main-smt-gso1400-lossless.server":
        (92, 4, {"CUTOFFS": 2, "RESEND": 8, "BUSY": 3, "NEED_ACK": 396, "ACK": 2, "UNKNOWN": 1, "GRANT": 22}, 92),
}


def module_frames(name: str) -> list[bytes]:
    with golden("pcaps", f"{name}.pcap").open("rb") as stream:
        return [c.frame for c in Reader(stream).frames_untrusted()]


@pytest.mark.parametrize("name", MODULE)
def test_captures_of_the_module(name):
    data, resent, control, records = MODULE[name]
    frames = module_frames(name)
    for profile in ("linux", "homa") if "homa" in name else ("linux",):
        decoder = decode(profile, frames)
        result = decoder.result()
        check_clean(result)
        assert result.packets == {"DATA": data, **control}
        assert (result.retransmitted, result.records_ok) == (resent, records)
        assert (result.messages, result.messages_complete) == (20, 20)
        whole = [m.data for m in decoder.messages() if m.data is not None]
        assert all(m == bytes(i % 256 for i in range(len(m))) for m in whole)
        assert result.bytes == sum(map(len, whole)) == 109_936


#: Captures of smtnet (10.9.0.1) with the module, likewise: DATA of smtnet and of the module, messages, records.
INTEROP = {
    "smtnet-client-gso10000-lossless":
        (52, 53, 1, {"CUTOFFS": 3, "GRANT": 1, "RESEND": 1, "NEED_ACK": 8, "ACK": 8}, 22, 30),
    "smtnet-server-gso10000-lossless":
        (52, 52, 0, {"CUTOFFS": 2, "GRANT": 1, "NEED_ACK": 474, "ACK": 1}, 22, 30),
    "smtnet-client-gso10000-loss10":
        (91, 78, 20, {"CUTOFFS": 2, "GRANT": 2, "RESEND": 34, "BUSY": 13, "NEED_ACK": 18, "UNKNOWN": 1, "ACK": 12},
         24, 36),
    "smtnet-server-gso1400-loss10":
        (90, 78, 16, {"CUTOFFS": 2, "GRANT": 4, "RESEND": 18, "BUSY": 1, "NEED_ACK": 248, "ACK": 1}, 24, 156),
}


@pytest.mark.parametrize("name", INTEROP)
def test_captures_of_smtnet_with_the_module(name, capsys):
    ours, theirs, resent, control, messages, records = INTEROP[name]
    path = golden("pcaps", "interop", f"{name}.host.pcap")
    frames = module_frames(f"interop/{name}.host")
    decoder = decode("linux", frames)
    result = decoder.result()
    check_clean(result)
    assert result.packets == {"DATA": ours + theirs, **control}
    assert (result.retransmitted, result.records_ok) == (resent, records)
    assert (result.messages, result.messages_complete) == (messages, messages)
    assert sum(is_data(f) and f[26:30] == bytes((10, 9, 0, 1)) for f in frames) == ours
    said = {(m.sender_id & ~1, m.sender_id & 1, m.flow.sport if m.sender_id & 1 else m.flow.dport): m.data
            for m in decoder.messages()}
    assert all(said[i, 0, port] == said[i, 1, port] is not None for i, _role, port in said)
    assert command(path, "--profile", "linux", "--keys", "demo") == 0
    assert capsys.readouterr().err == ""


def test_module_capture_with_wrong_keys_or_profile():
    frames = module_frames("main-smt-gso10000-lossless.server")
    assert decode("linux", frames, other_keys("linux")).result().records_bad == 28
    as_homa = decode("homa", frames)
    assert as_homa.result().messages_complete == 0
    assert any("--profile linux" in hint for hint in as_homa.hints())
    as_smt = decode("smt", frames)
    assert as_smt.result().ignored == len(frames)
    assert any("--profile linux" in hint for hint in as_smt.hints())


def test_another_branch_of_the_module_is_recognised_as_foreign():
    decoder = decode("smt", module_frames("ng-smt-gso10000-lossless.server"))
    assert decoder.result().bad_packets == 92
    assert any("smt-ng" in hint for hint in decoder.hints())
