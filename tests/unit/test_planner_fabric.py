"""The fabric: what is no network is said so, and files and topologies give the same."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given

from controllers.fabric import Fabric, Link, Switch, fabric_of_topo
from smtstack.errors import ConfigError
from smtstack.wire.ethernet import MAX_PATHS, parse_mac, path_mac, path_of
from tests.fabrics import build, fabrics, real
from topo.topologies import make_topo

GOOD = build([(1, 2)], [1, 2])


@pytest.mark.parametrize(("change", "words"), [
    ({"switches": GOOD.switches[:1]}, "is at switch s2, which is not there"),
    ({"switches": (*GOOD.switches, Switch("s3", 101))}, "two switches have the dpid 101"),
    ({"switches": (Switch("s1", 0), GOOD.switches[1])}, "switch s1 has the dpid 0"),
    ({"switches": (*GOOD.switches, Switch("h1", 9))}, "two nodes have the name h1"),
    ({"links": (Link("s1", 2, "s3", 1),)}, "link s1:2-s3:1 ends at s3, which is no switch here"),
    ({"links": (Link("s1", 2, "s1", 3),)}, "leads from a switch to itself"),
    ({"links": (Link("s1", 1, "s2", 2),)}, "two cables are in the port 1 of switch s1"),
    ({"links": (Link("s1", 0, "s2", 2),)}, "switch s1 has a port 0"),
    ({"links": (Link("s1", 2, "s2", 2, rate_mbps=0),)}, "the link s1:2-s2:2 has a rate of 0"),
])
def test_a_fabric_that_cannot_be(change, words):
    with pytest.raises(ConfigError) as e:
        dataclasses.replace(GOOD, **change)
    assert words in str(e.value)


@pytest.mark.parametrize(("change", "words"), [
    ({"mac": "02:00:00:00:00:01"}, "two hosts have the MAC address 02:00:00:00:00:01"),
    ({"mac": "02:07:00:00:00:01"}, "differ in their second byte only"),
    ({"mac": "03:00:00:00:00:02"}, "host h2 has the MAC address 03:00:00:00:00:02"),
    ({"mac": "02:00:00:00:00:0A"}, "in lower case"),
    ({"mac": "02:00"}, "'02:00' is no MAC address"),
    ({"ip": "10.0.0.1"}, "two hosts have the IP address 10.0.0.1"),
    ({"ip": "10.0.0.256"}, "host h2: "),
])
def test_a_host_that_cannot_be(change, words):
    with pytest.raises(ConfigError) as e:
        dataclasses.replace(GOOD, hosts=(GOOD.hosts[0], dataclasses.replace(GOOD.hosts[1], **change)))
    assert words in str(e.value)


@given(fabrics())
def test_a_fabric_in_a_file(fabric):
    assert Fabric.from_json(fabric.to_json()) == fabric


@pytest.mark.parametrize(("text", "words"), [
    ("{", "a fabric is JSON"),
    ("[]", "a fabric has switches, hosts and links"),
    ('{"switches": [], "hosts": []}', "a fabric has switches, hosts and links"),
    ('{"switches": {}, "hosts": [], "links": []}', "a fabric's switches are a list"),
    ('{"switches": [7], "hosts": [], "links": []}', "one of a fabric's switches is 7; it has name, dpid"),
    ('{"switches": [{"name": "s1"}], "hosts": [], "links": []}', "lacks dpid"),
    ('{"switches": [{"name": "s1", "dpid": "1"}], "hosts": [], "links": []}', 'dpid "1", which makes no sense'),
    ('{"switches": [{"name": "s1", "dpid": true}], "hosts": [], "links": []}', "dpid true"),
    ('{"switches": [{"name": "s1", "port": 1}], "hosts": [], "links": []}', "it has name, dpid"),
])
def test_a_file_that_is_no_fabric(text, words):
    with pytest.raises(ConfigError) as e:
        Fabric.from_json(text)
    assert words in str(e.value)
    assert "\n" not in str(e.value)


def test_a_fabric_of_a_topology():
    fabric = real("incast,2")
    assert [(s.name, s.dpid) for s in fabric.switches] == [("s1", 1), ("s2", 2)]
    assert [(h.name, h.mac, h.ip, h.switch, h.port) for h in fabric.hosts][1:] == [
        ("h2", "02:00:00:00:00:02", "10.0.0.2", "s2", 2), ("h3", "02:00:00:00:00:03", "10.0.0.3", "s2", 3)]
    assert fabric.by_dpid(2) == fabric.switch("s2")
    assert fabric.by_dpid(3) is None
    assert [str(k) for k in fabric.links_between("s2", "s1")] == ["s1:2-s2:1"]
    assert fabric.link_at("s1", 1) is None


def test_topologies_a_controller_has_no_part_in():
    topo = make_topo("star,2")
    topo.addLink("h1", "s1")
    with pytest.raises(ConfigError, match="host h1 has several interfaces"):
        fabric_of_topo(topo)
    topo = make_topo("star,2")
    topo.addLink("h1", "h2")
    with pytest.raises(ConfigError, match="hosts h1 and h2 are linked to each other"):
        fabric_of_topo(topo)
    topo = make_topo("star,2")
    topo.new_host(3)
    with pytest.raises(ConfigError, match="host h3 is at no switch"):
        fabric_of_topo(topo)
    topo = make_topo("star,2")
    topo.addSwitch("core")
    with pytest.raises(ConfigError, match="switch core: its name ends in no number"):
        fabric_of_topo(topo)
    with pytest.raises(ConfigError, match="use one with switches"):
        real("back2back")
    topo = make_topo("star,2")
    topo.addLink(topo.addHost("h3"), "s1")
    with pytest.raises(ConfigError, match="host h3 has no MAC address"):
        fabric_of_topo(topo)


def test_the_address_of_a_path():
    mac = parse_mac("02:0a:00:00:00:07")
    found = [path_mac(mac, path) for path in range(MAX_PATHS)]
    assert len({mac, *found}) == 256
    assert [path_of(mac, address) for address in found] == list(range(MAX_PATHS))
    assert path_of(mac, mac) is None
    assert path_of(mac, parse_mac("02:0b:00:00:00:08")) is None
    assert not any(address[0] & 1 for address in found)
