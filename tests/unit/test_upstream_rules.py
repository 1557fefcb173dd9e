"""Rules of profile upstream one by one: what a packet brings about, and what it does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from smtstack.crypto.epochs import NO_SESSION
from smtstack.crypto.keys import Endpoints, UpstreamKeys, demo_keys
from smtstack.crypto.replay import RECENT_TICKS, RecentIds
from smtstack.errors import ConfigError
from smtstack.io import key_file
from smtstack.nic.descriptors import Route, Send
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Failed, Reason, Request, Response
from smtstack.transport.message import InMessage
from smtstack.transport.params import SOFTWARE, UPSTREAM, TransportParams, software
from smtstack.transport.rpc import Host, Peer, Rpc
from smtstack.transport.segment import Segment
from smtstack.transport.stream_message import StreamIn
from smtstack.transport.upstream_endpoint import UpstreamEndpoint, make_endpoint
from smtstack.transport.upstream_message import UpstreamOut
from smtstack.transport.upstream_rules import UpstreamGrants
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, upstream
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.ipv4 import IPv4, address
from tests.pair import pattern

US, PEER, OTHER = address("10.0.0.1"), address("10.0.0.2"), address("10.0.0.3")
PORT, THEIRS = 2000, 3000
MS = 1_000_000
SERVER_ID = 0x2000


class End:
    """One endpoint, and everybody else by hand. Nothing is paced."""

    def __init__(self, params: TransportParams = UPSTREAM) -> None:
        params = replace(params, max_nic_queue_ns=10**12)
        self.endpoint = make_endpoint(US, PORT, "upstream", demo_keys("upstream"), params)
        self.now = 0
        self.events: list[object] = []
        self.out: list[Segment] = []

    def hear(self, packet: homa.Packet, payload: bytes = b"", *, protocol: int = 146, ip: int = PEER) -> None:
        """A packet comes."""
        transport = upstream.pack(packet) + payload
        header = IPv4(ip, US, protocol, 20 + len(transport))
        self.endpoint.handle_packet(Ethernet(bytes(6), bytes(6)).pack() + header.pack() + transport, self.now)
        self.last_event()

    def last_event(self) -> object:
        """What the application heard last; None: nothing yet."""
        while (event := self.endpoint.next_event()) is not None:
            self.events.append(event)
        return self.events[-1] if self.events else None

    def data(self, sender_id: int, message: bytes, at: int = 0, stop: int | None = None, *, sport: int = THEIRS,
             protocol: int = 146, acked: int = 0, ip: int = PEER, version: int = 1) -> None:
        """DATA comes, of a message whose first 40,000 bytes need no grant."""
        part = message[at:stop]
        self.hear(homa.Data(sport, PORT, sender_id, len(message), min(len(message), 40_000), at, acked_id=acked,
                            acked_port=PORT if acked else 0, cutoff_version=version), part, protocol=protocol,
                  ip=ip)

    def flush(self) -> list[Segment]:
        """What goes out now, and has not been looked at."""
        self.out += self.endpoint.drain(self.now)
        return self.out

    def sent(self) -> list[Segment]:
        """What went out since this was asked, or :meth:`said`."""
        segments = self.flush()
        self.out = []
        return segments

    def said(self, kind: type | None = None) -> list[homa.Packet]:
        """Packets that went out since this was asked, CUTOFFS apart."""
        packets = []
        for segment in self.sent():
            transport = segment.header + segment.sealed()
            packets.append(upstream.parse_untrusted(transport))
        return [p for p in packets if (isinstance(p, kind) if kind else not isinstance(p, homa.Cutoffs))]

    def ask(self, size: int, port: int = THEIRS) -> Rpc:
        """A request of ours, and what it sends at once is gone."""
        rpc = self.endpoint.send_request(PEER, port, pattern(size), self.now)
        self.said()
        return rpc

    def answer(self, size: int) -> Rpc:
        """Of the request that came last."""
        request = self.events.pop()
        assert isinstance(request, Request)
        self.endpoint.send_reply(request.rpc, pattern(size), self.now)
        return request.rpc

    def pass_ms(self, ms: float) -> None:
        """Time passes, and timers act when they are due."""
        end = self.now + int(ms * MS)
        self.flush()
        while (at := self.endpoint.next_timeout()) is not None and at <= end:
            self.now = max(self.now, at)
            self.endpoint.handle_timeout(self.now)
            self.flush()
        self.now = end

    def server(self, packet: type, rpc: Rpc, *fields: int) -> homa.Packet:
        """A control packet of the server of an RPC of ours."""
        made: homa.Packet = packet(THEIRS, PORT, rpc.id | 1, *fields)
        return made

    def client(self, packet: type, *fields: int, sender_id: int = SERVER_ID) -> homa.Packet:
        """A control packet of the client of an RPC that we serve."""
        made: homa.Packet = packet(THEIRS, PORT, sender_id, *fields)
        return made


def places(packets: list[homa.Packet]) -> list[int]:
    return [p.segment_offset for p in packets if isinstance(p, homa.Data)]


# -- RESEND ----------------------------------------------------------------------------------------------


def test_a_resend_of_the_rest_brings_all_that_was_sent() -> None:
    end = End()
    rpc = end.ask(100_000)
    end.hear(end.server(homa.Resend, rpc, 0, -1, 7))
    again = end.said()
    assert places(again) == [*range(0, 40_000, 1424)]
    assert all(p.retransmit == 1 and p.placed and p.incoming == 40_000 for p in again if isinstance(p, homa.Data))


def test_what_overlaps_the_range_goes_whole_and_keeps_its_boundaries() -> None:
    end = End()
    rpc = end.ask(100_000)
    end.hear(end.server(homa.Resend, rpc, 1423, 2, 5))
    assert places(end.said()) == [0, 1424]
    end.hear(end.server(homa.Resend, rpc, 39_900, 100, 5))
    # The last packet before the unscheduled bytes end is a short one.
    assert places(end.said()) == [39_872]


def test_a_range_beyond_what_was_granted_is_a_grant() -> None:
    end = End()
    rpc = end.ask(100_000)
    end.hear(end.server(homa.Resend, rpc, 40_000, 1000, 7))
    # It begins where nothing was sent: BUSY, and what it allows.
    busy, *data = end.said()
    assert isinstance(busy, homa.Busy)
    assert places(data) == [40_000]
    end.hear(end.server(homa.Resend, rpc, 41_000, 3000, 7))
    assert sorted(places(end.said())) == [40_000, 41_424, 42_848]


def test_beyond_the_end_of_a_message_is_nothing_to_wait_for() -> None:
    end = End()
    rpc = end.ask(64)
    end.hear(end.server(homa.Resend, rpc, 64, 1000, 7))
    assert end.said() == []


def test_a_server_that_is_not_done_is_busy() -> None:
    end = End()
    end.data(SERVER_ID, pattern(3000), 0, 1424)
    end.hear(end.client(homa.Resend, 0, -1, 7))
    assert [type(p) for p in end.said()] == [homa.Busy, homa.Resend]
    end.data(SERVER_ID, pattern(3000), 1424)
    assert len(end.events) == 1
    for _ in range(3):
        end.hear(end.client(homa.Resend, 0, -1, 7))
    assert [type(p) for p in end.said()] == [homa.Busy] * 3
    end.answer(5000)
    assert places(end.said()) == [0, 1424, 2848, 4272]
    end.hear(end.client(homa.Resend, 0, -1, 7))
    assert places(end.said()) == [0, 1424, 2848, 4272]


def test_who_does_not_know_the_rpc_says_so() -> None:
    end = End()
    end.hear(end.client(homa.Resend, 0, -1, 7))
    assert end.said() == [homa.Unknown(PORT, THEIRS, SERVER_ID | 1)]
    end.hear(homa.Resend(THEIRS, PORT, 0x77, 0, -1, 7))
    assert end.said() == [homa.Unknown(PORT, THEIRS, 0x76)]
    # Nothing else provokes it.
    for kind, *fields in ((homa.Grant, 5, 5), (homa.Busy,), (homa.Unknown,)):
        end.hear(end.client(kind, *fields))
    assert end.said() == []


def test_gaps_and_the_rest_are_asked_for_in_one_round() -> None:
    end = End()
    message = pattern(100_000)
    for at in range(0, 28_480, 1424):
        if at not in (1424, 2848, 7120):
            end.data(SERVER_ID, message, at, at + 1424)
    end.said()
    end.pass_ms(5)
    assert [(p.offset, p.length) for p in end.said() if isinstance(p, homa.Resend)] == [
        (1424, 2848), (7120, 1424), (28_480, granted_to(end, 17 * 1424) - 28_480)]


def granted_to(end: End, received: int) -> int:
    """One message alone is granted half of ``max_incoming`` beyond what is here."""
    return min(100_000, received + UPSTREAM.max_incoming // 2)


# -- UNKNOWN, BUSY, GRANT --------------------------------------------------------------------------------


def test_unknown_restarts_a_request_and_frees_a_response() -> None:
    end = End()
    rpc = end.ask(3000)
    end.hear(end.server(homa.Unknown, rpc))
    assert places(end.said()) == [0, 1424, 2848]
    # Once part of the answer is here, it is of another server's life, or forged.
    end.data(rpc.id | 1, pattern(5000), 0, 1424)
    end.hear(end.server(homa.Unknown, rpc))
    assert end.said() == []
    end = End()
    end.data(SERVER_ID, b"request")
    end.answer(64)
    end.said()
    end.hear(end.client(homa.Unknown))
    assert end.endpoint.snapshot()["rpcs"] == 0


def test_a_grant_that_repeats_is_life_and_its_priority_counts() -> None:
    end = End()
    rpc = end.ask(100_000)
    for ms in range(0, 300, 4):
        end.hear(end.server(homa.Grant, rpc, 40_000, 3))
        end.pass_ms(4)
        assert end.said() == [], ms
    end.hear(end.server(homa.Grant, rpc, 50_000, 2))
    segments = end.sent()
    assert {segment.tos for segment in segments} == {2 << 5}
    assert len(segments) == 8
    end.hear(end.server(homa.Grant, rpc, 20_000, 1))
    assert end.said() == []


@pytest.mark.parametrize("kind", [homa.Resend, homa.Unknown, homa.NeedAck])
def test_what_does_not_end_silence(kind: type) -> None:
    end = End()
    rpc = end.ask(64)
    fields = (0, -1, 7) if kind is homa.Resend else ()
    for _ in range(12):
        end.hear(end.server(kind, rpc, *fields))
        end.pass_ms(9)
        end.said()
    assert isinstance(end.last_event(), Failed)


def test_busy_does() -> None:
    end = End()
    rpc = end.ask(64)
    for _ in range(50):
        end.hear(end.server(homa.Busy, rpc))
        end.pass_ms(9)
        end.said()
    assert end.last_event() is None


def test_data_that_cannot_be_of_the_message_helps_it_nothing() -> None:
    """Somebody forged the beginning of a response, shorter than the server's: it ends, and does not hang."""
    end = End()
    rpc = end.ask(64)
    end.data(rpc.id | 1, bytes(100), 0, 50)
    for _ in range(30):
        end.data(rpc.id | 1, pattern(5000), 1424, 2848)
        end.pass_ms(5)
        end.said()
    event = end.last_event()
    assert isinstance(event, Failed)
    assert event.reason is Reason.TIMEOUT


