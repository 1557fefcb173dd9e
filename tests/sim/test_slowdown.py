"""The slowdown experiment in small: the shape of Homa's curve, not its numbers."""

from __future__ import annotations

import argparse
import csv
import json
from statistics import fmean

import pytest

from smtstack.errors import ConfigError
from workloads.commands import slowdown
from workloads.experiments.slowdown.report import (
    Bucket,
    Published,
    buckets,
    load_published,
    rank,
    simulated,
    table,
)
from workloads.experiments.slowdown.simulation import LoadRun, Result, Setting, homa_wire_bytes, unloaded_ns
from workloads.load.distributions import workload


def buckets_of(result: Result, unloaded: dict[int, int], published: Published | None = None) -> list[Bucket]:
    return buckets(result.profile, simulated(result, unloaded), published or {})


def run(name: str, profile: str, **setting: object) -> tuple[Result, list[Bucket]]:
    sizes = workload(name)
    fixed = Setting(**setting)  # type: ignore[arg-type]
    result = LoadRun(fixed, profile, sizes).run()
    return result, buckets_of(result, unloaded_ns(fixed, fixed.params(sizes), result.sizes))


@pytest.fixture(scope="module")
def w3() -> dict[str, tuple[Result, list[Bucket]]]:
    return {profile: run("w3", profile, messages=12_000) for profile in ("homa", "smt")}


@pytest.mark.parametrize("profile", ["homa", "smt"])
def test_w3_at_80_percent_is_flat_to_the_last_tenth_and_rises_only_there(w3, profile):
    result, rows = w3[profile]
    assert result.drained
    assert (result.failed, result.resends, result.drops) == (0, 0, 0)
    nine = [row for row in rows if row.to_pct <= 90 and row.from_pct < row.to_pct]
    assert len(nine) == 9
    assert all(row.median < 1.7 and row.p99 is not None and row.p99 < 3 for row in nine)
    top = [row for row in rows if row.from_pct >= 99]
    assert fmean(row.mean for row in top) > 1.5 * fmean(row.mean for row in nine)
    # Nothing is faster than alone, but for rounding to nanoseconds.
    assert min(row.median for row in rows) > 0.999


def test_both_profiles_get_the_same_messages(w3):
    (homa, _), (smt, _) = w3["homa"], w3["smt"]
    assert (homa.quantiles, homa.sizes) == (smt.quantiles, smt.sizes)
    assert homa.offered_load == smt.offered_load == pytest.approx(0.8, rel=0.1)
    assert homa.link_use < smt.link_use < 0.95


def test_a_run_repeats_and_another_seed_does_not():
    first, again, other = (run("w2", "smt", messages=1500, seed=seed, hosts=4)[0] for seed in (1, 1, 2))
    assert (first.sizes, first.times_ns, first.frames) == (again.sizes, again.times_ns, again.frames)
    assert first.times_ns != other.times_ns


def test_priorities_and_overcommitment_do_what_homa_has_them_for():
    # The controls: take each away and the run gets worse as the papers say.
    _, with_eight = run("w3", "homa", messages=4000, hosts=6)
    _, with_one = run("w3", "homa", messages=4000, hosts=6, num_priorities=1)
    short = [fmean(row.mean for row in rows if row.to_pct <= 50) for rows in (with_eight, with_one)]
    assert short[1] > 1.5 * short[0]


def test_unloaded_times_are_those_of_the_links():
    setting = Setting()
    params = setting.params(workload("w4"))
    times = unloaded_ns(setting, params, [8, 1440, 1_000_000])
    fixed = 2 * setting.delay_ns + setting.forwarding_ns
    for size in (8, 1440):
        # One packet crosses two links.
        assert times[size] == pytest.approx(2 * homa_wire_bytes(size, params) * 0.8 + fixed, abs=2)
    # A long one keeps the first link busy: grants come in time. Its last packet crosses the second, too.
    assert times[1_000_000] == pytest.approx(homa_wire_bytes(1_000_000, params) * 0.8, rel=0.02)


