"""``smtnet run mix``: the workloads of the Homa papers at a load, all to all, and how much they slow each other
down: docs/slowdown.md's experiment on an emulated network, over any transport."""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from smtstack import quantities
from smtstack.errors import ConfigError, PeerError
from topo import sandbox
from topo.network import SmtNet
from topo.topologies import make_topo
from workloads import transports
from workloads.experiments.experiment import OwnWay
from workloads.experiments.mix import report as mix_report
from workloads.experiments.mix.arithmetic import Mix, Unloaded, spread
from workloads.experiments.mix.fleet import MixFleet, MixRow, judge
from workloads.experiments.slowdown import report as slowdown
from workloads.experiments.slowdown.report import Message, Published
from workloads.experiments.slowdown.run import REPLY_BYTES
from workloads.fleet.setup import Setup
from workloads.load.distributions import WORKLOADS
from workloads.load.measure import OPEN_LOOP_CONNECTIONS
from workloads.options import common as options
from workloads.options.network import add_network_options, check_network, link_options, open_net
from workloads.options.session import add_experiment_sessions, check_sessions, session_words
from workloads.results import outcome
from workloads.results.kinds import Picture, Section
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder
from workloads.transports.table import compared

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


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``mix`` to the subcommands of ``run``."""
    parser = actions.add_parser(
        "mix", help="W1 to W5 at a load, all to all: slowdown by message size", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Every host sends messages of a workload to random others, at random times (Poisson), "
                    "whatever became of those before. A message is a request, answered with "
                    f"{REPLY_BYTES} bytes. Links have 20 Mbit/s unless --rate-mbps says otherwise.")
    add = parser.add_argument
    add("--workload", default="w4", metavar="W|FILE",
        help=f"message sizes, cut to 1 MB: {', '.join(WORKLOADS)}, or a file of sizes (default: %(default)s)")
    add("--load", type=quantities.FRACTION, default=0.8, metavar="P",
        help="share of every host's link, in each direction, for the DATA packets of requests and answers, "
             "headers included, as homa packs them (default: %(default)s)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--hosts", type=options.positive, default=8, metavar="N",
                       help="hosts at one switch (default: %(default)s)")
    where.add_argument("--topo", default="", metavar="T", help="another topology, as leafspine,2,2,4")
    add("--transport", type=options.transport_list, default=compared("mix"), metavar="T[,T...]",
        help=f"some of {', '.join(transports.NAMES)} (default: {','.join(compared('mix'))})")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--messages", type=options.positive, metavar="N",
                       help="about so many of each transport and trial are measured, for as long as they take "
                            f"at this load (default: {_NORMAL[0]})")
    limit.add_argument("--seconds", type=quantities.SECONDS, metavar="S", help="measure for so long instead")
    add("--trials", type=options.positive, default=1, metavar="N",
        help="each with other messages; their samples are put together (default: %(default)s)")
    add("--quick", action="store_true",
        help=f"{_QUICK[0]} messages, and fewer sizes measured alone: to see whether it works")
    add("--connections", type=options.positive, default=0, metavar="N",
        help="tcp, tls, ktls: connections of each client to each server, RPCs pipelined when all are taken "
             f"(default: {OPEN_LOOP_CONNECTIONS})")
    add("--nic", choices=("sw", "hw"), default="sw", help="who seals SMT's records (default: %(default)s)")
    add("--poll-us", type=quantities.WHOLE_MICROSECONDS, default=0, metavar="US",
        help="busy-wait this long before sleeping (default: 0)")
    options.add_experiment_param(parser)
    add_experiment_sessions(parser)
    add("--timeout", type=quantities.SECONDS, default=60.0, metavar="S",
        help="give up a message after this long (default: 60)")
    add("--reference", type=Path, metavar="CSV", help="published slowdowns to print beside")
    add("--seed", type=options.positive, default=1, help="of sizes, arrivals, faults (default: 1)")
    add_network_options(parser)
    parser.set_defaults(rate_mbps=_DEFAULT_MBPS)
    options.add_result_options(parser)
    parser.set_defaults(run=run_mix)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done."""

    mix: Mix
    names: list[str]
    """Transports."""
    seconds: float
    """Measured of each of them in each trial."""
    trials: int
    sizes: list[int]
    """Bytes that are measured alone."""
    alone_s: float
    """About how long each of them is measured ..."""
    alone_count: tuple[int, int]
    """... with so many messages, at least and at most."""
    connections: int

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


def plan(args: argparse.Namespace) -> Plan:
    """What the options ask for. Raises :class:`ConfigError`."""
    for name in args.transport:
        transports.check(name)
    check_sessions(args, args.transport)
    links = link_options(args)
    assert links.rate_mbps is not None, "there is a default"
    if links.rate_mbps % 1:
        raise ConfigError(f"--rate-mbps {links.rate_mbps:g}: a whole number, as the pacers of smt and homa take")
    hosts = len(make_topo(args.topo).hosts())
    mix = Mix(args.workload, args.load, hosts, links.rate_mbps, links.mtu, tuple(args.param))
    messages, most, alone_s, alone_count = _QUICK if args.quick else _NORMAL
    return Plan(mix, args.transport, args.seconds or (args.messages or messages) / mix.rpc_per_s, args.trials,
                spread(mix.sizes.sizes, most), alone_s, alone_count, args.connections or OPEN_LOOP_CONNECTIONS)


