"""The report of a run: the pictures, the page and the table of a result folder, made from run.json alone.

The page is one file: pictures are inside, nothing is fetched, so it can be opened from the disk or mailed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from smtstack.errors import ConfigError, Unsupported
from workloads.results import kinds, plots, table
from workloads.results.compared import what_is_compared
from workloads.results.folder import ResultFolder, Run
from workloads.results.points import Column, QuotedPoint, figure_reasons, overall, points, ratio, ring_lines
from workloads.results.row import Row
from workloads.results.table import column_name, heading, number, panels
from workloads.transports.table import BASELINE

#: The page, and the table as text.
PAGE, SUMMARY = "index.html", "summary.txt"
kinds.register(
    kinds.Picture("rtt.png", plots.rtt_by_size, "Round trip of one RPC at a time, by message size"),
    kinds.Picture("throughput.png", plots.throughput_by_concurrency, "RPCs per second, by how many are under way"))

#: Of pages.
CSS = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff }
body { max-width: 76em; margin: 2em auto; padding: 0 1em }
h1 { font-size: 1.6em; margin-bottom: 0 }
h2 { font-size: 1.2em; margin: 2em 0 .5em }
.when { color: #666; margin-top: 0 }
pre { font: 13px/1.45 ui-monospace, monospace; background: #f4f4f4; padding: .7em 1em; overflow-x: auto }
.verdict { border-left: .4em solid #009E73; background: #eef8f4; padding: .5em 1em }
.verdict.bad { border-color: #D55E00; background: #fdf1e7 }
.wide { overflow-x: auto }
table { border-collapse: collapse }
caption { text-align: left; font-weight: 600; padding: .6em 0 .3em; white-space: nowrap }
th, td { text-align: right; vertical-align: top; white-space: nowrap; padding: .25em .8em }
th, td { border-bottom: 1px solid #ddd }
th:first-child, td:first-child { text-align: left }
tr.yardstick td { background: #f4f4f4 }
td small { display: block; color: #666 }
td.weak { color: #A64500 }
.facts td { text-align: left; white-space: normal }
img { max-width: 100% }
figure { margin: 1em 0 }
figcaption { font-weight: 600 }
"""

def make(folder: ResultFolder) -> tuple[Path, list[Path], str]:
    """Write pictures, page and summary of ``folder``: (page, pictures, why there are none: empty if there are)."""
    run = folder.read_run()
    made: list[tuple[Path, str]] = []
    missing = ""
    try:
        for picture in kinds.all_of(kinds.Picture):
            path = folder.path / picture.file
            try:
                if picture.draw(run.results, path):
                    made.append((path, picture.title))
            except Unsupported as e:
                missing = str(e)
        texts = [text for section in kinds.all_of(kinds.Section) if (text := section.text(run.results))]
        folder.write(SUMMARY, "\n".join([*texts, table.text(run.results)]))
        page = folder.write(PAGE, _page(run, made, missing, _files(folder.path)))
    except OSError as e:
        raise ConfigError(f"report: cannot write {e.filename or folder.path}: {e.strerror}") from None
    folder.hand_over()
    return page, [path for path, _title in made], missing


def _files(folder: Path) -> list[tuple[str, str]]:
    """(what to link to, what to call it): the files, and its folders with how many files they hold."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            count = sum(1 for inner in path.rglob("*") if inner.is_file())
            found.append((f"{path.name}/", f"{path.name}/ (files: {count})"))
        elif path.name != PAGE and not path.name.startswith("."):
            found.append((path.name, path.name))
    return found


def _page(run: Run, pictures: Iterable[tuple[Path, str]], missing: str,
          files: Iterable[tuple[str, str]]) -> str:
    rows = run.results
    parts = [
        f"<h1>{escape(run.name)}</h1>",
        f'<p class="when">{escape(run.created)}, seed {escape(str(run.seed))}</p>',
        f"<pre>{escape(run.command)}</pre>",
        _compared(run), _verdict(run.fidelity, rows), "<h2>Pictures</h2>",
    ]
    if missing:
        parts.append(f"<p>Left out: {escape(missing)}</p>")
    for path, title in pictures:
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(f'<figure><figcaption>{escape(title)}</figcaption>'
                     f'<img alt="{escape(title)}" src="data:image/png;base64,{data}"></figure>')
    parts += ["<h2>Results</h2>", _reading(rows), *_tables(rows)]
    for section in kinds.all_of(kinds.Section):
        if text := section.text(rows):
            parts += [f"<h2>{escape(section.title)}</h2>", f"<pre>{escape(text)}</pre>"]
    parts += ["<h2>What was asked for</h2>", _facts(run.parameters),
              "<h2>What it ran on</h2>", _facts(run.environment), "<h2>Files</h2>", "<ul>"]
    # "./": a file called "javascript:x" is a file.
    parts += [f'<li><a href="./{escape(quote(name))}">{escape(title)}</a></li>' for name, title in files]
    parts.append("</ul>")
    body = "\n".join(parts)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n<title>{escape(run.name)}</title>\n'
            f"<style>{CSS}</style></head>\n<body>\n{body}\n</body></html>\n")


def _compared(run: Run) -> str:
    text = what_is_compared(run.results, str(run.environment.get("protocol_code", "")))
    return f"<p>{escape(text)}</p>" if text else ""


def _verdict(fidelity: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Up front: may the figures be believed?"""
    reasons = list(dict.fromkeys([*map(str, fidelity.get("reasons") or ()), *overall(rows)["reasons"]]))
    found = points(rows)
    failed = [point for point in found if point.failed]
    lines = []
    if fidelity.get("ok", True) and not reasons:
        lines.append("<p><strong>Faithful.</strong> In no trial did the machine lose frames or time that the "
                     "transports needed.</p>")
    else:
        lines.append("<p><strong>Not faithful:</strong> figures marked ~ are of the machine as well as of the "
                     "transport. Quote them with that, or repeat the run on a quieter machine.</p><ul>")
        lines += [f"<li>{escape(reason)}</li>" for reason in reasons]
        lines.append("</ul>")
    if failed:
        lines.append("<p><strong>RPCs failed</strong> at the figures marked !:</p><ul>")
        for point in failed:
            row = point.quoted
            wrong = "" if point.content_ok else ", wrong bytes"
            first = f": {row['first_error']}" if row.get("first_error") else ""
            where = ", ".join(filter(None, (point.label, *point.panel, column_name(point.column, row["mode"]))))
            lines.append(f"<li>{escape(where)}: {point.errors} without an answer{wrong}{escape(first)}</li>")
        lines.append("</ul>")
    bad = " bad" if failed or reasons or not fidelity.get("ok", True) else ""
    return f'<div class="verdict{bad}">{"".join(lines)}</div>'


