"""The doctor's judgement on made-up machines: a good one, and that one with one thing missing at a time."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import Any

import pytest

from smtstack.errors import ConfigError, Unsupported
from topo import probes
from topo.doctor import Check, checks
from topo.needs import NEEDS
from topo.probes import PACKAGES, Facts
from workloads.commands import doctor

TRIED = ("raw", "buffer", "bridge", "htb", "tbf", "netem", "u32", "tun", "ktls", "overlay", "nic_tap", "xdp",
         "uring")
GOOD = Facts(
    root=True, kernel="6.1.0", python=(3, 11, 2), cores=2, missing=(), modules=True, namespaces="", mnexec="",
    tried=dict.fromkeys(TRIED, ""), ovs="3.1.0", ovs_kernel=True, firewalled=(), mininet="2.3.0", ryu="",
    pidfd_getfd="",
    openssl="OpenSSL 3.0", tls13=True, seal_us=0.7, encrypt_into=True, interpreted="", psi=True, steal=0.0,
    matplotlib=True, rich=True, openssl_binding=True, dnspython=True, knot=True, tshark=True, free_mb=5000,
    results_writable=True, run_writable=True)
#: What a shell can run as it stands, or what to do where no command helps.
COMMANDS = ("sudo ", "make ", "smtnet ", "/", "rm ", "cd ")


def failing(*keys: str) -> dict[str, Any]:
    """Facts: these were tried in vain."""
    return {"tried": {**GOOD.tried, **dict.fromkeys(keys, "refused")}}


def judge(**changes: Any) -> dict[str, Check]:
    return {check.name: check for check in checks(replace(GOOD, **changes))}


def test_a_good_machine():
    found = judge()
    assert {check.status for check in found.values()} == {"ok"}
    assert not [check for check in found.values() if check.fix]
    assert len(found) == len(checks(GOOD))  # every name once
    assert set(NEEDS) <= found.keys()  # pytest's marks have the same names
    assert {found[name].detail for name in ("kernel_ovs", "netem", "ktls")} == {"works"}


@pytest.mark.parametrize(("name", "status", "changes", "fix"), [
    ("root", "fail", {"root": False}, "sudo .venv/bin/smtnet doctor"),
    ("python", "fail", {"python": (3, 9, 9)}, "make venv PYTHON="),
    ("kernel", "warn", {"cores": 1}, "second core"),
    ("namespaces", "fail", {"namespaces": "unshare failed", "tried": {}}, "container"),
    ("raw sockets", "fail", failing("raw"), "CAP_NET_RAW"),
    ("/run", "warn", {"run_writable": False}, "sudo mount"),
    ("programs", "fail", {"missing": ("tc",)}, "apt-get install --no-install-recommends iproute2"),
    ("programs", "fail", {"missing": ("ping", "ethtool")}, "ethtool iputils-ping"),
    ("mnexec", "fail", {"missing": ("mnexec",)}, "apt-get install --no-install-recommends mininet"),
    ("mnexec", "fail", {"mnexec": "permission denied"}, "mininet"),
    ("mininet", "fail", {"mininet": None}, "make venv"),
    ("open vswitch", "warn", {"ovs": None, "missing": PACKAGES["openvswitch-switch"]}, "openvswitch-switch"),
    ("open vswitch", "fail", {"ovs": None, **failing("bridge")}, "openvswitch-switch"),
    ("linux bridge", "warn", failing("bridge"), "sudo modprobe -a bridge"),
    ("bridge firewall", "warn", {"ovs": None, "firewalled": ("net.bridge.one", "net.bridge.two")},
     "sudo sysctl -w net.bridge.one=0 net.bridge.two=0"),
    ("tun", "warn", {"ovs_kernel": False, **failing("tun")}, "sudo modprobe -a tun"),
    ("pidfd_getfd", "warn", {"pidfd_getfd": "Function not implemented"}, "sudo sysctl -w net.core.rmem_default"),
    ("tc htb", "warn", failing("htb"), "sudo modprobe -a sch_htb"),
    ("tc tbf", "warn", failing("tbf"), "sudo modprobe -a sch_tbf"),
    ("tc u32", "warn", failing("u32"), "sudo modprobe -a cls_u32"),
    ("receive buffers", "warn", failing("buffer"), "sudo sysctl -w net.core.rmem_max"),
    ("tls 1.3", "fail", {"tls13": False}, "apt-get install"),
    ("overlay tcp", "warn", failing("overlay"), "sudo modprobe -a nf_tables"),
    ("nic hosting", "warn", failing("nic_tap"), "sudo modprobe -a tun nf_tables"),
    ("af_xdp", "warn", failing("xdp"), "another kernel"),
    ("io_uring", "warn", failing("uring"), "another kernel"),
    ("ktls", "warn", failing("ktls"), "sudo modprobe -a tls"),
    ("ktls", "warn", {"modules": False, **failing("ktls")}, "another kernel"),
    ("pyopenssl", "fail", {"openssl_binding": False}, "-m pip install pyOpenSSL"),
    ("tickets", "warn", {"dnspython": False}, "-m pip install dnspython"),
    ("tickets", "warn", {"knot": False}, "apt-get install --no-install-recommends knot"),
    ("aes-gcm", "warn", {"seal_us": 40.0}, "AES instructions"),
    ("aes-gcm", "warn", {"encrypt_into": False}, "-m pip install -U cryptography"),
    ("ryu", "warn", {"ryu": "ImportError: ALREADY_HANDLED"}, "make venv"),
    ("matplotlib", "warn", {"matplotlib": False}, "-m pip install matplotlib"),
    ("rich", "warn", {"rich": False}, "-m pip install rich"),
    ("pressure", "warn", {"psi": False}, "psi=1"),
    ("steal", "warn", {"steal": 0.3}, "smtnet doctor"),
    ("results", "fail", {"results_writable": False}, "cd "),
    ("results", "fail", {"free_mb": 10}, "rm -r"),
    ("results", "warn", {"free_mb": 100}, "rm -r"),
])
def test_what_is_missing_is_named_with_its_fix(name, status, changes, fix):
    check = judge(**changes)[name]
    assert check.status == status
    assert check.detail
    assert fix in check.fix
    unmendable = ("second core", "container", "CAP_NET_RAW", "AES instructions", "psi=1", "another kernel")
    assert check.fix.startswith(COMMANDS) or fix in unmendable


def test_one_thing_missing_leaves_the_rest_good():
    for changes in ({"psi": False}, failing("ktls"), {"missing": ("tc",)}, {"mininet": None}, {"ryu": "no"}):
        bad = [check.name for check in judge(**changes).values() if check.status != "ok"]
        assert len(bad) == 1, bad


def test_the_firewall_is_of_interest_where_bridges_are():
    settings = {"firewalled": ("net.bridge.bridge-nf-call-iptables",)}
    assert "bridge firewall" in judge(**settings, ovs=None)
    assert "bridge firewall" not in judge(**settings)
    assert "bridge firewall" not in judge(**settings, ovs=None, **failing("bridge"))
    assert "bridge firewall" not in judge(ovs=None)


@pytest.mark.parametrize("changes", [failing("netem"), {"ovs_kernel": False}, {"tshark": False},
                                     {"interpreted": "SMTNET_COMPILED=no"}])
def test_what_is_done_another_way_as_well_is_no_warning(changes):
    assert {check.status for check in judge(**changes).values()} == {"ok"}
    assert "wire is used" in judge(**failing("netem"))["netem"].detail


def test_without_root_nothing_is_said_of_what_was_not_tried():
    found = judge(root=False, namespaces="not tried: needs root", tried={}, run_writable=False,
                  pidfd_getfd="Operation not permitted")
    assert [check.name for check in found.values() if check.status == "fail"] == ["root"]
    assert {"raw sockets", "tc htb", "ktls", "/run", "pidfd_getfd", "namespaces"}.isdisjoint(found)


def _doctor(monkeypatch, facts: Facts, *argv: str) -> int:
    monkeypatch.setattr(doctor, "gather", lambda: facts)
    parser = argparse.ArgumentParser()
    doctor.add_parser(parser.add_subparsers())
    args = parser.parse_args(["doctor", *argv])
    code: int = args.run(args)
    return code


@pytest.mark.parametrize(("changes", "code"), [({}, 0), (failing("ktls"), 0), ({"root": False}, 3)])
def test_exit_code_is_for_what_is_needed(monkeypatch, capsys, changes, code):
    facts = replace(GOOD, **changes)
    assert _doctor(monkeypatch, facts, "--json") == code
    out = json.loads(capsys.readouterr().out)
    assert out["ok"] is (code == 0)
    assert len(out["checks"]) == len(checks(facts))
    assert _doctor(monkeypatch, facts) == code
    text = capsys.readouterr().out
    assert ("something that is needed is missing" in text) is (code == 3)
    assert text.count("fix: ") == sum(bool(check.fix) for check in checks(facts))


def test_facts_of_this_machine_without_root(monkeypatch, tmp_path):
    monkeypatch.setattr("topo.probes.os.geteuid", lambda: 1000)
    facts = probes.gather(tmp_path / "not" / "yet" / "there")
    assert (facts.root, facts.tried) == (False, {})
    assert facts.results_writable
    assert facts.free_mb > 0
    assert facts.tls13
    assert 0 < facts.seal_us < 1e6
    assert [check.name for check in checks(facts) if check.name == "root"] == ["root"]


@pytest.mark.parametrize("error", [Unsupported("io_uring: Function not implemented"), ConfigError("no"),
                                   OSError(38, "Function not implemented"), OSError("ip link: no")])
def test_whatever_a_probe_meets_is_one_answer_and_the_others_are_there(monkeypatch, error):
    """As in a container that forbids io_uring: the namespaces are not to blame."""
    def fails(*_args: object) -> None:
        raise error
    tried = [name for name in vars(probes) if name.startswith(("_try_", "try_")) and name != "_try_inside"]
    assert {"_try_uring", "_try_xdp", "_try_overlay", "try_ktls"} <= set(tried)
    for name in tried:
        monkeypatch.setattr(probes, name, fails)
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(probes, "_run", lambda *argv: ran.append(argv) if len(ran) < 2 else fails())
    told = json.loads(json.dumps(probes._try_inside()))
    assert {"uring", "xdp", "netem", "nic_tap"} <= told.keys()
    assert all(told.values())
