"""A running network: ``with open_network("star,4", LinkOptions(rate_mbps=100)) as net: ...``, in a sandbox.

Everything is made here and removed here, by process and by name; Mininet's own clean-up, which removes what looks
like Mininet's, is never used. What Mininet would print and ignore is raised.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from mininet.log import lg
from mininet.net import Mininet

from smtstack.errors import SmtError
from topo import ovs, sandbox, switches
from topo.commands import in_namespace, run
from topo.host import SmtHost
from topo.links import LinkOptions, SmtLink
from topo.reach import echo
from topo.shaping import priority_counters
from topo.switches import AutoSwitch
from topo.topologies import SmtTopo, make_topo

Progress = Callable[[str], None]
#: Seconds for an answer on a loaded machine.
_PATIENCE_S = 3.0
_MOST_DESCRIPTORS = 16_384


def _silent(_text: str) -> None:
    pass


class SmtNet(Mininet):
    """Mininet with our hosts, links and switches. ``flows``: the pairs (client, server) of hosts, as the topology
    has them. ``switch_kind``: one of :data:`topo.switches.DATAPATHS`, or "" where there is no switch."""

    hosts: list[SmtHost]
    links: list[SmtLink]

    def __init__(self, topo: SmtTopo, links: LinkOptions, switch_kind: str = "") -> None:
        self.switch_kind = switch_kind
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
        """Make it all, with every host knowing every other's MAC address."""
        self._started = True
        super().start()
        self.flows = [(self[client], self[server]) for client, server in self.topo.flows]
        for host in self.hosts:
            host.set_neighbours({h.IP(): h.MAC() for h in self.hosts if h is not host})
        if self.switch_kind.startswith("ovs"):
            ovs.widen_buffers()
        # While it is put together, the kernel greets ends that are not up yet.
        self._cable_drops = self._cables()

    def stop(self) -> None:
        """Remove what is there, also of a network that failed to start. May be called twice."""
        if not self._started:
            return
        self._started = False
        for host in self.hosts:
            host.end_programs()
        steps = [*(link.stop for link in self.links), *(switch.stop for switch in self.switches),
                 *(node.terminate for node in (*self.hosts, *self.switches))]
        for step in steps:
            # A network that is broken already cannot be taken down in order; why it broke is what matters, and
            # the sandbox's end removes the rest.
            with suppress(SmtError, OSError):
                step()

    def rate_mbps(self, host: SmtHost) -> float | None:
        """Of the host's link; None: no limit."""
        rate: float | None = host.defaultIntf().options.rate_mbps
        return rate

    def emulator_pids(self) -> list[int]:
        """Processes that are the network itself: Open vSwitch, wires."""
        pids = [link.wire.pid for link in self.links if link.wire is not None]
        switchd = ovs.pid() if self.switch_kind.startswith("ovs") else None
        return pids if switchd is None else [*pids, switchd]

    def drops(self) -> dict[str, int]:
        """Frames lost since the start, by reason. ``ovs`` (no room in a switch port's buffer), ``wire`` (the wire
        was too slow) and ``cables`` (the kernel had no room between the ends of a veth, or a smaller MTU) are the
        emulator's own and make a run unfaithful; ``queues`` (a shaped link was full) and ``impairments`` are what
        was asked for."""
        wires = [link.wire for link in self.links if link.wire is not None]
        asked = sum(numbers[side]["dropped"] for numbers in (w.statistics() for w in wires) for side in
                    ("left", "right"))
        queues = sum(counters.dropped for link in self.links if link.options.rate_mbps is not None
                     for intf in (link.intf1, link.intf2)
                     for counters in priority_counters(intf.name, intf.pid).values())
        return {"ovs": ovs.port_drops() if self.switch_kind.startswith("ovs") else 0,
                "wire": sum(w.drops() for w in wires), "cables": self._cables() - self._cable_drops,
                "queues": queues, "impairments": asked}

    def _cables(self) -> int:
        names = {i.name for link in self.links for i in (link.intf1, link.intf2)}
        drops = 0
        for pid in (None, *(h.pid for h in self.hosts)):
            for entry in json.loads(run(["ip", "-j", "-s", "link", "show"], pid=pid)):
                if entry["ifname"] in names:
                    drops += int(entry["stats64"]["tx"]["dropped"])
        return drops

    def reachable(self) -> None:
        """Raises :class:`SmtError`, naming the hosts, unless full frames pass between those that talk."""
        self._check_mtu()
        # There and back over the longest way here, with what waits in front.
        patience = _PATIENCE_S + sum(2e-6 * (k.options.delay_us + k.options.jitter_us) for k in self.links)
        slowest = min((k.options.rate_mbps for k in self.links if k.options.rate_mbps is not None), default=None)
        for client, server in self.flows:
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
        if entry["operstate"] != "UP":
            return f"{intf.name} is {entry['operstate'].lower()}: ip link set dev {intf.name} up"
    return "no answer to an ICMP echo"


@contextmanager
def open_network(topo: str | SmtTopo, links: LinkOptions | None = None, switch: str = "auto",
                 progress: Progress = _silent) -> Iterator[SmtNet]:
    """A network that runs, checked with an echo; removed at the end, also on failure.

    ``topo`` as :func:`topo.topologies.make_topo` takes it, ``switch`` one of :data:`topo.switches.KINDS`;
    ``progress`` is told in words what happens. Only in a sandbox (:mod:`topo.sandbox`), where nobody else's
    switches are. Raises :class:`ConfigError` or :class:`Unsupported` before anything is made, other
    :class:`SmtError` after.
    """
    description = make_topo(topo) if isinstance(topo, str) else topo
    options = links or LinkOptions()
    if not sandbox.inside():
        raise SmtError("a network is made in a sandbox only: topo.sandbox.run")
    with ExitStack() as stack:
        kind = ""
        if description.switches():
            why = ""
            if switch in ("ovs", "ovs-user") or (switch == "auto" and ovs.is_installed()):
                progress("starting Open vSwitch")
                try:
                    stack.enter_context(ovs.PrivateOvs())
                except SmtError as e:
                    if switch != "auto":
                        raise
                    kind, why = "bridge", str(e)
            if not kind:
                kind, why = switches.choose(switch)
            progress(f"switches: {kind} ({why})")
        net = SmtNet(description, options, kind)
        stack.callback(net.stop)
        progress(f"starting {len(description.hosts())} hosts, {len(description.switches())} switches, "
                 f"{len(description.links())} links")
        net.start()
        net.reachable()
        yield net
