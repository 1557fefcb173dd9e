"""Upstream Homa's module as its peers see it, scripted from what was read and measured of it, in virtual time.

Not our engine's rules but the module's (HomaModule 9edb958): silence counted by RPC; RESENDs at 5, 10, ... 95
silent ticks, one for every gap and one for the rest, (0, -1) while nothing is here; ETIMEDOUT at 100; NEED_ACK
every tick and for ever; GRANTs that repeat; a packet that overlaps the edge of a gap is dropped whole; offsets in
the sequence alone, resolved where GRO runs; a socket's own shape, native or TCP's, both taken where GRO runs.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from smtstack.crypto.keys import demo_keys
from smtstack.nic.device import NicConfig
from smtstack.sim.pair import make_side
from smtstack.transport.events import Event, Failed, Request, Response
from smtstack.transport.params import TransportParams
from smtstack.wire import frame as wire_frame
from smtstack.wire import homa, ipv4, upstream
from smtstack.wire.ethernet import Ethernet
from smtstack.wire.ipv4 import IPv4

OUR_IP, MODULE_IP = 0x0A000001, 0x0A000002
OUR_PORT = 2000
MODULE_PORT = 3000
FIRST_PORT = 0x8000
TICK_NS = 1_000_000
DELAY_NS = 20_000
UNSCHED_BYTES, MAX_INCOMING, MAX_OVERCOMMIT, FIFO_INCREMENT = 40_000, 400_000, 8, 50_000
RESEND_TICKS, RESEND_INTERVAL, TIMEOUT_TICKS, REQUEST_ACK_TICKS = 5, 5, 100, 2
MAX_MESSAGE = 1_000_000
MSS = 1500 - 20 - upstream.DATA_LEN
CUTOFFS = (0, 0, 0, 0, 1_000_000, 15_000, 2800, 200)
LIMIT_NS = 600 * 1_000_000_000


def answer(data: bytes) -> bytes:
    """What either server replies."""
    return bytes(b ^ 0x33 for b in data)


@dataclass
class Incoming:
    """A message that arrives: which packets are here."""

    length: int
    granted: int
    parts: dict[int, bytes] = field(default_factory=dict)
    #: (start, stop) that are missing below ``end``.
    gaps: list[tuple[int, int]] = field(default_factory=list)
    end: int = 0
    #: Bytes here.
    have: int = 0

    def add(self, at: int, data: bytes) -> None:
        """``homa_add_packet``: whole into a gap or behind the end, or not at all."""
        stop = at + len(data)
        if stop > self.length:
            return
        if at >= self.end:
            if at > self.end:
                self.gaps.append((self.end, at))
            self.end = stop
        else:
            for n, (a, b) in enumerate(self.gaps):
                if a <= at and stop <= b:
                    self.gaps[n:n + 1] = [gap for gap in ((a, at), (stop, b)) if gap[0] < gap[1]]
                    break
            else:
                return
        self.parts[at] = data
        self.have += len(data)

    def missing(self) -> list[tuple[int, int]]:
        """(offset, length) of what RESENDs are for."""
        tail = [(self.end, self.granted)] if self.end < self.granted else []
        return [(a, b - a) for a, b in [*self.gaps, *tail]]

    def whole(self) -> bytes | None:
        """The message, if it is."""
        return b"".join(self.parts[at] for at in sorted(self.parts)) if self.have == self.length else None


@dataclass
class PeerRpc:
    """One RPC at the module."""

    id: int
    port: int
    to_port: int
    is_client: bool
    birth: int
    out: bytes | None = None
    sent: int = 0
    granted: int = 0
    inm: Incoming | None = None
    in_service: bool = False
    silent: int = 0
    done_tick: int = -1
    rank: int = 0


class UpstreamPeer:
    """A host with the module. ``client_tcp``, ``server_tcp``: its sockets' shapes; ``gro``: of its interface."""

    def __init__(self, send: Callable[[bytes], None], *, client_tcp: bool = False, server_tcp: bool = False,
                 gro: bool = True, seed: int = 0) -> None:
        self._send = send
        self._tcp = {True: client_tcp, False: server_tcp}
        self._gro = gro
        self._random = Random(seed)
        self.rpcs: dict[int, PeerRpc] = {}
        self.acks: list[tuple[int, int]] = []
        self.cutoff_version = 0
        #: By id: the response; None: ETIMEDOUT.
        self.outcomes: dict[int, bytes | None] = {}
        self.requests: dict[int, bytes] = {}
        self.delivered: list[bytes] = []
        self.sent_types: Counter[int] = Counter()
        #: Packets whose offset or shape only GRO would have made out.
        self.unread = 0
        self.serving = True
        self._todo: list[bytes] = []
        self._next_id = 2
        self._next_port = FIRST_PORT
        self._tick = 0
        self._births = 0
        self._may_begin = 0
        self._cutoffs_tick = -1
        self._fifo_bytes = 0

    # -- as a client -------------------------------------------------------------------------------------

    def ask(self, requests: list[bytes], under_way: int, new_sockets: bool = False) -> None:
        """Send these to our server, so many at a time; from one socket, or each from a new one."""
        self._todo = list(reversed(requests))
        self._may_begin = under_way
        self._new_sockets = new_sockets
        self._begin()

    def _begin(self) -> None:
        while self._todo and self._may_begin:
            self._may_begin -= 1
            rpc = self._rpc(self._next_id, self._next_port, OUR_PORT, True)
            self._next_id += 2
            self._next_port += self._new_sockets
            self.requests[rpc.id] = data = self._todo.pop()
            self._reply(rpc, data)

    def _rpc(self, rpc_id: int, port: int, to_port: int, is_client: bool) -> PeerRpc:
        self._births += 1
        rpc = self.rpcs[rpc_id] = PeerRpc(rpc_id, port, to_port, is_client, self._births)
        return rpc

    def _end(self, rpc: PeerRpc, data: bytes | None) -> None:
        del self.rpcs[rpc.id]
        if not rpc.is_client:
            return
        self.outcomes[rpc.id] = data
        if data is not None:
            if len(self.acks) == homa.MAX_ACKS:
                self._ack(rpc.id, rpc.port, rpc.to_port)
            else:
                self.acks.append((rpc.id, rpc.to_port))
        self._may_begin += 1
        self._begin()

    def _ack(self, rpc_id: int, port: int, to_port: int) -> None:
        entries = tuple(homa.AckEntry(client_id, 0, server) for client_id, server in self.acks)
        self.acks.clear()
        self._control(homa.Ack(port, to_port, rpc_id, entries), True)

    # -- sending -----------------------------------------------------------------------------------------

    def _frame(self, transport: bytes, is_client: bool) -> None:
        protocol = ipv4.PROTO_TCP if self._tcp[is_client] else homa.PROTO_HOMA
        ip = IPv4(MODULE_IP, OUR_IP, protocol, 20 + len(transport))
        eth = Ethernet(b"\x02\x00\x0a\x00\x00\x01", b"\x02\x00\x0a\x00\x00\x02")
        self.sent_types[transport[upstream.TYPE_OFFSET]] += 1
        self._send(eth.pack() + ip.pack() + transport)

    def _control(self, packet: homa.Control, is_client: bool) -> None:
        self._frame(upstream.pack(packet), is_client)

    def _data(self, rpc: PeerRpc, at: int, incoming: int, again: bool) -> None:
        assert rpc.out is not None
        stop = next(b for a, b in boundaries(len(rpc.out)) if a == at)
        acked = self.acks.pop(0) if self.acks and not again else (0, 0)
        header = homa.Data(rpc.port, rpc.to_port, rpc.id, len(rpc.out), incoming, at,
                           cutoff_version=self.cutoff_version, retransmit=int(again), placed=again,
                           acked_id=acked[0], acked_port=acked[1])
        self._frame(upstream.pack(header) + rpc.out[at:stop], rpc.is_client)

    def _reply(self, rpc: PeerRpc, data: bytes) -> None:
        rpc.out, rpc.in_service = data, False
        rpc.granted = min(UNSCHED_BYTES, len(data))
        self._transmit(rpc)

    def _transmit(self, rpc: PeerRpc) -> None:
        assert rpc.out is not None
        for a, b in boundaries(len(rpc.out)):
            if rpc.sent <= a < rpc.granted:
                self._data(rpc, a, min(UNSCHED_BYTES, len(rpc.out)), False)
                rpc.sent = b

    def _retransmit(self, rpc: PeerRpc, start: int, stop: int) -> None:
        assert rpc.out is not None
        for a, b in boundaries(len(rpc.out)):
            if a < stop and start < b <= rpc.sent:
                self._data(rpc, a, min(stop, len(rpc.out)), True)

    # -- time --------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """``homa_timer``, a millisecond after the last."""
        self._tick += 1
        for rpc in list(self.rpcs.values()):
            if self.rpcs.get(rpc.id) is rpc:
                self._check(rpc)

    def _check(self, rpc: PeerRpc) -> None:
        rpc.silent += 1
        if not rpc.is_client and rpc.out is not None:
            rpc.silent = 0
            if rpc.sent == len(rpc.out):
                if rpc.done_tick < 0:
                    rpc.done_tick = self._tick
                elif self._tick - rpc.done_tick >= REQUEST_ACK_TICKS - 1:
                    self._control(homa.NeedAck(rpc.port, rpc.to_port, rpc.id), False)
            return
        waits = rpc.inm is not None and not rpc.inm.missing()
        unsent = rpc.out is not None and rpc.inm is None and rpc.sent < rpc.granted
        if waits or unsent or rpc.in_service:
            rpc.silent = 0
        elif rpc.silent >= TIMEOUT_TICKS:
            self._end(rpc, None)
        elif rpc.silent >= RESEND_TICKS and (rpc.silent - RESEND_TICKS) % RESEND_INTERVAL == 0:
            self._ask_again(rpc)

    def _ask_again(self, rpc: PeerRpc) -> None:
        ranges = [(0, upstream.ALL)] if rpc.inm is None else rpc.inm.missing()
        for offset, length in ranges:
            self._control(homa.Resend(rpc.port, rpc.to_port, rpc.id, offset, length, 7), rpc.is_client)

    # -- receiving ---------------------------------------------------------------------------------------

    def receive(self, frame: bytes) -> None:
        """A frame of ours; it must be sound."""
        ip, packet, payload = wire_frame.parse_untrusted(frame, homa.UPSTREAM)
        assert ip.identification == 0
        assert ip.tos == 0xE0 or isinstance(packet, homa.Data)
        if ip.protocol == ipv4.PROTO_TCP:
            transport = frame[34:14 + ip.total_length]
            # Good, checksum included.
            assert upstream.tcp_checksum(ip.src, ip.dst, transport) == 0
            if not self._gro:
                self.unread += 1
                return
        if isinstance(packet, homa.Data) and not packet.placed and not self._gro:
            self.unread += 1
            return
        self._take(packet, payload)

    def _take(self, packet: homa.Packet, payload: bytes) -> None:
        own = packet.sender_id ^ 1
        rpc = self.rpcs.get(own)
        if isinstance(packet, homa.Ack):
            entries = [a.client_id for a in packet.acks if a.server_port == MODULE_PORT]
            for client_id in (packet.sender_id, *entries):
                self._acked(client_id)
        elif isinstance(packet, homa.Cutoffs):
            self.cutoff_version = packet.cutoff_version
        elif isinstance(packet, homa.NeedAck):
            if rpc is None:
                self._ack(own, packet.dport, packet.sport)
            elif rpc.inm is None or rpc.inm.missing():
                self._ask_again(rpc)
        elif isinstance(packet, homa.Data):
            self._on_data(rpc, packet, payload)
        elif rpc is None:
            if isinstance(packet, homa.Resend):
                self._control(homa.Unknown(packet.dport, packet.sport, own), not own & 1)
        elif isinstance(packet, homa.Grant):
            rpc.silent = 0
            if rpc.out is not None:
                rpc.granted = max(rpc.granted, min(packet.offset, len(rpc.out)))
                self._transmit(rpc)
        elif isinstance(packet, homa.Busy):
            rpc.silent = 0
        elif isinstance(packet, homa.Resend):
            self._on_resend(rpc, packet)
        elif isinstance(packet, homa.Unknown):
            if not rpc.is_client:
                self._end(rpc, None)
            elif rpc.inm is None:
                self._retransmit(rpc, 0, rpc.sent)

    def _on_resend(self, rpc: PeerRpc, packet: homa.Resend) -> None:
        if rpc.out is None:
            self._control(homa.Busy(rpc.port, rpc.to_port, rpc.id), rpc.is_client)
            return
        stop = rpc.sent if packet.length < 0 else packet.offset + packet.length
        sent = rpc.sent
        if stop > rpc.granted:
            rpc.granted = min(stop, len(rpc.out))
            self._transmit(rpc)
        if packet.offset >= sent:
            self._control(homa.Busy(rpc.port, rpc.to_port, rpc.id), rpc.is_client)
        else:
            self._retransmit(rpc, packet.offset, min(stop, sent))

    def _on_data(self, rpc: PeerRpc | None, packet: homa.Data, payload: bytes) -> None:
        if packet.acked_id and packet.acked_port == MODULE_PORT:
            self._acked(packet.acked_id)
        own = packet.sender_id ^ 1
        if packet.cutoff_version != 1 and self._cutoffs_tick != self._tick:
            self._cutoffs_tick = self._tick
            self._control(homa.Cutoffs(packet.dport, packet.sport, own, CUTOFFS, 1), not own & 1)
        if rpc is None:
            if not own & 1 or packet.message_length > MAX_MESSAGE or packet.dport != MODULE_PORT:
                return
            rpc = self._rpc(own, MODULE_PORT, packet.sport, False)
        rpc.silent = 0
        if (not rpc.is_client and rpc.out is not None) or rpc.in_service:
            return
        if rpc.inm is None:
            rpc.inm = Incoming(packet.message_length, min(packet.incoming, packet.message_length))
        rpc.inm.add(packet.segment_offset + packet.packet_offset, payload)
        data = rpc.inm.whole()
        if data is None:
            self._grant(rpc)
        elif rpc.is_client:
            self._end(rpc, data)
        else:
            self.delivered.append(data)
            rpc.inm, rpc.in_service = None, True
            if self.serving:
                self._reply(rpc, answer(data))
        if data is not None:
            self._grant(None)

    def _grant(self, arrived: PeerRpc | None) -> None:
        """``homa_grant``: who may go on; and again for the one of which something arrived."""
        active = sorted((r for r in self.rpcs.values() if r.inm is not None and r.inm.granted < r.inm.length),
                        key=lambda r: (r.inm.length - r.inm.have if r.inm else 0, r.birth))[:MAX_OVERCOMMIT]
        incoming = sum(max(0, r.inm.granted - r.inm.have) for r in self.rpcs.values() if r.inm is not None)
        room = MAX_INCOMING - incoming
        window = MAX_INCOMING // (len(active) + 1)
        for rank, rpc in enumerate(active):
            assert rpc.inm is not None
            offset = min(rpc.inm.length, rpc.inm.have + window, rpc.inm.granted + max(room, 0))
            if offset > rpc.inm.granted:
                room -= offset - rpc.inm.granted
                self._fifo_bytes += offset - rpc.inm.granted
                rpc.inm.granted, rpc.rank = offset, rank
                self._say_granted(rpc, max(0, 3 - rank - max(0, 4 - len(active))))
        if arrived is not None and arrived not in active and arrived.inm is not None:
            inm = arrived.inm
            if inm.granted == inm.length > UNSCHED_BYTES:
                # Granted to its end long ago, and told so once more.
                self._say_granted(arrived, 0)
        if active and self._fifo_bytes >= 1_000_000:
            self._fifo_bytes = 0
            oldest = min(active, key=lambda r: r.birth)
            assert oldest.inm is not None
            oldest.inm.granted = min(oldest.inm.length, oldest.inm.granted + FIFO_INCREMENT)
            self._say_granted(oldest, 6)

    def _say_granted(self, rpc: PeerRpc, priority: int) -> None:
        assert rpc.inm is not None
        self._control(homa.Grant(rpc.port, rpc.to_port, rpc.id, rpc.inm.granted, priority), rpc.is_client)

    def _acked(self, client_id: int) -> None:
        rpc = self.rpcs.get(client_id ^ 1)
        if rpc is not None and not rpc.is_client:
            self._end(rpc, None)


