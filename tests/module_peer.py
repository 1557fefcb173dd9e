"""The SMT kernel module as its peers see it, scripted from what was measured and read of it, in virtual time.

Not our engine's rules but the module's: one RESEND per *host* and 10 ms, the RPC that waited longest first; RESEND
of (0, 100) while nothing of a response is here; NEED_ACK every tick, and not answered while the response is
incomplete; acknowledgements of all its sockets in one list, which ride on any packet; five RESENDs without any
packet, and all RPCs with that host are over. Bytes of records come from the profile's own message classes, which
captures of the real module check.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from random import Random

from smtstack.crypto.keys import LinuxKeys, LinuxNoKeys, demo_keys
from smtstack.nic.device import NicConfig
from smtstack.sim.pair import make_side
from smtstack.transport.events import Event, Failed, Request, Response
from smtstack.transport.linux_message import Acks, LinuxGeometry, LinuxIn, LinuxOut
from smtstack.transport.linux_plain import LinuxPlainGeometry, LinuxPlainIn, LinuxPlainOut
from smtstack.transport.params import TransportParams
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.ipv4 import IPv4

OUR_IP, MODULE_IP = 0x0A000001, 0x0A000002
OUR_PORT = 2000
MODULE_PORT = 3000
FIRST_PORT = 32769
TICK_NS = 1_000_000
DELAY_NS = 50_000
RESEND_TICKS, RESEND_INTERVAL, TIMEOUT_RESENDS = 14, 10, 5
#: A second of virtual time is plenty for what takes milliseconds; this is when a test gives up.
LIMIT_NS = 600 * 1_000_000_000


def answer(data: bytes) -> bytes:
    """What either server replies."""
    return bytes(b ^ 0x33 for b in data)


class ModuleRpc:
    """One RPC at the module."""

    def __init__(self, rpc_id: int, port: int, is_client: bool) -> None:
        self.id = rpc_id
        self.port = port
        self.is_client = is_client
        self.out: LinuxOut | LinuxPlainOut | None = None
        self.sent = 0
        self.inm: LinuxIn | LinuxPlainIn | None = None
        self.granted = 0
        self.silent = 0
        self.resend_tick = -100
        self.answered_tick = -1
        self.request = b""


class ModulePeer:
    """A host with the module: client sockets, one a request, and a server socket."""

    def __init__(self, send: Callable[[bytes], None], sealed: bool = True, first_id: int = 2,
                 clear: bool = False) -> None:
        """``sealed``: under the right keys. ``clear``: without any, plain Homa."""
        self._send = send
        self._clear = clear
        keys = demo_keys("linux")
        assert isinstance(keys, LinuxKeys)
        # Records under a wrong key, as plain Homa, never authenticate.
        self._client_keys, self._server_keys = (keys.client, keys.server) if sealed else (keys.server, keys.client)
        self._params = TransportParams()
        self._geo = LinuxGeometry(self._params)
        self._plain_geo = LinuxPlainGeometry(self._params)
        self.rpcs: dict[int, ModuleRpc] = {}
        self.acks: list[tuple[int, int, int]] = []
        self.outcomes: dict[int, bytes | None] = {}
        self.requests: dict[int, bytes] = {}
        self.delivered: list[bytes] = []
        self.sent_types: dict[int, int] = dict.fromkeys(homa.TYPE_NAMES, 0)
        #: Acknowledgements that rode on a packet of another port than theirs.
        self.foreign_acks = 0
        self._todo: list[bytes] = []
        self._may_begin = 0
        self._next_port = FIRST_PORT
        self._next_id = first_id
        self._tick = 0
        self._resend_tick = -100
        self._outstanding = 0

    # -- as a client -------------------------------------------------------------------------------------

    def ask(self, requests: list[bytes], under_way: int) -> None:
        """Send these to our server, so many at a time, each from a new socket."""
        self._todo = list(reversed(requests))
        self._may_begin = under_way
        self._begin()

    def _begin(self) -> None:
        while self._todo and self._may_begin:
            data = self._todo.pop()
            self._may_begin -= 1
            rpc = ModuleRpc(self._next_id, self._next_port, True)
            self._next_id += 2
            self._next_port += 1
            self.rpcs[rpc.id] = rpc
            self.requests[rpc.id] = rpc.request = data
            self.foreign_acks += sum(port != rpc.port for _i, port, _s in self.acks)
            rpc.out = self._outgoing(rpc, data, self.acks)
            rpc.granted = rpc.out.unscheduled
            self._transmit(rpc)

    def _end(self, rpc: ModuleRpc, data: bytes | None) -> None:
        del self.rpcs[rpc.id]
        if not rpc.is_client:
            return
        self.outcomes[rpc.id] = data
        self._may_begin += 1
        if data is not None:
            if len(self.acks) == homa.MAX_ACKS:
                self._ack(rpc.id, rpc.port)
            else:
                self.acks.append((rpc.id, rpc.port, OUR_PORT))
        self._begin()

    def _ack(self, rpc_id: int, port: int) -> None:
        entries = tuple(homa.AckEntry(*a) for a in self.acks)
        self.acks.clear()
        self._control(port, homa.Ack(port, OUR_PORT, rpc_id, entries))

    def _outgoing(self, rpc: ModuleRpc, data: bytes, acks: Acks) -> LinuxOut | LinuxPlainOut:
        if self._clear:
            return LinuxPlainOut(data, self._plain_geo, acks)
        return LinuxOut(self._client_keys if rpc.is_client else self._server_keys, rpc.id, data, self._geo, acks)

    # -- sending -----------------------------------------------------------------------------------------

    def _frame(self, header: bytes, payload: bytes, ip_id: int) -> None:
        length = 20 + len(header) + len(payload)
        ip = IPv4(MODULE_IP, OUR_IP, homa.PROTO_LINUX, length, ip_id)
        eth = Ethernet(b"\x02\x00\x0a\x00\x00\x01", b"\x02\x00\x0a\x00\x00\x02")
        self.sent_types[header[homa.TYPE_OFFSET]] += 1
        self._send(eth.pack() + ip.pack() + header + payload)

    def _control(self, _port: int, packet: homa.Control) -> None:
        self._frame(packet.pack(), b"", 0)

    def _data(self, rpc: ModuleRpc, segment: int, number: int, piece: bytes, again: bool) -> None:
        out = rpc.out
        assert out is not None
        header = homa.Data(rpc.port, OUR_PORT, rpc.id, out.length, max(rpc.granted, out.unscheduled),
                           out.start(segment) if out.placed else 0, cutoff_version=1, retransmit=int(again),
                           packet_index=number if again and out.placed else 0)
        self._frame(header.pack(), piece, 0 if again else number)

    def _transmit(self, rpc: ModuleRpc) -> None:
        out = rpc.out
        assert out is not None
        while rpc.sent < out.count and out.start(rpc.sent) < rpc.granted:
            payload = out.payload(rpc.sent)
            for number, cut in enumerate(range(0, len(payload), out.mss)):
                self._data(rpc, rpc.sent, number, payload[cut:cut + out.mss], False)
            rpc.sent += 1
        if not rpc.is_client and rpc.sent == out.count and rpc.answered_tick < 0:
            rpc.answered_tick = self._tick

    def _retransmit(self, rpc: ModuleRpc, start: int, stop: int) -> None:
        out = rpc.out
        assert out is not None
        for segment in range(rpc.sent):
            payload = out.payload(segment)
            for number, cut in enumerate(range(0, len(payload), out.mss)):
                piece = payload[cut:cut + out.mss]
                a, b = out.packet_range(segment, number, len(piece))
                if a < stop and start < b:
                    self._data(rpc, segment, number, piece, True)

    # -- time --------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """A millisecond has passed."""
        self._tick += 1
        candidates = []
        for rpc in self.rpcs.values():
            rpc.silent += 1
            if rpc.inm is not None and not rpc.inm.missing():
                rpc.silent = 0
            if rpc.answered_tick >= 0 and self._tick >= rpc.answered_tick + 2:
                self._control(rpc.port, homa.NeedAck(rpc.port, OUR_PORT, rpc.id))
            if rpc.silent >= RESEND_TICKS:
                candidates.append(rpc)
        if self._tick - self._resend_tick < RESEND_INTERVAL or not candidates:
            return
        if self._outstanding >= TIMEOUT_RESENDS:
            self._outstanding = 0
            for rpc in list(self.rpcs.values()):
                if rpc.id in self.rpcs:
                    self._end(rpc, None)
            return
        rpc = min(candidates, key=lambda r: (r.resend_tick, r.id))
        rpc.resend_tick = self._resend_tick = self._tick
        self._outstanding += 1
        ranges = [(0, 0)]
        if rpc.inm is not None:
            ranges = rpc.inm.missing()[:1]
        elif rpc.is_client:
            ranges = [(0, 100)]
        for offset, length in ranges:
            self._control(rpc.port, homa.Resend(rpc.port, OUR_PORT, rpc.id, offset, length, 7))

    # -- receiving ---------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> None:
        """A frame of ours; it must be sound."""
        _ip, packet, payload = wire_frame.parse_untrusted(frame, homa.LINUX)
        own = packet.sender_id ^ 1
        rpc = self.rpcs.get(own)
        if isinstance(packet, homa.Ack):
            for client_id in (packet.sender_id, *(a.client_id for a in packet.acks)):
                self._acked(client_id)
            return
        if isinstance(packet, homa.NeedAck):
            if rpc is None or (rpc.inm is not None and not rpc.inm.missing()):
                self._ack(own, packet.dport)
            return
        if rpc is None and isinstance(packet, homa.Data) and not own & 1 ^ 1:
            rpc = self.rpcs[own] = ModuleRpc(own, MODULE_PORT, False)
        if rpc is None:
            if isinstance(packet, homa.Resend):
                self._control(packet.dport, homa.Unknown(packet.dport, packet.sport, own))
            return
        self._outstanding = 0
        if isinstance(packet, homa.Data):
            rpc.silent = 0
            self._on_data(rpc, packet, wire_frame.parse_untrusted(frame, homa.LINUX)[0].identification, payload)
        elif isinstance(packet, homa.Grant):
            rpc.silent = 0
            rpc.granted = max(rpc.granted, packet.offset)
            if rpc.out is not None:
                self._transmit(rpc)
        elif isinstance(packet, homa.Busy):
            rpc.silent = 0
        elif isinstance(packet, homa.Resend):
            self._on_resend(rpc, packet)
        elif isinstance(packet, homa.Unknown):
            if not rpc.is_client:
                self._end(rpc, None)
            elif rpc.inm is None and rpc.out is not None:
                self._retransmit(rpc, 0, rpc.out.sent_end() or rpc.out.length)

    def _on_resend(self, rpc: ModuleRpc, packet: homa.Resend) -> None:
        if rpc.out is None or not packet.length:
            self._control(rpc.port, homa.Busy(rpc.port, OUR_PORT, rpc.id))
            return
        stop = packet.offset + packet.length
        rpc.granted = max(rpc.granted, min(stop, rpc.out.length))
        self._transmit(rpc)
        self._retransmit(rpc, packet.offset, stop)

    def _on_data(self, rpc: ModuleRpc, packet: homa.Data, ip_id: int, payload: bytes) -> None:
        if rpc.out is not None and not rpc.is_client:
            return
        if rpc.inm is None:
            keys = self._server_keys if rpc.is_client else self._client_keys
            rpc.inm = (LinuxPlainIn(packet.message_length) if self._clear
                       else LinuxIn(keys, rpc.id ^ 1, packet.message_length, self._geo))
            rpc.inm.granted = min(packet.incoming, packet.message_length)
        if rpc.inm.granted < packet.message_length:
            rpc.inm.granted = packet.message_length
            self._control(rpc.port, homa.Grant(rpc.port, OUR_PORT, rpc.id, packet.message_length, 0))
        rpc.inm.add(packet.segment_offset, ip_id + packet.packet_index, 0, payload)
        data = rpc.inm.finish()
        for client_id, _port, _server in rpc.inm.acks:
            self._acked(client_id)
        rpc.inm.acks = []
        if data is None:
            return
        if rpc.is_client:
            self._end(rpc, data)
            return
        self.delivered.append(data)
        rpc.inm = None
        rpc.out = self._outgoing(rpc, answer(data), [])
        rpc.granted = rpc.out.unscheduled
        self._transmit(rpc)

    def _acked(self, client_id: int) -> None:
        rpc = self.rpcs.get(client_id ^ 1)
        if rpc is not None and not rpc.is_client:
            self._end(rpc, None)


class Lab:
    """Our engine and the module on one cable that loses frames."""

    def __init__(self, loss: float, seed: int, params: TransportParams | None = None, sealed: bool = True,
                 clear: bool = False) -> None:
        self._random = Random(seed)
        self._loss = loss
        self.now = 0
        self._flying: list[tuple[int, int, bool, bytes]] = []
        self._count = 0
        self.sealed = sealed
        self.module = ModulePeer(self._from_module, sealed, clear=clear)
        #: Every frame goes through this on its way to us.
        self.spoil: Callable[[bytes], bytes] = bytes
        keys = LinuxNoKeys(1 << 20) if clear else demo_keys("linux", first_id=1 << 20)
        self.ours = make_side(OUR_IP, OUR_PORT, "linux", keys, params, NicConfig())
        self.events: list[Event] = []
        self.delivered: list[bytes] = []
        self.to_module: list[tuple[int, bytes]] = []
        self._next_tick = TICK_NS
        self.serving = True

    def reload_module(self) -> None:
        """The module forgets everything: ids and ports start over."""
        self._flying.clear()
        self.module = ModulePeer(self._from_module, self.sealed)

    def _fly(self, to_us: bool, frame: bytes) -> None:
        if self._random.random() >= self._loss:
            self._count += 1
            heapq.heappush(self._flying, (self.now + DELAY_NS, self._count, to_us, frame))

    def _from_module(self, frame: bytes) -> None:
        self._fly(True, frame)

    def step(self) -> None:
        """Go on to what happens next."""
        for frame in self.ours.transmit(self.now):
            self.to_module.append((self.now, frame))
            self._fly(False, frame)
        endpoint = self.ours.endpoint
        timeout = endpoint.next_timeout()
        at = min([self._next_tick, *(f[0] for f in self._flying[:1]), *([] if timeout is None else [timeout])])
        self.now = max(self.now, at)
        while self._flying and self._flying[0][0] <= self.now:
            _at, _n, to_us, frame = heapq.heappop(self._flying)
            if to_us:
                self.ours.receive([self.spoil(frame)], self.now)
            else:
                self.module.receive(frame)
        if self.now >= self._next_tick:
            self._next_tick += TICK_NS
            self.module.tick()
        endpoint.handle_timeout(self.now)
        while (event := endpoint.next_event()) is not None:
            if isinstance(event, Request):
                self.delivered.append(event.data)
                if self.serving:
                    endpoint.send_reply(event.rpc, answer(event.data), self.now)
            else:
                self.events.append(event)

    def run_until(self, done: Callable[[], bool], limit_ns: int = LIMIT_NS) -> None:
        """Steps until ``done``; fails the test when that takes ``limit_ns`` of virtual time."""
        while not done():
            assert self.now < limit_ns, "the conversation does not end"
            self.step()

    def sent(self, kind: type) -> list[tuple[int, homa.Packet]]:
        """(time, packet) of everything of one type that we sent."""
        parsed = ((at, wire_frame.parse_untrusted(frame, homa.LINUX)[1]) for at, frame in self.to_module)
        return [(at, packet) for at, packet in parsed if isinstance(packet, kind)]

    def ask(self, data: bytes) -> None:
        """A request of ours to the module's server."""
        self.ours.endpoint.send_request(MODULE_IP, MODULE_PORT, data, self.now)

    def ended(self) -> tuple[int, int]:
        """Of our requests: how many were answered, with the right bytes in any case, and how many failed."""
        good = sum(isinstance(e, Response) for e in self.events)
        return good, sum(isinstance(e, Failed) for e in self.events)
