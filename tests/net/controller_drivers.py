"""What test_controller.py does inside a sandbox: ``python -m tests.net.controller_drivers NAME``.

JSON on stdout.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from controllers.controller import RyuController
from controllers.fabric import Fabric
from smtstack.errors import SmtError
from smtstack.io.namespaces import within
from smtstack.nicshare.state import NicState
from smtstack.wire.ethernet import path_mac
from tests.net.inside import go_inside
from tests.net.topo_drivers import arrivals, complaint, ends, frame, say
from tests.patience import FACTOR
from topo import programs
from topo.commands import run
from topo.host import SmtHost
from topo.link_options import LinkOptions
from topo.network import SmtNet, open_network
from topo.reach import echo

#: Seconds for anything to come about on a loaded machine.
PATIENCE_S = 15.0 * FACTOR
#: Bytes of a frame, without FCS.
FRAME = 1000
#: IEEE 802's for experiments: no kernel answers.
EXPERIMENTAL = 0x88B5
OFCTL = ["ovs-ofctl", "-O", "OpenFlow13"]
BROADCAST, NOBODY = b"\xff" * 6, bytes.fromhex("02000000ffff")


@contextmanager
def network(topo: str, links: LinkOptions | None = None, switch: str = "auto",
            **options: Any) -> Iterator[tuple[SmtNet, RyuController]]:
    """A network under a controller, and what the controller logged if something fails."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "controller.log")
        controller = RyuController(log=log, **options)
        try:
            with open_network(topo, links, switch, controller=controller) as net:
                yield net, controller
        except BaseException:
            if log.exists():
                print(log.read_text()[-4000:], file=sys.stderr)
            raise


def until(condition: Callable[[], object], what: str) -> float:
    """Seconds until it holds."""
    begin = time.monotonic()
    while not condition():
        if time.monotonic() > begin + PATIENCE_S:
            raise SmtError(f"not within {PATIENCE_S:.0f} s: {what}")
        time.sleep(0.02)
    return time.monotonic() - begin


def set_link(interface: str, state: str) -> None:
    """Up or down, at the switch's end."""
    run(["ip", "link", "set", "dev", interface, state])


def settled(controller: RyuController, down: set[str]) -> float:
    """Seconds until these links, and no others, are planned without, and all is installed."""
    def reached() -> bool:
        status = controller.status()
        return status["state"] == "ready" and set(status["links"]["down"]) == down

    return until(reached, f"a plan without {sorted(down) or 'any failure'}: {controller.status()['last_errors']}")


def sent_octets(controller: RyuController) -> int:
    """By all ports of all switches."""
    found = controller.counters()
    ports = [*found["hosts"], *(end for link in found["links"] for end in (link["a"], link["b"]))]
    return sum(port["tx_bytes"] for port in ports)


def hop_count(controller: RyuController, src: str, dst: str) -> int:
    """Switches on the way of frames that name no path: as often is each of them sent."""
    answer = controller.paths(src, dst)
    return len(answer["paths"][answer["flow_path"] or 0])


# -- a fat tree ------------------------------------------------------------------------------------------------


def fat_tree() -> None:
    """All pairs, what the ports count, then failures while RPCs run."""
    begin = time.monotonic()
    # Only the first probes, before the frames that are counted. Every message takes another path: between two
    # pairs of pods they use every core link.
    with network("fattree,4", multipath="message", lldp_s=60) as (net, controller):
        started = time.monotonic() - begin
        first = controller.status()
        net.reachable(all_pairs=True)
        result: dict[str, Any] = {
            "started_s": round(started, 2), "hosts": len(net.hosts), "switches": len(net.switches),
            "ready": first["ready"],
            "found": len(first["links"]["found"]), "expected": len(first["links"]["expected"]),
            "install_ms": first["replans"][0]["ms"], "delivery": deliver(net, controller)}
        result["traffic"] = failures(net, controller)
        last = controller.status()
        say(**result, packet_ins=last["packet_ins"], errors=last["errors"], drops=net.drops())


