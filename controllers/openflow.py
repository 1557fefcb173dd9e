"""Plans as messages of OpenFlow 1.3, and what a switch says it has as descriptions again.

Nothing here sends. What a plan says and what a switch says are brought to the same form and compared rule by rule,
so that a controller that comes back sees what is as it should be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from controllers.plan import (
    FAST_FAILOVER,
    SELECT,
    AnswerArp,
    Bucket,
    Flow,
    Group,
    Match,
    Output,
    SetEthDst,
    SwitchPlan,
    ToController,
    ToGroup,
)
from controllers.update import DELETE, MODIFY, Change, Held
from smtstack.wire.ethernet import format_mac, parse_mac

#: Of all our flows, for people who look at them.
COOKIE = int.from_bytes(b"SMTnet", "big")
#: (table, priority, match)
Key = tuple[int, int, Match]
#: In place of a flow's table to go to: it does something else than any plan of ours.
UNKNOWN = -1
_ARP_REPLY = 2
#: What Ryu's actions are made of.
_PARTS = ("port", "key", "value", "group_id", "src_field", "dst_field", "n_bits", "src_ofs", "dst_ofs")
# OpenFlow 1.3.5, 7.3.4.2.
_TYPE_SELECT, _TYPE_FAST_FAILOVER = 1, 3


@dataclass(frozen=True)
class Found:
    """What a switch says it has."""

    held: Held
    """In terms of plans. A rule that does something else leads to table :data:`UNKNOWN`."""
    foreign: tuple[Any, ...]
    """Flows (as Ryu parsed them) that look at what no plan of ours does."""


# -- to the switch ---------------------------------------------------------------------------------------------


def add_flow(datapath: Any, flow: Flow) -> Any:
    """Adds it; one with the same key goes, and its counters."""
    return datapath.ofproto_parser.OFPFlowMod(
        datapath, cookie=COOKIE, table_id=flow.table, command=datapath.ofproto.OFPFC_ADD, priority=flow.priority,
        match=_match(datapath, flow.match), instructions=_instructions(datapath, flow))


def remove_flow(datapath: Any, flow: Flow) -> Any:
    """Removes the one flow with its key, if it is there."""
    return _removal(datapath, flow.table, flow.priority, _match(datapath, flow.match))


def remove_foreign(datapath: Any, stats: Any) -> Any:
    """Removes a flow of somebody else, as it was read."""
    return _removal(datapath, stats.table_id, stats.priority, stats.match)


def _removal(datapath: Any, table: int, priority: int, match: Any) -> Any:
    ofp = datapath.ofproto
    return datapath.ofproto_parser.OFPFlowMod(
        datapath, table_id=table, command=ofp.OFPFC_DELETE_STRICT, priority=priority, match=match,
        out_port=ofp.OFPP_ANY, out_group=ofp.OFPG_ANY)


def set_group(datapath: Any, group: Group, exists: bool) -> Any:
    """Adds it, or changes what it does if it ``exists``."""
    ofp, parser = datapath.ofproto, datapath.ofproto_parser
    kind = {FAST_FAILOVER: ofp.OFPGT_FF, SELECT: ofp.OFPGT_SELECT}[group.kind]
    weight = 1 if group.kind == SELECT else 0
    buckets = [parser.OFPBucket(weight=weight, watch_port=b.watch_port, watch_group=ofp.OFPG_ANY,
                                actions=[parser.OFPActionOutput(b.port)]) for b in group.buckets]
    command = ofp.OFPGC_MODIFY if exists else ofp.OFPGC_ADD
    return parser.OFPGroupMod(datapath, command, kind, group.number, buckets)


def remove_group(datapath: Any, group: Group) -> Any:
    """Removes it, and every flow that uses it."""
    ofp = datapath.ofproto
    return datapath.ofproto_parser.OFPGroupMod(datapath, ofp.OFPGC_DELETE, ofp.OFPGT_FF, group.number, [])


def message(datapath: Any, change: Change) -> Any:
    """The message that brings about a change."""
    item = change.item
    if isinstance(item, Flow):
        return remove_flow(datapath, item) if change.verb == DELETE else add_flow(datapath, item)
    if change.verb == DELETE:
        return remove_group(datapath, item)
    return set_group(datapath, item, exists=change.verb == MODIFY)


def send_frame(datapath: Any, port: int, frame: bytes) -> Any:
    """Has the switch send a frame out of a port."""
    ofp, parser = datapath.ofproto, datapath.ofproto_parser
    return parser.OFPPacketOut(datapath, buffer_id=ofp.OFP_NO_BUFFER, in_port=ofp.OFPP_CONTROLLER,
                               actions=[parser.OFPActionOutput(port)], data=frame)


def _match(datapath: Any, match: Match) -> Any:
    fields: dict[str, Any] = {name: getattr(match, name) for name in ("in_port", "eth_type", "arp_op", "arp_tpa")
                              if getattr(match, name) is not None}
    if match.eth_dst is not None:
        fields["eth_dst"] = (match.eth_dst if match.eth_dst_mask is None
                             else (_masked(match.eth_dst, match.eth_dst_mask), match.eth_dst_mask))
    return datapath.ofproto_parser.OFPMatch(**fields)


def _instructions(datapath: Any, flow: Flow) -> list[Any]:
    ofp, parser = datapath.ofproto, datapath.ofproto_parser
    instructions = []
    if flow.actions:
        instructions.append(parser.OFPInstructionActions(ofp.OFPIT_APPLY_ACTIONS, _actions(datapath, flow)))
    if flow.goto is not None:
        instructions.append(parser.OFPInstructionGotoTable(flow.goto))
    return instructions


def _actions(datapath: Any, flow: Flow) -> list[Any]:
    ofp, parser = datapath.ofproto, datapath.ofproto_parser
    actions: list[Any] = []
    for action in flow.actions:
        match action:
            case Output(port):
                actions.append(parser.OFPActionOutput(port))
            case SetEthDst(mac):
                actions.append(parser.OFPActionSetField(eth_dst=mac))
            case ToGroup(group):
                actions.append(parser.OFPActionGroup(group))
            case ToController():
                actions.append(parser.OFPActionOutput(ofp.OFPP_CONTROLLER, ofp.OFPCML_NO_BUFFER))
            case AnswerArp(mac, ip):
                move, put = parser.NXActionRegMove, parser.OFPActionSetField
                # The request's source is the answer's destination; OpenFlow 1.3 itself cannot copy a field. The
                # names are those that Open vSwitch answers with.
                actions += [move("eth_src_nxm", "eth_dst_nxm", 48), put(eth_src=mac), put(arp_op=_ARP_REPLY),
                            move("arp_sha_nxm", "arp_tha_nxm", 48), move("arp_spa_nxm", "arp_tpa_nxm", 32),
                            put(arp_sha=mac), put(arp_spa=ip), parser.OFPActionOutput(ofp.OFPP_IN_PORT)]
    return actions


# -- from the switch -------------------------------------------------------------------------------------------


def found(datapath: Any, flows: Iterable[Any], groups: Iterable[Any], plans: Iterable[SwitchPlan]) -> Found:
    """From the entries of a switch's answers to a flow statistics and a group description request.

    ``plans``: what may have been told to that switch.
    """
    told = {(_key(f), _form(_instructions(datapath, f))): f for plan in plans for f in plan.flows}
    held: dict[Key, Flow] = {}
    foreign = []
    for stats in flows:
        match = _match_of(stats.match)
        if match is None:
            foreign.append(stats)
            continue
        key = (stats.table_id, stats.priority, match)
        held[key] = told.get((key, _form(stats.instructions))) or Flow(*key, goto=UNKNOWN)
    return Found(Held(frozenset(held.values()), frozenset(_group_of(g) for g in groups)), tuple(foreign))


def _form(instructions: Iterable[Any]) -> tuple[Any, ...]:
    """What they do, the same for those we made and those a switch has told."""
    found: list[Any] = []
    for instruction in instructions:
        found.append((instruction.type, getattr(instruction, "table_id", None)))
        # Output, set-field, group, move: no action has all of these.
        found += [(action.type, *(getattr(action, name, None) for name in _PARTS))
                  for action in getattr(instruction, "actions", ())]
    return tuple(found)


def _match_of(match: Any) -> Match | None:
    fields = dict(match.items())
    address = fields.pop("eth_dst", None)
    if address is not None:
        fields["eth_dst"], fields["eth_dst_mask"] = address if isinstance(address, tuple) else (address, None)
    try:
        return Match(**fields)
    except TypeError:  # a field that no plan of ours looks at
        return None


def _group_of(group: Any) -> Group:
    kind = {_TYPE_SELECT: SELECT, _TYPE_FAST_FAILOVER: FAST_FAILOVER}.get(group.type, "")
    buckets = [Bucket(action.port, bucket.watch_port) for bucket in group.buckets for action in bucket.actions
               if hasattr(action, "port")]
    # One that says more, or less, than ours do is none of ours.
    plain = all(len(bucket.actions) == 1 for bucket in group.buckets) and len(buckets) == len(group.buckets)
    return Group(group.group_id, kind if plain else "", tuple(buckets))


def _key(flow: Flow) -> Key:
    """A match as the switch will say it: what a mask leaves out is 0."""
    match = flow.match
    if match.eth_dst is not None and match.eth_dst_mask is not None:
        match = replace(match, eth_dst=_masked(match.eth_dst, match.eth_dst_mask))
    return flow.table, flow.priority, match


def _masked(mac: str, mask: str) -> str:
    return format_mac(bytes(a & b for a, b in zip(parse_mac(mac), parse_mac(mask), strict=True)))
