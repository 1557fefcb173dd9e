"""``run incast`` and ``run fanout`` without a network: options, arithmetic, tables and curves."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from typing import Any

import pytest

from tests.rows import row
from tests.typed import typed
from topo.link_options import LinkOptions
from topo.topologies import make_topo
from workloads.commands import main as cli
from workloads.experiments import experiment, queries
from workloads.experiments import fanout as run_fanout
from workloads.experiments import incast as run_incast
from workloads.experiments import query_curves as curves
from workloads.experiments.queries import Queries, answer_bytes, hops, ideal_us, numbers, outcome_of, systems
from workloads.fleet.retransmissions import kernel_counter
from workloads.results import report
from workloads.results.fidelity import doubted
from workloads.results.folder import ResultFolder, csv_text
from workloads.results.points import points
from workloads.results.table import text

TIMES = ("min", "p50", "p90", "p99", "p999", "max", "mean")


def query_row(system: str = "smt-sw", leaves: int = 1, *, mode: str = "incast", p99: float = 8000.0,
              queries: int = 200, control: str = "", goodput_mbps: float | None = None, **more: Any) -> Any:
    """One trial of a point; times in us."""
    transport, _dash, nic = system.split(",", maxsplit=1)[0].partition("-")
    ours = transport in ("smt", "homa")
    shares = (0.4, 0.5, 0.8, 1.0, 1.5, 1.5, 0.6)
    sent_again = {"resent_packets": 3, "resends": 2} if ours else {"retransmits": 5, "timeouts": 1}
    return row(transport, nic or None, mode=mode, size=10_000, concurrency=leaves, system=system, control=control,
               queries=queries, goodput_mbps=goodput_mbps or 80.0 / leaves, ideal_mbps=94.0,
               ideal_us=900.0 * leaves,
               rate_mbps=100.0, buffer_bytes=128_000, resend_ms=100.0, query_rate=0.0, load_text="100 Mbit/s",
               topo="star,33",
               rtt_us={name: p99 * share for name, share in zip(TIMES, shares, strict=True)},
               leaf_us={name: p99 * share / 2 for name, share in zip(TIMES, shares, strict=True)},
               p99_if_independent_us=4000.0, queue_peak_bytes=90_000, drops={"queues": 7, "cables": 0}, variant="",
               **{**sent_again, **more})


def options(*words: str) -> Queries:
    return typed(Queries, *words)


# -- arithmetic ----------------------------------------------------------------------------------------------

def test_an_answer_has_the_headers_of_its_frames():
    links = LinkOptions(rate_mbps=100)
    # 1448 bytes of data are a frame of 1514 bytes, with 24 more on the cable; short ones are padded to 84.
    assert answer_bytes(1448, links) == 1538
    assert answer_bytes(1449, links) == 1538 + 1 + 52 + 14 + 24
    assert answer_bytes(2 * 1448, links) == 2 * 1538
    assert answer_bytes(10_000, LinkOptions(rate_mbps=100, mtu=9000)) == 9038 + (10_000 - 8948) + 90


def test_the_ideal_is_the_clients_link_and_what_comes_before():
    links = LinkOptions(rate_mbps=10)
    # Two links to a server: a request of 154 bytes over both, the first frame over the server's.
    assert ideal_us(1, 1448, 64, links, 2) == pytest.approx((1538 + 2 * 154 + 1538) * 0.8)
    assert ideal_us(10, 1448, 64, links, 2) == pytest.approx((15380 + 2 * 154 + 1538) * 0.8)
    delayed = LinkOptions(rate_mbps=10, delay_us=100)
    assert ideal_us(1, 1448, 64, delayed, 2) - ideal_us(1, 1448, 64, links, 2) == pytest.approx(400)


@pytest.mark.parametrize(("topo", "links"), [("back2back", 1), ("star,4", 2), ("fanout,2,3", 4), ("incast,3", 3),
                                             ("leafspine,2,2,2", 4)])
def test_links_on_the_way_to_the_farthest_host(topo, links):
    assert hops(make_topo(topo)) == links


def test_a_query_rate_is_of_the_roots_link():
    words = ("--size", "1448", "--rate-mbps", "10", "--load")
    asked = typed(run_fanout.Options, *words, "50%")
    assert asked.query_rate(4) == pytest.approx(0.5 * 10e6 / 8 / (4 * 1538))
    assert typed(run_fanout.Options, *words, "120").query_rate(4) == 120
    assert run_fanout.load("30%") == (0.3, True)


def test_what_the_leaves_alone_would_make_of_the_tail():
    times = array("Q", range(1000, 1_001_000, 1000))
    # One leaf: its own 99th percentile. Four: each has to be in time in 99.75 % of all cases.
    assert run_fanout.independent_us(times, 1) == 990
    assert run_fanout.independent_us(times, 4) == 998
    assert run_fanout.independent_us(times[:99], 1) is None
    assert run_fanout.independent_us(times[:398], 4) is None


def test_the_kernels_counters_are_found():
    # Whoever runs this has used TCP, or the kernel says 0; a name it does not know is 0, too.
    assert kernel_counter(1, "snmp", "Tcp", "RtoMin") > 0
    assert kernel_counter(1, "snmp", "Tcp", "NoSuchThing") == 0
    assert kernel_counter(1, "netstat", "TcpExt", "TCPTimeouts") >= 0


def test_further_reasons_make_a_row_unfaithful():
    fidelity = query_row()["fidelity"]
    assert doubted(fidelity)["ok"]
    twice = doubted(doubted(fidelity, "because"), "and also")
    assert (twice["ok"], twice["reasons"]) == (False, ["because", "and also"])
    assert fidelity["ok"]


# -- options -------------------------------------------------------------------------------------------------

def test_systems_are_the_transports_and_what_has_incast_control_twice():
    args = options("--transport", "smt,tls", "--incast-control", "4", "--size", "5000", "--param", "window=7")
    found = systems(args, "--param", "max_overcommit=2")
    assert [(setup.transport, variant) for setup, variant in found] == [
        ("smt", ""), ("smt", "incast control 4"), ("tls", "")]
    assert {setup.server_options for setup, _variant in found} == {("--response-size", "5000")}
    assert {setup.pattern for setup, _variant in found} == {"root"}
    plain, controlled, tls = (setup.options for setup, _variant in found)
    assert plain == ("--param", "max_overcommit=2", "--param", "window=7")
    assert controlled == (*plain, "--param", "incast_threshold=4")
    assert tls == ()


def test_numbers_are_sorted_and_counted_once():
    assert numbers("8,1,8,2") == [1, 2, 8]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["incast", "--senders", "0"], ["--senders", "'0'"]),
        (["incast", "--senders", "3,x"], ["--senders", "'x'"]),
        (["incast", "--senders", "4", "--topo", "star,4"], ["4 servers", "star,5"]),
        (["incast", "--topo", "ring,4"], ["ring"]),
        (["incast", "--transport", "smt,quic"], ["'quic'", "smt, homa"]),
        (["incast", "--size", "2000000"], ["2000000", "1000000"]),
        (["incast", "--incast-control", "4", "--transport", "tls"], ["--incast-control", "smt and homa"]),
        (["incast", "--param", "windw=3"], ["windw", "window"]),
        (["incast", "--param", "max_overcommit=0", "--transport", "tls"], ["max_overcommit is 0"]),
        (["incast", "--buffer", "10"], ["buffer_bytes"]),
        (["incast", "--senders", "300"], ["'301'", "star,N"]),
        (["fanout", "--leaves", "2", "--topo", "back2back"], ["2 servers", "back2back", "star,3"]),
        (["fanout", "--load", "0%"], ["--load"]),
        (["fanout", "--load", "-3"], ["--load"]),
        (["fanout", "--background", "w9"], ["'w9'", "w5"]),
        (["fanout", "--background", "W4", "--background-load", "0"], ["--background-load"]),
    ])
def test_mistakes_are_said_before_anything_is_made(words, says, tmp_path, capsys):
    try:
        code = cli.main(["run", *words, "--results", str(tmp_path)])
    except SystemExit as e:
        code = int(e.code or 0)
    lines = capsys.readouterr().err.splitlines()
    assert code == 2
    assert all(word in lines[-1] for word in says), lines
    assert not list(tmp_path.iterdir())


# -- tables --------------------------------------------------------------------------------------------------

def test_trials_of_a_point_are_a_line():
    rows = [query_row(leaves=8, trial=t, p99=p99) for t, p99 in ((1, 9000.0), (2, 4000.0), (3, 5000.0))]
    rows += [query_row("tls", 8), query_row("tls", 8, control="a buffer for everything")]
    first, second, third = run_incast.table(rows)
    assert (first["servers"], first["system"], first["trials"]) == (8, "smt-sw", 3)
    assert (first["p99_ms"], first["ideal_ms"], first["goodput_mbps"]) == (5.0, 7.2, 10.0)
    assert (first["lost_frames"], first["sent_again"], first["resends_or_rtos"]) == (21, 9, 6)
    assert (second["system"], second["lost_frames"], second["sent_again"], second["resends_or_rtos"]) == (
        "tls", 7, 5, 1)
    assert third["control"] == "a buffer for everything"
    assert first["faithful"]
    assert not run_incast.table([query_row(), query_row(reasons=("late",))])[0]["faithful"]


def test_percentiles_of_too_few_queries_are_left_out():
    (many,), (some,), (few,) = (run_fanout.table([query_row(mode="fanout", queries=n)]) for n in (1000, 999, 99))
    assert (many["p99_ms"], many["p999_ms"]) == (8.0, 12.0)
    assert (some["p99_ms"], some["p999_ms"]) == (8.0, None)
    assert (few["p50_ms"], few["p99_ms"], few["p999_ms"]) == (4.0, None, None)
    shown = queries.as_text([few]).splitlines()
    assert shown[0].split()[:4] == ["leaves", "system", "trials", "queries"]
    assert shown[1].split()[:4] == ["1", "smt-sw", "1", "99"]
    assert ",99,,4.0,,," in csv_text([few])


def test_the_common_table_has_the_tail_and_its_ratio():
    rows = [query_row(leaves=4, p99=2000.0), query_row("tls", 4, p99=8000.0)]
    shown = text(rows)
    assert "star,33, incast, interrupt: 99th percentile of the rounds in us" in shown
    assert "10000 B x4" in shown
    assert "2,000 (0.25)" in shown
    assert points(rows)[0].value == 2000.0


# -- curves --------------------------------------------------------------------------------------------------

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


def _marks(axes: Any) -> list[tuple[float, bool]]:
    """(value, filled) of every mark."""
    return [(line.get_ydata()[0], line.get_markerfacecolor() != "white") for line in axes.lines
            if len(line.get_xdata()) == 1 and line.get_marker() not in ("None", "_")]


def _ideal(axes: Any) -> list[float]:
    (line,) = [line for line in axes.lines if line.get_color() == "0.4"]
    return list(line.get_ydata())


def test_incast_curves(tmp_path: Path, drawn):
    path = tmp_path / "incast.png"
    rows = [query_row(system, leaves, trial=trial, p99=1000.0 * leaves * trial)
            for system in ("smt-sw", "tls", "smt-sw, incast control 4") for leaves in (1, 8, 32)
            for trial in (1, 2, 3)]
    rows.append(query_row("smt-sw", 32, control="a buffer for everything", goodput_mbps=99.0))
    assert curves.incast(rows, path)
    assert path.read_bytes()[:4] == b"\x89PNG"
    goodput, tail, lost = drawn[0].axes
    assert [text.get_text() for text in goodput.get_xticklabels()] == ["1", "8", "32"]
    assert [value for value, _filled in _marks(goodput)] == [80.0, 10.0, 2.5] * 3, "the control is no point"
    assert [value for value, _filled in _marks(tail)] == [2.0, 16.0, 64.0] * 3
    assert _ideal(tail) == [0.9, 7.2, 28.8]
    assert _ideal(goodput) == [94.0] * 3
    assert [value for value, _filled in _marks(lost)] == [7] * 9
    legend = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert legend == ["smt-sw", "tls", "smt-sw, incast control 4", "the link, never idle"]
    assert "median of 3 trials" in drawn[0]._suptitle.get_text()


def test_a_tail_of_few_rounds_is_their_slowest(tmp_path: Path, drawn):
    curves.incast([query_row(queries=20, p99=4000.0)], tmp_path / "x.png")
    assert _marks(drawn[0].axes[1]) == [(6.0, True)]
    assert "slowest" in drawn[0].axes[1].get_title()


def test_fanout_curves_leave_out_what_has_too_few_samples(tmp_path: Path, drawn):
    rows = [query_row(leaves=leaves, mode="fanout", queries=2000 // leaves, p99=2000.0) for leaves in (1, 8, 32)]
    assert curves.fanout(rows, tmp_path / "fanout.png")
    median, p99, p999 = drawn[0].axes
    assert [len(_marks(axes)) for axes in (median, p99, p999)] == [3, 2, 1]
    assert median.get_xlim() == p99.get_xlim() == p999.get_xlim()
    assert _ideal(median) == [0.9, 7.2, 28.8]


def test_hollow_is_what_was_not_faithful_or_failed(tmp_path: Path, drawn):
    rows = [query_row(), query_row(leaves=2, reasons=("3 frames lost",)), query_row(leaves=4, errors=1),
            query_row(leaves=8, content_ok=False)]
    curves.incast(rows, tmp_path / "x.png")
    assert [filled for _value, filled in _marks(drawn[0].axes[0])] == [True, False, False, False]
    assert "hollow" in drawn[0]._suptitle.get_text()
    assert "(3 of 4 points)" in drawn[0]._suptitle.get_text()


@pytest.mark.parametrize("draw", [curves.incast, curves.fanout])
def test_nothing_to_draw_leaves_no_file(tmp_path: Path, draw):
    assert not draw([row(), row(mode="loaded")], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_report_has_the_curves(tmp_path: Path):
    pytest.importorskip("matplotlib")
    folder = ResultFolder.create("incast", tmp_path)
    rows = [query_row(leaves=leaves) for leaves in (1, 8)]
    folder.write_run({}, {}, 1, {"ok": True, "reasons": []}, rows)
    folder.write_csv(rows)
    _page, pictures, missing = report.make(folder)
    assert ([path.name for path in pictures], missing) == (["incast.png"], "")
    assert "Incast, by the number of servers" in (folder.path / report.PAGE).read_text()
    assert json.loads((folder.path / "run.json").read_text())["results"][1]["drops"]["queues"] == 7


def concluded(folder: ResultFolder, rows: list[Any], *words: str) -> int:
    """The exit code of a run with these rows."""
    asked = typed(run_incast.Options, *words)
    found = outcome_of(asked, 1, rows, "incast", run_incast.table(rows))
    verdict = experiment.save(run_incast.EXPERIMENT, asked, found, folder)
    return experiment.conclude(run_incast.EXPERIMENT, found, folder, verdict, asked.queries.end)


@pytest.mark.parametrize(
    ("more", "words", "code", "says"),
    [({}, [], 0, ""), ({"reasons": ("9 frames lost",)}, [], 4, "not faithful: 1 of 1 trials"),
     ({"reasons": ("9 frames lost",)}, ["--allow-unfaithful"], 0, "not faithful"),
     ({"errors": 2, "first_error": "h1: no answer"}, [], 1, "1 points failed: h1: no answer"),
     ({"content_ok": False}, [], 1, "an answer was wrong or missing")])
def test_what_becomes_of_a_run(more, words, code, says, tmp_path, capsys):
    rows = [query_row(**more)]
    folder = ResultFolder.create("incast", tmp_path)
    assert concluded(folder, rows, "--json", *words) == code
    said = capsys.readouterr()
    assert says in said.err
    result = json.loads(said.out)
    assert (result["errors"], result["fidelity"]["ok"]) == (more.get("errors", 0), "reasons" not in more)
    assert (folder.path / "incast.csv").read_text().startswith("servers,system,control,")


def test_the_error_of_any_trial_is_said(tmp_path, capsys):
    """Also of one that is not quoted, as it is not the middle one."""
    rows = [query_row(trial=1), query_row(trial=2, errors=1, p99=9000.0, first_error="h1: no answer"),
            query_row(trial=3)]
    assert "first_error" not in points(rows)[0].quoted
    folder = ResultFolder.create("incast", tmp_path)
    assert concluded(folder, rows) == 1
    assert "1 points failed: h1: no answer" in capsys.readouterr().err