def test_the_base_rtt_is_what_was_asked_for():
    for rate, rtt in ((10_000, 7800), (1000, 78_000)):
        setting = Setting(rate_mbps=rate, base_rtt_ns=rtt)
        full, grant = 1538 * 8000 // rate, 91 * 8000 // rate
        assert 2 * full + 2 * grant + 2 * setting.forwarding_ns + 4 * setting.delay_ns == pytest.approx(rtt, abs=4)


@pytest.mark.parametrize("wrong", [{"hosts": 1}, {"load": 0}, {"load": 1.1}, {"messages": 0},
                                   {"rate_mbps": 100}])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError):
        Setting(**wrong)


def test_percentiles_and_their_honesty():
    assert [rank(list(range(1, 101)), share) for share in (0.5, 0.99, 1.0)] == [50, 99, 100]
    assert rank([7], 0.5) == 7
    unloaded = {10: 100}

    def row_of(count: int) -> Bucket:
        return buckets_of(Result("homa", [0.05] * count, [10] * count, [200] * count), unloaded)[0]

    assert (row_of(199).p99, row_of(199).p99_text()) == (None, "")
    assert (row_of(200).p99, row_of(999).p99_text()) == (2.0, "~2.00")
    assert row_of(1000).p99_text() == "2.00"
    lost = Result("homa", [0.05, 0.95], [10, 10], [200, -1], undelivered=1)
    assert [row.label for row in buckets_of(lost, unloaded)] == ["0-10", "largest"]
    assert not lost.drained


REFERENCE = """workload,load,transport,cum_pct_msgs,size_bytes,median_slowdown,p99_slowdown
W3,0.8,Homa,10,36,1.5,2.2
W3,0.8,pFabric,10,36,9,9
W3,0.5,Homa,10,36,9,9
W4,0.8,Homa,10,36,9,9
"""


def command(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    slowdown.add_parser(parser.add_subparsers())
    args = parser.parse_args(["slowdown", *argv])
    code: int = args.run(args)
    return code


def test_the_command_writes_table_csv_json_and_picture(tmp_path, capsys):
    reference = tmp_path / "reference.csv"
    reference.write_text(REFERENCE)
    (tmp_path / "W3.csv").write_text("bytes,cum_frac\n8,0.5\n20000,1.0\n")
    common = ["--workload", "w3", "--messages", "400", "--hosts", "4", "--reference", str(reference)]
    assert command(*common, "--json", "--dist-dir", str(tmp_path), "--out", str(tmp_path / "out")) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert "w3 smt: 100 %" in captured.err
    assert [entry["profile"] for entry in found["profiles"]] == ["smt", "homa"]
    assert found["sizes"] == {**found["sizes"], "table": "full", "rows": 2, "largest_bytes": 20_000}
    assert found["profiles"][0]["buckets"][0]["published_p99"] == 2.2
    assert json.loads((tmp_path / "out/slowdown-w3.json").read_text()) == found
    with (tmp_path / "out/slowdown-w3.csv").open() as f:
        lines = list(csv.DictReader(f))
    assert {line["transport"] for line in lines} == {"smt", "homa"}
    assert sum(int(line["samples"]) for line in lines if line["transport"] == "smt" and
               line["from_pct"] != line["to_pct"]) == 400
    assert (tmp_path / "out/slowdown-w3.png").read_bytes().startswith(b"\x89PNG")

    assert command(*common, "--profile", "homa") == 0
    text = capsys.readouterr().out
    assert "published p50" in text
    assert "all delivered" in text


def test_the_command_names_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="tcp"):
        command("--profile", "homa,tcp")
    other = tmp_path / "other.csv"
    other.write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match="not a table of slowdowns"):
        load_published(other, "w3", 0.8)
    with pytest.raises(ConfigError, match="No such file"):
        load_published(tmp_path / "none.csv", "w3", 0.8)


def test_the_table_for_people():
    rows = buckets_of(Result("homa", [0.05], [10], [150]), {10: 100}, {10.0: (1.5, 2.0)})
    assert table(rows).splitlines()[1].split() == ["0-10", "10", "1", "1.50", "1.50", "2.00"]
