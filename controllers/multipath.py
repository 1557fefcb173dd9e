"""The controller of multi-path networks, an application of Ryu: installs a plan, and another when something fails.

What ``--multipath`` means is in ``controllers/policies.py``.

It acts before there is traffic: what switches do not know they drop, and hand nothing to the controller but the
probes by which links are found. It keeps no state that matters: started again while traffic runs, it asks the
switches what they have, and changes what differs from its plan.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from ryu import cfg
from ryu.app.wsgi import WSGIApplication
from ryu.base import app_manager
from ryu.controller import ofp_event
from ryu.controller.handler import CONFIG_DISPATCHER, DEAD_DISPATCHER, MAIN_DISPATCHER, set_ev_cls
from ryu.lib import hub
from ryu.ofproto import ofproto_v1_3

from controllers import openflow, rest
from controllers.channel import Answer, Channel, Refused
from controllers.discovery import Discovery, End, is_lldp
from controllers.fabric import Link
from controllers.fabric_file import load_fabric
from controllers.plan import Down, Flow, Plan
from controllers.planner import make_plan
from controllers.policies import DEFAULT, POLICIES
from controllers.retries import Retries
from controllers.update import Change, Held, phases
from smtstack.errors import ConfigError

#: Seconds. Both ends of a cable that fails say so; a switch may lose its connection for a moment; those that are
#: there at the start come within a second or so, as often as they try.
_SETTLE_S, _GRACE_S, _ARRIVE_S = 0.02, 0.1, 2.5
#: Ports are probed at so many moments of a period, or more; a new one then has its first probe soon.
_SLICES, _LONGEST_SLICE_S = 20, 0.1
#: Seconds that the first answers to probes may take before the plan counts as in force without them.
_FIRST_PROBES_S = 1.5
_SHORTEST_PERIOD_S = 0.1
_KEPT = 20

cfg.CONF.register_cli_opts([
    cfg.StrOpt("smtnet-fabric", default=None,
               help="the network, a file written by: smtnet plan TOPO --fabric FILE"),
    cfg.StrOpt("smtnet-multipath", default=DEFAULT, help=f"how several paths are used: {', '.join(POLICIES)} "
               f"(default {DEFAULT})"),
    cfg.IntOpt("smtnet-seed", default=1, help="of the choice among equal ways (default 1)"),
    cfg.FloatOpt("smtnet-lldp", default=0.4, help="seconds between two probes of a link, 0: none (default 0.4); a "
                 "silent loss is noticed within two of them"),
])


def check_options(options: Any) -> None:
    """Raises :class:`ConfigError` for values that make no sense."""
    if options.smtnet_multipath not in POLICIES:
        raise ConfigError(f"--smtnet-multipath {options.smtnet_multipath}: there are {', '.join(POLICIES)}")
    if options.smtnet_lldp and options.smtnet_lldp < _SHORTEST_PERIOD_S:
        raise ConfigError(f"--smtnet-lldp {options.smtnet_lldp:g}: 0, or from {_SHORTEST_PERIOD_S:g} s")


class Multipath(app_manager.RyuApp):
    """See the module. What it knows is served by :mod:`controllers.rest`."""

    OFP_VERSIONS = (ofproto_v1_3.OFP_VERSION,)
    _CONTEXTS = {"wsgi": WSGIApplication}

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.fabric = load_fabric(self.CONF.smtnet_fabric)
        self.policy: str = self.CONF.smtnet_multipath
        self.seed: int = self.CONF.smtnet_seed
        self.plan: Plan | None = None
        """The one that was installed last."""
        self.state = "waiting"
        """``waiting`` for switches, ``installing``, ``ready``, ``retrying`` a switch that refused something, or
        ``failed``: it did so each time, or the controller has a fault; :attr:`last_errors` says what."""
        self.generation = 0
        self.errors = 0
        self.last_errors: deque[str] = deque(maxlen=_KEPT)
        self.packet_ins = 0
        """Frames that came here and are no probes. None should."""
        self.replans: deque[dict[str, Any]] = deque(maxlen=_KEPT)
        self.strangers: set[int] = set()
        """Datapath ids of switches that are not in the fabric."""
        self.channels: dict[str, Channel] = {}
        self._in_step: set[Channel] = set()
        """Channels whose switch has what the plan says."""
        self.retries = Retries()
        self._due_again: set[str] = set()
        """Switches for which another attempt is on its way."""
        self._gone_at: dict[str, float] = {}
        self._arrived_at = time.monotonic()
        self._wake = hub.Event()
        self._causes: list[str] = []
        period = self.CONF.smtnet_lldp
        self.discovery = Discovery(self.fabric, period, os.urandom(8)) if period else None
        self._lost: set[Link] = set()
        logging.getLogger("ryu.lib.hub").setLevel(logging.WARNING)  # or every request is logged
        named["wsgi"].register(rest.MultipathRest, {rest.APP: self})
        self.threads += [hub.spawn(self._guarded, self._work)]
        if self.discovery is not None:
            self.threads += [hub.spawn(self._guarded, self._probe, min(period / _SLICES, _LONGEST_SLICE_S))]

    # -- what happens ------------------------------------------------------------------------------------------

    @set_ev_cls(ofp_event.EventOFPStateChange, [MAIN_DISPATCHER, DEAD_DISPATCHER])
    def _state_changed(self, event: Any) -> None:
        datapath = event.datapath
        switch = None if datapath.id is None else self.fabric.by_dpid(datapath.id)
        if switch is None:
            if datapath.id is not None and datapath.id not in self.strangers:
                self.strangers.add(datapath.id)
                self.logger.warning("switch with dpid %d is not in the fabric: left alone", datapath.id)
            return
        known = self.channels.get(switch.name)
        if event.state == MAIN_DISPATCHER:
            if known is not None:
                self._drop(known)
            self.channels[switch.name] = Channel(datapath, switch.name)
            self._arrived_at = time.monotonic()
            self._gone_at.pop(switch.name, None)
            self._changed(f"{switch.name} is there")
        elif known is not None and known.datapath is datapath:
            self._drop(known)
            self._gone_at[switch.name] = time.monotonic()
            hub.spawn_after(_GRACE_S, self._changed, f"{switch.name} is gone")

    def _drop(self, channel: Channel) -> None:
        channel.gone()
        del self.channels[channel.name]
        self._in_step.discard(channel)
        self.retries.forget(channel.name)

    @set_ev_cls(ofp_event.EventOFPPortStatus, MAIN_DISPATCHER)
    def _port_changed(self, event: Any) -> None:
        channel = self._channel_of(event.msg.datapath)
        if channel is not None:
            number = event.msg.desc.port_no
            up = "up" if number in channel.live_ports else "down"
            if self.fabric.link_at(channel.name, number) is not None:
                self._changed(f"{channel.name}:{number} is {up}")

    @set_ev_cls(ofp_event.EventOFPErrorMsg, [CONFIG_DISPATCHER, MAIN_DISPATCHER])
    def _refused(self, event: Any) -> None:
        message = event.msg
        ofp = message.datapath.ofproto
        if message.type == ofp.OFPET_EXPERIMENTER:
            why = f"experimenter error {message.exp_type}"
        else:
            why = (f"{ofp.ofp_error_type_to_str(message.type)}, "
                   f"{ofp.ofp_error_code_to_str(message.type, message.code)}")
        channel = self._channel_of(message.datapath)
        if channel is None:
            self._note(f"dpid {message.datapath.id}: {why}")
            return
        self._note_refusal(channel, channel.refused(message.xid, why))
        if channel in self._in_step:
            self._in_step.discard(channel)
            self._try_again([channel])

    @set_ev_cls(ofp_event.EventOFPPacketIn, MAIN_DISPATCHER)
    def _frame_came(self, event: Any) -> None:
        message = event.msg
        channel = self._channel_of(message.datapath)
        probe = (self.discovery is not None and channel is not None
                 and self.discovery.received_untrusted((channel.name, message.match["in_port"]), message.data,
                                                        time.monotonic()))
        if not probe and not is_lldp(message.data):
            self.packet_ins += 1

    @set_ev_cls(ofp_event.EventOFPBarrierReply, MAIN_DISPATCHER)
    def _barrier_reached(self, event: Any) -> None:
        channel = self._channel_of(event.msg.datapath)
        if channel is not None:
            channel.barrier_reached(event.msg.xid)

    @set_ev_cls([ofp_event.EventOFPFlowStatsReply, ofp_event.EventOFPGroupDescStatsReply,
                 ofp_event.EventOFPPortStatsReply], MAIN_DISPATCHER)
    def _statistics_came(self, event: Any) -> None:
        message = event.msg
        channel = self._channel_of(message.datapath)
        if channel is not None:
            more = bool(message.flags & message.datapath.ofproto.OFPMPF_REPLY_MORE)
            channel.part(message.xid, message.body, more)

    def _channel_of(self, datapath: Any) -> Channel | None:
        return next((c for c in self.channels.values() if c.datapath is datapath), None)

    def _changed(self, cause: str) -> None:
        self.retries.start_over()
        self._wake_for(cause)

    def _wake_for(self, cause: str) -> None:
        self._causes.append(cause)
        self._wake.set()

    def _note(self, text: str) -> None:
        self.errors += 1
        self.last_errors.append(text)
        self.logger.error("%s", text)

    def _note_refusal(self, channel: Channel, text: str) -> None:
        self._note(text)
        self.retries.refused(channel.name, text)

    def _try_again(self, channels: list[Channel]) -> None:
        """Soon, those that do not have what they should; says what state that is."""
        for channel in channels:
            name = channel.name
            if name in self._due_again:
                continue
            delay_s = self.retries.failed(name)
            if delay_s is None:
                self._note(f"{name}: given up until something changes: {self.retries.refusing.get(name, '')}")
                continue
            self._due_again.add(name)
            hub.spawn_after(delay_s, self._again, name)
        self.state = "failed" if self.retries.given_up else "retrying" if self._due_again else "ready"

    def _again(self, name: str) -> None:
        self._due_again.discard(name)
        self._wake_for(f"{name} is tried again")

    def _guarded(self, work: Callable[..., None], *args: Any) -> None:
        """Ryu would go on without a part of itself that has ended."""
        try:
            work(*args)
        except Exception as e:
            self.logger.exception("the controller has a fault")
            self._note(f"the controller has a fault: {type(e).__name__}: {e}")
            self.state = "failed"

    # -- planning ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        self._await_switches()
        while True:
            self._wake.clear()
            causes, self._causes = list(dict.fromkeys(self._causes)), []
            down = self._down()
            fresh = [c for c in self.channels.values() if c not in self._in_step]
            if self.plan is None or down != self.plan.down or fresh:
                self._replan(down, fresh, causes)
            self._wake.wait()
            hub.sleep(_SETTLE_S)

    def _await_switches(self) -> None:
        while len(self.channels) < len(self.fabric.switches):
            if self.channels and time.monotonic() > self._arrived_at + _ARRIVE_S:
                self.logger.warning("no connection from %s: planned without", ", ".join(self.missing()))
                return
            hub.sleep(_SETTLE_S)

    def missing(self) -> list[str]:
        """Switches of the fabric that are not connected."""
        return [s.name for s in self.fabric.switches if s.name not in self.channels]

    def _down(self) -> Down:
        live = self.live_ends()
        dead = {link for link in self.fabric.links for end in ((link.a, link.a_port), (link.b, link.b_port))
                if end[0] in self.channels and end not in live}
        # Nobody knows what the others do now: they are sent nothing that is not for their own hosts.
        return Down(frozenset(dead | self._lost), frozenset(self.missing()))

    def live_ends(self) -> set[End]:
        """The ports of connected switches that are up."""
        return {(name, port) for name, channel in self.channels.items() for port in channel.live_ports}

    def _replan(self, down: Down, fresh: list[Channel], causes: list[str]) -> None:
        begin = time.monotonic()
        self.state = "installing"
        plan = make_plan(self.fabric, self.policy, self.seed, down)
        planned = time.monotonic()
        old = self.plan
        found = self._read(fresh, [p for p in (old, plan) if p is not None])
        changes = phases(old, plan, found)
        tried = [*self._in_step, *fresh]
        reach = [c for c in self.channels.values() if c in self._in_step or c.name in found]
        self._in_step.clear()
        # From here on this is what they were told, whatever comes of it.
        self.plan = plan
        self.generation += 1
        for phase in changes or [()]:  # what was foreign is to be gone, too
            reach = self._carry_out(phase, reach)
        self._in_step.update(c for c in reach if c.alive)
        self.retries.succeeded([c.name for c in self._in_step])
        seconds = time.monotonic() - begin
        self.replans.append({
            "generation": self.generation, "causes": causes, "ms": round(seconds * 1e3, 1),
            "planning_ms": round((planned - begin) * 1e3, 1), "changes": sum(len(p) for p in changes),
            "down_links": sorted(map(str, down.links)), "down_switches": sorted(down.switches),
            "unreachable_pairs": len(plan.unreachable)})
        self.logger.info("plan %d in force after %.0f ms, %d changes (%s)", self.generation, seconds * 1e3,
                         sum(len(p) for p in changes), "; ".join(causes))
        if self.generation == 1:
            self._await_probes()
        self._try_again([c for c in self.channels.values() if c not in self._in_step and c in tried])

    def _read(self, fresh: list[Channel], plans: list[Plan]) -> dict[str, Held]:
        """What these switches have; what no plan of ours could have put there is removed."""
        asked: list[tuple[Channel, Answer, Answer]] = []
        for channel in fresh:
            parser, datapath = channel.datapath.ofproto_parser, channel.datapath
            asked.append((channel, channel.ask(parser.OFPFlowStatsRequest(datapath), "what flows it has"),
                          channel.ask(parser.OFPGroupDescStatsRequest(datapath, 0), "what groups it has")))
        held = {}
        for channel, flows, groups in asked:
            try:
                found = openflow.found(channel.datapath, flows.wait(), groups.wait(),
                                       [p.switch(channel.name) for p in plans])
            except Refused as e:
                self._give_up(channel, str(e))
                continue
            for stats in found.foreign:
                channel.post(openflow.remove_foreign(channel.datapath, stats),
                             f"remove a foreign flow in table {stats.table_id}")
            held[channel.name] = found.held
        return held

    def _carry_out(self, phase: tuple[Change, ...], reach: list[Channel]) -> list[Channel]:
        """The channels of ``reach`` that have done their part of a phase."""
        by_name = {channel.name: channel for channel in reach}
        for change in phase:
            channel = by_name.get(change.switch)
            if channel is not None:
                channel.post(openflow.message(channel.datapath, change), _words(change))
        errors = {c.name: c.refusals for c in reach}
        barriers = [(channel, channel.barrier()) for channel in reach]
        done = []
        for channel, barrier in barriers:
            try:
                barrier.wait()
            except Refused as e:
                self._give_up(channel, str(e))
                continue
            if channel.refusals == errors[channel.name]:
                done.append(channel)
        return done

    def _give_up(self, channel: Channel, why: str) -> None:
        """For now; one that is gone is no error: it is planned without."""
        if channel.alive:
            self._note_refusal(channel, why)

    # -- links -------------------------------------------------------------------------------------------------

    def _probe(self, interval_s: float) -> None:
        assert self.discovery is not None
        while True:
            if self.replans:  # before the first, no switch would hand a probe on
                ends = self.live_ends()
                for end in self.discovery.due(ends, time.monotonic()):
                    channel = self.channels.get(end[0])
                    if channel is not None:
                        probe = openflow.send_frame(channel.datapath, end[1], self.discovery.probe(end))
                        channel.post(probe, f"a probe by port {end[1]}")
                lost = self.discovery.lost()
                if lost != self._lost:
                    cause = [f"no probes over {link}" for link in lost - self._lost]
                    cause += [f"probes over {link} again" for link in self._lost - lost]
                    self._lost = lost
                    self._changed("; ".join(sorted(cause)))
            hub.sleep(interval_s)

    def _await_probes(self) -> None:
        end = time.monotonic() + _FIRST_PROBES_S
        while (self.discovery is not None and not self.discovery.complete(self.live_ends())
               and time.monotonic() < end):
            hub.sleep(_SETTLE_S)


def _words(change: Change) -> str:
    item = change.item
    if isinstance(item, Flow):
        fields = {name: value for name, value in asdict(item.match).items() if value is not None}
        match = " ".join(f"{name}={value}" for name, value in fields.items())
        return f"{change.verb} flow in table {item.table}, priority {item.priority}, {match}"
    return f"{change.verb} group {item.number} of ports {', '.join(str(b.port) for b in item.buckets)}"
