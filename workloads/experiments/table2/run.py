"""``smtnet reproduce table2``: where the time of a handshake goes, operation by operation and side by side.

Everything runs in this process, without a network: the operations alone, then whole handshakes as the stack makes
them. What of a handshake is none of these operations is messages, the library and Python.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.table2 import flows as handshake_flows
from workloads.experiments.table2 import steps as handshake_steps
from workloads.experiments.table2.steps import Step, quartiles
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results import plots
from workloads.results.fidelity import FidelityMonitor
from workloads.results.folder import csv_text
from workloads.results.published import Beside, Published

ROUNDS, STEP_CALLS, FLOW_CALLS = 20, 50, 20
QUICK_ROUNDS = 2
SIDES = ("server", "client")
#: The operations of our TLS handshake with server authentication, by side, in the order of the paper's Table 2.
#: The paper's ServerHello (75 us) is within OpenSSL here, so in the remainder.
TLS_STEPS = {
    "server": ("key generation, P-256", "ECDH, P-256", "certificate encode", "CertVerify sign, ECDSA P-256",
               "secrets (HKDF)", "Finished"),
    "client": ("key generation, P-256", "ECDH, P-256", "secrets (HKDF)", "verify certificate, CA at hand",
               "CertVerify verify, ECDSA P-256", "Finished"),
}
PAPER_SERVER_HELLO_US = 75
REST = "messages (ServerHello), library, Python"
_FLOW = "tls, ECDSA P-256"
_COLORS = ("#0072B2", "#56B4E9", "#009E73", "#E69F00", "#D55E00", "#CC79A7", "#BBBBBB")

_EXAMPLES = """examples:
  smtnet reproduce table2 --quick
  smtnet reproduce table2 --json

Writes results/<UTC time>-table2/: table2.json, steps.csv, handshakes.csv, table2.png. Takes half a minute. Needs
no root and no network.
"""


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce table2`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help="a tenth of the repetitions")
    end: QuotedResults = group(QuotedResults)
    rounds: int | None = option("--rounds", type=positive, metavar="N",
                                help=f"how often all of them take turns (default: {ROUNDS})")


def check(asked: Options) -> int:
    """Rounds, filled in."""
    return asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)


def measure(rounds: int, running: Running) -> Outcome:
    """The tables of operations and handshakes; there are no rows."""
    steps = handshake_steps.steps()
    flows = [*handshake_flows.flows(), handshake_flows.ticket_check()]
    step_times: dict[str, list[float]] = {}
    flow_times: dict[str, list[tuple[float, float, float]]] = {}
    monitor = FidelityMonitor()
    monitor.start()
    for number in range(1, rounds + 1):
        running.progress.step(f"round {number} of {rounds}")
        for name, found in handshake_steps.measure(steps, STEP_CALLS).items():
            step_times.setdefault(name, []).extend(found)
        for name, sessions in handshake_flows.measure(flows, FLOW_CALLS).items():
            flow_times.setdefault(name, []).extend(sessions)
    fidelity = monitor.stop()
    alone, whole = step_table(steps, step_times), flow_table(flow_times)
    tls = break_down(alone, whole)
    table: dict[str, Any] = {"steps": alone, "handshakes": whole, "tls": tls}
    picture(tls, running.folder.path / "table2.png")
    return Outcome(result=table, text=as_text(table), table=False, parameters={"rounds": rounds}, seed=None,
                   fidelity=fidelity, published=beside(tls),
                   files={"table2.json": json.dumps(table | {"fidelity": fidelity}, indent=1) + "\n",
                          "steps.csv": csv_text(alone), "handshakes.csv": csv_text(whole)})


def step_table(steps: Sequence[Step], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """One entry for each operation: quartiles here, and the paper's by side, in microseconds."""
    out = []
    for step in steps:
        low, median, high = quartiles(times[step.name])
        out.append({"step": step.name, "side": step.side, "q1_us": round(low, 2), "median_us": round(median, 2),
                    "q3_us": round(high, 2), "paper_server_us": step.paper_us.get("server"),
                    "paper_client_us": step.paper_us.get("client")})
    return out


def flow_table(times: dict[str, list[tuple[float, float, float]]]) -> list[dict[str, Any]]:
    """One entry for each way to begin a session: medians of client, server, both (and their quartiles), and of the
    processor time, in microseconds."""
    out = []
    for name, sessions in times.items():
        low, median, high = quartiles([client + server for client, server, _cpu in sessions])
        out.append({"handshake": name,
                    **{f"{side}_us": round(quartiles([session[index] for session in sessions])[1], 1)
                       for index, side in enumerate(("client", "server", "cpu"))},
                    "both_us": round(median, 1), "q1_us": round(low, 1), "q3_us": round(high, 1)})
    return out


