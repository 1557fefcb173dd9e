"""The controller with switches that refuse: tried again, bounded, told. No switch; these are made up.

Run by tests/unit/test_fanout.py, in a process of its own.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ryu", reason="Ryu is not installed: make venv")

from ryu.lib import hub

from controllers import openflow
from controllers.channel import Channel
from controllers.fabric import fabric_of_topo
from controllers.launch import prepare
from controllers.openflow import Found
from controllers.retries import DELAYS_S, Retries
from controllers.update import Change, held_by
from tests.fake_switch import FakeSwitch, Refused
from topo.topologies import make_topo

# What eventlet lacks has to be there before these are imported.
prepare()
multipath, rest = (import_module(f"controllers.{name}") for name in ("multipath", "rest"))

TOPO = "leafspine,2,2,1"


class Connection:
    """What Ryu has for a connection. It answers at once; the next ``refusals`` changes it refuses."""

    def __init__(self, app: Any, switch: FakeSwitch) -> None:
        self.app, self.switch, self.refusals, self.asked = app, switch, 0, 0
        self.id = app.fabric.switch(switch.name).dpid
        self.ports = {number: SimpleNamespace(config=0, state=0) for number in switch.up}
        self.ofproto = SimpleNamespace(
            OFPP_MAX=0xFFFFFF00, OFPPC_PORT_DOWN=1, OFPPS_LINK_DOWN=1, OFPMPF_REPLY_MORE=1,
            OFPET_EXPERIMENTER=0xFFFF,
            ofp_error_type_to_str=lambda _t: "OFPET_FLOW_MOD_FAILED", ofp_error_code_to_str=lambda _t, _c: "FULL")
        self.ofproto_parser = SimpleNamespace(
            OFPBarrierRequest=lambda _d: "barrier", OFPFlowStatsRequest=lambda _d: "read",
            OFPGroupDescStatsRequest=lambda _d, _f: "read")
        self.number = 0

    def set_xid(self, _message: Any) -> int:
        self.number += 1
        return self.number

    def send_msg(self, message: Any) -> None:
        number, app = self.number, self.app
        answer = SimpleNamespace(datapath=self, xid=number, body=[], flags=0, type=5, code=1)
        if message == "barrier":
            hub.spawn(app._barrier_reached, SimpleNamespace(msg=answer))
        elif message == "read":
            hub.spawn(app._statistics_came, SimpleNamespace(msg=answer))
        elif isinstance(message, Change):
            self.asked += 1
            try:
                if self.refusals:
                    self.refusals -= 1
                    raise Refused("so told")
                self.switch.apply(message.verb, message.item)
            except Refused:
                hub.spawn(app._refused, SimpleNamespace(msg=answer))


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Any:
    """(the application, connections by name): it runs when the test sleeps. Delays are a hundredth."""
    monkeypatch.setattr(openflow, "message", lambda _datapath, change: change)
    monkeypatch.setattr(openflow, "found", lambda datapath, *_more: Found(datapath.switch.held(), ()))
    monkeypatch.setattr("controllers.retries.DELAYS_S", tuple(delay / 100 for delay in DELAYS_S))
    fabric = fabric_of_topo(make_topo(TOPO))
    path = tmp_path / "fabric.json"
    path.write_text(fabric.to_json())
    multipath.cfg.CONF(args=["--smtnet-fabric", str(path), "--smtnet-lldp", "0"], project="ryu",
                    default_config_files=[])
    app = multipath.Multipath(wsgi=SimpleNamespace(register=lambda *_args: None))
    connections = {}
    for switch in fabric.switches:
        ports = [p.number for p in fabric.ports(switch.name)] + [h.port for h in fabric.hosts_at(switch.name)]
        connections[switch.name] = Connection(app, FakeSwitch(switch.name, ports, lambda live: live[0]))
    yield app, connections
    for thread in app.threads:
        hub.kill(thread)


def come(app: Any, connections: dict[str, Connection]) -> None:
    for name, connection in connections.items():
        app.channels[name] = Channel(connection, name)


def until(app: Any, *states: str) -> None:
    for _ in range(2000):
        hub.sleep(0.005)
        if app.state in states:
            return
    raise AssertionError((app.state, list(app.last_errors)))


def in_force(app: Any, connections: dict[str, Connection]) -> bool:
    return all(connections[plan.name].switch.held() == held_by(plan) for plan in app.plan.switches)


@pytest.mark.parametrize("refusals", [1, 3])
def test_what_was_refused_for_a_while_is_tried_again(network: Any, refusals: int):
    app, connections = network
    connections["s3"].refusals = refusals
    come(app, connections)
    until(app, "ready", "failed")
    assert app.state == "ready"
    assert in_force(app, connections)
    status = rest.status(app)
    assert status["refusing"] == {}
    assert status["errors"] == refusals, "they are told all the same"
    assert any("s3" in cause for replan in status["replans"] for cause in replan["causes"])


def test_who_refuses_always_is_given_up_and_named_everywhere(network: Any):
    app, connections = network
    connections["s3"].refusals = 10**9
    come(app, connections)
    until(app, "ready", "failed")
    assert app.state == "failed"
    tries = app.generation
    assert tries == len(DELAYS_S) + 1
    hub.sleep(0.2)
    assert app.generation == tries, "nobody asks any more"
    status = rest.status(app)
    (why,) = status["refusing"].values()
    assert why.startswith("s3: ")
    assert "OFPET_FLOW_MOD_FAILED, FULL" in why
    assert f"tried {tries} times" in why
    assert "given up" in status["last_errors"][-1]
    ways = rest.paths(app, "h1", "h2")
    assert list(ways["refusing"]) == ["s3"], ways
    # Something happens, and the switch has come to its senses.
    connections["s3"].refusals = 0
    app._changed("a port is up")
    until(app, "ready")
    assert in_force(app, connections)
    assert rest.paths(app, "h1", "h2")["refusing"] == {}


def test_a_refusal_out_of_the_blue_is_looked_into(network: Any):
    """A rule that was accepted, and refused after the barrier; or somebody else's message."""
    app, connections = network
    come(app, connections)
    until(app, "ready")
    lost = next(iter(connections["s1"].switch.flows))
    del connections["s1"].switch.flows[lost]
    app._refused(SimpleNamespace(msg=SimpleNamespace(datapath=connections["s1"], xid=10**6, type=5, code=1)))
    assert app.state == "retrying"
    until(app, "ready", "failed")
    assert app.state == "ready"
    assert in_force(app, connections)


def test_attempts_are_bounded_and_start_over():
    retries = Retries()
    retries.refused("s1", "no")
    assert [retries.failed("s1") for _ in range(6)] == [*DELAYS_S, None, None]
    assert retries.given_up
    assert retries.failed("s2") == DELAYS_S[0], "each by itself"
    retries.start_over()
    assert not retries.given_up
    assert retries.failed("s1") == DELAYS_S[0]
    retries.succeeded(["s1", "s2"])
    assert retries.refusing == {}
