"""What ``smtnet run incast`` and ``run fanout`` have in common: options, systems, and what becomes of the rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, cast

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.transport.params import software
from topo.link_options import LinkOptions
from topo.topologies import TOPOS, SmtTopo
from workloads import transports
from workloads.experiments import query_curves as curves
from workloads.experiments.experiment import Outcome
from workloads.fleet.query import QueryRow
from workloads.fleet.setup import Setup
from workloads.load import distributions
from workloads.load.queries import QueryLoad
from workloads.options.common import JudgedResults, Params, param_words, parse_param, positive, transport_list
from workloads.options.declare import group, option
from workloads.options.network import Network
from workloads.options.overlay import Overlay
from workloads.options.session import Sessions, check_sessions, session_words
from workloads.options.waiting import Waits
from workloads.results.folder import csv_text
from workloads.results.points import first_error, points, session_lines
from workloads.results.row import Row, Times
from workloads.results.table import aligned
from workloads.transports.table import chosen, compared

#: Of each point.
TRIALS = 3
#: Of the links, if nobody says.
RATE_MBPS = 100.0
#: Bytes each leaf is sent.
REQUEST_BYTES = 64
#: What TCP with time stamps has before the data of a frame, the least of all transports; Ethernet's header; FCS,
#: preamble and gap; the shortest frame with all of them.
_HEADERS, _ETHERNET, _OVERHEAD, _SHORTEST = 52, 14, 24, 84


def numbers(text: str) -> list[int]:
    """Reads ``1,2,8``, in ascending order."""
    return sorted({positive(part) for part in text.split(",")})


@dataclass(frozen=True)
class Queries:
    """Where, over what, how often, and what becomes of the results."""

    size: int = option("--size", type=quantities.BYTES, default=10_000, metavar="B",
                       help="bytes each of them answers (default: %(default)s)")
    request: int = option("--request", type=quantities.BYTES, default=REQUEST_BYTES, metavar="B",
                          help="bytes each of them is sent (default: %(default)s)")
    transport: list[str] = option(
        "--transport", type=transport_list, default=compared("queries"), metavar="T[,T...]",
        help=f"any of {', '.join(transports.NAMES)}; they take turns "
             f"(default: {','.join(compared('queries'))})")
    nic: str = option("--nic", choices=("sw", "hw"), default="sw",
                      help="who seals SMT's records: software, or the NIC's TLS offload (default: %(default)s)")
    topo: str = option("--topo", default="", metavar="T",
                       help=f"{', '.join(TOPOS)} with arguments; the first host asks the next ones (default: "
                            "a star with as many hosts as needed)")
    connections: int = option("--connections", type=positive, default=0, metavar="N",
                              help="tcp, tls, ktls: connections to each server (default: one for each query under "
                                   "way, at most 8)")
    incast_control: int | None = option(
        "--incast-control", type=positive, metavar="N",
        help="smt, homa: measure them a second time with incast control: of RPCs begun when more "
             "than N are outstanding, only the first bytes of the answer come without a grant")
    overlay: Overlay = group(Overlay)
    params: Params = group(Params)
    sessions: Sessions = group(Sessions)
    waits: Waits = group(Waits)
    timeout: float = option("--timeout", type=quantities.SECONDS, default=10.0, metavar="S",
                            help="give up a query after this long (default: 10)")
    trials: int | None = option("--trials", type=positive, metavar="N", help="(default: 3; --quick: 1)")
    seed: int = option("--seed", type=positive, default=1, help="of arrivals, faults (default: 1)")
    quick: bool = option("--quick", action="store_true", help="fewer and shorter points, one trial")
    network: Network = group(Network)
    end: JudgedResults = group(JudgedResults)

    def links(self) -> LinkOptions:
        """What each link is like."""
        return self.network.links(self.seed)

    def count(self) -> int:
        """Trials of each point."""
        return self.trials or (1 if self.quick else TRIALS)


def filled(asked: Queries, most: int) -> Queries:
    """With what was left open, for ``most`` servers. Raises ConfigError, Unsupported for whatever can be seen
    now."""
    hosting = asked.links().hosting
    asked = replace(asked, topo=asked.topo or f"star,{most + 1}", trials=asked.count(),
                    transport=chosen(asked.transport, "queries", hosting))
    topo = asked.network.check(asked.topo, asked.seed)
    if len(topo.hosts()) <= most:
        raise ConfigError(f"{most} servers and who asks them: topology {asked.topo} has {len(topo.hosts())} "
                          f"hosts, take star,{most + 1}")
    for name in asked.transport:
        transports.check(name, hosting)
    param_words(asked.params.param)
    check_sessions(asked.sessions, asked.transport)
    asked.overlay.check(asked.transport)
    if asked.incast_control and not {"smt", "homa"} & set(asked.transport):
        raise ConfigError("--incast-control is for smt and homa; name one of them in --transport")
    QueryLoad(str(asked.request), response_size=asked.size)
    if asked.size > distributions.DEFAULT_CAP:
        raise ConfigError(f"--size is {asked.size}; at most {distributions.DEFAULT_CAP}")
    return asked


def systems(asked: Queries, *further: str) -> list[tuple[Setup, str]]:
    """(what is compared, what else than its name tells it from others); ``further`` options are for our
    transports."""
    found = []
    for name in asked.transport:
        more = [""]
        if asked.incast_control and name in ("smt", "homa"):
            more.append(f"incast control {asked.incast_control}")
        for variant in more:
            own = [*further, *asked.overlay.words(name), *param_words(asked.params.param),
                   *session_words(asked.sessions, name)]
            if variant:
                own += ["--param", f"incast_threshold={asked.incast_control}"]
            found.append((Setup(name, asked.nic, "root", connections=asked.connections, wait=asked.waits.waiting(),
                                session=asked.sessions.session or "",
                                options=tuple(own) if name in transports.PACKET_TRANSPORTS else (),
                                server_options=("--response-size", str(asked.size))), variant))
    return found


def steps(asked: Queries, name: str, points: int) -> tuple[str, int]:
    """For progress, if each system has so many points."""
    return f"run {name}, {','.join(asked.transport)} on {asked.topo}", len(systems(asked)) * asked.count() * points


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
    """Bytes that one answer takes on a cable, with all headers and gaps."""
    full, rest = divmod(size, links.mtu - _HEADERS)
    return full * _frame(links.mtu - _HEADERS) + (_frame(rest) if rest else 0)


def _frame(data: int) -> int:
    """Bytes of the cable that a frame with so much data takes."""
    return max(_SHORTEST, data + _HEADERS + _ETHERNET + _OVERHEAD)


def resend_ms(asked: Queries) -> float:
    """How long our transports wait for what does not come before they ask for it, milliseconds: their time-out,
    as the kernel's TCP has one of 200 ms at least."""
    given: dict[str, Any] = dict(map(parse_param, asked.params.param))
    assert asked.network.rate_mbps is not None, "there is a default"
    params = replace(software(max(1, int(asked.network.rate_mbps))), **given)
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


