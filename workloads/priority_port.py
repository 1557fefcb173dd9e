"""A switch port at which two hosts offer more than it can send, in several priorities, and what comes of it."""

from __future__ import annotations

import json
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

from smtstack.errors import SmtError
from smtstack.wire.ethernet import FRAME_OVERHEAD, HEADER_LEN
from topo.network import SmtNet
from topo.shaping import PRIORITIES, priority_counters
from topo.topologies import SmtTopo
from workloads.fidelity import FidelityMonitor, verdict
from workloads.fleet_programs import PATIENCE_S, Client, await_text, died, finish
from workloads.priorities import MODE, Shares, breach, expected, named, tolerance
from workloads.results import Row

#: Seconds: until the senders begin, and of traffic before anything counts, in which buffers fill.
LEAD_S, WARM_UP_S = 0.2, 1.0
#: Least of a class's share that its sender has to reach.
REACHED = 0.98
#: Share of a port's rate by which what it carries may differ from it.
MAX_RATE_ERROR = 0.03
_LOOK_S = 0.02


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
        self._senders: list[Client] = []
        self._counting: list[Client] = []

    @property
    def _length(self) -> int:
        """Bytes of a frame, as large as they come."""
        return int(self._options.mtu) + HEADER_LEN

    def __enter__(self) -> PriorityPort:
        try:
            receiver = self._receiver
            self._counting = [self._start(receiver, "receiver", "receive", [])]
            for host in self._net.hosts[1:]:
                self._senders.append(self._start(host, "sender", "send", [
                    "--source", host.IP(), "--to", receiver.IP(), "--mac", receiver.MAC(),
                    "--length", str(self._length)]))
            for client in (*self._counting, *self._senders):
                await_text(client.host, client.process, client.what, client.log, "ready")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _start(self, host: Any, what: str, role: str, arguments: list[str]) -> Client:
        log = self._folder / f"{host.name}-{what}.log"
        with log.open("w") as errors:
            process = host.python("workloads.class_traffic", role, "--iface", host.defaultIntf().name, *arguments,
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True)
        return Client(host, what, process, log)

    def _stop(self) -> None:
        for client in (*self._senders, *self._counting):
            client.process.terminate()
            finish(client.process)

    def measure(self, offered: Shares, seconds: float, trial: int = 1) -> Row:
        """One trial: every class offered its share for ``seconds`` that count. Raises SmtError if a program
        ends."""
        rate = self._options.rate_mbps * 1e6 / 8 / (self._length + FRAME_OVERHEAD)
        before, drops = priority_counters(self.port.name, self.port.pid), self._drops()
        pids = [client.process.pid for client in (*self._senders, *self._counting)]
        monitor = FidelityMonitor(pids=[*pids, *self._net.emulator_pids()])
        start = time.monotonic_ns() + round(LEAD_S * 1e9)
        begin = start + round(WARM_UP_S * 1e9)
        counts = {"from": begin, "until": begin + round(seconds * 1e9)}
        self._counting[0].tell(counts)
        busy = []
        for turn, client in enumerate(self._senders):
            # In turn: what a class is to be denied comes in by another port than what it is denied for.
            per_s = {number: share * rate for number, share in list(offered.items())[turn::len(self._senders)]}
            if per_s:
                client.tell({"per_s": per_s, "start": start, **counts})
                busy.append(client)
        monitor.start()
        sent = [_answer(client) for client in busy]
        machine = monitor.stop()
        self._drain()
        self._counting[0].tell({})
        came = _answer(self._counting[0])
        after = priority_counters(self.port.name, self.port.pid)
        port = {number: {"sent": after[number].packets - before[number].packets,
                         "dropped": after[number].dropped - before[number].dropped} for number in after}
        machine |= {"receive_drops": came["missed"], "send_drops": sum(answer["refused"] for answer in sent),
                    "path_drops": self._drops() - drops,
                    "late_us": max(answer["late_us"] for answer in sent)}
        return _row(offered, seconds, rate, trial, sent, came, port,
                    {name: value for name, value in machine.items() if name not in ("ok", "reasons")},
                    self._options.buffer_bytes, self._net.switch_kind, self._length)

    def _drops(self) -> int:
        lost = self._net.drops()
        return lost["ovs"] + lost["wire"] + lost["cables"]

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


