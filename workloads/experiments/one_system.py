"""What ``smtnet run echo`` and ``run kv`` have in common: options of one transport on a topology, and what is
quoted of its trials."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from smtstack.errors import ConfigError
from topo.network import SmtNet
from topo.topologies import TOPOS
from workloads import transports
from workloads.experiments.experiment import Outcome, Running
from workloads.fleet.captures import Captures
from workloads.fleet.fleet import Fleet
from workloads.load.loops import Load
from workloads.options.common import JudgedResults, Params, param_words, positive
from workloads.options.declare import group, option
from workloads.options.network import Network
from workloads.options.overlay import Overlay
from workloads.options.session import Sessions, check_sessions, session_words
from workloads.options.waiting import Waits
from workloads.results.points import QuotedPoint, first_error, middle, session_lines
from workloads.results.row import Row


@dataclass(frozen=True)
class OneSystem:
    """Where, over what, how often, and what becomes of the results."""

    topo: str = option("--topo", default="back2back", metavar="T",
                       help=f"{', '.join(TOPOS)} with arguments, as star,4 (default: %(default)s)")
    transport: str = option("--transport", choices=transports.NAMES, default="smt", help="(default: %(default)s)")
    nic: str = option("--nic", choices=("sw", "hw"), default="sw",
                      help="who seals SMT's records: software, or the NIC's TLS offload (default: %(default)s)")
    processes: int = option("--processes", type=positive, default=1, metavar="P",
                            help="client processes a host (default: 1)")
    connections: int = option(
        "--connections", type=positive, default=0, metavar="N",
        help="tcp, tls, ktls: connections of a client process, RPCs pipelined (default: one an RPC)")
    waits: Waits = group(Waits)
    overlay: Overlay = group(Overlay)
    params: Params = group(Params)
    sessions: Sessions = group(Sessions)
    keylog: bool = option("--keylog", action="store_true",
                          help="smt: keep certificates and the secrets of all sessions in hosts/.../keys/, for "
                               "'smtnet pcap decrypt' (default: kept nowhere; --capture keeps them, too)")
    trials: int = option("--trials", type=positive, default=3, metavar="N",
                         help="the middle one is quoted (default: %(default)s)")
    network: Network = group(Network)
    capture: bool = option("--capture", action="store_true",
                           help="record every host's interface into pcap/, verify the captures, and keep the keys")
    end: JudgedResults = group(JudgedResults)

    @property
    def keep_keys(self) -> bool:
        """Whether the secrets of sessions stay: a capture of a run whose keys are gone would be worth little."""
        return self.capture or self.keylog

    def transport_words(self) -> tuple[str, ...]:
        """``--overlay``, ``--param`` and what sessions agree on again, for servers and clients.

        Raises :class:`ConfigError`.
        """
        if self.params.param and self.transport not in transports.PACKET_TRANSPORTS:
            ours = ", ".join(transports.PACKET_TRANSPORTS)
            raise ConfigError(f"--param is for {ours}; {self.transport} has none of ours")
        check_sessions(self.sessions, [self.transport])
        self.overlay.check([self.transport])
        if self.keylog and self.transport != "smt":
            raise ConfigError(f"--keylog is for transport smt, not for {self.transport}")
        return (*self.overlay.words(self.transport), *param_words(self.params.param),
                *session_words(self.sessions, self.transport))

    def captures(self, net: SmtNet, running: Running) -> AbstractContextManager[Captures | None]:
        """The captures of a measurement, if it wants any."""
        return Captures(net, running.folder.path / "pcap") if self.capture else nullcontext()


def measured_trials(asked: OneSystem, seed: int, fleet: Fleet, load: Load, running: Running) -> list[Row]:
    """A row for each trial, up to the first that failed; ``load`` is of the first, later ones have other seeds."""
    rows: list[Row] = []
    for trial in range(1, asked.trials + 1):
        running.progress.step(f"trial {trial} of {asked.trials}")
        measured = fleet.measure(replace(load, seed=seed + trial - 1), trial)
        rows.append(measured.row)
        running.folder.save_raw(f"trial{trial}", measured.rtt_ns)
        if measured.tags:
            running.folder.save_raw(f"trial{trial}{fleet.TAGS}", measured.tags)
        if measured.row["errors"] or not measured.row["content_ok"]:
            break
    return rows


def counters_and_judgement(running: Running, fleet: Fleet, captures: Captures | None,
                           canary: bytes) -> dict[str, Any] | None:
    """When all is measured and the processes have ended: counters.json, and what the captures prove."""
    running.folder.write("counters.json", json.dumps(fleet.counters, indent=1) + "\n")
    if captures is None:
        return None
    running.progress.say("verifying the captures")
    return captures.judge(fleet, canary)


def quote(asked: OneSystem, seed: int, rows: Sequence[Row], captured: Mapping[str, Any] | None,
          **more: Any) -> Outcome:
    """The middle trial, the figures of all, and ``captured``, what the captures prove. ``more`` are further fields
    of the JSON."""
    point = middle(rows)
    result = {**point.quoted, "errors": point.errors, "content_ok": point.content_ok,
              "trials": [row["rtt_us"]["p50"] if row["mode"] == "unloaded" else row["rpc_per_s"] for row in rows],
              **more}
    lines = [*session_lines(rows), *fabric_lines(point.quoted.get("fabric", {}))]
    if captured is not None:
        result["capture"] = captured
        lines.append("captures: " + ", ".join(f"{k} {v}" for k, v in captured.items()))
    return Outcome(rows, result, "\n".join(lines), seed=seed,
                   failed=_failed(asked.transport, rows, point, captured))


def fabric_lines(octets: Mapping[str, int]) -> list[str]:
    """What each switch sent to which others in the quoted trial, busiest first; nothing where there is one
    switch."""
    by_switch: dict[str, list[str]] = {}
    for way, sent in sorted(octets.items(), key=lambda item: -item[1]):
        switch, _to, other = way.partition(">")
        by_switch.setdefault(switch, []).append(f"{other} {sent / 1e6:.2f}")
    return [f"MB from {switch} to: {', '.join(ways)}" for switch, ways in by_switch.items()]


def _failed(transport: str, rows: Sequence[Row], point: QuotedPoint, captured: Mapping[str, Any] | None) -> str:
    """What did, or ""."""
    if point.failed:
        return first_error(rows) or f"{point.errors} RPCs failed"
    if captured is not None and (captured.get("records_bad") or captured.get("nonce_reuse") or
                                 (captured["canary_frames"] and captured["encrypted"])):
        return "the captures hold what they must not: bad records, a nonce used twice or plaintext"
    return ""
