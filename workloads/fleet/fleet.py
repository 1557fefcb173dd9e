"""Servers and clients on a network of hosts, and points measured with them: here echo, in kv.py YCSB, in
query.py queries of many servers, in blocks.py a block store, in mix/fleet.py a mix of sizes all to all.

What ``smtnet run``, ``demo``, ``bench`` and ``reproduce`` share. A :class:`Fleet` is one transport on one network:
it stays up while many points are measured, and several fleets may take turns on one network, so that a machine
that slows down slows all of them.
"""

from __future__ import annotations

import json
import os
import selectors
import shutil
import tempfile
import time
from array import array
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import psutil

from smtstack.errors import ConfigError, PeerError
from smtstack.io.key_file import IN_CLEAR
from smtstack.transport.params import software
from smtstack.waiting import AS_TCP, HYBRID
from topo.dns import DnsServer
from topo.host import SmtHost
from topo.network import SmtNet
from topo.running import Program, finish, python_program
from workloads.fleet import credentials
from workloads.fleet import dns as fleet_dns
from workloads.fleet.programs import IMPORTS, cpu_s, take_raw
from workloads.fleet.retransmissions import Retransmissions
from workloads.fleet.rings import RingCounters
from workloads.fleet.setup import Setup, asked
from workloads.load.loops import Load, parse_also, size_name
from workloads.load.measure import SIZES_SUFFIX, rtt_summary
from workloads.options.waiting import wait_words
from workloads.results.fidelity import FidelityMonitor, combined, doubted, judge_figures, ring_doubts
from workloads.results.row import BY_DEFAULT, HOW, Answered, Lost, OpenLoopFigures, Row
from workloads.transports.sessions import summary

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10 has none

#: Seconds between looks whether all processes are alive.
_LOOK_S = 0.5
#: Ports: fleets are this far apart, clients of a fleet begin in the middle.
PORT_STEP = 200
FIRST_PORT = 2000

R_co = TypeVar("R_co", bound=Row, covariant=True)


@dataclass(frozen=True, slots=True)
class Measured(Generic[R_co]):
    """One trial."""

    row: R_co
    rtt_ns: array[int]
    """Every round trip, by client process in the order of their ends."""
    tags: array[int]
    """The request bytes of each round trip (kv: the kind of operation); empty where all are alike."""


@dataclass(slots=True)
class Trial:
    """A measurement between :meth:`Fleet.prepare` and :meth:`Fleet.collect`."""

    load: Load
    number: int
    clients: list[Program]
    raw: list[Path]
    """Where each of them leaves its round trips."""
    drops: dict[str, int] = field(default_factory=dict)
    """What the network had lost at the beginning; the next four are of that moment, too."""
    fabric: dict[str, int] = field(default_factory=dict)
    sent_again: dict[str, int] = field(default_factory=dict)
    accounts: list[tuple[str, psutil.Process, float]] = field(default_factory=list)
    start: float = 0.0
    monitor: FidelityMonitor | None = None