def _answer(client: Client) -> dict[str, Any]:
    line = client.process.stdout.readline() if client.process.stdout else ""
    if not line:
        raise died(client.host, client.what, client.process, client.log)
    answer: dict[str, Any] = json.loads(line)
    return answer


def _sum(answers: list[dict[str, Any]], name: str) -> Counter[int]:
    total: Counter[int] = Counter()
    for answer in answers:
        total.update({int(number): frames for number, frames in answer[name].items()})
    return total


def _row(asked: Shares, seconds: float, rate: float, trial: int, sent: list[dict[str, Any]], came: dict[str, Any],
         port: dict[int, dict[str, int]], machine: dict[str, Any], buffer: int, switch: str, length: int) -> Row:
    """``rate``: frames a second that the port can send."""
    in_all, counted = _sum(sent, "sent"), _sum(sent, "counted")
    received, arrived = _sum([came], "received"), _sum([came], "counted")
    offered = {number: counted[number] / rate / seconds for number in asked}
    got = {number: arrived[number] / rate / seconds for number in asked}
    must = expected(offered)
    wrong = breach(offered, got, tolerance(seconds, rate))
    total = sum(got.values())
    lost = sum(in_all.values()) - sum(numbers["sent"] + numbers["dropped"] for numbers in port.values())
    fidelity = verdict(machine)
    reasons = [
        *fidelity["reasons"],
        *(f"class {number} was offered {offered[number]:.1%} of the port, not {share:.1%}: its sender was too slow"
          for number, share in asked.items() if counted[number] + 1 < REACHED * share * rate * seconds),
        *_late(machine["late_us"] / 1000, buffer / length / rate * 500),
        *([f"{lost} frames were lost before the port"] if lost > 0 else []),
        *([f"the port carried {total:.1%} of its rate (100% ± {MAX_RATE_ERROR:.0%})"]
          if abs(total - sum(must.values())) > MAX_RATE_ERROR else []),
    ]
    return {
        "topo": "star,3", "switch": switch, "transport": "raw", "nic": None, "mode": MODE, "poll": "interrupt",
        "variant": named(asked), "size": length, "concurrency": len(asked), "trial": trial,
        "rpcs": sum(arrived.values()), "errors": int(bool(wrong)), "content_ok": True,
        "rpc_per_s": round(sum(arrived.values()) / seconds, 1),
        "rtt_us": dict.fromkeys(("min", "p50", "p90", "p99", "p999", "max", "mean")), "cpu": {},
        "rate_mbps": round(rate * (length + FRAME_OVERHEAD) * 8e-6, 6), "seconds": seconds, "buffer_bytes": buffer,
        "classes": {str(number): {
            "asked": share, "offered": round(offered[number], 5), "expected": round(must[number], 5),
            "got": round(got[number], 5), "sent_frames": in_all[number], "received_frames": received[number],
            "port_sent": port[number]["sent"], "port_dropped": port[number]["dropped"]}
            for number, share in asked.items()},
        **({"first_error": wrong} if wrong else {}),
        "fidelity": {**fidelity, "ok": not reasons, "reasons": reasons},
    }


def _late(late_ms: float, most_ms: float) -> list[str]:
    # Meanwhile the buffers of denied classes empty: lower ones would get what is not theirs, by right.
    if late_ms <= most_ms:
        return []
    return [f"a sender was {late_ms:.1f} ms late (at most {most_ms:.1f} ms: then the port has sent half a buffer)"]
