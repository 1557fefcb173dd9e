"""A switch port at which two hosts offer more than it can send, in several priorities, and what comes of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from smtstack.errors import SmtError
from smtstack.wire.ethernet import FRAME_OVERHEAD, HEADER_LEN
from topo.network import SmtNet
from topo.running import PATIENCE_S, Program, python_program
from topo.shaping import PRIORITIES, priority_counters
from topo.topologies import SmtTopo
from workloads.experiments.priorities.arithmetic import MODE, Shares, breach, expected, named, tolerance
from workloads.results.fidelity import FidelityMonitor, combined
from workloads.results.row import Row, Verdict

#: Seconds: until the senders begin, and of traffic before anything counts, in which buffers fill.
LEAD_S, WARM_UP_S = 0.2, 1.0
#: Least of a class's share that its sender has to reach.
REACHED = 0.98
#: Share of a port's rate by which what it carries may differ from it.
MAX_RATE_ERROR = 0.03
_LOOK_S = 0.02


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of a trial, by class."""

    sent: Counter[int]
    """Frames that the hosts sent."""
    sent_in_time: Counter[int]
    """Frames that the hosts sent in the seconds that count."""
    got: Counter[int]
    """Frames that arrived."""
    got_in_time: Counter[int]
    port: Counter[tuple[int, str]]
    """``sent`` and ``dropped`` by the port, whatever the frame was."""


class ClassResult(TypedDict):
    """What one class was offered and got: shares of the port's rate, and frames."""

    asked: float
    offered: float
    expected: float
    """What a port with strict priorities gives."""
    got: float
    frames_sent: int
    frames_got: int
    port_sent: int
    port_dropped: int


class PriorityRow(Row):
    """One trial of one scenario; ``rpcs`` are frames, and an error is a priority that was not strict."""

    rate_mbps: float
    """Rate of the port."""
    buffer_bytes: int
    """Buffer of each priority of the port."""
    seconds: float
    """How long it was measured."""
    classes: Mapping[str, ClassResult]
    """What each class got, by its number, 7 the highest."""


class OnePort(SmtTopo):
    """``star,3``, but only the link to h1 has the rate: h2 and h3 can offer its switch port more than that."""

    syntax = example = "star,3"

    def build(self, **_opts: Any) -> None:
        names = [self.new_host(number) for number in (1, 2, 3)]
        switch = self.addSwitch("s1")
        self.addLink(names[0], switch)
        for name in names[1:]:
            self.addLink(name, switch, rate_mbps=None)
        self.flows = [(name, names[0]) for name in names[1:]]


