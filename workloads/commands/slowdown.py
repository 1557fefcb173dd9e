"""``smtnet slowdown``: message slowdown under load, in virtual time, beside the published curves of Homa."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.wire.homa import FORMATS
from workloads.experiments.slowdown import report
from workloads.experiments.slowdown.simulation import LoadRun, Result, Setting, ShareDone, mean_cost, unloaded_ns
from workloads.load.distributions import DEFAULT_CAP, WORKLOADS, Distribution, find, load_table
from workloads.results.plots import require_matplotlib

_DESCRIPTION = """\
Open-loop Poisson traffic, all to all through one switch, in a deterministic simulation of the real
transport and NIC. A message is timed from its scheduled arrival until it is delivered whole; slowdown is
that over the time a message of this size takes alone, in profile homa. docs/slowdown.md has results.
"""
_PROFILES = tuple(FORMATS)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    default = Setting()
    parser = commands.add_parser("slowdown", help="message slowdown under load, simulated",
                                 description=_DESCRIPTION)
    add = parser.add_argument
    add("--workload", default="w4", metavar="W|FILE",
        help=f"message sizes: {', '.join(WORKLOADS)}, or a file of sizes (default w4)")
    add("--load", type=quantities.FRACTION, default=default.load,
        help="share of every link for the DATA packets of requests "
        "and replies, headers included, as profile homa packs them (default %(default)s)")
    add("--hosts", type=quantities.POSITIVE, default=default.hosts,
        help="hosts at the switch (default %(default)s)")
    add("--profile", default="smt,homa", help="one or more of smt, homa, linux, upstream (default %(default)s)")
    add("--messages", type=quantities.POSITIVE, default=20_000,
        help="measured messages of each profile, all hosts together "
        "(default %(default)s)")
    add("--rate-mbps", type=quantities.WHOLE_MBPS, default=default.rate_mbps,
        help="of every link (default %(default)s)")
    add("--rtt-ns", type=quantities.NANOSECONDS,
        help="unloaded round trip of a full packet and a grant (default: 7800 at "
        "10 Gbit/s, in proportion at other rates)")
    add("--seed", type=quantities.NOT_NEGATIVE, default=default.seed, help="of the arrivals (default %(default)s)")
    add("--cap", type=quantities.BYTES, default=DEFAULT_CAP, help="longest message in bytes (default %(default)s)")
    add("--unsched-bytes", type=quantities.BYTES, default=default.unsched_bytes, help="bytes sent without a grant "
        "(default %(default)s)")
    add("--num-priorities", type=quantities.POSITIVE, default=default.num_priorities,
        help="1 to 8 (default %(default)s)")
    add("--max-gso-size", type=quantities.BYTES, default=default.max_gso_size, help="bytes of a TSO segment "
        "(default %(default)s: one packet)")
    add("--fifo-fraction", type=quantities.NOT_NEGATIVE, default=default.fifo_fraction,
        help="per mille of bandwidth for the oldest "
        "message (default %(default)s)")
    add("--dist-dir", type=Path, metavar="DIR", help="full size tables W1.csv to W5.csv (bytes,cum_frac) "
        "instead of the 25 bins built in")
    add("--reference", type=Path, metavar="CSV", help="published slowdowns to print beside")
    add("--out", type=Path, metavar="DIR", help="write slowdown-<workload>.csv, .json and .png here")
    add("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The command; 0 if every message arrived, else 1."""
    profiles = args.profile.split(",")
    for profile in profiles:
        if profile not in _PROFILES:
            raise ConfigError(f"unknown profile {profile!r}; there are {', '.join(_PROFILES)}")
    scale = Setting().rate_mbps / max(1, args.rate_mbps)
    setting = Setting(
        hosts=args.hosts, load=args.load, rate_mbps=args.rate_mbps,
        base_rtt_ns=args.rtt_ns or round(Setting().base_rtt_ns * scale),
        forwarding_ns=round(Setting().forwarding_ns * scale), unsched_bytes=args.unsched_bytes,
        num_priorities=args.num_priorities, max_gso_size=args.max_gso_size, fifo_fraction=args.fifo_fraction,
        messages=args.messages, seed=args.seed)
    if args.dist_dir is None:
        sizes = find(args.workload, args.cap)
    else:
        sizes = load_table(args.dist_dir / f"{args.workload.upper()}.csv", args.cap)
    table = "25 bins" if args.dist_dir is None and args.workload.lower() in WORKLOADS else "full"
    args.workload = sizes.name
    published = report.load_published(args.reference, args.workload, args.load) if args.reference else {}
    if args.out is not None:
        require_matplotlib()
        args.out.mkdir(parents=True, exist_ok=True)

    results = []
    for profile in profiles:
        with _progress(f"{args.workload} {profile}") as progress:
            results.append(LoadRun(setting, profile, sizes).run(progress))
    unloaded = unloaded_ns(setting, setting.params(sizes), {size for r in results for size in r.sizes})
    messages = {result.profile: report.simulated(result, unloaded) for result in results}
    rows = [row for profile, found in messages.items() for row in report.buckets(profile, found, published)]
    means = {profile: report.mean_slowdown(found) for profile, found in messages.items()}
    summary = _summary(args, setting, sizes, table, results, rows, means)
    if args.out is not None:
        stem = args.out / f"slowdown-{args.workload}"
        report.write_csv(stem.with_suffix(".csv"), rows)
        stem.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
        title = (f"{args.workload.upper()} (to {sizes.sizes[-1]:,} B), {setting.load:.0%} load, "
                 f"{setting.hosts} hosts, one switch, {setting.rate_mbps / 1000:g} Gbit/s")
        report.plot(stem.with_suffix(".png"), rows, title)
        print(f"wrote {stem}.csv, .json and .png", file=sys.stderr)
    if args.json:
        json.dump(summary, sys.stdout)
        print()
    else:
        _print(summary, rows)
    return 0 if all(r.drained and not r.failed for r in results) else 1


