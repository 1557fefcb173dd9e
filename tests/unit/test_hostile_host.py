"""A hostile host, while RPCs run: nothing escapes, nothing is touched that must not be, nothing is believed, and
there is service again afterwards. ``SMTNET_MUTATIONS=10000000`` does so many, where it is 100,000 by default."""

from __future__ import annotations

import os

import pytest

from smtstack.rings.audit import Audit, UringAudit
from smtstack.rings.host import memory_for, share
from smtstack.rings.hostile import KINDS, HostileHost
from smtstack.rings.hostile_uring import KINDS as URING_KINDS
from smtstack.rings.hostile_uring import HostileUring
from smtstack.rings.layout import CONSUMER_AT, ENTRIES_AT, FILL, PRODUCER_AT, RX, UMEM, RingConfig
from smtstack.rings.steady import SteadyClock
from smtstack.rings.uring import CertifiedUring
from smtstack.rings.uring_host import uring_memory
from smtstack.rings.uring_layout import ACCEPT, BUFFERS, ENTRIES, QUEUES, READ, WRITE, UringConfig
from smtstack.rings.xsk import CertifiedXsk
from smtstack.sim.ring_pair import RingPair, attack
from smtstack.sim.uring_attack import UringGuest, attack_uring
from smtstack.transport.events import Request
from workloads.commands.main import main

MUTATIONS = int(os.environ.get("SMTNET_MUTATIONS", "100000"))