class Fleet:
    """Servers and clients of one transport on ``net``; ``folder`` takes logs, and the keys if they are to be
    kept. Use with ``with``."""

    #: What servers and clients do: their names on command lines and in messages.
    WORK = "echo"
    #: What clients do, if that has another name.
    CALLS = ""
    #: What a server's log says when clients may come.
    READY = "serving"
    #: Ending of the files in which clients say what each round trip was of.
    TAGS = SIZES_SUFFIX

    def __init__(self, net: SmtNet, topo: str, setup: Setup, folder: Path, number: int = 0,
                 keep_keys: bool = False) -> None:
        self._keep_keys = keep_keys
        self.net = net
        self._topo = topo
        self.setup = setup
        self._folder = folder / f"{number:02}-{setup.transport}-{setup.nic}"
        self._folder.mkdir(parents=True)
        self._number = number
        self._port = FIRST_PORT + number * PORT_STEP
        self._servers: list[Program] = []
        self._clients: list[Program] = []
        self._dns: DnsServer | None = None
        hosts = {host.name: host.IP() for host in net.hosts}
        # The sandbox has a /run of its own, in memory: what is there goes with it, even if it is killed.
        self._keys = self._folder / "keys" if keep_keys else Path(tempfile.mkdtemp(dir="/run"), "keys")
        self._credentials = credentials.make(self._keys, setup.transport, hosts)
        cores = os.sched_getaffinity(0)
        self._cores = split_cores([host.name for host in net.hosts], cores)
        self._edges = asked(setup.pattern, net)
        self._waiting = setup.waiting
        if self._waiting.mode == HYBRID and outnumber(self._processes_by_host(), len(net.emulator_pids()),
                                                      self._cores, len(cores)):
            # Who looks for a frame would keep those from a processor who are to send it.
            self._waiting = AS_TCP
        self._retransmissions = Retransmissions(net.hosts, setup.uses_nic)
        self._rings = RingCounters(net.hosts) if setup.uses_nic and net.has_rings else None
        self.longest_s: float | None = None
        """Seconds within which a measurement is done, or it is an error; None: it takes what it takes."""
        self.counters: dict[str, dict[str, int]] = {}
        """What each host's servers counted; there after the end."""

    def key_options(self, host: str) -> list[str]:
        """What names a host's credentials on a command line."""
        return ["--keys", self.setup.keys] if self.setup.keys else self._credentials.args(host)

    def keylog(self, host: SmtHost) -> Path:
        """Where a host writes down the secrets of its sessions, if keys are kept."""
        return self._keys / f"{host.name}.keylog"

    def _processes_by_host(self) -> dict[str, int]:
        """How many busy processes there will be on each host."""
        found = dict.fromkeys((host.name for host in self._edges), self.setup.processes)
        for host in {peer for peers in self._edges.values() for peer in peers}:
            found[host.name] = found.get(host.name, 0) + self.setup.workers
        return found

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_error: object) -> None:
        if kind is not None:
            # Whoever is in the middle of a load would finish it first.
            for client in self._clients:
                client.process.terminate()
        self.stop()

    # -- processes -----------------------------------------------------------------------------------------

    def _common(self, host: SmtHost, port: int) -> list[str]:
        setup = self.setup
        options = ["--transport", setup.transport, "--iface", str(host.defaultIntf()),
                   "--addr", f"{host.IP()}:{port}"]
        if setup.uses_nic:
            options += ["--nic", setup.nic]
            rate = self.net.rate_mbps(host)
            if rate is not None:
                # The pacer keeps to the link; else its queue would overflow in the host itself.
                options += ["--link-mbps", str(max(1, int(rate)))]
            if self.net.paths > 1:
                # Else a receiver lets a peer send one long message at a time, which uses one of its paths.
                options += ["--param", f"max_rpcs_per_peer={self.net.paths}"]
        options += wait_words(self._waiting)
        if setup.session_mode is not None:
            options += ["--session", setup.session_mode]
        if self._dns is not None:
            options += ["--dns", "{}:{}".format(*self._dns.address)]
        if self._keep_keys and setup.session_mode is not None:
            options += ["--keylog", str(self.keylog(host))]
        # Last, so that they count.
        return [*options, *setup.options]

    def _start(self) -> None:
        setup = self.setup
        edges = self._edges
        if not edges:
            raise ConfigError(f"{len(self.net.hosts)} host is too few: one asks, another answers")
        if setup.needs_dns:
            self._dns = fleet_dns.server_for(self.net, edges, self._keys, self._number)
            self._dns.start()
        for host in dict.fromkeys(peer for peers in edges.values() for peer in peers):
            self._start_server(host)
        for server in self._servers:
            server.wait_for(self.READY)
        for host, peers in edges.items():
            for number in range(setup.processes):
                log = self._folder / f"{host.name}-client{number}.log"
                keys = self.key_options(host.name)
                port = self._port + PORT_STEP // 2 + number
                arguments = ["--work", self.CALLS or self.WORK, *self._common(host, port), *keys]
                for peer in peers:
                    arguments += ["--peer", f"{peer.IP()}:{self._port}"]
                if setup.connections:
                    arguments += ["--connections", str(setup.connections)]
                self._clients.append(self._program(host, "client", log, "workloads.fleet.agent", *arguments))
        for client in self._clients:
            client.wait_for("ready")

    def _start_server(self, host: SmtHost) -> None:
        """One, into ``_servers``."""
        log = self._folder / f"{host.name}-server.log"
        arguments = ["serve", self.WORK, *self._common(host, self._port), *self.key_options(host.name),
                     "--workers", str(self.setup.workers), *self.setup.server_options, "--json"]
        self._servers.append(self._program(host, "server", log, "workloads", *arguments))

    def _program(self, host: SmtHost, role: str, log: Path, module: str, *arguments: str) -> Program:
        """A program of ours on a host, with its credentials and processors."""
        return Program(host, f"{self.WORK} {role}", python_program(module, *arguments), log,
                       environment={**self._credentials.environment(host.name), **dict(self.setup.environment)},
                       cores=self._cores.get(host.name),
                       imports=IMPORTS)

    def server_pids(self, host: str) -> list[int]:
        """Processes of the servers on that host, workers included; none: nobody is asked there."""
        parents = [psutil.Process(server.pid) for server in self._servers if server.host.name == host]
        return [process.pid for parent in parents for process in (parent, *parent.children(recursive=True))]

    def processes(self) -> list[psutil.Process]:
        """Servers and clients."""
        return [process for kind, process in self._processes() if kind != "switch"]

    def sent_again(self) -> int:
        """Packets (tcp, tls, ktls: segments) that all hosts have sent again, as far as it is known by now."""
        return next(iter(self._retransmissions.known().values()))

    def stop(self) -> None:
        """End all processes; the servers' counters are known afterwards."""
        for client in self._clients:
            finish(client.process)
        for server in self._servers:
            server.process.terminate()
        for server in self._servers:
            said = finish(server.process)
            if said.startswith("{"):
                self.counters[server.host.name] = json.loads(said)["counters"]
        self._clients, self._servers = [], []
        if self._dns is not None:
            self._dns.stop()
            self._dns = None
        if not self._keep_keys:
            shutil.rmtree(self._keys.parent, ignore_errors=True)

    # -- measuring -----------------------------------------------------------------------------------------

    def measure(self, load: Load, trial: int = 1) -> Measured[Row]:
        """One trial. Raises SmtError if a process died."""
        prepared = self.prepare(load, trial)
        self.begin(prepared)
        return self.collect(prepared)

    def prepare(self, load: Load, trial: int = 1) -> Trial:
        """Give the clients a load; back when all are connected and warmed up.

        With :meth:`begin` and :meth:`collect` two fleets can be measured at the same time, if each has its own
        load: what counts is from one's beginning to its last answer.
        """
        # Fewer RPCs under way than clients: the first ones do it.
        clients = self._clients if load.rate else self._clients[:load.concurrency]
        raw = [self._folder / f"client{index}.u64" for index in range(len(clients))]
        for index, (client, path) in enumerate(zip(clients, raw, strict=True)):
            client.tell({**self.share(load, index, len(clients)), "raw": str(path), "barrier": True})
        self._collect(clients)
        return Trial(load, trial, clients, raw)

    def begin(self, trial: Trial) -> None:
        """Let them go."""
        self.watch(trial)
        self.let_go(trial)

    def watch(self, trial: Trial) -> None:
        """From here on what the network loses and the processes take is the trial's."""
        trial.drops = self.net.drops()
        trial.fabric = self.net.fabric_octets()
        trial.sent_again = self._retransmissions.read()
        trial.accounts = [(kind, process, cpu_s(process)) for kind, process in self._processes()]
        trial.monitor = FidelityMonitor(pids=[process.pid for _kind, process, _cpu in trial.accounts])
        trial.monitor.start()

    def let_go(self, trial: Trial) -> None:
        """The clients begin; it takes no time."""
        trial.start = time.perf_counter()
        for client in trial.clients:
            client.tell({})

    def collect(self, trial: Trial) -> Measured[Row]:
        """What came of it, when all are done. Raises SmtError if a process died."""
        load, clients, raw = trial.load, trial.clients, trial.raw
        assert trial.monitor is not None
        answers = self._collect(clients)
        wall = time.perf_counter() - trial.start
        machine = trial.monitor.stop()
        cpu = {"client_s": 0.0, "server_s": 0.0, "switch_s": 0.0, "nic_s": 0.0}
        for kind, process, before in trial.accounts:
            cpu[f"{kind}_s"] += cpu_s(process) - before
        drops = {name: count - trial.drops[name] for name, count in self.net.drops().items()}
        again = {name: count - trial.sent_again[name] for name, count in self._retransmissions.read().items()}
        done = [answers[client] for client in clients]
        samples = take_raw(raw)
        told = self._row(load, trial.number, done, samples)
        lost: Lost = {**cast(Lost, again), "drops": drops}
        if trial.fabric:
            lost["fabric"] = {way: octets - trial.fabric[way] for way, octets in self.net.fabric_octets().items()}
        # What full queues and impairments lose is what was asked for.
        whole = combined(machine, [answer["fidelity"] for answer in done], tick_us=self._tick_us(),
                         path_drops=drops["ovs"] + drops["wire"] + drops["nics"] + drops["cables"])
        row: Row = {
            **told, "cpu": {"client_s": round(cpu["client_s"], 4), "server_s": round(cpu["server_s"], 4),
                            "switch_s": round(cpu["switch_s"], 4), "wall_s": round(wall, 4),
                            "us_per_rpc": _per_rpc_us(cpu["client_s"] + cpu["server_s"], told["rpcs"])},
            **lost, "fidelity": judge_figures(whole, told["rtt_us"], told["rpcs"])}
        if self._rings is not None:
            counts = self._rings.take()
            row["ring"] = counts
            row["fidelity"] = doubted(row["fidelity"], *ring_doubts(counts))
        if self._nic_pids():
            row["cpu"]["nic_s"] = round(cpu["nic_s"], 4)
            row["cpu"]["nic_us_per_rpc"] = _per_rpc_us(cpu["nic_s"], told["rpcs"])
        for client, answer in zip(clients, done, strict=True):
            if "error" in answer:
                row["first_error"] = f"{client.host.name}: {answer['error']}"
                break
        tags = take_raw([path.with_name(path.name + self.TAGS) for path in raw])
        return Measured(row, samples, tags)

    def _tick_us(self) -> float:
        """Microseconds of a tick of our transports' timers: longer behind a slow link."""
        rates = [rate for host in self.net.hosts if (rate := self.net.rate_mbps(host)) is not None]
        return software(max(1, int(min(rates))) if rates else None).tick_ns / 1000

    def share(self, load: Load, index: int, many: int) -> dict[str, Any]:
        """What falls to client process ``index`` of ``many``."""
        return share_of(load, index, many)

    def _row(self, load: Load, trial: int, done: list[dict[str, Any]], samples: array[int]) -> Answered:
        """The fields of a row but for ``cpu``, ``fidelity`` and what the network lost."""
        setup = self.setup
        rpcs = sum(answer["rpcs"] for answer in done)
        # All began together; the rate is of the time in which the last one was still at it.
        seconds = max(answer["cpu"].get("wall_s", 0.0) for answer in done)
        told: Answered = {
            "topo": self._topo, "switch": self.net.switch_kind or None, "pinned": bool(self._cores),
            "transport": setup.transport, "nic": setup.nic if setup.uses_nic and setup.keys != IN_CLEAR else None,
            "mode": "unloaded" if load.concurrency == 1 and not load.rate else "loaded",
            "poll": BY_DEFAULT if setup.wait is None else HOW[setup.wait.mode], "wait": HOW[self._waiting.mode],
            "size": size_name(load.size), "concurrency": load.concurrency,
            "trial": trial, "rpcs": rpcs, "errors": sum(answer["errors"] for answer in done),
            "content_ok": all(answer["content_ok"] for answer in done),
            "rpc_per_s": round(rpcs / seconds, 1) if seconds else 0.0,
            "rtt_us": rtt_summary(samples), "bytes": sum(answer["bytes"] for answer in done),
        }
        if setup.keys == IN_CLEAR:
            told["variant"] = "not encrypted"
        if setup.session_mode is not None:
            counted = [answer.get("session", {}) for answer in done]
            told["session"] = summary(setup.session_mode, counted)["session"]
        if self._dns is not None:
            told["dns"] = fleet_dns.place(self.net, self._dns)
        if loops := [answer["open_loop"] for answer in done if "open_loop" in answer]:
            told["open_loop"] = _together(load, loops)
        return told

    def _nic_pids(self) -> set[int]:
        return {pid for host in self.net.hosts for pid in self.net.nic_pids(host)}

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        found = [("client", client.pid) for client in self._clients]
        found += [("server", server.pid) for server in self._servers]
        nics = self._nic_pids()
        found += [("nic" if pid in nics else "switch", pid) for pid in self.net.emulator_pids()]
        out = []
        for kind, pid in found:
            process = psutil.Process(pid)
            out += [(kind, process), *((kind, child) for child in process.children(recursive=True))]
        return out

    def _collect(self, clients: Sequence[Program]) -> dict[Program, dict[str, Any]]:
        """An answer of each client; raises if a client or a server dies meanwhile."""
        answers: dict[Program, dict[str, Any]] = {}
        begun, longest_s = time.monotonic(), self.longest_s
        with selectors.DefaultSelector() as selector:
            for client in clients:
                assert client.process.stdout is not None
                selector.register(client.process.stdout, selectors.EVENT_READ, client)
            while len(answers) < len(clients):
                for key, _events in selector.select(_LOOK_S):
                    answers[key.data] = key.data.answer()
                    selector.unregister(key.fileobj)
                self.look()
                late = next((client for client in clients if client not in answers), None)
                if late is not None and longest_s is not None and time.monotonic() - begun > longest_s:
                    raise PeerError(f"{late.host.name}: {late.what} was not done within {longest_s:.0f} s; see "
                                    f"{late.log}")
        return answers

    def look(self) -> None:
        """While clients are waited for, some times a second: raises if a server has died."""
        for server in self._servers:
            server.check()


