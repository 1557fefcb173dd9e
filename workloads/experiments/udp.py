"""``smtnet run udp``: datagrams by each interface of a process that does not trust its host, or does.

RAKIS' own workload (iperf3, UDP) in small: datagrams of 16 to 1460 bytes as fast as they go, and an echo, one at a
time. Every datagram is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from smtstack import quantities
from smtstack.errors import ConfigError
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.trust import interfaces
from workloads.experiments.trust.ends import BLAST, ECHO, KINDS, WAITS, UdpRow, open_ends
from workloads.options.common import JudgedResults, positive
from workloads.options.declare import group, option
from workloads.results.points import points
from workloads.results.table import aligned, marks, number

TOPO = "star,2"
#: RAKIS' sizes of iperf3.
SIZES = "16,32,64,128,256,512,1024,1460"

_EXAMPLES = """examples:
  smtnet run udp --io native,ring --sizes 64,1460 --seconds 1
  smtnet run udp --io ring --sizes 1460 --trials 5 --json
  smtnet run udp --io native,exit,exit-modelled,ring,ring-unchecked --echo 1000 --wait poll

interfaces:
  """ + "\n  ".join(f"{name:15} {about}" for name, about in interfaces.ABOUT.items()) + """

exit code: 0 ok, 1 a datagram was not what was sent, 2 usage, 3 the machine lacks something ('smtnet doctor' says
           what), 4 the run was not faithful (--allow-unfaithful: 0 then)
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet run udp`` takes on its command line."""

    io: str = option("--io", default=f"{interfaces.NATIVE},{interfaces.EXIT},{interfaces.QUEUE},{interfaces.RING}",
                     metavar="I,J", help="interfaces, below (default: %(default)s)")
    sizes: str = option("--sizes", type=quantities.sizes, default=SIZES, metavar="B,B",
                        help="bytes of datagrams (default: %(default)s)")
    seconds: float = option("--seconds", type=quantities.SECONDS, default=0.5, metavar="S",
                            help="time for each blast (default: %(default)s)")
    echo: int = option("--echo", type=positive, default=300, metavar="N",
                       help="round trips of the smallest size, one at a time (default: %(default)s)")
    wait: str = option("--wait", choices=WAITS, default="event",
                       help="for an answer: looking all the time, asleep, or first the one, then the other "
                            "(default: %(default)s)")
    exit_us: float = option("--exit-us", type=quantities.MICROSECONDS, default=interfaces.EXIT_US, metavar="US",
                            help="exit-modelled: what leaving an enclave is said to cost (default: %(default)s)")
    trials: int = option("--trials", type=positive, default=3, metavar="N",
                         help="the middle one is quoted (default: %(default)s)")
    end: JudgedResults = group(JudgedResults)


@dataclass(frozen=True)
class Plan:
    """What is measured."""

    asked: Options
    io: tuple[str, ...]
    sizes: tuple[int, ...]


def check(asked: Options) -> Plan:
    """What was written as text. Raises :class:`ConfigError`."""
    names = tuple(dict.fromkeys(asked.io.split(",")))
    for name in names:
        if name not in interfaces.ABOUT:
            raise ConfigError(f"--io {name}: there is no such interface; there are {', '.join(interfaces.ABOUT)}")
    try:
        sizes = tuple(int(size) for size in asked.sizes.split(","))
    except ValueError:
        sizes = (0,)
    if not all(8 <= size <= 1472 for size in sizes):
        raise ConfigError(f"--sizes {asked.sizes}: whole numbers from 8 to 1472, with commas between")
    return Plan(asked, names, sizes)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each interface, size and trial; interfaces take turns."""
    rows: list[UdpRow] = []
    asked = plan.asked
    with open_network(TOPO, LinkOptions(hosting="ring"), "bridge", progress=running.progress.say) as net:
        for trial in range(1, asked.trials + 1):
            for number, name in enumerate(plan.io):
                running.progress.step(f"{name}, trial {trial}")
                at = (trial - 1) * len(plan.io) + number
                with open_ends(net, TOPO, name, running.folder.path / "hosts", at, asked.exit_us) as ends:
                    rows += [ends.blast(size, asked.seconds, trial) for size in plan.sizes]
                    row, took = ends.echo(min(plan.sizes), asked.echo, trial, asked.wait)
                    rows.append(row)
                    running.folder.save_raw(f"echo-{at}", took)
    wrong = [row for row in rows if not row["content_ok"]]
    return Outcome(rows, {"points": [
        {"io": p.quoted["variant"], "mode": p.quoted["mode"], "size": p.quoted["size"], "value": p.value,
         "low": p.low, "high": p.high, "faithful": p.faithful} for p in points(rows)]}, text(rows), table=False,
        failed=f"{len(wrong)} trials had datagrams that were not what was sent, or none" if wrong else "")


def text(rows: Sequence[UdpRow]) -> str:
    """Datagrams a second by size, and the round trip, of each interface."""
    found = points(rows)
    sizes = sorted({int(p.quoted["size"]) for p in found if p.quoted["mode"] == BLAST})
    grid = [["datagrams/s", *(f"{size} B" for size in sizes), "lost", "echo p50 (us)"]]
    for name in dict.fromkeys(row["variant"] for row in rows):
        own = {(p.quoted["mode"], p.quoted["size"]): p for p in found if p.quoted["variant"] == name}
        blasts = [row for row in rows if row["variant"] == name and row["mode"] == BLAST]
        lost = sum(row["lost"] for row in blasts) / max(1, sum(row["sent"] for row in blasts))
        echo = next(p for (mode, _size), p in own.items() if mode == ECHO)
        grid.append([name, *(number(own[BLAST, size].value) + marks(own[BLAST, size]) for size in sizes),
                     f"{lost:.1%}", number(echo.value) + marks(echo)])
    return aligned(grid)


EXPERIMENT = Experiment(
    "udp", help="datagrams by each interface to an untrusted host",
    description="Datagrams as fast as they go, and an echo, by sockets of the kernel, by calls that are exits, by "
                "a queue of calls, and by rings (docs/trust.md).",
    examples=_EXAMPLES, options=Options, check=check, measure=measure, place=60, kinds=KINDS,
    steps=lambda plan: ("run udp", plan.asked.trials * len(plan.io)))
