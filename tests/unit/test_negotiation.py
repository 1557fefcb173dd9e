"""Before there is a session: what waits, what leaves early, what is held, and how handshakes pass by all that."""

from __future__ import annotations

from random import Random

import pytest

from smtstack.crypto.epochs import NO_KEYS, SessionParams, SmtSession
from smtstack.crypto.keys import EarlySecrets, PlainKeys
from smtstack.errors import LocalError
from smtstack.transport.events import Reason, Response
from smtstack.transport.params import TransportParams
from smtstack.transport.segment import Segment
from smtstack.transport.states import State
from smtstack.wire import homa
from smtstack.wire.frame import FLAGS_AT, is_handshake
from tests.ends import BACK, FORWARD, TICK, Ends
from tests.fake_negotiator import Fake
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT

#: Of 0-RTT sessions: what seals the first flight, and what all else.
EARLY, LATER = bytes(range(32, 64)), bytes(range(64, 96))


# -- waiting -----------------------------------------------------------------------------------------------


def test_requests_wait_and_start_in_order():
    ends = Ends()
    rpcs = [ends.ask(b"request %d" % n) for n in range(5)]
    ends.run(ticks=1000)
    assert ends.fake.wanted == [(SERVER, SERVER_PORT)]
    assert ends.frames[True] == []
    assert {rpc.state for rpc in rpcs} == {State.WAITING}
    assert {rpc.id for rpc in rpcs} == {0}
    assert ends.client.endpoint.snapshot()["rpcs"] == ends.client.endpoint.snapshot()["waiting"] == 5
    ends.install(False)
    ends.install(True)
    ends.run()
    assert [e.data for rpc in rpcs if isinstance(e := ends.end_of(rpc), Response)] == [
        (b"request %d" % n)[::-1] for n in range(5)]
    assert ends.delivered == [b"request %d" % n for n in range(5)]
    assert [rpc.id for rpc in rpcs] == [2, 4, 6, 8, 10]
    ends.empty()


def test_a_refusal_ends_what_waits_and_says_why():
    ends = Ends()
    rpcs = [ends.ask(b"x%d" % n) for n in range(3)]
    ends.client.endpoint.refuse(SERVER, SERVER_PORT, "the certificate expired", ends.now)
    ends.run()
    assert {ends.failure(rpc) for rpc in rpcs} == {(Reason.NO_SESSION, "the certificate expired")}
    assert ends.frames[True] == []
    assert ends.client.endpoint.counters.failed == 3
    ends.empty()
    # The next request begins anew.
    ends.ask(b"again")
    assert ends.fake.wanted == [(SERVER, SERVER_PORT)] * 2


def test_the_answer_may_come_before_want_returns():
    for early in (False, True):
        ends = Ends()
        ends.fake.on_want = lambda e=ends, early=early: e.install(True, early=early)  # type: ignore[misc]
        rpc = ends.ask(b"at once")
        assert rpc.state is State.OUTGOING
    ends = Ends()
    ends.fake.on_want = lambda: ends.client.endpoint.refuse(SERVER, SERVER_PORT, "no certificate", 0)
    rpc = ends.ask(b"never")
    assert rpc.state is State.DEAD
    ends.run()
    assert ends.failure(rpc) == (Reason.NO_SESSION, "no certificate")


def test_a_waiting_request_can_be_aborted():
    ends = Ends()
    first, second = ends.ask(b"first"), ends.ask(b"second")
    ends.client.endpoint.abort(first)
    ends.client.endpoint.abort(first)
    ends.install(False)
    ends.install(True)
    ends.run()
    assert ends.failure(first) == (Reason.ABORTED, "")
    assert isinstance(ends.end_of(second), Response)
    assert ends.delivered == [b"second"]
    ends.empty()


def test_waiting_has_no_deadline_of_its_own_and_starts_with_fresh_timers():
    ends = Ends()
    rpc = ends.ask(b"patient")
    ends.run(ticks=10_000)
    assert ends.ended[rpc] == []
    ends.install(True)  # the server's is still missing
    ends.run(ticks=20)
    ends.install(False)
    ends.run()
    assert isinstance(ends.end_of(rpc), Response)


@pytest.mark.parametrize("size", [0, 1_000_001])
def test_impossible_lengths_are_refused_at_once(size):
    ends = Ends()
    with pytest.raises(LocalError, match="1 to 1000000"):
        ends.client.endpoint.send_request(SERVER, SERVER_PORT, bytes(size), 0)
    assert ends.fake.wanted == []
    ends.empty()


