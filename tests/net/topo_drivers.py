"""What test_topo.py does inside a sandbox: ``python -m tests.net.topo_drivers NAME ...``. JSON on stdout."""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from smtstack.errors import SmtError
from smtstack.io.namespaces import within
from smtstack.nicshare.state import NicState
from smtstack.wire.ipv4 import IPv4, address
from tests.net.inside import go_inside
from topo import host as host_module
from topo import network, ovs
from topo.commands import run
from topo.host import SmtHost
from topo.link_options import LinkOptions
from topo.network import SmtNet, open_network
from topo.shaping import priority_counters
from topo.switches import port_names
from topo.topologies import SmtTopo

_ETH_P_IP = 0x0800
_SO_TIMESTAMPNS = 35
_SO_RCVBUFFORCE = 33
#: IP protocol nobody speaks, so that no host answers.
_PROTOCOL = 254
PATIENCE_S = 10.0


class OneSlow(SmtTopo):
    """h1 - s1 - h2, with a rate on the link to h2 only: the switch queues."""

    def build(self, rate: float = 1.0, **_opts: Any) -> None:
        one, two, switch = self.new_host(1), self.new_host(2), self.addSwitch("s1")
        self.addLink(one, switch)
        self.addLink(two, switch, rate_mbps=rate)
        self.flows = [(one, two)]


class AsInMininet(SmtTopo):
    """h1 - s1 - h2, with options as topologies for Mininet have them."""

    def build(self, options: dict[str, Any] | None = None, **_opts: Any) -> None:
        one, two, switch = self.new_host(1), self.new_host(2), self.addSwitch("s1")
        for host in (one, two):
            self.addLink(host, switch, **(options or {}))
        self.flows = [(one, two)]


def frame(src: SmtHost, dst: SmtHost, length: int, priority: int = 0, number: int = 0) -> bytes:
    """An Ethernet frame of ``length`` bytes with its number behind the IP header."""
    ip = IPv4(address(src.IP()), address(dst.IP()), _PROTOCOL, length - 14, number & 0xFFFF, priority << 5)
    macs = bytes.fromhex((dst.MAC() + src.MAC()).replace(":", ""))
    return (macs + _ETH_P_IP.to_bytes(2, "big") + ip.pack() + struct.pack("!I", number)).ljust(length, b"\0")


