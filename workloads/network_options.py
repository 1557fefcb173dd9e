"""What a network is like, on the command line of every experiment, and the network itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from controllers.plan import POLICIES
from smtstack.errors import ConfigError
from topo import switches
from topo.links import LinkOptions
from topo.network import SmtNet, open_network
from topo.topologies import SmtTopo, make_topo
from workloads import options
from workloads.progress import Progress
from workloads.results import ResultFolder


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """What a network is like; for :func:`link_options`."""
    group = parser.add_argument_group("links, all of them alike")
    group.add_argument("--rate-mbps", type=options.seconds, metavar="R",
                       help="link rate in Mbit/s, with eight strict priorities (default: as fast as it goes)")
    group.add_argument("--buffer", type=options.positive, metavar="B",
                       help="bytes a port queues for each priority; with --rate-mbps")
    group.add_argument("--mtu", type=options.positive, metavar="B", help="bytes of an IP packet (default: 1500)")
    group.add_argument("--delay-us", type=options.seconds, default=0.0, metavar="US", help="one way, of each link")
    group.add_argument("--jitter-us", type=options.seconds, default=0.0, metavar="US",
                       help="more delay, at random: frames overtake each other")
    for name in ("loss", "duplicate", "reorder", "corrupt"):
        group.add_argument(f"--{name}", type=options.share, default=0.0, metavar="P",
                           help=f"share of frames to {name if name != 'loss' else 'lose'}, as 1%% or 0.01")
    group.add_argument("--fabric-mbps", type=options.seconds, metavar="R",
                       help="rate of the links between switches (default: as --rate-mbps)")
    group = parser.add_argument_group("switches")
    group.add_argument("--switch", choices=switches.KINDS, default="auto",
                       help="ovs: Open vSwitch in the kernel; ovs-user: in user space (default: %(default)s)")
    group.add_argument("--controller", choices=("none", "fanout"), default="none",
                       help="fanout: Ryu installs every shortest path, answers ARP and heals; none: switches "
                            "learn, on a spanning tree (default: %(default)s)")
    group.add_argument("--multipath", choices=POLICIES, metavar="POLICY",
                       help="with the controller, what stays on one path: flow: a pair of hosts, message: a "
                            "message (of smt, homa, linux), ecmp: what Open vSwitch hashes alike (default: flow)")


def link_options(args: argparse.Namespace) -> LinkOptions:
    """The options of :func:`add_network_options`."""
    chosen: dict[str, Any] = {name: getattr(args, name) for name in
                              ("loss", "duplicate", "reorder", "corrupt", "delay_us", "jitter_us")}
    for name in ("rate_mbps", "fabric_mbps"):
        if getattr(args, name):
            chosen[name] = getattr(args, name)
    if args.buffer:
        chosen["buffer_bytes"] = args.buffer
    if args.mtu:
        chosen["mtu"] = args.mtu
    return LinkOptions(**chosen, seed=args.seed)


def check_network(args: argparse.Namespace) -> None:
    """Whatever can be wrong with a network and be seen before it is made. Raises :class:`ConfigError`."""
    make_topo(args.topo)
    link_options(args)
    if args.multipath and args.controller == "none":
        raise ConfigError(f"--multipath {args.multipath} needs --controller fanout: without it there is one path")
    if args.controller != "none" and args.switch == "bridge":
        raise ConfigError("--switch bridge: a controller needs Open vSwitch; leave --switch out")


@contextmanager
def open_net(args: argparse.Namespace, folder: ResultFolder, progress: Progress,
             topo: str | SmtTopo = "") -> Iterator[SmtNet]:
    """The network of :func:`add_network_options`, with ``topo`` in the place of ``args.topo``; the controller's
    log goes to ``folder``."""
    controller = None
    if args.controller == "fanout":
        from controllers.controller import RyuController

        controller = RyuController(multipath=args.multipath or POLICIES[0], seed=args.seed,
                                   log=folder.path / "controller.log")
    with open_network(topo or args.topo, link_options(args), args.switch, progress.say, controller) as net:
        yield net