def deliver(net: SmtNet, controller: RyuController) -> dict[str, Any]:
    """A frame between each two hosts, and some to nobody: who gets what, and what all ports sent for it."""
    hosts: list[SmtHost] = net.hosts
    pairs = [(a, b) for a in hosts for b in hosts if a is not b]
    macs = {host: bytes.fromhex(host.MAC().replace(":", "")) for host in hosts}
    for host in hosts:  # nobody is to ask now
        host.set_neighbours({h.IP(): h.MAC() for h in hosts if h is not host})
    before = sent_octets(controller)
    with ExitStack() as stack:
        sockets = {h: stack.enter_context(experimental(h)) for h in hosts}

        def send(src: SmtHost, address: bytes) -> None:
            head = address + macs[src] + EXPERIMENTAL.to_bytes(2, "big")
            sockets[src].send(head.ljust(FRAME, b"\0"))

        for src, dst in pairs:
            send(src, macs[dst])
        for address in (BROADCAST, NOBODY):
            send(hosts[0], address)
        came = {host: received(sockets[host], len(hosts) - 1) for host in hosts}
    octets = sent_octets(controller) - before
    return {"pairs": len(pairs), "counts": [len(frames) for frames in came.values()],
            "sources": [len({data[6:12] for data in frames}) for frames in came.values()],
            "wrong": sum(data[:6] != macs[host] for host, frames in came.items() for data in frames),
            "hops": sum(hop_count(controller, a.name, b.name) for a, b in pairs),
            "frames": octets / FRAME}


@contextmanager
def experimental(host: SmtHost) -> Iterator[socket.socket]:
    """A socket for frames of :data:`EXPERIMENTAL` on a host."""
    def make() -> socket.socket:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.bind((host.defaultIntf().name, EXPERIMENTAL))
        return s

    with within(host.pid, make) as sock:
        yield sock


def received(sock: socket.socket, count: int) -> list[bytes]:
    """Until ``count`` have come, and then whatever else there is, or none comes for a while."""
    frames: list[bytes] = []
    while True:
        sock.settimeout(PATIENCE_S if len(frames) < count else 0.1)
        try:
            frames.append(sock.recv(2048))
        except TimeoutError:
            return frames


def failures(net: SmtNet, controller: RyuController) -> dict[str, Any]:
    """Cut cables, kill the controller and take a switch away, with RPCs under way."""
    pairs = [(net["h1"], net["h9"]), (net["h14"], net["h6"])]
    steps: dict[str, float] = {}
    with RpcTraffic(pairs, rate=20) as traffic:
        until(traffic.running, "RPCs")
        cables = [*core_cables(controller), cable_on_path(controller, "h1", "h9", 1)]
        for cable, interface in cables:
            steps[f"{cable} cut"] = timed(partial(set_link, interface, "down"), controller, {cable})
            steps[f"{cable} back"] = timed(partial(set_link, interface, "up"), controller, set())
        controller.kill()
        # Long enough for some RPCs that nobody but the switches sees to.
        time.sleep(1.0)
        controller.restart()
        controller.ready()
        settled(controller, set())
        restarted = controller.status()
        cable, interface = cable_on_path(controller, "h14", "h6", 2)
        steps["core cut again"] = timed(partial(set_link, interface, "down"), controller, {cable})
        steps["core back again"] = timed(partial(set_link, interface, "up"), controller, set())
        gone = controller.paths("h14", "h6")
        victim = gone["paths"][gone["flow_path"]][2]
        begin = time.monotonic()
        run(["ovs-vsctl", "del-br", victim])
        until(lambda: controller.status()["replans"][-1]["down_switches"] == [victim], f"a plan without {victim}")
        steps["switch gone"] = time.monotonic() - begin
        after = controller.paths("h14", "h6")
        time.sleep(0.5)
    return {"cut": len(cables), "steps_s": {name: round(s, 3) for name, s in steps.items()}, **traffic.result,
            "changes_after_restart": restarted["replans"][0]["changes"], "victim": victim,
            "after": [way for way in after["paths"] if victim in way],
            "unreachable": controller.status()["unreachable"]}


def timed(action: Callable[[], None], controller: RyuController, down: set[str]) -> float:
    """Seconds from an action to the plan that follows from it."""
    begin = time.monotonic()
    action()
    settled(controller, down)
    seconds = time.monotonic() - begin
    time.sleep(0.15)  # for RPCs to use it
    return seconds