def run_mix(args: argparse.Namespace) -> int:
    """The subcommand: checks everything that can be checked, then goes on in namespaces of its own."""
    args.topo = args.topo or f"star,{args.hosts}"
    check_network(args)
    todo = plan(args)
    name = todo.mix.sizes.name
    published = slowdown.load_published(args.reference, name, args.load) if args.reference else {}
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    folder = ResultFolder.create("mix", args.results)
    print(f"run mix: {todo.mix.rpc_per_s:,.0f} messages/s in all; {len(todo.names)} transports, "
          f"{todo.trials} trials of {todo.seconds:.0f} s: about {max(1, round(todo.estimate_s() / 60))} min",
          file=sys.stderr)
    with Progress("run mix", len(todo.sizes) + todo.trials * len(todo.names)) as progress, \
            open_net(args, folder, progress) as net:
        rows, unloaded = _measure(args, todo, net, folder, progress, published)
    return _conclude(args, todo, folder, rows, unloaded)


def _measure(args: argparse.Namespace, todo: Plan, net: SmtNet, folder: ResultFolder, progress: Progress,
             published: Published) -> tuple[list[MixRow], Unloaded]:
    """(rows of what is measured alone and of every trial, round trips alone)."""
    rows: list[MixRow] = []
    messages: dict[str, list[Message]] = {name: [] for name in todo.names}
    title = todo.mix.title(args.topo)
    fleets: dict[str, MixFleet] = {}
    with ExitStack() as stack:
        for number, name in enumerate(dict.fromkeys([*todo.names, _YARDSTICK])):
            progress.say(f"starting {2 * todo.mix.hosts} processes of {name}")
            own = todo.mix.options() if name in transports.PACKET_TRANSPORTS else ()
            setup = Setup(name, args.nic, "all", connections=args.connections, poll_us=args.poll_us,
                          session=args.session or "", options=(*own, *session_words(args, name)),
                          server_options=("--response-size", str(REPLY_BYTES)))
            fleets[name] = stack.enter_context(
                MixFleet(net, args.topo, setup, todo.mix, folder.path / "hosts", number))
        alone: dict[int, float] = {}
        for size in todo.sizes:
            progress.step(f"{size} B alone, by {_YARDSTICK}")
            measured = fleets[_YARDSTICK].measure(
                fleets[_YARDSTICK].alone(size, todo.count(size), args.timeout, args.seed))
            rows.append(measured.row)
            _refuse_failures(measured.row)
            alone[size] = median(measured.rtt_ns)
        unloaded = Unloaded(alone)
        for trial in range(1, todo.trials + 1):
            # Whoever was first is last next time: the machine may get slower or faster.
            turn = (trial - 1) % len(todo.names)
            for name in todo.names[turn:] + todo.names[:turn]:
                progress.step(f"{name}, trial {trial} of {todo.trials}")
                seed = args.seed + trial - 1
                measured = fleets[name].measure(fleets[name].traffic(todo.seconds, args.timeout, seed), trial)
                row = measured.row
                judge(row, todo.mix)
                folder.save_raw(f"{name}.trial{trial}", measured.rtt_ns)
                folder.save_raw(f"{name}.trial{trial}.sizes", measured.tags)
                messages[name] += todo.mix.messages(measured.rtt_ns, measured.tags, unloaded, seed)
                row["slowdown"] = mix_report.entry(name, messages[name], published, title)
                rows.append(row)
    counters = {name: fleet.counters for name, fleet in fleets.items()}
    folder.write("counters.json", json.dumps(counters, indent=1) + "\n")
    return rows, unloaded


def _refuse_failures(row: MixRow) -> None:
    """What is measured alone must not fail."""
    if row["errors"] or not row["content_ok"]:
        raise PeerError(f"{row['size']} B alone, by {_YARDSTICK}: {row.get('first_error', 'an answer was wrong')}")


def _conclude(args: argparse.Namespace, todo: Plan, folder: ResultFolder, rows: list[MixRow],
              unloaded: Unloaded) -> int:
    """Write, print; the exit code."""
    setting = {"rpc_per_s": round(todo.mix.rpc_per_s, 1), "mean_bytes": round(todo.mix.sizes.mean(), 1),
               "largest_bytes": todo.mix.sizes.sizes[-1], "transport_params": asdict(todo.mix.params),
               "unloaded_us": {str(size): round(ns / 1000, 1) for size, ns in unloaded.measured.items()}}
    slowdown.write_csv(folder.path / "slowdown.csv", mix_report.buckets_of(rows))
    flat = [{name: value for name, value in row.items() if name != "slowdown"} for row in rows]
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()
             if name != "run"}
    verdict = outcome.save({**asked, **setting}, folder, rows, args.seed, flat=flat)
    if args.json:
        outcomes = [mix_report.outcome(rows, name) for name in todo.names]
        print(json.dumps({"workload": todo.mix.sizes.name, "load": args.load, "topo": args.topo,
                          "hosts": todo.mix.hosts, "rate_mbps": todo.mix.rate_mbps, **setting,
                          "transports": outcomes, "fidelity": verdict, "results": str(folder.path)}))
    else:
        print("\n".join([mix_report.text(rows), *outcome.session_lines(rows)]))
    print(f"results: {folder.path}", file=sys.stderr)
    failed = [f"{row['transport']}: {row.get('first_error', 'an answer was wrong')}" for row in rows
              if row["errors"] or not row["content_ok"]]
    return outcome.exit_code(verdict, failed[0] if failed else "", not args.allow_unfaithful)


EXPERIMENT = OwnWay("mix", command="run", add=add_parser, place=50, kinds=(
    Picture("slowdown.png", mix_report.picture, "Slowdown under load, by message size"),
    Section("Slowdown", mix_report.text)))
