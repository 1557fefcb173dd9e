"""``smtnet reproduce sessions``: what thousands of concurrent sessions cost a server, and whether it forgets them.

A server process on one host, on the other one process with a session from each of ``--count`` ports. In every
round all sessions begin with an echo, all echo once more (so all were alive at the same time), and all are closed.
What the server's memory does meanwhile is the result; the second round must find what the first gave back. What
was freed stays with the process, as allocators keep what is in pieces: growth from round to round is what counts.
"""

from __future__ import annotations

import json
import tempfile
import textwrap
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from smtstack.errors import ConfigError, SmtError
from smtstack.session.established import MODES
from topo.host import SmtHost
from topo.network import SmtNet, open_network
from topo.running import Program, python_program
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.fleet import credentials
from workloads.fleet import dns as fleet_dns
from workloads.fleet.fleet import split_cores
from workloads.options.common import QuotedResults, positive
from workloads.options.declare import group, option
from workloads.results.fidelity import FidelityMonitor
from workloads.results.folder import csv_text
from workloads.results.published import Published
from workloads.results.row import Verdict
from workloads.transports.sessions import FROM_SESSIONS, FROM_TICKETS

TOPO = "back2back"
PORT, FIRST_CLIENT_PORT, LAST_PORT = 2000, 0x8000, 0xFFFF
COUNT, QUICK_COUNT, ROUNDS = 10_000, 200, 2
#: Sessions that begin, or echo, at a time: more would only wait for a processor, for longer than timers do.
WINDOW = 8
SIZE = 64
#: Seconds until a server has forgotten the flights of the last handshakes and closes
#: (``SessionConfig.handshake_ns``), and one more.
SETTLE_S = 6.0
#: What a later round may need more than the first did: a share of what its sessions cost, and bytes in all.
#: An allocator does not give back what it got to the last page, nor in the same order.
GROWTH_SHARE, GROWTH_BYTES = 0.05, 1 << 20
#: Bytes a server remembers of each hello of a 0-RTT session, for an hour, so that none counts twice: a hash, and
#: its place in a table.
HELLO_BYTES = 256
_MB = 1 << 20

_EXAMPLES = """examples:
  smtnet reproduce sessions --quick
  smtnet reproduce sessions --count 10000 --session mtls
  smtnet reproduce sessions --count 10000 --session psk --json

Writes results/<UTC time>-sessions/: sessions.csv, run.json. 10,000 sessions take some four minutes (--quick: ten
seconds). Needs root. Exit code 1 if a session failed or the server's memory grew.
"""


@dataclass(frozen=True, slots=True)
class Stage:
    """The server's memory after something was done, and how that went."""

    round: int
    name: str
    """``start``, ``open``, ``echo`` or ``closed``."""
    rss: int
    pss: int
    uss: int
    """Bytes; ``uss`` is what nobody shares."""
    done: int = 0
    seconds: float = 0.0
    median_us: float | None = None


@dataclass(frozen=True)
class Options:
    """What ``smtnet reproduce sessions`` takes on its command line."""

    quick: bool = option("--quick", action="store_true", help=f"{QUICK_COUNT} sessions")
    end: QuotedResults = group(QuotedResults)
    count: int | None = option("--count", type=positive, metavar="N", help=f"sessions (default: {COUNT})")
    rounds: int = option("--rounds", type=positive, default=ROUNDS, metavar="R",
                         help="how often they begin and end (default: %(default)s)")
    session: str = option("--session", choices=MODES, default="mtls",
                          help="how they begin; psk: from the second round on (default: %(default)s)")


@dataclass(frozen=True)
class Plan:
    """What is measured, and how often."""

    session: str
    """How they begin."""
    count: int
    """Sessions."""
    rounds: int


def check(asked: Options) -> Plan:
    """What the user left open, filled in."""
    count = asked.count or (QUICK_COUNT if asked.quick else COUNT)
    if FIRST_CLIENT_PORT + count - 1 > LAST_PORT:
        raise ConfigError(f"--count {count}: a client has {LAST_PORT - FIRST_CLIENT_PORT + 1} ports for sessions")
    return Plan(asked.session, count, asked.rounds)