def core_cables(controller: RyuController) -> list[tuple[str, str]]:
    """Every cable of a core switch of ``fattree,4``, s17 to s20, and its interface there."""
    return [(link["link"], end["interface"]) for link in controller.counters()["links"]
            for end in (link["a"], link["b"]) if end["switch"] in ("s17", "s18", "s19", "s20")]


def cable_on_path(controller: RyuController, src: str, dst: str, index: int) -> tuple[str, str]:
    """The cable behind switch ``index`` on the way of frames that name no path, and its interface there."""
    answer = controller.paths(src, dst)
    way = answer["paths"][answer["flow_path"]]
    for link in controller.counters()["links"]:
        for here, there in ((link["a"], link["b"]), (link["b"], link["a"])):
            if (here["switch"], there["switch"]) == (way[index], way[index + 1]):
                return link["link"], here["interface"]
    raise SmtError(f"no cable from {way[index]} to {way[index + 1]}")


class RpcTraffic:
    """SMT RPCs between pairs (client, server) at a rate, for the time of the ``with`` block."""

    def __init__(self, pairs: list[tuple[SmtHost, SmtHost]], rate: int) -> None:
        self._pairs, self._rate = pairs, rate
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self.result: dict[str, Any] = {}

    def __enter__(self) -> RpcTraffic:
        secrets = self._stack.enter_context(programs.serving("echo", self._pairs, "smt", "sw"))
        self._stop = False
        pool = self._stack.enter_context(ThreadPoolExecutor(len(self._pairs)))
        self._futures = [pool.submit(self._call, number, pair, secrets) for number, pair in enumerate(self._pairs)]
        return self

    def _call(self, number: int, pair: tuple[SmtHost, SmtHost], secrets: Any) -> list[tuple[dict[str, Any], Path]]:
        """One client after the other, each for a few seconds: what each found."""
        done: list[tuple[dict[str, Any], Path]] = []
        while not self._stop:
            raw = self._folder / f"{number}-{len(done)}.u64"
            # A hundred ports each: none is used twice.
            arguments = ["--size", "2000", "--rate", str(self._rate), "--seconds", "2", "--raw", str(raw)]
            answer = programs.ask("echo", *pair, 100 * number + len(done), arguments, "smt", "sw", secrets)
            done.append(({**answer.numbers, "said": answer.said}, raw))
        return done

    def running(self) -> bool:
        """Whether all clients have done some RPCs: the first of them have begun to send."""
        return all(echo(client.pid, server.IP(), 100, PATIENCE_S) for client, server in self._pairs)

    def __exit__(self, *_error: object) -> None:
        self._stop = True
        with self._stack:
            runs = [run for future in self._futures for run in future.result()]
            times: array[int] = array("Q")
            for _numbers, raw in runs:
                times.frombytes(raw.read_bytes() if raw.exists() else b"")
        self.result = {
            "rpcs": sum(n.get("rpcs", 0) for n, _raw in runs), "clients": len(runs),
            "lost": sum(n.get("errors", 1) for n, _raw in runs),
            "wrong": [n["said"] for n, _raw in runs if not n.get("content_ok")],
            "longest_ms": round(max(times, default=0) / 1e6, 1)}


# -- leaves and spines -----------------------------------------------------------------------------------------


def leaf_spine() -> None:
    """A path for every message, wrong cables, and links that fail without a word."""
    with network("leafspine,2,4,1", multipath="message", seed=3, lldp_s=0.2) as (net, controller):
        src, dst = net["h1"], net["h2"]
        counters = [spines_used(net, controller, src, dst, path) for path in range(net.paths)]
        named = [controller.paths("h1", "h2")["paths"][path][1] for path in range(net.paths)]
        settings = [NicState.open(h.defaultIntf().name, pid=h.pid).settings().paths for h in net.hosts]
        before = uplinks(controller)
        with programs.serving("echo", [(src, dst)], "smt", "sw") as secrets:
            answer = programs.ask("echo", src, dst, 0, ["--size", "20000", "--count", "40", "--concurrency", "4"],
                                  "smt", "sw", secrets)
        after = uplinks(controller)
        say(paths=net.paths, settings=settings, counters=counters, named=named, rpcs=answer.numbers.get("rpcs"),
            errors=answer.numbers.get("errors"), spread=[after[s] - before[s] for s in sorted(after)],
            miscabled=miscabled(controller), silent=silent(net, controller),
            packet_ins=controller.status()["packet_ins"], refused=controller.status()["errors"])


