"""A scenario file: its tables and keys (docs/scenarios.md), each declared as an option is, and how it is read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.nic.impairments import ImpairmentRates
from topo.link_options import QUANTITIES, LinkOptions
from topo.topologies import TOPOS, SmtTopo
from workloads import transports
from workloads.experiments.scenario.schedule import Span
from workloads.fleet.fleet import FIRST_PORT, PORT_STEP
from workloads.fleet.setup import PATTERNS, Setup, asked
from workloads.load.loops import Load
from workloads.options import common as options
from workloads.options import tables
from workloads.options.common import Params
from workloads.options.declare import group, option
from workloads.options.network import Network
from workloads.options.overlay import Overlay
from workloads.options.session import Sessions, check_sessions, session_words
from workloads.results.points import label
from workloads.transports import PACKET_TRANSPORTS

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]*")
#: A time from the beginning, which may be the beginning.
_MOMENT = replace(quantities.SECONDS, above=False)
#: What a fault changes on a link, each in its own unit.
IMPAIRMENTS = ("loss", "delay_us", "jitter_us", "duplicate", "reorder", "corrupt")
#: A time line of more intervals than that is none.
MOST_INTERVALS = 10_000


@dataclass(frozen=True)
class Head:
    """Keys before the first table."""

    name: str = option("--name", default="", help="what it is called (default: the file's name)")
    seed: int = option("--seed", type=options.positive, default=1,
                       help="of sizes, arrivals and faults; every transport has the same")
    transports: list[str] = option("--transports", type=options.transport_list, default=["smt", "tls"],
                                   help=f"any of {', '.join(transports.NAMES)}; they take turns")
    nic: str = option("--nic", choices=("sw", "hw"), default="sw",
                      help="who seals SMT's records: software, or the NIC's TLS offload")
    trials: int = option("--trials", type=options.positive, default=1,
                         help="how often each transport has the whole schedule")
    interval: float = option("--interval", type=quantities.SECONDS, default=0.1, help="of the time line")
    may_fail: bool = option("--may-fail", action="store_true",
                            help="RPCs without an answer are counted, and the run has not failed for them")
    overlay: Overlay = group(Overlay)
    params: Params = group(Params)
    sessions: Sessions = group(Sessions)


@dataclass(frozen=True)
class NetworkTable:
    """``[network]``."""

    topo: str = option("--topo", default="back2back", help=f"{', '.join(TOPOS)} with arguments, as star,4")
    network: Network = group(Network)


@dataclass(frozen=True)
class LoadTable:
    """A ``[[load]]``: RPC echo, every answer compared."""

    name: str = option("--name", default="", help="what tables call it (default: load1, load2, ...)")
    pattern: str = option("--pattern", default="topo", help=f"{', '.join(PATTERNS)}, or pairs as h1:h3,h2:h4")
    size: str = option("--size", type=quantities.sizes, default="64",
                       help="request bytes, a workload (w1 to w5) or a file of sizes (from where the command is "
                            "typed)")
    response_size: int | None = option("--response-size", type=quantities.BYTES,
                                       help="bytes of an answer (default: the request comes back)")
    concurrency: int = option("--concurrency", type=options.positive, default=1, help="RPCs under way in all")
    rate: float = option("--rate", type=quantities.PER_SECOND, default=0.0,
                         help="RPC/s in all, at random times, instead of concurrency")
    start: float = option("--start", type=_MOMENT, default=0.0, help="when its first RPC begins")
    seconds: float | None = option("--seconds", type=quantities.SECONDS, help="how long RPCs begin; must be said")
    processes: int = option("--processes", type=options.positive, default=1, help="client processes a host")
    workers: int = option("--workers", type=options.positive, default=1, help="server processes a host")
    connections: int = option("--connections", type=options.positive, default=0,
                              help="tcp, tls, ktls: of a client process (default: one an RPC)")
    timeout: float = option("--timeout", type=quantities.SECONDS, default=10.0, help="an RPC is given up after it")

    @property
    def span(self) -> Span:
        """When its RPCs begin."""
        assert self.seconds is not None, "the reader has seen it"
        return Span(self.start, round(self.start + self.seconds, 9))


@dataclass(frozen=True)
class FaultTable:
    """A ``[[fault]]``: on a link that is impaired or down, or on a host whose servers stand still."""

    at: float = option("--at", type=_MOMENT, default=0.0, help="when it begins; must be said")
    lasts: float | None = option("--for", type=quantities.SECONDS, help="how long it lasts (default: to the end)")
    host: str = option("--host", default="", help="a host, and the one link it has")
    link: str = option("--link", default="", help="instead of a host: a link by its ends, as s1-h2")
    loss: float | None = option("--loss", type=QUANTITIES["loss"], help="per cent of frames to lose, either way")
    delay_us: float | None = option("--delay", type=QUANTITIES["delay_us"], help="one way")
    jitter_us: float | None = option("--jitter", type=QUANTITIES["jitter_us"],
                                     help="the delay is up to this longer or shorter")
    duplicate: float | None = option("--duplicate", type=QUANTITIES["duplicate"],
                                     help="per cent of frames to duplicate")
    reorder: float | None = option("--reorder", type=QUANTITIES["reorder"], help="per cent of frames to reorder")
    corrupt: float | None = option("--corrupt", type=QUANTITIES["corrupt"], help="per cent of frames to corrupt")
    down: bool = option("--down", action="store_true",
                        help="no frame passes, either way, as behind a cut cable: the ends see no carrier lost")
    stall: bool = option("--stall", action="store_true",
                         help="the host's server processes are stopped, then continued")

    def changes(self) -> dict[str, float]:
        """What it changes on its link, in the fields of LinkOptions."""
        return {name: value for name in IMPAIRMENTS if (value := getattr(self, name)) is not None}

    @property
    def place(self) -> str:
        """Where."""
        return self.link or self.host

    def text(self) -> str:
        """``h2: loss 5%``."""
        if self.stall:
            return f"{self.place}: servers stopped"
        if self.down:
            return f"{self.place}: down"
        units = {"delay_us": ("delay", "us"), "jitter_us": ("jitter", "us")}
        said = (f"{units.get(name, (name, '%'))[0]} {value:g}{units.get(name, (name, '%'))[1]}"
                for name, value in self.changes().items())
        return f"{self.place}: {', '.join(said)}"


@dataclass(frozen=True)
class Fault:
    """A fault of which everything is known."""

    table: FaultTable
    span: Span
    ends: tuple[str, str] | None
    """The nodes at its link; None: it is the host's servers."""

    def text(self) -> str:
        """What people call it."""
        return self.table.text()


