"""Senders and receivers of streams on the hosts of a network, and what a transfer between them came to.

Processor time is that of processes: the sender's (``host_s``) and its NIC's (``device_s``), if the NIC is one of
its own. What a NIC in Python takes stands beside what the host took, never left out: work that was moved
is not saved.
"""

from __future__ import annotations

import hashlib
import random
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import psutil

from smtstack.errors import SmtError
from smtstack.nicshare.state import NicState
from topo.host import SmtHost
from topo.network import SmtNet
from topo.running import Program, python_program
from workloads.experiments.offload.senders import COPIES, How
from workloads.fleet import credentials
from workloads.fleet.programs import IMPORTS
from workloads.load.measure import rtt_summary
from workloads.results.fidelity import FidelityMonitor
from workloads.results.row import BY_DEFAULT, Row

FIRST_PORT = 4433
MODULE = "workloads.experiments.offload.program"
#: A NIC publishes its counters so often.
_PUBLISH_S = 0.05
#: Counters of a sender's NIC that rows have.
COUNTERS = ("tx_packets", "tx_bytes", "tx_tls_encrypted_packets", "tx_tls_encrypted_bytes", "tx_tls_ooo",
            "tx_tls_dump_packets", "tx_tls_dump_bytes", "tx_tls_resync_bytes", "tx_tls_fallback",
            "tx_tls_drop_no_sync_data", "tx_tls_drop_bypass_req")


@dataclass(frozen=True, slots=True)
class Transfer:
    """What is sent, on each of some connections."""

    name: str
    """What rows call it: a system, or a path of a file."""
    how: How
    count: int
    """Bytes."""
    record: int = 0
    """Bytes of each write; 0: it is a file, sent as its system sends files."""
    connections: int = 1
    offset: int = 0
    """Where in the file it begins."""


class Sender(TypedDict):
    """The sending host's part of a transfer."""

    host_s: float
    """Processor time of its sending processes."""
    device_s: float
    """Processor time of its NICs' processes; 0.0: they are none of their own."""
    copies: Mapping[str, int]
    """Bytes that were copied, by what for (:data:`~workloads.experiments.offload.senders.COPIES`)."""
    sent: int
    """Bytes that TCP has sent, those that it sent again included; handshakes are in it."""
    resent: int
    """Bytes that TCP has sent again."""
    disabled: int
    """Connections whose NIC was given up for good."""


class StreamRow(Row):
    """One transfer. ``size``: bytes of the file or of a write; ``concurrency``: connections; ``rpcs``: transfers,
    ``rtt_us``: their times."""

    mbit_per_s: float
    """Payload, all connections."""
    sender: Sender
    counters: Mapping[str, int]
    """What the sender's NIC counted meanwhile; empty: it has no process of its own."""


