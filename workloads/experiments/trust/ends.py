"""UDP between two hosts by some interface, and what it came to, as rows."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, cast

import psutil

from smtstack.errors import SmtError
from smtstack.udp.stack import FIRST_PORT
from topo.host import SmtHost
from topo.network import SmtNet
from topo.running import PATIENCE_S, Program, python_program
from workloads.experiments.trust.interfaces import MODELLED, NATIVE
from workloads.fleet.programs import IMPORTS, cpu_s
from workloads.load.measure import rtt_summary
from workloads.results.fidelity import FidelityMonitor, doubted
from workloads.results.kinds import Mode
from workloads.results.row import BY_DEFAULT, Row

MODULE = "workloads.experiments.trust.program"
TRANSPORT = "udp"
#: Modes of rows: datagrams a second, the round trip of an echo, the time of a call that sends.
BLAST, ECHO, CALL = "udp-blast", "udp-echo", "udp-call"
#: What experiments with such rows say of them.
KINDS = (Mode(BLAST, heading="datagrams per second"), Mode(ECHO, "p50", "median round trip in us", alone=True),
         Mode(CALL, "p50", "median time of a call that sends, in us", alone=True))
#: Ways to wait for an answer.
WAITS = ("poll", "event", "hybrid")
_ZERO = ("ring_refused", "ring_host_refused", "ocall_refused")


class UdpRow(Row, total=False):
    """A trial of UDP. ``variant``: the interface; ``rpcs``: datagrams that came, or were sent by a call each."""

    sent: int
    lost: int
    """Datagrams that were sent and did not come, as UDP may do."""
    mbit_per_s: float
    """Payload that came."""
    counters: Mapping[str, int]
    """What the receiver's interface counted, over the life of its port."""
    guarded: bool
    """Under a filter that would have ended it with its first network system call."""


