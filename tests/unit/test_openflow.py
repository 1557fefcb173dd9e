"""Plans as OpenFlow messages, made and read again by Ryu's own parser; no switch."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("ryu", reason="Ryu is not installed: make venv")

from ryu.ofproto import ofproto_parser, ofproto_v1_3
from ryu.ofproto.ofproto_protocol import ProtocolDesc

from controllers import openflow
from controllers.fabric import Fabric, fabric_of_topo
from controllers.plan import Bucket, Flow, Group, Match, Output, SetEthDst, SwitchPlan
from controllers.planner import make_plan
from controllers.update import ADD, DELETE, MODIFY, Change, Held, held_by
from topo.topologies import make_topo


class FakeDatapath(ProtocolDesc):
    """What Ryu's messages ask of a connection; ``send_msg`` makes bytes of them."""

    def __init__(self) -> None:
        super().__init__(version=ofproto_v1_3.OFP_VERSION)
        self.sent: list[Any] = []
        self.xid = 0

    def set_xid(self, message: Any) -> int:
        self.xid += 1
        message.set_xid(self.xid)
        return self.xid

    def send_msg(self, message: Any) -> None:
        message.serialize()
        self.sent.append(message)

    def through(self, message: Any) -> Any:
        """A flow-mod or packet-out as the other end reads it."""
        self.set_xid(message)
        self.send_msg(message)
        return ofproto_parser.msg(self, message.version, message.msg_type, message.msg_len, message.xid,
                                  bytes(message.buf))


def fabric(topo: str) -> Fabric:
    return fabric_of_topo(make_topo(topo))


def stats_of(datapath: FakeDatapath, message: Any) -> Any:
    """An entry of a flow statistics reply about a flow that was added."""
    return datapath.ofproto_parser.OFPFlowStats(
        table_id=message.table_id, priority=message.priority, match=message.match, cookie=message.cookie,
        instructions=message.instructions)


def descriptions_of(datapath: FakeDatapath, groups: tuple[Group, ...]) -> list[Any]:
    """Entries of a group description reply."""
    messages = [openflow.set_group(datapath, g, exists=False) for g in groups]
    return [datapath.ofproto_parser.OFPGroupDescStats(type_=m.type, group_id=m.group_id, buckets=m.buckets)
            for m in messages]


@pytest.mark.parametrize("policy", ["flow", "ecmp"])
@pytest.mark.parametrize("topo", ["star,3", "leafspine,2,3,2", "fattree,4"])
def test_what_a_switch_tells_is_what_it_was_told(topo: str, policy: str):
    datapath = FakeDatapath()
    for plan in make_plan(fabric(topo), policy).switches:
        told = [stats_of(datapath, datapath.through(openflow.add_flow(datapath, f))) for f in plan.flows]
        found = openflow.found(datapath, told, descriptions_of(datapath, plan.groups), [plan])
        assert found.held == held_by(plan)
        assert found.foreign == ()


def a_plan() -> SwitchPlan:
    match = Match(eth_dst="02:00:00:00:00:01", eth_dst_mask="ff:00:ff:ff:ff:ff")
    return SwitchPlan("s1", 1, (Flow(1, 100, match, (SetEthDst("02:00:00:00:00:01"), Output(3))),), ())


@pytest.mark.parametrize("actions", [
    (SetEthDst("02:00:00:00:00:01"), Output(4)), (SetEthDst("02:00:00:00:00:02"), Output(3)),
    (Output(3), SetEthDst("02:00:00:00:00:01")), (Output(3),), ()])
def test_a_rule_that_does_something_else_is_not_taken_for_ours(actions: tuple[Any, ...]):
    datapath, plan = FakeDatapath(), a_plan()
    (flow,) = plan.flows
    other = Flow(flow.table, flow.priority, flow.match, actions)
    told = stats_of(datapath, datapath.through(openflow.add_flow(datapath, other)))
    (held,) = openflow.found(datapath, [told], [], [plan]).held.flows
    assert held.key == flow.key
    assert held != flow
    assert held.goto == openflow.UNKNOWN


def test_rules_of_others_and_their_groups():
    datapath, plan = FakeDatapath(), a_plan()
    parser = datapath.ofproto_parser
    tcp = parser.OFPFlowStats(table_id=0, priority=5, match=parser.OFPMatch(eth_type=0x800, ip_proto=6),
                              instructions=[])
    group = parser.OFPGroupDescStats(type_=0, group_id=9, buckets=[])
    found = openflow.found(datapath, [tcp], [group], [plan])
    assert found.foreign == (tcp,)
    assert found.held == Held(frozenset(), frozenset([Group(9, "", ())]))
    removal = datapath.through(openflow.remove_foreign(datapath, tcp))
    assert (removal.command, removal.table_id, removal.priority) == (
        datapath.ofproto.OFPFC_DELETE_STRICT, 0, 5)
    assert dict(removal.match.items()) == {"eth_type": 0x800, "ip_proto": 6}


def test_changes_are_one_message_each():
    datapath, plan = FakeDatapath(), a_plan()
    ofp = datapath.ofproto
    (flow,) = plan.flows
    added = datapath.through(openflow.message(datapath, Change("s1", ADD, flow)))
    assert (added.command, added.cookie, added.idle_timeout, added.hard_timeout) == (
        ofp.OFPFC_ADD, openflow.COOKIE, 0, 0)
    removed = datapath.through(openflow.message(datapath, Change("s1", DELETE, flow)))
    # Strict: of this rule only. Any port and any group, or it would remove nothing.
    assert (removed.command, removed.out_port, removed.out_group) == (
        ofp.OFPFC_DELETE_STRICT, ofp.OFPP_ANY, ofp.OFPG_ANY)
    assert dict(removed.match.items()) == dict(added.match.items())
    group = Group(7, "fast_failover", (Bucket(1, 1), Bucket(2, 2)))
    for verb, command in ((ADD, ofp.OFPGC_ADD), (MODIFY, ofp.OFPGC_MODIFY), (DELETE, ofp.OFPGC_DELETE)):
        message = openflow.message(datapath, Change("s1", verb, group))
        message.xid = 1
        datapath.send_msg(message)  # Ryu cannot read these, but it can write them
        assert (message.command, message.group_id) == (command, 7)
    message = openflow.set_group(datapath, group, exists=False)
    assert [(b.watch_port, b.watch_group, b.actions[0].port) for b in message.buckets] == [
        (1, ofp.OFPG_ANY, 1), (2, ofp.OFPG_ANY, 2)]
