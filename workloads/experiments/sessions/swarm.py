"""Thousands of endpoints behind one packet socket: clients of a server that is to hold many sessions.

A session needs a port of its own at the client, and a socket for each would take a receive ring each. Here the
kernel's filter lets a range of ports through, one device and one driver send for all, and a frame goes to the
endpoint of its destination port.
"""

from __future__ import annotations

import heapq
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from smtstack.errors import Unsupported
from smtstack.io import bpf
from smtstack.io.neighbours import Neighbours
from smtstack.io.packet_socket import PACKET_IGNORE_OUTGOING, SEND_BUFFER, SO_SNDBUFFORCE, interface_mtu
from smtstack.io.ring import SOL_PACKET, ReceiveRing
from smtstack.nic.device import SmartNic
from smtstack.nic.driver import NicDriver
from smtstack.session.manager import SessionManager
from smtstack.socket import Address
from smtstack.stack import Stack
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Failed, Response
from smtstack.transport.params import TransportParams
from smtstack.wire.ethernet import ETHERTYPE_IPV4, HEADER_LEN
from smtstack.wire.homa import FORMATS
from smtstack.wire.ipv4 import VERSION_IHL, address

#: Makes what makes the sessions of one endpoint.
MakeManager = Callable[[], SessionManager]
#: Where a frame says whom it is for.
_PORT_AT = slice(36, 38)
_LEAST_LEN = 38
_JUMP_ABOVE, _JUMP_FROM = 0x25, 0x35
#: Frames taken at a time, and seconds to sleep at most.
_BATCH = 64
_IDLE_S = 0.05


def range_filter(ip: int, ports: range, protocol: int) -> list[bpf.Instruction]:
    """Accept frames to ``ip`` and one of ``ports``."""
    exact = bpf.match([(bpf.LD_HALF, 12, ETHERTYPE_IPV4), (bpf.LD_BYTE, 14, VERSION_IHL),
                       (bpf.LD_BYTE, 23, protocol), (bpf.LD_WORD, 30, ip)])
    *fields, accept, reject = exact
    # Every mismatch before jumps to the last instruction, which is three further away now.
    moved = [(code, yes, no + 3 if code == bpf.JUMP_EQUAL else no, value) for code, yes, no, value in fields]
    return [*moved, (bpf.LD_HALF, 0, 0, 36), (_JUMP_FROM, 0, 2, ports.start), (_JUMP_ABOVE, 1, 0, ports.stop - 1),
            accept, reject]


@dataclass(slots=True)
class SwarmTally:
    """What came of one task of the swarm."""

    done: int = 0
    failed: int = 0
    wrong: int = 0
    first_error: str = ""
    seconds: float = 0.0
    #: Of every task that was done, in the order of their ends.
    times_ns: array[int] = field(default_factory=lambda: array("Q"))


