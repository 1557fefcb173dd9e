"""What ``smtnet run incast`` and ``run fanout`` have in common: options, systems, and what becomes of the rows."""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.transport.params import software
from topo.link_options import LinkOptions
from topo.topologies import TOPOS, SmtTopo, make_topo
from workloads import transports
from workloads.experiments import query_curves as curves
from workloads.fleet.setup import Setup
from workloads.load import distributions
from workloads.load.queries import QueryLoad
from workloads.options import common as options
from workloads.options.network import add_network_options, check_network
from workloads.options.session import add_experiment_sessions, check_sessions, session_words
from workloads.results import outcome, report
from workloads.results.progress import Progress
from workloads.results.rows import ResultFolder, Row, points
from workloads.transports import PACKET_TRANSPORTS
from workloads.transports.table import compared

#: Of the links, if nobody says.
RATE_MBPS = 100.0
#: Bytes each leaf is sent.
REQUEST_BYTES = 64
#: What TCP with time stamps has before the data of a frame, the least of all transports; Ethernet's header; FCS,
#: preamble and gap; the shortest frame with all of them.
_HEADERS, _ETHERNET, _OVERHEAD, _SHORTEST = 52, 14, 24, 84


def numbers(text: str) -> list[int]:
    """For argparse: ``1,2,8``, in ascending order."""
    return sorted({options.positive(part) for part in text.split(",")})


def add_query_options(parser: argparse.ArgumentParser) -> None:
    """Where, over what, how often, and what becomes of the results."""
    parser.add_argument("--size", type=quantities.BYTES, default=10_000, metavar="B",
                        help="bytes each of them answers (default: %(default)s)")
    parser.add_argument("--request", type=quantities.BYTES, default=REQUEST_BYTES, metavar="B",
                        help="bytes each of them is sent (default: %(default)s)")
    parser.add_argument("--transport", type=options.transport_list, default=compared("queries"),
                        metavar="T[,T...]",
                        help=f"any of {', '.join(transports.NAMES)}; they take turns (default: "
                             f"{','.join(compared('queries'))})")
    parser.add_argument("--nic", choices=("sw", "hw"), default="sw",
                        help="who seals SMT's records: software, or the NIC's TLS offload (default: %(default)s)")
    parser.add_argument("--topo", default="", metavar="T",
                        help=f"{', '.join(TOPOS)} with arguments; the first host asks the next ones (default: "
                             "a star with as many hosts as needed)")
    parser.add_argument("--connections", type=options.positive, default=0, metavar="N",
                        help="tcp, tls, ktls: connections to each server (default: one for each query under way, "
                             "at most 8)")
    parser.add_argument("--incast-control", type=options.positive, metavar="N",
                        help="smt, homa: measure them a second time with incast control: of RPCs begun when more "
                             "than N are outstanding, only the first bytes of the answer come without a grant")
    options.add_experiment_param(parser)
    add_experiment_sessions(parser)
    parser.add_argument("--poll-us", type=quantities.WHOLE_MICROSECONDS, default=0, metavar="US",
                        help="busy-wait this long before sleeping (default: 0)")
    parser.add_argument("--timeout", type=quantities.SECONDS, default=10.0, metavar="S",
                        help="give up a query after this long (default: 10)")
    parser.add_argument("--trials", type=options.positive, metavar="N", help="(default: 3; --quick: 1)")
    parser.add_argument("--seed", type=options.positive, default=1, help="of arrivals, faults (default: 1)")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter points, one trial")
    add_network_options(parser)
    options.add_result_options(parser)


def check(args: argparse.Namespace, most: int) -> SmtTopo:
    """The topology, which has ``most`` servers. Raises ConfigError, Unsupported for whatever can be seen now."""
    args.topo = args.topo or f"star,{most + 1}"
    check_network(args)
    topo = make_topo(args.topo)
    if len(topo.hosts()) <= most:
        raise ConfigError(f"{most} servers and who asks them: topology {args.topo} has {len(topo.hosts())} hosts, "
                          f"take star,{most + 1}")
    for name in args.transport:
        transports.check(name)
    options.param_words(args.param)
    check_sessions(args, args.transport)
    if args.incast_control and not {"smt", "homa"} & set(args.transport):
        raise ConfigError("--incast-control is for smt and homa; name one of them in --transport")
    QueryLoad(str(args.request), response_size=args.size)
    if args.size > distributions.DEFAULT_CAP:
        raise ConfigError(f"--size is {args.size}; at most {distributions.DEFAULT_CAP}")
    return topo


