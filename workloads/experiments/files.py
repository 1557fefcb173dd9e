"""``smtnet run files``: a server of static files over kernel TCP, by four paths: copies, and who computes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from smtstack import quantities
from smtstack.errors import ConfigError
from workloads.experiments.experiment import Experiment, Outcome, Running
from workloads.experiments.offload import figures, hazard, pictures
from workloads.experiments.offload.hosts import StreamRow, Transfer, open_pairs
from workloads.experiments.offload.senders import KTLS_NIC, KTLS_SW, PLAIN, TLS, How
from workloads.options import common as options
from workloads.options.declare import group, option
from workloads.options.network import Network
from workloads.results.folder import csv_text
from workloads.results.kinds import Mode, Picture
from workloads.results.row import Row

MODE = "files"
#: By the names of paths: who seals.
PATHS = {"plain": PLAIN, "read": TLS, "sendfile-sw": KTLS_SW, "sendfile-nic": KTLS_NIC}
YARDSTICK, IN_NIC = "read", "sendfile-nic"
ZEROCOPY = "sendfile-nic, zerocopy"
TOPO = "back2back"
CONNECTIONS, TRIALS, SIZE = [1, 4], 5, 64_000_000
QUICK_CONNECTIONS, QUICK_SIZE = [1], 4_000_000
_WARM_UP = 1_000_000
_LEAST = hazard.OFFSET + hazard.FIRST + hazard.SECOND

_EXAMPLES = """examples:
  smtnet run files
  smtnet run files --path read,sendfile-sw --nic-hosting inline --size 20MB --connections 1,8
  smtnet run files --path sendfile-nic --zerocopy ro --quick --json

