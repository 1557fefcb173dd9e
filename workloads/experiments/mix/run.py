"""``smtnet run mix``: the workloads of the Homa papers at a load, all to all, and how much they slow each other
down: docs/slowdown.md's experiment on an emulated network, over any transport."""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

from smtstack import quantities
from smtstack.errors import ConfigError, PeerError
from topo.network import SmtNet
from workloads import transports
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.mix import report as mix_report
from workloads.experiments.mix.arithmetic import Mix, Unloaded, spread
from workloads.experiments.mix.fleet import MixFleet, MixRow, judge
from workloads.experiments.slowdown import report as slowdown
from workloads.experiments.slowdown.run import REPLY_BYTES
from workloads.fleet.setup import Setup
from workloads.load.distributions import WORKLOADS
from workloads.load.measure import OPEN_LOOP_CONNECTIONS
from workloads.options.common import JudgedResults, Params, positive, transport_list
from workloads.options.declare import group, option
from workloads.options.network import Network
from workloads.options.overlay import Overlay
from workloads.options.session import Sessions, check_sessions, session_words
from workloads.options.waiting import Waits
from workloads.results.kinds import Picture, Section
from workloads.results.points import session_lines
from workloads.transports.table import chosen, compared

#: What everything is divided by: this transport's round trip, alone in the network.
_YARDSTICK = "homa"
_DEFAULT_MBPS = 20.0
#: Messages of each transport and trial, sizes measured alone, seconds and messages for each of these.
_NORMAL = 10_000, 25, 0.8, (5, 400)
_QUICK = 1_000, 9, 0.2, (3, 50)
#: Seconds for estimates: to start a process, one after the other; to make a connection.
_START_S, _CONNECT_S = 0.25, 0.003