@pytest.mark.parametrize("params", [UPSTREAM, SOFTWARE, software(10), software(1000)])
def test_a_dead_peer_is_noticed_in_the_time_that_was_said(params: TransportParams) -> None:
    end = End(params)
    end.ask(64)
    tick = params.tick_ns / MS
    end.pass_ms(params.timeout_ticks * tick - 1)
    assert end.last_event() is None
    end.pass_ms(20 * tick)
    assert isinstance(end.last_event(), Failed)
    assert params.timeout_ticks * params.tick_ns < 10_000 * MS


# -- acknowledgements ------------------------------------------------------------------------------------


def served(end: End, sender_id: int, sport: int = THEIRS, ip: int = PEER) -> Rpc:
    end.data(sender_id, b"request", sport=sport, ip=ip)
    rpc = end.answer(64)
    end.said()
    return rpc


def test_an_ack_frees_by_host_and_id() -> None:
    end = End()
    for n, port in enumerate((3000, 3001, 3002)):
        served(end, 0x100 + 2 * n, port)
    served(end, 0x100, ip=OTHER)
    entries = (homa.AckEntry(0x102, 0, PORT), homa.AckEntry(0x104, 0, PORT + 1))
    end.hear(homa.Ack(3002, PORT, 0x100, entries))
    # The other host's of the same id stays, and what is of another server's port.
    assert end.endpoint.snapshot()["rpcs"] == 2
    end.data(0x200, b"next", sport=3005, acked=0x104)
    assert end.endpoint.snapshot()["rpcs"] == 2
    # Odd ids are no client's.
    end.hear(homa.Ack(3002, PORT, 0x101, ()))
    assert end.endpoint.snapshot()["rpcs"] == 2


