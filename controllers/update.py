"""From one plan to the next without a loop on the way: which changes, in which order.

Changes come in phases. All switches confirm one (OpenFlow barrier) before the next begins; within a phase each
does its changes when and in whatever order it likes. Why no mixture of old and new rules loops: every rule for a
host leads to a switch one hop nearer to it, by the distances of its plan. While rules of both plans are there,
switches whose distance is not the same in both have none, so all rules lead nearer by one measure. Hence:

1. rules of (switch, host) whose distance changes go; groups that are new come,
2. other rules change, and groups whose number gets another meaning do,
3. rules of (switch, host) whose distance has changed come,
4. groups that nobody uses any more go.

What a switch was found to have, rather than told by the plan before, is of unknown origin: of that, all rules
that are not in the new plan go in phase 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from controllers.fabric import host_key
from controllers.plan import Flow, Group, Plan, SwitchPlan

ADD, MODIFY, DELETE = "add", "modify", "delete"


@dataclass(frozen=True, slots=True)
class Change:
    """To one switch. ``add`` of a flow replaces the one with the same key; ``modify`` is for groups only."""

    switch: str
    verb: str
    item: Flow | Group


Phase = tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """What a switch has."""

    flows: frozenset[Flow] = frozenset()
    groups: frozenset[Group] = frozenset()


def held_by(plan: SwitchPlan) -> Held:
    """What a switch has that has got all of its plan."""
    return Held(frozenset(plan.flows), frozenset(plan.groups))


def phases(old: Plan | None, new: Plan, found: Mapping[str, Held] | None = None) -> list[Phase]:
    """The phases from ``old`` to ``new``; those without any change are left out.

    ``old`` is what switches were told last, None at first. ``found`` says what some switches have in truth, such
    as one that has come back; with ``old`` None, those not in it have nothing. No phases: all is as it should be.
    """
    told = {s.name: held_by(s) for s in old.switches} if old is not None else {}
    # Distances compare only if both plans are for the same cables.
    before = old if old is not None and old.fabric == new.fabric else None
    found = found or {}
    steps: tuple[list[Change], ...] = ([], [], [], [])
    for plan in new.switches:
        held = found[plan.name] if plan.name in found else told.get(plan.name, Held())
        known = before is not None and plan.name not in found
        moved: set[bytes | None] = {
            host_key(h.mac) for h in new.fabric.hosts
            if before is not None and before.distance(plan.name, h.name) != new.distance(plan.name, h.name)}
        for step, changes in zip(steps, _of_switch(held, plan, known, moved), strict=True):
            step.extend(changes)
    return [tuple(step) for step in steps if step]


def _of_switch(held: Held, plan: SwitchPlan, known: bool, moved: set[bytes | None]) -> tuple[list[Change], ...]:
    """The four phases of one switch. ``known``: what it has, an earlier plan for the same cables told it;
    ``moved``: the hosts whose distance has changed."""
    old_groups, groups = {g.number: g for g in held.groups}, {g.number: g for g in plan.groups}
    redefined = {n for n in groups.keys() & old_groups.keys() if groups[n] != old_groups[n]}
    away = moved | {_host(f) for f in (*held.flows, *plan.flows) if not redefined.isdisjoint(f.groups)}
    want = {f.key: f for f in plan.flows}
    kept = held.flows & set(plan.flows)
    gone = [f for f in held.flows if _host(f) in away or not (known or f in kept)]
    here = [f for f in plan.flows if f not in kept and _host(f) not in away]
    # New ones replace old ones with the same key.
    obsolete = [f for f in held.flows if known and f.key not in want and _host(f) not in away]
    back = [f for f in plan.flows if _host(f) in away]
    return ([Change(plan.name, ADD, g) for n, g in groups.items() if n not in old_groups]
            + [Change(plan.name, DELETE, f) for f in gone],
            [Change(plan.name, MODIFY, groups[n]) for n in sorted(redefined)]
            + [Change(plan.name, ADD, f) for f in here] + [Change(plan.name, DELETE, f) for f in obsolete],
            [Change(plan.name, ADD, f) for f in back],
            [Change(plan.name, DELETE, g) for n, g in sorted(old_groups.items()) if n not in groups])


def _host(flow: Flow) -> bytes | None:
    """Whom a rule forwards to; None for those of table 0, which only prepare frames for table 1."""
    return host_key(flow.match.eth_dst) if flow.table and flow.match.eth_dst is not None else None