def uplinks(controller: RyuController) -> dict[str, int]:
    """Bytes that s1 sent to each spine."""
    return {link["b"]["switch"]: link["a"]["tx_bytes"] for link in controller.counters()["links"]
            if link["a"]["switch"] == "s1"}


def spines_used(net: SmtNet, controller: RyuController, src: SmtHost, dst: SmtHost, path: int) -> list[str]:
    """Those that frames go through which name a path; all arrive, with the host's own address."""
    before = uplinks(controller)
    address = bytes.fromhex(dst.MAC().replace(":", ""))
    with ends(src, dst) as (out, into):
        for number in range(20):
            out.send(path_mac(address, path) + frame(src, dst, FRAME, number=number)[6:])
        came = arrivals(into, 20)
    assert len(came) == 20, len(came)
    assert {data[:6] for _at, data in came} == {address}
    after = uplinks(controller)
    return [spine for spine in after if after[spine] - before[spine] >= 20 * FRAME]


def miscabled(controller: RyuController) -> dict[str, Any]:
    """Two cables change places at s1: seen, and neither is used until they are back."""
    swap(["s1-eth2", "s1-eth3"], [3, 2])
    # Both ends of both.
    seconds = until(lambda: len(controller.status()["links"]["unexpected"]) == 4, "wrong cables")
    settled(controller, {"s1:2-s3:1", "s1:3-s4:1"})
    seen = controller.status()["links"]
    swap(["s1-eth2", "s1-eth3"], [2, 3])
    settled(controller, set())
    return {"unexpected": seen["unexpected"], "missing": seen["missing"], "seconds": round(seconds, 2),
            "after": controller.status()["links"]["unexpected"]}


def swap(interfaces: list[str], ports: list[int]) -> None:
    """Plug interfaces of s1 into other ports of it."""
    command = ["ovs-vsctl"]
    for interface in interfaces:
        command += ["--", "del-port", "s1", interface]
    run([*command[:1], *command[2:]])
    command = ["ovs-vsctl"]
    for interface, port in zip(interfaces, ports, strict=True):
        command += ["--", "add-port", "s1", interface, "--", "set", "interface", interface,
                    f"ofport_request={port}", "--", "set", "port", interface, f"qos=@{interface}",
                    "--", f"--id=@{interface}", "create", "qos", "type=linux-noop"]
    run([*command[:1], *command[2:]])


def silent(net: SmtNet, controller: RyuController) -> dict[str, Any]:
    """A cable that loses everything one way, though both ends have a signal; RPCs find another."""
    run(["tc", "qdisc", "replace", "dev", "s1-eth2", "root", "bfifo", "limit", "1"])
    seconds = settled(controller, {"s1:2-s3:1"})
    seen = controller.status()["links"]
    pings = [echo(net["h1"].pid, net["h2"].IP(), 500, PATIENCE_S) for _try in range(4)]
    run(["tc", "qdisc", "del", "dev", "s1-eth2", "root"])
    settled(controller, set())
    return {"missing": seen["missing"], "seconds": round(seconds, 2), "pings": pings}


def full_link() -> None:
    """A link that carries higher priorities without pause is not taken for one that is gone."""
    with network("dumbbell,1", LinkOptions(rate_mbps=20, fabric_mbps=5), lldp_s=0.1) as (net, controller):
        src, dst = net.flows[0]
        generation = controller.status()["generation"]
        begin = time.monotonic()
        sent = 0
        with ends(src, dst) as (out, _into):
            while time.monotonic() < begin + 2:
                try:
                    out.send(frame(src, dst, 1500, priority=5))
                    sent += 1
                except OSError:  # ENOBUFS: the link is full, which is the point
                    time.sleep(0.005)
        status = controller.status()
        (link,) = controller.counters()["links"]
        say(generations=status["generation"] - generation, down=status["links"]["down"], sent=sent,
            priorities={p: c["packets"] for p, c in link["a"]["priorities"].items()})


