"""Options of links: Mininet's names, meaning and units, in all three ways of giving them."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from typing import Any

import pytest
from mininet.link import Intf, TCIntf
from mininet.node import Switch
from mininet.util import customClass

from smtstack.errors import ConfigError
from smtstack.nic.impairments import ImpairmentRates, Impairments
from topo.link_options import NAMES, OF_THE_LINK, LinkOptions
from topo.links import SmartNicIntf, SmtLink
from topo.shaping import Queue
from workloads.commands import main as cli
from workloads.options import declare
from workloads.options.network import Network

#: Every option, a value, and what comes of it: fields of LinkOptions, or a part of the error.
WORK: dict[str, tuple[str, dict[str, Any]]] = {
    "bw": ("0.5", {"rate_mbps": 0.5}), "rate_mbps": ("10Gbit", {"rate_mbps": 10_000.0}),
    "fabric_mbps": ("20", {"fabric_mbps": 20.0}), "speedup": ("100", {"speedup": 100.0}),
    "delay": ("5ms", {"delay_us": 5000.0}), "delay_us": ("7", {"delay_us": 7.0}),
    "jitter": ("300usec", {"jitter_us": 300.0}), "jitter_us": ("1.5ms", {"jitter_us": 1500.0}),
    "loss": ("1", {"loss": 1.0}), "duplicate": ("2%", {"duplicate": 2.0}), "reorder": ("0.5", {"reorder": 0.5}),
    "corrupt": ("3", {"corrupt": 3.0}), "max_queue_size": ("10", {"max_queue_size": 10}),
    "buffer_bytes": ("64KB", {"buffer_bytes": 64_000}), "mtu": ("9000", {"mtu": 9000}), "seed": ("9", {"seed": 9}),
    "wire": ("yes", {"wire": "yes"}), "tso": ("off", {"tso": "off"}), "txo": ("False", {"tso": "off"}),
    "hosting": ("tap", {"hosting": "tap"}),
    "impair": ("netem", {"impair": "netem"}),
    "nic": ("tso:off+queues:2", {"nic": ("tso=off", "queues=2")}), "use_htb": ("True", {}), "rxo": ("True", {}),
    "gro": ("False", {}), "disable_gro": ("True", {}), "use_hfsc": ("False", {}), "use_tbf": ("False", {}),
    "latency_ms": ("None", {}),
    "enable_ecn": ("False", {"enable_ecn": False}), "enable_red": ("False", {"enable_red": False}),
}
REFUSED: dict[str, str] = {
    "bw": "10ms", "rate_mbps": "0", "fabric_mbps": "-1", "speedup": "fast", "delay": "5parsec", "delay_us": "-1",
    "jitter": "1Gbit", "jitter_us": "x", "loss": "101", "duplicate": "-1%", "reorder": "1ms", "corrupt": "most",
    "max_queue_size": "0", "buffer_bytes": "1ms", "mtu": "64KB", "seed": "0.5", "wire": "maybe", "tso": "True",
    "txo": "maybe", "hosting": "outline",
    "impair": "snow",
    "nic": "warp:on", "use_htb": "perhaps", "rxo": "False", "gro": "True", "disable_gro": "False",
    "use_hfsc": "True", "use_tbf": "True", "latency_ms": "10", "enable_ecn": "True", "enable_red": "True",
}
DEFAULTS = LinkOptions()


class Node:
    """As much of one of Mininet's nodes as a link looks at, by Mininet's names."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.ports: dict[object, int] = {}
        self.newPort = lambda: len(self.ports)
        self.inNamespace = False

    def __getattr__(self, name: str) -> object:
        if name == "addIntf":
            return lambda intf, port, **_more: self.ports.update({intf: port})
        raise AttributeError(name)


class SwitchNode(Node, Switch):
    """One that counts as a switch."""

    def addIntf(self, intf: object, port: int, **_more: object) -> None:  # noqa: N802
        self.ports[intf] = port


@pytest.fixture(autouse=True)
def _nothing_is_made(monkeypatch):
    monkeypatch.setattr(SmtLink, "makeIntfPair", lambda *_a, **_k: None)
    monkeypatch.setattr(SmtLink, "_configure", lambda _self: None)
    monkeypatch.setattr(SmartNicIntf, "config", lambda *_a, **_k: {})