A client asks for a file; the server sends it as plain (the kernel's sendfile), read (read, OpenSSL, write),
sendfile-sw (sendfile with our kernel TLS by software), sendfile-nic (the NIC seals). Results are in
results/<UTC time>-files/: files.csv, files.png, what every run leaves. docs/tls-offload.md: what is counted.
exit code: 0 ok, 1 a transfer failed or its content was wrong, 2 usage, 3 the machine lacks something
           ('smtnet doctor' says what), 4 the run was not faithful, with --strict
"""


def _paths(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in PATHS:
            raise argparse.ArgumentTypeError(f"there is no path {name!r}; there are {', '.join(PATHS)}")
    return names


def _numbers(text: str) -> list[int]:
    return sorted({options.positive(number) for number in text.split(",")})


@dataclass(frozen=True)
class Options:
    """What ``smtnet run files`` takes on its command line."""

    path: list[str] | None = option("--path", type=_paths, metavar="P[,P...]",
                                    help=f"{', '.join(PATHS)} (default: all; sendfile-nic needs "
                                         "--nic-hosting tap)")
    size: int | None = option("--size", type=quantities.BYTES, metavar="B",
                              help=f"bytes of the file (default: {SIZE // 1_000_000}MB; --quick: "
                                   f"{QUICK_SIZE // 1_000_000}MB)")
    connections: list[int] | None = option(
        "--connections", type=_numbers, metavar="N[,N...]",
        help="connections that carry the file at once, each by a process at both ends (default: "
             f"{','.join(map(str, CONNECTIONS))}; --quick: 1)")
    zerocopy: str = option(
        "--zerocopy", choices=("off", "ro"), default="off",
        help="ro: also sendfile-nic with TLS_TX_ZEROCOPY_RO, and what a file that changes does to it")
    trials: int | None = option("--trials", type=options.positive, metavar="N",
                                help=f"of each point (default: {TRIALS}; --quick: 1)")
    seed: int = option("--seed", type=options.positive, default=1, help="of the file (default: 1)")
    quick: bool = option("--quick", action="store_true", help="one trial, a small file, one connection")
    network: Network = group(Network, hosting="tap")
    end: options.QuotedResults = group(options.QuotedResults)


@dataclass(frozen=True)
class Plan:
    """What was left open, filled in."""

    asked: Options
    paths: dict[str, How]
    size: int
    connections: list[int]
    trials: int


def check(asked: Options) -> Plan:
    """Everything that can be seen before a network is made."""
    quick, size = asked.quick, asked.size or (QUICK_SIZE if asked.quick else SIZE)
    asked.network.check(TOPO, asked.seed)
    has_nic = asked.network.hosting == "tap"
    names = asked.path or [name for name in PATHS if has_nic or name != IN_NIC]
    if IN_NIC in names and not has_nic:
        raise ConfigError(f"--path {IN_NIC} needs --nic-hosting tap: the NIC has to own the interface")
    if asked.zerocopy == "ro":
        if IN_NIC not in names:
            raise ConfigError(f"--zerocopy ro is of path {IN_NIC}: leave --path out, or name it")
        if size < _LEAST:
            raise ConfigError(f"--zerocopy ro: a file of {size} bytes is too small to be played with; at least "
                              f"{_LEAST}")
    paths = {name: How(PATHS[name]) for name in names}
    if asked.zerocopy == "ro":
        paths[ZEROCOPY] = How(KTLS_NIC, zerocopy=True)
    return Plan(replace(asked, size=size), paths, size,
                asked.connections or (QUICK_CONNECTIONS if quick else CONNECTIONS),
                asked.trials or (1 if quick else TRIALS))


def measure(plan: Plan, running: Running) -> Outcome:
    """A row for each path, number of connections and trial. Raises SmtError for a transfer that failed."""
    rows: list[StreamRow] = []
    played: list[hazard.Hazard] = []
    asked = plan.asked
    with running.network(asked.network, TOPO, asked.seed) as net, \
            open_pairs(net, TOPO, plan.size, asked.seed, running.folder.path, plan.connections[-1]) as pairs:
        transfers = [Transfer(name, how, plan.size, connections=number)
                     for number in plan.connections for name, how in plan.paths.items()]
        for transfer in transfers[:len(plan.paths)]:
            running.progress.say(f"{transfer.name}, warm-up")
            pairs.measure(replace(transfer, count=min(plan.size, _WARM_UP)), 0, MODE)
        for trial in range(1, plan.trials + 1):
            for transfer in transfers:
                running.progress.step(f"{transfer.name}, x{transfer.connections}, trial {trial}")
                rows.append(pairs.measure(transfer, trial, MODE))
        if asked.zerocopy == "ro":
            running.progress.say("a file that changes")
            played = [hazard.play(pairs, zerocopy) for zerocopy in (False, True)]
    return _outcome(plan, rows, played)


def _outcome(plan: Plan, rows: list[StreamRow], played: list[hazard.Hazard]) -> Outcome:
    table = figures.lines(rows, YARDSTICK)
    text = figures.as_text(table, YARDSTICK, "file", copies=True) + "\n" + figures.NOTE
    result: dict[str, Any] = {"points": table}
    if played:
        text += "\n\n" + hazard.as_text(played)
        result["hazard"] = played
    wrong = [one["mode"] for one in played if not hazard.as_expected(one)]
    return Outcome(rows, result, text, table=False, seed=plan.asked.seed, parameters=plan.asked,
                   files={"files.csv": csv_text(figures.as_csv_rows(table))},
                   failed=f"a file that changes: {', '.join(wrong)} did not end as it must" if wrong else "")


def picture(rows: Sequence[Row], path: Path) -> bool:
    """Throughput, processor time and copies by path, for the fewest connections and the most. False: no such rows,
    no file."""
    found = [cast(StreamRow, row) for row in rows if row["mode"] == MODE]
    return bool(found) and pictures.by_path(figures.lines(found, YARDSTICK), path)


EXPERIMENT = Experiment(
    "files", help="serving files: read and TLS, sendfile with TLS by software or by the NIC", examples=_EXAMPLES,
    description="A server of static files over kernel TCP: throughput, processor time of host and NIC, and copies "
                "of each byte, by path. Every file is compared by SHA-256.",
    options=Options, check=check, measure=measure, place=60,
    steps=lambda plan: ("run files", plan.trials * len(plan.paths) * len(plan.connections)),
    kinds=(Mode(MODE, heading="files per second"),
           Picture("files.png", picture, "Files by four ways: throughput, processor time, copies")))
