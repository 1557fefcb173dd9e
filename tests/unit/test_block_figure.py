"""The block store's figure: table, values beside the paper's, picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rows import row
from workloads.experiments.block_figure import DEPTHS, LINES, as_text, beside, by_depth, line_of, table
from workloads.fleet.blocks import MODE


def block_row(transport: str, nic: str | None, depth: int, p50: float, pattern: str = "randread",
              store: str = "memory", **more: Any) -> Any:
    return row(transport, nic, mode=MODE, p50=p50, size=4096, concurrency=depth, variant=pattern, pattern=pattern,
               store=store, blocks=4096, ops={}, sent_again=0, kills=0, **more)


def rows() -> list[Any]:
    return [block_row(transport, nic, depth, p50 * depth * (1 + trial / 10), trial=trial)
            for transport, nic, p50 in (("smt", "sw", 300.0), ("tls", None, 200.0), ("tcp", None, 100.0))
            for depth in (1, 8, 32) for trial in (1, 2, 3)]


def test_every_line_of_the_papers_has_all_depths():
    assert [line.paper for line in LINES] == ["TCP", "kTLS-sw", "Homa", "SMT-sw", "SMT-hw"]
    for line in LINES:
        for values in line.values.values():
            assert len(values) == len(DEPTHS)
            assert all(50 < value < 300 for value in values)
    assert (smt := line_of("smt-sw")) is not None
    assert smt.paper == "SMT-sw"
    assert line_of("quic") is None


def test_the_middle_trial_stands_beside_the_papers_value():
    entries = table([*rows(), block_row("smt", "sw", 8, 900.0, "randwrite")])
    by_point = {(entry["system"], entry["pattern"], entry["iodepth"]): entry for entry in entries}
    assert by_point["smt-sw", "randread", 8]["p50_us"] == pytest.approx(300 * 8 * 1.2)
    assert by_point["smt-sw", "randread", 8]["paper_p50_us"] == 132.1
    assert by_point["tls", "randread", 1]["paper_p99_us"] == 126.5
    assert "paper_p50_us" not in by_point["smt-sw", "randread", 32], "the paper's figure ends at 8"
    assert "paper_p50_us" not in by_point["smt-sw", "randwrite", 8], "it has reads only"
    text = as_text(entries)
    assert text.splitlines()[1].split() == ["smt-sw", "randread", "1", "360.0", "648.0", "10,000", "107.0",
                                            "121.3"]
    values = beside(entries)
    tls = next(value for value in values if value.series == "tls" and value.at == "iodepth 8")
    assert (tls.published, tls.note) == (147.7, "for kTLS-sw")
    assert not beside(table([block_row("tcp", None, 1, 100.0, store="file")])), "another store"


def test_the_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    path = tmp_path / "iodepth.png"
    assert not by_depth([row()], path)
    assert not path.exists()
    assert by_depth(rows(), path)
    assert path.stat().st_size > 10_000