def _reading(rows: Sequence[Row]) -> str:
    trials = max((point.trials for point in points(rows)), default=0)
    text = f"The middle of {trials} trials, by what the table shows. Below it: " \
           if trials > 1 else "One trial each. Below each figure: "
    parts = [f"the ratio to {BASELINE}"] if any(row["transport"] == BASELINE for row in rows) else []
    parts += ["lowest and highest trial"] if trials > 1 else []
    parts.append("99th percentile of the round trip (p99)")
    if any("us_per_rpc" in row["cpu"] for row in rows):
        nics = " and, behind the plus, of the NICs' own" if any("nic_s" in row["cpu"] for row in rows) else ""
        parts.append(f"processor time of all client and server processes{nics} for an RPC (cpu)")
    rings = "".join(f"<p>{escape(line)}</p>" for line in ring_lines(rows))
    return f"<p>{escape(text + ', '.join(parts))}. KB are 1024 bytes; x50: fifty RPCs under way.</p>{rings}"


def _tables(rows: Sequence[Row]) -> Iterable[str]:
    for panel, found in panels(points(rows)).items():
        columns = sorted({point.column for point in found}, key=Column.order)
        head = "".join(f"<th>{escape(column_name(column, panel[1]))}</th>" for column in columns)
        lines = [f'<div class="wide"><table><caption>{escape(heading(panel))}</caption><tr><th></th>{head}</tr>']
        for label in dict.fromkeys(point.label for point in found):
            by_column = {point.column: point for point in found if point.label == label}
            cells = "".join(_cell(by_column.get(column), found) for column in columns)
            kind = ' class="yardstick"' if label == BASELINE else ""
            lines.append(f"<tr{kind}><td>{escape(label)}</td>{cells}</tr>")
        lines.append("</table></div>")
        yield "\n".join(lines)


def _cell(point: QuotedPoint | None, found: Sequence[QuotedPoint]) -> str:
    if point is None:
        return "<td></td>"
    row = point.quoted
    mark = "~" * (not point.faithful) + "!" * point.failed
    share = ratio(point, found)
    details = [f"{share:.2f} of {BASELINE}" if share and point.label != BASELINE else ""]
    if point.trials > 1:
        details.append(f"{number(point.low)} to {number(point.high)}")
    if row["rtt_us"].get("p99"):
        weak_tail = "~" * bool(figure_reasons(row, "p99"))
        details.append(f"p99 {number(row['rtt_us']['p99'])}{weak_tail} µs")
    if row["cpu"].get("us_per_rpc"):
        of_nics = row["cpu"].get("nic_us_per_rpc")
        beside = f" + NIC {number(of_nics)}" if of_nics else ""
        details.append(f"cpu {number(row['cpu']['us_per_rpc'])}{beside} µs")
    weak = ' class="weak" title="' + escape("; ".join(point.reasons) or "RPCs failed") + '"' if mark else ""
    small = "".join(f"<small>{escape(text)}</small>" for text in details if text)
    return f"<td{weak}>{escape(number(point.value) + mark)}{small}</td>"


def _facts(facts: Mapping[str, Any]) -> str:
    lines = []
    for name, value in facts.items():
        text = value if isinstance(value, str) else json.dumps(value)
        if isinstance(value, Mapping):
            text = ", ".join(f"{k} = {v if isinstance(v, str) else json.dumps(v)}" for k, v in value.items())
        lines.append(f"<tr><td>{escape(str(name))}</td><td>{escape(text)}</td></tr>")
    return f'<table class="facts">{"".join(lines)}</table>'
