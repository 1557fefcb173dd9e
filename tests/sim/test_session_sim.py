"""Sessions that begin under load, on bad paths, from both ends at once, and again: all requests, once each."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import ImpairmentRates
from smtstack.session.established import MODES
from smtstack.session.manager import Role
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, make_side
from smtstack.transport.events import Failed, Reason, Request, Response
from smtstack.transport.params import TransportParams
from smtstack.wire.frame import FLAGS_AT, TRANSPORT_OFFSET, is_handshake
from smtstack.wire.homa import PLACED
from tests.certificates import A, Authority, B
from tests.handshakes import Hosts, known, to_client, to_server
from tests.rig import Rig

PATIENT = TransportParams(timeout_resends=1000)
CANARY = b"*canary of the plaintext*"
EARLY = ("ticket", "ticket-fs", "psk", "psk-fs")
EPOCH_AT = TRANSPORT_OFFSET + 10
rates = st.builds(ImpairmentRates, drop=st.sampled_from((0.0, 0.05, 0.2)), duplicate=st.sampled_from((0.0, 0.2)),
                  reorder=st.sampled_from((0.0, 0.3)), jitter_ns=st.sampled_from((0, 50_000)))


def messages(count: int, size: int = 40) -> list[bytes]:
    """All different, all full of canaries."""
    return [(b"%d " % n + CANARY * (size // len(CANARY) + 1))[:max(size, 8)] for n in range(count)]


@settings(max_examples=60)
@given(mode=st.sampled_from(MODES), path=rates, seed=st.integers(0, 1000), count=st.integers(1, 30),
       size=st.sampled_from((10, 1000, 20_000)))
def test_requests_that_wait_for_a_session_end_once_each(mode, path, seed, count, size):
    hosts = Hosts(mode).resumable()
    rig = hosts.rig(params=PATIENT, rates=path, seed=seed)
    for data in messages(count, size):
        rig.request(data)
    rig.run()
    assert rig.answered() == count
    client, server = rig.managers
    assert client.counters()["sessions"] == server.counters()["sessions"] == 1
    name = "early_accepted" if mode in EARLY else "handshakes"
    # A repeated hello makes no second session, whatever the path did to it.
    assert client.counters()[name] == server.counters()[name] == 1
    assert client.counters()["handshakes_failed"] == server.counters()["handshakes_failed"] == 0


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_sent_in_clear(mode):
    rig = Hosts(mode).resumable().rig()
    for data in messages(5, 5000):
        rig.request(data)
    rig.run()
    # A server asks whom it knows.
    if mode != "tls":
        rig.request(CANARY + b" asked by the server", from_client=False)
        rig.run()
    assert rig.answered() == (5 if mode == "tls" else 6)
    assert not [frame for _from, frame in rig.sent_frames if CANARY in frame]


def test_a_canary_in_clear_is_found():
    """The control of the test above."""
    rig = Rig("homa")
    rig.request(messages(1)[0])
    rig.run()
    assert [frame for _from, frame in rig.sent_frames if CANARY in frame]


@pytest.mark.parametrize("nic", [
    NicConfig(tls_hw_tx_offload=True), NicConfig(tso=False),
    NicConfig(tso_seq=True, tls_hw_tx_offload=True, queues=4)])
@pytest.mark.parametrize("mode", ["mtls", "psk-fs"])
def test_every_device_carries_handshakes(mode, nic):
    rig = Hosts(mode).resumable().rig(nic=nic)
    for data in messages(8, 10_000):
        rig.request(data)
    rig.run()
    assert rig.answered() == 8
    assert not [frame for _from, frame in rig.sent_frames if CANARY in frame]


def test_a_chain_that_takes_several_packets():
    """Two authorities between the hosts' certificates and the root: flights of more than one packet."""
    root = Authority(name="root")
    middle = Authority(name="middle", parent=Authority(name="upper", parent=root))
    hosts = Hosts("mtls", middle.identity("a", A), middle.identity("b", B))
    rig = hosts.rig(params=PATIENT, rates=ImpairmentRates(drop=0.1, reorder=0.2), seed=3)
    for data in messages(3):
        rig.request(data)
    rig.run()
    assert rig.answered() == 3
    first = [f for from_client, f in rig.sent_frames if not from_client and is_handshake(f)]
    assert len(first) >= 2
    assert sum(map(len, first)) > 1500


@pytest.mark.parametrize("mode", EARLY)
def test_data_leaves_right_behind_the_hello(mode):
    rig = Hosts(mode).resumable().rig()
    rig.request(b"in the first flight")
    frames = rig.client.transmit(rig.now)
    kinds = [is_handshake(f) for f in frames]
    assert kinds[0]
    assert kinds == sorted(kinds, reverse=True)
    assert not kinds[-1]