def by_add_link(name: str, text: str) -> LinkOptions:
    given: dict[str, Any] = {name: text}
    return SmtLink(Node("h1"), Node("h2"), **given).options


def by_mn(name: str, text: str) -> LinkOptions:
    """As ``mn --link smartnic,NAME=VALUE``: Mininet makes a class of it, and numbers of what looks like one."""
    return customClass({"smartnic": SmtLink}, f"smartnic,{name}={text}")(Node("h1"), Node("h2")).options


def by_run(name: str, text: str) -> LinkOptions:
    return by_words("echo", "--link", f"{name}={text}")


def by_words(experiment: str, *words: str) -> LinkOptions:
    """As ``smtnet run``."""
    args = cli.build_parser("run").parse_args(["run", experiment, *words])
    found = declare.read(Network, args)
    assert found.rate_mbps == args.rate_mbps
    return found.links(args.seed)


WAYS = (by_add_link, by_mn, by_run)


def test_every_option_is_tried():
    mininets = set(inspect.signature(TCIntf.config).parameters) - {"self", "params"}
    assert WORK.keys() == REFUSED.keys() == set(NAMES)
    assert mininets <= set(NAMES)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", WORK)
def test_an_option_means_the_same_however_it_is_given(name, way):
    text, wanted = WORK[name]
    assert way(name, text) == replace(DEFAULTS, **wanted)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_done_is_refused_by_name(name, way, capsys):
    with pytest.raises((ConfigError, SystemExit)) as e:
        way(name, REFUSED[name])
    said = str(e.value) if isinstance(e.value, ConfigError) else capsys.readouterr().err
    if name == "nic":
        assert "a NIC has no setting 'warp'" in said
    else:
        assert f"link option {name}" in said
    assert "\n" not in said.strip()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("wrong", "right"), [
    ("dleay", "delay"), ("max_queue", "max_queue_size"), ("lost", "loss"), ("bandwith", "bw"),
    ("latency", "delay"), ("use_hbt", "use_htb"), ("colour", None)])
def test_an_unknown_name_is_refused_with_the_nearest(wrong, right, way, capsys):
    with pytest.raises((ConfigError, SystemExit)) as e:
        way(wrong, "1")
    said = str(e.value) if isinstance(e.value, ConfigError) else capsys.readouterr().err
    assert f"a link has no option {wrong!r}" in said
    assert right is None or f"did you mean {right}?" in said


def test_numbers_and_none_as_topologies_have_them():
    options = LinkOptions().changed({"bw": 10, "delay": "50ms", "jitter": None, "loss": 1, "max_queue_size": 1000,
                                     "use_htb": True, "use_tbf": False, "latency_ms": None})
    assert (options.rate_mbps, options.delay_us) == (10.0, 50_000.0)
    assert (options.loss, options.max_queue_size) == (1.0, 1000)
    assert options.rates() == ImpairmentRates(drop=0.01, delay_ns=50_000_000)
    assert LinkOptions().changed({"delay": 5}).delay_us == 5  # as for tc
    assert replace(options, rate_mbps=5.0).changed({"bw": None}).rate_mbps is None
    with pytest.raises(ConfigError, match="bw: True is not a rate"):
        LinkOptions().changed({"bw": True})
    with pytest.raises(ConfigError, match="enable_ecn: a link without a rate has no queue: give bw"):
        LinkOptions().changed({"enable_ecn": True})
    assert LinkOptions().changed({"enable_ecn": True, "bw": 1}).queue() == Queue(100_000, ecn=True)


def test_the_options_of_run_are_those_of_a_link():
    words = ["--bw", "0.5", "--delay", "5ms", "--jitter", "1ms", "--loss", "1", "--duplicate", "2%",
             "--reorder", "3", "--corrupt", "4", "--max-queue-size", "10", "--buffer", "20KB", "--mtu", "2000",
             "--seed", "7", "--fabric-mbps", "1G"]
    assert by_words("echo", *words) == LinkOptions().changed({
        "bw": 0.5, "delay": "5ms", "jitter": "1ms", "loss": 1, "duplicate": 2, "reorder": 3, "corrupt": 4,
        "max_queue_size": 10, "buffer_bytes": 20_000, "mtu": 2000, "seed": 7, "fabric_mbps": 1000})


