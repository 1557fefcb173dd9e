"""People's own YCSB workloads: the syntax of property files, what each property does; none is left out."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from smtstack.errors import ConfigError
from tests.typed import typed
from tests.unit.test_ycsb import DRAWS, Store, bound, chi_square, loaded
from workloads.experiments.ycsb_options import Ycsb, say_unused, ycsb_loads
from workloads.load import ycsb_properties
from workloads.load.ycsb import (
    INSERT,
    KINDS,
    READ,
    RMW,
    SCAN,
    UPDATE,
    WORKLOADS,
    Keyspace,
    Loading,
    Operations,
    Records,
)
from workloads.load.ycsb import workload as made
from workloads.load.ycsb_choice import THETA, exponential, hotspot, sequential
from workloads.load.ycsb_history import History
from workloads.load.ycsb_load import YcsbLoad
from workloads.load.ycsb_properties import parse

# As people have them (the comments and the order of YCSB's own, with other numbers).
MINE = """\
# Yahoo! Cloud System Benchmark
# Workload of mine
#   Read/update ratio: 80/20

recordcount=2000
operationcount : 5000
workload=site.ycsb.workloads.CoreWorkload

! also a comment
readallfields true
readproportion=0.8
updateproportion = 0.15
scanproportion=0
insertproportion=0.05
fieldcount=4
fieldlength=\\
    32
