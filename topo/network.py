"""A running network: ``with open_network("star,4", LinkOptions(rate_mbps=100)) as net: ...``, in a sandbox.

Everything is made here and removed here, and nothing else; Mininet's own clean-up, which removes what looks
like Mininet's, is never used. What Mininet would print and ignore is raised.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

from mininet.log import lg
from mininet.net import Mininet
from mininet.node import Switch

from smtstack.errors import ConfigError, SmtError
from smtstack.nicshare.state import NicState
from topo import ovs, sandbox, switches
from topo.commands import in_namespace, run
from topo.host import SmtHost
from topo.link_options import LinkOptions
from topo.links import SmtLink
from topo.reach import echo
from topo.shaping import priority_counters, queues_of
from topo.switches import AutoSwitch
from topo.topologies import SmtTopo, make_topo

Progress = Callable[[str], None]
#: Seconds for an answer on a loaded machine.
_PATIENCE_S = 3.0
_MOST_DESCRIPTORS = 16_384
#: More hosts than that do not ask by ARP: of neighbours it found, Linux keeps 1024 (gc_thresh3) for all namespaces
#: together, and those of others on this machine count, too. Neighbours that were set do not.
_MOST_ASKING = 20


def _silent(_text: str) -> None:
    pass


class NetController(Protocol):
    """What a network needs of a controller. It is one of Mininet's, too (``name``, ``IP()``, ``port``)."""

    def take(self, net: Any) -> None:
        """Look at a network that is built, before its switches start."""

    def start(self) -> None:
        """Listen. Raises :class:`SmtError` if it cannot."""

    def ready(self, timeout_s: float = ...) -> None:
        """Wait until every switch has its rules. Raises :class:`SmtError` with the reason if one does not take
        them, or time is up."""

    def stop(self) -> None:
        """End. May be called twice."""

    def pids(self) -> list[int]:
        """The numbers of the controller's processes."""

    @property
    def nic_paths(self) -> int:
        """Over how many paths the hosts' NICs are to spread the messages to one peer; 1: they choose none. Known
        when it is ready."""