def outcome_of(asked: Any, seed: int, rows: Sequence[Row], name: str,
               table: Sequence[Mapping[str, Any]]) -> Outcome:
    """``table`` goes into ``name``.csv and to the user; ``asked`` are the options with what was left open."""
    failed = [point for point in points(rows) if point.failed]
    why = first_error(rows) or "an answer was wrong or missing"
    return Outcome(
        rows, {"points": table, "errors": sum(row["errors"] for row in rows),
               "content_ok": all(row["content_ok"] for row in rows)},
        "\n".join([as_text(table), *session_lines(rows)]), table=False,
        files={f"{name}.csv": csv_text(table)}, parameters=asked, seed=seed,
        failed=f"{len(failed)} points failed: {why}" if failed else "")


def middle_ms(times: Iterable[Times], name: str) -> float | None:
    """Median of the trials' percentile ``name``, in milliseconds."""
    found = [us for trial in times if (us := trial[name]) is not None]
    return round(median(found) / 1000, 2) if found else None


def troubles(rows: Sequence[QueryRow]) -> dict[str, Any]:
    """What went wrong in all trials of a point, whatever the transport counts: packets or segments sent again,
    RESENDs of ours or retransmission time-outs of TCP."""
    def counted(*names: str) -> int:
        return sum(int(found.get(name, 0)) for found in cast(Sequence[Mapping[str, Any]], rows) for name in names)

    peaks = [row["queue_peak_bytes"] for row in rows if row["queue_peak_bytes"] is not None]
    return {"queue_peak": max(peaks, default=None), "lost_frames": sum(map(curves.lost, rows)),
            "sent_again": counted("resent_packets", "retransmits"),
            "resends_or_rtos": counted("resends", "timeouts"),
            "errors": sum(row["errors"] for row in rows), "faithful": curves.faithful(rows)}


def as_text(table: Sequence[Mapping[str, Any]]) -> str:
    """A line for each entry of a table, for people."""
    names = list(dict.fromkeys(name for line in table for name in line))
    return aligned([names, *([_cell(line.get(name)) for name in names] for line in table)])


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.2f}" if isinstance(value, float) else str(value)