class Pairs:
    """So many senders on the server's host of a network and receivers on the client's; a context manager
    (:func:`open_pairs`). ``file`` has ``content``, which is what they send."""

    def __init__(self, net: SmtNet, topo: str, file: Path, content: bytes, logs: Path, keys: Path,
                 connections: int) -> None:
        self.net = net
        self.client, self.server = net.flows[0]
        self.topo = topo
        self.file = file
        self.content = content
        #: SHA-256 of parts of it, by offset and length.
        self._digests: dict[tuple[int, int], str] = {}
        #: Settings and counters of the sender's NIC.
        self.nic = NicState.open(str(self.server.defaultIntf()), pid=self.server.pid)
        self._stack = ExitStack()
        self._senders: list[Program] = []
        self._receivers: list[Program] = []
        logs.mkdir(parents=True)
        made = credentials.make(keys, "tls", {host.name: host.IP() for host in net.hosts})
        with ExitStack() as stack:
            for number in range(connections):
                for host, role, into in ((self.server, "serve", self._senders),
                                         (self.client, "call", self._receivers)):
                    arguments = [role, "--addr", f"{self.server.IP()}:{FIRST_PORT + number}",
                                 "--certs", str(keys / host.name)]
                    program = Program(host, f"stream {role}", python_program(MODULE, *arguments),
                                      logs / f"{host.name}-{role}{number}.log",
                                      environment=made.environment(host.name), imports=(*IMPORTS, MODULE))
                    stack.callback(program.stop)
                    into.append(program)
            for program in (*self._senders, *self._receivers):
                program.wait_for("ready")
            self._stack = stack.pop_all()

    def __enter__(self) -> Pairs:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stack.close()


    def prepare(self, transfer: Transfer, **more: Any) -> Begun:
        """Connect, and shake hands. ``more`` are words for both ends. Raises SmtError if that fails."""
        how = asdict(transfer.how)
        senders, receivers = self._senders[:transfer.connections], self._receivers[:transfer.connections]
        for number, (sender, receiver) in enumerate(zip(senders, receivers, strict=True)):
            peer = [self.server.IP(), FIRST_PORT + number]
            sender.tell({"how": how, "file": str(self.file), "offset": transfer.offset, "count": transfer.count,
                         "record": transfer.record, **more})
            receiver.tell({"how": how, "peer": peer, "count": transfer.count, **more})
        for program in (*senders, *receivers):
            program.answer()
        return Begun(transfer, senders, receivers)

    def measure(self, transfer: Transfer, trial: int, mode: str, variant: str = "") -> StreamRow:
        """One transfer. Raises SmtError if it failed: there is no figure then."""
        return self.watched(transfer, trial, mode, variant)[0]

    def watched(self, transfer: Transfer, trial: int, mode: str, variant: str = "",
                meanwhile: Callable[[], None] = lambda: None, **more: Any,
                ) -> tuple[StreamRow, list[dict[str, Any]]]:
        """One transfer and what its receivers said; ``meanwhile`` is done once it is under way, ``more`` are words
        for both ends. Raises SmtError if it failed."""
        begun = self.prepare(transfer, **more)
        watch = Watch(self, begun)
        for receiver in begun.receivers:
            receiver.tell({})
        meanwhile()
        sent = [sender.answer() for sender in begun.senders]
        came = [receiver.answer() for receiver in begun.receivers]
        row = watch.row(sent, came, trial, mode, variant)
        for receiver in begun.receivers:
            receiver.tell({"digest": 0})
        wanted = self._digest(transfer.offset, transfer.count)
        right = [receiver.answer()["digests"] for receiver in begun.receivers] == [[wanted]] * len(came)
        why = "; ".join(dict.fromkeys(
            f"{who}: {answer['error']}" for who, answers in (("receiver", came), ("sender", sent))
            for answer in answers if answer["error"]))
        if why or not right:
            raise SmtError(f"{transfer.name}, {transfer.record or transfer.count} bytes: "
                           f"{why or 'what came is not what was sent'}")
        return row, came

    def _digest(self, offset: int, count: int) -> str:
        key = offset, count
        if key not in self._digests:
            part = memoryview(self.content)[offset:offset + count]
            self._digests[key] = hashlib.sha256(part).hexdigest()
        return self._digests[key]

    def enough(self, transfer: Transfer, seconds: float) -> Transfer:
        """A transfer like this of so many bytes that it takes about this long, as far as there are so many: by
        trying it once, which warms all up. At least what it has."""
        row = self.measure(transfer, 0, "warm-up")
        unit = transfer.record or 1 << 20
        count = min(int(row["mbit_per_s"] * 1e6 / 8 * seconds), len(self.content)) // unit * unit
        return replace(transfer, count=max(transfer.count, count))


@dataclass(frozen=True, slots=True)
class Begun:
    """Connections that are ready to carry a transfer."""

    transfer: Transfer
    senders: Sequence[Program]
    receivers: Sequence[Program]


