"""The Ryu controller with switches, each network in a sandbox of its own: see controller_drivers.py for what is
done inside."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from tests.net import starting
from tests.net.netns import PATIENCE
from topo import ovs

pytestmark = [pytest.mark.root,
              pytest.mark.skipif(not ovs.is_installed(), reason="Open vSwitch is not installed")]
DRIVERS = [sys.executable, "-m", "tests.net.controller_drivers"]


def inside(name: str) -> dict[str, Any]:
    """What a program of controller_drivers.py prints."""
    done = starting.run([*DRIVERS, name], timeout=4 * PATIENCE)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.alone("20 switches, 16 hosts and a controller at once, and no RPC of theirs may take a second")
@pytest.mark.timeout(180)
def test_fat_tree_delivers_heals_and_outlives_its_controller():
    result = inside("fat_tree")
    assert (result["hosts"], result["switches"], result["ready"]) == (16, 20, True)
    assert result["found"] == result["expected"] == 64
    delivery = result["delivery"]
    # Each host gets one frame of every other, with its own address; ports sent each as often as there are
    # switches on its way, so nothing was flooded and nothing went round.
    assert delivery["pairs"] == 240
    assert delivery["counts"] == delivery["sources"] == [15] * 16
    assert delivery["wrong"] == 0
    assert delivery["frames"] == delivery["hops"] == 16 * (1 * 1 + 2 * 3 + 12 * 5)
    traffic = result["traffic"]
    assert traffic["cut"] == 16 + 1
    assert traffic["lost"] == 0
    assert traffic["wrong"] == []
    assert traffic["rpcs"] > 100 * 2  # it was there all the time
    assert traffic["longest_ms"] < 1000, traffic
    # What the switches had was as it should be, so nothing was touched.
    assert traffic["changes_after_restart"] == 0
    assert traffic["after"] == []
    assert traffic["unreachable"] == []
    assert result["packet_ins"] == result["errors"] == 0
    print(f"started in {result['started_s']} s, rules in {result['install_ms']} ms, longest RPC "
          f"{traffic['longest_ms']} ms, {traffic['steps_s']}")


def test_messages_take_their_paths_and_bad_links_are_left_out():
    result = inside("leaf_spine")
    assert result["settings"] == [result["paths"]] * 2 == [4, 4]
    # The path that an address names is the one the controller says, each by another spine.
    assert result["counters"] == [[spine] for spine in result["named"]]
    assert len(set(result["named"])) == 4
    assert (result["rpcs"], result["errors"]) == (40, 0)
    # 40 requests of 20 KB, dealt to four spines.
    assert min(result["spread"]) > 40 * 20_000 / 4 / 2, result["spread"]
    assert set(result["miscabled"]["unexpected"]) == {
        "s1:2 -> s4:1", "s1:3 -> s3:1", "s3:1 -> s1:3", "s4:1 -> s1:2"}
    assert set(result["miscabled"]["missing"]) == {"s1:2 -> s3:1", "s1:3 -> s4:1", "s3:1 -> s1:2", "s4:1 -> s1:3"}
    assert result["miscabled"]["after"] == []
    assert result["silent"]["missing"] == ["s1:2 -> s3:1"]
    assert result["silent"]["pings"] == [True] * 4
    assert result["packet_ins"] == result["refused"] == 0


def test_a_full_link_is_not_taken_for_a_broken_one():
    result = inside("full_link")
    # Those that wait are of priority 5; probes go before them.
    assert result["priorities"]["5"] > 300
    assert result["priorities"]["7"] > 2 * 4
    assert (result["generations"], result["down"]) == (0, [])


def test_a_restart_mends_what_others_have_changed_and_tells_what_is_refused():
    result = inside("restarts")
    assert len(result["first"]) > 10
    assert set(result["spoilt"]) != set(result["first"])
    assert result["last"] == result["first"]
    assert not result["strange_group"]
    assert result["errors"] == 0
    assert result["unknown"] == "there is no host 'h9'; there are h1, h2"
    # Of more rules than the switch takes.
    assert result["said"].startswith("controller c0: s1: add flow in table ")
    assert "OFPFMFC_TABLE_FULL" in result["said"]
    assert result["state"] == "failed"
    assert result["refused"] == result["after"] > 0
    assert result["mended"] == result["first"]


@pytest.mark.kernel_ovs
def test_the_kernels_datapath_heals_and_outlives_its_controller():
    result = inside("kernel_datapath")
    assert (result["kind"], result["datapaths"]) == ("ovs", ["system@ovs-system"])
    assert result["cached"] > 0  # the kernel switched, by flows that it was given
    assert result["heard"] == [True] * 3
    assert (result["rpcs"], result["errors"], result["content"]) == (20, 0, True), result["said"]
    assert result["refused"] == 0


def test_a_controller_without_switches_of_its_kind():
    result = inside("wrong_switches")
    assert result["bridge"].startswith("a controller needs Open vSwitch")
    assert result["without"].startswith("this topology has no switch for a controller")
    assert result["start"].startswith("controller c0 does not start: exit code 2: --smtnet-fabric /")
    assert result["left"] == []