@pytest.mark.parametrize("first", [["--link", "bw=5"], ["--bw", "5"], ["--rate-mbps", "5"]])
@pytest.mark.parametrize("last", [["--link", "smartnic,rate_mbps=7"], ["--bw", "7M"], ["--rate-mbps", "7"]])
def test_the_last_one_counts(first, last):
    assert by_words("incast", *first, *last).rate_mbps == 7


def test_the_ends_of_a_link_may_differ():
    link = SmtLink(Node("h1"), Node("h2"), loss=1, params1={"bw": 5, "ip": "10.0.0.9/8"},
                   params2={"delay": "5ms", "loss": 50})
    assert link.ends[0] == LinkOptions(loss=1.0, rate_mbps=5.0)
    # What addLink says of both ends goes before what it says of one: Mininet does so.
    assert link.ends[1] == LinkOptions(loss=1.0, delay_us=5000.0)
    assert [intf.options for intf in (link.intf1, link.intf2)] == list(link.ends)
    assert link.intf1.params["ip"] == "10.0.0.9/8"
    for name in OF_THE_LINK:
        with pytest.raises(ConfigError, match=f"{name} is one of the whole link"):
            SmtLink(Node("h1"), Node("h2"), params1={name: WORK[name][0]})
    with pytest.raises(ConfigError, match="no option 'delya'; did you mean delay"):
        SmtLink(Node("h1"), Node("h2"), params2={"delya": "5ms"})


def test_speedup_is_the_rate_of_a_switchs_end():
    link = SmtLink(Node("h1"), SwitchNode("s1"), bw=10, speedup=100)
    assert [end.rate_mbps for end in link.ends] == [10, 100]
    assert [end.rate_mbps for end in SmtLink(Node("h1"), SwitchNode("s1"), speedup=100).ends] == [None, None]


def test_what_else_add_link_takes():
    link = SmtLink(Node("h1"), Node("h2"), port1=3, port2=4, intfName1="left", intfName2="right",
                   addr1="02:00:00:00:00:01", addr2="02:00:00:00:00:02", fast=False, intf=Intf, cls1=TCIntf, bw=1)
    assert (link.intf1.name, link.intf2.name, link.intf1.mac) == ("left", "right", "02:00:00:00:00:01")
    assert (link.intf1.node.ports[link.intf1], link.intf2.node.ports[link.intf2]) == (3, 4)

    class Own(SmartNicIntf):
        pass

    assert type(SmtLink(Node("h1"), Node("h2"), cls2=Own).intf2) is Own
    with pytest.raises(ConfigError, match="cls1 is Node: the ends of a smartnic link are SmartNicIntf"):
        SmtLink(Node("h1"), Node("h2"), cls1=Node)


def test_jitter_is_netems():
    """The delay is up to it longer and shorter, and never below 0."""
    faults = Impairments(LinkOptions(delay_us=2.0, jitter_us=3.0).rates())
    delays = {at for _n in range(20_000) for at, _frame in faults.apply(b"frame", 0)}
    assert min(delays) == 0
    assert max(delays) == 5000
    assert len(delays) > 3000


def test_fields_have_one_name():
    assert {f.name for f in fields(LinkOptions)} <= set(NAMES)


def test_queues_are_in_packets_and_early():
    assert Queue(5000).lines("e", 3, "1bit") == ["qdisc add dev e parent 1:13 handle 23: bfifo limit 5000"]
    assert Queue(5000, 7).lines("e", 3, "1bit") == ["qdisc add dev e parent 1:13 handle 23: pfifo limit 7"]
    red, fifo = Queue(5000, 7, ecn=True).lines("e", 3, "1bit")
    assert "parent 1:13 handle 23: red" in red
    assert red.endswith("probability 1 ecn")
    assert fifo == "qdisc add dev e parent 23:1 handle 33: pfifo limit 7"
    (early,) = Queue(5000, red=True).lines("e", 3, "1bit")
    assert early.endswith("probability 1")