def _summary(args: argparse.Namespace, setting: Setting, sizes: Distribution, table: str, results: list[Result],
             rows: list[report.Bucket], means: dict[str, float]) -> dict[str, Any]:
    params = setting.params(sizes)
    outcome = []
    for result in results:
        lists = ("quantiles", "sizes", "times_ns")
        entry = {name: value for name, value in asdict(result).items() if name not in lists}
        entry["drained"] = result.drained
        entry["mean_slowdown"] = means[result.profile]
        entry["buckets"] = [asdict(row) for row in rows if row.transport == result.profile]
        outcome.append(entry)
    return {
        "experiment": "slowdown", "workload": args.workload,
        "setting": asdict(setting) | {"delay_ns": setting.delay_ns},
        "params": asdict(params),
        "sizes": {"table": table, "rows": len(sizes.sizes),
                  "cap_bytes": sizes.cap, "mean_bytes": sizes.mean(), "largest_bytes": sizes.sizes[-1],
                  "mean_wire_bytes": mean_cost(sizes, params)},
        "profiles": outcome,
    }


def _print(summary: dict[str, Any], rows: list[report.Bucket]) -> None:
    print(report.table(rows))
    print(f"\np99: nearest rank; ~ stands for {report.MIN_SAMPLES} to {report.FIRM_SAMPLES - 1} samples, "
          "fewer give none")
    for r in summary["profiles"]:
        state = "all delivered" if r["drained"] else f"{r['undelivered']} NOT DELIVERED"
        print(f"{r['profile']}: mean slowdown {r['mean_slowdown']:.2f}; load nominal {r['nominal_load']:.3f}, "
              f"offered {r['offered_load']:.3f}, achieved {r['achieved_load']:.3f}, links {r['link_use']:.3f} "
              f"busy; {state}, last {r['drain_ns'] / 1e6:.1f} ms after the last arrival; {r['resends']} RESENDs, "
              f"{r['packets_resent']} packets resent, {r['failed']} RPCs failed, {r['drops']} drops, "
              f"queue peak {r['queue_peak_bytes']} B")


@contextmanager
def _progress(what: str) -> Iterator[ShareDone]:
    """A bar on a terminal, a line for every tenth elsewhere; all of it on stderr."""
    bar = None
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress as Bar
            bar = Bar(console=Console(stderr=True), transient=True)
        except ImportError:
            pass
    if bar is not None:
        with bar:
            task = bar.add_task(what, total=1.0)
            yield lambda done: bar.update(task, completed=done)
        return
    shown = 0

    def line(done: float) -> None:
        nonlocal shown
        if int(done * 10) > shown:
            shown = int(done * 10)
            print(f"{what}: {shown * 10} %", file=sys.stderr)

    yield line