@pytest.mark.parametrize("mode", ["tls", "mtls"])
def test_nothing_but_handshakes_leaves_before_a_tls_server_answered(mode):
    rig = Hosts(mode).rig()
    rig.request(b"waits")
    assert all(map(is_handshake, rig.client.transmit(rig.now)))


@pytest.mark.parametrize("mode", EARLY)
def test_data_may_overtake_the_hello(mode):
    late = [0]

    def hold_hello(from_client: bool, frame: bytes) -> list[bytes]:
        if from_client and is_handshake(frame) and not late[0]:
            late[0] += 1
            rig.inject(True, frame, 2_000_000)
            return []
        return [frame]

    rig = Hosts(mode).resumable().rig(tamper=hold_hello)
    for data in messages(4, 3000):
        rig.request(data)
    rig.run()
    assert late[0] == 1
    assert rig.answered() == 4
    assert rig.server.endpoint.counters.frames_held > 0
    assert rig.server.endpoint.counters.resends_sent == 0


@pytest.mark.parametrize("mode", ["ticket-fs", "psk-fs"])
def test_requests_after_the_answer_are_forward_secret(mode):
    rig = Hosts(mode).resumable().rig()
    rig.request(b"early")
    rig.run()
    before = len(rig.sent_frames)
    rig.request(b"later")
    rig.run()
    rig.request(b"from the server", from_client=False)
    rig.run()
    assert rig.answered() == 3
    sealed = [f for _from, f in rig.sent_frames if not is_handshake(f) and f[FLAGS_AT] in (0, PLACED)]
    assert {f[EPOCH_AT] for _from, f in rig.sent_frames[:before] if not is_handshake(f)} == {0}
    assert sealed
    client, server = rig.managers
    assert known(client.info(*to_server())).epoch == known(server.info(*to_client(rig))).epoch == 1


@settings(max_examples=40)
@given(mode=st.sampled_from(MODES[1:]), path=rates, seed=st.integers(0, 1000),
       gap=st.sampled_from((0, 3_000, 8_000)))
def test_both_ends_may_begin_at_once(mode, path, seed, gap):
    """TLS handshakes that cross lose nothing; of hellos that cross, the requests sent under one may fail."""
    hosts = Hosts(mode)
    hosts.publish_client()
    rig = hosts.rig(params=PATIENT, rates=path, seed=seed)
    for data in messages(3):
        rig.request(data)
    rig.now += gap
    for data in messages(3, 60):
        rig.request(data, from_client=False)
    rig.run()
    good = rig.answered()
    for failed in rig.failures():
        assert failed.reason in (Reason.NO_SESSION, Reason.SESSION_ENDED)
        assert mode in EARLY
    client, server = rig.managers
    assert client.counters()["sessions"] == server.counters()["sessions"]
    for number in range(2):
        # One after the other: they do not cross again.
        rig.request(b"and then %d" % number, from_client=number == 0)
        rig.run()
    assert rig.answered() == good + 2
    assert client.counters()["sessions"] == server.counters()["sessions"] == 1


def test_crossing_tls_handshakes_are_no_failures():
    rig = Hosts("mtls").rig()
    rig.request(b"from here")
    rig.request(b"from there", from_client=False)
    rig.run()
    assert rig.answered() == 2
    for manager in rig.managers:
        assert (manager.counters()["handshakes"], manager.counters()["handshakes_failed"]) == (1, 0)
    # The lower address asked.
    assert known(rig.managers[0].info(*to_server())).is_client


def restart(rig, hosts: Hosts, server: bool) -> None:
    """One end forgets everything but what is on its disk."""
    manager = hosts.server_manager() if server else hosts.client_manager()
    old = rig.server if server else rig.client
    fresh = make_side(SERVER_IP if server else CLIENT_IP, old.endpoint.port, "smt", manager, PATIENT, None)
    if server:
        rig.server = fresh
        rig.managers = rig.managers[0], manager
    else:
        rig.client = fresh
        rig.managers = manager, rig.managers[1]


@pytest.mark.parametrize("mode", MODES)
def test_a_server_that_restarts_is_found_again(mode):
    hosts = Hosts(mode).resumable()
    rig = hosts.rig(params=TransportParams(timeout_resends=3))
    rig.request(b"first")
    rig.run()
    restart(rig, hosts, server=True)
    lost = rig.request(b"into the void")
    rig.run()
    assert rig.failure(lost).reason is Reason.TIMEOUT
    assert rig.managers[0].counters()["sessions_lost"] == 1
    again = rig.request(b"again")
    rig.run()
    assert isinstance(rig.outcomes[again][0], Response)


