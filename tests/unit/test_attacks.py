"""An attacker on the path: replay, forgery, truncation, floods. Every detector has a control that fires."""

from __future__ import annotations

import hashlib
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import PairKeys, demo_keys
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, make_side
from smtstack.transport.events import Request
from smtstack.transport.params import TransportParams
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4
from tests.rig import DELAY_NS, Rig
from tests.unit.test_engine import content


def rebuild(frame: bytes, **fields: int) -> bytes:
    """A genuine DATA frame with some header fields changed and the lengths and checksums made right."""
    header = dict(zip(_FIELDS, homa.DATA_HEADER.unpack_from(frame, wire_frame.TRANSPORT_OFFSET), strict=True))
    header.update(fields)
    changed = bytearray(frame)
    homa.DATA_HEADER.pack_into(changed, wire_frame.TRANSPORT_OFFSET, *header.values())
    return bytes(changed)


_FIELDS = ("sport", "dport", "packet_offset", "segment_size", "epoch", "flags", "doff", "kind", "high", "checksum",
           "low", "sender_id", "message_length", "incoming", "cutoff_version", "retransmit", "packet_index")


def control(packet: homa.Control, to_server: bool, protocol: int = homa.PROTO_HOMA, trailer: bytes = b"") -> bytes:
    """A control packet as a frame, as if from the other side."""
    body = packet.pack() + trailer
    src, dst = (CLIENT_IP, SERVER_IP) if to_server else (SERVER_IP, CLIENT_IP)
    return bytes(12) + b"\x08\x00" + ipv4.IPv4(src, dst, protocol, 20 + len(body)).pack() + body


def is_data(frame: bytes) -> bool:
    return frame[wire_frame.TYPE_AT] == homa.DATA


# -- replay ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("profile", "overlay"), [("smt", False), ("homa", False), ("linux", False), ("smt", True),
                                                  ("homa", True)])
def test_replays_are_never_delivered(profile: str, overlay: bool) -> None:
    rig = Rig(profile, overlay=overlay)
    for number in range(20):
        rig.request(content(number, 1 + 700 * number))
    rig.run()
    assert rig.answered() == 20
    recorded = list(rig.sent_frames)
    Random(3).shuffle(recorded)
    for from_client, frame in recorded * 2:
        rig.inject(from_client, frame)
    rig.run()
    assert len(rig.delivered) == 20
    assert rig.server.endpoint.counters.replays > 0
    rig.assert_empty()
    # Control: a server that forgot everything but its keys does deliver the recording.
    fresh = make_side(SERVER_IP, SERVER_PORT, profile, demo_keys(profile), None, None, overlay)
    fresh.receive([f for from_client, f in rig.sent_frames if from_client], rig.now)
    events = 0
    while (event := fresh.endpoint.next_event()) is not None:
        events += isinstance(event, Request)
    assert events == 20


def test_a_forged_id_does_not_move_the_replay_window() -> None:
    """The kernel module moves its window before it authenticates; one packet then blocks a client."""
    rig = Rig("smt")
    rig.request(b"first")
    rig.run()
    genuine = next(f for from_client, f in rig.sent_frames if from_client and is_data(f))
    for far in range(2**40, 2**40 + 20_000, 2):
        rig.inject(True, rebuild(genuine, sender_id=far))
    rig.run()
    rig.request(b"second")
    rig.run()
    assert rig.answered() == 2
    assert rig.server.endpoint.counters.records_failed >= 10_000


# -- truncation ------------------------------------------------------------------------------------------


def shorten_to(length: int) -> object:
    def tamper(from_client: bool, frame: bytes) -> list[bytes]:
        if from_client and is_data(frame):
            return [rebuild(frame, message_length=length, incoming=length)]
        return [frame]
    return tamper


#: Sealed bytes of the first record at MTU 1500: a message cut there consists of whole records.
FIRST_RECORD = 8640


def test_truncation_at_a_record_border_is_detected() -> None:
    rig = Rig("smt", tamper=shorten_to(FIRST_RECORD))  # type: ignore[arg-type]
    rig.request(content(1, 30_000))
    rig.run()
    assert rig.delivered == []
    assert rig.answered() == 0
    assert rig.server.endpoint.counters.truncated > 0
    rig.assert_empty()
    # Control: with nothing sealed the same attacker gets a short message delivered.
    rig = Rig("homa", tamper=shorten_to(FIRST_RECORD))  # type: ignore[arg-type]
    rig.request(content(1, 30_000))
    rig.run()
    assert [len(d) for d in rig.delivered] == [FIRST_RECORD]


@given(length=st.integers(1, 29_999))
def test_truncation_anywhere_is_detected(length: int) -> None:
    rig = Rig("smt", tamper=shorten_to(length))  # type: ignore[arg-type]
    rig.request(content(1, 30_000))
    rig.run()
    assert rig.delivered == []


def test_truncation_for_a_while_costs_time_only() -> None:
    until = 20_000_000
    rig: Rig
    cut = shorten_to(FIRST_RECORD)
    rig = Rig("smt", tamper=lambda c, f: cut(c, f) if rig.now < until else [f])  # type: ignore[operator]
    rig.request(content(1, 30_000))
    rig.run()
    assert rig.answered() == 1
    assert rig.now > until