@pytest.mark.timeout(max(240, MUTATIONS // 500))
@pytest.mark.parametrize("seed", [1, 2])
def test_whatever_the_host_does_nothing_is_wrong_and_service_comes_back(seed: int):
    outcome = attack(MUTATIONS // 2, seed)
    assert outcome.mutations.total() >= MUTATIONS // 2
    assert set(outcome.mutations) == set(KINDS)
    assert not outcome.violations
    assert not outcome.escaped
    assert not outcome.forged
    # It was no attack on something that stood still: RPCs were answered, and records hurt, meanwhile.
    assert outcome.answered > 0 < outcome.records_failed
    assert outcome.refused > MUTATIONS // 4
    # The same RPCs take as many looks at the rings as before, RECOVERY_NS after the last mutation.
    assert 0 < outcome.steps_after <= outcome.steps_before * 21 // 20
    assert outcome.held


def test_without_checks_violations_are_found():
    outcome = attack(500, certified=False)
    assert set(outcome.violations) >= {"umem: outside", "umem: a frame that is not ours to touch now"}
    assert outcome.escaped["IndexError"] > 0
    assert not outcome.held


def test_an_attack_repeats_by_its_seed():
    assert attack(1500, 5) == attack(1500, 5)
    assert attack(1500, 5) != attack(1500, 6)


def test_an_honest_host_has_nothing_refused():
    pair = RingPair(1)
    assert pair.steps_of(50) > 0
    for end in (pair.client, pair.server):
        assert end.xsk.refused() == end.xsk.reclaimed == end.xsk.restarts == 0
        assert end.audit.accesses > 0
        assert not end.audit.violations


def test_the_audit_sees_what_must_not_be():
    config = RingConfig(8, 2048, 4)
    memories = share(memory_for(config))
    xsk = CertifiedXsk(memories, config)
    audit = Audit(xsk, memories, 2048)
    memories[UMEM].copy(0, 8)  # ours to read: it is in the fill ring
    memories[FILL].load(CONSUMER_AT)
    assert not audit.violations
    for use in (lambda: memories[UMEM].write(0, b"x"), lambda: memories[UMEM].copy(2040, 16),
                lambda: memories[RX].put_address(ENTRIES_AT, 1), lambda: memories[RX].store(PRODUCER_AT, 1),
                lambda: memories[FILL].load(ENTRIES_AT), lambda: memories[RX].load(CONSUMER_AT)):
        before = audit.violations.total()
        use()
        assert audit.violations.total() == before + 1
    with pytest.raises(IndexError):
        memories[UMEM].copy(8 * 2048, 1)
    assert audit.violations["umem: outside"] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_changes_memory(kind: str):
    config = RingConfig(16, 2048, 4)
    buffers = memory_for(config)
    xsk = CertifiedXsk(share(buffers), config)
    host = HostileHost(share(buffers), config, seed=3)
    host.chance = 1.0
    host.deliver([b"packet" * 20] * 2)
    xsk.send([b"sent" * 20])
    host.kinds = (kind,)
    before = [bytes(buffer) for buffer in buffers.values()]
    for _time in range(20):
        host.mutate()
    # Or, of some kinds, what it says of the time.
    assert [bytes(buffer) for buffer in buffers.values()] != before or host.skew_ns
    assert host.mutations == {kind: 20}


def test_the_command(capsys: pytest.CaptureFixture[str]):
    assert main(["hostile", "--mutations", "300", "--seed", "2"]) == 0
    assert "held" in capsys.readouterr().out
    assert main(["hostile", "--mutations", "300", "--unchecked", "--json"]) == 1
    assert '"held": false' in capsys.readouterr().out




@pytest.mark.timeout(max(240, MUTATIONS // 200))
@pytest.mark.parametrize("seed", [1, 2])
def test_operations_whatever_the_host_does_and_service_comes_back(seed: int):
    outcome = attack_uring(MUTATIONS // 20, seed)
    assert outcome.mutations.total() >= MUTATIONS // 20
    assert set(outcome.mutations) == set(URING_KINDS)
    assert not outcome.violations
    assert not outcome.escaped
    assert not outcome.forged
    # It did work meanwhile, some of which came to nothing; and of most lies it saw that they were.
    assert outcome.answered > 0 < outcome.failed
    assert outcome.refused > MUTATIONS // 40
    assert 0 < outcome.steps_after <= outcome.steps_before * 21 // 20
    assert outcome.held


@pytest.mark.parametrize("kind", ["result_too_large", "result_huge", "result_negative", "result_of_no_list",
                                  "result_descriptor", "tag_foreign", "tag_next", "tag_stale", "tag_twice",
                                  "never_asked_for", "index_beyond", "index_random", "completion_bytes"])
def test_operations_without_checks_each_kind_is_found(kind: str):
    """By itself; and with checks it is not."""
    for certified in (True, False):
        guest = UringGuest(7, certified)
        guest._keep_busy()
        guest.host.kinds, guest.host.chance = (kind,), 0.3
        for _look in range(100):
            if guest.broken:
                break
            guest._keep_busy()
        assert guest.host.mutated > 0
        assert guest.broken == (not certified)
    if kind in ("result_too_large", "result_huge"):
        wrong = {"buffers: across buffers", "buffers: outside"}
        assert wrong & set(guest.audit.violations) or guest.outcome.forged


def test_operations_without_checks_an_attack_is_not_held():
    assert not attack_uring(300, certified=False).held


def test_operations_an_attack_repeats_by_its_seed():
    assert attack_uring(300, 5) == attack_uring(300, 5)
    assert attack_uring(300, 5) != attack_uring(300, 6)


def test_operations_an_honest_host_has_nothing_refused():
    guest = UringGuest(1)
    assert guest.steps_of(50) > 0
    for _look in range(50):
        guest._keep_busy()
    assert guest.uring.refused() == guest.uring.restarts == guest.uring.reclaimed == guest.uring.given_up == 0
    assert guest.outcome.answered > 100 < guest.audit.accesses
    assert not guest.broken


def test_operations_the_audit_sees_what_must_not_be():
    config = UringConfig(4, 2, 64)
    memories = share(uring_memory(config))
    uring = CertifiedUring(memories, config)
    audit = UringAudit(uring, memories, config)
    assert uring.submit(WRITE, 3, data=b"x" * 64)
    uring.publish()
    assert uring.complete() == []
    assert not audit.violations
    for use in (lambda: memories[BUFFERS].copy(0, 8), lambda: memories[BUFFERS].write(64, b"x"),
                lambda: memories[BUFFERS].copy(60, 8), lambda: memories[QUEUES].store(0, 1),
                lambda: memories[QUEUES].load(4), lambda: memories[QUEUES].put_completion(64, 1, 1),
                lambda: memories[ENTRIES].write(8, bytes(8))):
        before = audit.violations.total()
        use()
        assert audit.violations.total() == before + 1


@pytest.mark.parametrize("kind", URING_KINDS)
def test_operations_each_kind_changes_memory(kind: str):
    """Or, of one kind, what the guest hears."""
    config = UringConfig(4, 4, 64)
    buffers = uring_memory(config)
    uring = CertifiedUring(share(buffers), config)
    host = HostileUring(share(buffers), config, seed=3)
    for _number in range(2):
        for code in (READ, ACCEPT):
            uring.submit(code, 3, 64)
        uring.publish()
        taken = host.take()
        host.complete(taken[0].tag, 0)
    host.kinds = (kind,)
    before = [bytes(buffer) for buffer in buffers.values()]
    for _time in range(20):
        host.mutate()
    if kind == "never_complete":
        uring.complete()
        tag = uring.submit(READ, 3, 64)
        uring.publish()
        for entry in host.take():
            host.complete(entry.tag, 1)
        assert tag
        assert not uring.complete()
    else:
        assert [bytes(buffer) for buffer in buffers.values()] != before
    assert host.mutations == {kind: 20}


def test_the_command_on_operations(capsys: pytest.CaptureFixture[str]):
    assert main(["hostile", "--mutations", "300", "--seed", "2", "--rings", "io_uring"]) == 0
    assert "held" in capsys.readouterr().out
    assert main(["hostile", "--mutations", "300", "--unchecked", "--rings", "io_uring", "--json"]) == 1
    assert '"held": false' in capsys.readouterr().out


_HOUR_NS = 3600 * 10**9


@pytest.mark.parametrize("jumps", [(-10**9, 0), (-_HOUR_NS, 0), (_HOUR_NS, -2 * _HOUR_NS), (-_HOUR_NS, _HOUR_NS)])
def test_a_clock_that_is_set_back_or_forward_stops_nothing(jumps: tuple[int, int]):
    """Timers, RESENDs, rings: what is under way is answered, and work goes on as before at once."""
    pair = RingPair(3)
    steps = pair.steps_of(20)
    for jump in jumps:
        for _look in range(30):
            pair._keep_busy()
        for end in (pair.client, pair.server):
            end.host.skew_ns += jump
    pair.settle()
    assert not pair._sent
    assert pair.outcome.answered > 40
    assert not pair.outcome.failed
    assert not pair.outcome.forged
    assert not pair.broken
    assert pair.steps_of(20) == steps
    assert pair.client.clock.turned_back == sum(jump < 0 for jump in jumps)


def test_a_packet_that_comes_again_after_the_clock_was_set_back_is_no_new_request():
    pair = RingPair(3)
    # So hostile that it keeps packets, and no more.
    pair.server.host.chance = 1e-15
    assert pair.steps_of(10)
    came = list(pair.server.host._packets)
    served: list[Request] = []
    for jump in (0, -_HOUR_NS, 2 * _HOUR_NS):
        pair.server.host.skew_ns += jump
        for start in range(0, len(came), 8):
            pair.now += 1_000_000
            pair.server.host.deliver(came[start:start + 8])
            pair.server.exchange()
            while (event := pair.server.stack.endpoint.next_event()) is not None:
                served += [event] if isinstance(event, Request) else []
    assert len(came) >= 10
    assert served == []


def test_time_is_what_the_hosts_clock_went_forward():
    said = iter((100, 150, 90, 95, 95, 1000, 0, 1))
    clock = SteadyClock(lambda: next(said))
    assert [clock() for _time in range(7)] == [150, 150, 155, 155, 1060, 1060, 1061]
    assert clock.turned_back == 2