def test_the_sixth_goes_in_the_header() -> None:
    end = End()
    rpcs = [end.ask(64, THEIRS + n) for n in range(6)]
    for n, rpc in enumerate(rpcs):
        end.data(rpc.id | 1, b"answer", sport=THEIRS + n)
    (ack,) = end.said()
    assert isinstance(ack, homa.Ack)
    assert (ack.dport, ack.sender_id) == (THEIRS + 5, rpcs[5].id)
    assert ack.acks == tuple(homa.AckEntry(r.id, 0, THEIRS + n) for n, r in enumerate(rpcs[:5]))
    assert len(end.events) == 6
    assert all(isinstance(e, Response) for e in end.events)


def test_who_goes_acknowledges_what_is_left() -> None:
    end = End()
    for n in range(3):
        rpc = end.ask(64, THEIRS + n % 2)
        end.data(rpc.id | 1, b"answer", sport=THEIRS + n % 2)
    # Two of them rode on the next request.
    end.endpoint.acknowledge()
    assert end.said() == [homa.Ack(PORT, THEIRS, rpc.id)]
    rpcs = [end.ask(64, THEIRS + n) for n in range(3)]
    for n, rpc in enumerate(rpcs):
        end.data(rpc.id | 1, b"answer", sport=THEIRS + n)
    end.endpoint.acknowledge()
    (ack,) = end.said()
    assert isinstance(ack, homa.Ack)
    assert (ack.sender_id, [e.client_id for e in ack.acks]) == (rpcs[0].id, [r.id for r in rpcs[1:]])
    end.endpoint.acknowledge()
    assert end.said() == []


