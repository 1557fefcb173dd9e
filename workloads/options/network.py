"""What a network is like, on the command line of every experiment, and the network itself."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
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
from workloads.options.declare import option
from workloads.results.folder import ResultFolder
from workloads.results.progress import Progress

#: Fields of LinkOptions whose attribute has another name.
_ATTRIBUTES = {"buffer_bytes": "buffer", "nic": "link_nic"}


class _Link(argparse.Action):
    """``--link bw=10,delay=5ms``: as if each had been given by its own option; what has none is in ``link``."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
                 option_string: str | None = None) -> None:
        _name, positional, given = splitArgs(f"smartnic,{values.removeprefix('smartnic,')}")
        if positional:
            parser.error(f"argument --link: {positional[0]!r} is no NAME=VALUE, as bw=10,delay=5ms")
        try:
            for field, value in read(given).items():
                own = _ATTRIBUTES.get(field, field)
                if value is None:
                    continue
                if hasattr(namespace, own):
                    setattr(namespace, own, value)
                else:
                    namespace.link = {**getattr(namespace, "link", {}), own: value}
        except ConfigError as e:
            parser.error(f"argument --link: {e}")


_LINKS = "links, all of them alike; names and units are Mininet's (docs/mininet.md)"


def _per_cent(name: str, what: str) -> Any:
    return option(f"--{name}", type=QUANTITIES[name], default=0.0, metavar="P", title=_LINKS,
                  help=f"per cent of frames to {what}: 1 or 1%%")


@dataclass(frozen=True)
class Network:
    """What a network is like: its links, all alike, its switches and who controls them."""

    rate_mbps: float | None = option(
        "--bw", "--rate-mbps", type=QUANTITIES["rate_mbps"], metavar="R", title=_LINKS,
        help="link rate in Mbit/s, with eight strict priorities (default: as fast as it goes)")
    buffer: int | None = option("--buffer", type=quantities.BYTES, metavar="B", title=_LINKS,
                                help="bytes a port queues for each priority; with --bw")
    max_queue_size: int | None = option("--max-queue-size", type=options.positive, metavar="N", title=_LINKS,
                                        help="packets, instead of --buffer")
    mtu: int | None = option("--mtu", type=quantities.BYTES, metavar="B", title=_LINKS,
                             help="bytes of an IP packet (default: 1500)")
    delay_us: float = option(
        "--delay", "--delay-us", type=QUANTITIES["delay_us"], default=0.0, metavar="US", title=_LINKS,
        help="one way, of each link, as 5ms; a plain number is microseconds")
    jitter_us: float = option(
        "--jitter", "--jitter-us", type=QUANTITIES["jitter_us"], default=0.0, metavar="US", title=_LINKS,
        help="the delay is up to this longer or shorter, at random: frames overtake each other")
    loss: float = _per_cent("loss", "lose")
    duplicate: float = _per_cent("duplicate", "duplicate")
    reorder: float = _per_cent("reorder", "reorder")
    corrupt: float = _per_cent("corrupt", "corrupt")
    impair: str = option("--impair", choices=("wire", "netem"), default="wire", title=_LINKS,
                         help="who does that: our programmable wire, or the kernel's netem, to compare "
                              "(default: %(default)s)")
    fabric_mbps: float | None = option("--fabric-mbps", type=QUANTITIES["fabric_mbps"], metavar="R", title=_LINKS,
                                       help="rate of the links between switches (default: as --bw)")
    link: Mapping[str, Any] | None = option(
        "--link", action=_Link, default=argparse.SUPPRESS, metavar="NAME=VALUE[,...]", title=_LINKS,
        help="any options of a link, as behind --link smartnic in mn: bw=10,delay=5ms,nic=tso:off")
    hosting: str = option(
        "--nic-hosting", choices=("inline", "tap", "ring"), default="inline", title=_LINKS,
        help="the hosts' smart NICs: inline, in each program of ours; tap: a process owns the interface, and all "
             "that the host's kernel sends and receives goes through it, too; ring: on an untrusted host, behind "
             "rings that it shares with guarded programs (default: %(default)s)")
    switch: str = option("--switch", choices=switches.KINDS, default="auto", title="switches",
                         help="ovs: Open vSwitch in the kernel; ovs-user: in user space (default: %(default)s)")
    controller: str = option(
        "--controller", choices=("none", "fanout"), default="none", title="switches",
        help="fanout: Ryu installs every shortest path, answers ARP and heals; none: switches "
             "learn, on a spanning tree (default: %(default)s)")
    multipath: str | None = option(
        "--multipath", choices=POLICIES, metavar="POLICY", title="switches",
        help=f"with the controller, {HELP} (default: {DEFAULT})")

    def links(self, seed: int = 1) -> LinkOptions:
        """What each link is like; ``seed`` is of its faults. Raises :class:`ConfigError`."""
        given = {**vars(self), "seed": seed, **(self.link or {})}
        chosen = {f.name: given.get(_ATTRIBUTES.get(f.name, f.name)) for f in fields(LinkOptions)}
        return LinkOptions(**{name: value for name, value in chosen.items() if value is not None})

    def check(self, topo: str, seed: int = 1) -> SmtTopo:
        """The topology, if whatever can be seen before a network of it is made is right. Raises
        :class:`ConfigError`."""
        found = make_topo(topo)
        self.links(seed)
        if self.multipath and self.controller == "none":
            raise ConfigError(f"--multipath {self.multipath} needs --controller fanout: without it there is one "
                              "path")
        if self.controller != "none" and self.switch == "bridge":
            raise ConfigError("--switch bridge: a controller needs Open vSwitch; leave --switch out")
        return found

    @contextmanager
    def open(self, topo: str | SmtTopo, seed: int, folder: ResultFolder, progress: Progress) -> Iterator[SmtNet]:
        """A network of these options that runs; the controller's log goes to ``folder``."""
        controller = None
        if self.controller == "fanout":
            from controllers.controller import RyuController

            controller = RyuController(multipath=self.multipath or DEFAULT, seed=seed,
                                       log=folder.path / "controller.log")
        with open_network(topo, self.links(seed), self.switch, progress.say, controller) as net:
            yield net
