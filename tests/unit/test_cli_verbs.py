"""The smt verbs and what else of the Mininet plug-in needs no network: finding hosts and links, who calls whom."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smtstack.errors import ConfigError
from topo import cli_verbs, interpreter
from topo.echo import EchoResult, pairs_of, run_pairs, table


def node(name: str) -> Any:
    return SimpleNamespace(name=name, pid=1)


def link(one: Any, other: Any, number: int = 0, wire: Any = None) -> Any:
    return SimpleNamespace(intf1=SimpleNamespace(name=f"{one.name}-eth{number}", node=one),
                           intf2=SimpleNamespace(name=f"{other.name}-eth{number}", node=other), wire=wire)


class FakeWire:
    def __init__(self) -> None:
        self.rates: dict[str, float] = {}

    def set(self, **rates: float) -> None:
        self.rates.update(rates)


@pytest.fixture
def net() -> Any:
    h1, h2, s1, s2 = map(node, ("h1", "h2", "s1", "s2"))
    return SimpleNamespace(hosts=[h1, h2], links=[
        link(h1, s1), link(h2, s2, wire=FakeWire()), link(s1, s2, 1), link(s1, s2, 2)])


def test_links_are_found_by_their_ends_in_any_order(net: Any):
    first, second, third, fourth = net.links
    assert cli_verbs.find_link(net, "h1-s1") is cli_verbs.find_link(net, "s1-h1") is first
    assert cli_verbs.find_link(net, "h2-eth0") is second
    assert cli_verbs.find_link(net, "s1-eth1") is third
    assert cli_verbs.find_link(net, "s2-eth2") is fourth
    with pytest.raises(ConfigError, match=r"no link 's1-h2'; there are h1-s1, h2-s2, s1-s2"):
        cli_verbs.find_link(net, "s1-h2")
    with pytest.raises(ConfigError, match="2 links are s2-s1; take an interface: s1-eth1, s1-eth2"):
        cli_verbs.find_link(net, "s2-s1")


def test_loss_goes_to_the_wire_if_there_is_one(net: Any):
    assert cli_verbs.run_verb(net, "loss s2-h2 2.5%") == "h2-s2: 2.500% of all frames are lost"
    assert net.links[1].wire.rates == {"drop": 0.025}
    with pytest.raises(ConfigError, match="link s1-s2 is between switches and has no wire"):
        cli_verbs.run_verb(net, "loss s1-eth1 1%")


class FakeNic:
    """``settings``: those that somebody has set; every other test sees the real ones."""

    def __init__(self, settings: str) -> None:
        self._set = settings

    def settings(self) -> str:
        return self._set

    def set_paths(self, paths: int) -> None:
        self._set = f"{self._set} paths={paths}"

    def assign(self, *texts: str) -> None:
        self._set = " ".join((self._set, *texts))

    def restore(self, settings: str) -> None:
        self._set = settings


def test_nics_get_back_what_was_set_before(net: Any, monkeypatch: pytest.MonkeyPatch):
    """A host may have a NIC of the machine, which others have set up, too."""
    nics = {"h1": FakeNic("tso=off"), "h2": FakeNic("")}
    monkeypatch.setattr(cli_verbs, "state_of", lambda _net, host, _intf=None: nics[host])
    for host in net.hosts:
        host.intfs = {0: object()}
    cli_verbs.spread(net, 2)
    cli_verbs.loss(net, "h1-s1", 0.5)
    assert nics["h1"].settings() == "tso=off paths=2 tx.loss=0.5 rx.loss=0.5"
    assert nics["h2"].settings() == " paths=2"
    cli_verbs.release(net)
    assert [nic.settings() for nic in nics.values()] == ["tso=off", ""]
    cli_verbs.release(net)


def test_hosts_without_a_link(net: Any):
    net.hosts.append(SimpleNamespace(name="spare", pid=1, intfs={}))
    for host in net.hosts[:2]:
        host.intfs, host.IP = {0: object()}, lambda: "10.0.0.1"
    with pytest.raises(ConfigError, match="spare has no interface: it is at no link"):
        cli_verbs.run_verb(net, "nic spare")
    for line in ("echo h1 spare 64", "kv spare h2 a"):
        with pytest.raises(ConfigError, match=r"^spare is at no link$"):
            cli_verbs.run_verb(net, line)
    net.hosts[1].IP = lambda: None
    with pytest.raises(ConfigError, match=r"^h2 has no IPv4 address$"):
        cli_verbs.run_verb(net, "echo h1 h2 64")
    assert cli_verbs.with_links(net.hosts) == net.hosts[:2]


class FakeController:
    """Of h1 - s1 = s2 - h2, whose two cables are s1:1-s2:1 and s1:2-s2:2; the second is cut."""

    def paths(self, src: str, dst: str) -> dict[str, Any]:
        way = [] if src == dst else ["s1", "s2"] if src == "h1" else ["s2", "s1"]
        return {"paths": [way, way] if way else [], "flow_path": 1,
                "refusing": {"s2": "s2: add flow: FULL (tried 5 times)"} if src == "h2" else {}}

    def status(self) -> dict[str, Any]:
        return {"links": {"down": ["s1:2-s2:2"]}}

    def counters(self) -> dict[str, Any]:
        def port(switch: str, number: int, sent: int) -> dict[str, Any]:
            return {"switch": switch, "interface": f"{switch}-eth{number}", "tx_packets": sent,
                    "tx_bytes": 100 * sent, "tx_dropped": 1, "rx_packets": 7, "rx_bytes": 700, "rx_dropped": 0,
                    "priorities": {"7": {"dropped": 2}, "0": {"dropped": 4}}}

        links = [{"link": f"s1:{n}-s2:{n}", "a": port("s1", n, n), "b": port("s2", n, 10 * n)} for n in (1, 2)]
        return {"links": links, "hosts": [{"host": "h1", **port("s1", 3, 30)}]}


def test_paths_and_links_are_asked_of_the_controller(net: Any):
    with pytest.raises(ConfigError, match="no controller knows the paths here; start with --controller fanout"):
        cli_verbs.run_verb(SimpleNamespace(hosts=net.hosts, controllers=[object()]), "paths h1 h2")
    net.controllers = [object(), FakeController()]
    assert cli_verbs.run_verb(net, "paths h1 h2").splitlines() == [
        "path 0: h1 -> s1 -> s2 -> h2", "path 1: h1 -> s1 -> s2 -> h2  <- what names no path"]
    assert cli_verbs.run_verb(net, "paths h2 h1").splitlines()[2:] == [
        "not in force: s2: add flow: FULL (tried 5 times)"]
    assert cli_verbs.run_verb(net, "paths h1 h1") == "h1 cannot be reached from h1 now"
    with pytest.raises(ConfigError, match="no host 'h3'"):
        cli_verbs.run_verb(net, "paths h1 h3")
    rows = [line.split() for line in cli_verbs.run_verb(net, "links").splitlines()]
    assert rows == [
        ["from", "to", "state", "packets", "bytes", "dropped"],
        ["s1-eth1", "s2", "up", "1", "100", "7"], ["s2-eth1", "s1", "up", "10", "1000", "7"],
        ["s1-eth2", "s2", "down", "2", "200", "7"], ["s2-eth2", "s1", "down", "20", "2000", "7"],
        ["s1-eth3", "h1", "up", "30", "3000", "7"], ["h1", "s1-eth3", "up", "7", "700", "0"]]
    with pytest.raises(ConfigError, match="usage: smt links"):
        cli_verbs.run_verb(net, "links s1")


@pytest.mark.parametrize(("line", "text"), [
    ("echo h1", "usage: smt echo CLIENT SERVER SIZE"),
    ("echo h1 h2 big", "SIZE is 'big'; a number from 1"),
    ("echo h1 h2 0", "SIZE is '0'"),
    ("echo h1 h9 64", "no host 'h9'; there are h1, h2"),
    ("echo h1 h2 64 10 pigeon", "transport 'pigeon'; here there are smt, homa, tcp, tls"),
    ("kv h1 h2", "usage: smt kv CLIENT SERVER WORKLOAD"),
    ("kv h1 h2 a 10 pigeon", "transport 'pigeon'; here there are smt, homa, tcp, tls"),
    ("nic", "usage: smt nic HOST"),
    ("offload h1", "usage: smt offload HOST on"),
    ("offload h1 maybe", "usage: smt offload HOST on"),
    ("pcap h1", "usage: smt pcap HOST start"),
    ("pcap h1 begin", "usage: smt pcap HOST start"),
    ("pcap h1 start a b", "usage: smt pcap HOST start"),
    ("pcap h1 start --host", "usage: smt pcap HOST start"),
    ("loss s1-h1", "usage: smt loss LINK PER-CENT"),
    ("loss h1-s1 lots", "a percentage such as 1 or 0.5%"),
    ("stats h9", "no host 'h9'"),
    ("quit", "no verb 'quit'; there are echo, kv, nic"),
    ("echo 'h1", "No closing quotation"),
])
def test_wrong_lines_say_what_is_right(net: Any, line: str, text: str):
    with pytest.raises(ConfigError, match=text):
        cli_verbs.run_verb(net, line)


def test_help_lists_every_verb(net: Any):
    lines = cli_verbs.run_verb(net, "").splitlines()
    assert [line.split()[1] for line in lines] == list(cli_verbs.VERBS)
    assert cli_verbs.run_verb(net, "help").splitlines() == lines


def test_completion_offers_verbs_then_hosts(net: Any):
    shell = SimpleNamespace(mn=net)
    assert cli_verbs.complete_smt(shell, "lo", "smt lo", 4, 6) == ["loss"]
    assert cli_verbs.complete_smt(shell, "h", "smt nic h", 8, 9) == ["h1", "h2"]


@pytest.mark.parametrize(("number", "pairs"), [
    (2, "12"), (3, "12 13 23"), (4, "12 13 14 23 24 34"), (5, "12 23 34 45 51")])
def test_few_hosts_call_all_and_many_their_neighbour(number: int, pairs: str):
    hosts = [str(n) for n in range(1, number + 1)]
    assert ["".join(pair) for pair in pairs_of(hosts)] == pairs.split()


def test_one_host_has_nobody_to_call():
    with pytest.raises(ConfigError, match="two hosts"):
        pairs_of(["1"])


@pytest.mark.parametrize("wrong", [{"size": 0}, {"size": "x"}, {"count": -1}, {"nic": "fw"}, {"transport": "udp"}])
def test_wrong_arguments_are_refused_before_anything_starts(wrong: dict[str, Any]):
    with pytest.raises(ConfigError):
        list(run_pairs([(None, None)], **wrong))


def test_the_table_tells_failed_from_not_faithful():
    good = EchoResult("h1", "h2", "smt", "mtls", 64, 10, True, 120.4, 300.0, True, "")
    slow = EchoResult("h1", "h3", "smt", "mtls", 64, 10, True, 120.4, 300.0, False, "steal")
    bad = EchoResult("h2", "h3", "smt", "-", 64, 0, False, None, None, False, "nobody there")
    assert [line.split("  ")[-1] for line in table([good, slow, bad]).splitlines()] == [
        "result", "ok", "ok, times not faithful: steal", "FAILED: nobody there"]


def test_a_python_that_nothing_can_be_borrowed_for_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    monkeypatch.setattr(interpreter, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    interpreter.borrow_packages()
    monkeypatch.setattr(interpreter, "_NEEDED", ("psutil", "smtnet_needs_this"))
    with pytest.raises(ImportError) as e:
        interpreter.borrow_packages()
    assert f"(Python {version}) has no smtnet_needs_this, nor has {tmp_path}/.venv for that" in str(e.value)
    assert f"run this with {tmp_path}/.venv/bin/python, or in {tmp_path} 'make venv PYTHON=" in str(e.value)
    packages = tmp_path / f".venv/lib/python{version}/site-packages"
    packages.mkdir(parents=True)
    (packages / "smtnet_needs_this.py").touch()
    interpreter.borrow_packages()
    assert sys.path[-1] == str(packages), "after our own"


def test_hosts_run_the_python_of_the_venv(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """... where mn itself is run by the system's."""
    interpreter.host_python.cache_clear()
    monkeypatch.setattr(interpreter, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert interpreter.host_python() == sys.executable  # there is no venv
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()
    interpreter.host_python.cache_clear()
    assert interpreter.host_python() == str(tmp_path / ".venv/bin/python")
    monkeypatch.setattr(sys, "prefix", "/some/venv")
    interpreter.host_python.cache_clear()
    assert interpreter.host_python() == sys.executable
    interpreter.host_python.cache_clear()
