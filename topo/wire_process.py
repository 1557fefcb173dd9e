"""The process of a programmable wire: two packet sockets, and what happens between them.

``python -m topo.wire_process LEFT RIGHT CONTROL-FD NAMESPACE-PID SEED``, started by :class:`topo.wire.Wire`
only. Commands and answers are one JSON text each over a SEQPACKET socket; it ends when that is closed, and
with its parent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import heapq
import itertools
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, BinaryIO

from smtstack.capture.pcapfile import Writer
from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.io.ethtool import has_link
from smtstack.io.namespaces import within
from smtstack.nic.impairments import ImpairmentRates, Impairments
from topo.commands import die_with_parent
from topo.wire import MAX_MESSAGE, Tampering

# Linux <linux/if_packet.h>, <asm-generic/socket.h>, <linux/if.h>, <linux/sockios.h>, <linux/prctl.h>.
ETH_P_ALL = 3
SOL_PACKET = 263
PACKET_ADD_MEMBERSHIP, PACKET_STATISTICS, PACKET_IGNORE_OUTGOING = 1, 6, 23
PACKET_MR_PROMISC = 1
SO_SNDBUFFORCE, SO_RCVBUFFORCE = 32, 33
IFF_UP, IFF_RUNNING, IFF_NOARP = 0x1, 0x40, 0x80
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCGSTAMPNS = 0x8913, 0x8914, 0x8907
PR_SET_TIMERSLACK = 29

BUFFER = 8 << 20
#: Longest frame there can be: a TSO frame of the largest IP packet.
_LONGEST = 65_600
#: Frames forwarded one way before the other way and the timers get their turn.
_BATCH = 64
#: A recording is on disk this many seconds after the last frame.
_FLUSH_S = 0.1
#: Frames that may be under way in a delay; more are the mark of a delay that was mistyped.
_MOST_WAITING = 100_000
#: Seconds that the kernel gets to set an interface going whose far end is up.
_RUNNING_S = 2.0


class Direction:
    """Frames that come in at one end and leave at the other."""

    def __init__(self, wire: WireProcess, source: socket.socket, target: socket.socket, seed: int) -> None:
        self._wire = wire
        self._source = source
        self._receive = source.recv
        self._send = target.send
        self._impairments = Impairments(seed=seed)
        self._tampering: Tampering | None = None
        self._tamper_left = 0
        #: Nothing to do but to forward.
        self._plain = True
        self.received = self.forwarded = self.tampered = self.injected = self.waiting = 0
        self._receive_drops = self._send_drops = self._oversize = self._queue_drops = 0
        #: Frames that may be in the delay, if somebody said so.
        self.limit: int | None = None

    def set_rates(self, rates: ImpairmentRates) -> None:
        """From the next frame on."""
        self._impairments.rates = rates
        self.settle()

    def set_tampering(self, tampering: Tampering | None) -> None:
        """From the next frame on."""
        self._tampering = tampering
        self._tamper_left = 0 if tampering is None else tampering.count
        self.settle()

    def settle(self) -> None:
        """Look again whether anything but forwarding is asked for."""
        self._plain = (self._impairments.rates == ImpairmentRates(reorder_ns=self._impairments.rates.reorder_ns)
                       and self._tampering is None and self._wire.writer is None)

    def pump(self) -> None:
        """Take what waits at the source, up to a batch."""
        receive, send = self._receive, self._send
        try:
            for number in range(_BATCH):
                frame = receive(_LONGEST)
                if not number:  # it waited longest
                    self._wire.note_late(time.time_ns() - self._arrival())
                self.received += 1
                if self._plain:
                    try:
                        send(frame)
                        self.forwarded += 1
                    except OSError as e:
                        self._lost(e)
                else:
                    self._impair(frame)
        except BlockingIOError:
            pass
        except OSError as e:
            # The interface went down, or away; in the first case frames come again when it is up.
            if e.errno != errno.ENETDOWN:
                raise

    def _impair(self, frame: bytes) -> None:
        if self._tampering is not None:
            frame = self._tamper(frame, self._tampering)
        now = time.monotonic_ns()
        for at, data in self._impairments.apply(frame, now):
            if at <= now:
                self.emit(data)
            elif self.limit is not None and self.waiting >= self.limit:
                self._queue_drops += 1
            elif self.waiting < _MOST_WAITING:
                self.waiting += 1
                self._wire.hold(at, self, data)
            else:
                self._receive_drops += 1

    def _tamper(self, frame: bytes, how: Tampering) -> bytes:
        if not -len(frame) <= how.offset < len(frame):
            return frame
        if how.match and frame[how.match_offset:how.match_offset + len(how.match)] != how.match:
            return frame
        self.tampered += 1
        if self._tamper_left:
            self._tamper_left -= 1
            if not self._tamper_left:
                self.set_tampering(None)
        changed = bytearray(frame)
        changed[how.offset] ^= how.mask
        return bytes(changed)

    def emit(self, frame: bytes) -> None:
        """Send a frame out of the far end now."""
        try:
            self._send(frame)
        except OSError as e:
            self._lost(e)
            return
        self.forwarded += 1
        if self._wire.writer is not None:
            self._wire.writer.write(time.time_ns(), frame)
            self._wire.recorded += 1

    def _lost(self, error: OSError) -> None:
        if error.errno == errno.EMSGSIZE:
            self._oversize += 1
        elif error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO, errno.ENODEV):
            self._send_drops += 1
        else:
            raise error

    def _arrival(self) -> int:
        """When the kernel got the frame received last, in ns since 1970."""
        stamp = fcntl.ioctl(self._source, SIOCGSTAMPNS, bytes(16))
        seconds, rest = struct.unpack("qq", stamp)
        return int(seconds) * 1_000_000_000 + int(rest)

    def statistics(self) -> dict[str, int]:
        """All counters, under the names :meth:`topo.wire.Wire.statistics` explains."""
        # Reading empties the kernel's counters.
        self._receive_drops += struct.unpack("II", self._source.getsockopt(SOL_PACKET, PACKET_STATISTICS, 8))[1]
        faults = self._impairments
        return {"received": self.received, "forwarded": self.forwarded, "dropped": faults.dropped,
                "duplicated": faults.duplicated, "reordered": faults.reordered, "corrupted": faults.corrupted,
                "tampered": self.tampered, "injected": self.injected, "waiting": self.waiting,
                "receive_drops": self._receive_drops, "send_drops": self._send_drops,
                "oversize": self._oversize, "queue_drops": self._queue_drops}


class WireProcess:
    """Both directions, the frames in delay, the recording, and the control socket."""

    def __init__(self, left: socket.socket, right: socket.socket, control: socket.socket, seed: int) -> None:
        self._sockets = (left, right)
        self._control = control
        self.writer: Writer | None = None
        self.recorded = 0
        self._file: BinaryIO | None = None
        # Neighbouring seeds must not give one wire's numbers to the other direction of the next wire.
        self._to = {"right": Direction(self, left, right, 2 * seed),
                    "left": Direction(self, right, left, 2 * seed + 1)}
        self._held: list[tuple[int, int, Direction, bytes]] = []
        self._order = itertools.count()
        self._late_max = self._late_sum = self._late_count = 0
        self._running = True
        self._open = False

    def hold(self, at: int, direction: Direction, frame: bytes) -> None:
        """Send ``frame`` at ``at`` (monotonic ns); those of one moment stay in order."""
        heapq.heappush(self._held, (at, next(self._order), direction, frame))

    def note_late(self, late_ns: int) -> None:
        """A frame waited this much longer than it was to."""
        self._late_max = max(self._late_max, late_ns)
        self._late_sum += late_ns
        self._late_count += 1

    def run(self) -> None:
        """Forward until told to stop, or until nobody is there to tell."""
        by_socket = {self._sockets[0]: self._to["right"], self._sockets[1]: self._to["left"]}
        while self._running:
            watched = [self._control, *self._sockets] if self._open else [self._control]
            readable, _w, _x = select.select(watched, [], [], self._patience())
            if not readable and self._file is not None:
                self._file.flush()
            for ready in readable:
                if ready is self._control:
                    self._command()
                else:
                    by_socket[ready].pump()
            self._release()

    def _patience(self) -> float | None:
        if self._held:
            return max(0, self._held[0][0] - time.monotonic_ns()) / 1e9
        return None if self._file is None else _FLUSH_S

    def _release(self) -> None:
        held = self._held
        while held and held[0][0] <= (now := time.monotonic_ns()):
            at, _order, direction, frame = heapq.heappop(held)
            self.note_late(now - at)
            direction.waiting -= 1
            direction.emit(frame)

    # -- commands ------------------------------------------------------------------------------------------

    def _command(self) -> None:
        message = self._control.recv(MAX_MESSAGE)
        if not message:
            self._running = False
            self._close_recording()
            return
        text, _newline, payload = message.partition(b"\n")
        request = json.loads(text)
        try:
            reply = self._do(request, payload)
        except SmtError as e:
            reply = {"kind": "config", "error": str(e)}
        with contextlib.suppress(OSError):  # the other end went away: the next recv says so
            self._control.send(json.dumps(reply).encode())

    def _do(self, request: dict[str, Any], payload: bytes) -> dict[str, Any]:
        direction = self._to.get(request.get("to", ""))
        match request["do"]:
            case "open":
                self._open = True
            case "rates":
                assert direction is not None
                direction.set_rates(ImpairmentRates(**request["rates"]))
            case "limit":
                assert direction is not None
                direction.limit = int(request["frames"])
            case "tamper":
                assert direction is not None
                options = request["tampering"]
                if options is not None:
                    options["match"] = bytes.fromhex(options["match"])
                direction.set_tampering(None if options is None else Tampering(**options))
            case "inject":
                assert direction is not None
                direction.injected += 1
                direction.emit(payload)
            case "record":
                self._record(request["path"])
            case "stop_recording":
                return {"frames": self._close_recording()}
            case "statistics":
                return self._statistics()
            case "stop":
                self._running = False
                self._close_recording()
                return self._statistics()
        return {}

    def _record(self, path: str) -> None:
        if self._file is not None:
            raise ConfigError(f"is recording into {self._file.name} already; stop that first")
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            raise ConfigError(f"{path} is there already; name another file") from None
        except OSError as e:
            raise ConfigError(f"{path}: {e.strerror}") from None
        self._file = open(descriptor, "wb")  # noqa: SIM115
        self.writer = Writer(self._file)
        self.recorded = 0
        self._settle()

    def _close_recording(self) -> int:
        if self._file is None:
            return 0
        self._file.close()
        self._file = self.writer = None
        self._settle()
        return self.recorded

    def _settle(self) -> None:
        for direction in self._to.values():
            direction.settle()

    def _statistics(self) -> dict[str, Any]:
        mean = self._late_sum / self._late_count if self._late_count else 0.0
        return {**{side: direction.statistics() for side, direction in self._to.items()},
                "late_us_max": self._late_max / 1000, "late_us_mean": mean / 1000}


def open_end(interface: str) -> socket.socket:
    """A socket for everything that comes in on an interface, which is brought up, without ARP."""
    try:
        end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    except PermissionError:
        raise Unsupported("packet sockets need root (or CAP_NET_RAW): run with sudo") from None
    try:
        index = socket.if_nametoindex(interface)
        name = interface.encode()
        flags = _flags(end, name)
        # Else the kernel's own stack would answer who-has questions that pass, if it has the address.
        fcntl.ioctl(end, SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | IFF_UP | IFF_NOARP))
        end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        end.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("iHH8x", index, PACKET_MR_PROMISC, 0))
        end.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, BUFFER)
        # The first time only switches time stamps on; there is none yet.
        with contextlib.suppress(OSError):
            fcntl.ioctl(end, SIOCGSTAMPNS, bytes(16))
        end.bind((interface, ETH_P_ALL))
        # The kernel does the rest of bringing up in its own time; until then what either end sends is dropped.
        limit = time.monotonic() + _RUNNING_S
        while has_link(interface) and not _flags(end, name) & IFF_RUNNING and time.monotonic() < limit:
            time.sleep(0.001)
    except OSError as e:
        end.close()
        # if_nametoindex gives no errno.
        if e.errno in (None, errno.ENODEV):
            raise ConfigError(f"no interface {interface!r} here; 'ip link' lists them") from None
        raise Unsupported(f"packet socket on {interface}: {e.strerror}") from e
    end.setblocking(False)
    return end


def _flags(end: socket.socket, name: bytes) -> int:
    return int(struct.unpack_from("16sH", fcntl.ioctl(end, SIOCGIFFLAGS, struct.pack("16s24x", name)))[1])


def main(argv: list[str]) -> int:
    """Run a wire; the exit code."""
    left, right, control_fd, pid, seed = argv
    libc = ctypes.CDLL(None, use_errno=True)
    die_with_parent()
    # Delays are to be kept within microseconds; the default slack is 50 of them.
    libc.prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    # select() takes numbers below 1024 only, and in a large network it may be above.
    control = socket.socket(fileno=os.dup(int(control_fd)))
    os.close(int(control_fd))
    try:
        ends = within(int(pid) or None, lambda: (open_end(left), open_end(right)))
    except SmtError as e:
        kind = "config" if isinstance(e, ConfigError) else "unsupported"
        control.send(json.dumps({"kind": kind, "error": str(e)}).encode())
        return 1
    gc.disable()  # nothing here makes cycles, and a collection would be a pause on the link
    control.send(b"{}")
    WireProcess(*ends, control, int(seed)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