class PriorityPort:
    """Senders on all hosts of ``net`` but the first, which receives; ``folder`` takes their logs. Use with
    ``with``."""

    def __init__(self, net: SmtNet, folder: Path) -> None:
        self._net = net
        self._folder = folder
        folder.mkdir(parents=True)
        self._receiver, *_others = net.hosts
        link = self._receiver.defaultIntf().link
        (self.port,) = (end for end in (link.intf1, link.intf2) if end.node is not self._receiver)
        self._options = link.options
        #: Bytes of a frame, as large as they come, and how many of these the port can send in a second.
        self._length = link.options.mtu + HEADER_LEN
        self._rate = link.options.rate_mbps * 1e6 / 8 / (self._length + FRAME_OVERHEAD)

    def __enter__(self) -> PriorityPort:
        receiver = self._receiver
        with ExitStack() as undo:
            self._counting = self._start(undo, receiver, "receiver", "receive")
            to = ("--to", receiver.IP(), "--mac", receiver.MAC(), "--length", str(self._length))
            self._senders = [self._start(undo, host, "sender", "send", "--source", host.IP(), *to)
                             for host in self._net.hosts[1:]]
            for client in (self._counting, *self._senders):
                client.wait_for("ready")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._undo.close()

    def _start(self, undo: ExitStack, host: Any, what: str, role: str, *arguments: str) -> Program:
        program = Program(host, what, python_program("workloads.experiments.priorities.program", role, "--iface",
                                                     host.defaultIntf().name, *arguments),
                          self._folder / f"{host.name}-{what}.log")
        undo.callback(program.stop)
        return program

    def measure(self, asked: Shares, seconds: float, trial: int = 1) -> PriorityRow:
        """One trial: every class offered its share for ``seconds`` that count. Raises SmtError if a program
        ends."""
        before, drops = self._counters(), self._drops()
        pids = [client.pid for client in (*self._senders, self._counting)]
        monitor = FidelityMonitor(pids=[*pids, *self._net.emulator_pids()])
        start = time.monotonic_ns() + round(LEAD_S * 1e9)
        begin = start + round(WARM_UP_S * 1e9)
        counts = {"from": begin, "until": begin + round(seconds * 1e9)}
        self._counting.tell(counts)
        busy = []
        for turn, client in enumerate(self._senders):
            # In turn: what a class is to be denied comes in by another port than what it is denied for.
            per_s = {number: share * self._rate for number, share in list(asked.items())[turn::len(self._senders)]}
            if per_s:
                client.tell({"per_s": per_s, "start": start, **counts})
                busy.append(client)
        monitor.start()
        sent = [client.answer() for client in busy]
        machine = monitor.stop()
        self._drain()
        self._counting.tell({})
        came = self._counting.answer()
        frames = Frames(_sum(sent, "sent"), _sum(sent, "counted"), _sum([came], "received"),
                        _sum([came], "counted"), self._counters() - before)
        return self.row(asked, seconds, trial, frames, combined(
            machine, [], receive_drops=came["missed"], send_drops=sum(answer["refused"] for answer in sent),
            path_drops=self._drops() - drops, sender_late_us=max(answer["late_us"] for answer in sent)))

    def row(self, asked: Shares, seconds: float, trial: int, frames: Frames, fidelity: Verdict) -> PriorityRow:
        """A trial, judged: whether it was the one asked for, and whether priorities were strict."""
        in_time = self._rate * seconds
        offered = {number: frames.sent_in_time[number] / in_time for number in asked}
        got = {number: frames.got_in_time[number] / in_time for number in asked}
        must = expected(offered)
        carried, could = sum(got.values()), sum(must.values())
        late_ms = cast(Mapping[str, float], fidelity)["sender_late_us"] / 1000
        most_ms = self._options.buffer_bytes / 2 / self._length / self._rate * 1000
        lost = sum(frames.sent.values()) - sum(frames.port.values())
        reasons = [*fidelity["reasons"]]
        reasons += [f"class {number} was offered {offered[number]:.1%} of the port, not {share:.1%}: its sender "
                    "is too slow" for number, share in asked.items()
                    if frames.sent_in_time[number] + 1 < REACHED * share * in_time]
        if late_ms > most_ms:
            # Meanwhile the buffers of denied classes empty, and lower ones get something by right.
            reasons.append(f"a sender was {late_ms:.1f} ms late (at most {most_ms:.1f} ms: then the port has sent "
                           "half a buffer)")
        if lost > 0:
            reasons.append(f"{lost} frames were lost before the port")
        if abs(carried - could) > MAX_RATE_ERROR:
            reasons.append(f"the port carried {carried:.1%} of its rate, not {could:.1%}")
        wrong = breach(offered, got, tolerance(seconds, self._rate))
        assert self._options.rate_mbps is not None, "there is a default"
        row: PriorityRow = {
            "topo": OnePort.example, "switch": self._net.switch_kind, "transport": "raw", "nic": None,
            "mode": MODE, "poll": "interrupt", "variant": named(asked), "size": self._length,
            "concurrency": len(asked), "trial": trial, "rpcs": frames.got_in_time.total(),
            "errors": int(bool(wrong)), "content_ok": True,
            "rpc_per_s": round(frames.got_in_time.total() / seconds, 1),
            "rtt_us": dict.fromkeys(("min", "p50", "p90", "p99", "p999", "max", "mean")), "cpu": {},
            "rate_mbps": self._options.rate_mbps, "buffer_bytes": self._options.buffer_bytes, "seconds": seconds,
            "classes": {str(number): {
                "asked": share, "offered": round(offered[number], 5), "expected": round(must[number], 5),
                "got": round(got[number], 5), "frames_sent": frames.sent[number],
                "frames_got": frames.got[number], "port_sent": frames.port[number, "sent"],
                "port_dropped": frames.port[number, "dropped"]} for number, share in asked.items()},
            "fidelity": {**fidelity, "ok": not reasons, "reasons": reasons},
        }
        if wrong:
            row["first_error"] = wrong
        return row

    def _counters(self) -> Counter[tuple[int, str]]:
        """What the port counts: frames sent and dropped since it was made, by class."""
        return Counter({(number, what): frames for number, c in
                        priority_counters(self.port.name, self.port.pid).items()
                        for what, frames in (("sent", c.packets), ("dropped", c.dropped))})

    def _drops(self) -> int:
        lost = self._net.drops()
        return lost["ovs"] + lost["wire"] + lost["nics"] + lost["cables"]

    def _drain(self) -> None:
        """Until the port has sent all it has got."""
        octets = PRIORITIES * (self._options.buffer_bytes + self._length)
        end = time.monotonic() + PATIENCE_S + octets * 8e-6 / self._options.rate_mbps
        last = None
        while True:
            now = priority_counters(self.port.name, self.port.pid)
            # Twice the same: nor is there anything on its way to the port.
            if now == last and not any(counters.waiting for counters in now.values()):
                return
            if time.monotonic() > end:
                raise SmtError(f"{self.port.name}: frames still wait long after the last was sent: is it down?")
            last = now
            time.sleep(_LOOK_S)


def _sum(answers: list[dict[str, Any]], name: str) -> Counter[int]:
    total: Counter[int] = Counter()
    for answer in answers:
        total.update({int(number): frames for number, frames in answer[name].items()})
    return total