@contextmanager
def ends(src: SmtHost, dst: SmtHost) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket that sends frames from one host, and one that gets them at the other."""
    def sender() -> socket.socket:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.bind((src.defaultIntf().name, 0))
        s.setsockopt(socket.SOL_SOCKET, 32, 8 << 20)  # SO_SNDBUFFORCE
        return s

    def receiver() -> socket.socket:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        s.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        s.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        s.bind((dst.defaultIntf().name, _ETH_P_IP))
        return s

    with within(src.pid, sender) as out, within(dst.pid, receiver) as into:
        yield out, into


def arrivals(into: socket.socket, count: int, quiet_s: float = 1.0) -> list[tuple[int, bytes]]:
    """(nanoseconds, frame) of ours, until ``count`` have come or none comes for a while."""
    found: list[tuple[int, bytes]] = []
    into.settimeout(quiet_s)
    while len(found) < count:
        try:
            data, ancillary, _flags, _from = into.recvmsg(2048, 64)
        except TimeoutError:
            break
        if data[23] == _PROTOCOL:
            (_level, _kind, stamp), = ancillary
            seconds, nanoseconds = struct.unpack("qq", stamp)
            found.append((seconds * 10**9 + nanoseconds, data))
    return found


def duration(net: SmtNet, count: int, length: int) -> float:
    """Seconds between the first and the last of ``count`` frames of the first flow sent at once."""
    src, dst = net.flows[0]
    with ends(src, dst) as (out, into):
        for n in range(count):
            out.send(frame(src, dst, length, number=n))
        came = arrivals(into, count)
    assert len(came) == count, f"{len(came)} of {count}"
    return (came[-1][0] - came[0][0]) / 1e9


def pings(switch: str, *arguments: str) -> None:
    """Of all these topologies (and with these link options), see :func:`reach_all`."""
    options = LinkOptions().changed(dict(a.split("=", 1) for a in arguments if "=" in a))
    say(networks=[reach_all(a, switch, options) for a in arguments if "=" not in a])


def reach_all(topo: str, switch: str, options: LinkOptions) -> dict[str, Any]:
    """Every host reaches every other; TCP too, with what the kernel makes of checksums."""
    with open_network(topo, options, switch) as net:
        pairs = [(a, b) for a in net.hosts for b in net.hosts if a is not b]
        net.flows = pairs
        net.reachable()
        client, server = net.hosts[0], net.hosts[-1]
        listener = within(server.pid, lambda: socket.create_server((server.IP(), 5001)))
        to = (server.IP(), 5001)
        with listener, within(client.pid, lambda: socket.create_connection(to, PATIENCE_S)) as one:
            other, _peer = listener.accept()
            with other:
                one.sendall(bytes(50_000))
                other.settimeout(PATIENCE_S)
                octets = 0
                while octets < 50_000:
                    octets += len(other.recv(65_536))
        return {"topo": topo, "hosts": len(net.hosts), "pairs": len(pairs), "kind": net.switch_kind,
                "drops": net.drops(), "macs": [h.MAC() for h in net.hosts], "ips": [h.IP() for h in net.hosts]}


def rates(switch: str) -> None:
    """How long frames take: long ones at two rates, and long and short ones at one."""
    tries = 8  # the shortest is the one that a busy machine has not drawn out
    times = {}
    for mbps in (5, 20):
        with open_network("star,2", LinkOptions(rate_mbps=mbps), switch) as net:
            times[f"long{mbps}"] = min(duration(net, 50, 1514) for _try in range(tries))
            if mbps == 5:
                times["short5"] = min(duration(net, 200, 100) for _try in range(tries))
    say(**times)


def priorities(switch: str) -> None:
    """Ten frames of each priority, the lowest first, wait at the switch: the order they leave in."""
    with open_network(OneSlow(), switch=switch) as net:
        src, dst = net.flows[0]
        frames = [frame(src, dst, 1000, priority=n // 10, number=n) for n in range(80)]
        with ends(src, dst) as (out, into):
            for data in frames:
                out.send(data)
            came = arrivals(into, 80)
        (port,) = (i for link in net.links for i in (link.intf1, link.intf2)
                   if link.options.rate_mbps and i.node.name == "s1")
        counters = priority_counters(port.name, port.pid)
        say(order=[data[15] >> 5 for _at, data in came], packets={p: c.packets for p, c in counters.items()},
            dropped=sum(c.dropped for c in counters.values()))


def burst(fixed: str) -> None:
    """2000 frames back to back through a switch in user space, with and without its wide buffers."""
    if fixed == "no":
        def as_they_are(ports: Collection[str]) -> int:
            return 0

        ovs.widen_buffers = as_they_are
    with open_network("star,2", switch="ovs-user") as net:
        src, dst = net.flows[0]
        frames = [frame(src, dst, 1400, number=n) for n in range(2000)]
        with ends(src, dst) as (out, into):
            for data in frames:
                out.send(data)
            came = arrivals(into, len(frames))
        say(arrived=len({data for _at, data in came}), drops=ovs.port_drops(port_names(net.switches)))


def queues() -> None:
    """What a full queue loses is counted as such."""
    with open_network("star,2", LinkOptions(rate_mbps=5, buffer_bytes=20_000), "bridge") as net:
        src, dst = net.flows[0]
        lost = 0
        with ends(src, dst) as (out, into):
            for n in range(50):
                try:
                    out.send(frame(src, dst, 1514, number=n))
                except OSError:  # ENOBUFS: how the kernel tells a sender
                    lost += 1
            came = arrivals(into, 50)
        say(lost=lost, arrived=len(came), drops=net.drops())


def wire_counts() -> None:
    """A link with a wire that loses frames on purpose: they are no fault of the emulator."""
    with open_network("back2back", LinkOptions(loss=20, seed=3, nic=("tso=off", "max-contexts=4"))) as net:
        src, dst = net.flows[0]
        with ends(src, dst) as (out, into):
            for n in range(300):
                out.send(frame(src, dst, 200, number=n))
            came = arrivals(into, 300)
        settings = NicState.open("h1-eth0", pid=src.pid).settings()
        say(arrived=len(came), drops=net.drops(), tso=settings.features["tso"], contexts=settings.max_contexts)


def failures() -> None:
    """What is said of an interface that is down, a link with two MTUs, and an unplugged switch."""
    said = []
    network._PATIENCE_S = 0.5
    with open_network("star,2", LinkOptions(mtu=2000), "bridge") as net:
        for name, change, undo in (("h1", ["mtu", "1500"], ["mtu", "2000"]), ("h2", ["down"], ["up"])):
            link = ["ip", "link", "set", "dev", f"{name}-eth0"]
            run([*link, *change], pid=net[name].pid)
            said.append(complaint(net.reachable))
            if name == "h1":
                two, one = net["h2"], net["h1"]
                with ends(two, one) as (out, into):
                    out.send(frame(two, one, 2014))
                    assert arrivals(into, 1, 0.2) == []
            run([*link, *undo], pid=net[name].pid)
        net.hosts[0].set_neighbours({net.hosts[1].IP(): net.hosts[1].MAC()})
        run(["ip", "link", "set", "dev", "s1", "down"])
        said.append(complaint(net.reachable))
        drops = net.drops()
    say(said=said, drops=drops, left=run(["ip", "-br", "link"]).split("\n")[1:])


def complaint(action: Callable[[], object]) -> str:
    """The text of the error."""
    try:
        action()
    except SmtError as e:
        return str(e)
    return ""


def programs() -> None:
    """Host programs run in the host and are gone with the network, also one that ignores SIGTERM."""
    host_module._PATIENCE_S = 0.3
    with open_network("back2back") as net:
        host = net.hosts[0]
        with open(os.devnull, "w") as null:
            stubborn = host.python("tests.net.topo_drivers", "stubborn", stdout=-1, stderr=null)
            assert stubborn.stdout is not None
            line = json.loads(stubborn.stdout.readline())
    say(addresses=line["addresses"], code=stubborn.poll(), left=processes())


def stubborn() -> None:
    """Says which address it has, and stays."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    say(addresses=run(["ip", "-br", "-4", "addr"]))
    sys.stdout.flush()
    while True:
        signal.pause()


