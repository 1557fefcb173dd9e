"""The programmable wire: a link in user space, for delay, loss and attacks between two interfaces.

A link with a wire is two cables and a process between them, so whatever speaks over it (smt, homa, tcp, tls,
ping) gets the same faults, and an attacker can be played: record, replay, tamper::

    h1-eth0 <===> left | wire process | right <===> s1-eth1

:mod:`topo.wire_process` is the process; :class:`Wire` starts, steers and ends it. It forwards some
100,000 frames a second (docs/mininet.md): what it cannot is counted, and the run is not faithful then.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from smtstack.capture.pcapfile import Reader
from smtstack.errors import BadPacket, ConfigError, SmtError, Unsupported
from smtstack.nic.impairments import ImpairmentRates
from smtstack.wire.ethernet import HEADER_LEN
from topo.interpreter import host_environment

#: Names of the two ends. A direction is called after the end it leads to.
SIDES = ("left", "right")
#: Bytes of the longest control message: a frame of 64 KB, and its command.
MAX_MESSAGE = 70_000
#: Seconds a wire gets to start or answer on a loaded machine.
_PATIENCE_S = 20.0
_ERRORS: dict[str, type[SmtError]] = {"config": ConfigError, "unsupported": Unsupported}


@dataclass(frozen=True, slots=True)
class Tampering:
    """Which frames an attacker changes, and how. Offsets are bytes from the Ethernet header's first."""

    offset: int
    """Byte to change; negative: from the frame's end. Shorter frames stay as they are."""
    mask: int = 1
    """Bits to flip in it."""
    match_offset: int = 0
    match: bytes = b""
    """Only frames with these bytes at ``match_offset`` are changed."""
    count: int = 0
    """Stop after so many frames; 0: never."""

    def __post_init__(self) -> None:
        if not 0 < self.mask < 256:
            raise ConfigError(f"tampering with mask {self.mask} changes nothing; 1 to 255 are bits of a byte")
        if self.match_offset < 0 or self.count < 0:
            raise ConfigError("tampering: match_offset and count are numbers from 0")