requestdistribution=hotspot
hotspotdatafraction=0.1
hotspotopnfraction=0.9
threadcount=6
measurementtype=hdrhistogram
hdrhistogram.percentiles=95,99
"""


def loads(*words: str) -> tuple[YcsbLoad, YcsbLoad]:
    return ycsb_loads(typed(Ycsb, *words))


# -- syntax ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "found"), [
    ("a=1", {"a": "1"}), ("a:1", {"a": "1"}), ("a 1", {"a": "1"}), ("a\t=\t1", {"a": "1"}),
    ("a = = 1", {"a": "= 1"}),
    ("  a=1  ", {"a": "1"}), ("a", {"a": ""}), ("a=", {"a": ""}), ("=1", {"": "1"}),
    ("# a=1\n! b=2\n  #c=3\n\n\t\nd=4", {"d": "4"}), ("a=1 # no comment", {"a": "1 # no comment"}),
    ("a=1\r\nb=2\rc=3", {"a": "1", "b": "2", "c": "3"}), ("a=1\na=2", {"a": "2"}),
    ("a=1,\\\n   2,\\\n\t3\nb=4", {"a": "1,2,3", "b": "4"}), ("a=1\\\\\nb=2", {"a": "1\\", "b": "2"}),
    ("a\\\n b=1", {"ab": "1"}), ("a=\\\n# 1", {"a": "# 1"}), ("#a\\\nb=2", {"b": "2"}), ("a=1\\", {"a": "1"}),
    ("a\\ b=1", {"a b": "1"}), ("a\\=b\\:c=1", {"a=b:c": "1"}), ("a=\\t\\n\\q\\\\", {"a": "q\\"}),
    ("a=\\u0031\\u00e9", {"a": "1é"}), ("", {}),
])
def test_the_syntax_is_that_of_java(text, found):
    assert {name: given.value for name, given in parse(text, "x").items()} == found


def test_the_line_of_a_property_is_known():
    found = parse("\n# c\na=1,\\\n 2\nb=3", "f")
    assert [found[name].where for name in "ab"] == ["f, line 3", "f, line 5"]
    with pytest.raises(ConfigError, match=r"f, line 2: .u00zz: four hexadecimal digits"):
        parse("a=1\nb=\\u00zz", "f")


# -- what a file makes -------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine"
    path.write_text(MINE)
    return path


def test_a_file(mine, capsys):
    load, run = loads("--workload", str(mine))
    assert (load.count, load.records, load.fields, load.size) == (2000, 2000, 4, "128")
    assert (run.count, run.seconds, run.concurrency, run.rate) == (5000, None, 6, 0.0)
    assert run.workload == str(mine)
    shares = dict(run.kind.shares)
    assert shares == {READ: 0.8, UPDATE: pytest.approx(0.15), INSERT: pytest.approx(0.05)}
    assert (run.kind.distribution, run.kind.hot_data, run.kind.hot_operations) == ("hotspot", 0.1, 0.9)
    say_unused(typed(Ycsb, "--workload", str(mine), "-p", "target=100"))
    said = capsys.readouterr().err.splitlines()
    assert said[0].endswith("without effect here: measurementtype, hdrhistogram.percentiles")
    assert "target: as --rate" in said[1]


def test_what_a_file_does_not_say_is_ycsbs(tmp_path):
    path = tmp_path / "empty.properties"
    path.write_text("")
    _load, run = loads("--workload", str(path))
    assert (run.fields, run.size) == (10, "1000")
    assert run.kind.shares == ((READ, 0.95), (UPDATE, 0.05))
    assert (run.kind.distribution, run.kind.scan_lengths) == ("uniform", (1, 1000))


def test_options_come_before_p_and_p_before_the_file(mine):
    _load, run = loads("--workload", str(mine), "-p", "readproportion=0", "-p", "recordcount=300", "--ops", "70",
                       "--clients", "2", "--fields", "8", "--distribution", "sequential")
    assert dict(run.kind.shares) == {UPDATE: pytest.approx(0.75), INSERT: pytest.approx(0.25)}
    assert (run.records, run.count, run.concurrency, run.fields, run.size) == (300, 70, 2, 8, "256")
    assert run.distribution == "sequential"
    _load, run = loads("--workload", str(mine), "--seconds", "3")
    assert (run.count, run.seconds) == (None, 3.0)
    _load, run = loads("-p", "maxexecutiontime=7", "-p", "target=50")
    assert (run.count, run.seconds, run.rate) == (None, 7.0, 50.0)


@pytest.mark.parametrize("letter", WORKLOADS)
def test_names_of_ycsbs_files(letter, tmp_path, monkeypatch):
    assert loads("--workload", f"workload{letter}") == loads("--workload", letter) == loads(
        "--workload", letter.upper())
    # With a property it is the same, but for that.
    changed = loads("--workload", letter, "-p", "zeropadding=12")[1].kind
    published = WORKLOADS[letter]
    assert dict(changed.shares) == dict(published.shares)
    assert replace(changed, padding=1, shares=published.shares) == published
    # Who has a file of that name means the file.
    monkeypatch.chdir(tmp_path)
    Path(f"workload{letter}").write_text("readproportion=1\nupdateproportion=0\nrecordcount=77\n")
    _load, run = loads("--workload", f"workload{letter}")
    assert (run.kind.shares, run.records) == (((READ, 1.0),), 77)


@pytest.mark.parametrize(("text", "complaint"), [
    ("readproporton=1", "line 1: no property 'readproporton'.*did you mean readproportion"),
    ("mongodb.url=x", "no property 'mongodb.url'.*docs/kv.md"),
    ("\nrecordcount=many", "line 2: recordcount is a whole number from 1, not 'many'"),
    ("recordcount=0", "whole number from 1"), ("readproportion=-1", "a number from 0"),
    ("readproportion=nan", "a number from 0"), ("readallfields=yes", "true or false, not 'yes'"),
    ("requestdistribution=normal", "one of zipfian, latest, uniform, hotspot, exponential, sequential"),
    ("fieldlengthdistribution=histogram", "constant, uniform or zipfian, not 'histogram'"),
    ("scanlengthdistribution=constant", "uniform or zipfian"),
    ("minscanlength=9\nmaxscanlength=8", "minscanlength is 9, maxscanlength 8"),
    ("exponential.percentile=100", "above 0 and below 100"), ("exponential.frac=0", "a number above 0"),
    ("hotspotdatafraction=1.5", "0 to 1"), ("insertorder=random", "hashed or ordered"),
    ("workload=site.ycsb.workloads.RestWorkload", "only site.ycsb.workloads.CoreWorkload"),
    ("core_workload_insertion_retry_limit=3", "only 0 is possible: a write is sent once"),
    ("readallfieldsbyname=true", "only false"), ("fieldnameprefix=f", "only field"),
    ("readproportion=0\nupdateproportion=0", "there is no operation"),
    ("fieldlength=7", "at least 8 bytes"), ("fieldlengthdistribution=uniform", "1 bytes .minfieldlength"),
    ("fieldlengthdistribution=zipfian\nminfieldlength=200", "minfieldlength is 200, fieldlength 100"),
    ("recordcount=100\ninsertstart=100", "at least one"),
    ("recordcount=100\ninsertstart=20\ninsertcount=70", "20 and insertcount 70 are 90 records, recordcount"),
    ("recordcount=100\ninsertstart=20\nrequestdistribution=latest", "20 leaves out records that latest"),
    ("recordcount=100\ninsertstart=20\nrequestdistribution=exponential", "exponential asks for"),
    ("recordcount=4\nrequestdistribution=hotspot", "hotspotdatafraction 0.2 of 4 records leaves hot ones none"),
    ("operationcount=5\nmaxexecutiontime=5", "line 1: operationcount, and .*line 2: maxexecutiontime"),
])
def test_what_is_not_done_is_refused_with_its_place(tmp_path, text, complaint):
    path = tmp_path / "mine"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        loads("--workload", str(path))


@pytest.mark.parametrize(("words", "complaint"), [
    (["--workload", "g"], "YCSB has a, b, c.*workloada.*no such file"),
    (["--workload", "none/mine"], "none/mine: No such file"),
    (["-p", "readproportion"], "NAME=VALUE"), (["-p", "=1"], "NAME=VALUE"),
    (["-p", "recordcount=5", "--records", "6"], "--records and -p recordcount=5 say the same"),
    (["-p", "requestdistribution=uniform", "--distribution", "latest"], "say the same"),
    (["--value", "100"], "multiple of 8"),
])
def test_wrong_words(words, complaint):
    with pytest.raises(ConfigError, match=complaint):
        loads(*words)


def test_every_property_of_ycsbs_core_workload_is_known():
    """CoreWorkload.java and Client.java of 0.17: done, possible with one value, or named as without effect."""
    every = """table fieldcount fieldnameprefix fieldlengthdistribution fieldlength minfieldlength
        fieldlengthhistogram readallfields readallfieldsbyname writeallfields dataintegrity readproportion
        updateproportion insertproportion scanproportion readmodifywriteproportion requestdistribution zeropadding
        minscanlength maxscanlength scanlengthdistribution insertorder hotspotdatafraction hotspotopnfraction
        core_workload_insertion_retry_limit core_workload_insertion_retry_interval recordcount operationcount
        insertstart insertcount threadcount target maxexecutiontime dotransactions db exporter exportfile label
        measurementtype measurement.interval status.interval exponential.percentile exponential.frac
        measurement.trackjvm histogram.buckets timeseries.granularity""".split()  # noqa: SIM905
    for name in every:
        if name in ycsb_properties._KINDS or name in ycsb_properties._ONLY:
            continue
        assert ycsb_properties.choose("x", parse(f"{name}=1", "f")).unused == [name]


# -- what each property does -------------------------------------------------------------------------------------


def operations(text: str, records: Records | None = None, base: int = 300, seed: int = 1) -> Operations:
    kind = made("mine", {name: given.value for name, given in parse(text, "f").items()})
    return Operations(kind, "", records or Records(4, 16, kind), Keyspace(base, first=kind.first), History(1, 4),
                      seed, 2000)


def test_proportions_are_weights():
    drawn = operations("readproportion=3\nupdateproportion=0\ninsertproportion=1\nscanproportion=2\n"
                       "readmodifywriteproportion=4")
    kinds: Counter[str] = Counter(drawn.next()[0] for _n in range(5000))
    shares = {READ: 0.3, INSERT: 0.1, SCAN: 0.2, RMW: 0.4}
    assert set(kinds) == set(shares)
    numbers = Counter({KINDS.index(kind): number for kind, number in kinds.items()})
    assert chi_square(numbers, {KINDS.index(kind): share for kind, share in shares.items()}) < bound(3)


@pytest.mark.parametrize("more", ["", "readallfields=false\nwriteallfields=true",
                                  "insertorder=ordered\nzeropadding=9",
                                  "fieldlengthdistribution=zipfian\nminfieldlength=8",
                                  "insertstart=100\nrequestdistribution=sequential",
                                  "requestdistribution=exponential", "requestdistribution=hotspot",
                                  "scanlengthdistribution=zipfian\nminscanlength=3\nmaxscanlength=5"])
def test_every_way_to_read_and_write_is_right_at_a_store(more):
    text = ("readproportion=1\nupdateproportion=1\ninsertproportion=1\nscanproportion=1\n"
            f"readmodifywriteproportion=1\n{more}")
    kind = made("mine", {name: given.value for name, given in parse(text, "f").items()})
    records = Records(4, 16, kind)
    store = Store()
    loading = Loading(records, 300, first=kind.first)
    for _n in range(loading.total):
        assert store.carry_out(loading.next()[1]) == ""
    assert len(store.hashes) == 300 - kind.first
    drawn = operations(text, records)
    for _n in range(600):
        _kind, steps = drawn.next()
        assert store.carry_out(steps) == ""


def commands(text: str, kind: str, many: int = 200) -> list[tuple[bytes, ...]]:
    drawn = operations(text)
    return [command for _n in range(many) for name, steps in [drawn.next()] if name == kind
            for command in next(steps)]


def test_fields_that_are_read_and_written():
    reads = commands("readproportion=1\nupdateproportion=0\nreadallfields=false", READ)
    assert {(command[0], len(command)) for command in reads} == {(b"HMGET", 3)}
    assert {command[2] for command in reads} == {b"field0", b"field1", b"field2", b"field3"}
    assert {command[0] for command in commands("readproportion=1", READ)} == {b"HGETALL"}
    for all_of_them, words in (("true", 10), ("false", 4)):
        writes = commands(f"updateproportion=1\nwriteallfields={all_of_them}", UPDATE)
        assert {len(command) for command in writes} == {words}


def test_one_field_that_is_wrong_or_missing_is_noticed():
    records = Records(4, 16)
    key = records.key(3)
    assert records.judge(key, [records.value(key, 2, 7)], 2) == ""
    assert records.judge(key, [records.value(key, 1, 7)], 2)
    assert "not there" in records.judge(key, [None], 2)
    assert records.judge(key, [], 2)
    assert records.judge(key, None, 2)


def test_names_of_records():
    def key(text: str, number: int) -> bytes:
        return Records(1, 8, made("mine", {n: given.value for n, given in parse(text, "f").items()})).key(number)

    assert key("", 0) == b"user6284781860667377211"
    assert key("insertorder=ordered", 42) == b"user42"
    assert key("insertorder=ordered\nzeropadding=6", 42) == b"user000042"
    assert key("zeropadding=21", 0) == b"user006284781860667377211"


def test_lengths_of_fields_follow_their_distribution():
    for name in ("uniform", "zipfian"):
        records = Records(1, 27, replace(WORKLOADS["a"], length_distribution=name, least_length=8))
        key = records.key(1)
        counts = Counter(len(records.value(key, 0, version)) for version in range(20_000))
        assert set(counts) == set(range(8, 28))
        zeta = sum(1 / n**THETA for n in range(1, 21))
        # Of a zipfian the first two are exact (Gray's method).
        shares = dict.fromkeys(range(8, 28), 1 / 20) if name == "uniform" else {8: 1 / zeta, 9: 0.5**THETA / zeta}
        assert chi_square(counts, shares) < bound(len(shares))


def test_lengths_of_scans_follow_their_distribution():
    text = "scanproportion=1\nreadproportion=0\nupdateproportion=0\nminscanlength=3\nmaxscanlength=12\n"
    for name in ("uniform", "zipfian"):
        drawn = commands(f"{text}scanlengthdistribution={name}", SCAN, 8000)
        counts = Counter(int(command[-1]) for command in drawn)
        assert set(counts) == set(range(3, 13))
        zeta = sum(1 / n**THETA for n in range(1, 11))
        shares = dict.fromkeys(range(3, 13), 1 / 10) if name == "uniform" else {3: 1 / zeta, 4: 0.5**THETA / zeta}
        assert chi_square(counts, shares) < bound(len(shares))


def test_hotspot():
    chooser = hotspot(200, 0.1, 0.7, Random(6), first=50)
    counts = Counter(chooser() for _n in range(DRAWS))
    shares = {**dict.fromkeys(range(50, 70), 0.7 / 20), **dict.fromkeys(range(70, 250), 0.3 / 180)}
    assert set(counts) == set(shares)
    assert chi_square(counts, shares) < bound(199)
    for share, asked in ((1.0, 1.0), (0.0, 0.0), (1.0, 1.0)):
        assert 0 <= hotspot(10, share, asked, Random(1))() < 10


def test_exponential():
    """By its definition: P(distance < d) = 1 - (1 - p) ** (d / reach), of what lies among the records."""
    records, percentile, reach = 1000, 90.0, 300.0
    chooser = exponential(lambda: records - 1, percentile, reach, Random(7))
    counts = Counter((records - 1 - chooser()) // 50 for _n in range(DRAWS))

    def below(distance: float) -> float:
        return 1 - math.exp(distance / reach * math.log(1 - percentile / 100))

    shares = {n: (below((n + 1) * 50) - below(n * 50)) / below(records) for n in range(20)}
    assert sum(counts[n] for n in range(6)) / DRAWS == pytest.approx(0.9, abs=0.01)
    assert set(counts) <= set(shares)
    assert chi_square(counts, shares) < bound(19)


def test_sequential():
    chooser = sequential(3, first=5)
    assert [chooser() for _n in range(7)] == [5, 6, 7, 5, 6, 7, 5]


def test_records_that_begin_later():
    """insertstart: the records before are somebody else's."""
    load, run = loads("-p", "recordcount=60", "-p", "insertstart=20", "--distribution", "uniform")
    assert (load.count, run.kind.first) == (40, 20)
    kind = run.kind
    for name in ("uniform", "zipfian", "hotspot", "sequential"):
        drawn = Operations(kind, name, Records(8, 16, kind), Keyspace(60, first=20), History(1, 8), 1, 10)
        asked = {next(drawn.next()[1])[0][1] for _n in range(3000)}
        assert asked == {Records(1, 8).key(number) for number in range(20, 60)}