class Swarm:
    """Endpoints of profile smt on ``ports`` of ``ip``, each with a manager of its own. Needs CAP_NET_RAW."""

    def __init__(self, interface: str, ip: str, ports: range, make_manager: MakeManager,
                 params: TransportParams) -> None:
        self._ip = address(ip)
        self._make_manager = make_manager
        self._params = params
        self.ports = ports
        protocol = FORMATS["smt"].protocol
        with ExitStack() as undo:
            self._sock = undo.enter_context(_socket(interface, range_filter(self._ip, ports, protocol)))
            # A host without a socket for our protocol says so to every sender: this one takes nothing.
            guard = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
            bpf.attach(guard, bpf.reject_all())
            self._ring = ReceiveRing(self._sock, interface_mtu(interface) + HEADER_LEN)
            undo.callback(self._ring.close)
            self._sock.bind((interface, ETHERTYPE_IPV4))
            self._undo = undo.pop_all()
        mac: bytes = self._sock.getsockname()[4]
        self._driver = NicDriver(SmartNic(), mac, self._ip, protocol, Neighbours(interface))
        #: By port.
        self.stacks: dict[int, Stack] = {}
        self.managers: dict[int, SessionManager] = {}
        #: (when, port): when an endpoint's timers are to be looked at; outdated entries are passed over.
        self._deadlines: list[tuple[int, int]] = []
        #: The deadline of each endpoint that counts.
        self._armed: dict[int, int] = {}
        self.send_drops = 0

    # -- what it does --------------------------------------------------------------------------------------

    def echo(self, peer: Address, size: int, window: int, timeout_s: float) -> SwarmTally:
        """One RPC from every port, ``window`` under way at a time; an answer must be the request, byte for byte.

        An endpoint that is not there yet is made, and has to make its session first.
        """
        ip, port = address(peer[0]), peer[1]
        tally = SwarmTally()
        waiting = deque(self.ports)
        under_way: dict[int, tuple[bytes, int]] = {}
        start = time.monotonic_ns()
        give_up = start + int(timeout_s * 1e9)
        while waiting or under_way:
            now = time.monotonic_ns()
            if now >= give_up:
                tally.failed += len(waiting) + len(under_way)
                tally.first_error = tally.first_error or f"not done within {timeout_s:g} s"
                break
            while waiting and len(under_way) < window:
                own = waiting.popleft()
                data = f"{self._ip:08x}:{own} {now} ".encode().ljust(size, b".")[:size]
                under_way[own] = data, now
                self._stack(own).endpoint.send_request(ip, port, data, now)
                self._attend(own, now)
            for own in self._step():
                self._take(own, under_way, tally)
        tally.seconds = (time.monotonic_ns() - start) / 1e9
        return tally

    def _take(self, own: int, under_way: dict[int, tuple[bytes, int]], tally: SwarmTally) -> None:
        endpoint = self.stacks[own].endpoint
        while (event := endpoint.next_event()) is not None:
            data, began = under_way.pop(own, (b"", 0))
            if isinstance(event, Response) and event.data == data:
                tally.done += 1
                tally.times_ns.append(time.monotonic_ns() - began)
            elif isinstance(event, Response):
                tally.wrong += 1
            elif isinstance(event, Failed):
                tally.failed += 1
                tally.first_error = tally.first_error or f"port {own}: {event.reason.value} {event.detail}".strip()

    def linger(self, seconds: float) -> None:
        """Answer whoever asks for acknowledgements, so long."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for own in self._step():
                while self.stacks[own].endpoint.next_event() is not None:
                    pass

    def end(self, peer: Address, window: int, timeout_s: float) -> SwarmTally:
        """Close every port's session. Stacks stay, as the server may ask them for acknowledgements."""
        ip, port = address(peer[0]), peer[1]
        tally = SwarmTally()
        waiting = deque(self.ports)
        under_way: dict[int, int] = {}
        start = time.monotonic_ns()
        give_up = start + int(timeout_s * 1e9)
        while waiting or under_way:
            now = time.monotonic_ns()
            if now >= give_up:
                tally.failed += len(waiting) + len(under_way)
                tally.first_error = f"not closed within {timeout_s:g} s"
                break
            while waiting and len(under_way) < window:
                own = waiting.popleft()
                if self.managers[own].close(ip, port, now):
                    under_way[own] = now
                    self._attend(own, now)
                else:
                    tally.failed += 1
                    tally.first_error = tally.first_error or f"port {own} has no session to close"
            self._step()
            for own in [own for own in under_way if not self.managers[own].closing()]:
                tally.done += 1
                tally.times_ns.append(time.monotonic_ns() - under_way.pop(own))
        tally.seconds = (time.monotonic_ns() - start) / 1e9
        return tally

    def forget(self) -> None:
        """Forget all stacks: ports begin anew."""
        self.stacks.clear()
        self.managers.clear()
        self._armed.clear()
        self._deadlines.clear()

    def _stack(self, own: int) -> Stack:
        stack = self.stacks.get(own)
        if stack is None:
            manager = self.managers[own] = self._make_manager()
            endpoint = Endpoint(self._ip, own, "smt", manager, self._params)
            stack = self.stacks[own] = Stack(endpoint, self._driver)
        return stack

    # -- moving it -----------------------------------------------------------------------------------------

    def _step(self) -> Sequence[int]:
        """Frames in, timers, frames out; the ports something happened at. Waits if there is nothing."""
        frames = self._ring.take(_BATCH)
        now = time.monotonic_ns()
        if not frames and not (self._deadlines and self._deadlines[0][0] <= now):
            wait_s = _IDLE_S
            if self._deadlines:
                wait_s = min(wait_s, max(0, self._deadlines[0][0] - now) / 1e9)
            select.select([self._sock], [], [], wait_s)
            frames = self._ring.take(_BATCH)
            now = time.monotonic_ns()
        touched: dict[int, None] = {}
        for frame in frames:
            own = int.from_bytes(frame[_PORT_AT], "big") if len(frame) >= _LEAST_LEN else 0
            stack = self.stacks.get(own)
            if stack is not None:
                stack.receive([frame], now)
                touched[own] = None
        while self._deadlines and self._deadlines[0][0] <= now:
            at, own = heapq.heappop(self._deadlines)
            if self._armed.get(own) == at:
                del self._armed[own]
                self.stacks[own].handle_timeout(now)
                touched[own] = None
        for own in touched:
            self._attend(own, now)
        return list(touched)

    def _attend(self, own: int, now: int) -> None:
        """Send what an end has to send, note when it wants to be looked at."""
        stack = self.stacks[own]
        self._send(stack.transmit(now))
        at = stack.next_timeout()
        if at is None:
            self._armed.pop(own, None)
        elif self._armed.get(own) != at:
            self._armed[own] = at
            heapq.heappush(self._deadlines, (at, own))

    def _send(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            try:
                self._sock.send(frame)
            except BlockingIOError:
                # Full for longer than ever here: count it, as a link would lose it.
                self.send_drops += 1

    def close(self) -> None:
        """Give the sockets back."""
        self._undo.close()

    def __enter__(self) -> Swarm:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


def _socket(interface: str, program: list[bpf.Instruction]) -> socket.socket:
    """An AF_PACKET socket that receives what ``program`` lets through, from the moment it is bound on."""
    try:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise Unsupported("raw sockets need root (or CAP_NET_RAW): run with sudo") from None
    try:
        bpf.attach(sock, program)
        sock.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BUFFER)
        sock.setblocking(False)
    except OSError as e:
        sock.close()
        raise Unsupported(f"packet socket on {interface}: {e.strerror}") from e
    return sock