def boundaries(length: int) -> list[tuple[int, int]]:
    """(start, stop) of a message's packets: one ends where the unscheduled bytes do."""
    out: list[tuple[int, int]] = []
    at = 0
    while at < length:
        stop = min(at + MSS, length, UNSCHED_BYTES if at < UNSCHED_BYTES else length)
        out.append((at, stop))
        at = stop
    return out


class Lab:
    """Our engine and the module on one cable that loses frames, and brings some late."""

    def __init__(self, *, loss: float = 0.0, reorder: float = 0.0, seed: int = 1,
                 params: TransportParams | None = None, client_tcp: bool = False, server_tcp: bool = False,
                 gro: bool = True) -> None:
        self._random = Random(seed)
        self._loss = loss
        self._reorder = reorder
        self.now = 0
        self._flying: list[tuple[int, int, bool, bytes]] = []
        self._count = 0
        self.module = UpstreamPeer(self._from_module, client_tcp=client_tcp, server_tcp=server_tcp, gro=gro)
        self.ours = make_side(OUR_IP, OUR_PORT, "upstream", demo_keys("upstream", first_id=1 << 20), params,
                              NicConfig())
        self.events: list[Event] = []
        self.asked: dict[object, bytes] = {}
        self.delivered: list[bytes] = []
        self.unanswered: list[Request] = []
        self.to_module: list[tuple[int, bytes]] = []
        self.from_module: list[tuple[int, bytes]] = []
        self._next_tick = TICK_NS
        self.serving = True

    def _fly(self, to_us: bool, frame: bytes) -> None:
        if self._random.random() >= self._loss:
            self._count += 1
            late = self._random.randrange(300_000) if self._random.random() < self._reorder else 0
            heapq.heappush(self._flying, (self.now + DELAY_NS + late, self._count, to_us, frame))

    def _from_module(self, frame: bytes) -> None:
        self.from_module.append((self.now, frame))
        self._fly(True, frame)

    def cut(self, loss: float) -> None:
        """The cable loses another share from now on."""
        self._loss = loss

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
                self.ours.receive([frame], self.now)
            else:
                self.module.receive(frame)
        if self.now >= self._next_tick:
            self._next_tick += TICK_NS
            self.module.tick()
        endpoint.handle_timeout(self.now)
        while (event := endpoint.next_event()) is not None:
            if not isinstance(event, Request):
                self.events.append(event)
                continue
            self.delivered.append(event.data)
            if self.serving:
                endpoint.send_reply(event.rpc, answer(event.data), self.now)
            else:
                self.unanswered.append(event)

    def run_until(self, done: Callable[[], bool], limit_ns: int = LIMIT_NS) -> None:
        """Steps until ``done``; fails the test when that takes ``limit_ns`` of virtual time more."""
        limit = self.now + limit_ns
        while not done():
            assert self.now < limit, "the conversation does not end"
            self.step()

    def elapse(self, ns: int) -> None:
        """So much virtual time passes."""
        until = self.now + ns
        while self.now < until:
            self.step()

    def ask(self, data: bytes) -> None:
        """A request of ours to the module's server."""
        self.asked[self.ours.endpoint.send_request(MODULE_IP, MODULE_PORT, data, self.now)] = data

    def converse(self, sizes: list[int], under_way: int, ours: bool) -> tuple[int, int]:
        """Requests of these sizes, so many at a time, from us or from the module: how many were answered, and how
        many failed. What comes back wrong fails the test."""
        requests = [content(size, number) for number, size in enumerate(sizes)]
        if not ours:
            self.module.ask(requests, under_way)
            self.run_until(lambda: len(self.module.outcomes) == len(requests))
            for rpc_id, data in self.module.outcomes.items():
                assert data in (None, answer(self.module.requests[rpc_id]))
            failed = sum(data is None for data in self.module.outcomes.values())
            return len(requests) - failed, failed
        todo = list(reversed(requests))

        def more() -> bool:
            while todo and len(self.asked) - len(self.events) < under_way:
                self.ask(todo.pop())
            return len(self.events) == len(requests)

        self.run_until(more)
        good = [e for e in self.events if isinstance(e, Response)]
        assert all(e.data == answer(self.asked[e.rpc]) for e in good)
        return len(good), sum(isinstance(e, Failed) for e in self.events)

    def sent(self, kind: type) -> list[tuple[int, homa.Packet]]:
        """(time, packet) of everything of one type that we sent."""
        return self._packets(self.to_module, kind)

    def heard(self, kind: type) -> list[tuple[int, homa.Packet]]:
        """The same of what the module sent."""
        return self._packets(self.from_module, kind)

    @staticmethod
    def _packets(frames: list[tuple[int, bytes]], kind: type) -> list[tuple[int, homa.Packet]]:
        parsed = ((at, wire_frame.parse_untrusted(frame, homa.UPSTREAM)[1]) for at, frame in frames)
        return [(at, packet) for at, packet in parsed if isinstance(packet, kind)]

    @property
    def protocols(self) -> tuple[set[int], set[int]]:
        """IP protocols of what we sent, and of what the module did."""
        at = wire_frame.PROTOCOL_AT
        return {frame[at] for _t, frame in self.to_module}, {frame[at] for _t, frame in self.from_module}


def content(size: int, number: int = 0) -> bytes:
    """Bytes that tell where they belong."""
    return bytes((7 * i + i // 251 + number) % 256 for i in range(size))