def test_acks_ride_on_responses_as_well() -> None:
    end = End()
    rpc = end.ask(64)
    end.data(rpc.id | 1, b"answer")
    end.events.clear()
    end.data(SERVER_ID, b"request")
    end.answer(64)
    (data,) = end.said()
    assert isinstance(data, homa.Data)
    assert (data.acked_id, data.acked_port) == (rpc.id, THEIRS)


def test_need_ack() -> None:
    end = End()
    rpc = end.ask(64)
    end.hear(end.server(homa.NeedAck, rpc))
    assert end.said() == [homa.Resend(PORT, THEIRS, rpc.id, 0, -1, 7)]
    end.data(rpc.id | 1, b"answer")
    end.hear(end.server(homa.NeedAck, rpc))
    assert end.said() == [homa.Ack(PORT, THEIRS, rpc.id)]
    # What it asks is odd to a server: nothing.
    end.hear(homa.NeedAck(THEIRS, PORT, SERVER_ID))
    assert end.said() == []


def test_need_acks_have_an_end() -> None:
    end = End(replace(UPSTREAM, keep_response_ticks=50))
    served(end, SERVER_ID)
    found = []
    for ms in range(60):
        end.pass_ms(1)
        found += [ms + 1 for _packet in end.said(homa.NeedAck)]
    assert found == list(range(2, 50))
    assert end.endpoint.snapshot()["rpcs"] == 0


