"""``smtnet plan``: what a controller will tell the switches of a topology, without any switch."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

from controllers.fabric import Fabric, Link, fabric_of_topo
from controllers.plan import Down, Plan
from controllers.planner import make_plan
from controllers.policies import DEFAULT, POLICIES
from smtstack.errors import ConfigError
from topo.topologies import TOPOS, SmtTopo, make_topo
from workloads.options import common as options
from workloads.results.table import aligned

#: More pairs than that are not printed for people.
_MOST_PAIRS = 16

_EXAMPLES = """examples:
  smtnet plan leafspine,2,4,2
  smtnet plan fattree,4 --multipath message --seed 2
  smtnet plan fattree,4 --down s9-s17 --down s12
  smtnet plan fattree,4 --json
  smtnet plan leafspine,2,4,2 --fabric fabric.json

The fabric file is what a controller on its own reads: see 'python -m controllers.launch --help'.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``plan``."""
    plan = commands.add_parser(
        "plan", help="paths, rules and groups of a topology's switches", epilog=_EXAMPLES,
        description="Show what the controller tells each switch of a topology, and which ways frames take. Needs "
                    "neither root nor switches.")
    plan.add_argument("topo", metavar="TOPO", help=", ".join(t.syntax for t in TOPOS.values()))
    plan.add_argument("--multipath", choices=POLICIES, default=DEFAULT,
                      help="who spreads traffic over equally short ways. flow: a pair of hosts has one path; "
                           "message: the senders' NICs give each message one; ecmp: switches hash "
                           "(default: %(default)s)")
    plan.add_argument("--seed", type=options.not_negative, default=1, metavar="N",
                      help="turns the choice among equally short ways (default: %(default)s)")
    plan.add_argument("--down", action="append", default=[], metavar="A-B|S",
                      help="the cables between two switches, or a switch, are out of order; may be repeated")
    plan.add_argument("--fabric", type=Path, metavar="FILE", help="write the network for a controller on its own")
    plan.add_argument("--json", action="store_true", help="one JSON object on stdout, with the paths of all pairs")
    plan.set_defaults(run=run_plan)


def run_plan(args: argparse.Namespace) -> int:
    """Print the plan; always 0. Raises :class:`ConfigError`."""
    topo = make_topo(args.topo)
    fabric = fabric_of_topo(topo)
    plan = make_plan(fabric, args.multipath, args.seed, parse_down(fabric, args.down))
    if args.fabric is not None:
        try:
            args.fabric.write_text(fabric.to_json(), encoding="utf-8")
        except OSError as e:
            raise ConfigError(f"{args.fabric}: {e.strerror}") from None
        print(f"smtnet: the fabric is in {args.fabric}", file=sys.stderr)
    if args.json:
        paths = {f"{a.name} {b.name}": plan.paths(a.name, b.name) for a, b in permutations(fabric.hosts, 2)}
        print(json.dumps({"topo": args.topo, **plan.to_json(), "paths": paths}))
    else:
        print("\n".join(_text(args.topo, topo, plan)))
    return 0


def parse_down(fabric: Fabric, texts: Iterable[str]) -> Down:
    """What is out of order: ``s1-s5`` (all cables between the two), ``s5``. Raises :class:`ConfigError`."""
    links: set[Link] = set()
    switches = set()
    for text in texts:
        one, dash, other = text.partition("-")
        if not dash:
            switches.add(fabric.switch(one).name)
            continue
        between = fabric.links_between(fabric.switch(one).name, fabric.switch(other).name)
        if not between:
            near = ", ".join(dict.fromkeys(f"{one}-{p.neighbour}" for p in fabric.ports(one)))
            raise ConfigError(f"--down {text}: there is no link between these two; {one} has {near or 'none'}")
        links.update(between)
    return Down(frozenset(links), frozenset(switches))


def _text(name: str, topo: SmtTopo, plan: Plan) -> Iterator[str]:
    fabric = plan.fabric
    yield (f"{name}: {_count(fabric.hosts, 'host')}, {_count(fabric.switches, 'switch', 'es')}, "
           f"{_count(fabric.links, 'link')} between switches; multipath {plan.policy}, seed {plan.seed}, "
           f"paths to each host: {plan.path_count}")
    down = sorted(plan.down.switches) + sorted(map(str, plan.down.links))
    if down:
        yield f"out of order: {', '.join(down)}"
    yield ""
    rows = list(_switches(plan))
    yield aligned(rows, left=len(rows[0]))
    yield ""
    pairs = topo.flows[:_MOST_PAIRS]
    for src, dst in pairs:
        yield f"{src} to {dst}{_choice(plan, src, dst)}"
        for way, count in Counter(plan.paths(src, dst)).items():
            yield f"  {' '.join(way)}" + (f"  ({count} paths)" if count > 1 else "")
    others = len(fabric.hosts) * (len(fabric.hosts) - 1) - len(pairs)
    if others:
        yield f"and {others} other pairs (--json has all)"
    if plan.unreachable:
        some = ", ".join(f"{a} to {b}" for a, b in sorted(plan.unreachable)[:4])
        yield f"cut off: {len(plan.unreachable)} pairs, {some}{' ...' if len(plan.unreachable) > 4 else ''}"


def _switches(plan: Plan) -> Iterator[tuple[str, ...]]:
    """A row each, with how many flows go by which port if every host sends to every other."""
    load = _flows_by_port(plan)
    yield "switch", "dpid", "hosts", "rules", "groups", "flows by port to other switches, all to all"
    for switch in plan.switches:
        ports = []
        for port in plan.fabric.ports(switch.name):
            flows = "" if load is None else f" {load[switch.name, port.number]}"
            ports.append(f"{port.number}>{port.neighbour}{flows}")
        yield (switch.name, str(switch.dpid), str(len(plan.fabric.hosts_at(switch.name))), str(len(switch.flows)),
               str(len(switch.groups)), ", ".join(ports))


def _choice(plan: Plan, src: str, dst: str) -> str:
    if (src, dst) in plan.unreachable:
        return ": cut off"
    if plan.fabric.host(src).switch == plan.fabric.host(dst).switch or plan.path_count == 1:
        return ""
    path = plan.flow_path(src, dst)
    if path is None:
        return ", by the switches' hash:"
    first = f"by path {path}, {' '.join(plan.paths(src, dst)[path])}"
    return f", {first}; there are:" if plan.policy == "flow" else f", messages by all of these, else {first}:"


def _flows_by_port(plan: Plan) -> Counter[tuple[str, int]] | None:
    """How many pairs of hosts send by each port, if all send; None where the switches' hash decides."""
    if plan.policy == "ecmp" and plan.path_count > 1:
        return None
    load: Counter[tuple[str, int]] = Counter()
    for src, dst in permutations(plan.fabric.hosts, 2):
        load.update(plan.hops(src.name, dst.name, plan.flow_path(src.name, dst.name) or 0))
    return load


def _count(things: tuple[Any, ...], one: str, several: str = "s") -> str:
    return f"{len(things)} {one}{several if len(things) != 1 else ''}"
