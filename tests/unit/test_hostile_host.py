"""A hostile host, while RPCs run: nothing escapes, nothing is touched that must not be, nothing is believed, and
there is service again afterwards. ``SMTNET_MUTATIONS=10000000`` does so many, where it is 100,000 by default."""

from __future__ import annotations

import os

import pytest

from smtstack.rings.audit import Audit
from smtstack.rings.host import memory_for, share
from smtstack.rings.hostile import KINDS, HostileHost
from smtstack.rings.layout import CONSUMER_AT, ENTRIES_AT, FILL, PRODUCER_AT, RX, UMEM, RingConfig
from smtstack.rings.xsk import CertifiedXsk
from smtstack.sim.ring_pair import RingPair, attack
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
    assert [bytes(buffer) for buffer in buffers.values()] != before
    assert host.mutations == {kind: 20}


def test_the_command(capsys: pytest.CaptureFixture[str]):
    assert main(["hostile", "--mutations", "300", "--seed", "2"]) == 0
    assert "held" in capsys.readouterr().out
    assert main(["hostile", "--mutations", "300", "--unchecked", "--json"]) == 1
    assert '"held": false' in capsys.readouterr().out