# -- shapes ----------------------------------------------------------------------------------------------


def shapes(end: End) -> set[bool]:
    return {segment.dst > 0xFFFFFFFF for segment in end.sent()}


@pytest.mark.parametrize("own", [0, 1])
def test_each_rpc_has_the_shape_of_its_peer(own: int) -> None:
    end = End(replace(UPSTREAM, hijack_tcp=own))
    rpc = end.endpoint.send_request(PEER, THEIRS, pattern(64), 0)
    assert shapes(end) == {bool(own)}
    end.data(0x102, b"native")
    end.answer(64)
    assert shapes(end) == {False}
    end.data(0x104, b"tcp", protocol=6)
    end.answer(64)
    assert shapes(end) == {True}
    # Each keeps its own; and follows a change.
    end.hear(end.client(homa.Resend, 0, -1, 7, sender_id=0x104), protocol=6)
    end.hear(end.client(homa.Resend, 0, -1, 7, sender_id=0x102), protocol=146)
    tcp, native = end.sent()
    assert (tcp.dst > 0xFFFFFFFF, native.dst > 0xFFFFFFFF) == (True, False)
    for shape in (6, 146):
        end.hear(end.server(homa.Unknown, rpc), protocol=shape)
        assert shapes(end) == {shape == 6}
        end.pass_ms(5)
        end.sent()
    end.endpoint.send_request(PEER, THEIRS, pattern(64), end.now)
    assert shapes(end) == {bool(own)}


@pytest.mark.parametrize(("at", "value"), [(23, 17), (23, 253), (47, 0x02), (47, 0x16), (52, 0xB8), (53, 0x7C)])
@pytest.mark.parametrize("packet", [homa.Data(THEIRS, PORT, 2, 1, 1), homa.NeedAck(THEIRS, PORT, 2)])
def test_what_only_looks_like_it_is_somebody_elses(packet: homa.Packet, at: int, value: int) -> None:
    end = End()
    transport = upstream.pack(packet) + b"x" * isinstance(packet, homa.Data)
    head = Ethernet(bytes(6), bytes(6)).pack() + IPv4(PEER, US, 6, 20 + len(transport)).pack()
    frame = bytearray(head + transport)
    frame[at] = value
    end.endpoint.handle_packet(bytes(frame), 0)
    assert end.endpoint.counters.wrong_address == 1


# -- cutoffs ---------------------------------------------------------------------------------------------


def test_cutoffs_are_kept_and_their_version_echoed() -> None:
    end = End()
    rpc = end.ask(64)
    end.hear(homa.Cutoffs(THEIRS, PORT, rpc.id | 1, (0, 0, 0, 5000, 1000, 0, 0, 0), 7))
    end.endpoint.send_request(PEER, THEIRS, pattern(500), 0)
    (segment,) = end.sent()
    data = upstream.parse_untrusted(segment.header + segment.sealed())
    assert isinstance(data, homa.Data)
    assert (data.cutoff_version, segment.tos >> 5) == (7, 4)
    # What no cutoff admits goes at the lowest, not nowhere.
    end.endpoint.send_request(PEER, THEIRS, pattern(900_000), 0)
    assert {s.tos for s in end.sent()} == {0}


def test_who_has_other_cutoffs_of_ours_is_told_once_a_tick() -> None:
    end = End()
    for n in range(3):
        end.data(0x100 + 2 * n, b"x", version=0)
    assert len(end.said(homa.Cutoffs)) == 1
    end.pass_ms(1)
    end.data(0x200, b"x", version=0)
    (cutoffs,) = end.said(homa.Cutoffs)
    assert isinstance(cutoffs, homa.Cutoffs)
    assert (cutoffs.cutoffs, cutoffs.cutoff_version) == (UPSTREAM.unsched_cutoffs, 1)


# -- grants ----------------------------------------------------------------------------------------------


def incoming(host: Host, birth: int, length: int, received: int = 40_000) -> Rpc:
    rpc = Rpc(Peer(host, THEIRS, PORT, NO_SESSION, 1_000_000), 2 * birth, 2 * birth, NO_SESSION.current, False,
              birth, 0)
    rpc.inm = inm = StreamIn(length)
    inm.granted = received
    inm.received = received
    return rpc