def measure(plan: Plan, running: Running) -> Outcome:
    """The stages and the verdict on them; there are no rows."""
    stages, counters, fidelity = _measure(plan, running)
    verdict = judge(stages, plan.count, early=plan.session in (*FROM_TICKETS, *FROM_SESSIONS))
    result = {**asdict(plan), **verdict, "stages": [asdict(stage) for stage in stages], "server": counters}
    failed = ("the server's memory grew from round to round: " + "; ".join(verdict["reasons"])
              if verdict["flat"] is False else "")
    return Outcome(result=result, text=as_text(plan.session, stages, verdict), table=False, failed=failed,
                   parameters=asdict(plan), seed=None, fidelity=fidelity,
                   files={"sessions.json": json.dumps({**result, "fidelity": fidelity}, indent=1) + "\n",
                          "sessions.csv": csv_text([asdict(stage) for stage in stages])})


# -- measuring -------------------------------------------------------------------------------------------------

def _measure(plan: Plan, running: Running) -> tuple[list[Stage], dict[str, Any], Verdict]:
    """(the stages, what the server counted, the verdict of fidelity)."""
    progress, count = running.progress, plan.count
    logs = running.folder.path / "hosts"
    logs.mkdir()
    with open_network(TOPO, progress=progress.say) as net, ExitStack() as stack:
        progress.step("starting the server")
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(dir="/run")), "certs")
        server, client = _programs(net, plan, keys, logs, stack)
        process = psutil.Process(server.pid)
        monitor = FidelityMonitor(pids=[server.pid, client.pid])
        monitor.start()
        stages = [_stage(process, 0, "start")]
        for number in range(1, plan.rounds + 1):
            for name in ("open", "echo", "closed"):
                progress.step(f"round {number} of {plan.rounds}: {name}")
                client.tell({"do": name})
                answer = client.answer()
                if answer["done"] != count:
                    raise SmtError(f"{name}, round {number}: {answer['done']} of {count} sessions, "
                                   f"{answer['failed']} failed, {answer['wrong']} with wrong content: "
                                   f"{answer['first_error'] or 'no error was told'}")
                if name == "closed":
                    time.sleep(SETTLE_S)
                stages.append(_stage(process, number, name, answer))
        fidelity = monitor.stop()
        counters = json.loads(server.stop())["counters"]
        if counters["sessions"]:
            raise SmtError(f"the server still has {counters['sessions']} sessions after all were closed")
        return stages, counters, fidelity


def _stage(server: psutil.Process, number: int, name: str, answer: dict[str, Any] | None = None) -> Stage:
    memory = server.memory_full_info()
    found = answer or {"done": 0, "seconds": 0.0, "median_us": None}
    return Stage(number, name, memory.rss, memory.pss, memory.uss, found["done"], round(found["seconds"], 3),
                 found["median_us"])


def _programs(net: SmtNet, plan: Plan, keys: Path, logs: Path, stack: ExitStack) -> tuple[Program, Program]:
    """Server and client, ready, each on its host and its processors; for tickets a DNS server beside them. All end
    with ``stack``."""
    (asks, answers), = net.flows
    made = credentials.make(keys, "smt", {host.name: host.IP() for host in net.hosts})
    cores = split_cores([host.name for host in net.hosts], psutil.Process().cpu_affinity() or [])
    common = ["--session", plan.session]
    if plan.session in FROM_TICKETS:
        dns = stack.enter_context(fleet_dns.server_for(net, {asks: [answers]}, keys, 0))
        common += ["--dns", "{}:{}".format(*dns.address)]

    def start(host: SmtHost, what: str, log: str, ready: str, module: str, *words: str) -> Program:
        arguments = [*words, "--iface", str(host.defaultIntf()), *common, *made.args(host.name)]
        program = Program(host, what, python_program(module, *arguments), logs / log, cores=cores.get(host.name),
                          environment=made.environment(host.name))
        stack.callback(program.stop)
        program.wait_for(ready)
        return program

    server = start(answers, "echo server", "server.log", "serving", "workloads", "serve", "echo", "--transport",
                   "smt", "--addr", f"{answers.IP()}:{PORT}", "--json")
    return server, start(asks, "client of many sessions", "client.log", "ready",
                         "workloads.experiments.sessions.program", "--addr", f"{asks.IP()}:{FIRST_CLIENT_PORT}",
                         "--peer", f"{answers.IP()}:{PORT}", "--count", str(plan.count), "--window", str(WINDOW),
                         "--size", str(SIZE))


