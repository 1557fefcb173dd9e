"""Flights that were changed anyhow on their way, given to real managers at both ends: nothing escapes the loop.

Parsers alone are fuzzed in tests/fuzz_sessions.py; here TLS, certificates, state and timers are behind them.
"""

from __future__ import annotations

import os
import random

import pytest

from smtstack.session.established import MODES
from smtstack.session.flights import Flight
from smtstack.transport.params import TransportParams
from tests.handshakes import Hosts, SessionRig
from tests.rig import answer

CANARY = b"*canary*"
IMPATIENT = TransportParams(timeout_resends=2)
#: SMTNET_FUZZ=N makes N times as many conversations.
CONVERSATIONS = 25 * int(os.environ.get("SMTNET_FUZZ", "1"))


class Vandal:
    """Changes flights as they are packed, with a memory for what others looked like."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._seen: list[bytes] = []
        self.changed = 0

    def __call__(self, data: bytes) -> bytes:
        chance = self._random
        self._seen.append(data)
        if chance.random() < 0.5:
            return data
        for _time in range(chance.choice((1, 1, 1, 2, 5))):
            data = self._change(data)
        self.changed += 1
        return data or b"\0"

    def _change(self, data: bytes) -> bytes:
        chance = self._random
        size = len(data)
        a, b = sorted((chance.randrange(size + 1), chance.randrange(size + 1)))
        # Small changes are the ones that get far.
        if chance.random() < 0.5:
            b = min(b, a + chance.choice((1, 2, 4, 32)))
        what = chance.randrange(7)
        if what == 0:
            return data[:a] + data[b:]
        if what == 1:
            return data[:b] + data[a:]
        if what == 2:
            return data[:a] + chance.randbytes(b - a) + data[b:]
        if what == 3:
            return data[:a] + bytes((chance.choice((0, 0xFF)),)) * (b - a) + data[b:]
        if what == 4:
            return data[:a] + chance.randbytes(chance.randrange(40)) + data[a:]
        other = chance.choice(self._seen)
        return other if what == 5 else data[:a] + other[a:]


def conversation(monkeypatch: pytest.MonkeyPatch, hosts: Hosts, vandal: Vandal) -> SessionRig:
    """Requests both ways while somebody changes the flights; the rig when all is quiet."""
    whole = Flight.pack
    with monkeypatch.context() as m:
        m.setattr(Flight, "pack", lambda flight: vandal(whole(flight)))
        rig = hosts.rig(params=IMPATIENT)
        for number in range(3):
            rig.request(b"%d " % number + CANARY * (5 + 300 * number))
        rig.run()
        rig.request(b"again " + CANARY)
        rig.request(b"the other way " + CANARY, from_client=False)
        rig.run()
    for manager in rig.managers:
        manager.close_all(rig.now)
    rig.run()
    return rig


@pytest.mark.parametrize("mode", MODES)
def test_changed_flights_do_no_harm(monkeypatch, mode):
    failed = changed = 0
    for seed in range(CONVERSATIONS):
        settings = {"handshake_ns": 300_000_000}
        hosts = Hosts(mode, client=settings, server=dict(settings)).resumable()
        if mode.startswith("ticket"):
            hosts.publish_client()
        vandal = Vandal(seed)
        rig = conversation(monkeypatch, hosts, vandal)
        changed += vandal.changed
        # Whoever gets an answer gets the true one, and every request is delivered once at most.
        good = rig.answered()
        failed += len(rig.asked) - good
        assert all(answer(data) != data for data in rig.delivered)
        assert not [f for _from, f in rig.sent_frames if CANARY in f], seed
        for manager in rig.managers:
            assert manager.counters()["sessions"] == 0, seed
            assert {n: v for n, v in manager.snapshot().items() if v and n != "plane_peers"} == {}, seed
        rig.assert_empty()
    # It does reach something.
    assert changed > CONVERSATIONS
    assert failed > CONVERSATIONS // 2