def hold(topo: str, *options: str) -> None:
    """A network that stays until it is interrupted; then says what is left."""
    changed = LinkOptions().changed(dict(o.split("=", 1) for o in options))
    with open_network(topo, changed), suppress(KeyboardInterrupt):
        # Whoever reads that may interrupt before we are back from saying it.
        say(up=True)
        sys.stdout.flush()
        time.sleep(60)
    say(left=processes(), links=run(["ip", "-br", "link"]).split("\n")[1:])
    sys.exit(7)


def processes() -> list[str]:
    """Every process in the sandbox but its first and ourselves."""
    names = []
    for pid in os.listdir("/proc"):
        if pid.isdigit() and int(pid) not in {1, os.getpid()}:
            try:
                with open(f"/proc/{pid}/cmdline") as f:
                    names.append(f.read().replace("\0", " "))
            except OSError:
                pass
    return [n for n in names if n]


def mininets(switch: str) -> None:
    """What Mininet's options do: delay, loss, bw and max_queue_size, given by addLink."""
    rtts = []
    for delay in ("10ms", "50ms"):
        with open_network(AsInMininet({"delay": delay}), switch=switch) as net:
            text = run(["ping", "-c", "5", "-i", "0.2", net.hosts[1].IP()], pid=net.hosts[0].pid)
            rtts.append(float(text.rpartition("= ")[2].partition("/")[0]))
    with open_network(AsInMininet({"loss": 1}), switch=switch) as net:
        src, dst = net.flows[0]
        before = net.drops()["impairments"]
        with ends(src, dst) as (out, into):
            for number in range(4000):
                out.send(frame(src, dst, 100, number=number))
                time.sleep(0.0001)
            arrived = len(arrivals(into, 4000))
        lost = net.drops()["impairments"] - before
    times = {}
    for mbps in (1, 4):
        with open_network(AsInMininet({"bw": mbps, "use_htb": True}), switch=switch) as net:
            times[mbps] = min(duration(net, 30, 1514) for _try in range(3))
    with open_network(AsInMininet({"bw": 1, "max_queue_size": 10}), switch=switch) as net:
        src, dst = net.flows[0]
        with ends(src, dst) as (out, into):
            burst = [frame(src, dst, 1514, number=number) for number in range(100)]
            begun = time.monotonic()
            for each in burst:
                with suppress(OSError):  # ENOBUFS: the queue at the host's own end is full
                    out.send(each)
            took = time.monotonic() - begun
            held = len(arrivals(into, 100))
        full = net.drops()["queues"]
    say(rtts=rtts, arrived=arrived, lost=lost, one=times[1], four=times[4], held=held, full=full, burst_s=took)


def impair(kind: str, count: str) -> None:
    """One way over a link that loses, duplicates, corrupts or delays: what arrives, of ``count`` frames each."""
    found: dict[str, Any] = {}
    for name in ("loss", "duplicate", "corrupt"):
        with open_network("back2back", LinkOptions(impair=kind).changed({name: 10})) as net:
            before = net.drops()["impairments"]
            src, dst = net.flows[0]
            sent = [frame(src, dst, 1000, number=number) for number in range(int(count))]
            with ends(src, dst) as (out, into):
                for data in sent:
                    out.send(data)
                    time.sleep(0.0001)
                came = [data for _when, data in arrivals(into, 2 * int(count))]
            whole = set(sent)
            found[name] = {"came": len(came), "changed": sum(data not in whole for data in came),
                           "distinct": len({data for data in came if data in whole}),
                           "one_bit": all(min(_bits(data, other) for other in sent) == 1
                                          for data in [data for data in came if data not in whole][:10]),
                           "counted": net.drops()["impairments"] - before}
    with open_network("back2back", LinkOptions(impair=kind).changed({"delay": "20ms", "jitter": "5ms"})) as net:
        src, dst = net.flows[0]
        text = run(["ping", "-c", "20", "-i", "0.05", dst.IP()], pid=src.pid)
        found["rtts"] = [float(line.rpartition("time=")[2].partition(" ")[0])
                         for line in text.splitlines() if "time=" in line]
        found["wire"] = [link.wire is not None for link in net.links]
    say(**found)


def _bits(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "big") ^ int.from_bytes(other, "big")).bit_count()


def fail() -> None:
    """Ends with a one-line error, as the smtnet command does."""
    sys.exit(complaint(lambda: network.open_network("star,2", switch="ovs").__enter__()))


def say(**numbers: Any) -> None:
    """The result."""
    print(json.dumps(numbers))


PROGRAMS: dict[str, Callable[..., None]] = {
    p.__name__: p for p in (pings, rates, priorities, burst, queues, wire_counts, failures, programs, stubborn,
                            mininets, impair, hold, fail)}

if __name__ == "__main__":
    go_inside()
    PROGRAMS[sys.argv[1]](*sys.argv[2:])