def decide(rpcs: list[Rpc], params: TransportParams = UPSTREAM) -> list[tuple[int, int, int]]:
    grants = UpstreamGrants(params)
    for rpc in rpcs:
        grants.touch(rpc)
    return [(g.rpc.birth, g.offset, g.priority) for g in grants.decide()]


def test_the_window_is_shared_by_those_who_hold_grants() -> None:
    hosts = [Host(n) for n in range(8)]
    assert decide([incoming(hosts[0], 1, 900_000)]) == [(1, 240_000, 0)]
    assert decide([incoming(hosts[n], n + 1, 900_000 + n) for n in range(3)]) == [
        (1, 140_000, 2), (2, 140_000, 1), (3, 140_000, 0)]
    assert decide([incoming(hosts[0], 1, 900_000)], replace(UPSTREAM, window=50_000)) == [(1, 90_000, 0)]


def test_hosts_that_hold_few_grants_come_first() -> None:
    many, few = Host(1), Host(2)
    rpcs = [incoming(many, n, 100_000 + n) for n in range(1, 10)] + [incoming(few, 20, 900_000)]
    # The longest has a place, as the only one of its host; of the others the longest has none.
    assert [birth for birth, _offset, _priority in decide(rpcs)] == [*range(1, 8), 20]


def test_the_oldest_is_granted_at_the_second_highest_priority() -> None:
    grants = UpstreamGrants(replace(UPSTREAM, max_incoming=10_000_000, window=200_000))
    young, old = incoming(Host(1), 2, 3_000_000), incoming(Host(2), 1, 9_000_000)
    grants.touch(old)
    seen: set[tuple[int, int]] = set()
    for _ in range(12):
        for rpc in (young, old):
            inm = rpc.inm
            assert isinstance(inm, InMessage)
            if rpc is young:
                inm.received = inm.granted
            grants.touch(rpc)
        seen |= {(g.rpc.birth, g.priority) for g in grants.decide()}
    assert (1, 6) in seen
    assert {priority for birth, priority in seen if birth == 2} == {1}


# -- messages, ids, parameters ---------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "mss", "unasked"), [
    (1, 1424, 40_000), (40_000, 1424, 40_000), (40_001, 1424, 40_000), (39_999, 1424, 40_000),
    (1_000_000, 1424, 40_000), (5000, 1000, 1000), (5000, 1000, 1), (2848, 1424, 1424)])