class Wire:
    """A running wire. Its process ends with :meth:`stop`, or with the thread that started it."""

    def __init__(self, process: subprocess.Popen[bytes], control: socket.socket, left: str, right: str,
                 rates: dict[str, ImpairmentRates]) -> None:
        self.left, self.right = left, right
        self._process = process
        self._control = control
        self._rates = rates
        self._lock = threading.Lock()
        self._last: dict[str, Any] = {}

    @classmethod
    def start(cls, left: str, right: str, rates: ImpairmentRates | None = None, *,
              back: ImpairmentRates | None = None, most: int | None = None, most_back: int | None = None,
              seed: int = 1, record: Path | None = None, pid: int | None = None) -> Wire:
        """Join two interfaces; returns when frames pass.

        ``rates`` hold from left to right, and back too unless ``back`` says otherwise. ``most`` frames (and
        ``most_back``) may be in the delay; more are lost, as from a full queue. Each direction has its own random
        numbers, made from ``seed``. ``pid`` names a process in whose network namespace the
        interfaces are (default: ours). Brings both interfaces up, and switches ARP off on them: the kernel
        around the wire must not take part. Raises :class:`ConfigError` where an interface is missing or
        ``record`` cannot be made, :class:`Unsupported` without root.
        """
        towards = {"right": rates or ImpairmentRates()}
        towards["left"] = towards["right"] if back is None else back
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "topo.wire_process", left, right, str(theirs.fileno()), str(pid or 0),
                 str(seed)],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
                # Ctrl-C at the terminal is for Mininet's CLI, not for the link under it.
                start_new_session=True, env=host_environment())
        ours.settimeout(_PATIENCE_S)
        wire = cls(process, ours, left, right, towards)
        try:
            wire._await()
            for side in SIDES:
                wire.set_rates(side, towards[side])
            for side, limit in (("right", most), ("left", most_back)):
                if limit is not None:
                    wire._ask("limit", to=side, frames=limit)
            if record is not None:
                wire.record(record)
            wire._ask("open")
        except BaseException:
            wire.stop()
            raise
        return wire

    @property
    def pid(self) -> int:
        """The number of the wire's process."""
        return self._process.pid

    # -- impairments ---------------------------------------------------------------------------------------

    def rates(self, to: str) -> ImpairmentRates:
        """What holds now for frames towards ``"left"`` or ``"right"``."""
        return self._rates[_side(to)]

    def set_rates(self, to: str, rates: ImpairmentRates) -> None:
        """Change one direction, while traffic runs. Random numbers go on, frames under way keep their time."""
        self._ask("rates", to=_side(to), rates=asdict(rates))
        self._rates[to] = rates

    def set(self, to: str | None = None, **changes: float) -> None:
        """Change single rates (fields of :class:`ImpairmentRates`), of both directions by default."""
        for side in SIDES if to is None else (to,):
            try:
                rates = replace(self.rates(side), **changes)  # type: ignore[arg-type]
            except TypeError:
                fields = ", ".join(asdict(self.rates(side)))
                raise ConfigError(f"a wire has no {', '.join(changes)}; it has {fields}") from None
            self.set_rates(side, rates)

    # -- the attacker --------------------------------------------------------------------------------------

    def record(self, path: Path) -> None:
        """Write every frame that leaves the wire, either way, into a new capture file (pcap, mode 600)."""
        self._ask("record", path=str(path.absolute()))

    def stop_recording(self) -> int:
        """Close the file; the number of frames in it. No recording: 0."""
        return int(self._ask("stop_recording")["frames"])

    def inject(self, to: str, frames: Iterable[bytes]) -> int:
        """Send frames out of one end, as if they came over the wire, without faults; how many there were."""
        number = 0
        for frame in frames:
            if len(frame) < HEADER_LEN:
                raise ConfigError(f"a frame of {len(frame)} bytes cannot be injected: the Ethernet header has "
                                  f"{HEADER_LEN}")
            self._ask("inject", frame, to=_side(to))
            number += 1
        return number

    def replay(self, path: Path, to: str, select: Callable[[bytes], bool] = lambda _frame: True) -> int:
        """Inject the frames of a capture that ``select`` likes; how many. ``sent_by`` is a selection."""
        try:
            with path.open("rb") as f:
                return self.inject(to, [c.frame for c in Reader(f).frames_untrusted() if select(c.frame)])
        except OSError as e:
            raise ConfigError(f"{path}: {e.strerror}") from None
        except BadPacket as e:
            raise ConfigError(f"{path}: {e}") from None

    def tamper(self, to: str, tampering: Tampering | None) -> None:
        """Change frames on their way to one end; None: stop that."""
        options = None
        if tampering is not None:
            options = {**asdict(tampering), "match": tampering.match.hex()}
        self._ask("tamper", to=_side(to), tampering=options)

    # -- numbers -------------------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counters since the start; what they were at the end once the wire was stopped.

        ``left`` and ``right`` hold those of frames *towards* that end: ``received``, ``forwarded``,
        ``dropped``, ``duplicated``, ``reordered``, ``corrupted`` (impairments), ``tampered``, ``injected``,
        ``waiting`` (delayed, not sent yet), ``queue_drops`` (more than may be in the delay), and three
        that should be 0: ``receive_drops`` (the wire was too slow), ``send_drops`` (queue full, interface down),
        ``oversize`` (longer than the MTU: TSO was on).
        ``late_us_max`` and ``late_us_mean`` say how much longer frames waited than they were to.
        """
        if self._process.poll() is None:
            self._last = self._ask("statistics")
        return self._last

    def drops(self) -> int:
        """Frames lost because the wire was not up to its work, which no impairment asked for."""
        numbers = self.statistics()
        return sum(numbers[side][name] for side in SIDES if side in numbers
                   for name in ("receive_drops", "send_drops", "oversize"))

    # -- the end -------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """Close the recording and end the process; the interfaces stay. May be called twice."""
        try:
            if self._process.poll() is None:
                self._last = self._ask("stop")
                self._process.wait(_PATIENCE_S)
        except (SmtError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        finally:
            self._control.close()

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.stop()

    # -- control -------------------------------------------------------------------------------------------

    def _ask(self, command: str, payload: bytes = b"", **arguments: Any) -> dict[str, Any]:
        message = json.dumps({"do": command, **arguments}).encode() + b"\n" + payload
        with self._lock:
            try:
                self._control.send(message)
            except OSError:
                raise self._gone() from None
            return self._await()

    def _await(self) -> dict[str, Any]:
        try:
            answer = self._control.recv(MAX_MESSAGE)
        except OSError:
            answer = b""
        if not answer:
            raise self._gone()
        reply: dict[str, Any] = json.loads(answer)
        if "error" in reply:
            raise _ERRORS.get(reply["kind"], SmtError)(f"wire {self.left} - {self.right}: {reply['error']}")
        return reply

    def _gone(self) -> SmtError:
        try:
            code = self._process.wait(1.0)
            how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        except subprocess.TimeoutExpired:
            how = "does not answer"
        return SmtError(f"wire {self.left} - {self.right}: its process {how}; start the network anew")


def sent_by(mac: str | bytes) -> Callable[[bytes], bool]:
    """For :meth:`Wire.replay`: frames whose source is this MAC address (``"00:00:00:00:00:01"`` or 6 bytes)."""
    source = bytes.fromhex(mac.replace(":", "")) if isinstance(mac, str) else mac
    return lambda frame: frame[6:12] == source


def _side(name: str) -> str:
    if name not in SIDES:
        raise ConfigError(f"a wire has no end {name!r}; its ends are left and right")
    return name
