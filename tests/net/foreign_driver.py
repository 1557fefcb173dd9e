"""Networks whose names are taken by somebody else's things: ``python -m tests.net.foreign_driver [--ovs] CASE MN
OPTION...``, or for a case of the tables below ``[--ovs] --fork CASE MN...``: mn is a fork (mn_driver).

In a sandbox, so that "the machine" is one of our own. JSON on stdout: the exit code of ``mn``, what it said, and
what of the other's is not as it was.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from smtstack.nicshare.state import NicState
from tests.net.inside import go_inside
from tests.net.mn_driver import finish, leftovers, start
from topo import ovs
from topo.commands import run

_PATIENCE_S = 30.0
_SETTINGS = ("ipv4/{}/arp_ignore", "ipv4/{}/rp_filter", "ipv4/{}/accept_local", "ipv6/{}/disable_ipv6")
_SMT = "--host smt --link {} --switch auto --topo single,2"
_MININETS = "--switch ovs,datapath=user --controller none --topo single,2"
#: Of each kind of link, with its name on mn's command line.
LINKS = {"cable": "smartnic", "wire": "smartnic,wire=yes", "plain": "default", "tc": "tc,bw=10"}
_VETH = "ip link add {0} type veth peer name other-end; ip link set {0} up; ip addr add 10.9.9.9/24 dev {0}"
_OVS = "ovs-vsctl add-br {0} -- set bridge {0} datapath_type=netdev"

#: Name of the case: (how the other makes what is in the way, options of mn, what has to be named).
WITHOUT_OVS: dict[str, tuple[str, str, str]] = {
    **{f"bridge, {kind}": ("ip link add s1 type bridge; ip link set s1 up", _SMT.format(link), "s1")
       for kind, link in LINKS.items()},
    **{f"switch's end, {kind}": (_VETH.format("s1-eth1"), _SMT.format(link), "s1-eth1")
       for kind, link in LINKS.items()},
    **{f"second end, {kind}": (_VETH.format("s1-eth2"), _SMT.format(link), "s1-eth2")
       for kind, link in LINKS.items()},
    **{f"veth called as the switch, {kind}": (_VETH.format("s1"), _SMT.format(link), "s1")
       for kind, link in LINKS.items()},
    "wire's end": (_VETH.format("w-h1-eth0"), _SMT.format(LINKS["wire"]), "w-h1-eth0"),
    "other wire's end": (_VETH.format("w-s1-eth2"), _SMT.format(LINKS["wire"]), "w-s1-eth2"),
    "nat's end": (_VETH.format("nat0-eth0"), _SMT.format("smartnic") + " --nat", "nat0-eth0"),
    "nat's end, plain": (_VETH.format("nat0-eth0"), _SMT.format("default") + " --nat", "nat0-eth0"),
}
WITH_OVS: dict[str, tuple[str, str, str]] = {
    **{f"ovs bridge, {kind}": (_OVS.format("s1"), _SMT.format(link), "s1") for kind, link in LINKS.items()},
    "ovs bridge, mininet's switch": (_OVS.format("s1"), _MININETS, "s1"),
    "linux bridge": ("ip link add s1 type bridge", _SMT.format("smartnic"), "s1"),
    "linux bridge, mininet's switch": ("ip link add s1 type bridge", _MININETS, "s1"),
    "port in use": (f"{_OVS.format('br9')}; {_VETH.format('s1-eth1')}; ovs-vsctl add-port br9 s1-eth1",
                    _SMT.format("smartnic"), "s1-eth1"),
    "port in the database only": (f"{_OVS.format('br9')}; ovs-vsctl --no-wait add-port br9 s1-eth1",
                                  _SMT.format("smartnic"), "s1-eth1"),
    "bridge's name is a port": (f"{_OVS.format('br9')}; ovs-vsctl --no-wait add-port br9 s1",
                                _SMT.format("smartnic"), "s1"),
    "queues": (_VETH.format("q-s1-eth1"), _SMT.format("smartnic,rate_mbps=100"), "q-s1-eth1"),
    "way back from the queues": (_VETH.format("r-s1-eth2"), _SMT.format("smartnic,rate_mbps=100"), "r-s1-eth2"),
}
#: Things beside the network that it has no business with.
_BESIDE = (f"ip link add s9 type bridge; ip link set s9 up; {_VETH.format('s9-eth1')}; "
           "tc qdisc add dev s9-eth1 clsact")
_BESIDE_OVS = (f"; {_OVS.format('br9')}; ip link set other-end up; ovs-vsctl add-port br9 other-end "
               "-- set port other-end qos=@q -- --id=@q create qos type=linux-noop")


def snapshot() -> dict[str, Any]:
    """All there is in the namespace, in Open vSwitch's database and in the folder of the NICs."""
    found: dict[str, Any] = {}
    for entry in json.loads(run(["ip", "-j", "-d", "addr", "show"])):
        name = entry["ifname"]
        found[name] = {key: entry.get(key) for key in ("ifindex", "mtu", "qdisc", "address", "master")}
        # The kernel looks at carriers when it comes to it, up to a second after an interface is there.
        found[name]["flags"] = [flag for flag in entry["flags"] if flag != "NO-CARRIER"]
        found[name]["ip"] = [a["local"] for a in entry["addr_info"]]
        for setting in _SETTINGS:
            version, interface, what = setting.format(name).split("/")
            path = Path(f"/proc/sys/net/{version}/conf/{interface}/{what}")
            found[name][setting] = path.read_text() if path.exists() else None
    found["qdiscs"] = sorted(run(["tc", "qdisc", "show"]).splitlines())
    for table in ("bridge", "port", "interface", "qos") if ovs.is_running() else ():
        rows = run(["ovs-vsctl", "--bare", "--columns=_uuid" if table == "qos" else "--columns=_uuid,name", "list",
                    table])
        found[f"ovs {table}"] = sorted(rows.split("\n\n"))
    found["nics"] = {path.name: path.read_bytes().hex() for path in Path("/run/smtnet").iterdir()}
    return found


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is not as it was, in words."""
    return [f"{name}: {before.get(name)} -> {after.get(name)}" for name in sorted(before | after)
            if before.get(name) != after.get(name)]


def shell(text: str) -> None:
    """Commands as the other user gives them."""
    subprocess.run(["sh", "-ec", text], check=True, stdout=subprocess.DEVNULL)


def clear() -> None:
    """Away with the other's things."""
    if ovs.is_running():
        shell("for b in $(ovs-vsctl list-br); do ovs-vsctl del-br $b; done; ovs-vsctl --all destroy qos")
    for entry in json.loads(run(["ip", "-j", "link", "show"])):
        if entry["ifname"] != "lo" and not entry["ifname"].startswith("ovs-"):
            # The other end may have gone with the first.
            subprocess.run(["ip", "link", "del", "dev", entry["ifname"]], check=False, capture_output=True)


