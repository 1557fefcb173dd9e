"""``smtnet run priorities``: are the priorities of an emulated switch port strict? Measured, class by class."""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.wire.ethernet import FRAME_OVERHEAD, HEADER_LEN
from topo import sandbox
from workloads.experiments.experiment import OwnWay
from workloads.experiments.priorities import report as priority_report
from workloads.experiments.priorities.arithmetic import MODE, Shares, all_classes, classes, named
from workloads.experiments.priorities.port import OnePort, PriorityPort
from workloads.experiments.priorities.row import PriorityRow
from workloads.experiments.queries import as_csv, as_text
from workloads.options import common as options
from workloads.options.network import add_network_options, check_network, link_options, open_net
from workloads.results import outcome, report
from workloads.results.kinds import Mode, Picture
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder

RATE_MBPS = 20.0
OFFERED = 0.3
#: Beside all eight: one that leaves the other a part, one that leaves it nothing, and two neighbours.
PAIRS = ({7: 0.75, 0: 0.75}, {7: 1.25, 0: 0.75}, {5: 0.75, 4: 0.75})
#: Seconds that the port needs for each class's buffer, unless --buffer says otherwise.
BUFFER_S = 0.1
#: Of a class, in the time that counts: with fewer, one frame more or less would say too much.
_LEAST_FRAMES = 100

_EXAMPLES = """examples:
  smtnet run priorities
  smtnet run priorities --rate-mbps 100 --switch bridge
  smtnet run priorities --controller fanout --offered 50% --json
  smtnet run priorities --classes 6:0.75,2:0.75 --classes 7:1.05,6:10% --seconds 10

h2 and h3 send full frames of IP protocol 253 at steady rates to h1; only the link to h1 has the rate. h1 counts
what arrives, the port what it sends and drops. Classes take turns to be sent by h2 and h3, from the highest on.
Priorities are strict if no class gets what a higher one is denied. Half a percent of the port is not held against
it: frames under way when the time begins and ends, the one frame that HTB lets every class send by right (one a
minute), and what it lends while a higher class's sender is late.
Results are in results/<UTC time>-priorities/: priorities.csv, priorities.png and what every run leaves.
exit code: 0 ok, 1 priorities were not strict, 2 usage, 3 the machine lacks something ('smtnet doctor' says what),
           4 the run was not faithful (--allow-unfaithful: 0 then): also if a sender was late or too slow
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``priorities`` to the subcommands of ``run``."""
    parser = actions.add_parser(
        "priorities", help="whether a port's eight priorities are strict", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Offer a switch port more than it can send, in several of its eight priorities by DSCP, and "
                    "compare what each gets with what strict priority would give it. Rates are those of the "
                    "cable, 24 bytes a frame included.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--offered", type=quantities.FRACTION, default=OFFERED, metavar="P",
                      help=(f"share of the port's rate that each of all eight classes is offered (default: "
                            f"{OFFERED:.0%}); pairs of classes follow: "
                            f"{' '.join(map(named, PAIRS))}").replace("%", "%%"))
    what.add_argument("--classes", type=classes, action="append", metavar="C:P[,C:P...]",
                      help="these instead, as 7:75%%,0:0.75 (repeatable)")
    parser.add_argument("--seconds", type=quantities.SECONDS, default=5.0, metavar="S",
                        help="that count of each trial, after one in which buffers fill (default: 5)")
    parser.add_argument("--trials", type=options.positive, default=3, metavar="N", help="(default: %(default)s)")
    add_network_options(parser)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                        help="where the result folder goes (default: %(default)s)")
    parser.add_argument("--allow-unfaithful", action="store_true", help="exit 0 even if the run was not faithful")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    # Nothing here is random; a network wants a seed all the same.
    parser.set_defaults(run=run, rate_mbps=RATE_MBPS, seed=1, topo=OnePort.example)


def run(args: argparse.Namespace) -> int:
    """The subcommand: checks everything that can be checked, then goes on in namespaces of its own."""
    todo = scenarios(args)
    if not sandbox.inside():
        return sandbox.run(sys.argv[1:])
    folder = ResultFolder.create("priorities", args.results)
    rows: list[PriorityRow] = []
    with Progress("run priorities", len(todo) * args.trials) as progress:
        with open_net(args, folder, progress, OnePort()) as net, PriorityPort(net, folder.path / "hosts") as port:
            for trial in range(1, args.trials + 1):
                for offered in todo:
                    progress.step(f"{named(offered)}, trial {trial} of {args.trials}")
                    rows.append(port.measure(offered, args.seconds, trial))
        progress.say("pictures and report")
        return _conclude(args, folder, rows)


def _conclude(args: argparse.Namespace, folder: ResultFolder, rows: list[PriorityRow]) -> int:
    """Write, print; the exit code."""
    table = priority_report.table(rows)
    folder.write("priorities.csv", as_csv(table))
    verdict = outcome.save(args, folder, rows)
    wrong = outcome.first_error(rows)
    if args.json:
        print(json.dumps({"classes": table, "strict": not wrong, "fidelity": verdict,
                          "results": str(folder.path)}))
    else:
        print(as_text(table))
    print(f"report: {folder.path / report.PAGE}", file=sys.stderr)
    return outcome.exit_code(verdict, wrong, not args.allow_unfaithful)


def scenarios(args: argparse.Namespace) -> list[Shares]:
    """What is to be measured; sets the buffer. Raises :class:`ConfigError` for whatever can be seen now."""
    check_network(args)
    links = link_options(args)
    if links.has_wire:
        raise ConfigError("run priorities: delay, loss and the like change what arrives; leave them out")
    if not args.offered:
        raise ConfigError("--offered is 0: nothing to measure; e.g. --offered 30%")
    assert links.rate_mbps is not None, "there is a default"
    todo = args.classes or [all_classes(args.offered), *PAIRS]
    frame = links.mtu + HEADER_LEN
    rate = links.rate_mbps * 1e6 / 8 / (frame + FRAME_OVERHEAD)
    for offered in todo:
        number = min(offered, key=lambda n: offered[n])
        frames = offered[number] * rate * args.seconds
        if frames < _LEAST_FRAMES:
            raise ConfigError(f"class {number} is offered {frames:.0f} frames of {frame} bytes in "
                              f"{args.seconds:g} s, which say little; at least {_LEAST_FRAMES}: --seconds "
                              f"{math.ceil(args.seconds * _LEAST_FRAMES / frames)} would do")
    args.buffer = args.buffer or max(10 * frame, round(BUFFER_S * links.rate_mbps * 1e6 / 8))
    return todo


EXPERIMENT = OwnWay("priorities", command="run", add=add_parser, place=60, kinds=(
    Mode(MODE, heading="frames/s through the port"),
    Picture("priorities.png", priority_report.picture, "Strict priorities at a port: what each class got")))
