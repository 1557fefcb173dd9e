"""The slowdown simulation, in virtual time: open-loop Poisson traffic, all to all, through one switch.

Every host sends messages to random others. A message is the request of an RPC; it is timed from its
*scheduled* arrival at the sender until the whole request is delivered at the receiver, which answers with
:data:`REPLY_BYTES`. Slowdown is that time over the best a message of exactly this size can do: alone in
the same network, in profile ``homa``. One denominator for all profiles, so that what encryption adds shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random

from smtstack.crypto.keys import demo_keys
from smtstack.errors import ConfigError, SmtError
from smtstack.sim.host import SimEndpoint, SimHost
from smtstack.sim.link import LinkParams, wire_bytes
from smtstack.sim.network import Network, star
from smtstack.transport.events import Event, Failed, Request
from smtstack.transport.params import PACKET_HEADERS, TransportParams
from smtstack.wire import ipv4
from smtstack.wire.ethernet import HEADER_LEN
from smtstack.wire.homa import Grant
from workloads.load.cutoffs import unsched_cutoffs
from workloads.load.distributions import Distribution

#: The answer that ends an RPC at its client: as small as the smallest message of the workloads.
REPLY_BYTES = 8
_PORT = 4000
_GRANT_FRAME = HEADER_LEN + ipv4.HEADER_LEN + len(Grant(0, 0, 0, 0, 0).pack())
_NO_BOUND = 1 << 40
#: Messages sent before the measured ones and after them, so that these meet a network under load, as
#: parts of the measured.
WARM_UP, COOL_DOWN = 0.10, 0.05
#: Virtual time between two looks at the progress.
_SLICE_NS = 1_000_000
#: Virtual time that what is under way at the end may take to arrive.
_DRAIN_NS = 2_000_000_000

#: Called now and then with the share of the run that is done, 0 to 1.
ShareDone = Callable[[float], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """What is fixed in one run. The defaults are SIGCOMM'18's where one switch can have them."""

    hosts: int = 10
    load: float = 0.8
    """Share of every host's link that the DATA packets of requests and replies take, all headers included,
    as profile ``homa`` packs them. Other profiles get the same messages, whatever they make of them. Grants
    and acknowledgements come on top."""
    rate_mbps: int = 10_000
    base_rtt_ns: int = 7_800
    """Round trip of a full packet one way and a GRANT back, alone in the network. What rate and switch leave
    of it is host software, in four equal parts; they are fixed times, so links have them (:attr:`delay_ns`)."""
    forwarding_ns: int = 250
    """How long the switch takes for a packet."""
    unsched_bytes: int = 10_000
    num_priorities: int = 8
    max_gso_size: int = 1_500
    """Segments of one packet: the sender can change its mind after each, as in the simulation."""
    max_nic_queue_ns: int = 0
    """The next packet goes to the NIC when the last one has left it."""
    throttle_min_bytes: int = 0
    """No message passes the sender's queue by, however short: strict SRPT there, too."""
    fifo_fraction: int = 0
    """Per mille of sent and of granted bytes that go to the oldest message: none in the simulation, 50 by
    the transport's default."""
    messages: int = 100_000
    """Measured ones; :data:`WARM_UP` and :data:`COOL_DOWN` come on top."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.hosts < 2 or self.messages < 1:
            raise ConfigError("a run needs at least 2 hosts and 1 message")
        if not 0 < self.load <= 1:
            raise ConfigError(f"load is {self.load}; a share of the link above 0, up to 1")
        if self.delay_ns < 0:
            raise ConfigError(f"a round trip at {self.rate_mbps} Mbit/s takes more than {self.base_rtt_ns} ns")

    @property
    def delay_ns(self) -> int:
        """Delay of each link, ns."""
        round_trip = wire_bytes(HEADER_LEN + TransportParams().mtu) + wire_bytes(_GRANT_FRAME)
        return (self.base_rtt_ns - 2 * self.forwarding_ns - 2 * round_trip * 8000 // self.rate_mbps) // 4

    def params(self, sizes: Distribution) -> TransportParams:
        """Parameters of every endpoint. Overcommitment is the number of scheduled levels, as in the paper."""
        cutoffs = unsched_cutoffs(sizes, self.unsched_bytes, self.num_priorities)
        return TransportParams(
            max_gso_size=self.max_gso_size, unsched_bytes=self.unsched_bytes, link_mbps=self.rate_mbps,
            max_nic_queue_ns=self.max_nic_queue_ns,
            throttle_min_bytes=self.throttle_min_bytes, num_priorities=self.num_priorities,
            max_sched_prio=cutoffs.max_sched_prio, max_overcommit=cutoffs.max_sched_prio + 1,
            unsched_cutoffs=cutoffs.table, pacer_fifo_fraction=self.fifo_fraction,
            grant_fifo_fraction=self.fifo_fraction, max_message_length=sizes.sizes[-1],
            # The bounds against memory exhaustion are for strangers.
            max_rpcs_per_host=_NO_BOUND, max_server_rpcs=_NO_BOUND, max_rx_bytes_per_host=_NO_BOUND,
            max_rx_bytes=_NO_BOUND)

    def network(self, hosts: int) -> Network:
        """``hosts`` hosts at a switch with strict priorities and room for everything."""
        return star(hosts, self.seed, LinkParams(self.rate_mbps, self.delay_ns), forwarding_ns=self.forwarding_ns)


def homa_wire_bytes(size: int, params: TransportParams) -> int:
    """Link bytes of the DATA packets that carry a message of ``size`` bytes in profile ``homa``."""
    full, rest = divmod(size, params.segment_payload)
    cost = full * wire_bytes(HEADER_LEN + PACKET_HEADERS + params.segment_payload)
    return cost + (wire_bytes(HEADER_LEN + PACKET_HEADERS + rest) if rest else 0)


def rpc_wire_bytes(sizes: Distribution, params: TransportParams) -> dict[int, int]:
    """Link bytes of DATA, by size of the request: its own, and those of the reply."""
    reply = homa_wire_bytes(REPLY_BYTES, params)
    return {size: homa_wire_bytes(size, params) + reply for size in sizes.sizes}


def mean_cost(sizes: Distribution, params: TransportParams) -> float:
    """Mean of :func:`rpc_wire_bytes` over the distribution."""
    cost = rpc_wire_bytes(sizes, params)
    return sum(cost[size] * share for size, share in sizes.items())


def unloaded_ns(setting: Setting, params: TransportParams, sizes: Iterable[int]) -> dict[int, int]:
    """Nanoseconds from send to delivery of one message of each size, alone in the network."""
    net = setting.network(2)
    arrived: list[int] = []

    def answer(here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            arrived.append(net.now)
            here.send_reply(event.rpc, bytes(REPLY_BYTES))

    client, server = (host.listen(_PORT, "homa", demo_keys("homa"), answer, params)
                      for host in net.hosts.values())
    out: dict[int, int] = {}
    for size in sorted(set(sizes)):
        start = net.now
        client.send_request(server.host.ip, _PORT, bytes(size))
        net.run()
        out[size] = arrived.pop() - start
    return out


@dataclass(slots=True)
class Result:
    """What one profile did. Lists run over the measured messages, in the order they were scheduled."""

    profile: str
    quantiles: list[float] = field(default_factory=list)
    """Place of each message's size in the distribution, 0 to 1."""
    sizes: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    """From scheduled arrival to delivery; -1: not delivered."""
    undelivered: int = 0
    """Messages that did not arrive, of all that were sent, the unmeasured ones included."""
    failed: int = 0
    """RPCs their clients gave up."""
    nominal_load: float = 0.0
    offered_load: float = 0.0
    """What the random arrivals of the measured period amount to."""
    achieved_load: float = 0.0
    """What was delivered in that period."""
    link_use: float = 0.0
    """Share of the hosts' links that was taken in that period, by everything the profile sent."""
    backlog_bytes: int = 0
    """Message bytes scheduled and not delivered when the measured period ended."""
    drain_ns: int = 0
    """From the last scheduled message to the last delivery."""
    period_ns: int = 0
    resends: int = 0
    packets_resent: int = 0
    drops: int = 0
    queue_peak_bytes: int = 0
    frames: int = 0

    @property
    def drained(self) -> bool:
        """Whether everything was delivered."""
        return not self.undelivered