# -- 0-RTT -------------------------------------------------------------------------------------------------


def early_sessions() -> tuple[SmtSession, SmtSession]:
    """A client's before the answer, and the server's."""
    params = SessionParams()
    client = SmtSession(EarlySecrets(EARLY, b"", FORWARD, params.cipher, True).keys, params)
    server = SmtSession(EarlySecrets(EARLY, LATER, BACK, params.cipher, False).keys, params)
    server.update_keys()
    return client, server


def complete(client: SmtSession) -> None:
    client.complete(EarlySecrets(EARLY, LATER, FORWARD, client.params.cipher, True).keys)
    client.update_keys()


@pytest.mark.parametrize("size", [50, 5000, 40_000])
@pytest.mark.parametrize("answer_first", [False, True])
def test_early_data_and_the_responses_to_it(size, answer_first):
    ends = Ends()
    client, server = early_sessions()
    first = ends.ask(bytes(size))
    ends.install(True, client, early=True)
    second = ends.ask(b"also early")
    ends.run(ticks=3)  # the server knows nothing of the session
    assert ends.delivered == []
    assert ends.frames[False] == []
    assert ends.server.endpoint.counters.frames_held > 0
    ends.install(False, server)
    if answer_first:
        complete(client)
        ends.install(True, client)
    ends.run(ticks=3)  # responses come, and stay closed
    if not answer_first:
        assert not ends.ended[first] + ends.ended[second]
        assert ends.client.endpoint.counters.frames_held > 0
        complete(client)
        ends.install(True, client)
    third = ends.ask(b"late")
    asks = ends.ask(b"the server asks", from_client=False)
    ends.run()
    assert all(isinstance(ends.end_of(rpc), Response) for rpc in (first, second, third, asks))
    epochs = {frame[44] for frame in ends.frames[True] if frame[47] == homa.DATA}
    assert epochs == {0, 1}
    # Whatever the server asks, and the answers to that, are forward-secret.
    assert asks.key >> 64 == third.key >> 64 == 1
    ends.empty()


def test_early_rpcs_are_patient_and_ask_again_when_the_answer_is_there():
    ends = Ends()
    client, server = early_sessions()
    rpc = ends.ask(b"early")
    ends.wire = lambda frame: []
    ends.install(True, client, early=True)
    ends.run(ticks=500)
    assert ends.ended[rpc] == []
    assert len(ends.frames[True]) == 1  # no RESEND: no answer could be opened
    ends.wire = lambda frame: [frame]
    ends.install(False, server)
    complete(client)
    ends.install(True, client)
    ends.run()
    assert isinstance(ends.end_of(rpc), Response)
    ends.empty()


def test_refused_early_data():
    ends = Ends()
    client, _server = early_sessions()
    key = client.current.tx
    rpcs = [ends.ask(b"waits first")]
    ends.install(True, client, early=True)
    rpcs.append(ends.ask(b"never waited"))
    ends.run(ticks=3)
    ends.client.endpoint.refuse(SERVER, SERVER_PORT, "the ticket was revoked", ends.now)
    ends.server.endpoint.refuse(CLIENT, CLIENT_PORT, "", ends.now)
    ends.run()
    assert {ends.failure(rpc) for rpc in rpcs} == {(Reason.NO_SESSION, "the ticket was revoked")}
    assert ends.delivered == []
    assert key.retired
    assert client.current.tx is NO_KEYS
    with pytest.raises(LocalError, match="session is over"):
        client.schedule(1)
    ends.empty()


def test_an_early_session_that_another_replaces_is_not_sent_again():
    ends = Ends()
    client, _server = early_sessions()
    early = ends.ask(b"may have been executed")
    ends.install(True, client, early=True)
    ends.install(False)
    ends.install(True)
    late = ends.ask(b"under the other")
    ends.run()
    assert ends.failure(early)[0] is Reason.SESSION_ENDED
    assert isinstance(ends.end_of(late), Response)
    assert ends.delivered == [b"under the other"]
    ends.empty()


def test_no_answer_is_opened_and_no_key_updated_before_the_handshake_ends():
    client, _server = early_sessions()
    client.update_keys()
    assert client.begin_rpc()[0].epoch == 0
    client.next_id = client.id_limit
    with pytest.raises(LocalError, match="handshake has not ended"):
        client.begin_rpc()
    assert client.request_keys(1) is None


# -- held frames -------------------------------------------------------------------------------------------