# -- older values ------------------------------------------------------------------------------------------------


class Forgetful(Store):
    """Answers a read now and then with what a record held one write before."""

    def __init__(self) -> None:
        super().__init__()
        self.before: dict[bytes, dict[bytes, bytes]] = {}
        self.random = Random(5)
        self.lied = 0

    def do(self, command):
        name, key = command[:2]
        if name == b"HMSET" and key in self.hashes:
            self.before[key] = dict(self.hashes[key])
        if name == b"HGETALL" and key in self.before and self.random.random() < 0.1:
            self.lied += 1
            return [part for item in self.before[key].items() for part in item]
        return super().do(command)


@pytest.mark.parametrize("letter", "abf")
def test_an_older_value_of_the_right_record_is_noticed(letter):
    records = Records(4, 16)
    store = Forgetful()
    store.hashes, store.index = loaded(records, 50).hashes, loaded(records, 50).index
    drawn = Operations(made(letter), "", records, Keyspace(50), History(1, 4), 1, None)
    wrong = [said for _n in range(1500) if (said := store.carry_out(drawn.next()[1]))]
    # One operation after the other: each is found, but where the field that was written is the same twice.
    assert store.lied >= len(wrong) > 0.9 * store.lied > 5
    assert all("older than what was seen before" in said for said in wrong)