class LoadRun:
    """One profile under load. :meth:`run` once."""

    def __init__(self, setting: Setting, profile: str, sizes: Distribution) -> None:
        self._setting = setting
        self._sizes = sizes
        params = self._params = setting.params(sizes)
        self._net = setting.network(setting.hosts)
        self._hosts: list[SimHost] = list(self._net.hosts.values())
        self._ends = [host.listen(_PORT, profile, demo_keys(profile), self._on_event, params)
                      for host in self._hosts]
        self._cost = rpc_wire_bytes(sizes, params)
        #: Mean ns between two messages of one host.
        self._gap = mean_cost(sizes, params) * 8000 / setting.rate_mbps / setting.load
        self._randoms: list[Random] = [self._net.random(f"arrivals of {host.name}") for host in self._hosts]
        self._content = bytes(range(256)) * (sizes.sizes[-1] // 256 + 1)
        self._reply = bytes(REPLY_BYTES)
        before = int(setting.messages * WARM_UP)
        #: Numbers of the first measured message, the first after them, and the first that is not sent.
        self._first = before
        self._stop = before + setting.messages
        self._total = self._stop + int(setting.messages * COOL_DOWN)
        self._quantile: list[float] = []
        self._size: list[int] = []
        self._scheduled: list[int] = []
        self._delivered: list[int] = []
        #: Number of the message by (sender, receiver, id) of its RPC.
        self._pending: dict[tuple[int, int, int], int] = {}
        self._pending_bytes = 0
        self._link_bytes = [0, 0]
        self._result = Result(profile, nominal_load=setting.load)

    def _on_event(self, here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            rpc = event.rpc
            number = self._pending.pop((rpc.peer.host.ip, here.host.ip, rpc.id ^ 1), -1)
            if number >= 0:
                size = self._size[number]
                if len(event.data) != size:
                    raise SmtError(f"a message of {size} bytes arrived as {len(event.data)}")
                self._delivered[number] = self._net.now
                self._pending_bytes -= size
            here.send_reply(rpc, self._reply)
        elif isinstance(event, Failed):
            self._result.failed += 1

    def _arrival(self, sender: int, at: float) -> None:
        """A message of host ``sender`` is due (at ``at``, before rounding to ns), and the next is scheduled."""
        number = len(self._size)
        if number >= self._total:
            return
        if number in (self._first, self._stop):
            self._mark(number)
        random = self._randoms[sender]
        u = random.random()
        size = self._sizes.quantile(u)
        to = random.randrange(len(self._hosts) - 1)
        receiver = self._hosts[to if to < sender else to + 1]
        self._quantile.append(u)
        self._size.append(size)
        self._scheduled.append(self._net.now)
        self._delivered.append(-1)
        self._pending_bytes += size
        end = self._ends[sender]
        rpc = end.endpoint.send_request(receiver.ip, _PORT, self._content[:size], self._net.now)
        self._pending[end.host.ip, receiver.ip, rpc.id] = number
        end.work()
        at += random.expovariate(1 / self._gap)
        self._net.clock.schedule(int(at), self._arrival, sender, at)

    def _mark(self, number: int) -> None:
        sent = sum(host.port.bytes for host in self._hosts if host.port is not None)
        if number == self._first:
            self._link_bytes[0] = sent
        else:
            self._link_bytes[1] = sent
            self._result.backlog_bytes = self._pending_bytes

    def _prime(self) -> None:
        """One tiny RPC between all hosts both ways: everybody knows everybody's cutoffs before the load."""
        for one in self._ends:
            for other in self._ends:
                if one is not other:
                    one.send_request(other.host.ip, _PORT, self._reply)
        self._net.run()

    def run(self, progress: ShareDone = lambda _done: None) -> Result:
        """All of it, to the last delivery or the end of patience."""
        net = self._net
        self._prime()
        for sender, random in enumerate(self._randoms):
            at = net.now + random.expovariate(1 / self._gap)
            net.clock.schedule(int(at), self._arrival, sender, at)
        while len(self._size) < self._total:
            net.run(net.now + _SLICE_NS)
            progress(len(self._size) / self._total)
        last = self._scheduled[-1]
        while self._pending and net.now < last + _DRAIN_NS:
            net.run(net.now + _SLICE_NS)
        return self._finish(last)

    def _finish(self, last: int) -> Result:
        out = self._result
        measured = slice(self._first, self._stop)
        out.quantiles = self._quantile[measured]
        out.sizes = self._size[measured]
        out.times_ns = [done - start if done >= 0 else -1
                        for start, done in zip(self._scheduled[measured], self._delivered[measured], strict=True)]
        out.undelivered = len(self._pending)
        out.drain_ns = max(0, max(self._delivered) - last)
        begin, end = self._scheduled[self._first], self._scheduled[min(self._stop, self._total - 1)]
        out.period_ns = end - begin
        cost = self._cost
        capacity = len(self._hosts) * self._setting.rate_mbps * out.period_ns / 8000
        out.offered_load = sum(cost[size] for size in out.sizes) / capacity
        out.achieved_load = sum(cost[size] for size, done in zip(self._size, self._delivered, strict=True)
                                if begin <= done < end) / capacity
        out.link_use = (self._link_bytes[1] - self._link_bytes[0]) / capacity
        for sim in self._ends:
            counters = sim.endpoint.counters
            out.resends += counters.resends_sent
            out.packets_resent += counters.packets_resent
        out.drops = self._net.drops()
        out.queue_peak_bytes = self._net.queue_peak()
        out.frames = sum(port.frames for port in self._net.ports.values())
        return out