def test_held_frames_are_forgotten_in_time():
    ends = Ends(TransportParams(held_ticks=50))
    ends.install(True)
    ends.ask(b"to a server that does not know us")
    ends.run(ticks=10)
    server = ends.server.endpoint
    assert server.snapshot()["held"] == server.counters.frames_held > 0
    ends.run()
    assert server.snapshot()["held"] == 0
    assert server.counters.frames_held_dropped == server.counters.frames_held
    assert server.counters.packets_received == server.counters.frames_held


def test_held_frames_have_a_bound_and_the_oldest_go_first():
    ends = Ends(TransportParams(max_held_bytes=20_000, link_mbps=100_000))
    ends.install(True)
    for number in range(100):
        ends.ask(b"%4d" % number + bytes(796))
    while ends.move():
        pass
    server = ends.server.endpoint
    held = server.snapshot()["held"]
    assert 0 < held <= 20_000 // 1100
    assert held + server.counters.frames_held_dropped == 100
    received = server.counters.packets_received
    ends.install(False)
    assert server.counters.packets_received == received  # counted once
    ends.move()
    assert [int(d[:4]) for d in ends.delivered] == list(range(100 - held, 100))
    ends.run()
    assert all(isinstance(ends.end_of(rpc), Response) for rpc in ends.asked)
    ends.empty()


def test_strangers_displace_frames_but_leave_no_state():
    ends = Ends(TransportParams(max_held_bytes=100_000))
    ends.install(True)
    ends.ask(b"x")
    frame, = ends.client.transmit(0)
    rng = Random(1)
    for _ in range(2000):
        forged = frame[:26] + rng.randbytes(4) + frame[30:34] + rng.randbytes(2) + frame[36:]
        ends.server.endpoint.handle_packet(forged, 0)
    state = ends.server.endpoint.snapshot()
    assert 0 < state.pop("held") <= 100_000 // 256
    assert not any(state.values())


# -- the handshake plane -----------------------------------------------------------------------------------


def flagged(frame: bytes) -> bytes:
    return frame[:FLAGS_AT] + bytes((frame[FLAGS_AT] | homa.HANDSHAKE,)) + frame[FLAGS_AT + 1:]


@pytest.mark.parametrize("kind", [homa.DATA, homa.RESEND, homa.ACK])
def test_flagged_frames_are_the_negotiators_and_nobody_elses(kind):
    source = Ends(keys=PlainKeys, profile="homa")
    source.ask(b"plain")
    frame, = source.client.transmit(0)
    if kind != homa.DATA:
        packet = (homa.Resend(CLIENT_PORT, SERVER_PORT, 2, 0, 100, 7) if kind == homa.RESEND else
                  homa.Ack(CLIENT_PORT, SERVER_PORT, 2, (), 0, bytes(16)))
        frame = frame[:16] + (20 + len(packet.pack())).to_bytes(2, "big") + frame[18:34] + packet.pack()
    assert not is_handshake(frame)
    assert is_handshake(flagged(frame))
    ends = Ends()
    fake = ends.fakes[1]
    assert isinstance(fake, Fake)
    for installed in (False, True):
        fake.heard.clear()
        ends.server.endpoint.handle_packet(flagged(frame), 0)
        assert list(fake.heard) == [flagged(frame)]
        state = ends.server.endpoint.snapshot()
        assert state.pop("peers") == installed
        assert not any(state.values())
        ends.install(False)
    wrong = flagged(frame[:33] + bytes((frame[33] ^ 1,)) + frame[34:])  # another address
    ends.server.endpoint.handle_packet(wrong, 0)
    assert len(fake.heard) == 1
    # Without a negotiator they are nobody's.
    plain = Ends(keys=PlainKeys, profile="homa").server.endpoint
    plain.handle_packet(flagged(frame), 0)
    assert plain.counters.handshakes_unexpected == 1
    assert plain.snapshot()["peers"] == 0


def test_the_negotiators_segments_go_first_and_its_timers_run():
    ends = Ends()
    ends.install(True)
    ends.ask(b"data")
    hello = Segment(SERVER, 0, bytes(40), b"hello")
    ends.fake.outgoing.append(hello)
    assert ends.client.endpoint.poll_transmit(0) is hello
    assert ends.client.endpoint.poll_transmit(0) is not None
    assert ends.client.endpoint.poll_transmit(0) is None
    assert ends.client.endpoint.next_timeout() == 15 * TICK
    ends.fake.wake = 3
    assert ends.client.endpoint.next_timeout() == 3
    ends.client.endpoint.handle_timeout(4)
    assert ends.fake.fired == [4]
