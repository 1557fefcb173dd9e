"""The paper's Fig. 12 from rows, and how its samples are taken."""

from __future__ import annotations

import csv
import io
from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.rows import row
from workloads.experiments.fig12 import program as first_rpc
from workloads.experiments.fig12 import report as fig12_report
from workloads.experiments.fig12 import run as fig12
from workloads.experiments.fig12.report import BASE, INIT, INIT_FS, ONE_RTT, RSMP, RSMP_FS, WAYS
from workloads.results import plots, report, table
from workloads.results.folder import ResultFolder
from workloads.results.points import overall

#: Median microseconds; an RPC of a session that exists takes 200.
US = {ONE_RTT: 2000.0, INIT: 1000.0, INIT_FS: 1200.0, RSMP: 700.0, RSMP_FS: 1050.0, "Init + DNS": 2500.0,
      "Init-FS + DNS": 2600.0, BASE: 200.0}


def rows(trials: int = 3, sizes: tuple[int, ...] = (64, 4096)) -> list[Any]:
    out = []
    for size in sizes:
        for trial in range(1, trials + 1):
            for way, median in US.items():
                found = row(way, None, mode="first", size=size, concurrency=1, trial=trial,
                            p50=median * (1 + trial / 100))
                found["rtt_us"] |= {"p25": found["rtt_us"]["p50"] - 10, "p75": found["rtt_us"]["p50"] + 20}
                out.append(found)
    return out


def test_what_is_saved_and_what_the_paper_has():
    found = fig12_report.comparison(rows())
    assert [entry["size"] for entry in found] == [64, 4096]
    first = found[0]
    assert first["us"][ONE_RTT] == 2040.0
    assert first["quartiles_us"][INIT] == [1010.0, 1040.0]
    assert first["saved"] == {INIT: 0.5, INIT_FS: 0.4, RSMP: 0.65, RSMP_FS: 0.475, "Init + DNS": -0.25,
                              "Init-FS + DNS": -0.3}
    # 1800 are the handshake's, of which 800 remain.
    assert first["above_base_us"][ONE_RTT] == pytest.approx(1836)
    assert first["above_base_saved"][INIT] == pytest.approx(1 - 800 / 1800, abs=0.001)
    assert first["resume_fs_cost_us"] == pytest.approx(350 * 1.02, abs=0.1)


def test_the_same_as_csv_and_text():
    found = fig12_report.comparison(rows())
    lines = list(csv.DictReader(io.StringIO(fig12_report.as_csv(found))))
    assert len(lines) == 2 * len(US)
    by_way = {line["way"]: line for line in lines[:len(US)]}
    assert by_way[INIT]["paper_saved_low"] == "0.52"
    assert by_way[RSMP]["paper_saved_low"] == ""
    assert by_way[RSMP]["paper_us"] == "632"
    assert by_way[BASE]["saved_of_1rtt"] == ""
    text = fig12_report.as_text(found)
    assert "52%-55%" in text
    assert "by 338-387 us" in text
    assert "2,040 us (64 B), an RPC alone takes 204 us here" in fig12_report.reading(found)
    for way in (*WAYS, BASE):
        assert way in text


def test_page_and_pictures(tmp_path: Path):
    pytest.importorskip("matplotlib")
    folder = ResultFolder.create("fig12", tmp_path)
    folder.write_run({}, {}, 1, overall(rows()), rows())
    page, pictures, _missing = report.make(folder)
    assert [picture.name for picture in pictures] == ["first-rpc.png"]
    assert pictures[0].read_bytes()[:4] == b"\x89PNG"
    assert "median of the first RPC" in page.read_text()
    assert "x1" not in table.text(rows())
    assert not fig12_report.picture([row()], tmp_path / "none.png")
    assert not plots.rtt_by_size(rows(), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


class Recorded:
    """A caller that says how it was asked."""

    def __init__(self, mode: str, log: list[tuple[str, int, bool]]) -> None:
        self.mode = mode
        self.log = log

    def first(self, data: bytes, look_up: bool) -> tuple[int, int]:
        self.log.append((self.mode, len(data), look_up))
        return 1000, 10


def test_every_way_gets_as_many_samples_in_turns():
    log: list[tuple[str, int, bool]] = []
    callers: Any = {mode: Recorded(mode, log) for mode, _look_up in fig12_report.WAYS.values()}
    found = first_rpc.measure(callers, [64, 100], 3, seed=1)
    assert set(found) == {*WAYS, BASE}
    assert all(times == [1000] * 3 for way in WAYS for times in found[way].values())
    assert found[BASE] == {64: [10] * 3, 100: [10] * 3}
    cells = len(WAYS) * 2
    rounds = [log[at:at + cells] for at in range(0, len(log), cells)]
    assert len(rounds) == 3
    # Each round has every cell once, and they do not always come in the same order.
    assert len({frozenset(once) for once in rounds}) == 1
    assert len(set(rounds[0])) == cells
    assert rounds[0] != rounds[1] or rounds[1] != rounds[2]


def test_a_row_has_quartiles():
    made = fig12._row(INIT, 64, 1, array("Q", [1000, 2000, 3000, 4000]), {"ok": True, "reasons": []})
    assert (made["rtt_us"]["p25"], made["rtt_us"]["p50"], made["rtt_us"]["p75"]) == (1.0, 2.0, 3.0)
    assert made["rpcs"] == 4