def test_packets_cover_a_message_once(length: int, mss: int, unasked: int) -> None:
    data = pattern(length)
    out = UpstreamOut(data, mss, unasked)
    assert b"".join(out.payload(n) for n in range(out.count)) == data
    assert all(0 < len(out.payload(n)) <= mss for n in range(out.count))
    assert [out.start(n) for n in range(out.count)] == sorted({*range(0, min(unasked, length), mss),
                                                               *range(unasked, length, mss)})
    for offset in {0, length - 1, min(unasked, length) - 1, length // 2}:
        n = out.index_at(offset)
        assert out.start(n) <= offset < out.start(n) + len(out.payload(n))


def test_ids_are_the_hosts_not_the_sessions() -> None:
    store = UpstreamKeys(10)
    sessions = [store.session(Endpoints(1, 2, 3, port)) for port in (5, 6)]
    assert [s.begin_rpc()[1] for s in (*sessions, *sessions) if s is not None] == [10, 12, 14, 16]
    # And no two processes begin alike, or near each other.
    starts = []
    for _ in range(20):
        session = key_file.load("", "upstream").session(Endpoints(1, 2, 3, 4))
        assert session is not None
        starts.append(session.begin_rpc()[1])
    assert len(set(starts)) == 20
    assert all(start % 2 == 0 and 0 < start < 1 << 64 for start in starts)
    assert max(starts) - min(starts) > 1 << 50


def test_recent_ids_are_forgotten_by_time_and_by_number() -> None:
    guard = RecentIds(window=3)
    assert guard.mark(2)
    assert guard.is_replay(2)
    assert not guard.mark(2)
    guard.tick = RECENT_TICKS - 1
    assert guard.is_replay(2)
    guard.tick = RECENT_TICKS
    assert not guard.is_replay(2)
    for rpc_id in (10, 12, 14, 16):
        assert guard.mark(rpc_id)
    assert [guard.is_replay(n) for n in (10, 12, 14, 16)] == [False, True, True, True]


def test_the_defaults_are_those_of_the_sysctls() -> None:
    p = UPSTREAM
    assert (p.unsched_bytes, p.max_incoming, p.max_overcommit, p.window) == (40_000, 400_000, 8, 0)
    assert (p.resend_ticks, p.resend_interval, p.timeout_ticks, p.request_ack_ticks) == (5, 5, 100, 2)
    assert (p.fifo_grant_increment, p.grant_fifo_fraction) == (50_000, 50)
    assert (p.num_priorities, p.max_sched_prio) == (8, 3)
    assert (p.link_mbps, p.max_nic_queue_ns, p.throttle_min_bytes) == (25_000, 5000, 1000)
    assert (p.pacer_fifo_fraction, p.cutoff_version, p.hijack_tcp, p.max_gso_size) == (50, 1, 0, 0)
    assert p.unsched_cutoffs == (0, 0, 0, 0, 1_000_000, 15_000, 2800, 200)
    assert make_endpoint(US, PORT, "upstream", demo_keys("upstream")).params is UPSTREAM


def test_each_profile_has_its_own_kind_of_endpoint() -> None:
    assert type(make_endpoint(US, PORT, "upstream", demo_keys("upstream"))) is UpstreamEndpoint
    assert type(make_endpoint(US, PORT, "homa", demo_keys("homa"))) is Endpoint
    with pytest.raises(ConfigError, match="unknown profile 'upstream'"):
        Endpoint(US, PORT, "upstream", demo_keys("upstream"))
    with pytest.raises(ConfigError, match="incast_threshold"):
        make_endpoint(US, PORT, "upstream", demo_keys("upstream"), replace(UPSTREAM, incast_threshold=3))


# -- what a NIC that places packets does with the sequence -----------------------------------------------


@pytest.mark.parametrize("first", [0, 5000, 0xFFFFFF00])
@pytest.mark.parametrize("protocol", [6, 146])
def test_tso_seq_adds_to_the_sequence(first: int, protocol: int) -> None:
    """As hardware does: only the sequence changes, and IP ID counts."""
    header = upstream.pack(homa.Data(THEIRS, PORT, 2, 100_000, 40_000, first))
    nic = SmartNic(NicConfig(tso_seq=True))
    nic.post(0, Send(Route(Ethernet(bytes(6), bytes(6)), US, PEER, protocol), 0, header, pattern(5000), 1424))
    frames = nic.process()
    assert len(frames) == 4
    for n, frame in enumerate(frames):
        ip, packet, payload = wire_frame.parse_untrusted(frame, homa.UPSTREAM)
        assert ip.identification == n
        assert packet == homa.Data(THEIRS, PORT, 2, 100_000, 40_000, (first + 1424 * n) % (1 << 32))
        assert payload == pattern(5000)[1424 * n:1424 * (n + 1)]


def test_tso_seq_leaves_our_own_placed_packets_as_they_are() -> None:
    end = End()
    end.endpoint.send_request(PEER, THEIRS, pattern(5000), 0)
    nic = SmartNic(NicConfig(tso_seq=True))
    route = Route(Ethernet(bytes(6), bytes(6)), US, PEER, 146)
    for segment in end.sent():
        nic.post(0, Send(route, segment.tos, segment.header, segment.sealed(), segment.mss))
    packets = [wire_frame.parse_untrusted(frame, homa.UPSTREAM)[1] for frame in nic.process()]
    assert places(packets) == [0, 1424, 2848, 4272]
    assert all(isinstance(p, homa.Data) and p.placed and p.packet_offset == 0 for p in packets)