_EXAMPLES = """examples:
  smtnet run mix --workload w4 --load 0.8 --hosts 8 --rate-mbps 20
  smtnet run mix --workload w3 --load 0.5 --hosts 4 --rate-mbps 5 --transport smt,tls --seconds 60 --trials 3
  smtnet run mix --workload w4 --load 0.8 --reference sigcomm18.csv --messages 50000 --json
  smtnet run mix --workload w4 --quick

All transports get the same messages at the same times, one transport after the other, on one network. Slowdown is
the time from when a message was due until its answer is there, over the median time of a message of that size
alone in this network, by homa. To find the highest rate that this machine emulates faithfully, try --quick with
some --rate-mbps.

exit code: 0 ok, 1 an RPC failed or an answer was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful (--allow-unfaithful: 0 then): also if answers
           did not keep up with the load, or clients were late

docs/slowdown.md has the same experiment in virtual time, and results.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet run mix`` takes on its command line."""

    workload: str = option(
        "--workload", default="w4", metavar="W|FILE",
        help=f"message sizes, cut to 1 MB: {', '.join(WORKLOADS)}, or a file of sizes (default: %(default)s)")
    load: float = option(
        "--load", type=quantities.FRACTION, default=0.8, metavar="P",
        help="share of every host's link, in each direction, for the DATA packets of requests and answers, "
             "headers included, as homa packs them (default: %(default)s)")
    hosts: int = option("--hosts", type=positive, default=8, metavar="N", either="where",
                        help="hosts at one switch (default: %(default)s)")
    topo: str = option("--topo", default="", metavar="T", either="where",
                      help="another topology, as leafspine,2,2,4")
    transport: list[str] = option(
        "--transport", type=transport_list, default=compared("mix"), metavar="T[,T...]",
        help=f"some of {', '.join(transports.NAMES)} (default: {','.join(compared('mix'))})")
    messages: int | None = option(
        "--messages", type=positive, metavar="N", either="limit",
        help="about so many of each transport and trial are measured, for as long as they take "
             f"at this load (default: {_NORMAL[0]})")
    seconds: float | None = option("--seconds", type=quantities.SECONDS, metavar="S", either="limit",
                                   help="measure for so long instead")
    trials: int = option("--trials", type=positive, default=1, metavar="N",
                         help="each with other messages; their samples are put together (default: %(default)s)")
    quick: bool = option("--quick", action="store_true",
                         help=f"{_QUICK[0]} messages, and fewer sizes measured alone: to see whether it works")
    connections: int = option(
        "--connections", type=positive, default=0, metavar="N",
        help="tcp, tls, ktls: connections of each client to each server, RPCs pipelined when all are taken "
             f"(default: {OPEN_LOOP_CONNECTIONS})")
    nic: str = option("--nic", choices=("sw", "hw"), default="sw",
                      help="who seals SMT's records (default: %(default)s)")
    waits: Waits = group(Waits)
    overlay: Overlay = group(Overlay)
    params: Params = group(Params)
    sessions: Sessions = group(Sessions)
    timeout: float = option("--timeout", type=quantities.SECONDS, default=60.0, metavar="S",
                            help="give up a message after this long (default: 60)")
    reference: Path | None = option("--reference", type=Path, metavar="CSV",
                                    help="published slowdowns to print beside")
    seed: int = option("--seed", type=positive, default=1, help="of sizes, arrivals, faults (default: 1)")
    network: Network = group(Network, rate_mbps=_DEFAULT_MBPS)
    end: JudgedResults = group(JudgedResults)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    asked: Options
    """With what was left open filled in."""
    mix: Mix
    names: list[str]
    """Transports."""
    seconds: float
    """Measured of each of them in each trial."""
    trials: int
    sizes: list[int]
    """Bytes that are measured alone."""
    alone_s: float
    """Seconds for which each size is measured alone, about."""
    alone_count: tuple[int, int]
    """Messages, at least and at most, with which a size is measured alone."""
    connections: int
    published: slowdown.Published
    """To print beside."""

    def count(self, size: int) -> int:
        """Messages of ``size`` bytes that are measured alone."""
        least, most = self.alone_count
        return max(least, min(most, int(self.alone_s / self.mix.unloaded_s(size))))

    def estimate_s(self) -> float:
        """About how long it takes."""
        mix = self.mix
        fleets = len({*self.names, _YARDSTICK})
        streams = sum(name in transports.STREAM_TRANSPORTS for name in self.names)
        links = mix.hosts * (mix.hosts - 1) * self.connections
        alone = sum((self.count(size) + 1) * mix.unloaded_s(size) + 0.2 for size in self.sizes)
        return (fleets * mix.hosts * 2 * _START_S + streams * links * _CONNECT_S + alone
                + self.trials * len(self.names) * mix.seconds(self.seconds)[0])


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made. Raises :class:`ConfigError`."""
    hosting = asked.network.links(asked.seed).hosting
    asked = replace(asked, topo=asked.topo or f"star,{asked.hosts}",
                    transport=chosen(asked.transport, "mix", hosting))
    hosts = len(asked.network.check(asked.topo, asked.seed).hosts())
    for name in asked.transport:
        transports.check(name, hosting)
    check_sessions(asked.sessions, asked.transport)
    asked.overlay.check(asked.transport)
    links = asked.network.links(asked.seed)
    assert links.rate_mbps is not None, "there is a default"
    if links.rate_mbps % 1:
        raise ConfigError(f"--rate-mbps {links.rate_mbps:g}: a whole number, as the pacers of smt and homa take")
    mix = Mix(asked.workload, asked.load, hosts, links.rate_mbps, links.mtu, tuple(asked.params.param))
    published = slowdown.load_published(asked.reference, mix.sizes.name, asked.load) if asked.reference else {}
    messages, most, alone_s, alone_count = _QUICK if asked.quick else _NORMAL
    return Plan(asked, mix, asked.transport, asked.seconds or (asked.messages or messages) / mix.rpc_per_s,
                asked.trials, spread(mix.sizes.sizes, most), alone_s, alone_count,
                asked.connections or OPEN_LOOP_CONNECTIONS, published)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each size that is measured alone, and for each transport and trial."""
    print(f"run mix: {plan.mix.rpc_per_s:,.0f} messages/s in all; {len(plan.names)} transports, "
          f"{plan.trials} trials of {plan.seconds:.0f} s: about {max(1, round(plan.estimate_s() / 60))} min",
          file=sys.stderr)
    asked, mix = plan.asked, plan.mix
    with running.network(asked.network, asked.topo, asked.seed) as net:
        rows, unloaded = _measure(plan, net, running)
    setting = {"rpc_per_s": round(mix.rpc_per_s, 1), "mean_bytes": round(mix.sizes.mean(), 1),
               "largest_bytes": mix.sizes.sizes[-1], "transport_params": asdict(mix.params),
               "unloaded_us": {str(size): round(ns / 1000, 1) for size, ns in unloaded.measured.items()}}
    slowdown.write_csv(running.folder.path / "slowdown.csv", mix_report.buckets_of(rows))
    failed = [f"{row['transport']}: {row.get('first_error', 'an answer was wrong')}" for row in rows
              if row["errors"] or not row["content_ok"]]
    return Outcome(
        rows, {"workload": mix.sizes.name, "load": asked.load, "topo": asked.topo, "hosts": mix.hosts,
               "rate_mbps": mix.rate_mbps, **setting,
               "transports": [mix_report.outcome(rows, name) for name in plan.names]},
        "\n".join([mix_report.text(rows), *session_lines(rows)]), table=False,
        failed=failed[0] if failed else "", parameters=asked, setting=setting, seed=asked.seed,
        flat=[{name: value for name, value in row.items() if name != "slowdown"} for row in rows])


