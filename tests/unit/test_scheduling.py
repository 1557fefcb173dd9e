"""SRPT on both sides, grants, priorities, pacing: numbers one can work out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtstack.crypto.epochs import NO_KEYS, EpochKeys, Session, SessionParams
from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError
from smtstack.sim.pair import SERVER_IP, SERVER_PORT
from smtstack.transport.grants import GrantScheduler
from smtstack.transport.params import INT_MAX, TransportParams
from smtstack.transport.rpc import Host, Peer, Rpc
from smtstack.transport.stream_message import StreamIn
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4
from tests.rig import Rig
from tests.unit.test_engine import content


def parsed(frames: list[tuple[bool, bytes]], profile: str = "homa") -> list[tuple[bool, ipv4.IPv4, homa.Packet]]:
    """(from the client?, IP header, packet) of every frame."""
    return [(c, *wire_frame.parse_untrusted(f, homa.FORMATS[profile])[:2]) for c, f in frames]


def data_of(rig: Rig, from_client: bool = True) -> list[tuple[ipv4.IPv4, homa.Data]]:
    return [(ip, p) for c, ip, p in parsed(rig.sent_frames) if c == from_client and isinstance(p, homa.Data)]


def grants_of(rig: Rig) -> list[homa.Grant]:
    return [p for _c, _ip, p in parsed(rig.sent_frames) if isinstance(p, homa.Grant)]


# -- sender ----------------------------------------------------------------------------------------------


def test_shortest_message_first() -> None:
    """Three requests at once: after what the pacer let out at once, packets come by remaining size."""
    params = TransportParams(link_mbps=1000, unsched_bytes=60_000, max_gso_size=1500, pacer_fifo_fraction=0)
    rig = Rig("homa", params)
    for number, size in enumerate((50_000, 20_000, 5_000)):
        rig.request(content(number, size))
    rig.run()
    order = [p.message_length for _ip, p in data_of(rig)]
    first = {size: order.index(size) for size in (50_000, 20_000, 5_000)}
    last = {size: len(order) - order[::-1].index(size) for size in (50_000, 20_000, 5_000)}
    assert last[5_000] < last[20_000] < last[50_000]
    assert first[20_000] >= last[5_000] - 1
    assert order.count(50_000) == 35


def test_short_message_bypasses_the_pacer() -> None:
    params = TransportParams(link_mbps=10, unsched_bytes=60_000, max_gso_size=1500)
    rig = Rig("homa", params)
    rig.request(content(0, 50_000))
    rig.step()
    rig.request(content(1, 500))
    rig.request(content(2, 1400))
    rig.step()
    sizes = [p.message_length for _ip, p in data_of(rig)]
    assert sizes.count(50_000) < 35
    assert 500 in sizes
    assert 1400 not in sizes


def test_pacer_keeps_to_the_link_rate() -> None:
    params = TransportParams(link_mbps=1000, unsched_bytes=1_000_000, max_gso_size=1500)
    rig = Rig("homa", params)
    rig.request(content(0, 300_000))
    rig.run()
    frames = [f for c, f in rig.sent_frames if c and f[wire_frame.TYPE_AT] == homa.DATA]
    wire_ns = sum((len(f) + 24) * 8 for f in frames)
    # At 1000 Mbit/s a bit is a nanosecond. The reply is sent when the last byte has arrived.
    assert wire_ns - 20_000 <= rig.now <= wire_ns * 1.1 + 40_000_000
    sent_by = {}
    rig = Rig("homa", params)
    rig.request(content(0, 300_000))
    while rig.step():
        sent_by[rig.now] = sum((len(f) + 24) * 8 for c, f in rig.sent_frames if c)
    # Never more given to the NIC than the link could have sent, plus the queue the pacer allows.
    assert all(bits <= now + params.max_nic_queue_ns + 1524 * 8 for now, bits in sent_by.items() if now < wire_ns)


def test_oldest_message_gets_its_share() -> None:
    """With SRPT alone the longest message waits for all others; 5 % of the bytes are its own."""
    def finished_first(fraction: int) -> int:
        params = TransportParams(link_mbps=1000, unsched_bytes=200_000, max_gso_size=1500,
                                 pacer_fifo_fraction=fraction)
        rig = Rig("homa", params)
        rig.request(content(0, 60_000))
        rig.step()
        for number in range(1, 60):
            rig.request(content(number, 30_000))
        rig.run()
        order = [p.message_length for _ip, p in data_of(rig)]
        return order[:len(order) // 2].count(60_000)

    assert finished_first(200) > finished_first(0)


# -- receiver --------------------------------------------------------------------------------------------


def test_unscheduled_then_granted() -> None:
    params = TransportParams(max_gso_size=1500, unsched_bytes=10_000)
    rig = Rig("homa", params)
    rig.request(content(0, 40_000))
    rig.run()
    assert rig.answered() == 1
    packets = data_of(rig)
    # 10000 bytes, rounded up to whole packets of 1440.
    assert {p.incoming for _ip, p in packets} == {10_080}
    grants = [g for g in grants_of(rig) if g.sender_id % 2]
    offsets = [g.offset for g in grants]
    assert offsets == sorted(set(offsets))
    assert offsets[-1] == 40_000
    # One message alone: the lowest priority.
    assert {g.priority for g in grants} == {0}
    tos = [ip.tos >> 5 for ip, p in packets]
    assert set(tos[:7]) == {6}
    assert set(tos[7:]) == {0}


def test_grants_stay_within_max_incoming() -> None:
    params = TransportParams(max_gso_size=1500, unsched_bytes=3_000, max_incoming=9_000, max_overcommit=8,
                             max_rpcs_per_peer=8)
    rig = Rig("homa", params)
    for number in range(8):
        rig.request(content(number, 50_000))
    peak = 0
    while rig.step():
        peak = max(peak, rig.server.endpoint.snapshot()["granted_bytes"])
    assert rig.answered() == 8
    # What was announced unscheduled is counted even beyond the budget; grants are not added to it.
    assert peak <= max(9_000, 8 * 4_320)


def incoming(host: Host, birth: int, length: int, received: int) -> Rpc:
    """A server RPC of which ``received`` bytes arrived, none granted beyond."""
    keys = EpochKeys(0, NO_KEYS, NO_KEYS, 16)
    rpc = Rpc(Peer(host, 1, 2, Session(), 1_000_000), 3, 3, keys, False, birth, 0)
    rpc.inm = StreamIn(length)
    rpc.inm.received = rpc.inm.granted = received
    return rpc


def decisions(params: TransportParams, rpcs: list[Rpc]) -> list[tuple[int, int, int]]:
    """(birth, offset, priority) of every grant."""
    scheduler = GrantScheduler(params)
    for rpc in rpcs:
        scheduler.update(rpc)
    return [(g.rpc.birth, g.offset, g.priority) for g in scheduler.decide()]


GRANTS = TransportParams(unsched_bytes=10_000, max_overcommit=3, max_sched_prio=3, grant_fifo_fraction=0)


def test_fewest_bytes_remaining_first_at_ranked_priorities() -> None:
    lengths = (90_000, 40_000, 70_000, 50_000)
    rpcs = [incoming(Host(n), n, length, 1_000) for n, length in enumerate(lengths)]
    # Three of four messages, on levels 2, 1, 0: level 3 is kept for a newcomer with less to bring.
    assert decisions(GRANTS, rpcs) == [(1, 11_000, 2), (3, 11_000, 1), (2, 11_000, 0)]
    # One alone uses the lowest; four and more fill all levels, the surplus shares level 0.
    assert decisions(GRANTS, [incoming(Host(1), 0, 90_000, 1_000)]) == [(0, 11_000, 0)]
    many = [incoming(Host(n), n, 50_000 + n, 1_000) for n in range(6)]
    wide = TransportParams(unsched_bytes=10_000, max_overcommit=6, max_sched_prio=3, grant_fifo_fraction=0)
    assert [p for _b, _o, p in decisions(wide, many)] == [3, 2, 1, 0, 0, 0]


def test_ties_go_to_the_older_message() -> None:
    rpcs = [incoming(Host(n), birth, 50_000, 1_000) for n, birth in enumerate((7, 3, 5))]
    assert [b for b, _o, _p in decisions(GRANTS, rpcs)] == [3, 5, 7]


def test_one_message_of_a_host_at_a_time() -> None:
    host = Host(1)
    rpcs = [incoming(host, n, 50_000 + n, 1_000) for n in range(3)] + [incoming(Host(2), 9, 99_000, 1_000)]
    assert [b for b, _o, _p in decisions(GRANTS, rpcs)] == [0, 9]


def test_grant_budget() -> None:
    params = TransportParams(unsched_bytes=10_000, max_incoming=15_000, max_overcommit=8, grant_fifo_fraction=0)
    rpcs = [incoming(Host(n), n, 50_000, 1_000) for n in range(3)]
    assert [(b, o) for b, o, _p in decisions(params, rpcs)] == [(0, 11_000), (1, 6_000)]


def test_a_small_step_waits_unless_it_is_the_last() -> None:
    params = TransportParams(unsched_bytes=10_000, grant_increment=4_000, grant_fifo_fraction=0)
    small, large, last = (incoming(Host(n), n, length, 1_000) for n, length in enumerate((50_000, 60_000, 12_000)))
    for rpc, granted in ((small, 7_001), (large, 7_000), (last, 11_000)):
        assert rpc.inm is not None
        rpc.inm.granted = granted
    last.inm.received = 2_000  # type: ignore[union-attr]
    assert [(b, o) for b, o, _p in decisions(params, [small, large, last])] == [(2, 12_000), (1, 11_000)]
    # More than half of the window does not count: somebody would wait for nothing.
    assert decisions(replace(params, grant_increment=1 << 20), [incoming(Host(1), 0, 50_000, 1_000)])


def test_larger_grants_are_fewer_and_leave_nothing_undone() -> None:
    def grants(increment: int) -> int:
        rig = Rig("smt", TransportParams(max_gso_size=1500, unsched_bytes=10_000, grant_increment=increment,
                                         max_incoming=12_000))
        for number in range(6):
            rig.request(content(number, 60_000))
        rig.run()
        assert rig.answered() == 6
        return len(grants_of(rig))

    assert grants(4_000) < grants(1) / 2


def test_fifo_share_of_grants() -> None:
    def granted_early(fraction: int) -> int:
        params = TransportParams(max_gso_size=1500, unsched_bytes=1_500, max_overcommit=1,
                                 grant_fifo_fraction=fraction, fifo_grant_increment=5_000)
        rig = Rig("homa", params)
        oldest = rig.request(content(0, 200_000))
        rig.step()
        for number in range(1, 20):
            rig.request(content(number, 40_000))
        rig.run()
        assert rig.answered() == 20
        grants = grants_of(rig)
        return sum(g.sender_id == oldest.id + 1 for g in grants[:len(grants) // 2])

    assert granted_early(200) > granted_early(0)


def test_several_messages_of_a_host_get_a_window_each() -> None:
    host = Host(1)
    params = TransportParams(unsched_bytes=10_000, max_rpcs_per_peer=2, max_sched_prio=3, grant_fifo_fraction=0)
    rpcs = [incoming(host, n, 50_000 + n, 1_000) for n in range(3)] + [incoming(Host(2), 9, 99_000, 1_000)]
    assert decisions(params, rpcs) == [(0, 11_000, 2), (1, 11_000, 1), (9, 11_000, 0)]
    # Together they stay within the budget, and within the overcommitment.
    tight = TransportParams(unsched_bytes=10_000, max_rpcs_per_peer=4, max_incoming=25_000, max_overcommit=3,
                            grant_fifo_fraction=0)
    rpcs = [incoming(host, n, 50_000 + n, 1_000) for n in range(4)]
    assert [(b, o) for b, o, _p in decisions(tight, rpcs)] == [(0, 11_000), (1, 11_000), (2, 6_000)]


# -- incast ----------------------------------------------------------------------------------------------

INCAST = TransportParams(incast_threshold=2, unsched_bytes=30_000, max_nic_queue_ns=10**9)


def unscheduled(rig: Rig) -> list[tuple[bool, int]]:
    """(marked?, bytes sent without a grant) of every response, in the order of their requests."""
    said = {p.sender_id: (p.incast, p.incoming) for _ip, p in data_of(rig, False) if not p.retransmit}
    return [said[sender_id] for sender_id in sorted(said)]


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_responses_to_marked_requests_come_by_grant(profile: str, offload: bool) -> None:
    rig = Rig(profile, INCAST, offload)
    for number in range(4):
        rig.request(content(number, 20_000))
    rig.run()
    assert rig.answered() == 4
    marked: dict[int, set[bool]] = {}
    for _ip, packet in data_of(rig):
        marked.setdefault(packet.sender_id, set()).add(packet.incast)
    # All packets of a request say the same.
    assert [marked[sender_id] for sender_id in sorted(marked)] == [{False}, {False}, {True}, {True}]
    # Two are under way when the third and fourth begin. One packet is 1440 bytes.
    whole = 20_001 + (0 if profile == "homa" else 3 * 22)
    assert unscheduled(rig) == [(False, whole)] * 2 + [(True, 1440)] * 2
    assert rig.client.endpoint.counters.incast_marked == 2
    rig.assert_empty()
    rig.sent_frames.clear()
    rig.request(content(9, 20_000))
    rig.run()
    # They are over: this one is alone.
    assert unscheduled(rig) == [(False, whole)]


def test_requests_are_not_held_back_by_their_own_mark() -> None:
    rig = Rig("homa", INCAST)
    for number in range(4):
        rig.request(content(number, 20_000))
    rig.step()
    assert {(p.incast, p.incoming) for _ip, p in data_of(rig)} == {(False, 20_000), (True, 20_000)}


def test_nothing_is_marked_by_default() -> None:
    rig = Rig("smt")
    for number in range(100):
        rig.request(content(number, 100))
    rig.run()
    assert not any(p.incast for c in (True, False) for _ip, p in data_of(rig, c))
    assert rig.client.endpoint.counters.incast_marked == 0


@pytest.mark.parametrize(("wanted", "packets"), [(1, 1), (500, 1), (1440, 1), (1441, 2), (4_000, 3)])
def test_what_comes_unscheduled_is_whole_packets(wanted: int, packets: int) -> None:
    rig = Rig("homa", TransportParams(incast_threshold=1, incast_unsched_bytes=wanted, unsched_bytes=30_000))
    for number in range(2):
        rig.request(content(number, 20_000))
    rig.run()
    assert unscheduled(rig)[1] == (True, packets * 1440)


def test_profile_linux_has_no_mark() -> None:
    with pytest.raises(ConfigError, match="incast_threshold"):
        Rig("linux", TransportParams(incast_threshold=1))


def test_a_marked_response_that_single_packets_cannot_number_goes_as_ever() -> None:
    """14 records of 1440 bytes do not hold it; of 10 KB they do."""
    rig = Rig("smt", INCAST, keys=lambda: demo_keys("smt", SessionParams(index_bits=4)))
    for number, size in enumerate((100, 101, 19_000, 30_000)):
        rig.request(content(number, size))
    rig.run()
    assert rig.answered() == 4
    marked = unscheduled(rig)[2:]
    assert marked[0] == (True, 1440)
    assert marked[1][1] > 20_000


# -- priorities ------------------------------------------------------------------------------------------


def test_unscheduled_priority_by_cutoffs() -> None:
    host = Host(1)
    assert host.unscheduled_priority(1) == host.unscheduled_priority(900_000) == 6
    host.cutoffs = (INT_MAX, 0, 0, 0, 1_000_000, 15_000, 2_800, 200)
    borders = {1: 7, 200: 7, 201: 6, 2800: 6, 2801: 5, 15_000: 5, 15_001: 4, 1_000_000: 4, 1_000_001: 0}
    assert {length: host.unscheduled_priority(length) for length in borders} == borders


@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_cutoffs_are_learnt_and_echoed(profile: str) -> None:
    rig = Rig(profile)
    rig.request(content(0, 64))
    rig.run()
    rig.request(content(1, 65))
    rig.run()
    first, second = (x for x in parsed(rig.sent_frames, profile) if x[0] and isinstance(x[2], homa.Data))
    assert isinstance(first[2], homa.Data)
    assert isinstance(second[2], homa.Data)
    assert (first[2].cutoff_version, first[1].tos >> 5) == (0, 6)
    assert (second[2].cutoff_version, second[1].tos >> 5) == (1, 7)
    cutoffs = [p for c, _ip, p in parsed(rig.sent_frames, profile) if isinstance(p, homa.Cutoffs)]
    assert len(cutoffs) == 2
    assert cutoffs[0].cutoffs == TransportParams().unsched_cutoffs


# -- acknowledgements ------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_six_rpcs_an_ack_and_the_rest_on_demand(profile: str) -> None:
    rig = Rig(profile)
    for number in range(8):
        rig.request(content(number, 100))
    while any(not events for events in rig.outcomes.values()):
        rig.step()
    rig.step()
    rig.step()
    assert rig.server.endpoint.snapshot()["rpcs"] == 2
    rig.run()
    acks = [p for _c, _ip, p in parsed(rig.sent_frames, profile) if isinstance(p, homa.Ack)]
    assert [len(a.acks) for a in acks] == [5, 0, 0]
    kinds = [type(p) for _c, _ip, p in parsed(rig.sent_frames, profile)]
    assert kinds.count(homa.NeedAck) == 2
    rig.assert_empty()


def test_acks_ride_in_requests_of_profile_linux() -> None:
    rig = Rig("linux")
    for number in range(4):
        rig.request(content(number, 100))
        while not list(rig.outcomes.values())[-1]:
            rig.step()
    # Each request acknowledged the one before it: one RPC is left at the server.
    assert rig.server.endpoint.snapshot()["rpcs"] == 1
    rig.run()
    rig.assert_empty()


def test_need_ack_for_an_rpc_not_begun_is_refused() -> None:
    """An acknowledgement of a future RPC would let whoever recorded it kill that RPC."""
    rig = Rig("smt")
    rig.request(b"one")
    rig.run()
    before = len(rig.sent_frames)
    body = homa.NeedAck(SERVER_PORT, rig.client.endpoint.port, 5).pack()
    ip = ipv4.IPv4(SERVER_IP, rig.client.endpoint.ip, homa.PROTO_HOMA, 20 + len(body)).pack()
    rig.inject(False, bytes(12) + b"\x08\x00" + ip + body)
    rig.run()
    assert len(rig.sent_frames) == before


@pytest.mark.parametrize("bad", [{"mtu": 100}, {"max_gso_size": 70_000}, {"num_priorities": 9}, {"link_mbps": 0},
                                 {"max_sched_prio": 8}, {"cutoff_version": 0}, {"unsched_cutoffs": (1, 2)},
                                 {"resend_ticks": 0}, {"incast_threshold": -1}, {"incast_unsched_bytes": 0}])
def test_bad_parameters_are_named(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TransportParams(**bad)  # type: ignore[arg-type]
