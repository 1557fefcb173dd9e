"""What a network is like, on the command line of every experiment, and the network itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from mininet.util import splitArgs

from controllers.policies import DEFAULT, HELP, POLICIES
from smtstack import quantities
from smtstack.errors import ConfigError
from topo import switches
from topo.link_options import QUANTITIES, LinkOptions, read
from topo.network import SmtNet, open_network
from topo.topologies import SmtTopo, make_topo
from workloads.options import common as options
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder

#: Fields of LinkOptions whose attribute has another name.
_ATTRIBUTES = {"buffer_bytes": "buffer", "nic": "link_nic"}


class _Link(argparse.Action):
    """``--link bw=10,delay=5ms``: as if each had been given by an option of its own."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        _name, positional, given = splitArgs(f"smartnic,{values.removeprefix('smartnic,')}")
        if positional:
            parser.error(f"argument --link: {positional[0]!r} is no NAME=VALUE, as bw=10,delay=5ms")
        try:
            for field, value in read(given).items():
                if value is not None:
                    setattr(namespace, _ATTRIBUTES.get(field, field), value)
        except ConfigError as e:
            parser.error(f"argument --link: {e}")


def add_network_options(parser: argparse.ArgumentParser) -> None:
    """What a network is like; for :func:`link_options`."""
    group = parser.add_argument_group("links, all of them alike; names and units are Mininet's (docs/mininet.md)")
    add = group.add_argument
    add("--bw", "--rate-mbps", dest="rate_mbps", type=QUANTITIES["rate_mbps"], metavar="R",
        help="link rate in Mbit/s, with eight strict priorities (default: as fast as it goes)")
    add("--buffer", type=quantities.BYTES, metavar="B",
        help="bytes a port queues for each priority; with --bw")
    add("--max-queue-size", type=options.positive, metavar="N", help="packets, instead of --buffer")
    add("--mtu", type=quantities.BYTES, metavar="B", help="bytes of an IP packet (default: 1500)")
    add("--delay", "--delay-us", dest="delay_us", type=QUANTITIES["delay_us"], default=0.0, metavar="US",
        help="one way, of each link, as 5ms; a plain number is microseconds")
    add("--jitter", "--jitter-us", dest="jitter_us", type=QUANTITIES["jitter_us"], default=0.0, metavar="US",
        help="the delay is up to this longer or shorter, at random: frames overtake each other")
    for name in ("loss", "duplicate", "reorder", "corrupt"):
        add(f"--{name}", type=QUANTITIES[name], default=0.0, metavar="P",
            help=f"per cent of frames to {name if name != 'loss' else 'lose'}: 1 or 1%%")
    add("--fabric-mbps", type=QUANTITIES["fabric_mbps"], metavar="R",
        help="rate of the links between switches (default: as --bw)")
    add("--link", action=_Link, default=argparse.SUPPRESS, metavar="NAME=VALUE[,...]",
        help="any options of a link, as behind --link smartnic in mn: bw=10,delay=5ms,nic=tso:off")
    group = parser.add_argument_group("switches")
    group.add_argument("--switch", choices=switches.KINDS, default="auto",
                       help="ovs: Open vSwitch in the kernel; ovs-user: in user space (default: %(default)s)")
    group.add_argument("--controller", choices=("none", "fanout"), default="none",
                       help="fanout: Ryu installs every shortest path, answers ARP and heals; none: switches "
                            "learn, on a spanning tree (default: %(default)s)")
    group.add_argument("--multipath", choices=POLICIES, metavar="POLICY",
                       help=f"with the controller, {HELP} (default: {DEFAULT})")


def link_options(args: argparse.Namespace) -> LinkOptions:
    """The options of :func:`add_network_options`."""
    chosen = {f.name: getattr(args, _ATTRIBUTES.get(f.name, f.name), None) for f in fields(LinkOptions)}
    return LinkOptions(**{name: value for name, value in chosen.items() if value is not None})


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

        controller = RyuController(multipath=args.multipath or DEFAULT, seed=args.seed,
                                   log=folder.path / "controller.log")
    with open_network(topo or args.topo, link_options(args), args.switch, progress.say, controller) as net:
        yield net
