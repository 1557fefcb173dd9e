"""The rules of docs/protocol.md as exchanges: every frame, its time, and nothing else. tests/story.py says how."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import KeyStore, demo_keys
from smtstack.transport.params import SOFTWARE, TransportParams
from tests.handshakes import Hosts
from tests.story import Line, Teller, beside, lines_of, show_time, story

#: A packet is a segment, two go without a grant, and two more are granted.
SHORT = TransportParams(max_gso_size=1500, unsched_bytes=2880, window=2880)


def hosts(mode: str) -> Callable[[], KeyStore]:
    """Two managers that shake hands in this mode: one for each call."""
    return iter(Hosts(mode).managers()).__next__


# -- messages ----------------------------------------------------------------------------------------------------


def test_a_request_and_its_response():
    story("""
        ask 100
        @0us     > DATA 2 0+122 of 122
        @5us     server gets 100
        reply 200
        @5us     < CUTOFFS                      (each end says once how its priorities are to be used)
        @5us     < DATA 3 0+222 of 222
        @10us    client gets 200
        @10us    > CUTOFFS
        @2ms     < NEED_ACK 3                   (only then may the server forget the response)
        @2.005ms > ACK 2
        """)


def test_unscheduled_data_then_grants():
    """Two segments go at once; a grant is for what fits the window beyond what arrived."""
    story("""
        ask 8000
        @0us     > DATA 2 0+1440 of 8132
        @0us     > DATA 2 1440+1440 of 8132
        @5us     < CUTOFFS
        @5us     < GRANT 3 to 5760
        @10us    > DATA 2 2880+1440 of 8132
        @10us    > DATA 2 4320+1440 of 8132
        @15us    < GRANT 3 to 8132
        @20us    > DATA 2 5760+1440 of 8132
        @20us    > DATA 2 7200+932 of 8132
        @25us    server gets 8000
        stop
        """, params=SHORT)


def test_the_shortest_message_goes_first():
    """The second request, asked for later, is done first: by its sender, and by who grants."""
    story("""
        ask 9000
        ask 4000
        @0us     > DATA 4 0+1440 of 4066
        @0us     > DATA 4 1440+1440 of 4066
        @0.5us   > DATA 2 0+1440 of 9154        (the pacer lets as much go as the link sends)
        @1.7us   > DATA 2 1440+1440 of 9154
        @5us     < CUTOFFS
        @5us     < GRANT 5 to 4066
        @5.5us   < GRANT 3 to 4320
        @6.7us   < GRANT 3 to 5760
        @10us    > DATA 4 2880+1186 of 4066
        @10.5us  > DATA 2 2880+1440 of 9154
        @11.7us  > DATA 2 4320+1440 of 9154
        @15us    server gets 4000
        stop
        """, params=SHORT)


def test_packets_in_any_order():
    story("""
        ask 2500
        @0us     > DATA 2 0+1440 of 2544        late 3us
        @0us     > DATA 2 1440+1104 of 2544
        @5us     < CUTOFFS
        @8us     server gets 2500
        stop
        """, params=SHORT)


# -- loss --------------------------------------------------------------------------------------------------------


def test_what_is_lost_is_asked_for_after_15_ms():
    """Both ends are silent for as long: the server names the gap, the client just asks whether all is well."""
    story("""
        ask 4000
        @0us      > DATA 2 0+1440 of 4066
        @0us      > DATA 2 1440+1440 of 4066    lost
        @5us      < CUTOFFS
        @5us      < GRANT 3 to 4066
        @10us     > DATA 2 2880+1186 of 4066
        @15ms     > RESEND 2 0+100
        @15ms     < RESEND 3 1440+1440
        @15.005ms > DATA 2 1440+1440 of 4066 again
        @15.005ms < BUSY 3
        @15.01ms  server gets 4000
        stop
        """, params=SHORT)


def test_the_last_packet_of_a_response_is_lost():
    """The server wants an acknowledgement, which is too early; the client's timer asks for the rest."""
    story("""
        ask 10
        @0us      > DATA 2 0+32 of 32
        @5us      server gets 10
        reply 4000
        @5us      < CUTOFFS
        @5us      < DATA 3 0+1440 of 4066
        @5us      < DATA 3 1440+1440 of 4066
        @10us     > CUTOFFS
        @10us     > GRANT 2 to 4066
        @15us     < DATA 3 2880+1186 of 4066    lost
        @2ms      < NEED_ACK 3
        @12ms     < NEED_ACK 3
        @15ms     > RESEND 2 2880+1186
        @15.005ms < DATA 3 2880+1186 of 4066 again
        @15.01ms  client gets 4000
        @22ms     < NEED_ACK 3
        @22.005ms > ACK 2
        """, params=SHORT)


