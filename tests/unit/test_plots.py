"""The pictures: what is drawn, and how what must not be believed is marked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import Unsupported
from tests.rows import BASE, comparison, row
from workloads.results import plots


@pytest.fixture
def drawn(monkeypatch) -> list[Any]:
    """The figures that were saved."""
    figure = pytest.importorskip("matplotlib.figure")
    figures: list[Any] = []
    save = figure.Figure.savefig

    def noting(self: Any, *args: Any, **kw: Any) -> None:
        figures.append(self)
        save(self, *args, **kw)

    monkeypatch.setattr(figure.Figure, "savefig", noting)
    return figures


def _panels(figure: Any) -> list[Any]:
    return [axes for axes in figure.axes if axes.get_visible()]


def _marks(axes: Any) -> list[Any]:
    """Lines of one point with a marker: what ``errorbar`` draws has none."""
    return [line for line in axes.lines if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "_")]


def test_round_trips(tmp_path: Path, drawn):
    path = tmp_path / "rtt.png"
    assert plots.rtt_by_size(comparison(), path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    (figure,) = drawn
    panels = _panels(figure)
    assert [axes.get_title() for axes in panels] == ["back2back, interrupt", "star,4, interrupt"]
    for axes in panels:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["64 B", "1 KB", "8 KB", "64 KB"]
        assert axes.get_yscale() == "log"
        assert len(_marks(axes)) == 4 * len(BASE)
    assert "µs" in figure._supylabel.get_text()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["smt-sw", "smt-hw", "homa", "tcp", "tls"]
    # Beside the data, not on it.
    assert legend.get_window_extent().x0 > max(axes.get_window_extent().x1 for axes in panels)


def test_throughput(tmp_path: Path, drawn):
    assert plots.throughput_by_concurrency(comparison(), tmp_path / "x.png")
    panels = _panels(drawn[0])
    assert [axes.get_title() for axes in panels] == ["back2back, interrupt, 64 B", "star,4, interrupt, 64 B"]
    for axes in panels:
        assert axes.get_ylim()[0] == 0
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1", "50", "150"]


def test_bars_reach_from_the_lowest_to_the_highest_trial(tmp_path: Path, drawn):
    plots.rtt_by_size([row(p50=p50) for p50 in (50.0, 40.0, 90.0)], tmp_path / "x.png")
    (axes,) = _panels(drawn[0])
    ((low, high),) = axes.collections[0].get_segments()
    assert (low[1], high[1]) == pytest.approx((40.0, 90.0))
    assert [line.get_ydata()[0] for line in _marks(axes)] == [50.0]


def test_hollow_is_what_was_not_faithful_or_failed(tmp_path: Path, drawn):
    rows = [row(), row("homa", reasons=("3 frames lost",)), row("tcp", None, errors=1), row("tls", None)]
    plots.rtt_by_size(rows, tmp_path / "x.png")
    (axes,) = _panels(drawn[0])
    assert [line.get_markerfacecolor() == "white" for line in _marks(axes)] == [False, True, True, False]
    caption = drawn[0]._suptitle.get_text()
    assert "not faithful (1 of 4 points)" in caption
    assert "RPCs failed (1 of 4)" in caption
    plots.rtt_by_size([row(), row("tls", None)], tmp_path / "x.png")
    assert "hollow" not in drawn[1]._suptitle.get_text()


def test_systems_differ_without_colour(tmp_path: Path, drawn):
    rows = [row(name, None) for name in ("smt-sw", "homa", "tcp", "tls", "ktls", "other", "another")]
    plots.rtt_by_size([*rows, row(nic="hw")], tmp_path / "x.png")
    markers = [line.get_marker() for line in _marks(_panels(drawn[0])[0])]
    assert len(set(markers)) == len(markers) == 8


@pytest.mark.parametrize("draw", [plots.rtt_by_size, plots.throughput_by_concurrency])
def test_nothing_to_draw_leaves_no_file(tmp_path: Path, draw):
    pytest.importorskip("matplotlib")
    nothing = row(mode="unloaded" if draw is plots.rtt_by_size else "loaded", p50=None, rpc_per_s=0.0, errors=9)
    assert not draw([], tmp_path / "x.png")
    assert not draw([nothing], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_distribution_of_sizes_has_no_place_on_an_axis_of_sizes(tmp_path: Path, drawn):
    assert not plots.rtt_by_size([row(size="w3")], tmp_path / "x.png")
    assert plots.throughput_by_concurrency([row(size="w3", mode="loaded")], tmp_path / "x.png")
    assert _panels(drawn[0])[0].get_title().endswith("W3")


def test_without_matplotlib_the_fix_is_named(tmp_path: Path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(Unsupported, match="pip install matplotlib"):
        plots.rtt_by_size([row()], tmp_path / "x.png")


@pytest.mark.parametrize("p50", [185.0, 193.0, 194.393, 1e-3 + 64, 190.0])
def test_a_single_value_has_an_axis(p50, tmp_path, monkeypatch):
    """The limits of a logarithmic axis may differ by rounding only, and leave no tick."""
    pytest.importorskip("matplotlib")
    seen = []
    y_axis = plots.y_axis

    def watched(axes, log):
        seen.append(axes)
        y_axis(axes, log)

    monkeypatch.setattr(plots, "y_axis", watched)
    plots.rtt_by_size([row("tcp", None, p50=p50)], tmp_path / "rtt.png")
    assert seen
    for axes in seen:
        low, high = axes.get_ylim()
        assert low < p50 < high
        assert any(low <= tick <= high for tick in axes.get_yticks())
