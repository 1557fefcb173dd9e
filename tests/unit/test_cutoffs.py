"""Unscheduled priority levels against those homa_prio's rule gives for the published tables."""

from __future__ import annotations

import pytest

from smtstack.errors import ConfigError
from smtstack.transport.params import INT_MAX, TransportParams
from tests.golden import golden
from workloads.load.cutoffs import unsched_cutoffs
from workloads.load.distributions import WORKLOADS, Distribution, load_table, workload

#: Longest message of all levels but the last, for 10 KB and 60 KB unscheduled, 8 priorities, 1 MB cap.
PUBLISHED = {
    ("w1", 10_000): (165, 306, 461, 674, 986, 1529, 2996),
    ("w2", 10_000): (301, 394, 512, 1707, 5120),
    ("w3", 10_000): (2341, 9879),
    ("w4", 10_000): (),
    ("w5", 10_000): (),
    ("w1", 60_000): (165, 306, 461, 674, 986, 1529, 2996),
    ("w2", 60_000): (284, 366, 465, 1024, 2926, 46_811),
    ("w3", 60_000): (2185, 9461, 28_011, 90_049),
    ("w4", 60_000): (80_903,),
    ("w5", 60_000): (),
}


@pytest.mark.parametrize(("name", "unsched"), PUBLISHED)
def test_full_tables_give_exactly_the_known_cutoffs(name, unsched):
    sizes = load_table(golden(f"workloads/{name.upper()}.csv"))
    assert unsched_cutoffs(sizes, unsched).lengths == (*PUBLISHED[name, unsched], INT_MAX)


@pytest.mark.parametrize(("name", "unsched"), [key for key in PUBLISHED if key[0] != "w1"])
def test_bins_come_near(name, unsched):
    # A bin cannot be split between levels, so a level may hold more, and there may be one less.
    lengths = unsched_cutoffs(workload(name), unsched).lengths
    known = (*PUBLISHED[name, unsched], INT_MAX)
    assert len(known) - 1 <= len(lengths) <= len(known)
    assert all(mine >= exact * 0.8 for mine, exact in zip(lengths, known, strict=False))


@pytest.mark.parametrize("name", WORKLOADS)
@pytest.mark.parametrize("num_priorities", range(1, 9))
def test_the_table_fits_the_transport(name, num_priorities):
    cutoffs = unsched_cutoffs(workload(name), 10_000, num_priorities)
    params = TransportParams(unsched_cutoffs=cutoffs.table, num_priorities=num_priorities,
                             max_sched_prio=cutoffs.max_sched_prio)
    top = params.num_priorities - 1
    assert cutoffs.table[top::-1][:len(cutoffs.lengths)] == cutoffs.lengths or num_priorities == 1
    assert all(length == 0 for length in cutoffs.table[top + 1:])
    # Scheduled packets stay below every unscheduled level, unless there is none left for them.
    lowest = num_priorities - len(cutoffs.lengths)
    assert cutoffs.max_sched_prio == max(0, lowest - 1)


def test_levels_follow_the_share_of_unscheduled_bytes():
    # One size, a quarter of its bytes unscheduled: two of eight levels, and nothing to tell apart in them.
    assert unsched_cutoffs(Distribution("t", [(40_000, 1.0)]), 10_000).lengths == (40_000, INT_MAX)
    # All bytes unscheduled, evenly over four sizes.
    even = Distribution("t", [(100, 0.25), (101, 0.5), (102, 0.75), (103, 1.0)])
    assert unsched_cutoffs(even, 10_000, 2).lengths == (102, INT_MAX)


def test_only_eight_priorities_exist():
    with pytest.raises(ConfigError, match="1 to 8"):
        unsched_cutoffs(workload("w1"), 10_000, 9)
