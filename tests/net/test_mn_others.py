"""What is somebody else's on the machine stays as it is, and nothing of the machine's gets into a network."""

from __future__ import annotations

import json
import os
import shutil
import sys
from functools import cache
from typing import Any

import pytest

from tests.net import foreign_driver, isolation_driver, starting
from tests.net.netns import PATIENCE
from tests.net.test_mn import OWN_MN, PLUGIN, SYSTEM_MN, environment
from topo import ovs

pytestmark = pytest.mark.root


@cache
def results(driver: str, *arguments: str) -> dict[str, Any]:
    """What a driver prints; it runs once."""
    if shutil.which("mnexec") is None:
        pytest.skip("mnexec is not installed (apt-get install mininet)")
    if "--ovs" in arguments and not ovs.is_installed():
        pytest.skip("Open vSwitch is not installed (apt-get install openvswitch-switch)")
    done = starting.run([sys.executable, "-m", f"tests.net.{driver}", *arguments], timeout=16 * PATIENCE,
                        environment=environment())
    assert done.stdout.startswith("{"), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def foreign(options: tuple[str, ...], name: str, *, fork: bool = False) -> dict[str, Any]:
    """Of one case, with Debian's mn; ``fork``: with ours, by a fork, where there are many of them."""
    program = OWN_MN if fork else SYSTEM_MN
    if not os.path.exists(program):
        pytest.skip("mn is not installed (apt-get install mininet)")
    return results("foreign_driver", *options, *(["--fork"] if fork else []), name, program, *PLUGIN)


@pytest.mark.parametrize(("options", "name"), [
    *(((), name) for name in foreign_driver.WITHOUT_OVS),
    *((("--ovs",), name) for name in foreign_driver.WITH_OVS)])
def test_what_is_in_the_way_is_named_and_stays(options: tuple[str, ...], name: str):
    cases = foreign_driver.WITH_OVS if options else foreign_driver.WITHOUT_OVS
    result = foreign(options, name, fork=True)
    assert result["code"] == 1, result["said"]
    assert result["changed"] == []
    last = result["said"].splitlines()[-1]
    assert last.startswith("smtnet: ")
    assert cases[name][2] in last
    assert "no other Mininet is to be seen here" in last
    assert "Traceback" not in result["said"]


@pytest.mark.parametrize("options", [(), ("--ovs",)])
@pytest.mark.parametrize("kind", foreign_driver.LINKS)
def test_a_second_network_leaves_the_first_one_whole(options: tuple[str, ...], kind: str):
    result = foreign(options, f"running, {kind}")
    assert result["code"] == 1, result["said"]
    assert result["changed"] == []
    assert f"perhaps of the Mininet that runs as process {result['process']} (" in result["said"].splitlines()[-1]
    assert result["reached"], "in the first network"
    assert result["first"] == 0
    assert result["left"] == []


@pytest.mark.parametrize("options", [(), ("--ovs",)])
def test_what_is_beside_a_network_stays(options: tuple[str, ...]):
    result = foreign(options, "beside")
    assert result["code"] == 0, result["said"]
    assert result["changed"] == []


@pytest.mark.parametrize(("kind", "link"), isolation_driver.CASES)
def test_the_machine_has_no_part_in_an_emulated_network(kind: str, link: str):
    result = results("isolation_driver", *(["--ovs"] if kind != "bridge" else []))[f"{kind}, {link}"]
    assert result["audible"] == [], "interfaces that take part in ARP, IPv4 or IPv6"
    assert result["devices"] >= 3
    if kind != "ovs":  # which needs a kernel with the datapath: there was nothing to send by
        assert result["answers"] == [], "ARP, for an address of the machine"
        assert result["taken"] == [], "IP packets"


@pytest.mark.parametrize("kind", ["bridge", "ovs-user"])
def test_a_kernel_that_is_not_kept_out_would_be_noticed(kind: str):
    result = results("isolation_driver", *(["--ovs"] if kind != "bridge" else []))[f"{kind}, open"]
    assert result["audible"]
    assert result["answers"]
    assert result["taken"]


@pytest.mark.parametrize("kind", ["bridge", "ovs-user"])
def test_nat_answers_for_itself_alone_and_forwards(kind: str):
    result = results("isolation_driver", *(["--ovs"] if kind != "bridge" else []))[f"{kind}, nat"]
    assert result["answers"] == []
    assert result["nat_answers"] == [result["nat_mac"]]
    assert result["to_nat"]
    assert result["outside"]


def test_an_open_vswitch_that_runs_in_the_sandbox_stays():
    result = results("isolation_driver", "--ovs")["second ovs"]
    assert "Open vSwitch runs in this sandbox already (ovs-vswitchd as process" in result["error"]
    assert result["before"] == result["after"]
