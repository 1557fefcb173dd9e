"""Message sizes: the built-in bins, tables from files, and how they agree."""

from __future__ import annotations

from random import Random

import pytest

from smtstack.errors import ConfigError
from tests.golden import golden
from workloads.distributions import WORKLOADS, Distribution, load_table, workload

#: Mean bytes at the 1 MB cap and without it, as published.
MEANS = {"w1": (189.2, 189.2), "w2": (433.3, 441.6), "w3": (2423, 2927.7), "w4": (60_175, 127_797),
         "w5": (385_316, 2_564_690)}
UNCUT = 1 << 40


@pytest.mark.parametrize("name", WORKLOADS)
def test_bins_keep_the_published_means(name):
    capped, uncapped = MEANS[name]
    assert workload(name).mean() == pytest.approx(capped, rel=1e-3)
    assert workload(name, UNCUT).mean() == pytest.approx(uncapped, rel=1e-3)


@pytest.mark.parametrize("name", WORKLOADS)
def test_samples_follow_the_bins(name):
    sizes = workload(name)
    random = Random(11)
    drawn = [sizes.sample(random) for _ in range(20_000)]
    assert set(drawn) <= set(sizes.sizes)
    for size, share in sizes.items():
        # Four standard deviations of a binomial.
        assert drawn.count(size) / len(drawn) == pytest.approx(share, abs=4 * (share / len(drawn)) ** 0.5)
    assert [sizes.sample(Random(3)) for _ in range(3)] == [sizes.sample(Random(3)) for _ in range(3)]


def test_a_size_is_the_first_row_that_reaches_the_probability():
    sizes = Distribution("t", [(10, 0.25), (20, 0.5), (30, 1.0)])
    assert [sizes.quantile(u) for u in (0.0, 0.25, 0.26, 0.5, 0.51, 0.999, 1.0)] == [10, 10, 20, 20, 30, 30, 30]
    assert sizes.mean() == pytest.approx(22.5)


def test_rows_beyond_the_cap_and_of_one_size_become_one():
    sizes = Distribution("t", [(5, 0.1), (5, 0.2), (50, 0.6), (60, 0.9), (70, 1.0)], cap=50)
    assert (sizes.sizes, sizes.shares) == ((5, 50), (0.2, 1.0))
    # A row that no message has.
    assert Distribution("t", [(5, 0.5), (6, 0.5), (7, 1.0)]).sizes == (5, 7)


@pytest.mark.parametrize("rows", [[], [(10, 0.5)], [(10, 0.7), (5, 1.0)], [(10, 0.7), (20, 0.6), (30, 1.0)],
                                  [(0, 0.5), (1, 1.0)], [(10, 1.5)]])
def test_a_table_that_is_none_is_refused(rows):
    with pytest.raises(ConfigError):
        Distribution("bad", rows)


def test_names_and_files_that_are_wrong_are_named(tmp_path):
    with pytest.raises(ConfigError, match="there are w1, w2"):
        workload("w6")
    with pytest.raises(ConfigError, match="No such file"):
        load_table(tmp_path / "none.csv")
    other = tmp_path / "other.csv"
    other.write_text("size,share\n8,1\n")
    with pytest.raises(ConfigError, match="bytes,cum_frac"):
        load_table(other)


def test_a_table_from_a_file(tmp_path):
    path = tmp_path / "W9.csv"
    path.write_text("bytes,cum_frac\n8,0.5\n2000000,1.0\n")
    sizes = load_table(path)
    assert (sizes.name, sizes.sizes, sizes.shares) == ("w9", (8, 1_000_000), (0.5, 1.0))


@pytest.mark.parametrize("name", WORKLOADS)
def test_bins_agree_with_the_full_table(name):
    path = golden(f"workloads/{name.upper()}.csv")
    for cap in (1_000_000, UNCUT):
        full, bins = load_table(path, cap), workload(name, cap)
        assert bins.mean() == pytest.approx(full.mean(), rel=1e-3)
        for percent in range(2, 95, 5):
            # Within a bin its mean lies between the table's ends of it.
            low, high = full.quantile((percent - 2) / 100), full.quantile((percent + 3) / 100)
            assert low - 1 <= bins.quantile(percent / 100) <= high + 1
