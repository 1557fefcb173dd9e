"""Loads of several kinds of requests, as reads and updates: their times by kind, for JSON and for people."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from smtstack.exit_codes import EXIT_FAILED, EXIT_UNFAITHFUL
from workloads.load.measure import rtt_summary


def summary(names: Sequence[str], rtt_ns: array[int], kinds: array[int],
            failed: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """By kind: how many ended as they had to, how many did not, and how long they took. ``kinds`` are places in
    ``names``, one for each time; kinds of which there were none are left out."""
    by_kind: dict[str, array[int]] = {}
    for time_ns, kind in zip(rtt_ns, kinds, strict=True):
        by_kind.setdefault(names[kind], array("Q")).append(time_ns)
    return {kind: {"count": len(by_kind.get(kind, ())), "errors": failed.get(kind, 0),
                   "rtt_us": rtt_summary(by_kind.get(kind, array("Q")))}
            for kind in names if kind in by_kind or failed.get(kind)}


def text(ops: Mapping[str, Mapping[str, Any]]) -> str:
    """For people: a line for each kind of :func:`summary`."""
    lines = [f"{'':>18}{'count':>10}{'p50 us':>10}{'p99 us':>10}{'max us':>10}"]
    for kind, found in ops.items():
        times = [found["rtt_us"][name] for name in ("p50", "p99", "max")]
        lines.append(f"{kind:>18}{found['count']:>10}"
                     + "".join(f"{'-' if time is None else round(time):>10}" for time in times))
    return "\n".join(lines)


def conclude(result: Mapping[str, Any], failed: str) -> int:
    """The exit code of a client with this result; on stderr why, if it is not 0. ``failed``: what to say if the
    result does not."""
    if result["errors"] or not result["content_ok"]:
        print(f"smtnet: {result.get('error', failed)}", file=sys.stderr)
        return EXIT_FAILED
    if not result["fidelity"]["ok"]:
        for reason in result["fidelity"]["reasons"]:
            print(f"smtnet: not faithful: {reason}", file=sys.stderr)
        return EXIT_UNFAITHFUL
    return 0