class Watch:
    """What a transfer takes, from now on."""

    def __init__(self, pairs: Pairs, begun: Begun) -> None:
        self._pairs = pairs
        self._transfer = begun.transfer
        net = pairs.net
        nics = {host.name: _nic_pids(net, host) for host in net.hosts}
        of_server = nics[pairs.server.name]
        self._kinds = {
            "server": _family(begun.senders), "client": _family(begun.receivers), "device": of_server,
            "switch": [pid for pid in net.emulator_pids() if pid not in of_server]}
        self._has_nic = bool(of_server)
        self._counters = pairs.nic.counters() if self._has_nic else {}
        self._drops = net.drops()
        everybody = [pid for pids in self._kinds.values() for pid in pids]
        self._monitor = FidelityMonitor(pids=everybody)
        self._monitor.start()
        self._before = {kind: _cpu_s(pids) for kind, pids in self._kinds.items()}
        self._start = time.perf_counter()

    def row(self, sent: Sequence[Mapping[str, Any]], came: Sequence[Mapping[str, Any]], trial: int, mode: str,
            variant: str) -> StreamRow:
        """The row, of what both ends have said."""
        wall = time.perf_counter() - self._start
        cpu = {kind: round(_cpu_s(pids) - self._before[kind], 6) for kind, pids in self._kinds.items()}
        fidelity = self._monitor.stop()
        drops = {name: count - self._drops[name] for name, count in self._pairs.net.drops().items()}
        transfer = self._transfer
        seconds = [answer["end"] - answer["start"] for answer in came]
        # One clock for all processes of the machine.
        longest = max(answer["end"] for answer in came) - min(answer["start"] for answer in came) or 1e-9
        total = sum(answer["bytes"] for answer in came)
        return {
            "topo": self._pairs.topo, "switch": self._pairs.net.switch_kind or None, "pinned": False,
            "transport": transfer.name, "nic": None, "mode": mode, "poll": BY_DEFAULT, "variant": variant,
            "size": transfer.record or transfer.count, "concurrency": transfer.connections, "trial": trial,
            "rpcs": len(came), "errors": 0, "content_ok": True, "rpc_per_s": round(len(came) / longest, 3),
            "rtt_us": rtt_summary(array("Q", [round(s * 1e9) for s in seconds])), "bytes": total,
            "mbit_per_s": round(total * 8e-6 / longest, 2),
            "sender": {"host_s": cpu["server"], "device_s": cpu["device"],
                       "copies": {name: sum(answer["copies"].get(name, 0) for answer in sent) for name in COPIES},
                       "sent": sum(answer["sent"] for answer in sent),
                       "resent": sum(answer["resent"] for answer in sent),
                       "disabled": sum(answer.get("disabled", 0) for answer in sent)},
            "counters": self._counted(), "drops": drops,
            "cpu": {"client_s": cpu["client"], "server_s": cpu["server"], "nic_s": cpu["device"],
                    "switch_s": cpu["switch"], "wall_s": round(wall, 6), "us_per_rpc": None},
            "fidelity": fidelity}

    def _counted(self) -> dict[str, int]:
        if not self._has_nic:
            return {}
        time.sleep(2 * _PUBLISH_S)
        now = self._pairs.nic.counters()
        return {name: now[name] - self._counters[name] for name in COUNTERS if name in now}


@contextmanager
def open_pairs(net: SmtNet, topo: str, size: int, seed: int, folder: Path, connections: int = 1,
               ) -> Iterator[Pairs]:
    """Senders and receivers with a file of ``size`` random bytes; all gone afterwards. Logs go to ``folder``."""
    content = random.Random(seed).randbytes(size)
    with tempfile.TemporaryDirectory(dir="/run") as place:
        file = Path(place, "file")
        file.write_bytes(content)
        with Pairs(net, topo, file, content, folder / "hosts", Path(place, "keys"), connections) as pairs:
            yield pairs


def _nic_pids(net: SmtNet, host: SmtHost) -> list[int]:
    return net.nic_pids(host)


def _family(programs: Sequence[Program]) -> list[int]:
    """Their processes and those that these have started."""
    parents = [psutil.Process(program.pid) for program in programs]
    return [process.pid for parent in parents for process in (parent, *parent.children(recursive=True))]


def _cpu_s(pids: Sequence[int]) -> float:
    """Processor time of all threads of these, in seconds, by nanoseconds of the scheduler where it tells them."""
    return sum(map(_one_cpu_s, pids))


def _one_cpu_s(pid: int) -> float:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9
    except (OSError, IndexError, ValueError):
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)
