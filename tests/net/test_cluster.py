"""A topology over several machines: here two namespaces, each with an SSH server, by Mininet's cluster edition."""

from __future__ import annotations

import json
import shutil
import sys

import pytest

from smtstack.errors import ConfigError
from smtstack.exit_codes import EXIT_ENVIRONMENT
from tests.net.cluster_driver import MACHINES, NOBODY
from tests.net.netns import run
from topo.cluster import Spread, check
from topo.topologies import make_topo

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(shutil.which("sshd", path="/usr/sbin:/sbin:/usr/bin") is None,
                       reason="sshd is not installed (openssh-server)")]
DRIVER = [sys.executable, "-m", "tests.net.cluster_driver"]


def test_smt_between_hosts_of_two_machines():
    done = run([*DRIVER, "star,2", "--machine", ",".join(MACHINES), "--count", "50", "--size", "10KB", "--json"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["ok"], result["crossing"]) == (True, 2)
    assert [(pair["client"], pair["server"]) for pair in result["pairs"]] == [
        ({"host": "h1", "machine": MACHINES[0]}, {"host": "h2", "machine": MACHINES[1]}),
        ({"host": "h2", "machine": MACHINES[1]}, {"host": "h1", "machine": MACHINES[0]})]
    assert [(pair["rpcs"], pair["errors"]) for pair in result["pairs"]] == [(50, 0), (50, 0)]


def test_a_machine_that_lets_nobody_in():
    done = run([*DRIVER, "back2back", "--machine", MACHINES[0], "--machine", NOBODY])
    assert done.returncode == EXIT_ENVIRONMENT, done.stderr
    assert f"{NOBODY} is to let root in by key" in done.stderr


@pytest.mark.parametrize(("topo", "machines", "says"), [
    ("leafspine,2,2,1", ["a", "b"], "has loops"), ("star,4", ["a"], "two machines or more"),
    ("star,4", ["a", "a"], "each named once")])
def test_what_cannot_be_over_machines(topo, machines, says):
    with pytest.raises(ConfigError, match=says):
        check(make_topo(topo), machines)


def test_where_hosts_and_switches_are():
    def places(topo: str) -> dict[str, str]:
        made = make_topo(topo)
        placer = Spread(servers=["a", "b"], nodes=made.nodes(), hosts=made.hosts(), switches=made.switches(),
                        links=made.links())
        return {name: placer.place(name) for name in made.nodes()}

    assert places("back2back") == {"h1": "a", "h2": "b"}
    assert places("star,3") == {"h1": "a", "h2": "b", "h3": "a", "s1": "a"}
    found = places("dumbbell,2")
    assert found["s1"] != found["s2"]
    beside = {end: other for link in make_topo("dumbbell,2").links() for end, other in (link, link[::-1])}
    assert all(found[host] == found[beside[host]] for host in make_topo("dumbbell,2").hosts())