class SmtNet(Mininet):
    """Mininet with our hosts, links and switches. ``flows``: the pairs (client, server) of hosts, as the topology
    has them. ``switch_kind``: one of :data:`topo.switches.DATAPATHS`, or "" where there is no switch. ``paths``:
    over how many paths a NIC spreads the messages to one peer."""

    hosts: list[SmtHost]
    links: list[SmtLink]

    def __init__(self, topo: SmtTopo, links: LinkOptions, switch_kind: str = "",
                 controller: NetController | None = None) -> None:
        self.switch_kind = switch_kind
        self.switch_controller = controller
        self.paths = 1
        self._started = False
        self._cable_drops = 0
        # Mininet would change limits and sysctls of the whole machine. Ours: a host holds some descriptors.
        Mininet.inited = True
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, _MOST_DESCRIPTORS), hard))
        lg.setLogLevel("warning")
        super().__init__(topo=topo, host=SmtHost, link=partial(SmtLink, options=links), controller=None,
                         switch=partial(AutoSwitch, kind=switch_kind), build=False)
        self.flows: list[tuple[SmtHost, SmtHost]] = []

    def start(self) -> None:
        """Make it all. Hosts know each other's MAC addresses, unless they are few and a controller has the
        switches answer."""
        self._started = True
        controller = self.switch_controller
        if controller is not None:
            self.build()
            controller.take(self)
            self.addController(controller)
        super().start()
        self.flows = [(self[client], self[server]) for client, server in self.topo.flows]
        if controller is None or len(self.hosts) > _MOST_ASKING:
            for host in self.hosts:
                host.set_neighbours({h.IP(): h.MAC() for h in self.hosts if h is not host})
        if self.switch_kind.startswith("ovs"):
            ovs.widen_buffers(switches.port_names(self.switches))
        if controller is not None:
            controller.ready()
            self.paths = controller.nic_paths
            for host in self.hosts if self.paths > 1 else []:
                NicState.open(host.defaultIntf().name, pid=host.pid).set_paths(self.paths)
        # While it is put together, the kernel greets ends that are not up yet.
        self._cable_drops = self._cables()

    def stop(self) -> None:
        """Remove what is there, also of a network that failed to start. May be called twice."""
        if not self._started:
            return
        self._started = False
        for host in self.hosts:
            host.end_programs()
        controllers = [] if self.switch_controller is None else [self.switch_controller]
        steps = [*(controller.stop for controller in controllers),
                 *(link.stop for link in self.links), *(switch.stop for switch in self.switches),
                 *(node.terminate for node in (*self.hosts, *self.switches))]
        for step in steps:
            # A network that is broken already cannot be taken down in order; why it broke is what matters, and
            # the sandbox's end removes the rest.
            with suppress(SmtError, OSError):
                step()

    def rate_mbps(self, host: SmtHost) -> float | None:
        """The rate of the host's link; None: no limit."""
        rate: float | None = host.defaultIntf().options.rate_mbps
        return rate

    def nic_pids(self, host: SmtHost) -> list[int]:
        """Processes that are the host's NICs, where these own its interfaces (hosting tap), or give it rings."""
        found = [nic.pid for link in self.links for (_name, pid), nic in link.nics.items() if pid == host.pid]
        rings = [ring for link in self.links for (_name, pid), ring in link.rings.items() if pid == host.pid]
        return [*found, *(number for ring in rings for number in ring.pids())]

    @property
    def has_rings(self) -> bool:
        """Whether hosts' packets go by rings (hosting ring)."""
        return any(link.rings for link in self.links)

    def emulator_pids(self) -> list[int]:
        """Processes that are the network itself: Open vSwitch, wires, NICs of their own, the controller."""
        pids = [link.wire.pid for link in self.links if link.wire is not None]
        pids += [pid for host in self.hosts for pid in self.nic_pids(host)]
        if self.switch_controller is not None:
            pids += self.switch_controller.pids()
        switchd = ovs.pid() if self.switch_kind.startswith("ovs") else None
        return pids if switchd is None else [*pids, switchd]

    def drops(self) -> dict[str, int]:
        """Frames lost since the start, by reason. ``ovs`` (no room in a switch port's buffer), ``wire`` (the wire
        was too slow), ``nics`` (so was a NIC that owns an interface) and ``cables`` (the kernel had no room
        between the ends of a veth, or a smaller MTU) are the emulator's own and make a run unfaithful; ``queues``
        (a shaped link was full) and ``impairments`` are what was asked for."""
        wires = [link.wire for link in self.links if link.wire is not None]
        ways = [numbers[side] for numbers in (w.statistics() for w in wires) for side in ("left", "right")]
        asked = sum(way["dropped"] for way in ways)
        asked += sum(link.netem.drops() for link in self.links if link.netem is not None)
        queues = sum(way["queue_drops"] for way in ways)
        queues += sum(counters.dropped for link in self.links for intf in (link.intf1, link.intf2)
                      if intf.options.rate_mbps is not None
                      for counters in priority_counters(intf.name, intf.pid).values())
        ports = switches.port_names(self.switches)
        return {"ovs": ovs.port_drops(ports) if self.switch_kind.startswith("ovs") else 0,
                "wire": sum(w.drops() for w in wires), "nics": sum(link.nic_drops() for link in self.links),
                "cables": self._cables() - self._cable_drops,
                "queues": queues, "impairments": asked}

    def fabric_octets(self) -> dict[str, int]:
        """Bytes that switches have sent each other, by direction, as ``s1>s3``: which ways are in use. From the
        Ethernet header on, without the 24 bytes of the cable."""
        sent = {entry["ifname"]: int(entry["stats64"]["tx"]["bytes"])
                for entry in json.loads(run(["ip", "-j", "-s", "link", "show"]))}
        octets: dict[str, int] = {}
        for link in self.links:
            one, two = link.intf1, link.intf2
            if isinstance(one.node, Switch) and isinstance(two.node, Switch):
                for here, there in ((one, two), (two, one)):
                    way = f"{here.node.name}>{there.node.name}"
                    octets[way] = octets.get(way, 0) + sent[here.name]
        return octets

    def _cables(self) -> int:
        ends = [i for link in self.links for i in (link.intf1, link.intf2)]
        names = {name for i in ends for name in (i.name, queues_of(i.name, i.pid))}
        drops = 0
        for pid in (None, *(h.pid for h in self.hosts)):
            for entry in json.loads(run(["ip", "-j", "-s", "link", "show"], pid=pid)):
                if entry["ifname"] in names:
                    drops += int(entry["stats64"]["tx"]["dropped"])
        return drops

    def reachable(self, all_pairs: bool = False) -> None:
        """Raises :class:`SmtError`, naming the hosts, unless full frames pass between those that talk (or between
        all)."""
        self._check_mtu()
        # There and back over the longest way here, with what waits in front.
        ends = [end for link in self.links for end in link.ends]
        patience = _PATIENCE_S + sum(1e-6 * (end.delay_us + end.jitter_us) for end in ends)
        slowest = min((end.rate_mbps for end in ends if end.rate_mbps is not None), default=None)
        everybody = [(a, b) for a in self.hosts for b in self.hosts if a is not b]
        for client, server in everybody if all_pairs else self.flows:
            length = client.defaultIntf().options.mtu
            if slowest is not None:
                patience += 2 * len(self.links) * 8e-6 * (length + 38) / slowest
            try:
                answered = echo(client.pid, server.IP(), length, patience)
                why = "" if answered else _why(client, server)
            except SmtError as e:
                why = str(e)
            if why:
                raise SmtError(f"{client.name} cannot reach {server.name} ({server.IP()}) with packets of "
                               f"{length} bytes, switches: {self.switch_kind or 'none'}: {why}")

    def _check_mtu(self) -> None:
        # Both ends of every cable as they are now: somebody may have changed one.
        for link in self.links:
            (small, narrow), (large, wide) = sorted((_mtu(i), i.name) for i in (link.intf1, link.intf2))
            if small != large:
                raise SmtError(f"link {link}: MTU {small} at {narrow} and {large} at {wide}, so long frames are "
                               f"lost: on {narrow.partition('-')[0]}, ip link set dev {narrow} mtu {large}")
        sizes = {link.options.mtu for link in self.links}
        if len(sizes) > 1:
            tightest = min(self.links, key=lambda k: k.options.mtu)
            raise SmtError(f"link {tightest} has an MTU of {tightest.options.mtu}, others up to {max(sizes)}, and "
                           "nothing on an Ethernet says so to a sender: give all links the same mtu")


