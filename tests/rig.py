"""A virtual-time rig for the engine: two sides, a lossy path, an application that checks what it gets.

Small on purpose: the tests of the protocol's rules should not stand on the simulator they help to trust.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

from smtstack.crypto.keys import KeyStore
from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, MemoryPair
from smtstack.stack import Stack
from smtstack.transport.events import Event, Failed, Request, Response
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from tests.pair import story

DELAY_NS = 5_000
#: Steps after which a conversation that has not ended never will.
MAX_STEPS = 400_000

#: Called for every frame put on the path (from the client?, frame); what it returns travels instead.
Tamper = Callable[[bool, bytes], "list[bytes]"]


def answer(data: bytes) -> bytes:
    """What the server replies: different from the request in every byte and in length."""
    return bytes(b ^ 0x5A for b in data) + b"!"


class Rig:
    """Two endpoints that may both ask; every request is answered by :func:`answer`."""

    def __init__(self, profile: str = "smt", params: TransportParams | None = None, offload: bool = False,
                 rates: ImpairmentRates | None = None, seed: int = 1, tamper: Tamper | None = None,
                 keys: Callable[[], KeyStore] | None = None, nic: NicConfig | None = None,
                 overlay: bool = False) -> None:
        pair = MemoryPair(profile, params, nic or NicConfig(tls_hw_tx_offload=offload), keys, overlay)
        self.client = pair.client
        self.server = pair.server
        self.now = 0
        self._paths = {True: Impairments(rates, seed), False: Impairments(rates, seed + 1)}
        self._tamper = tamper
        self._flying: list[tuple[int, int, bool, bytes]] = []
        self._count = 0
        #: (from the client?, frame) for everything that was sent, before the path had its way with it.
        self.sent_frames: list[tuple[bool, bytes]] = []
        #: Requests as delivered to an application, in order.
        self.delivered: list[bytes] = []
        #: Outcome by the RPC of the asking side.
        self.outcomes: dict[Rpc, list[Event]] = {}
        self.asked: dict[Rpc, bytes] = {}

    def request(self, data: bytes, from_client: bool = True) -> Rpc:
        """Ask from one side or the other."""
        near = self.client if from_client else self.server
        peer = (SERVER_IP, SERVER_PORT) if from_client else (CLIENT_IP, self.client.endpoint.port)
        rpc = near.endpoint.send_request(*peer, data, self.now)
        self.asked[rpc] = data
        self.outcomes[rpc] = []
        return rpc

    def inject(self, to_server: bool, frame: bytes, delay: int = 0) -> None:
        """Put a frame on the path that nobody sent."""
        self._count += 1
        heapq.heappush(self._flying, (self.now + delay, self._count, to_server, frame))

    def _flush(self) -> None:
        for from_client, side in ((True, self.client), (False, self.server)):
            for frame in side.transmit(self.now):
                self.sent_frames.append((from_client, frame))
                for changed in self._tamper(from_client, frame) if self._tamper else (frame,):
                    for at, arrived in self._paths[from_client].apply(changed, self.now):
                        self.inject(from_client, arrived, at - self.now + DELAY_NS)

    def _serve(self, side: Stack) -> None:
        while (event := side.endpoint.next_event()) is not None:
            if isinstance(event, Request):
                self.delivered.append(event.data)
                side.endpoint.send_reply(event.rpc, answer(event.data), self.now)
            else:
                self.outcomes[event.rpc].append(event)

    def step(self) -> bool:
        """Go on to whatever happens next; False when nothing is left to happen."""
        self._flush()
        sides = (self.client, self.server)
        deadlines = [t for e in sides if (t := e.next_timeout()) is not None]
        if self._flying:
            deadlines.append(self._flying[0][0])
        if not deadlines:
            return False
        self.now = max(self.now, min(deadlines))
        while self._flying and self._flying[0][0] <= self.now:
            _at, _n, to_server, frame = heapq.heappop(self._flying)
            (self.server if to_server else self.client).receive([frame], self.now)
        for side in sides:
            side.handle_timeout(self.now)
        self._serve(self.client)
        self._serve(self.server)
        return True

    def run(self) -> None:
        """Until nothing is left to happen; fails the test if that never comes."""
        for _step in range(MAX_STEPS):
            if not self.step():
                return
        raise AssertionError(f"still busy after {MAX_STEPS} steps: {self.snapshots()}{self.story()}")

    def story(self) -> str:
        """What was put on the path, for assertions."""
        return story([frame for _from_client, frame in self.sent_frames], self.client.endpoint.profile.fmt.name)

    def snapshots(self) -> tuple[dict[str, int], dict[str, int]]:
        """State sizes of both ends."""
        return self.client.endpoint.snapshot(), self.server.endpoint.snapshot()

    # -- what must hold ----------------------------------------------------------------------------------

    def answered(self) -> int:
        """RPCs that ended well; checks every outcome and every delivery on the way."""
        good = 0
        for rpc, events in self.outcomes.items():
            assert len(events) == 1, f"{rpc} ended {len(events)} times{self.story()}"
            event = events[0]
            if isinstance(event, Response):
                assert event.data == answer(self.asked[rpc])
                assert self.delivered.count(self.asked[rpc]) == 1
                good += 1
            else:
                assert isinstance(event, Failed)
                assert self.delivered.count(self.asked[rpc]) <= 1
        asked = set(self.asked.values())
        assert len(asked) == len(self.asked), "the test's requests must differ from each other"
        assert all(data in asked for data in self.delivered), "something was delivered that nobody sent"
        return good

    def assert_empty(self) -> None:
        """Nothing of any RPC is left at either end."""
        for snapshot in self.snapshots():
            left = {k: v for k, v in snapshot.items() if v and k != "peers"}
            assert not left, left
