"""``smtnet reproduce tls-route``: what a change of route does to a flow that a NIC seals, by policy.

The sender has two NICs, with a cable each to the receiver. In the middle of a transfer its packets change from
one to the other, and back. ``linux``: the NIC without the flow's context has software seal, the same bytes.
``freebsd``: it drops, and takes the context over: TCP sends again what was lost. Neither sends a byte in clear.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from smtstack.nic.tls_flow import FREEBSD, LINUX
from smtstack.nicshare.state import NicState
from topo.commands import batch
from topo.host import SmtHost
from topo.link_options import LinkOptions
from topo.network import open_network
from topo.topologies import SmtTopo
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.offload import route_report
from workloads.experiments.offload.hosts import Pairs, StreamRow, Transfer, open_pairs
from workloads.experiments.offload.route_report import MODE, RouteRow
from workloads.experiments.offload.senders import KTLS_NIC, KTLS_SW, PLAIN, How
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.published import Published
from workloads.results.row import Row

TOPO = "two cables"
SYSTEMS = {"plain": How(PLAIN), "ktls-sw": How(KTLS_SW), "ktls-nic, linux": How(KTLS_NIC, policy=LINUX),
           "ktls-nic, freebsd": How(KTLS_NIC, policy=FREEBSD)}
TRIALS, SECONDS, QUICK_SECONDS = 5, 1.5, 0.5
#: When the route changes and changes back, as shares of the time that a transfer takes undisturbed.
FLIPS = (0.3, 0.6)
_FIRST, _MOST = 8_000_000, 256_000_000
COUNTERS = ("tx_tls_fallback", "tx_tls_drop_bypass_req", "tx_tls_ooo", "tx_tls_dump_bytes", "ifnet_reset",
            "ifnet_reset_failed")

_EXAMPLES = """examples:
  smtnet reproduce tls-route --quick
  smtnet reproduce tls-route --trials 9 --json

Writes results/<UTC time>-tls-route/: tls-route.csv, tls-route.png, and what every run leaves. Takes a minute
(--quick: ten seconds). Needs root, and what --nic-hosting tap needs ('smtnet doctor').
"""


class TwoCables(SmtTopo):
    """Two hosts with two cables between them."""

    def build(self, **_opts: Any) -> None:
        """h1 and h2."""
        one, two = self.new_host(1), self.new_host(2)
        self.addLink(one, two)
        self.addLink(one, two)
        self.flows = [(one, two)]


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce tls-route`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="one short trial")
    end: QuotedResults = group(QuotedResults)
    trials: int | None = option("--trials", type=positive, metavar="N", help=f"of each (default: {TRIALS})")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    trials: int
    seconds: float
    """About as long as a transfer takes."""


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    return Plan(asked.trials or (1 if asked.quick else TRIALS), QUICK_SECONDS if asked.quick else SECONDS)


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each system and trial."""
    rows: list[RouteRow] = []
    with open_network(TwoCables(), LinkOptions(hosting="tap"), progress=running.progress.say) as net, \
            open_pairs(net, TOPO, _MOST, 1, running.folder.path) as pairs:
        second_cable(pairs.client, pairs.server)
        transfers = {}
        for name, how in SYSTEMS.items():
            running.progress.say(f"{name}, warm-up")
            transfers[name] = pairs.enough(Transfer(name, how, _FIRST), plan.seconds)
        for trial in range(1, plan.trials + 1):
            for name, transfer in transfers.items():
                running.progress.step(f"{name}, trial {trial}")
                rows.append(_disturbed(pairs, transfer, trial, plan.seconds))
    table = route_report.lines(rows)
    return Outcome(rows, {"points": table}, route_report.as_text(table), table=False,
                   files={"tls-route.csv": csv_text([dict(line) for line in table])},
                   parameters={"trials": plan.trials, "seconds": plan.seconds})


def second_cable(client: SmtHost, server: SmtHost) -> None:
    """Have both hosts take packets for their addresses by the second cable as well, and know where it ends."""
    for host, other, number in ((client, server, 1), (server, client, 2)):
        second = f"{host.name}-eth1"
        host.cmd("for f in all default; do echo 0 > /proc/sys/net/ipv4/conf/$f/rp_filter; done; "
                 f"echo 0 > /proc/sys/net/ipv4/conf/{second}/rp_filter")
        batch("ip", [f"address replace 10.0.1.{number}/24 dev {second}", f"link set dev {second} up",
                     f"neigh replace {other.IP()} lladdr {other.intf(f'{other.name}-eth1').MAC()} dev {second} "
                     "nud permanent"], where=host.name, pid=host.pid)


def _disturbed(pairs: Pairs, transfer: Transfer, trial: int, seconds: float) -> RouteRow:
    server, client = pairs.server, pairs.client
    nics = [NicState.open(f"{server.name}-eth{number}", pid=server.pid) for number in (0, 1)]
    before = [nic.counters() for nic in nics]
    flips: list[float] = []

    def flip() -> None:
        began = time.monotonic()
        for share, route in zip(FLIPS, (f"route replace {client.IP()}/32 dev {server.name}-eth1 src {server.IP()}",
                                        f"route del {client.IP()}/32"), strict=True):
            time.sleep(max(0.0, began + share * seconds - time.monotonic()))
            flips.append(time.monotonic())
            batch("ip", [route], where=server.name, pid=server.pid)

    row, (came,) = pairs.watched(transfer, trial, MODE, meanwhile=flip, trace=True)
    time.sleep(route_report.PUBLISH_S)
    counted = {name: sum(nic.counters()[name] - old[name] for nic, old in zip(nics, before, strict=True))
               for name in COUNTERS if name in before[0]}
    return route_row(row, came["trace"], [at - came["start"] for at in flips], counted)


def route_row(row: StreamRow, trace: Sequence[tuple[float, int]], flips: Sequence[float],
              counted: Mapping[str, int]) -> RouteRow:
    """A transfer as a row. ``trace``: (seconds, bytes that had come by then); ``flips``: when the route changed,
    in seconds since the beginning, too; what is over by then is no gap."""
    flips = [flip for flip in flips if trace and flip < trace[-1][0]]
    gaps, usual = route_report.gaps_ms(trace, flips)
    return cast(RouteRow, {**row, "counters": {**row["counters"], **counted},
                           "flips_s": [round(flip, 6) for flip in flips], "gaps_ms": gaps,
                           "usual_gap_ms": usual, "goodput": route_report.goodput(trace)})


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Goodput over time. False: no such rows, no file."""
    return route_report.picture([cast(RouteRow, row) for row in rows if row["mode"] == MODE], path)


EXPERIMENT = Experiment(
    "tls-route", command="reproduce", help="what a change of route does to a flow that a NIC seals",
    description=textwrap.fill(
        "The longest time without a byte after the sender's packets change from one of its NICs to the other, by "
        "Linux's policy (software seals) and FreeBSD's (drop, and take the context over).", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure, needs_pictures=True, place=73,
    published=Published(
        emulated="two hosts on a cable: network namespaces on one machine; the NIC is a process that owns the "
                 "interface",
        not_comparable="anything published: Linux and FreeBSD have the two policies, and no figure of what "
                       "they cost"),
    steps=lambda plan: ("tls-route", plan.trials * len(SYSTEMS)),
    kinds=(Mode(MODE, heading="transfers per second"),
           Picture("tls-route.png", picture, "Goodput while the route changes, and changes back")))
