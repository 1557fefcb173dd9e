"""The process of a NIC: the TAP at the kernel's side, the cable at the other, and the device between.

``python -m smtstack.tapnic.process OPTIONS-JSON``, started by :mod:`topo.nic_process` only. It says ``{}`` or what
went wrong on stdout, and ends with its stdin, and with the process that started it: the TAP goes then, whatever
ended it.

Where neither impairments nor a recording want single packets, a segment of the kernel's goes to the port of the
wire as one, by one system call each way: the port cuts it (:mod:`smtstack.tapnic.wire`).
"""

from __future__ import annotations

import ctypes
import errno
import gc
import heapq
import json
import os
import resource
import select
import signal
import sys
import time
from dataclasses import asdict, dataclass
from typing import Final

from smtstack.errors import ConfigError, SmtError
from smtstack.io import plaintext_guard
from smtstack.io.namespaces import within
from smtstack.io.tcp_queries import Connections, Routes
from smtstack.io.tun import GSO_NONE, LONGEST, NEEDS_CSUM, VNET, VNET_LEN, TapInterface
from smtstack.nic.impairments import Impairments
from smtstack.nic.plaintext import NIC_GROUP
from smtstack.nicshare.control import NicControl
from smtstack.nicshare.file import COUNTERS
from smtstack.nicshare.state import EVERY_ADDRESS, TAP, Port
from smtstack.tapnic.control import ControlServer
from smtstack.tapnic.flows import Flows
from smtstack.tapnic.nic import TapNic
from smtstack.tapnic.wire import WireEnd

#: Frames of the wire, and segments of one queue, before another has its turn.
_BATCH: Final = 64
_SEGMENTS: Final = 16
#: Counters that others watch are this old at most; idle, settings are looked at this often.
_PUBLISH_NS: Final = 20_000_000
_IDLE_S: Final = 0.5
#: epoll counts in milliseconds, which is too coarse for shorter waits than this.
_EXACT_S: Final = 0.002
_NO_HEADER: Final = bytes(VNET_LEN)
_NO_COUNTERS: Final = dict.fromkeys(COUNTERS, 0)
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29


@dataclass(frozen=True, slots=True)
class NicOptions:
    """What a NIC is started with."""

    interface: str
    """The TAP, in the namespace of process ``pid``."""
    pid: int
    wire: str
    """The cable's end, in the namespace of the NIC's own process."""
    mac: str
    """MAC address of the TAP, as 12 hexadecimal digits."""
    mtu: int
    queues: int = 1
    """TX queues for what is not marked; as many for what is."""
    super_frames: bool = False
    """Whoever is at the other end of the cable takes segments that are still to be cut."""

    def pack(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))