#: Tables by name, and those of which there may be several.
TABLES: dict[str, type] = {"network": NetworkTable}
LISTS: dict[str, type] = {"load": LoadTable, "fault": FaultTable}


@dataclass(frozen=True)
class Scenario:
    """What a file says, checked."""

    name: str
    head: Head
    network: NetworkTable
    loads: Sequence[LoadTable]
    faults: Sequence[Fault]
    text: str
    """The whole file."""

    @property
    def seconds(self) -> float:
        """Until no more RPCs begin."""
        return max(load.span.end for load in self.loads)

    def topology(self) -> SmtTopo:
        """The network's, with a wire on every link that has a fault. Raises :class:`ConfigError`."""
        topo = self.network.network.check(self.network.topo, self.head.seed)
        for fault in self.faults:
            if fault.ends is not None:
                topo.linkInfo(*fault.ends).update(wire="yes", impair="wire")
        return topo

    def setup(self, transport: str, load: LoadTable) -> Setup:
        """What a transport's fleet for one load is."""
        head = self.head
        words = (*head.overlay.words(transport), *options.param_words(head.params.param),
                 *session_words(head.sessions, transport))
        size = ("--response-size", str(load.response_size)) if load.response_size else ()
        return Setup(transport, head.nic, load.pattern, load.processes, load.workers, load.connections,
                     session=(head.sessions.session or "") if transport == "smt" else "",
                     options=words if transport in PACKET_TRANSPORTS else (), server_options=size)

    def load(self, number: int, trial: int) -> Load:
        """What one of :attr:`loads` puts on, from 0; every transport has the same."""
        load = self.loads[number]
        return Load(load.size, count=None, seconds=load.seconds, concurrency=load.concurrency, rate=load.rate,
                    timeout=load.timeout, seed=(self.head.seed + trial - 1) * 100 + number,
                    response_size=load.response_size)

    def system(self, transport: str) -> str:
        """What tables call it."""
        return label({"transport": transport, "nic": self.head.nic})