def _measure(plan: Plan, net: SmtNet, running: Running) -> tuple[list[MixRow], Unloaded]:
    """(rows of what is measured alone and of every trial, round trips alone)."""
    asked, folder, progress = plan.asked, running.folder, running.progress
    rows: list[MixRow] = []
    messages: dict[str, list[slowdown.Message]] = {name: [] for name in plan.names}
    title = plan.mix.title(asked.topo)
    fleets: dict[str, MixFleet] = {}
    with ExitStack() as stack:
        for number, name in enumerate(dict.fromkeys([*plan.names, _YARDSTICK])):
            progress.say(f"starting {2 * plan.mix.hosts} processes of {name}")
            own = plan.mix.options() if name in transports.PACKET_TRANSPORTS else ()
            setup = Setup(name, asked.nic, "all", connections=asked.connections, wait=asked.waits.waiting(),
                          session=asked.sessions.session or "",
                          options=(*own, *asked.overlay.words(name), *session_words(asked.sessions, name)),
                          server_options=("--response-size", str(REPLY_BYTES)))
            fleets[name] = stack.enter_context(
                MixFleet(net, asked.topo, setup, plan.mix, folder.path / "hosts", number))
        alone: dict[int, float] = {}
        for size in plan.sizes:
            progress.step(f"{size} B alone, by {_YARDSTICK}")
            measured = fleets[_YARDSTICK].measure(
                fleets[_YARDSTICK].alone(size, plan.count(size), asked.timeout, asked.seed))
            rows.append(row := measured.row)
            if row["errors"] or not row["content_ok"]:
                why = row.get("first_error", "an answer was wrong")
                raise PeerError(f"{size} B alone, by {_YARDSTICK}: {why}")
            alone[size] = median(measured.rtt_ns)
        unloaded = Unloaded(alone)
        for trial in range(1, plan.trials + 1):
            # Whoever was first is last next time: the machine may get slower or faster.
            turn = (trial - 1) % len(plan.names)
            for name in plan.names[turn:] + plan.names[:turn]:
                progress.step(f"{name}, trial {trial} of {plan.trials}")
                seed = asked.seed + trial - 1
                measured = fleets[name].measure(fleets[name].traffic(plan.seconds, asked.timeout, seed), trial)
                row = measured.row
                judge(row, plan.mix)
                folder.save_raw(f"{name}.trial{trial}", measured.rtt_ns)
                folder.save_raw(f"{name}.trial{trial}.sizes", measured.tags)
                messages[name] += plan.mix.messages(measured.rtt_ns, measured.tags, unloaded, seed)
                row["slowdown"] = mix_report.entry(name, messages[name], plan.published, title)
                rows.append(row)
    counters = {name: fleet.counters for name, fleet in fleets.items()}
    folder.write("counters.json", json.dumps(counters, indent=1) + "\n")
    return rows, unloaded


EXPERIMENT = Experiment(
    "mix", help="W1 to W5 at a load, all to all: slowdown by message size", examples=_EXAMPLES,
    description="Every host sends messages of a workload to random others, at random times (Poisson), "
                "whatever became of those before. A message is a request, answered with "
                f"{REPLY_BYTES} bytes. Links have 20 Mbit/s unless --rate-mbps says otherwise.",
    options=Options, check=check, measure=measure,
    steps=lambda plan: ("run mix", len(plan.sizes) + plan.trials * len(plan.names)), ends_with="results", place=50,
    kinds=(Picture("slowdown.png", mix_report.picture, "Slowdown under load, by message size"),
           Section("Slowdown", mix_report.text)))
