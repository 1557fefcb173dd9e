"""What the fan-out controller knows, as JSON over HTTP, on this machine only: see docs/controllers.md."""

from __future__ import annotations

import json
import os
import socket
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ryu.app.wsgi import ControllerBase, Response, route

from controllers.channel import Refused
from smtstack.errors import ConfigError, SmtError
from topo.shaping import priority_counters

if TYPE_CHECKING:
    from controllers.fabric import Link
    from controllers.multipath import Multipath

#: Name under which the application is handed to requests.
APP = "multipath"
_PORT_FIELDS = ("rx_packets", "rx_bytes", "rx_dropped", "tx_packets", "tx_bytes", "tx_dropped")


def status(app: Multipath) -> dict[str, Any]:
    """How it is: ``state`` and why, switches, links by LLDP, and the last plans."""
    plan, discovery = app.plan, app.discovery
    counts = {} if plan is None else {s.name: s for s in plan.switches}
    links: dict[str, Any] = {"lldp": discovery is not None,
                             "down": [] if plan is None else sorted(map(str, plan.down.links))}
    if discovery is not None:
        links |= asdict(discovery.findings())
    return {
        "pid": os.getpid(), "state": app.state, "ready": app.state == "ready", "generation": app.generation,
        "multipath": app.policy, "seed": app.seed, "path_count": 0 if plan is None else plan.path_count,
        "switches": [{"name": s.name, "dpid": s.dpid, "connected": s.name in app.channels,
                      "flows": len(counts[s.name].flows) if counts else 0,
                      "groups": len(counts[s.name].groups) if counts else 0} for s in app.fabric.switches],
        "missing_switches": app.missing(), "unexpected_switches": sorted(app.strangers),
        "refusing": app.retries.refusing, "errors": app.errors, "last_errors": list(app.last_errors),
        "packet_ins": app.packet_ins,
        "unreachable": [] if plan is None else sorted(map(list, plan.unreachable)),
        "replans": list(app.replans), "links": links,
    }


def paths(app: Multipath, src: str, dst: str) -> dict[str, Any]:
    """The switches between two hosts by path number, and which path frames that name none take (null: several, or
    there is one only), and which of the switches refuse what they should do. Raises
    :class:`ConfigError` for an unknown host."""
    app.fabric.host(src), app.fabric.host(dst)
    if app.plan is None:
        raise ConfigError("there is no plan yet: no switch has come")
    ways = app.plan.paths(src, dst)
    return {"from": src, "to": dst, "multipath": app.policy, "path_count": app.plan.path_count,
            "flow_path": app.plan.flow_path(src, dst), "paths": [list(way) for way in ways],
            "distinct": len(set(ways)),
            "refusing": {name: why for name, why in app.retries.refusing.items()
                         if any(name in way for way in ways)}}


def counters(app: Multipath) -> dict[str, Any]:
    """What the switches' ports counted, by link and by host. ``priorities`` (7 is sent first) count what was sent,
    where the link has a rate and the switch is on this machine."""
    asked = {name: channel.ask(channel.datapath.ofproto_parser.OFPPortStatsRequest(
        channel.datapath, 0, channel.datapath.ofproto.OFPP_ANY), "what its ports counted")
        for name, channel in list(app.channels.items())}
    ports: dict[tuple[str, int], Any] = {}
    for name, answer in asked.items():
        try:
            ports |= {(name, entry.port_no): entry for entry in answer.wait()}
        except Refused:  # it has just gone
            continue

    def one(switch: str, number: int, interface: str) -> dict[str, Any]:
        entry = ports.get((switch, number))
        found: dict[str, Any] = {"switch": switch, "port": number, "interface": interface}
        if entry is not None:
            found |= {name: getattr(entry, name) for name in _PORT_FIELDS}
        return found | {"priorities": _priorities(interface)}

    def both(link: Link) -> dict[str, Any]:
        return {"link": str(link), "a": one(link.a, link.a_port, link.a_interface),
                "b": one(link.b, link.b_port, link.b_interface)}

    return {"links": [both(link) for link in app.fabric.links],
            "hosts": [{"host": h.name, **one(h.switch, h.port, h.interface)} for h in app.fabric.hosts]}


def _priorities(interface: str) -> dict[str, Any]:
    try:
        socket.if_nametoindex(interface)
    except OSError:  # the switch is on another machine
        return {}
    try:
        return {str(priority): asdict(c) for priority, c in sorted(priority_counters(interface).items())}
    except SmtError:  # it has just gone, or there is no tc here
        return {}


class MultipathRest(ControllerBase):
    """One for each request; Ryu makes it."""

    @property
    def _app(self) -> Multipath:
        app: Multipath = self.data[APP]
        return app

    @route("smtnet", "/status", methods=["GET"])
    def status(self, _request: Any) -> Response:
        return _json(status(self._app))

    @route("smtnet", "/topology", methods=["GET"])
    def topology(self, _request: Any) -> Response:
        return _json(asdict(self._app.fabric))

    @route("smtnet", "/plan", methods=["GET"])
    def plan(self, _request: Any) -> Response:
        plan = self._app.plan
        return _json({"error": "there is no plan yet: no switch has come"}, 404) if plan is None else _json(
            plan.to_json())

    @route("smtnet", "/paths/{src}/{dst}", methods=["GET"])
    def paths(self, _request: Any, src: str, dst: str) -> Response:
        try:
            return _json(paths(self._app, src, dst))
        except ConfigError as e:
            return _json({"error": str(e)}, 404)

    @route("smtnet", "/counters", methods=["GET"])
    def counters(self, _request: Any) -> Response:
        return _json(counters(self._app))


def _json(value: Any, code: int = 200) -> Response:
    return Response(content_type="application/json", status=code, body=(json.dumps(value) + "\n").encode())
