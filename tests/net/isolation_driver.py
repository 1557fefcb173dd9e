"""Emulated networks on a machine that has an address of theirs: ``python -m tests.net.isolation_driver [--ovs]``.

In a sandbox, whose namespace is the machine. A host asks by ARP for the machine's address, and sends it all kinds
of IP packets; when an echo to its neighbour has come back, whatever the kernel would do with those is done. JSON
on stdout.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mininet import nodelib
from mininet.log import lg
from mininet.net import Mininet

from smtstack.errors import SmtError
from smtstack.io.namespaces import within
from smtstack.wire.ipv4 import IPv4, address
from tests.net.inside import go_inside
from topo import devices, links, ovs, shaping, switches
from topo.commands import run
from topo.host import SmtHost
from topo.link_options import LinkOptions
from topo.links import SmtLink
from topo.reach import echo
from topo.switches import AutoSwitch

#: The machine's, which no emulated host has.
_MACHINE = "10.0.0.77"
_OUTSIDE = "192.0.2.2"
_PORT = 9999
_ETH_P_ARP, _ETH_P_IP = 0x0806, 0x0800
_UDP = 17
_BROADCAST = b"\xff" * 6
_LINKS: dict[str, dict[str, Any]] = {"cable": {}, "wire": {"wire": "yes"}, "rate": {"rate_mbps": 100.0},
                                     "both": {"rate_mbps": 100.0, "wire": "yes"}}
#: Kind of switch, kind of link.
CASES = [(kind, link) for kind in ("bridge", "ovs-user", "ovs") for link in _LINKS]


@contextmanager
def network(kind: str, options: dict[str, Any], nat: bool = False) -> Iterator[Any]:
    """h1 and h2 at s1, s1 linked twice to s2: so that a port is left unplugged."""
    net = Mininet(host=SmtHost, controller=None,
                  switch=lambda name, **params: AutoSwitch(name, kind=kind, **params),
                  link=lambda one, two, **params: SmtLink(one, two, options=LinkOptions(**options), **params))
    try:
        one, two = net.addSwitch("s1"), net.addSwitch("s2")
        for name in ("h1", "h2"):
            net.addLink(net.addHost(name), one)
        net.addLink(one, two)
        net.addLink(one, two)
        net.build()
        if nat:
            net.addNAT().configDefault()
        net.start()
        yield net
    finally:
        net.stop()


def audible() -> tuple[list[str], int]:
    """The interfaces of networks in our namespace that take part in ARP, IPv4 or IPv6; the number of all."""
    found, number = [], 0
    for entry in json.loads(run(["ip", "-j", "link", "show"])):
        name = entry["ifname"]
        if name in ("lo", "lan0", "lan1", "out0") or name.startswith(("ovs-", "nat0")):
            continue
        number += 1
        folder = Path("/proc/sys/net")
        wrong = [setting for setting, value in (("ipv4/{}/arp_ignore", 8), ("ipv4/{}/rp_filter", 1),
                                                ("ipv6/{}/disable_ipv6", 1))
                 if int((folder / setting.replace("/{}/", f"/conf/{name}/")).read_text()) != value]
        if wrong or "NOARP" not in entry["flags"]:
            found.append(f"{name} {wrong}")
    return found, number


def request(host: Any, ip: str) -> bytes:
    """An ARP question of ``host``."""
    mac = bytes.fromhex(host.MAC().replace(":", ""))
    return (_BROADCAST + mac + _ETH_P_ARP.to_bytes(2, "big") + struct.pack("!HHBBH", 1, _ETH_P_IP, 6, 4, 1) + mac
            + socket.inet_aton(host.IP()) + bytes(6) + socket.inet_aton(ip)).ljust(60, b"\0")


def datagram(host: Any, mac: bytes, ip: str, said: bytes) -> bytes:
    """A UDP packet to :data:`_PORT`, without a checksum."""
    header = IPv4(address(host.IP()), address(ip), _UDP, 28 + len(said), 1, 0).pack()
    own = bytes.fromhex(host.MAC().replace(":", ""))
    return (mac + own + _ETH_P_IP.to_bytes(2, "big") + header + struct.pack("!4H", _PORT, _PORT, 8 + len(said), 0)
            + said).ljust(60, b"\0")


def arp_answers(net: Any, ip: str) -> list[str]:
    """The MAC addresses that answer h1's question for ``ip``."""
    host = net["h1"]

    def ask() -> list[str]:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ARP)) as s:
            s.bind(("h1-eth0", _ETH_P_ARP))
            s.send(request(host, ip))
            assert echo(host.pid, net["h2"].IP(), 100, 20.0)
            s.setblocking(False)
            found = []
            with suppress(BlockingIOError):
                while True:
                    frame = s.recv(100)
                    if frame[20:22] == b"\0\2" and frame[28:32] == socket.inet_aton(ip):
                        found.append(frame[22:28].hex(":"))
            return found

    return within(host.pid, ask)