# -- judging ---------------------------------------------------------------------------------------------------

def judge(stages: Sequence[Stage], count: int, early: bool = False) -> dict[str, Any]:
    """``kb_per_session`` (of the first round), ``sessions_per_s`` and ``kept_kb_per_session`` by round, and
    whether memory is ``flat``: no later round needs more, open or closed, than the first did, up to a small share.
    None: there was one round only. ``early``: hellos are remembered."""
    by_name = {(stage.round, stage.name): stage for stage in stages}
    start = by_name[0, "start"]
    rounds = sorted({stage.round for stage in stages if stage.round})
    cost = by_name[1, "echo"].uss - start.uss
    reasons = []
    for number in rounds[1:]:
        allowed = GROWTH_SHARE * max(0, cost) + GROWTH_BYTES + early * HELLO_BYTES * count * (number - 1)
        for name in ("echo", "closed"):
            grown = by_name[number, name].uss - by_name[1, name].uss
            if grown > allowed:
                reasons.append(f"round {number}, {name}: {grown / 1024:,.0f} KB more than in the first, "
                               f"{allowed / 1024:,.0f} KB are allowed")
    opened = [by_name[number, "open"] for number in rounds]
    return {
        "kb_per_session": round(cost / count / 1024, 2),
        "kept_kb_per_session": [round((by_name[n, "closed"].uss - start.uss) / count / 1024, 2) for n in rounds],
        "sessions_per_s": [round(stage.done / stage.seconds, 1) if stage.seconds else 0.0 for stage in opened],
        "flat": not reasons if len(rounds) > 1 else None, "reasons": reasons}


def as_text(session: str, stages: Sequence[Stage], verdict: dict[str, Any]) -> str:
    """For people."""
    lines = [f"{'':<18}{'sessions':>10}{'per s':>9}{'median us':>11}{'RSS MB':>9}{'PSS MB':>9}{'own MB':>9}"]
    for stage in stages:
        head = f"round {stage.round}, {stage.name}" if stage.round else "server alone"
        rate = f"{stage.done / stage.seconds:,.0f}" if stage.seconds else ""
        median = "" if stage.median_us is None else f"{stage.median_us:,.0f}"
        memory = "".join(f"{size / _MB:>9.1f}" for size in (stage.rss, stage.pss, stage.uss))
        lines.append(f"{head:<18}{stage.done:>10,}{rate:>9}{median:>11}{memory}")
    flat = {True: "flat", False: "not flat", None: "not known to be flat: one round says nothing of growth"}
    lines.append(f"{session}: {verdict['kb_per_session']} KB a session; after close {flat[verdict['flat']]}"
                 + "".join(f"\n  {reason}" for reason in verdict["reasons"]))
    return "\n".join(lines)


EXPERIMENT = Experiment(
    "sessions", command="reproduce",
    help="thousands of concurrent sessions: a server's memory, and what stays of it",
    description=textwrap.fill(
        "Many sessions with one server process, all alive at the same time: memory of each, "
        "handshakes per second, and memory after all were closed.", 100),
    examples=_EXAMPLES, options=Options, check=check, measure=measure,
    steps=lambda plan: ("sessions", 1 + 3 * plan.rounds), ends_with="results", place=50,
    published=Published(
        emulated="two hosts on a cable: network namespaces on one machine; sessions, handshakes and memory "
                 "are real",
        not_comparable="anything published: the paper says that sessions are held in numbers, and has no "
                       "figure of it"))