class UdpEnds:
    """A sender and a receiver, each under its own filter; made by :func:`open_ends`."""

    def __init__(self, net: SmtNet, topo: str, interface: str, sender: Program, receiver: Program,
                 folder: Path) -> None:
        self._net = net
        self._topo = topo
        self._interface = interface
        self._sender = sender
        self._receiver = receiver
        self._raw = folder / "took.u64"
        self._orders = 0

    def _watched(self, sent: Mapping[str, Any], came: Mapping[str, Any],
                 patience_s: float = 2 * PATIENCE_S) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        programs = (self._sender, self._receiver)
        kinds = [("client", self._sender.pid), ("server", self._receiver.pid),
                 *(("nic", pid) for host in (self._sender.host, self._receiver.host)
                   for pid in self._net.nic_pids(host))]
        watched = [(kind, process) for kind, pid in kinds for parent in (psutil.Process(pid),)
                   for process in (parent, *(parent.children(recursive=True) if kind != "nic" else []))]
        before = [cpu_s(process) for _kind, process in watched]
        monitor = FidelityMonitor(pids=[process.pid for _kind, process in watched])
        monitor.start()
        self._orders += 1
        self._receiver.tell({**came, "order": self._orders})
        self._sender.tell({**sent, "order": self._orders})
        told = self._sender.answer(patience_s)
        self._receiver.tell({"do": "stop"})
        got = self._receiver.answer(PATIENCE_S)
        fidelity = monitor.stop()
        cpu = {"client_s": 0.0, "server_s": 0.0, "nic_s": 0.0}
        for (kind, process), start in zip(watched, before, strict=True):
            cpu[f"{kind}_s"] += cpu_s(process) - start
        counted = []
        for program in programs:
            program.tell({"do": "counters"})
            counted.append(program.answer(PATIENCE_S))
        refused = sum(each["counters"].get(name, 0) for each in counted for name in _ZERO)
        fidelity = doubted(fidelity, *([f"{refused} entries or results of an honest host were refused"]
                                       if refused else []))
        return told, got, {
            "topo": self._topo, "switch": self._net.switch_kind or None, "pinned": False, "transport": TRANSPORT,
            "nic": None, "poll": BY_DEFAULT, "variant": self._interface, "concurrency": 1, "errors": 0,
            "counters": counted[1]["counters"], "guarded": all(each["guarded"] for each in counted),
            "cpu": {**{name: round(value, 4) for name, value in cpu.items()}, "switch_s": 0.0},
            "fidelity": fidelity}

    def blast(self, size: int, seconds: float, trial: int) -> UdpRow:
        """Send as many datagrams as go in that time."""
        told, got, common = self._watched({"do": "blast", "size": size, "seconds": seconds},
                                          {"do": "count", "size": size}, seconds + PATIENCE_S)
        rate = got["came"] / max(got["s"], told["s"])
        return cast(UdpRow, {
            **common, "mode": BLAST, "size": size, "trial": trial, "rpcs": got["came"],
            "content_ok": got["wrong"] == 0 and got["came"] > 0, "rpc_per_s": round(rate, 1),
            "rtt_us": rtt_summary(array("Q")), "bytes": got["came"] * size, "sent": told["sent"],
            "lost": told["sent"] - got["came"], "mbit_per_s": round(rate * size * 8e-6, 3)})

    def echo(self, size: int, count: int, trial: int, wait: str) -> tuple[UdpRow, array[int]]:
        """So many echoes, one at a time."""
        told, _got, common = self._watched(
            {"do": "ask", "size": size, "count": count, "raw": str(self._raw), "wait": wait},
            {"do": "echo", "size": size})
        took = self._took()
        common["cpu"]["client_s"] = round(told["cpu_s"], 4)
        row = cast(UdpRow, {
            **common, "mode": ECHO, "poll": wait, "size": size, "trial": trial, "rpcs": told["answered"],
            "errors": told["lost"], "content_ok": told["wrong"] == 0,
            "rpc_per_s": round(told["answered"] / max(sum(took) / 1e9, 1e-9), 1), "rtt_us": rtt_summary(took),
            "bytes": size * told["answered"], "sent": count, "lost": told["lost"]})
        return row, took

    def calls(self, size: int, count: int, trial: int) -> tuple[UdpRow, array[int]]:
        """So many sent by a call each, and how long each took."""
        told, got, common = self._watched(
            {"do": "one_by_one", "size": size, "count": count, "raw": str(self._raw)},
            {"do": "count", "size": size})
        took = self._took()
        row = cast(UdpRow, {
            **common, "mode": CALL, "size": size, "trial": trial, "rpcs": told["sent"],
            "content_ok": got["wrong"] == 0 and got["came"] > 0,
            "rpc_per_s": round(told["sent"] / max(sum(took) / 1e9, 1e-9), 1), "rtt_us": rtt_summary(took),
            "bytes": size * told["sent"], "sent": told["sent"], "lost": told["sent"] - got["came"]})
        return row, took

    def _took(self) -> array[int]:
        took = array("Q")
        took.frombytes(self._raw.read_bytes())
        if sys.byteorder == "big":
            took.byteswap()
        self._raw.unlink()
        return took


@contextmanager
def open_ends(net: SmtNet, topo: str, interface: str, folder: Path, number: int, exit_us: float,
              hosts: tuple[SmtHost, SmtHost] | None = None) -> Iterator[UdpEnds]:
    """Two ends on the first two hosts, or ``hosts``, ports by ``number``; raises SmtError if one does not start,
    or one that is to be guarded is not."""
    one, two = hosts or (net.hosts[0], net.hosts[1])
    port = FIRST_PORT + 100 + number
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        programs = []
        for here, there in ((one, two), (two, one)):
            words = ["--io", interface, "--iface", str(here.defaultIntf()), "--local", here.IP(), str(port),
                     "--peer", there.IP(), str(port)]
            if interface == MODELLED:
                words += ["--exit-ns", str(round(exit_us * 1000))]
            log = folder / f"{number:02}-{here.name}-{interface}.log"
            program = Program(here, f"udp by {interface}", python_program(MODULE, *words), log,
                              imports=(*IMPORTS, MODULE))
            stack.callback(program.stop)
            programs.append(program)
        for program in programs:
            program.wait_for("ready")
            program.tell({"do": "counters"})
            if program.answer(PATIENCE_S)["guarded"] != (interface != NATIVE):
                raise SmtError(f"{program.host.name}: udp by {interface} is not under its filter")
        yield UdpEnds(net, topo, interface, programs[0], programs[1], folder)


