"""Two endpoints with their NICs, in memory, on a virtual clock: what tests of crypto, NIC and fuzzing share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from smtstack.crypto.epochs import SmtSession
from smtstack.crypto.keys import KeyStore, demo_keys
from smtstack.nic.device import Arbiter, NicConfig, SmartNic
from smtstack.nic.driver import ContextPolicy, NicDriver
from smtstack.stack import Stack
from smtstack.transport.events import Failed, Request, Response
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.transport.upstream_endpoint import make_endpoint
from smtstack.wire import homa, show
from smtstack.wire.ipv4 import address

CLIENT = address("10.0.0.1")
SERVER = address("10.0.0.2")
CLIENT_PORT = 0x8000
SERVER_PORT = 2000
MACS = {CLIENT: b"\2\0\x0a\0\0\1", SERVER: b"\2\0\x0a\0\0\2"}

#: Steps after which a conversation has gone wrong.
MAX_STEPS = 100_000
#: What becomes of a frame on its way; the default delivers it.
Wire = Callable[[bytes], "list[bytes]"]


def pattern(size: int, salt: int = 0) -> bytes:
    """Bytes that differ from place to place and from salt to salt."""
    step = bytes((i * 7 + i // 251 + salt * 31) & 0xFF for i in range(min(size, 64_000)))
    return (step * (size // max(len(step), 1) + 1))[:size]


#: Frames that a failed assertion shows.
_SHOWN = 60


def story(frames: Sequence[bytes], profile: str = "smt") -> str:
    """Frames as lines, the last ones if there are many: what an assertion says when it fails."""
    left_out = [f"... {len(frames) - _SHOWN} frames before"] if len(frames) > _SHOWN else []
    lines = [show.frame_untrusted(frame, homa.FORMATS[profile]) for frame in frames[-_SHOWN:]]
    return "\n".join(["", *left_out, *lines])


def make_side(ip: int, port: int, profile: str, keys: KeyStore, params: TransportParams | None = None,
              config: NicConfig | None = None, policy: ContextPolicy = ContextPolicy.PER_QUEUE,
              arbiter: Arbiter | None = None, overlay: bool = False) -> Stack:
    """An end at one of the addresses of ``MACS``; with ``overlay`` its wire takes super-frames."""
    endpoint = make_endpoint(ip, port, profile, keys, params, overlay=overlay)
    nic = SmartNic(config, arbiter)
    nic.super_frames = overlay
    return Stack(endpoint, NicDriver(nic, MACS[ip], ip, endpoint.protocol, MACS.get, policy))


class Pair:
    """A client and an echoing server, and the wire between them."""

    def __init__(self, profile: str = "smt", *, keys: Callable[[], KeyStore] | None = None,
                 params: TransportParams | None = None, config: NicConfig | None = None,
                 policy: ContextPolicy = ContextPolicy.PER_QUEUE, arbiter: Arbiter | None = None,
                 wire: Wire | None = None, budget: int = 0, overlay: bool = False) -> None:
        make = keys or (lambda: demo_keys(profile))
        self.client = make_side(CLIENT, CLIENT_PORT, profile, make(), params, config, policy, arbiter, overlay)
        self.server = make_side(SERVER, SERVER_PORT, profile, make(), params, config, policy, arbiter, overlay)
        self.wire = wire
        self.budget = budget
        self.now = 0
        #: Every frame that left a NIC.
        self.frames: list[bytes] = []
        self.sent: dict[Rpc, bytes] = {}
        self.delivered: list[bytes] = []
        self.responses: dict[Rpc, bytes] = {}
        self.failed: list[Failed] = []
        #: Whether the server answers; what it does not answer then.
        self.answering = True
        self.unanswered: list[Request] = []

    def session(self, side: Stack) -> SmtSession:
        """The session that the side has with the other."""
        peer, = side.endpoint._table.peers.values()
        assert isinstance(peer.session, SmtSession)
        return peer.session

    def request(self, data: bytes) -> Rpc:
        """Send a request; :meth:`run` brings its answer, the request reversed."""
        rpc = self.client.endpoint.send_request(SERVER, SERVER_PORT, data, self.now)
        self.sent[rpc] = data
        return rpc

    def deliver(self, frame: bytes, to: Stack) -> None:
        """One frame into a NIC and on to its endpoint."""
        to.receive([frame], self.now)

    def exchange(self, process: bool = True) -> bool:
        """Everything that can happen at this instant, once; whether anything did."""
        moved = False
        for side, other in ((self.client, self.server), (self.server, self.client)):
            moved |= side.post(self.now)
            for frame in side.nic.process(self.budget) if process else ():
                moved = True
                self.frames.append(frame)
                for arrived in self.wire(frame) if self.wire else (frame,):
                    self.deliver(arrived, other)
        while (event := self.server.endpoint.next_event()) is not None:
            moved = True
            assert isinstance(event, Request)
            if not self.answering:
                self.unanswered.append(event)
                continue
            self.delivered.append(event.data)
            self.server.endpoint.send_reply(event.rpc, event.data[::-1], self.now)
        while (event := self.client.endpoint.next_event()) is not None:
            moved = True
            if isinstance(event, Response):
                self.responses[event.rpc] = event.data
            else:
                assert isinstance(event, Failed)
                self.failed.append(event)
        return moved

    def run(self, limit_ns: int = 2_000_000_000, settle: bool = False) -> None:
        """Until every request has its response or failure (``settle``: until nothing is pending at all)."""
        end = self.now + limit_ns
        for _step in range(MAX_STEPS):
            if self.now >= end:
                return
            if self.exchange():
                continue
            if not settle and len(self.responses) + len(self.failed) == len(self.sent):
                return
            due = [t for s in (self.client, self.server) if (t := s.next_timeout()) is not None]
            if not due:
                return
            self.now = max(self.now + 1, min(due))
            for side in (self.client, self.server):
                side.handle_timeout(self.now)
        raise AssertionError(f"still busy after {MAX_STEPS} steps{self.story()}")

    def story(self) -> str:
        """What was on the wire, for assertions."""
        return story(self.frames, self.client.endpoint.profile.fmt.name)

    def check(self) -> None:
        """Every request was delivered once, whole, and answered with the right bytes."""
        assert not self.failed, self.story()
        assert sorted(self.delivered) == sorted(self.sent.values()), self.story()
        assert self.responses == {rpc: data[::-1] for rpc, data in self.sent.items()}, self.story()

    def records_failed(self) -> int:
        """Records that did not authenticate, at either side."""
        return sum(s.endpoint.counters.records_failed for s in (self.client, self.server))
