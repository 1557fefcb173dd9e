"""``smtnet report``: the page from run.json alone, and nothing in it that runs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from array import array
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import ConfigError
from tests.rows import comparison, row
from workloads.commands import report as report_command
from workloads.results import report
from workloads.results.compared import what_is_compared
from workloads.results.folder import ResultFolder
from workloads.results.points import overall
from workloads.results.row import Row

HOSTILE = '<script>alert(1)</script>"onload=\'x\'&amp;'


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [attrs[attribute] or "" for name, attrs in self.tags if name == tag and attribute in attrs]


def _folder(base: Path, rows: Sequence[Row], **parameters: Any) -> ResultFolder:
    folder = ResultFolder.create("demo", base)
    environment = {"cpu": "Abacus", "protocol_code": "compiled", "sysctl": {"net.core.rmem_max": "1"}}
    folder.write_run(parameters, environment, 1, overall(rows), rows, "smtnet demo --quick")
    return folder


def _report(*argv: str) -> int:
    parser = argparse.ArgumentParser()
    report_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["report", *argv])
    code: int = args.run(args)
    return code


def test_page_has_everything_and_needs_nothing(tmp_path: Path):
    pytest.importorskip("matplotlib")
    folder = _folder(tmp_path, comparison(), trials=3)
    folder.save_raw("smt", array("Q", [1]))
    path, pictures, missing = report.make(folder)
    page = Page(path)
    assert "smt-sw" in (folder.path / "summary.txt").read_text()
    assert [p.name for p in pictures] == ["rtt.png", "throughput.png"]
    assert not missing
    for words in ("smtnet demo --quick", "Faithful.", "star,4, loaded, interrupt: RPC/s", "0.75 of tls",
                  "92.1 to 95.7", "Abacus", "net.core.rmem_max = 1", "raw/ (files: 1)"):
        assert words in page.text
    assert len(page.all("img", "src")) == 2
    assert all(src.startswith("data:image/png;base64,") for src in page.all("img", "src"))
    # No link, script or style leads out of the folder.
    assert {tag for tag, _attrs in page.tags}.isdisjoint({"script", "link", "iframe", "object", "base"})
    assert all(href.startswith("./") for href in page.all("a", "href"))
    assert all((folder.path / href).exists() for href in page.all("a", "href"))
    assert "http" not in page.source.replace("base64", "")[:page.source.index("data:image")]
    assert "url(" not in page.source


def test_who_sees_it_first_is_told_what_is_compared_and_shown_it(tmp_path: Path):
    pytest.importorskip("matplotlib")
    rows: list[Any] = comparison()
    for r in rows:
        looks = r["topo"] == "back2back" and r["transport"] in {"smt", "homa"}
        r["wait"] = "hybrid" if looks else "interrupt"
    text = Page(report.make(_folder(tmp_path, rows))[0]).text
    order = ["smt-sw, smt-hw, homa in Python in user space (compiled)", "tcp, tls in C in the kernel", "OpenSSL",
             "Waiting on back2back: smt-sw, smt-hw, homa hybrid; tcp, tls interrupt.",
             "Waiting on star,4: all interrupt.", "Faithful.", "Pictures", "Round trip of one RPC", "Results"]
    places = [text.index(words) for words in order]
    assert places == sorted(places)


@pytest.mark.parametrize("transports", [["smt", "homa"], ["tcp", "tls"], ["smt", "somebody's"], []])
def test_nothing_is_said_of_what_is_of_one_kind(transports):
    assert what_is_compared([row(transport) for transport in transports], "compiled") == ""


def test_a_way_to_wait_that_nobody_knows_is_left_out():
    text = what_is_compared([row("smt"), row("tcp", None)], "")
    assert "user space, packet by packet, with tcp in C in the kernel; clients" in text
    assert "Waiting" not in text
    assert "OpenSSL" not in text


@pytest.mark.parametrize("field", ["topo", "transport", "nic", "poll", "variant", "size", "first_error", "reason"])
def test_hostile_text_stays_text(tmp_path: Path, field):
    hostile: Any = row(reasons=(HOSTILE,)) if field == "reason" else {**row(errors=1), field: HOSTILE}
    path, _pictures, _missing = report.make(_folder(tmp_path, [row("tls", None), hostile]))
    page = Page(path)
    assert not [tag for tag, attrs in page.tags if tag == "script" or "onload" in attrs]
    if field != "nic":  # of which nothing but sw and hw is shown
        assert "alert(1)" in (page.text + "".join(page.all("td", "title"))).lower()


def test_hostile_command_parameters_and_file_names(tmp_path: Path):
    folder = ResultFolder.create("demo", tmp_path)
    folder.write_run({HOSTILE: HOSTILE, "list": [HOSTILE]}, {"cpu": HOSTILE, "sysctl": {HOSTILE: HOSTILE}}, 1,
                     {"ok": False, "reasons": [HOSTILE]}, [row()], HOSTILE)
    (folder.path / 'javascript:alert(1)"><script>').touch()
    page = Page(report.make(folder)[0])
    assert not [tag for tag, attrs in page.tags if tag == "script" or "onload" in attrs]
    assert page.text.count("<script>alert(1)</script>") == 8
    (link,) = [href for href in page.all("a", "href") if "javascript" in href]
    assert link.startswith("./")


def test_what_was_not_faithful_comes_first(tmp_path: Path):
    rows = [row("tls", None), row(reasons=("tasks waited 40% of the time",)),
            row("homa", errors=7, first_error="h1: the peer stopped answering")]
    page = Page(report.make(_folder(tmp_path, rows))[0])
    assert "Faithful." not in page.text
    for words in ("Not faithful", "tasks waited 40% of the time", "7 without an answer",
                  "h1: the peer stopped answering"):
        assert page.text.index(words) < page.text.index("Results")
    assert "verdict bad" in page.source
    assert page.all("td", "title") == ["tasks waited 40% of the time", "RPCs failed"]


def test_a_run_that_failed_altogether_has_a_page(tmp_path: Path):
    page = Page(report.make(_folder(tmp_path, [row(p50=None, rpc_per_s=0.0, rpcs=0, errors=3)]))[0])
    assert "none!" in page.text
    assert not page.all("img", "src")
    Page(report.make(_folder(tmp_path, []))[0])


def test_without_matplotlib_the_page_says_so(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    folder = _folder(tmp_path, comparison())
    assert _report(str(folder.path)) == 0
    assert "pip install matplotlib" in capsys.readouterr().err
    assert "Left out: pictures need matplotlib" in Page(folder.path / report.PAGE).text


def test_command_remakes_the_newest_without_root(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = _folder(tmp_path / "results", [row(), row("tls", None)])
    assert _report("--json") == 0
    out = json.loads(capsys.readouterr().out)
    assert out["folder"] == os.path.realpath(folder.path)
    assert Path(out["page"]).is_file()
    assert out["fidelity"]["ok"] is True
    assert (out["failed"], len(out["pictures"])) == (0, 1)
    (folder.path / report.PAGE).unlink()
    assert _report(str(folder.path)) == 0
    captured = capsys.readouterr()
    assert "median round trip in us" in captured.out
    assert report.PAGE in captured.err
    assert (folder.path / report.PAGE).is_file()


def test_no_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="results/latest: no result folder"):
        _report()