class NicProcess:
    """Moves frames between the kernel and the wire, until it is told to stop."""

    def __init__(self, tap: TapInterface, wire: WireEnd, nic: TapNic, control: NicControl, flows: Flows,
                 server: ControlServer) -> None:
        self._tap = tap
        self._wire = wire
        self._nic = nic
        self._control = control
        self._flows = flows
        self._server = server
        self._into = tap.queues[0]
        #: Frames that impairments delay: (when, number, outwards?, frame).
        self._later: list[tuple[int, int, bool, bytes]] = []
        self._numbers = 0
        self._publish_at = 0
        #: Something has happened since the counters were told.
        self._unpublished = False
        self._running = True
        self._buffer = bytearray(LONGEST)
        self._view = memoryview(self._buffer)
        self._tso = self._coalesce = True

    def run(self) -> None:
        """Until stdin ends."""
        poll = select.epoll()
        queues = {descriptor: number >= self._tap.half for number, descriptor in enumerate(self._tap.queues)}
        wire, parent, server = self._wire.fileno(), sys.stdin.fileno(), self._server.fileno()
        for descriptor in (*queues, wire, parent, server, self._flows.fileno()):
            poll.register(descriptor, select.EPOLLIN)
        self._sync()
        while self._running:
            patience = self._patience()
            if 0 < patience < _EXACT_S:
                select.select([poll], [], [], patience)
                patience = 0
            ready = poll.poll(patience)
            if ready:
                self._unpublished = True
            for descriptor, _events in ready:
                if descriptor == wire:
                    self._receive()
                elif descriptor in queues:
                    self._transmit(descriptor, queues[descriptor])
                elif descriptor == server:
                    self._server.serve()
                elif descriptor == parent:
                    self._running = False
                else:
                    self._flows.routes_changed()
            if self._later:
                self._release()
            if self._control.generation[0] != self._control.seen or time.monotonic_ns() >= self._publish_at:
                self._sync()
        poll.close()
        self._control.close(self.counters())

    def _patience(self) -> float:
        """Seconds to the next thing to do, if nothing comes."""
        patience = _IDLE_S
        if self._unpublished or self._later:
            now = time.monotonic_ns()
            if self._unpublished:
                patience = min(patience, (self._publish_at - now) / 1e9)
            if self._later:
                patience = min(patience, (self._later[0][0] - now) / 1e9)
        return max(0.0, patience)

    def _sync(self) -> None:
        """Take new settings, publish the counters."""
        self._publish_at = time.monotonic_ns() + _PUBLISH_NS
        self._unpublished = self._flows.tend()
        self._control.sync(self.counters())
        if self._nic.tso != self._tso:
            self._tso = self._nic.tso
            self._tap.set_tso(self._tso)
        coalesce = self._nic.rx_checksum and self._control.rx is None and self._nic.watcher is None
        if coalesce != self._coalesce:
            self._coalesce = coalesce
            self._wire.coalesce(coalesce)

    def counters(self) -> dict[str, int]:
        """The NIC's, and what the sockets say."""
        return {**_NO_COUNTERS, **self._nic.counters.snapshot(), "socket_dropped": self._wire.drops(),
                "socket_send_drops": self._wire.send_drops}

    # -- from the kernel to the wire ----------------------------------------------------------------------------

    def _transmit(self, queue: int, marked: bool) -> None:
        """Take segments out of a TX queue."""
        nic, view, buffers = self._nic, self._view, [self._buffer]
        read, unpack, send = os.readv, VNET.unpack_from, self._wire.send_whole
        impairments = self._control.tx
        single = impairments is not None or nic.watcher is not None
        for _segment in range(_SEGMENTS):
            try:
                size = read(queue, buffers)
            except BlockingIOError:
                return
            except OSError as e:
                if e.errno != errno.EBADFD:
                    raise
                # Somebody has removed the interface, and with it the NIC.
                self._running = False
                return
            flags, kind, _head, cut, start, offset = unpack(view)
            if kind == GSO_NONE:
                cut = 0
            if single:
                needs_csum = flags & NEEDS_CSUM != 0
                frames = nic.packets(bytes(view[VNET_LEN:size]), cut, needs_csum, start, offset, marked)
                if impairments is not None:
                    self._impair(impairments, frames, True)
                else:
                    self._wire.send(frames)
            elif marked:
                for frame in nic.segment(bytes(view[VNET_LEN:size]), cut):
                    send(bytes(view[:VNET_LEN]) + frame)
            else:
                nic.passed(view[VNET_LEN:size], cut)
                send(view[:size])

    # -- from the wire to the kernel ----------------------------------------------------------------------------

    def _receive(self) -> None:
        nic, take, unpack, write = self._nic, self._wire.receive, VNET.unpack_from, self._write
        impairments = self._control.rx
        single = impairments is not None or nic.watcher is not None
        looks = nic.looks_into
        for _frame in range(_BATCH):
            data = take()
            if data is None:
                return
            flags, kind, _head, cut, start, offset = unpack(data)
            if kind == GSO_NONE:
                cut = 0
            if not single and not looks:
                nic.arrived(data[VNET_LEN:], cut)
                write(data)
                continue
            frame = bytes(data[VNET_LEN:])
            needs_csum = flags & NEEDS_CSUM != 0
            if not single:
                write(bytes(data[:VNET_LEN]) + nic.receive(frame, needs_csum, cut))
                continue
            for packet in nic.singles(frame, cut, needs_csum, start, offset):
                if impairments is not None:
                    self._impair(impairments, [packet], False)
                else:
                    self._deliver(packet)

    def _deliver(self, packet: bytes) -> None:
        nic = self._nic
        if nic.watcher is not None:
            nic.watcher.arrived(packet)
        self._write(_NO_HEADER + nic.receive(packet, False))

    def _write(self, data: bytes | memoryview) -> None:
        try:
            os.write(self._into, data)
        except OSError:
            # The interface is down, or the kernel finds the frame wrong.
            self._nic.counters.rx_dropped += 1

    # -- impairments --------------------------------------------------------------------------------------------

    def _impair(self, impairments: Impairments, frames: list[bytes], outwards: bool) -> None:
        now = time.monotonic_ns()
        for frame in frames:
            for at, changed in impairments.apply(frame, now):
                if at <= now:
                    self._emit(changed, outwards)
                else:
                    self._numbers += 1
                    heapq.heappush(self._later, (at, self._numbers, outwards, changed))

    def _release(self) -> None:
        now = time.monotonic_ns()
        while self._later and self._later[0][0] <= now:
            _at, _number, outwards, frame = heapq.heappop(self._later)
            self._emit(frame, outwards)

    def _emit(self, frame: bytes, outwards: bool) -> None:
        if outwards:
            self._wire.send([frame])
        else:
            self._deliver(frame)


def start(options: NicOptions) -> NicProcess:
    """All parts of a NIC, in their namespaces. Raises :class:`SmtError`; then nothing of it is left."""
    pid = options.pid or None
    wire = WireEnd(options.wire, options.mtu, options.super_frames)

    def in_host() -> tuple[TapInterface, Connections, Routes]:
        plaintext_guard.install()
        made = TapInterface(options.interface, bytes.fromhex(options.mac), options.mtu, options.queues, NIC_GROUP)
        return made, Connections(), Routes(news=True)

    tap, connections, routes = within(pid, in_host)
    try:
        nic = TapNic(tap.index, options.mtu, options.super_frames)
        port = Port.attach(options.interface, EVERY_ADDRESS, 0, 0, TAP, pid=pid)
        flows = Flows(nic, tap.index, port, connections, routes)
        server = within(pid, lambda: ControlServer(options.interface, flows))
    except BaseException:
        tap.close()
        raise
    control = NicControl(port, nic, int(options.mac, 16), None, None)
    return NicProcess(tap, wire, nic, control, flows, server)


def main(argv: list[str]) -> int:
    """Run a NIC; the exit code."""
    (text,) = argv
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # Delays are to be kept within microseconds; the default slack is 50 of them.
    libc.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)
    # One for each direction of each connection that it offloads.
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        process = start(NicOptions(**json.loads(text)))
    except SmtError as e:
        kind = "config" if isinstance(e, ConfigError) else "unsupported"
        print(json.dumps({"kind": kind, "error": str(e)}), flush=True)
        return 1
    gc.disable()  # nothing here makes cycles, and a collection would be a pause on the link
    print("{}", flush=True)
    process.run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