# -- forgery ---------------------------------------------------------------------------------------------


def forgeries(frame: bytes, from_client: bool, rand: Random, proof: bool) -> list[tuple[bool, bytes]]:
    """What an attacker who sees ``frame`` might add: (to the server?, frame)."""
    _sport, _dport, *_rest = homa.COMMON.unpack_from(frame, wire_frame.TRANSPORT_OFFSET)
    sender = int.from_bytes(frame[54:62], "big")
    client_id = sender & ~1
    port = 0x8000
    again = homa.Resend(SERVER_PORT, port, client_id | 1, rand.randrange(9000), rand.randrange(9000), 7)
    to_client = [
        control(homa.Busy(SERVER_PORT, port, client_id | 1), False),
        control(homa.Unknown(SERVER_PORT, port, client_id | 1), False),
        control(homa.NeedAck(SERVER_PORT, port, client_id | 1), False),
        control(homa.NeedAck(SERVER_PORT, port, (client_id | 1) + 20), False),
        control(homa.Grant(SERVER_PORT, port, client_id | 1, rand.randrange(2**32), 3), False),
        control(again, False),
        control(homa.Cutoffs(SERVER_PORT, port, client_id | 1, tuple(rand.randrange(2**32) for _ in range(8)), 9),
                False),
    ]
    entries = tuple(homa.AckEntry(client_id + 2 * i, port, SERVER_PORT) for i in range(4))
    to_server = [
        control(homa.Ack(port, SERVER_PORT, client_id, entries), True, trailer=bytes(16) if proof else b""),
        control(homa.Ack(port, SERVER_PORT, client_id), True, trailer=rand.randbytes(16) if proof else b""),
        control(homa.Unknown(port, SERVER_PORT, client_id), True),
        control(homa.Freeze(port, SERVER_PORT, client_id), True),
        control(homa.Busy(port, SERVER_PORT, client_id), True),
    ]
    out = [(False, f) for f in to_client] + [(True, f) for f in to_server]
    if is_data(frame):
        body = frame[:wire_frame.PAYLOAD_AT]
        garbage = rand.randbytes(len(frame) - wire_frame.PAYLOAD_AT)
        out += [(from_client, body + garbage),
                (from_client, rebuild(frame, message_length=rand.randrange(1, 60_000))),
                (from_client, rebuild(body + garbage, message_length=len(garbage))),
                (from_client, rebuild(frame, low=rand.randrange(30_000))),
                (from_client, rebuild(frame, epoch=rand.randrange(256))),
                (from_client, rebuild(body + garbage, packet_index=rand.randrange(6))),
                (from_client, rebuild(frame, packet_offset=rand.randrange(9000), flags=1)),
                # The next RPC's id, before its owner uses it.
                (from_client, rebuild(body + garbage, sender_id=sender + 2))]
    return out


@given(seed=st.integers(0, 2**32), asks=st.lists(st.integers(4, 30_000), min_size=1, max_size=5),
       rate=st.floats(0.05, 0.6))
# Forged BUSYs kept the client silent while the server asked in vain for an ACK, and gave up.
@example(seed=4339, asks=[223, 4330, 27, 211, 42], rate=0.1875)
def test_forged_packets_kill_no_rpc(seed: int, asks: list[int], rate: float) -> None:
    rand = Random(seed)
    rig: Rig

    def inject(from_client: bool, frame: bytes) -> list[bytes]:
        for to_server, forged in forgeries(frame, from_client, rand, proof=True):
            if rand.random() < rate:
                # Some overtake the genuine packet.
                rig.inject(to_server, forged, rand.randrange(2 * DELAY_NS))
        return [frame]

    # Seeing every packet, the attacker could go on for ever: let it have the first 100.
    left = 100

    def bounded(from_client: bool, frame: bytes) -> list[bytes]:
        nonlocal left
        left -= 1
        return inject(from_client, frame) if left >= 0 else [frame]

    rig = Rig("smt", tamper=bounded)
    for number, size in enumerate(asks):
        rig.request(content(number, size))
    rig.run()
    assert rig.answered() == len(asks)
    rig.assert_empty()


def test_forged_ack_control() -> None:
    """Without a proof a forged ACK does kill an RPC: the test above can fail."""
    def attack(rig: Rig) -> None:
        forged = control(homa.Ack(0x8000, SERVER_PORT, 2), True, trailer=bytes(16))
        def tamper(from_client: bool, frame: bytes) -> list[bytes]:
            if not from_client and is_data(frame):
                rig.inject(True, forged)
                return []
            return [frame]
        rig._tamper = tamper
        rig.request(content(1, 100))
        while not rig.server.endpoint.counters.responses_sent:
            rig.step()
        for _ in range(4):
            rig.step()
        rig._tamper = None
        rig.run()

    lost, kept = Rig("homa"), Rig("smt")
    attack(lost)
    attack(kept)
    assert lost.answered() == 0
    assert kept.answered() == 1
    assert kept.server.endpoint.counters.acks_forged > 0


