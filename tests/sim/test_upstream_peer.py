"""RPCs with upstream Homa's module: both roles, both shapes and mixed, lost, late, dead, vanished."""

from __future__ import annotations

import struct
from dataclasses import replace
from itertools import pairwise

import pytest

from smtstack.crypto.replay import RECENT_TICKS
from smtstack.transport.events import Failed, Reason
from smtstack.transport.params import SOFTWARE, UPSTREAM, TransportParams
from smtstack.wire import homa, ipv4, upstream
from tests.golden import golden
from tests.upstream_peer import MODULE_PORT, OUR_PORT, TICK_NS, Lab, answer, boundaries, content

PARAMS = {"module": UPSTREAM, "software": SOFTWARE}
SIZES = [1, 64, 1423, 1424, 1425, 5000, 39_999, 40_000, 40_001, 41_425, 65_536, 100_000]
#: The module's sockets as a client and as a server, ours: in the shape of TCP?
SHAPES = {"native": (False, False, 0), "tcp": (True, True, 1), "we are native": (True, True, 0),
          "we are tcp": (False, False, 1), "its server only": (False, True, 0)}


def lab_of(shape: str = "native", params: TransportParams = UPSTREAM, *, loss: float = 0.0, reorder: float = 0.0,
           seed: int = 1, gro: bool = True) -> Lab:
    client_tcp, server_tcp, ours = SHAPES[shape]
    return Lab(loss=loss, reorder=reorder, seed=seed, params=replace(params, hijack_tcp=ours),
               client_tcp=client_tcp, server_tcp=server_tcp, gro=gro)


def settled(lab: Lab) -> None:
    """Nothing is left of all that at either end."""
    lab.cut(0)
    lab.run_until(lambda: not lab.module.rpcs and not lab.ours.endpoint.snapshot()["rpcs"], 100_000_000_000)
    state = lab.ours.endpoint.snapshot()
    assert not any(value for name, value in state.items() if name != "peers"), state


