"""The paper's figure from rows: medians, ratios, files, picture; and that echo's pictures leave YCSB out."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from tests.rows import comparison as echo_rows
from tests.rows import row
from workloads.experiments import fig8, ycsb_picture
from workloads.results import plots, report, table
from workloads.results.folder import ResultFolder

#: Operations per second: smt in software is 1.1 of tls, in hardware 1.2; homa is 0.9 of tcp.
RATES = {("smt", "sw"): 11_000.0, ("smt", "hw"): 12_000.0, ("homa", "sw"): 9_000.0, ("tcp", None): 10_000.0,
         ("tls", None): 10_000.0, ("ktls-sw", None): 8_000.0}


def rows(trials: int = 3) -> list[Any]:
    return [row(transport, nic, mode="loaded", concurrency=32, rpc_per_s=rate * (1 + trial / 100), trial=trial,
                size=value, variant=f"ycsb {letter}", workload=letter, value_bytes=value)
            for value in (64, 4096) for letter in "af" for trial in range(1, trials + 1)
            for (transport, nic), rate in RATES.items()]


def test_the_table_has_medians_and_ratios_beside_the_papers():
    found = fig8.comparison(rows())
    assert [(point["value_bytes"], point["workload"]) for point in found] == [(64, "a"), (64, "f"), (4096, "a"),
                                                                             (4096, "f")]
    first = found[0]
    assert first["ops_per_s"] == {"smt-sw": 11_220.0, "smt-hw": 12_240.0, "homa": 9_180.0, "tcp": 10_200.0,
                                  "tls": 10_200.0, "ktls-sw": 8_160.0}
    assert first["ratio"] == {"smt-sw/tls": 1.1, "smt-hw/tls": 1.2, "homa/tcp": 0.9, "ktls-sw/tls": 0.8}
    assert first["paper"] == {"smt-sw/tls": (1.05, 1.24), "homa/tcp": (1.03, 1.13)}
    assert found[2]["paper"]["homa/tcp"] == (0.98, 1.03)
    assert fig8.summary(found)["smt-sw/tls"] == {"min": 1.1, "max": 1.1}


def test_the_same_as_csv_and_text():
    found = fig8.comparison(rows())
    lines = list(csv.DictReader(io.StringIO(fig8.as_csv(found))))
    assert len(lines) == 4
    assert lines[0]["homa ops_per_s"] == "9180.0"
    assert lines[0]["smt-hw/tls"] == "1.2"
    assert lines[0]["smt-hw/tls paper low"] == ""
    assert lines[3]["homa/tcp paper high"] == "1.03"
    text = fig8.as_text(found).splitlines()
    assert " ".join(text[1].split()) == "A, 64 B 1.10 (paper 1.05-1.24) 1.20 0.90 (paper 1.03-1.13) 0.80"


def test_the_picture(tmp_path: Path, monkeypatch):
    figure = pytest.importorskip("matplotlib.figure")
    figures: list[Any] = []
    save = figure.Figure.savefig

    def noting(self: Any, *args: Any, **kw: Any) -> None:
        figures.append(self)
        save(self, *args, **kw)

    monkeypatch.setattr(figure.Figure, "savefig", noting)
    path = tmp_path / "workloads.png"
    assert ycsb_picture.throughput_by_workload(rows(), path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    (drawn,) = figures
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == ["back2back, interrupt, 64 B", "back2back, interrupt, 4 KB"]
    for axes in drawn.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["A", "F"]
        heights = sorted(round(bar.get_height()) for bar in axes.patches)
        assert heights == [8160] * 2 + [9180] * 2 + [10_200] * 4 + [11_220] * 2 + [12_240] * 2
    (legend,) = drawn.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["smt-sw", "smt-hw", "homa", "tcp", "tls", "ktls-sw"]


def test_each_picture_shows_its_own(tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert not ycsb_picture.throughput_by_workload(echo_rows(), tmp_path / "x.png")
    assert not plots.throughput_by_concurrency(rows(), tmp_path / "x.png")
    unloaded: list[Any] = [{**r, "mode": "unloaded"} for r in rows()]
    assert not plots.rtt_by_size(unloaded, tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_report_calls_them_operations(tmp_path: Path):
    folder = ResultFolder.create("kv", tmp_path)
    folder.write_run({}, {}, 1, {"ok": True, "reasons": []}, rows(1))
    page, pictures, _missing = report.make(folder)
    assert "operations/s" in page.read_text()
    assert "RPC/s" not in table.text(rows(1))
    assert [picture.name for picture in pictures] in (["workloads.png"], [])