# -- floods ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("spread", "max_bytes", "full"), [(0x2000, 4_000_000, "server_rpcs"),
                                                           (0xFFFF, 50_000, "rx_bytes")])
def test_a_flood_of_requests_is_bounded_and_displaces_itself(spread: int, max_bytes: int, full: str) -> None:
    bounds = {"server_rpcs": 200, "rx_bytes": max_bytes}
    params = TransportParams(max_rpcs_per_host=200, max_rx_bytes_per_host=max_bytes)
    rig = Rig("smt", params)
    rig.request(content(0, 100))
    rig.run()
    genuine = next(f for from_client, f in rig.sent_frames if from_client and is_data(f))
    rand = Random(1)
    for number in range(3000):
        rig.inject(True, rebuild(genuine, sender_id=2**30 + 2 * number, message_length=500_000,
                                 low=rand.randrange(spread)), number)
    rpc = rig.request(content(1, 20_000))
    peak = dict.fromkeys(bounds, 0)
    while not rig.outcomes[rpc]:
        assert rig.step()
        snapshot = rig.server.endpoint.snapshot()
        peak = {name: max(value, snapshot[name]) for name, value in peak.items()}
    rig.run()
    assert rig.answered() == 2
    assert all(peak[name] <= bound for name, bound in bounds.items())
    # The flood did reach the bound it was meant to.
    assert peak[full] > bounds[full] * 0.8
    assert rig.server.endpoint.counters.evicted > 0
    rig.assert_empty()


def test_spoofed_ports_make_no_lasting_peers() -> None:
    rig = Rig("smt")
    rig.request(content(0, 100))
    rig.run()
    genuine = next(f for from_client, f in rig.sent_frames if from_client and is_data(f))
    for port in range(1, 6000):
        rig.inject(True, rebuild(genuine, sport=port, message_length=5000), port)
    rig.run()
    assert rig.server.endpoint.snapshot()["peers"] <= 1025
    rig.request(content(1, 100))
    rig.run()
    assert rig.answered() == 2


# -- keys ------------------------------------------------------------------------------------------------


class NonceOracle:
    """Knows nothing of sessions: (direction, epoch, message, record) must always stand for the same bytes."""

    def __init__(self) -> None:
        self.seen: dict[tuple[object, ...], bytes] = {}
        self.epochs: set[int] = set()

    def look(self, frames: list[tuple[bool, bytes]]) -> None:
        """Check single-packet DATA, whose payload is one record."""
        for from_client, frame in frames:
            if not is_data(frame):
                continue
            _ip, packet, payload = wire_frame.parse_untrusted(frame, homa.SMT)
            assert isinstance(packet, homa.Data)
            assert packet.message_length == len(payload)
            self.epochs.add(packet.epoch)
            digest = hashlib.sha256(payload).digest()
            key = (from_client, packet.epoch, packet.sender_id)
            assert self.seen.setdefault(key, digest) == digest, f"nonce of {key} used twice"


def test_key_updates_under_load_and_loss() -> None:
    from smtstack.nic.impairments import ImpairmentRates

    def keys() -> PairKeys:
        return PairKeys({}, SessionParams(key_update_records=50), default=bytes(32))

    rig = Rig("smt", rates=ImpairmentRates(drop=0.03, duplicate=0.03, reorder=0.1), seed=4, keys=keys)
    for number in range(1500):
        rig.request(content(number, 60), from_client=number % 3 > 0)
        for _ in range(3):
            rig.step()
    rig.run()
    assert rig.answered() == 1500
    rig.assert_empty()
    oracle = NonceOracle()
    oracle.look(rig.sent_frames)
    assert len(oracle.epochs) > 20


def test_nonce_oracle_control() -> None:
    """Two processes that start over with one key file: what the key file's documentation forbids."""
    oracle = NonceOracle()
    rigs = []
    for text in (b"first process", b"second process"):
        rig = Rig("smt")
        rig.request(text)
        rig.run()
        rigs.append(rig)
    oracle.look(rigs[0].sent_frames)
    with pytest.raises(AssertionError, match="used twice"):
        oracle.look(rigs[1].sent_frames)


def test_wrong_key_delivers_nothing() -> None:
    secrets = iter((b"a" * 32, b"b" * 32))
    rig = Rig("smt", keys=lambda: PairKeys({}, default=next(secrets)))
    rig.request(b"secret")
    rig.run()
    assert rig.answered() == 0
    assert rig.delivered == []
    assert rig.server.endpoint.counters.records_failed > 0
    rig.assert_empty()


def test_no_key_no_communication() -> None:
    from smtstack.errors import ConfigError

    rig = Rig("smt", keys=lambda: PairKeys({frozenset((1, 2)): bytes(32)}))
    with pytest.raises(ConfigError, match=r"no key for 10\.0\.0\.2"):
        rig.request(b"secret")
    assert rig.sent_frames == []
    rig.run()
    assert rig.sent_frames == []