@pytest.mark.parametrize("mode", MODES)
def test_a_client_that_restarts_gets_a_new_session(mode):
    hosts = Hosts(mode).resumable()
    rig = hosts.rig()
    rig.request(b"first")
    rig.run()
    restart(rig, hosts, server=False)
    rig.request(b"second")
    rig.run()
    assert rig.answered() == 2
    assert rig.managers[1].counters()["sessions"] == 1
    assert rig.server.endpoint.snapshot()["peers"] == 1


@pytest.mark.parametrize("mode", MODES)
def test_a_closed_session_leaves_nothing_and_the_next_request_begins_another(mode):
    hosts = Hosts(mode).resumable()
    rig = hosts.rig()
    for round_number in range(3):
        rig.request(b"round %d" % round_number)
        rig.run()
        assert rig.managers[0].close(*to_server(), rig.now)
        rig.run()
        assert rig.managers[0].closing() == 0
        for manager, side in zip(rig.managers, (rig.client, rig.server), strict=True):
            assert manager.counters()["sessions"] == 0
            assert {n: v for n, v in {**manager.snapshot(), **side.endpoint.snapshot()}.items() if v} == {}
    assert rig.answered() == 3
    assert not rig.managers[0].close(*to_server(), rig.now)


def test_a_server_closes_sessions_that_are_idle_and_nobody_minds():
    hosts = Hosts("mtls", server={"idle_ns": 3_000_000_000})
    rig = hosts.rig()
    rig.request(b"first")
    rig.run()
    assert [m.counters()["sessions"] for m in rig.managers] == [0, 0]
    assert rig.managers[1].counters()["sessions_idle"] == 1
    rig.request(b"second")
    rig.run()
    assert rig.answered() == 2


def test_a_session_is_not_idle_while_a_request_is_served():
    hosts = Hosts("mtls", server={"idle_ns": 1_000_000_000})
    rig = hosts.rig(params=PATIENT)
    rig.request(b"first")
    while not rig.delivered:
        rig.client.receive(rig.server.transmit(rig.now), rig.now)
        rig.server.receive(rig.client.transmit(rig.now), rig.now)
        event = rig.server.endpoint.next_event()
        if isinstance(event, Request):
            break
    for second in range(5):
        rig.server.endpoint.handle_timeout(second * 1_000_000_000)
    assert rig.managers[1].counters()["sessions"] == 1
    assert isinstance(event, Request)
    rig.server.endpoint.abort(event.rpc)
    for second in range(5, 8):
        rig.server.endpoint.handle_timeout(second * 1_000_000_000)
    assert rig.managers[1].counters()["sessions"] == 0


def test_requests_that_are_aborted_while_they_wait_are_never_sent():
    rig = Hosts("mtls").rig()
    kept, dropped = rig.request(b"kept"), rig.request(b"dropped")
    rig.client.endpoint.abort(dropped)
    rig.run()
    assert isinstance(rig.outcomes[kept][0], Response)
    assert rig.failure(dropped).reason is Reason.ABORTED
    assert rig.delivered == [b"kept"]


def test_a_server_that_is_not_there_is_given_up_after_the_limit():
    hosts = Hosts("mtls", client={"handshake_ns": 300_000_000})
    rig = hosts.rig(tamper=lambda from_client, frame: [])
    rpc = rig.request(b"anybody?")
    rig.run()
    failed = rig.failure(rpc)
    assert (failed.reason, failed.detail) == (Reason.NO_SESSION, "the handshake took longer than 0.3 s")
    assert rig.managers[0].failure(*to_server()) == failed.detail
    # Another request tries anew.
    rig.request(b"still nobody?")
    rig.run()
    assert rig.managers[0].counters()["handshakes_failed"] == 2


# -- workers that share a port ---------------------------------------------------------------------------


class Workers:
    """Takes the place of a server's side: three processes behind the kernel's fan-out."""

    def __init__(self, hosts: Hosts, shares: bool = True) -> None:
        self.told: list[bytes] = []

        def share(message: bytes) -> bool:
            self.told.append(message)
            if shares:
                for manager in self.managers[1:]:
                    manager.deliver(message, 0)
            return True

        self.managers = [hosts.server_manager(role=Role.LEADER, share=share),
                         hosts.server_manager(role=Role.FOLLOWER), hosts.server_manager(role=Role.FOLLOWER)]
        self.sides = [make_side(SERVER_IP, SERVER_PORT, "smt", m, PATIENT, None) for m in self.managers]
        self.served = [0, 0, 0]

    @staticmethod
    def worker(frame: bytes) -> int:
        if is_handshake(frame):
            return 0
        return (int.from_bytes(frame[TRANSPORT_OFFSET + 20:TRANSPORT_OFFSET + 28], "big") >> 1) % 3


