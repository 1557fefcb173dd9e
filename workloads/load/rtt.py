"""Round trips in numbers: exact percentiles over every sample."""

from __future__ import annotations

from array import array

PERCENTILES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999))


def percentile(ordered: array[int], share: float) -> int:
    """Nearest rank: the smallest value that at least ``share`` of all do not exceed. Exact, not a bucket."""
    # In integers of 1/1000: a float product just above a whole number would take the next rank.
    rank = -(-len(ordered) * round(share * 1000) // 1000)
    return ordered[max(rank, 1) - 1]


def rtt_summary(rtt_ns: array[int]) -> dict[str, float | None]:
    """min, percentiles, max and mean in microseconds; None if nothing was measured."""
    names = ("min", *(name for name, _share in PERCENTILES), "max", "mean")
    if not rtt_ns:
        return dict.fromkeys(names)
    ordered = array("Q", sorted(rtt_ns))
    values = (ordered[0], *(percentile(ordered, share) for _name, share in PERCENTILES), ordered[-1],
              sum(ordered) / len(ordered))
    return {name: round(value / 1000, 3) for name, value in zip(names, values, strict=True)}