def mn(program: list[str], options: str, fork: bool = False) -> tuple[int, str]:
    """Exit code, and all that was said."""
    process = start([*program, *options.split(), "--test", "none"], fork)
    said = finish(process)
    assert process.returncode is not None
    return process.returncode, said


def case(program: list[str], setup: str, options: str, fork: bool) -> dict[str, Any]:
    """One network where the other was first."""
    shell(setup)
    for name in _others_nics():
        NicState.open(name).assign("tso=off")
    before = snapshot()
    code, said = mn(program, options, fork)
    result = {"code": code, "said": said, "changed": changes(before, snapshot())}
    for name in _others_nics():
        NicState.open(name).remove()
    clear()
    return result


def _others_nics() -> list[str]:
    return [entry["ifname"] for entry in json.loads(run(["ip", "-j", "link", "show", "type", "veth"]))]


def running(program: list[str], link: str) -> dict[str, Any]:
    """A second network while the first one runs."""
    with subprocess.Popen([*program, *_SMT.format(link).split()], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, bufsize=1) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        first.stdin.write("px from topo import reach\npy '*started*'\n")
        said, end = "", time.monotonic() + _PATIENCE_S
        while "*started*" not in said and time.monotonic() < end:
            said += first.stdout.readline()
        before = snapshot()
        code, second = mn(program, _SMT.format(link))
        result = {"code": code, "said": second, "changed": changes(before, snapshot()), "process": first.pid}
        rest = first.communicate('py "reached " + str(reach.echo(h1.pid, h2.IP(), 100, 20.0))\n')[0]
        result["reached"] = "reached True" in rest
        result["first"] = first.wait()
    result["left"] = leftovers()
    clear()
    return result


def main(name: str, program: list[str], fork: bool) -> dict[str, Any]:
    """What came of one case: of a table above, "running" with the kind of link, or "beside"."""
    if name == "beside":
        return case(program, _BESIDE + (_BESIDE_OVS if ovs.is_running() else ""),
                    _SMT.format("smartnic,rate_mbps=100,wire=yes"), fork)
    what, _comma, kind = name.partition(", ")
    if what == "running":
        return running(program, LINKS[kind])
    setup, options, _named = (WITH_OVS if ovs.is_running() else WITHOUT_OVS)[name]
    return case(program, setup, options, fork)


if __name__ == "__main__":
    go_inside()
    words = sys.argv[1:]
    flags = [words.pop(0) for flag in ("--ovs", "--fork") if words[0] == flag]
    with ovs.PrivateOvs() if "--ovs" in flags else contextlib.nullcontext():
        case_name, *rest = words
        print(json.dumps(main(case_name, rest, "--fork" in flags)))