def test_a_lost_grant():
    """Asking for bytes allows them; BUSY says that nothing can come again, as it was never sent."""
    story("""
        ask 4000
        @0us      > DATA 2 0+1440 of 4066
        @0us      > DATA 2 1440+1440 of 4066
        @5us      < CUTOFFS
        @5us      < GRANT 3 to 4066             lost
        @15ms     > RESEND 2 0+100
        @15ms     < RESEND 3 2880+1186
        @15.005ms > BUSY 2
        @15.005ms > DATA 2 2880+1186 of 4066
        @15.005ms < BUSY 3
        @15.01ms  server gets 4000
        stop
        """, params=SHORT)


def test_resends_that_are_lost_come_less_and_less_often():
    """The whole request was lost as well: UNKNOWN brings it again."""
    story("""
        ask 100
        @0us       > DATA 2 0+122 of 122        lost
        @15ms      > RESEND 2 0+100             lost
        @25ms      > RESEND 2 0+100             lost
        @35ms      > RESEND 2 0+100             lost
        @45ms      > RESEND 2 0+100             lost
        @55ms      > RESEND 2 0+100             lost
        @65ms      > RESEND 2 0+100             lost
        @85ms      > RESEND 2 0+100             lost
        @125ms     > RESEND 2 0+100             lost
        @205ms     > RESEND 2 0+100
        @205.005ms < UNKNOWN 3
        @205.01ms  > DATA 2 0+122 of 122 again
        @205.015ms server gets 100
        stop
        """, params=SOFTWARE)


def test_a_server_at_work_says_busy():
    story("""
        ask 100
        @0us      > DATA 2 0+122 of 122
        @5us      server gets 100
        @5us      < CUTOFFS
        wait 20ms
        @15ms     > RESEND 2 0+100
        @15.005ms < BUSY 3
        reply 10
        @20.005ms < DATA 3 0+32 of 32
        @20.01ms  client gets 10
        stop
        """)


def test_a_dead_peer_is_given_up_after_6_seconds():
    """Of silence, counted from the last that it said; the last RESEND is an interval before."""
    asked = [15, 25, 35, 45, 55, 65, 85, 125, *range(205, 6000, 160)]
    resends = "\n".join(f"@{show_time(at * 10**6)} > RESEND 2 0+100" for at in asked)
    story(f"""
        ask 100
        @0us    > DATA 2 0+122 of 122
        @5us    server gets 100
        @5us    < CUTOFFS
        server dies
        {resends}
        @6.015s client fails: TIMEOUT
        """, params=SOFTWARE)


# -- the end of an RPC -------------------------------------------------------------------------------------------


def test_a_server_asks_for_its_ack_until_it_comes():
    story("""
        ask 10
        @0us      > DATA 2 0+32 of 32
        @5us      server gets 10
        reply 10
        @5us      < CUTOFFS
        @5us      < DATA 3 0+32 of 32
        @10us     client gets 10
        @10us     > CUTOFFS
        @2ms      < NEED_ACK 3                  lost
        @12ms     < NEED_ACK 3
        @12.005ms > ACK 2                       lost
        @22ms     < NEED_ACK 3
        @22.005ms > ACK 2
        """)