def read(path: Path, seed: int | None = None, trials: int | None = None) -> Scenario:
    """The file, with what the command line says instead. Raises :class:`ConfigError`, Unsupported."""
    found = tables.load(path)
    for name in found:
        if name in LISTS:
            if not isinstance(found[name], list) or not all(isinstance(one, dict) for one in found[name]):
                raise ConfigError(f"{path}: {name} is a list of tables, each under [[{name}]]")
        elif name in TABLES:
            if not isinstance(found[name], dict):
                raise ConfigError(f"{path}: {name} is a table, under [{name}]")
        elif name not in dict(tables.keys(Head)):
            raise tables.unknown(str(path), name, (*TABLES, *LISTS, *dict(tables.keys(Head))))
    of_head = {key: value for key, value in found.items() if key not in (*TABLES, *LISTS)}
    head = tables.read(Head, of_head, str(path))
    head = replace(head, seed=seed or head.seed, trials=trials or head.trials)
    network = tables.read(NetworkTable, found.get("network", {}), f"{path}, [network]")
    loads = [_load(table, f"{path}, [[load]] {number}", number)
             for number, table in enumerate(found.get("load", []), 1)]
    if not loads:
        raise ConfigError(f"{path}: there is no [[load]]: who is to talk?")
    names = [load.name for load in loads]
    if len(set(names)) < len(names):
        raise ConfigError(f"{path}: two loads are called {max(names, key=names.count)!r}")
    topo = _located(f"{path}, [network]", lambda: network.network.check(network.topo, head.seed))
    end = max(load.span.end for load in loads)
    faults = [_fault(table, f"{path}, [[fault]] {number}", topo, loads, end, network.network.links(head.seed))
              for number, table in enumerate(found.get("fault", []), 1)]
    scenario = Scenario(head.name or path.stem, head, network, loads, faults, path.read_text())
    if not _NAME.fullmatch(scenario.name):
        raise ConfigError(f"{path}, name: {scenario.name!r} is none: letters, digits, blanks, '.', '_' and '-'")
    _check(scenario, topo, path)
    return scenario


def _load(table: dict[str, Any], where: str, number: int) -> LoadTable:
    load = tables.read(LoadTable, table, where, ["seconds"])
    if "rate" in table and "concurrency" in table:
        raise ConfigError(f"{where}: either rate or concurrency, not both")
    return replace(load, name=load.name or f"load{number}")


def _fault(table: dict[str, Any], where: str, topo: SmtTopo, loads: Sequence[LoadTable], end: float,
           links: LinkOptions) -> Fault:
    read = tables.read(FaultTable, table, where, ["at"])
    if bool(read.host) == bool(read.link):
        raise ConfigError(f"{where}: where? Either host or link")
    if bool(read.changes()) + read.down + read.stall != 1:
        raise ConfigError(f"{where}: one of stall, down, or what to do to frames "
                          f"({', '.join(name.removesuffix('_us') for name in IMPAIRMENTS)})")
    span = Span(read.at, end if read.lasts is None else round(read.at + read.lasts, 9))
    if span.begin >= end or span.end > end:
        raise ConfigError(f"{where}: it goes from {span.begin:g} s to {span.end:g} s, and the last load is over "
                          f"after {end:g} s")
    if read.host and read.host not in topo.hosts():
        raise ConfigError(f"{where}, host: there is no host {read.host!r}, but {', '.join(topo.hosts())}")
    if read.stall:
        if read.link:
            raise ConfigError(f"{where}: servers are on a host, not on a link")
        if not any(read.host in servers(load.pattern, topo) for load in loads):
            raise ConfigError(f"{where}, host: {read.host} has no servers: nobody asks it")
        return Fault(read, span, None)
    if read.changes():
        _located(where, lambda: impaired(links, [read]))
    return Fault(read, span, _ends(read, where, topo))