def taken(net: Any) -> list[str]:
    """Which of h1's packets the machine takes: to it by the MAC address of each interface, and to all."""
    host = net["h1"]
    frames = [datagram(host, _BROADCAST, ip, f"broadcast to {ip}".encode())
              for ip in ("255.255.255.255", "10.255.255.255", "10.0.0.255", _MACHINE)]
    frames.append(datagram(host, bytes.fromhex("01005e000001"), "224.0.0.1", b"multicast"))
    for entry in json.loads(run(["ip", "-j", "link", "show"])):
        if entry["ifname"] != "lo":
            mac = bytes.fromhex(entry["address"].replace(":", ""))
            frames.append(datagram(host, mac, _MACHINE, f"unicast to {entry['ifname']}".encode()))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as s:
            s.bind(("h1-eth0", 0))
            for frame in frames:
                s.send(frame)

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("0.0.0.0", _PORT))
        within(host.pid, send)
        assert echo(host.pid, net["h2"].IP(), 100, 20.0)
        s.setblocking(False)
        found = set()
        with suppress(BlockingIOError):
            while True:
                found.add(s.recv(100).rstrip(b"\0").decode())
    return sorted(found)


def look(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """One case."""
    with network(kind, options) as net:
        found, number = audible()
        if kind == "ovs":
            return {"audible": found, "devices": number}
        return {"audible": found, "devices": number, "answers": arp_answers(net, _MACHINE), "taken": taken(net)}


@contextmanager
def kernel_datapath() -> Iterator[None]:
    """As if the kernel had Open vSwitch's: what its database is told makes the switch's own interface, no more."""
    vsctl, has = ovs.vsctl, ovs.has_kernel_datapath

    def stand_in(*arguments: str, switch: str) -> str:
        if arguments[0] == "add-br":
            run(["ip", "link", "add", arguments[1], "type", "bridge"])
        return ""

    try:
        ovs.vsctl, ovs.has_kernel_datapath = stand_in, lambda: True
        yield
    finally:
        ovs.vsctl, ovs.has_kernel_datapath = vsctl, has
        for name in ("s1", "s2"):
            run(["ip", "link", "del", "dev", name])


@contextmanager
def kept_in() -> Iterator[None]:
    """As if nobody kept the kernel out of a network."""
    def nothing(_interface: str) -> None:
        pass

    before = devices.silence
    try:
        for module in (links, switches, shaping):
            module.silence = nothing  # type: ignore[attr-defined]
        yield
    finally:
        for module in (links, switches, shaping):
            module.silence = before  # type: ignore[attr-defined]


def behind_nat(kind: str) -> dict[str, Any]:
    """A network with NAT, and somebody outside who knows the way back."""
    with subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; cat"], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as outside:
        assert outside.stdout is not None
        outside.stdout.readline()
        pid = outside.pid
        run(["ip", "link", "add", "out0", "type", "veth", "peer", "out1", "netns", str(pid)])
        for where, name, ip in ((None, "out0", "192.0.2.1"), (pid, "out1", _OUTSIDE)):
            run(["ip", "addr", "add", f"{ip}/24", "dev", name], pid=where)
            run(["ip", "link", "set", "dev", name, "up"], pid=where)
        run(["ip", "route", "add", "10.0.0.0/8", "via", "192.0.2.1"], pid=pid)
        try:
            with network(kind, {}, nat=True) as net:
                nat = net["nat0"]
                return {"answers": arp_answers(net, _MACHINE), "nat_answers": arp_answers(net, nat.IP()),
                        "nat_mac": nat.MAC(), "to_nat": echo(net["h1"].pid, nat.IP(), 100, 20.0),
                        "outside": echo(net["h1"].pid, _OUTSIDE, 100, 20.0)}
        finally:
            run(["ip", "link", "del", "dev", "out0"])
            outside.communicate()


def second_ovs() -> dict[str, Any]:
    """Another Open vSwitch where one runs."""
    before = [Path("/run/openvswitch", f"{name}.pid").read_text() for name in ("ovs-vswitchd", "ovsdb-server")]
    error = ""
    try:
        with ovs.PrivateOvs():
            pass
    except SmtError as e:
        error = str(e)
    after = [Path("/run/openvswitch", f"{name}.pid").read_text() for name in ("ovs-vswitchd", "ovsdb-server")]
    assert ovs.is_running()
    assert ovs.vsctl("list-br", switch="") == ""
    return {"error": error, "before": before, "after": after}


def main() -> dict[str, Any]:
    """Every case that there is here."""
    lg.setLogLevel("warning")
    Mininet.inited = True
    run(["ip", "link", "add", "lan0", "type", "veth", "peer", "lan1"])
    for name in ("lan0", "lan1"):
        run(["ip", "link", "set", "dev", name, "up"])
    run(["ip", "addr", "add", f"{_MACHINE}/32", "dev", "lan0"])
    # Mininet's NAT writes into /etc/network/interfaces, which is the machine's, or not there at all.
    with tempfile.NamedTemporaryFile(dir="/run", delete=False) as own:
        nodelib.open = lambda _path, mode="r": os.fdopen(os.open(own.name, os.O_RDWR | os.O_APPEND), mode)
    kind = "ovs-user" if ovs.is_running() else "bridge"
    results = {f"{kind}, {link}": look(kind, options) for link, options in _LINKS.items()}
    with kept_in():
        results[f"{kind}, open"] = look(kind, {})
    results[f"{kind}, nat"] = behind_nat(kind)
    if ovs.is_running():
        results["second ovs"] = second_ovs()
        for link, options in _LINKS.items():
            with kernel_datapath():
                results[f"ovs, {link}"] = look("ovs", options)
    return results


if __name__ == "__main__":
    go_inside()
    if sys.argv[1:] == ["--ovs"]:
        with ovs.PrivateOvs():
            print(json.dumps(main()))
    else:
        print(json.dumps(main()))