def test_five_acknowledgements_ride_on_a_sixth():
    exchanges = "\n".join(f"""
        ask 10
        @{10 * n}ms > DATA {2 * n + 2} 0+32 of 32
        @{10 * n}.005ms server gets 10
        reply 10
        @{10 * n}.005ms < DATA {2 * n + 3} 0+32 of 32
        @{10 * n}.01ms client gets 10
        wait 9.99ms""" for n in range(1, 6))
    story(f"""
        ask 10
        @0us      > DATA 2 0+32 of 32
        @5us      server gets 10
        reply 10
        @5us      < CUTOFFS
        @5us      < DATA 3 0+32 of 32
        @10us     client gets 10
        @10us     > CUTOFFS
        wait 9.99ms
        {exchanges}
        @50.01ms  > ACK 2,4,6,8,10,12
        """, params=TransportParams(request_ack_ticks=1000))


def test_a_request_that_comes_twice_is_answered_once():
    story("""
        ask 10
        @0us     > DATA 2 0+32 of 32            twice
        @5us     server gets 10
        reply 10
        @5us     < CUTOFFS
        @5us     < DATA 3 0+32 of 32            twice
        @10us    client gets 10
        @10us    > CUTOFFS
        @2ms     < NEED_ACK 3
        @2.005ms > ACK 2
        """)


# -- attackers ---------------------------------------------------------------------------------------------------


def test_a_recorded_request_is_refused():
    """A second later the server has forgotten the RPC, and still knows its id."""
    story("""
        ask 10
        @0us     > DATA 2 0+32 of 32
        @5us     server gets 10
        reply 10
        @5us     < CUTOFFS
        @5us     < DATA 3 0+32 of 32
        @10us    client gets 10
        @10us    > CUTOFFS
        @2ms     < NEED_ACK 3
        @2.005ms > ACK 2
        wait 1s
        again 1
        @1.00201s < CUTOFFS                     (it was sent before these were known: no harm, and no delivery)
        """)


def test_a_forged_unknown_costs_a_request_once_more():
    story("""
        ask 10
        @0us     > DATA 2 0+32 of 32
        @5us     server gets 10
        forge < UNKNOWN 3
        @5us     < CUTOFFS
        @10us    > DATA 2 0+32 of 32 again
        reply 10
        @10us    < DATA 3 0+32 of 32
        @15us    client gets 10
        stop
        """)


# -- sessions ----------------------------------------------------------------------------------------------------


def test_keys_change():
    """After a record the next RPC is of epoch 1, while the RPC of epoch 0 is ended by its own keys."""
    story("""
        ask 10
        @0us     > DATA 2 0+32 of 32
        @5us     server gets 10
        reply 10
        @5us     < CUTOFFS
        @5us     < DATA 3 0+32 of 32
        @10us    client gets 10
        ask 10
        @10us    > CUTOFFS
        @10us    > DATA 2 0+32 of 32 epoch 1    (ids start over with the keys)
        @15us    server gets 10
        reply 10
        @15us    < DATA 3 0+32 of 32 epoch 1
        @20us    client gets 10
        @20us    > ACK 2                        (the last that epoch 0 is good for)
        @2ms     < NEED_ACK 3 epoch 1
        @2.005ms > ACK 2 epoch 1
        """, keys=lambda: demo_keys("smt", SessionParams(key_update_records=1)))


def test_a_first_request_by_a_handshake_waits_one_round_trip():
    story("""
        ask 100
        @0us     > CLIENT_HELLO
        @5us     < SERVER_HELLO
        @10us    > CLIENT_FINISH
        @10us    > DATA 2 0+122 of 122
        @15us    server gets 100
        @15us    < SERVER_DONE
        reply 10
        @15us    < CUTOFFS
        @15us    < DATA 3 0+32 of 32
        @20us    client gets 10
        stop
        """, keys=hosts("mtls"))


