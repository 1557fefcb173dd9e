"""Message sizes: the built-in bins, tables from files, and how they agree."""

from __future__ import annotations

from random import Random

import pytest

from smtstack.errors import ConfigError
from tests.golden import golden
from workloads.experiments.mix.arithmetic import Mix
from workloads.load.distributions import WORKLOADS, Distribution, find, load_table, workload
from workloads.load.loops import Load, Requests, parse_size, size_name

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


# -- sizes of one's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "sizes", "shares"), [
    ("bytes,cum_frac\n8,0.5\n100,1\n", (8, 100), (0.5, 1.0)),
    ("\ufeffcum_frac,bytes,note\r\n0.5,8,a\r\n1.0,100,b\r\n", (8, 100), (0.5, 1.0)),
    ('"bytes" "cum_frac"\n8 0.5\n100 1.0\n', (8, 100), (0.5, 1.0)),
    ("# sizes\n8 0.5   # half\n\n100\t1.0\n", (8, 100), (0.5, 1.0)),
    ("8;0.25\n100;0.9999999", (8, 100), (0.25, 1.0)),
    ("100\n8\n8\n8\n", (8, 100), (0.75, 1.0)),
    ("bytes\n64\n", (64,), (1.0,)),
    ("2000000\n5\n", (5, 1_000_000), (0.5, 1.0)),
])
def test_files_of_sizes(tmp_path, text, sizes, shares):
    path = tmp_path / "Mine.txt"
    path.write_text(text)
    found = find(str(path))
    assert (found.name, found.sizes, found.shares) == ("mine", sizes, shares)
    # All that takes sizes takes files of them.
    drawn = parse_size(str(path))
    assert not isinstance(drawn, int)
    assert drawn.sizes == sizes
    assert Mix(str(path), 0.5, 2, 20.0).sizes.sizes == sizes
    assert (size_name(str(path)), size_name("64"), size_name("W3")) == ("mine", 64, "w3")


@pytest.mark.parametrize(("text", "line", "complaint"), [
    ("", "", "no sizes"), ("# only words\n", "", "no sizes"), ("bytes,cum_frac\n", "", "no sizes"),
    ("8,0.5\n100,0.9\n", 2, "is 0.9, not 1"),
    ("8 50\n100 100\n", 1, "'50' is no cumulative probability"),
    ("8 0.5\n100 nan\n", 2, "'nan' is no cumulative"),
    ("8 0.5\n\n4 1.0\n", 3, "4 1.0 follows 8 0.5"), ("8 0.5\n9 0.4\n10 1\n", 2, "rise"),
    ("8\n0\n", 2, "'0' is no size"), ("8\n1e3\n", 2, "'1e3' is no size"), ("8\n-5\n", 2, "'-5' is no size"),
    ("8 0.5\n100\n", 2, "1 values, where there are to be 2"), ("cum_frac,bytes\n1\n", 2, "to be 2"),
    ("size,share\n8,1\n", 1, "wants columns bytes,cum_frac, not size,share"),
])
def test_a_file_that_is_wrong_is_named_with_its_line(tmp_path, text, line, complaint):
    path = tmp_path / "mine.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint) as refused:
        find(str(path))
    assert f"{path}, line {line}:" in str(refused.value) if line else str(path) in str(refused.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff\xfe8\n")
    for text, complaint in ((str(tmp_path / "x"), "no text"), (str(tmp_path), "Is a directory"),
                            ("w6", "a workload .w1, .*, or a file; there is no such file")):
        with pytest.raises(ConfigError, match=complaint):
            find(text)


def test_an_echo_draws_from_a_file(tmp_path):
    path = tmp_path / "two"
    path.write_text("100\n300\n300\n300\n")
    requests = Requests(Load(str(path), count=2000))
    drawn = [len(requests.make().data) for _n in range(2000)]
    assert set(drawn) == {100, 300}
    assert drawn.count(300) / 2000 == pytest.approx(0.75, abs=0.04)
