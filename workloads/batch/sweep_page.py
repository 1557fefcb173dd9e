"""What a sweep leaves: one table of all points, as CSV, JSON and page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from urllib.parse import quote

from workloads.batch.grid import Sweep
from workloads.batch.state import Member, State, Status, exit_code
from workloads.results.folder import csv_text
from workloads.results.report import CSS, PAGE
from workloads.results.table import aligned

CSV, JSON = "sweep.csv", "sweep.json"
#: Of each line, beside the axes and what the command said.
_OWN = ("repeat", "seed", "status", "code", "seconds", "folder")
#: Of what a command says, what is no result.
_ASIDE = ("results", "ran_on", "smtnet", "protocol_code", "trial")


def lines(sweep: Sweep, state: State) -> list[dict[str, Any]]:
    """One for each point, in the order of the grid."""
    out = []
    for point in sweep.points:
        member = state.members.get(point.key, Member())
        taken = (*point.values, *_OWN, "results")
        told = {name: value for name, value in member.told.items() if name not in taken}
        out.append({**point.values, "repeat": point.repeat, "seed": point.seed, "status": member.status.value,
                    "code": member.code, "seconds": member.seconds, "folder": member.folder, **told})
    return out


def make(sweep: Sweep, state: State) -> dict[str, Any]:
    """Write all three; what ``--json`` prints."""
    table = lines(sweep, state)
    members = [state.members.get(point.key, Member()) for point in sweep.points]
    whole = {"name": sweep.name, "command": sweep.head.command, "axes": sweep.axes, "seed": sweep.head.seed,
             "points": len(members), "finished": sum(member.status.finished for member in members),
             "code": exit_code(members), "folder": str(state.folder.path)}
    state.folder.write(CSV, csv_text([{name: json.dumps(value) if isinstance(value, list) else value
                                       for name, value in line.items()} for line in table]))
    state.folder.write(JSON, json.dumps({**whole, "table": table}, indent=1) + "\n")
    state.folder.write("sweep.toml", sweep.text)
    state.folder.write(PAGE, _page(sweep, state, table, whole))
    return whole


def columns(sweep: Sweep, table: Sequence[Mapping[str, Any]]) -> list[str]:
    """What people are shown of what the commands said: as the file says, else the numbers that are not all the
    same."""
    if sweep.head.columns:
        return list(sweep.head.columns)
    names = dict.fromkeys(name for line in table for name in line)
    aside = {*sweep.axes, *_OWN, *_ASIDE}

    def tells(name: str) -> bool:
        values = {line[name] for line in table if isinstance(line.get(name), int | float)
                  and not isinstance(line[name], bool)}
        return len(values) > 1 and not name.startswith(("fidelity.", "cpu.", "drops.", "wait"))

    return [name for name in names if name not in aside and tells(name)][:12]


def text(sweep: Sweep, state: State) -> str:
    """For people: the same table."""
    table = lines(sweep, state)
    shown = [*sweep.axes, *(["repeat"] if sweep.head.repeats > 1 else []), "status", *columns(sweep, table)]
    return aligned([shown, *([_cell(line.get(name)) for name in shown] for line in table)],
                   left=len(sweep.axes) + 1)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return value if isinstance(value, str) else json.dumps(value)


def _page(sweep: Sweep, state: State, table: Sequence[Mapping[str, Any]], whole: Mapping[str, Any]) -> str:
    shown = [*sweep.axes, *(["repeat"] if sweep.head.repeats > 1 else []), "seed", "status",
             *columns(sweep, table)]
    head = "".join(f"<th>{escape(name)}</th>" for name in (*shown, ""))
    body = [f'<div class="wide"><table><tr>{head}</tr>']
    for line in table:
        cells = "".join(f"<td>{escape(_cell(line.get(name)))}</td>" for name in shown)
        place = f'<a href="./{escape(quote(line["folder"]))}/">files</a>' if line["folder"] else ""
        weak = line["status"] != Status.DONE.value
        body.append(f"<tr{' class=yardstick' if weak else ''}>{cells}<td>{place}</td></tr>")
    body.append("</table></div>")
    bad = "" if whole["code"] == 0 and whole["finished"] == whole["points"] else " bad"
    reasons = "".join(
        f"<li>{escape(point.text())}: {escape('; '.join(member.reasons))}</li>" for point in sweep.points
        if (member := state.members.get(point.key, Member())).reasons and not member.status.finished)
    parts = [
        f"<h1>{escape(state.folder.path.name)}</h1>",
        f'<p class="when">begun {escape(state.began)}, seed {sweep.head.seed}</p>',
        f"<pre>{escape(sweep.text)}</pre>",
        f'<div class="verdict{bad}"><p>{whole["finished"]} of {whole["points"]} points finished. What is shaded '
        f"is not faithful, or not there.</p><ul>{reasons}</ul></div>",
        *body, f'<p>All columns: <a href="./{CSV}">{CSV}</a>, <a href="./{JSON}">{JSON}</a></p>']
    title = f'<meta charset="utf-8">\n<title>{escape(state.folder.path.name)}</title>\n<style>{CSS}</style>'
    inner = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{title}</head>\n<body>\n{inner}\n</body></html>\n'