def share_of(load: Load, index: int, many: int) -> dict[str, Any]:
    """What falls to client process ``index`` of ``many``."""
    def part(number: int) -> int:
        return number // many + (index < number % many)

    share = asdict(load) | {"concurrency": part(load.concurrency), "rate": load.rate / many,
                            "seed": load.seed * 1000 + index}
    if load.count is not None:
        share["count"] = part(load.count)
    if load.also:
        size, number = parse_also(load.also)
        share["also"] = f"{size}x{part(number)}" if part(number) else ""
    if load.rate:
        share["concurrency"] = 1
    return share


def _together(load: Load, clients: Sequence[Mapping[str, Any]]) -> OpenLoopFigures:
    """An open loop's own numbers, of the client that did worst."""
    late = {name: max(client["late_us"][name] for client in clients) for name in clients[0]["late_us"]}
    return {"rate": load.rate, "kept_up": all(client["kept_up"] for client in clients),
            "drain_ms": max(client["drain_ms"] for client in clients), "late_us": late}


def _per_rpc_us(seconds: float, rpcs: int) -> float | None:
    return round(seconds / rpcs * 1e6, 1) if rpcs else None


def outnumber(processes: Mapping[str, int], others: int, cores: Mapping[str, Collection[int]],
              all_cores: int) -> bool:
    """Whether ``processes`` by host, and as many ``others`` anywhere, are more than there are processors: in all,
    or on a host that has ``cores`` of its own."""
    return (sum(processes.values()) + others > all_cores
            or any(number > len(cores[host]) for host, number in processes.items() if host in cores))


def split_cores(hosts: Sequence[str], cores: Collection[int]) -> dict[str, set[int]]:
    """Which processors each host has, as many each; none if there are fewer processors than hosts.

    Two hosts on one processor wake each other faster than two machines ever could, and the kernel moves them
    together and apart as it likes: round trips would differ by a factor of two from run to run.
    """
    each = len(cores) // len(hosts)
    ordered = sorted(cores)
    return {host: set(ordered[n * each:(n + 1) * each]) for n, host in enumerate(hosts)} if each else {}
