"""The arithmetic of ``smtnet run mix``: which messages, how many a second, and what their times say.

The rule for load and the shape of the answer are the simulation's (slowdown/simulation.py, slowdown/report.py).
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from smtstack.errors import ConfigError
from smtstack.transport.params import TransportParams, software
from workloads.experiments.slowdown.report import Message
from workloads.experiments.slowdown.simulation import COOL_DOWN, WARM_UP, mean_cost, rpc_wire_bytes
from workloads.load import distributions
from workloads.load.cutoffs import unsched_cutoffs
from workloads.load.distributions import Distribution
from workloads.options.common import parse_param

#: Of the load that was offered, what must be answered in the same time.
_KEPT_UP = 0.98
#: What may be under way at the end more than at the beginning: so many of the longest messages for each host.
_UNDER_WAY = 2
#: Times that the longest message takes alone, for which the network is loaded before and after what is measured.
_LONGEST_BEFORE, _LONGEST_AFTER = 8, 4
#: Largest 99th percentile of the clients' lag, as a share of the round trip that unscheduled bytes are to cover.
_LAG_SHARE = 0.5
#: What an unloaded round trip takes in any case, for estimates.
_SOFTWARE_S = 1.5e-3


@dataclass(frozen=True, slots=True)
class Mix:
    """Traffic between ``hosts`` hosts, all to all. Raises :class:`ConfigError`."""

    workload: str
    """By name, or a file of sizes."""
    load: float
    """Share of every host's link, in each direction, that the DATA packets of requests and replies take, all
    headers included, as profile ``homa`` packs them. Other transports get the same messages."""
    hosts: int
    rate_mbps: float
    """Rate of the link of a host."""
    mtu: int = 1500
    param: tuple[str, ...] = ()
    """``NAME=VALUE``: parameters of smt, homa, linux and upstream other than ours."""
    sizes: Distribution = field(init=False)
    params: TransportParams = field(init=False)
    """Parameters of smt, homa, linux, upstream: by the rate of the link (:func:`software`), priorities by the
    traffic. As in the simulation, overcommitment is the number of scheduled levels."""

    def __post_init__(self) -> None:
        if not 0 < self.load <= 1:
            raise ConfigError(f"load is {self.load:g}; a share of the link above 0, up to 1")
        if self.hosts < 2:
            raise ConfigError(f"{self.hosts} host is too few: every host sends to the others")
        given: dict[str, Any] = dict(map(parse_param, self.param))
        sizes = distributions.find(self.workload)
        params = replace(software(max(1, int(self.rate_mbps))), **{"mtu": self.mtu, **given})
        cutoffs = unsched_cutoffs(sizes, params.unsched_bytes, params.num_priorities)
        ours: dict[str, Any] = {"unsched_cutoffs": cutoffs.table, "max_sched_prio": cutoffs.max_sched_prio,
                                "max_overcommit": cutoffs.max_sched_prio + 1}
        object.__setattr__(self, "sizes", sizes)
        object.__setattr__(self, "params", replace(params, **{**ours, **given}))

    def options(self) -> tuple[str, ...]:
        """For servers and clients of our transports, beside ``--link-mbps``."""
        params = self.params
        texts = [f"unsched_cutoffs={','.join(map(str, params.unsched_cutoffs))}",
                 f"max_sched_prio={params.max_sched_prio}", f"max_overcommit={params.max_overcommit}"]
        return tuple(part for text in (*texts, *self.param) for part in ("--param", text))

    def title(self, topo: str) -> str:
        """For people."""
        return (f"{self.sizes.name.upper()} (to {self.sizes.sizes[-1]:,} B), {self.load:.0%} load, {topo}, "
                f"{self.rate_mbps:g} Mbit/s")

    @property
    def rpc_per_s(self) -> float:
        """RPCs that all hosts together begin each second."""
        return self.hosts * self.load * self.rate_mbps * 1e6 / 8 / mean_cost(self.sizes, self.params)

    def load_of(self, rpcs: Mapping[int, int], seconds: float) -> float:
        """What ``rpcs`` (how many, by request bytes) in ``seconds`` are of all links."""
        cost = rpc_wire_bytes(self.sizes, self.params)
        octets = sum(cost[size] * number for size, number in rpcs.items())
        return octets * 8 / (seconds * self.hosts * self.rate_mbps * 1e6)

    def seconds(self, measured: float) -> tuple[float, float, float]:
        """(in all, before, after): what to load the network for, to measure ``measured`` seconds of it.

        Parts of it as in the simulation, and in short runs long enough for the longest messages: until as many
        are under way as there will be, and until those that are measured have arrived.
        """
        longest = self.unloaded_s(self.sizes.sizes[-1])
        before = max(measured * WARM_UP, longest * _LONGEST_BEFORE)
        after = max(measured * COOL_DOWN, longest * _LONGEST_AFTER)
        return measured + before + after, before, after

    def unloaded_s(self, size: int) -> float:
        """About what a round trip alone in the network takes."""
        return _SOFTWARE_S + rpc_wire_bytes(self.sizes, self.params)[size] * 8e-6 / self.rate_mbps

    def quantile(self, size: int, draw: random.Random) -> float:
        """Place of a message in the distribution, 0 to 1: of many of one size, any that this size has."""
        index = bisect_left(self.sizes.sizes, size)
        low = self.sizes.shares[index - 1] if index else 0.0
        return low + (self.sizes.shares[index] - low) * draw.random()

    def messages(self, rtt_ns: Sequence[int], sizes: Sequence[int], unloaded: Unloaded,
                 seed: int) -> list[Message]:
        """Samples, each against the unloaded round trip of its size."""
        draw = random.Random(seed)
        alone = {size: unloaded.ns(size) for size in set(sizes)}
        return [Message(self.quantile(size, draw), size, rtt / alone[size])
                for rtt, size in zip(rtt_ns, sizes, strict=True)]


class Unloaded:
    """Round trips alone in the network: measured at some sizes, ``{bytes: median ns}``, in between on a line."""

    def __init__(self, measured: Mapping[int, float]) -> None:
        self.measured = dict(sorted(measured.items()))
        self._sizes = list(self.measured)

    def ns(self, size: int) -> float:
        """At ``size`` bytes, which lie between the smallest and the largest measured."""
        index = bisect_left(self._sizes, size)
        above = self._sizes[index]
        if above == size:
            return self.measured[size]
        below = self._sizes[index - 1]
        share = (size - below) / (above - below)
        return self.measured[below] + share * (self.measured[above] - self.measured[below])


def spread(sizes: Sequence[int], most: int) -> list[int]:
    """At most that many (two or more) of the ``sizes``, evenly among them, the first and the last included."""
    if len(sizes) <= most:
        return list(sizes)
    return [sizes[round(index * (len(sizes) - 1) / (most - 1))] for index in range(most)]


def shortfall(mix: Mix, offered: float, achieved: float, seconds: float) -> str:
    """Why answers did not keep up with the arrivals of ``seconds``, or "". Loads are shares of the links.

    What is under way at the end and was not at the beginning is no shortfall, as far as it is normal.
    """
    under_way = mix.load_of({mix.sizes.sizes[-1]: _UNDER_WAY * mix.hosts}, seconds)
    if achieved >= offered * _KEPT_UP or offered - achieved <= under_way:
        return ""
    return (f"answers did not keep up: {achieved:.3f} of the links' rate of {offered:.3f} offered "
            f"(at least {_KEPT_UP:.0%} of it)")


def lag(mix: Mix, p99_us: float) -> str:
    """Why RPCs began too late to be called open loop, or "".

    What is late is part of every transport's time. It is small if it is small beside the round trip that the
    parameters are made for: queues in the network are counted in these, at any rate of the links.
    """
    bound = _LAG_SHARE * mix.params.unsched_bytes * 8 / mix.rate_mbps
    if p99_us <= bound:
        return ""
    return (f"clients began RPCs {p99_us / 1000:.1f} ms late (99th percentile; at most {bound / 1000:.1f} ms, in "
            f"which half of the {mix.params.unsched_bytes} unscheduled bytes are sent)")