def restarts() -> None:
    """A controller that comes back to a switch which others have changed, then to one that takes no more rules."""
    with network("leafspine,2,2,1", lldp_s=0) as (net, controller):
        first = flows()
        for rule in ("table=0,priority=65000,tcp,actions=drop", "table=1,priority=7,actions=FLOOD"):
            run([*OFCTL, "add-flow", "s1", rule])
        run([*OFCTL, "mod-flows", "s1", "cookie=7/0,table=1,actions=drop"])
        run([*OFCTL, "add-group", "s1", "group_id=77,type=all,bucket=output:1"])
        spoilt = flows()
        controller.restart()
        controller.ready()
        net.reachable()
        last, errors = flows(), controller.status()["errors"]
        unknown = complaint(lambda: controller.paths("h1", "h9"))
        groups = run([*OFCTL, "dump-groups", "s1"])

        run(["ovs-vsctl", "set", "bridge", "s1", "flow_tables:0=@t", "--", "--id=@t", "create", "flow_table",
             "flow_limit=3", "overflow_policy=refuse"])
        run([*OFCTL, "del-flows", "s1"])
        controller.restart()
        said = complaint(controller.ready)
        status = controller.status()
        # It can be mended, and what was wrong stays counted.
        run(["ovs-vsctl", "clear", "bridge", "s1", "flow_tables"])
        set_link("s2-eth2", "down")
        settled(controller, {"s2:2-s3:2"})
        set_link("s2-eth2", "up")
        settled(controller, set())
        say(first=first, spoilt=spoilt, last=last, errors=errors, unknown=unknown, strange_group="=77," in groups,
            said=said, state=status["state"], refused=status["errors"], after=controller.status()["errors"],
            mended=flows())


def flows() -> list[str]:
    """Of s1, without counters and times."""
    lines = run([*OFCTL, "--no-stats", "dump-flows", "s1"]).splitlines()
    return sorted(line.strip() for line in lines if "actions=" in line)


def kernel_datapath() -> None:
    """Flows in the kernel's datapath, a link that fails and comes back, and a controller that goes and comes."""
    with network("leafspine,2,2,1", switch="ovs", lldp_s=0.5) as (net, controller):
        src, dst = net["h1"], net["h2"]
        datapaths = run(["ovs-dpctl", "dump-dps"]).split()
        heard = [echo(src.pid, dst.IP(), 1000, PATIENCE_S)]
        cached = len(run(["ovs-dpctl", "dump-flows"]).splitlines())
        settled(controller, set())
        set_link("s2-eth2", "down")
        settled(controller, {"s2:2-s3:2"})
        heard.append(echo(src.pid, dst.IP(), 1000, PATIENCE_S))
        set_link("s2-eth2", "up")
        settled(controller, set())
        controller.restart()
        controller.ready()
        heard.append(echo(src.pid, dst.IP(), 1000, PATIENCE_S))
        with programs.serving("echo", [(src, dst)], "smt", "sw") as secrets:
            answer = programs.ask("echo", src, dst, 0, ["--size", "20000", "--count", "20"], "smt", "sw", secrets)
        say(kind=net.switch_kind, datapaths=datapaths, cached=cached, heard=heard,
            rpcs=answer.numbers.get("rpcs"), errors=answer.numbers.get("errors"),
            content=answer.numbers.get("content_ok"), said=answer.said, refused=controller.status()["errors"])


def wrong_switches() -> None:
    """What is said of Linux bridges, a network without any switch, and a controller that does not start."""
    with tempfile.TemporaryDirectory() as folder:
        controllers = [RyuController(log=Path(folder, "log")) for _ in range(2)]
        said = [complaint(open_network(topo, switch="bridge", controller=controller).__enter__)
                for controller, topo in zip(controllers, ("star,2", "back2back"), strict=True)]
        broken = RyuController(log=Path(folder, "log"))
        broken.fabric = Fabric((), (), ())
        broken._fabric_file.write_text("{")
        start = complaint(broken.start)
        broken.stop()
        controllers.append(broken)
    say(bridge=said[0], without=said[1], start=start,
        left=[c.name for c in controllers if c.shell is not None or c.pids()])


PROGRAMS: dict[str, Callable[[], None]] = {
    p.__name__: p for p in (fat_tree, leaf_spine, full_link, restarts, kernel_datapath,
                                   wrong_switches)}

if __name__ == "__main__":
    go_inside()
    PROGRAMS[sys.argv[1]]()