def systems(args: argparse.Namespace, *further: str) -> list[tuple[Setup, str]]:
    """(what is compared, what else than its name tells it from others); ``further`` options are for our
    transports."""
    found = []
    for name in args.transport:
        more = [""]
        if args.incast_control and name in ("smt", "homa"):
            more.append(f"incast control {args.incast_control}")
        for variant in more:
            own = [*further, *options.param_words(args.param), *session_words(args, name)]
            if variant:
                own += ["--param", f"incast_threshold={args.incast_control}"]
            found.append((Setup(name, args.nic, "root", connections=args.connections, poll_us=args.poll_us,
                                session=args.session or "",
                                options=tuple(own) if name in PACKET_TRANSPORTS else (),
                                server_options=("--response-size", str(args.size))), variant))
    return found


def ideal_us(leaves: int, size: int, request: int, links: LinkOptions, hops: int) -> float:
    """Microseconds that a query takes in which the client's link never rests and nothing is computed: all answers
    over that link, as TCP cuts them, and before them one request and the first frame over the links between.

    ``hops`` are the links to a server. A link that was idle sends two frames at once (topo/shaping.py), so a short
    answer may come a little sooner.
    """
    assert links.rate_mbps is not None
    before = hops * _frame(request) + (hops - 1) * _frame(min(size, links.mtu - _HEADERS))
    octets = leaves * answer_bytes(size, links) + before
    return octets * 8 / links.rate_mbps + 2 * hops * links.delay_us


def answer_bytes(size: int, links: LinkOptions) -> int:
    """Of a cable, for one answer."""
    full, rest = divmod(size, links.mtu - _HEADERS)
    return full * _frame(links.mtu - _HEADERS) + (_frame(rest) if rest else 0)


def _frame(data: int) -> int:
    """Bytes of the cable that a frame with so much data takes."""
    return max(_SHORTEST, data + _HEADERS + _ETHERNET + _OVERHEAD)


def resend_ms(args: argparse.Namespace) -> float:
    """How long our transports wait for what does not come before they ask for it, milliseconds: their time-out,
    as the kernel's TCP has one of 200 ms at least."""
    given: dict[str, Any] = dict(map(options.parse_param, args.param))
    params = replace(software(max(1, int(args.rate_mbps))), **given)
    return params.resend_ticks * params.tick_ns / 1e6


def hops(topo: SmtTopo) -> int:
    """Links from the first host to the one farthest away."""
    neighbours: dict[str, list[str]] = {}
    for one, two in topo.links():
        neighbours.setdefault(one, []).append(two)
        neighbours.setdefault(two, []).append(one)
    distance = {"h1": 0}
    waiting = deque(distance)
    while waiting:
        here = waiting.popleft()
        for there in neighbours[here]:
            if there not in distance:
                distance[there] = distance[here] + 1
                waiting.append(there)
    return max(distance[host] for host in topo.hosts())


def conclude(args: argparse.Namespace, folder: ResultFolder, rows: list[Row], name: str,
             table: list[dict[str, Any]], progress: Progress) -> int:
    """Write, print; the exit code. ``table`` goes into ``name``.csv and to the user."""
    progress.say("plots and report")
    folder.write(f"{name}.csv", as_csv(table))
    verdict = outcome.save(args, folder, rows)
    if args.json:
        print(json.dumps({"points": table, "errors": sum(row["errors"] for row in rows),
                          "content_ok": all(row["content_ok"] for row in rows), "fidelity": verdict,
                          "results": str(folder.path)}))
    else:
        print("\n".join([as_text(table), *outcome.session_lines(rows)]))
    print(f"report: {folder.path / report.PAGE}", file=sys.stderr)
    failed = [point for point in points(rows) if point.failed]
    why = outcome.first_error(rows) or "an answer was wrong or missing"
    return outcome.exit_code(args, verdict, f"{len(failed)} points failed: {why}" if failed else "")


def middle_ms(rows: Sequence[Row], name: str, of: str = "rtt_us") -> float | None:
    """Median of the trials' percentile ``name``, in milliseconds."""
    found = [row[of][name] for row in rows if row[of][name] is not None]
    return round(median(found) / 1000, 2) if found else None


def troubles(rows: Sequence[Row]) -> dict[str, Any]:
    """What went wrong in all trials of a point."""
    peaks = [row["queue_peak_bytes"] for row in rows if row["queue_peak_bytes"] is not None]
    return {"queue_peak": max(peaks, default=None), "lost_frames": sum(map(curves.lost, rows)),
            "sent_again": sum(map(curves.sent_again, rows)), "resends_or_rtos": sum(map(curves.timed_out, rows)),
            "errors": sum(row["errors"] for row in rows), "faithful": curves.faithful(rows)}


def as_csv(table: Sequence[dict[str, Any]]) -> str:
    """A line for each entry."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for line in table for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


def as_text(table: Sequence[dict[str, Any]]) -> str:
    """The same for people."""
    names = list(dict.fromkeys(name for line in table for name in line))
    cells = [names, *([_cell(line.get(name)) for name in names] for line in table)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) if index == 0 else cell.rjust(width) for index, (cell, width) in
                               enumerate(zip(line, widths, strict=True))).rstrip() for line in cells)


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
