"""The table of aims: every aim finds its figure among what the benches measure, and says whether it is reached."""

from __future__ import annotations

from typing import Any

from workloads.experiments import bench_aims, bench_wire
from workloads.experiments.bench_aims import Aim
from workloads.results.row import BY_DEFAULT, HOW


def points(ratio: float) -> list[dict[str, Any]]:
    """A point for each load that ``bench wire`` measures, where everything has the same ratio."""
    found = []
    for part in bench_wire.PARTS:
        poll = BY_DEFAULT if part.wait is None else HOW[part.wait.mode]
        found += [{"variant": part.variant, "poll": poll, "mode": "any", "size": int(load.size),
                   "concurrency": load.concurrency, "ratio": {"smt-sw/tls": ratio, "smt-sw/quic": ratio}}
                  for load in part.loads]
    return found


def test_every_aim_on_a_cable_has_a_figure():
    aims = list(bench_aims.wire_aims(points(1.05)))
    assert len({aim.what for aim in aims}) == len(aims) == 19
    reached = {aim.what: aim.reached for aim in aims}
    # A round trip's ratio is to be low, a rate's high.
    assert reached["RTT 64 B, both hybrid, smt-sw/tls"]
    assert not reached["RTT 64 B, both interrupt, smt-sw/tls"]
    assert reached["MB/s 1 MB, tso on, smt-sw/tls"]
    assert not reached["RPC/s 64 B x50, smt-sw/tls"]
    assert {aim.what: aim.value for aim in aims}["RTT 64 B, aioquic/smt"] == round(1 / 1.05, 1)


def test_without_aioquic_its_lines_are_left_out():
    table = points(1.0)
    for point in table:
        del point["ratio"]["smt-sw/quic"]
    assert not any("quic" in aim.what for aim in bench_aims.wire_aims(table))


def test_the_table_says_which_are_reached():
    text = bench_aims.as_text([Aim("sim", "frames/s", 100_000, True, 120_000.0, 36_000.0),
                               Aim("rtt", "RTT", 0.5, False, 0.71)])
    one, other = text.splitlines()[-2:]
    assert one.split() == ["frames/s", ">=", "100,000", "120,000", "36,000", "reached"]
    assert other.split() == ["RTT", "<=", "0.5", "0.71", "not", "reached"]