@pytest.mark.parametrize("mode", ["ticket", "ticket-fs"])
def test_with_a_ticket_the_first_request_waits_for_nothing(mode):
    story("""
        ask 100
        @0us     > EARLY_HELLO
        @0us     > DATA 2 0+122 of 122
        @5us     server gets 100
        @5us     < EARLY_ANSWER
        reply 10
        @5us     < CUTOFFS
        @5us     < DATA 3 0+32 of 32
        @10us    client gets 10
        stop
        """, keys=hosts(mode))


def test_a_lost_hello():
    """The request that went with it is held until the hello comes, and is then taken at once."""
    story("""
        ask 100
        @0us      > EARLY_HELLO                 lost
        @0us      > DATA 2 0+122 of 122
        @15.01ms  > EARLY_HELLO again
        @15.015ms server gets 100
        @15.015ms < EARLY_ANSWER
        reply 10
        @15.015ms < CUTOFFS
        @15.015ms < DATA 3 0+32 of 32
        @15.02ms  client gets 10
        stop
        """, keys=hosts("ticket"))


# -- the module's profile ----------------------------------------------------------------------------------------


def test_linux_places_packets_by_their_number():
    """Lengths are the message's own, while 49 bytes more travel; the last packet's place follows from the MTU."""
    story("""
        ask 2000
        @0us      > DATA 2 0.0+1440 of 2000
        @0us      > DATA 2 0.1+629 of 2000      lost
        @5us      < CUTOFFS
        @15ms     > RESEND 2 0+100
        @15ms     < RESEND 3 1391+609           (1440, less 29 of the record, less 20 within)
        @15.005ms > DATA 2 0.1+629 of 2000 again
        @15.005ms < BUSY 3
        @15.01ms  server gets 2000
        stop
        """, profile="linux")


# -- the teller --------------------------------------------------------------------------------------------------


def test_a_story_is_lines_of_what_is_done_and_of_what_happens():
    assert lines_of("""
        ask  10
        @5us    > DATA 2 0+9 of 9   lost  (a remark)
        @6ms    < GRANT 3 to 7    late 3us""") == [
        Line("ask 10", done=True), Line("@5us > DATA 2 0+9 of 9", "lost"), Line("@6ms < GRANT 3 to 7", "late 3us")]


@pytest.mark.parametrize("told", [
    "ask 10",                                                                        # more happens than is told
    "ask 10\n@0us > DATA 2 0+32 of 32\n@5us server gets 11\nstop",                    # other things happen
    "ask 10\n@1us > DATA 2 0+32 of 32\nstop",                                        # at another time
    "ask 10\n@0us > DATA 2 0+33 of 33\nstop",
    "ask 10\n@0us > DATA 2 0+32 of 32\nreply 10",                                     # not yet asked
    "@5us server gets 10"])                                                          # nothing happens
def test_a_story_that_is_not_true_fails(told):
    with pytest.raises(AssertionError, match="what came true"):
        story(told)


def test_both_stories_are_shown_side_by_side():
    told = lines_of("ask 10\n@1us > GRANT 3 to 5")
    true = lines_of("ask 10\n@2us > GRANT 3 to 5\n@3us client gets 1")
    assert beside(told, true).splitlines() == [
        "  ask 10                ask 10",
        "! @1us > GRANT 3 to 5   @2us > GRANT 3 to 5",
        "!                       @3us client gets 1"]


def test_what_no_story_knows():
    with pytest.raises(ValueError, match="sing"):
        Teller(lines_of("sing"), "smt", None, None).tell()


@pytest.mark.parametrize(("ns", "shown"), [(0, "0us"), (500, "0.5us"), (5_000, "5us"), (15_005_000, "15.005ms"),
                                           (6_015_000_000, "6.015s")])
def test_times(ns, shown):
    assert show_time(ns) == shown