def run_workers(rig, workers: Workers, steps: int = 3000) -> None:
    """Client and workers until all is quiet, in time steps of 0.1 ms."""
    for _step in range(steps):
        rig.now += 100_000
        client = rig.client
        for frame in client.transmit(rig.now):
            number = workers.worker(frame)
            workers.sides[number].receive([frame], rig.now)
        for number, side in enumerate(workers.sides):
            while (event := side.endpoint.next_event()) is not None:
                assert isinstance(event, Request)
                workers.served[number] += 1
                rig.delivered.append(event.data)
                side.endpoint.send_reply(event.rpc, bytes(b ^ 0x5A for b in event.data) + b"!", rig.now)
            client.receive(side.transmit(rig.now), rig.now)
            side.endpoint.handle_timeout(rig.now)
        client.endpoint.handle_timeout(rig.now)
        while (event := client.endpoint.next_event()) is not None:
            rig.outcomes[event.rpc].append(event)
        if rig.outcomes and all(rig.outcomes.values()):
            return


@pytest.mark.parametrize("mode", MODES)
def test_workers_share_what_the_first_negotiated(mode):
    hosts = Hosts(mode).resumable()
    rig = hosts.rig(params=PATIENT)
    workers = Workers(hosts)
    for data in messages(9):
        rig.request(data)
    run_workers(rig, workers)
    assert rig.answered() == 9
    assert workers.served == [3, 3, 3]
    assert len(workers.told) == 1
    rig.managers[0].close(*to_server(), rig.now)
    rig.outcomes.clear()
    run_workers(rig, workers, 10)
    assert [m.counters()["sessions"] for m in workers.managers] == [0, 0, 0]


@pytest.mark.parametrize("mode", MODES)
def test_workers_take_a_client_that_restarts(mode):
    hosts = Hosts(mode).resumable()
    rig = hosts.rig(params=PATIENT)
    workers = Workers(hosts)
    for number in range(2):
        for data in messages(6, 20 + number):
            rig.request(data)
        run_workers(rig, workers)
        assert rig.answered() == 6 + 6 * number
        restart(rig, hosts, server=False)
    assert workers.served == [4, 4, 4]
    for manager, side in zip(workers.managers, workers.sides, strict=True):
        assert manager.counters()["sessions"] == side.endpoint.snapshot()["peers"] == 1


def test_workers_that_are_told_nothing_serve_nothing():
    """The control: the others of the first worker have no keys of their own."""
    hosts = Hosts("mtls")
    rig = hosts.rig(params=PATIENT)
    workers = Workers(hosts, shares=False)
    for data in messages(9):
        rig.request(data)
    run_workers(rig, workers, 100)
    assert workers.served == [3, 0, 0]


def test_workers_only_answer():
    hosts = Hosts("mtls")
    rig = hosts.rig()
    workers = Workers(hosts)
    rig.request(b"?")
    run_workers(rig, workers)
    for side in workers.sides:
        endpoint = side.endpoint
        assert endpoint.snapshot()["peers"] == 1
        endpoint.send_request(CLIENT_IP + 7, 9, b"who are you", rig.now)
        assert endpoint.next_timeout() == 0
        endpoint.handle_timeout(rig.now)
        failed = endpoint.next_event()
        assert isinstance(failed, Failed)
        assert failed.reason is Reason.NO_SESSION
        assert "only answer" in failed.detail


def test_a_worker_that_does_not_keep_up_means_no_session():
    hosts = Hosts("mtls")
    rig = hosts.rig()
    manager = hosts.server_manager(role=Role.LEADER, share=lambda message: False)
    rig.server = make_side(SERVER_IP, SERVER_PORT, "smt", manager, replace(PATIENT), None)
    rpc = rig.request(b"?")
    rig.run()
    assert "(busy): a worker of this server does not keep up" in rig.failure(rpc).detail
    assert rig.delivered == []


def test_workers_that_took_what_another_did_not_give_it_up():
    hosts = Hosts("ticket")
    rig = hosts.rig(params=PATIENT)
    workers = Workers(hosts)
    first, second, third = workers.managers

    def share(message: bytes) -> bool:
        # The third takes nothing more.
        second.deliver(message, rig.now)
        return False

    first._registry.share = share
    for data in messages(9):
        rig.request(data)
    run_workers(rig, workers, 200)
    assert [m.counters()["sessions"] for m in workers.managers] == [0, 0, 0]
    assert third.counters()["sessions_begun"] == 0
    assert all("does not keep up" in text for text in rig.details())
    assert len(rig.failures()) == 9