def _ends(fault: FaultTable, where: str, topo: SmtTopo) -> tuple[str, str]:
    """The nodes at the fault's link, in the order in which the topology has them."""
    known = cast("list[tuple[str, str]]", topo.links(sort=True))
    found = [ends for ends in known if (fault.host in ends if fault.host else
                                        fault.link in ("-".join(ends), "-".join(ends[::-1])))]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{where}: {len(found)} links are at {fault.place}; take link, one of "
                          f"{', '.join('-'.join(ends) for ends in found)}")
    raise ConfigError(f"{where}, link: there is no link {fault.link!r}, but "
                      f"{', '.join('-'.join(ends) for ends in known)}")


def impaired(links: LinkOptions, faults: Sequence[FaultTable]) -> ImpairmentRates:
    """What a link does to frames, with these faults at once: of two that say the same, the later one counts, and
    a link that is down is down."""
    if any(fault.down for fault in faults):
        return ImpairmentRates(drop=1.0)
    changes: dict[str, Any] = {}
    for fault in faults:
        changes |= fault.changes()
    return replace(links, **changes).rates()


@dataclass(frozen=True)
class _Host:
    name: str


@dataclass
class _Net:
    """A network, as much as a pattern has to know of it."""

    hosts: list[_Host]
    flows: list[tuple[_Host, _Host]] = field(default_factory=list)


def servers(pattern: str, topo: SmtTopo) -> set[str]:
    """Hosts that are asked. Raises :class:`ConfigError`."""
    hosts = {name: _Host(name) for name in topo.hosts()}
    net = _Net(list(hosts.values()), [(hosts[client], hosts[server]) for client, server in topo.flows])
    return {server.name for peers in asked(pattern, cast(Any, net)).values() for server in peers}


def _check(scenario: Scenario, topo: SmtTopo, path: Path) -> None:
    """Everything else that can be seen before a network is made."""
    head = scenario.head
    for number, load in enumerate(scenario.loads):
        where = f"{path}, [[load]] {number + 1}"
        for transport in head.transports:
            _located(where, lambda t=transport, x=load: scenario.setup(t, x))
        _located(where, lambda n=number: scenario.load(n, 1))
        if not _located(where, lambda x=load: servers(x.pattern, topo)):
            raise ConfigError(f"{where}, pattern: in {scenario.network.topo} nobody asks anybody")
    if head.params.param and not set(head.transports) & set(PACKET_TRANSPORTS):
        raise ConfigError(f"{path}, param: none of the transports has any ({', '.join(PACKET_TRANSPORTS)} do)")
    _located(str(path), lambda: check_sessions(head.sessions, head.transports))
    _located(str(path), lambda: head.overlay.check(head.transports))
    for transport in head.transports:
        transports.check(transport, scenario.network.network.links(head.seed).hosting)
    if scenario.seconds / head.interval > MOST_INTERVALS:
        raise ConfigError(f"{path}, interval: {head.interval:g} s are more than {MOST_INTERVALS} intervals")
    fleets = head.trials * len(head.transports) * len(scenario.loads)
    if FIRST_PORT + fleets * PORT_STEP > 0xFFFF:
        raise ConfigError(f"{path}: {fleets} times trials, transports and loads are more than there are ports for "
                          f"({(0xFFFF - FIRST_PORT) // PORT_STEP}); take fewer trials")


def _located(where: str, check: Any) -> Any:
    """What ``check`` returns; its error says where."""
    try:
        return check()
    except ConfigError as e:
        raise ConfigError(f"{where}: {e}") from None


def keys() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Every key of every table, with the words it is declared by, for people and tests."""
    return {name: list(tables.keys(kind)) for name, kind in {"": Head, **TABLES, **LISTS}.items()}


assert {f.name for f in fields(LinkOptions)} >= set(IMPAIRMENTS)
