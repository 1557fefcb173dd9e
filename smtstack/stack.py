"""One end: an endpoint, the driver below it and the smart NIC below that, moved by one pump.

Sans-IO. Whoever has frames and a clock (a packet socket, the simulator, a test) does these, in any order:

    stack.receive(frames, now)       what came off the wire
    stack.handle_timeout(now)        when stack.next_timeout() says
    stack.endpoint.next_event()      until it returns None
    for frame in stack.transmit(now): send it

Several stacks may share a driver, as the sockets of a host share its NIC. A frame then goes to the stack of its
destination port.
"""

from __future__ import annotations

from smtstack.crypto.keys import KeyStore
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.nic.driver import Neighbours, NicDriver
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.params import TransportParams
from smtstack.transport.segment import Segment
from smtstack.transport.upstream_endpoint import make_endpoint


class Stack:
    """An endpoint on a NIC. Times are integers in ns, of any clock that does not go back."""

    def __init__(self, endpoint: Endpoint, driver: NicDriver) -> None:
        self.endpoint = endpoint
        self.driver = driver
        #: Segments that go before what the endpoint has: added, or such as did not fit the device's ring.
        self._kept: list[Segment] = []

    @property
    def nic(self) -> SmartNic:
        """The device."""
        return self.driver.nic

    # -- out ---------------------------------------------------------------------------------------------

    def transmit(self, now: int) -> list[bytes]:
        """Everything that may go now, as the frames the device makes of it.

        Nothing stays behind: when a ring is full, the device works it off, and the same segment is tried again.
        One whose next hop has no MAC address is dropped, and counted by the driver.
        """
        segments = self.endpoint.drain(now)
        if self._kept:
            segments, self._kept = self._kept + segments, []
        driver = self.driver
        nic = driver.nic
        if not segments and not nic.posted:
            return []
        out: list[bytes] = []
        straight = driver.straight(segments, out)
        if straight == len(segments) and not nic.posted:
            return out
        for segment in segments[straight:]:
            while not driver.transmit(segment):
                self._ring_full(segment)
                out += nic.process()
        return out + nic.process() if out else nic.process()

    def post(self, now: int) -> bool:
        """Hand segments to the device, until its ring is full; whether any went.

        For who runs the device himself. What does not fit is kept, and goes before anything else the next time.
        """
        segments = self._kept or self.endpoint.drain(now)
        self._kept = []
        transmit = self.driver.transmit
        for number, segment in enumerate(segments):
            if not transmit(segment):
                self._ring_full(segment)
                self._kept = segments[number:]
                return number > 0
        return bool(segments)

    def _ring_full(self, segment: Segment) -> None:
        trace = self.endpoint.trace
        if trace is not None:
            trace.ring_full(segment)

    def add(self, segment: Segment) -> None:
        """Send a segment that the endpoint knows nothing of: with the next call, before all of its own."""
        self._kept.append(segment)

    # -- in ----------------------------------------------------------------------------------------------

    def receive(self, frames: list[bytes], now: int, limit: int = 0) -> int:
        """Take frames off the wire, all of which came before anybody looked; how many reached the endpoint.

        They go into the device's receive rings, where what does not fit is lost, and the endpoint gets at most
        ``limit`` of all that is there (0: all). The rest waits in the rings for the next call: ``nic.waiting``.
        """
        taken = self.driver.nic.take_in(frames, limit)
        handle = self.endpoint.handle_packet
        for frame in taken:
            handle(frame, now)
        return len(taken)

    # -- time --------------------------------------------------------------------------------------------

    def next_timeout(self) -> int | None:
        """When to call :meth:`handle_timeout` and :meth:`transmit` at the latest; None: never, 0: now."""
        return 0 if self._kept else self.endpoint.next_timeout()

    def handle_timeout(self, now: int) -> None:
        """Let timers act that are due at ``now``."""
        self.endpoint.handle_timeout(now)


def make_stack(ip: int, port: int, profile: str, keys: KeyStore, params: TransportParams | None,
               nic: SmartNic | NicConfig | None, mac: bytes, neighbours: Neighbours,
               overlay: bool = False) -> Stack:
    """An end with a NIC of its own, and with ``overlay`` a wire that takes super-frames.

    Raises :class:`ConfigError` for a port, profile or NIC that cannot be.
    """
    endpoint = make_endpoint(ip, port, profile, keys, params, overlay=overlay)
    device = nic if isinstance(nic, SmartNic) else SmartNic(nic)
    device.super_frames = overlay
    return Stack(endpoint, NicDriver(device, mac, ip, endpoint.protocol, neighbours))