def _mtu(intf: Any) -> int:
    (entry,) = json.loads(run(["ip", "-j", "link", "show", "dev", intf.name], where=intf.node.name, pid=intf.pid))
    return int(entry["mtu"])


def _why(client: SmtHost, server: SmtHost) -> str:
    for host in (client, server):
        intf = host.defaultIntf()
        command = in_namespace(intf.pid, ["ip", "-j", "link", "show", "dev", intf.name])
        try:
            (entry,) = json.loads(run(command))
        except SmtError:
            return f"{host.name} has no interface {intf.name} any more"
        if entry["operstate"] not in ("UP", "UNKNOWN"):  # a TAP has no carrier
            return f"{intf.name} is {entry['operstate'].lower()}: ip link set dev {intf.name} up"
    return "no answer to an ICMP echo"


@contextmanager
def open_network(topo: str | SmtTopo, links: LinkOptions | None = None, switch: str = "auto",
                 progress: Progress = _silent, controller: NetController | None = None) -> Iterator[SmtNet]:
    """A network that runs, checked with an echo; removed at the end, also on failure.

    ``topo`` as :func:`topo.topologies.make_topo` takes it, ``switch`` one of :data:`topo.switches.KINDS`;
    ``progress`` is told in words what happens. With a ``controller``, which ends with the network, the switches
    are Open vSwitch, and use all links. Only in a sandbox (:mod:`topo.sandbox`), where nobody else's
    switches are. Raises :class:`ConfigError` or :class:`Unsupported` before anything is made, other
    :class:`SmtError` after.
    """
    description = make_topo(topo) if isinstance(topo, str) else topo
    options = links or LinkOptions()
    if not sandbox.inside():
        raise SmtError("a network is made in a sandbox only: topo.sandbox.enter")
    with ExitStack() as stack:
        if controller is not None:
            stack.callback(controller.stop)
        kind = ""
        if controller is not None and not description.switches():
            raise ConfigError("this topology has no switch for a controller: leave the controller out")
        if description.switches():
            why = ""
            if controller is not None and (switch == "bridge" or not ovs.is_installed()):
                switches.choose(switch, controlled=True)
            if switch in ("ovs", "ovs-user") or (switch == "auto" and ovs.is_installed()):
                progress("starting Open vSwitch")
                try:
                    stack.enter_context(ovs.PrivateOvs())
                except SmtError as e:
                    if switch != "auto" or controller is not None:
                        raise
                    kind, why = "bridge", str(e)
            if not kind:
                kind, why = switches.choose(switch, controlled=controller is not None)
            progress(f"switches: {kind} ({why})")
        net = SmtNet(description, options, kind, controller)
        stack.callback(net.stop)
        progress(f"starting {len(description.hosts())} hosts, {len(description.switches())} switches, "
                 f"{len(description.links())} links")
        net.start()
        net.reachable()
        yield net
