"""Two ends behind memory-backed rings, each with a host that may be hostile; one process, virtual time.

What a client and an echo server do while their hosts attack them, and afterwards: :func:`attack`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import Final

from smtstack.crypto.keys import demo_keys
from smtstack.rings.audit import Audit
from smtstack.rings.host import memory_for, share
from smtstack.rings.hostile import KINDS, SOFT, HostileHost
from smtstack.rings.layout import RingConfig
from smtstack.rings.steady import SteadyClock
from smtstack.rings.xsk import RECLAIM_NS, CertifiedXsk
from smtstack.sim.outcome import MEASURED, Outcome
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, make_side
from smtstack.stack import Stack
from smtstack.transport.endpoint import FIRST_CLIENT_PORT
from smtstack.transport.events import Failed, Request, Response
from smtstack.transport.rpc import Rpc

#: Virtual time between two looks at the rings.
STEP_NS: Final = 100_000
IDLE_NS: Final = 1_000_000
#: Small, so that rings are full and frames short now and then.
CONFIG: Final = RingConfig(frames=64, frame_size=2048, entries=16)
#: Within so long after an attack there is full service again: rings and frames are mended by then.
RECOVERY_NS: Final = 4 * RECLAIM_NS
_SIZES: Final = (1, 64, 1000, 5000, 20_000)
#: What may be done, and how likely at each access, in turn, for how many looks at the rings: now so that nothing
#: works, now so that RPCs come far enough to be hurt. After each the hosts are honest until some were answered.
PHASES: Final = ((KINDS, 0.5, 800), (SOFT, 0.3, 200), (KINDS, 0.5, 800), (SOFT, 0.05, 100))
_ANSWERS: Final = 4
#: RPCs under way during an attack.
_UNDER_WAY: Final = 4


class RingEnd:
    """A stack, its certified socket, its host, and who watches both."""

    def __init__(self, stack: Stack, seed: int, certified: bool, time: Callable[[], int]) -> None:
        self.stack = stack
        buffers = memory_for(CONFIG)
        ours = share(buffers)
        self.xsk = CertifiedXsk(ours, CONFIG, certified)
        self.host = HostileHost(share(buffers), CONFIG, seed)
        self.host.outcome = self._outcome
        #: What the host says of the time, as far as it is believed.
        self.clock = SteadyClock(lambda: time() + self.host.skew_ns)
        self.audit = Audit(self.xsk, ours, CONFIG.frame_size, self.host)
        #: Frames that the ring did not take, which a NIC's queue would keep.
        self._waiting: list[bytes] = []

    def _outcome(self) -> tuple[int, ...]:
        xsk = self.xsk
        return (*(n.bit_length() for n in (xsk.rx_invalid, xsk.completions_invalid, xsk.reclaimed, xsk.restarts)),
                *(n.bit_length() for n in xsk.rejected().values()), *(n > 0 for n in xsk.owners.held))

    def exchange(self) -> list[bytes]:
        """Packets out of the rings to the stack, and what it sends into them; what leaves the host then."""
        now = self.clock()
        packets = self.xsk.receive(64)
        if packets:
            self.stack.receive(packets, now)
        if (timeout := self.stack.next_timeout()) is not None and timeout <= now:
            self.stack.handle_timeout(now)
        self._waiting += self.stack.transmit(now)
        if self._waiting:
            self._waiting = self._waiting[self.xsk.send(self._waiting):][-1000:]
        self.xsk.complete()
        self.xsk.tend(now)
        return self.host.collect()


class RingPair:
    """Client and echo server; both keep to what certified rings let them have, or (``certified=False``) not."""

    def __init__(self, seed: int, certified: bool = True) -> None:
        self.now = 0
        self._random = random.Random(seed)
        sides = (make_side(CLIENT_IP, FIRST_CLIENT_PORT, "smt", demo_keys("smt"), None, None),
                 make_side(SERVER_IP, SERVER_PORT, "smt", demo_keys("smt"), None, None))
        self.client, self.server = (RingEnd(side, seed * 2 + n, certified, lambda: self.now)
                                    for n, side in enumerate(sides))
        self._sent: dict[Rpc, bytes] = {}
        #: Digests of requests under way or given up, for the server's end to know what was sent.
        self._known: set[bytes] = set()
        self._serial = 0
        self._moving = False
        self.outcome = Outcome()

    def request(self) -> None:
        """Begin an RPC of any size."""
        self._serial += 1
        data = self._serial.to_bytes(8, "big") + self._random.randbytes(self._random.choice(_SIZES))
        self._known.add(_digest(data))
        rpc = self.client.stack.endpoint.send_request(SERVER_IP, SERVER_PORT, data, self.client.clock())
        self._sent[rpc] = data

    def step(self) -> None:
        """One look at the rings of both ends, and what comes of it. Raises nothing: what escapes is noted."""
        # Where nothing moves, time passes faster.
        self.now += STEP_NS if self._moving else IDLE_NS
        self._moving = False
        for end, other in ((self.client, self.server), (self.server, self.client)):
            try:
                leaving = end.exchange()
                self._moving |= bool(leaving)
            except Exception as e:
                self.outcome.escaped[type(e).__name__] += 1
                continue
            other.host.deliver(leaving)
        self._serve()
        self._take()

    def _serve(self) -> None:
        endpoint = self.server.stack.endpoint
        while (event := endpoint.next_event()) is not None:
            if isinstance(event, Request):
                self.outcome.forged += _digest(event.data) not in self._known
                endpoint.send_reply(event.rpc, event.data[::-1], self.server.clock())

    def _take(self) -> None:
        while (event := self.client.stack.endpoint.next_event()) is not None:
            if isinstance(event, Response):
                data = self._sent.pop(event.rpc)
                self._known.discard(_digest(data))
                self.outcome.forged += event.data != data[::-1]
                self.outcome.answered += 1
            elif isinstance(event, Failed):
                self._sent.pop(event.rpc, None)
                self.outcome.failed += 1

    def steps_of(self, count: int, limit: int = 100_000) -> int:
        """Looks at the rings that so many RPCs of 1000 B need, one after the other; 0: more than ``limit``."""
        steps = 0
        for _rpc in range(count):
            data = self._random.randbytes(1000)
            self._known.add(_digest(data))
            rpc = self.client.stack.endpoint.send_request(SERVER_IP, SERVER_PORT, data, self.client.clock())
            self._sent[rpc] = data
            while rpc in self._sent:
                self.step()
                steps += 1
                if steps > limit:
                    return 0
        return steps

    def attack(self, mutations: int) -> None:
        """Have both hosts change memory at some accesses, while RPCs run, until there were so many mutations."""
        hosts = (self.client.host, self.server.host)
        phase = 0
        while sum(host.mutated for host in hosts) < mutations:
            kinds, chance, looks = PHASES[phase % len(PHASES)]
            phase += 1
            for host in hosts:
                host.kinds, host.chance = kinds, chance
            for _look in range(looks):
                if sum(host.mutated for host in hosts) >= mutations:
                    break
                self._keep_busy()
            for host in hosts:
                host.chance = 0.0
            if self.broken:
                # It may be for good: what the checks are there for.
                continue
            answered, limit = self.outcome.answered, self.now + 4 * RECOVERY_NS
            while self.outcome.answered < answered + _ANSWERS and self.now < limit:
                self._keep_busy()

    @property
    def broken(self) -> bool:
        """Whether something was seen that must not be."""
        return bool(self.outcome.escaped or self.client.audit.violations or self.server.audit.violations)

    def _keep_busy(self) -> None:
        while len(self._sent) < _UNDER_WAY:
            self.request()
        self.step()

    def settle(self) -> None:
        """Time for all to be well again."""
        end = self.now + RECOVERY_NS
        while self.now < end:
            self.step()
        # RPCs that are still under way were begun while hosts were hostile; who gives up on them is the transport.
        limit = self.now + 60_000_000_000
        while self._sent and self.now < limit:
            self.step()


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def attack(mutations: int, seed: int = 1, certified: bool = True) -> Outcome:
    """Serve, be attacked by both hosts, serve again; what came of it. Repeats by ``seed``."""
    pair = RingPair(seed, certified)
    outcome = pair.outcome
    outcome.steps_before = pair.steps_of(MEASURED)
    answered = outcome.answered
    pair.attack(mutations)
    if not pair.broken:
        pair.settle()
    outcome.answered -= answered
    answered = outcome.answered
    if not pair.broken:
        outcome.steps_after = pair.steps_of(MEASURED)
        outcome.answered = answered
    for end in (pair.client, pair.server):
        outcome.mutations += end.host.mutations
        outcome.accesses += end.audit.accesses
        outcome.violations += end.audit.violations
        outcome.refused += end.xsk.refused()
        outcome.records_failed += end.stack.endpoint.counters.records_failed
    return outcome
