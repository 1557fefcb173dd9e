"""A host: one smart NIC with its driver, and endpoints that share it by port number.

Host software takes no time of its own, or a fixed ``host_delay_ns`` each way. Everything between an
endpoint and the wire is the real code: segments -> driver -> descriptors -> device -> frames, and back.
"""

from __future__ import annotations

from collections.abc import Callable

from smtstack.crypto.keys import KeyStore
from smtstack.errors import ConfigError
from smtstack.nic.device import SmartNic
from smtstack.nic.driver import ContextPolicy, Neighbours, NicDriver
from smtstack.nic.impairments import Impairments
from smtstack.sim.clock import Clock
from smtstack.sim.link import EgressPort
from smtstack.stack import Stack
from smtstack.transport.events import Event
from smtstack.transport.params import MAX_MTU, TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.transport.upstream_endpoint import make_endpoint
from smtstack.wire.ethernet import HEADER_LEN
from smtstack.wire.frame import DPORT_AT, MIN_LEN


class SimEndpoint:
    """An :class:`Endpoint` on a host in virtual time.

    ``on_event(self, event)`` is called for every event at the time it happens, and may send from there.
    """

    __slots__ = ("_clock", "_wakes", "_working", "endpoint", "host", "on_event", "stack")

    def __init__(self, host: SimHost, stack: Stack, on_event: OnEvent | None) -> None:
        self.host = host
        self.stack = stack
        self.endpoint = stack.endpoint
        self.on_event = on_event
        self._clock = host.clock
        #: Times of the wake-ups in the clock's heap, latest first. One is added only if it comes before all
        #: others, so a pacer that wakes every microsecond does not pile up entries for a timer far away.
        self._wakes: list[int] = []
        self._working = False

    def send_request(self, ip: int, port: int, data: bytes, cookie: object = None) -> Rpc:
        """Begin an RPC now: :meth:`Endpoint.send_request`."""
        rpc = self.endpoint.send_request(ip, port, data, self._clock.now, cookie)
        self.work()
        return rpc

    def send_reply(self, rpc: Rpc, data: bytes) -> bool:
        """Answer a Request now: :meth:`Endpoint.send_reply`."""
        sent = self.endpoint.send_reply(rpc, data, self._clock.now)
        self.work()
        return sent

    def abort(self, rpc: Rpc) -> None:
        """End an RPC now: :meth:`Endpoint.abort`."""
        self.endpoint.abort(rpc)
        self.work()

    def handle_packet(self, frame: bytes) -> None:
        """A frame for this endpoint came off the NIC."""
        self.endpoint.handle_packet(frame, self._clock.now)
        self.work()

    def work(self) -> None:
        """Pass on what the endpoint has to say, to the application and to the network."""
        if self._working:
            # Called from on_event: the loop below is running and sends what the callback gave us.
            return
        self._working = True
        endpoint = self.endpoint
        while (event := endpoint.next_event()) is not None:
            if self.on_event is not None:
                self.on_event(self, event)
        frames = self.stack.transmit(self._clock.now)
        if frames:
            self.host.send(frames)
        self._working = False
        self._arm()

    def _arm(self) -> None:
        at = self.stack.next_timeout()
        if at is None:
            return
        at = max(at, self._clock.now + 1)
        wakes = self._wakes
        if not wakes or at < wakes[-1]:
            wakes.append(at)
            self._clock.schedule(at, self._wake)

    def _wake(self) -> None:
        self._wakes.pop()
        self.stack.handle_timeout(self._clock.now)
        self.work()


#: Called with (where, what) for every event.
OnEvent = Callable[[SimEndpoint, Event], None]


class SimHost:
    """One machine with one NIC at one link."""

    def __init__(self, clock: Clock, name: str, ip: int, mac: bytes, nic: SmartNic, neighbours: Neighbours, *,
                 host_delay_ns: int = 0, strict_priority: bool = False,
                 policy: ContextPolicy = ContextPolicy.PER_QUEUE, mtu: int = MAX_MTU,
                 tx_faults: Impairments | None = None, rx_faults: Impairments | None = None) -> None:
        self.clock = clock
        self.name = name
        self.ip = ip
        self.mac = mac
        self.nic = nic
        self.strict_priority = strict_priority
        #: Between device and wire; None: none.
        self.tx_faults = tx_faults
        #: Between wire and device.
        self.rx_faults = rx_faults
        #: Set when the host is connected.
        self.port: EgressPort | None = None
        #: By port number.
        self.endpoints: dict[int, SimEndpoint] = {}
        #: Frames whose destination port nobody has.
        self.unclaimed = 0
        #: Frames that came and were longer than the interface takes.
        self.too_long = 0
        self._longest = mtu + HEADER_LEN
        self._neighbours = neighbours
        self._policy = policy
        self._delay = host_delay_ns
        self._drivers: dict[int, NicDriver] = {}

    def listen(self, port: int, profile: str, keys: KeyStore, on_event: OnEvent | None = None,
               params: TransportParams | None = None, protocol: int | None = None,
               overlay: bool = False) -> SimEndpoint:
        """A new endpoint, with or without the overlay.

        Raises :class:`ConfigError` if ``port`` is taken or the profile unknown.
        """
        if port in self.endpoints:
            raise ConfigError(f"{self.name}: port {port} is in use")
        endpoint = make_endpoint(self.ip, port, profile, keys, params, protocol, overlay)
        sim = self.endpoints[port] = SimEndpoint(self, Stack(endpoint, self.driver(endpoint.protocol)), on_event)
        return sim

    def driver(self, protocol: int) -> NicDriver:
        """The NIC's driver for one IP protocol; endpoints of that protocol share it."""
        driver = self._drivers.get(protocol)
        if driver is None:
            driver = self._drivers[protocol] = NicDriver(self.nic, self.mac, self.ip, protocol, self._neighbours,
                                                         self._policy)
        return driver

    def send(self, frames: list[bytes]) -> None:
        """Frames leave the device."""
        port = self.port
        if port is None:
            raise ConfigError(f"{self.name} has something to send, but is not connected")
        clock = self.clock
        for frame in frames:
            if self.tx_faults is None and not self._delay:
                port.send(frame)
                continue
            at = clock.now + self._delay
            for when, sent in [(at, frame)] if self.tx_faults is None else self.tx_faults.apply(frame, at):
                clock.schedule(when, port.send, sent)

    def receive(self, frame: bytes) -> None:
        """A frame came off the wire."""
        if len(frame) > self._longest:
            self.too_long += 1
            return
        if self.rx_faults is None:
            self._to_nic(frame)
            return
        clock = self.clock
        for when, got in self.rx_faults.apply(frame, clock.now):
            if when > clock.now:
                clock.schedule(when, self._to_nic, got)
            else:
                self._to_nic(got)

    def _to_nic(self, frame: bytes) -> None:
        # Its rings never hold more than this: software takes a frame the moment it comes, and is slow afterwards.
        self.nic.receive(frame)
        for got in self.nic.collect():
            if self._delay:
                self.clock.schedule(self.clock.now + self._delay, self._to_endpoint, got)
            else:
                self._to_endpoint(got)

    def _to_endpoint(self, frame: bytes) -> None:
        endpoint = None
        if len(frame) >= MIN_LEN:
            endpoint = self.endpoints.get(frame[DPORT_AT] << 8 | frame[DPORT_AT + 1])
        if endpoint is None:
            self.unclaimed += 1
        else:
            endpoint.handle_packet(frame)