@pytest.mark.parametrize("ours", [True, False], ids=["we ask", "it asks"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize("loss", [0.0, 0.1, 0.25])
def test_every_rpc_is_answered(ours: bool, shape: str, params: str, loss: float) -> None:
    for reorder, under_way in ((0.0, 1), (0.2, 16)):
        lab = lab_of(shape, PARAMS[params], loss=loss, reorder=reorder, seed=under_way)
        assert lab.converse(SIZES, under_way, ours) == (len(SIZES), 0)
        client_tcp, server_tcp, ours_tcp = SHAPES[shape]
        mine, theirs = lab.protocols
        tcp, native = ipv4.PROTO_TCP, homa.PROTO_HOMA
        if ours:
            # Our requests as we are told; whatever else, as the module's server sends.
            assert theirs == {tcp if server_tcp else native}
            assert mine == {tcp if ours_tcp else native} | theirs or mine == theirs
        else:
            assert mine == theirs == {tcp if client_tcp else native}
        settled(lab)


@pytest.mark.parametrize("ours", [True, False], ids=["we ask", "it asks"])
@pytest.mark.parametrize(("sizes", "under_way", "loss"), [
    ([1_000_000], 1, 0.0), ([1_000_000, 999_999, 500_000], 3, 0.1), ([700_000], 1, 0.25),
    ([64, 20_000, 1500, 9000] * 40, 64, 0.1)])
def test_the_longest_and_many_at_once(ours: bool, sizes: list[int], under_way: int, loss: float) -> None:
    lab = lab_of(loss=loss, reorder=0.1)
    assert lab.converse(sizes, under_way, ours) == (len(sizes), 0)
    settled(lab)


def test_a_few_hundred_conversations() -> None:
    for seed in range(150):
        shape = list(SHAPES)[seed % len(SHAPES)]
        lab = lab_of(shape, loss=0.25, reorder=0.3, seed=seed)
        good, failed = lab.converse([64, 3000, 50_000, 1, 1424], 5, seed % 2 == 0)
        assert (good, failed) == (5, 0), seed


# -- what a kernel without GRO needs, and one with it gives -------------------------------------------------


@pytest.mark.parametrize("ours", [True, False], ids=["we ask", "it asks"])
def test_a_module_without_gro_reads_all_that_we_send_natively(ours: bool) -> None:
    lab = lab_of(gro=False)
    assert lab.converse(SIZES, 4, ours) == (len(SIZES), 0)
    assert lab.module.unread == 0
    assert all(packet.placed for _at, packet in lab.sent(homa.Data) if isinstance(packet, homa.Data))


def test_a_module_without_gro_reads_nothing_in_the_shape_of_tcp() -> None:
    """The control: and we say so in the time it takes the module itself."""
    lab = lab_of("we are tcp", gro=False)
    assert lab.converse([64], 1, True) == (0, 1)
    assert lab.module.unread == 20  # the request and 19 RESENDs


def test_the_sequence_is_read_where_it_says_the_place() -> None:
    lab = lab_of()
    assert lab.converse([100_000], 1, False) == (1, 0)
    assert not any(packet.placed for _at, packet in lab.heard(homa.Data) if isinstance(packet, homa.Data))


# -- how we cut ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1424, 40_000, 40_001, 100_000])
def test_packets_end_where_the_modules_do(size: int) -> None:
    lab = lab_of(loss=0.2, seed=3)
    lab.converse([size], 1, True)
    cuts = {(p.segment_offset, p.segment_offset) for _at, p in lab.sent(homa.Data) if isinstance(p, homa.Data)}
    assert {a for a, _b in cuts} == {a for a, _b in boundaries(size)}
    for _at, packet in lab.sent(homa.Data):
        assert isinstance(packet, homa.Data)
        assert packet.incoming == min(size, 40_000) or packet.retransmit
        assert packet.segment_offset + packet.packet_offset == packet.segment_offset < size


# -- silence ------------------------------------------------------------------------------------------------


def times_in(name: str, kind: int) -> list[list[float]]:
    """Of each message of the module in a capture: when packets of one type went, in ms after its first packet."""
    out: dict[int, list[float]] = {}
    begun: dict[int, float] = {}
    data = golden("pcaps", "upstream", name).read_bytes()
    at = 24
    scale = 1e6 if data[:4] == struct.pack("<I", 0xA1B23C4D) else 1e3
    while at < len(data):
        seconds, fraction, kept, _length = struct.unpack_from("<IIII", data, at)
        transport = data[at + 16 + 34:at + 16 + kept]
        at += 16 + kept
        sender = int.from_bytes(transport[20:28], "big")
        now = seconds * 1e3 + fraction / scale
        begun.setdefault(sender, now)
        if transport[upstream.TYPE_OFFSET] == kind:
            out.setdefault(sender, []).append(now - begun[sender])
    return list(out.values())


@pytest.mark.parametrize("size", [64, 100_000])
def test_a_dead_peer_is_asked_nineteen_times_and_given_up(size: int) -> None:
    lab = lab_of(loss=1.0)
    lab.ask(content(size))
    lab.run_until(lambda: bool(lab.events))
    resends = lab.sent(homa.Resend)
    assert [at // TICK_NS for at, _p in resends] == list(range(5, 100, 5))
    assert {(p.offset, p.length, p.priority) for _at, p in resends if isinstance(p, homa.Resend)} == {(0, -1, 7)}
    assert lab.now // TICK_NS == 100
    (event,) = lab.events
    assert isinstance(event, Failed)
    assert event.reason is Reason.TIMEOUT
    # All that needs no grant, once: nobody asked for it again.
    assert len(lab.sent(homa.Data)) == len([a for a, _b in boundaries(size) if a < 40_000])


def test_the_timing_of_the_module_itself() -> None:
    """In captures, where its ticks took 1.2 to 1.4 ms: it ran in an emulator. Its counts are our tests'."""
    for times in times_in("dead-peer-default-timers.pcap", homa.RESEND):
        assert len(times) == 19
        tick = (times[-1] - times[0]) / 90
        assert 1.0 < tick < 1.5
        assert all(4 < (b - a) / tick < 6.5 for a, b in pairwise(times))
    (times,) = times_in("client-vanished.pcap", homa.NEED_ACK)
    assert len(times) == 198
    assert (times[-1] - times[0]) / 197 < 2.5


def test_silence_is_the_rpcs_own() -> None:
    """The module's server is alive and answers others, but says nothing of the one."""
    lab = lab_of()
    lab.module.serving = False
    lab.ask(b"never answered, and then forgotten")
    lab.elapse(20 * TICK_NS)
    # It is in service there: BUSY, and no end.
    assert lab.heard(homa.Busy)
    lab.module.rpcs.clear()
    lab.module.serving = True
    lab.elapse(10 * TICK_NS)
    # Forgotten: UNKNOWN, so all comes once more and is answered.
    assert [len(e.data) for e in lab.events if not isinstance(e, Failed)] == [34]
    assert lab.module.delivered == [b"never answered, and then forgotten"] * 2


def test_a_vanished_client_is_asked_every_tick_but_not_for_ever() -> None:
    lab = lab_of(params=replace(UPSTREAM, keep_response_ticks=300))
    lab.module.ask([content(64)], 1)
    lab.run_until(lambda: len(lab.delivered) == 1)
    answered = lab.now // TICK_NS
    lab.cut(1.0)
    lab.elapse(400 * TICK_NS)
    ticks = [at // TICK_NS - answered for at, _p in lab.sent(homa.NeedAck)]
    assert ticks == list(range(2, 300))
    assert lab.ours.endpoint.snapshot()["rpcs"] == 0


def test_a_client_that_lives_is_kept_waiting_by_busy() -> None:
    lab = lab_of()
    lab.serving = False
    lab.module.ask([content(2000)], 1)
    lab.elapse(500 * TICK_NS)
    assert lab.module.outcomes == {}
    assert len(lab.heard(homa.Resend)) - len(lab.sent(homa.Busy)) in (0, 1)
    assert len(lab.sent(homa.Busy)) > 90
    (event,) = lab.unanswered
    lab.ours.endpoint.send_reply(event.rpc, b"late", lab.now)
    lab.run_until(lambda: bool(lab.module.outcomes))
    assert list(lab.module.outcomes.values()) == [b"late"]


# -- acknowledgements ---------------------------------------------------------------------------------------


def test_what_we_finish_is_acknowledged_on_the_next_data_or_when_five_wait() -> None:
    lab = lab_of()
    assert lab.converse([64] * 12, 1, True) == (12, 0)
    carried = [p.acked_id for _at, p in lab.sent(homa.Data) if isinstance(p, homa.Data)]
    assert carried == [0, *(n.id for n in list(lab.asked)[:-1])]  # type: ignore[attr-defined]
    assert lab.sent(homa.Ack) == []
    # Twelve at once: no DATA goes that could carry any.
    lab = lab_of()
    assert lab.converse([64] * 12, 12, True) == (12, 0)
    lab.elapse(TICK_NS)
    acks = [p for _at, p in lab.sent(homa.Ack) if isinstance(p, homa.Ack)]
    assert [len(p.acks) for p in acks] == [5, 5]
    assert {e.server_port for p in acks for e in p.acks} == {MODULE_PORT}
    settled(lab)


def test_any_port_of_a_host_acknowledges_for_all() -> None:
    """The module has one list for all its sockets: by host and id."""
    lab = lab_of()
    lab.module.ask([content(64, n) for n in range(40)], 1, new_sockets=True)
    lab.run_until(lambda: len(lab.module.outcomes) == 40)
    ports = {p.acked_id: p.sport for _at, p in lab.heard(homa.Data) if isinstance(p, homa.Data) and p.acked_id}
    assert len(ports) > 30
    # Each on the DATA of another port than its own.
    assert all(port != 0x8000 + (rpc_id - 2) // 2 for rpc_id, port in ports.items())
    assert lab.sent(homa.NeedAck) == []
    assert lab.ours.endpoint.snapshot()["rpcs"] <= 1


def test_need_ack_is_answered_at_once_for_what_nobody_here_remembers() -> None:
    lab = lab_of()
    lab.converse([64], 1, True)
    need = upstream.pack(homa.NeedAck(MODULE_PORT, OUR_PORT, 0x7654321))
    lab.module._frame(need, False)
    lab.elapse(TICK_NS)
    assert [p.sender_id for _at, p in lab.sent(homa.Ack)] == [0x7654320]


def test_need_ack_for_a_response_that_is_not_whole_brings_resends() -> None:
    lab = lab_of(seed=5)
    lab.ask(content(64))
    lab.run_until(lambda: len(lab.module.delivered) == 1)
    lab.cut(1.0)
    lab.run_until(lambda: any(True for _ in lab.heard(homa.NeedAck)))
    lab.cut(0.0)
    lab.run_until(lambda: bool(lab.events))
    assert [e.data for e in lab.events if not isinstance(e, Failed)] == [answer(content(64))]


# -- the module begins anew -----------------------------------------------------------------------------------


def test_a_module_loaded_anew_is_served_though_its_ids_begin_anew() -> None:
    lab = lab_of()
    assert lab.converse([64] * 5, 1, False) == (5, 0)
    lab.elapse((RECENT_TICKS + 100) * TICK_NS)
    again = Lab()
    again.ours = lab.ours
    again.now, again._next_tick = lab.now, lab._next_tick
    assert again.converse([100] * 5, 1, False) == (5, 0)
    assert len(again.delivered) == 5


def test_a_request_that_comes_again_late_is_not_executed_twice() -> None:
    lab = lab_of()
    assert lab.converse([64], 1, False) == (1, 0)
    first = lab.from_module[0][1]
    settled(lab)
    lab._fly(True, first)
    lab.elapse(50 * TICK_NS)
    assert len(lab.delivered) == 1
    assert lab.ours.endpoint.counters.replays == 1