def break_down(steps: Sequence[dict[str, Any]],
               flows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """By side of a TLS handshake with server authentication (ECDSA) each operation's time and share, here and in
    the paper; the last entry is what of the handshake no operation explains."""
    by_name = {entry["step"]: entry for entry in steps}
    whole = next(entry for entry in flows if entry["handshake"] == _FLOW)
    out: dict[str, list[dict[str, Any]]] = {}
    for side in SIDES:
        paper = {name: by_name[name][f"paper_{side}_us"] or 0.0 for name in TLS_STEPS[side]}
        rest_paper = PAPER_SERVER_HELLO_US if side == "server" else 0
        paper_total = sum(paper.values()) + rest_paper
        total = whole[f"{side}_us"]
        lines = [{"step": name, "us": by_name[name]["median_us"], "paper_us": paper[name]}
                 for name in TLS_STEPS[side]]
        rest = total - sum(line["us"] for line in lines)
        lines.append({"step": REST, "us": round(rest, 1), "paper_us": rest_paper})
        out[side] = [line | {"share": round(line["us"] / total, 3),
                             "paper_share": round(line["paper_us"] / paper_total, 3)} for line in lines]
    return out


def beside(tls: dict[str, list[dict[str, Any]]]) -> list[Beside]:
    """Each operation's time, and its share of its side's."""
    lines = [(side, part) for side, parts in tls.items() for part in parts]
    return [Beside(what, side, part["step"], part[here], part[paper], bars=True)
            for what, here, paper in (("time (us)", "us", "paper_us"),
                                      ("share of the side's time", "share", "paper_share"))
            for side, part in lines]


def as_text(table: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'operation alone, us':<40}{'median':>9}{'quartiles':>18}{'paper, server':>15}{'client':>8}"]
    for entry in table["steps"]:
        paper = "".join(f"{'' if entry[name] is None else format(entry[name], '.0f'):>{width}}"
                        for name, width in (("paper_server_us", 15), ("paper_client_us", 8)))
        spread = f"{entry['q1_us']:.1f}-{entry['q3_us']:.1f}"
        lines.append(f"{entry['step']:<40}{entry['median_us']:>9.1f}{spread:>18}{paper}".rstrip())
    lines += ["", f"{'whole handshake, us':<40}{'client':>9}{'server':>9}{'both':>9}{'quartiles':>14}{'cpu':>8}"]
    for entry in table["handshakes"]:
        spread = f"{entry['q1_us']:.0f}-{entry['q3_us']:.0f}"
        lines.append(f"{entry['handshake']:<40}{entry['client_us']:>9.0f}{entry['server_us']:>9.0f}"
                     f"{entry['both_us']:>9.0f}{spread:>14}{entry['cpu_us']:>8.0f}")
    for side, parts in table["tls"].items():
        lines += ["", f"{f'tls with ECDSA, {side}':<40}{'us':>9}{'share':>9}{'paper us':>10}{'share':>9}"]
        lines += [f"{part['step']:<40}{part['us']:>9.1f}{part['share']:>9.0%}{part['paper_us']:>10.0f}"
                  f"{part['paper_share']:>9.0%}" for part in parts]
    return "\n".join(lines)


def picture(tls: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Shares of each side's time in the paper and here, as stacked bars."""
    figure = plots.new_figure(8.4, 3.4)
    axes = figure.subplots()
    names = [*dict.fromkeys(part["step"] for parts in tls.values() for part in parts[:-1]), REST]
    bars = [(f"{side}, {where}", {part["step"]: part[field] for part in parts})
            for side, parts in tls.items() for where, field in (("paper", "paper_share"), ("here", "share"))]
    left = [0.0] * len(bars)
    for index, name in enumerate(names):
        widths = [100 * shares.get(name, 0.0) for _label, shares in bars]
        axes.barh([label for label, _shares in bars], widths, left=left, label=name,
                  color=_COLORS[-1] if index == len(names) - 1 else _COLORS[index % (len(_COLORS) - 1)],
                  hatch="//" if len(_COLORS) - 1 <= index < len(names) - 1 else None, edgecolor="white")
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("share of the side's time (%)")
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


EXPERIMENT = Experiment(
    "table2", command="reproduce", help="where the time of a handshake goes",
    description=textwrap.fill(
        "Time of each operation of a handshake, and of whole handshakes by TLS, ticket and PSK, "
        "client and server apart, beside the paper's Table 2.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure, steps=lambda rounds: ("table2", rounds),
    sandboxed=False, needs_pictures=True, ends_with="results", place=30,
    published=Published(
        "SMT paper (IEEE S&P 2026), Table 2", "nothing: the operations run as they are, in one process",
        not_comparable="microseconds: another processor and another library (OpenSSL here, picotls there), "
                       "and Python around them; shares of a side's time stand beside each other"))
