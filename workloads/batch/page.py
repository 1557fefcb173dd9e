"""The page of a reproduction: each figure beside the published one, and how far the two can be compared."""

from __future__ import annotations

import base64
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from smtstack.errors import SmtError, Unsupported
from workloads.batch.host_file import HostFile
from workloads.batch.state import Member, State, Status
from workloads.batch.steps import Step
from workloads.results import kinds, published
from workloads.results.published import Beside
from workloads.results.report import CSS, PAGE, SUMMARY

#: In the folder of a step: published and here, side by side.
PICTURE = "beside.png"
_LABELS = (("emulated", "Emulated"), ("modelled", "Modelled"), ("not_comparable", "Not comparable"))
_READING = (
    "Emulated: real code and real packets, between hosts that are namespaces of one machine. Modelled: computed "
    "in virtual time or by a formula. What is not comparable is said with each figure. Published values are on "
    "the left and were read off the figures of their papers; what was measured here stands on the right, each "
    "with a scale of its own.")


def make(state: State, steps: Sequence[Step], host: HostFile, environment: Mapping[str, Any]) -> Path:
    """Write page and summary into the folder of the reproduction."""
    found = {step.name: _values(state, step) for step in steps}
    state.folder.write(SUMMARY, _summary(state, steps, found))
    return state.folder.write(PAGE, _page(state, steps, host, environment, found))


def _values(state: State, step: Step) -> list[Beside]:
    """What a finished step has beside published values, with its picture drawn."""
    folder = _folder(state, step)
    if folder is None:
        return []
    try:
        values = published.read(folder)
        if not (folder / PICTURE).exists():
            published.picture(values, folder / PICTURE)
    except Unsupported:
        return values
    except SmtError:
        return []
    return values


def _folder(state: State, step: Step) -> Path | None:
    member = state.members.get(step.name)
    return state.folder.path / member.folder if member and member.folder and member.status.finished else None


def table(members: Mapping[str, Member], steps: Iterable[Step]) -> str:
    """For people: every step and how it went."""
    lines = [["step", "", "s", "what"]]
    for step in steps:
        member = members.get(step.name, Member())
        why = f" ({member.reasons[0]})" if member.reasons and not member.status.finished else ""
        lines.append([step.name, member.status.value, f"{member.seconds:.0f}" if member.seconds else "",
                      (step.published.source or step.title) + why])
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) if index == 2 else cell.ljust(width)
                               for index, (cell, width) in enumerate(zip(line, widths, strict=True))).rstrip()
                     for line in lines)


def _summary(state: State, steps: Sequence[Step], found: Mapping[str, Sequence[Beside]]) -> str:
    parts = [table(state.members, steps)]
    parts += [f"{step.name}: {step.published.source}\n\n{published.text(found[step.name])}"
              for step in steps if found[step.name]]
    return "\n\n\n".join(parts) + "\n"


def _page(state: State, steps: Sequence[Step], host: HostFile, environment: Mapping[str, Any],
          found: Mapping[str, Sequence[Beside]]) -> str:
    folder = state.folder.path
    parts = [f"<h1>{escape(folder.name)}</h1>",
             f'<p class="when">begun {escape(state.began)} on {escape(host.name)}</p>',
             _verdict(state, steps), f"<p>{escape(_READING)}</p>", _contents(state, steps)]
    for step in steps:
        parts += _step(state, step, found[step.name])
    parts.append("<h2>This machine</h2>")
    parts.append(f"<p>Its settings, {escape(str(host.path))}:</p><pre>{escape(host.text)}</pre>" if host.text
                 else f"<p>It has no settings of its own ({escape(str(host.path))}).</p>")
    parts.append(_facts({name: value if isinstance(value, str) else json.dumps(value)
                         for name, value in environment.items()}))
    body = "\n".join(parts)
    head = f'<meta charset="utf-8">\n<title>{escape(folder.name)}</title>\n<style>{CSS}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _verdict(state: State, steps: Sequence[Step]) -> str:
    by_status: dict[Status, list[str]] = {}
    for step in steps:
        by_status.setdefault(state.members.get(step.name, Member()).status, []).append(step.name)
    lines = [f"<strong>{escape(status.value)}</strong>: {escape(', '.join(names))}"
             for status, names in by_status.items()]
    good = set(by_status) <= {Status.DONE}
    note = ("" if Status.UNFAITHFUL not in by_status else
            "<p>Where a step was not faithful, the machine was too busy, and its figures are of the machine as "
            "well; its own page says which.</p>")
    return f'<div class="verdict{"" if good else " bad"}"><p>{"<br>".join(lines)}</p>{note}</div>'


def _contents(state: State, steps: Sequence[Step]) -> str:
    lines = ["<tr><th>step</th><th>what</th><th>published</th><th>here</th><th>s</th></tr>"]
    for step in steps:
        member = state.members.get(step.name, Member())
        seconds = f"{member.seconds:.0f}" if member.seconds else ""
        lines.append(
            f'<tr><td><a href="#{escape(step.name)}">{escape(step.name)}</a></td><td>{escape(step.title)}</td>'
            f"<td>{escape(step.published.source or 'nothing')}</td><td>{escape(member.status.value)}</td>"
            f"<td>{seconds}</td></tr>")
    return f'<table class="facts">{"".join(lines)}</table>'


def _step(state: State, step: Step, values: Sequence[Beside]) -> Iterable[str]:
    member = state.members.get(step.name, Member())
    yield f'<h2 id="{escape(step.name)}">{escape(step.name)}: {escape(step.title)}</h2>'
    facts = {"Published": step.published.source or "nothing that stands beside it"}
    facts |= {label: text for name, label in _LABELS if (text := getattr(step.published, name))}
    facts["Here"] = member.status.value + (f": {'; '.join(member.reasons)}" if member.reasons else "")
    if member.words:
        facts["Command"] = shlex.join(["smtnet", *member.words])
    yield _facts(facts)
    folder = _folder(state, step)
    if folder is None:
        return
    titles = {kind.file: kind.title for kind in kinds.all_of(kinds.Picture)}
    pictures = sorted(folder.glob("*.png"), key=lambda path: (path.name != PICTURE, path.name))
    for path in pictures:
        title = "Published, and here" if path.name == PICTURE else titles.get(path.name, path.stem)
        data = base64.b64encode(path.read_bytes()).decode()
        yield (f'<figure><figcaption>{escape(title)}</figcaption><img alt="{escape(title)}" '
               f'src="data:image/png;base64,{data}"></figure>')
    for what, own in published.panels(values).items():
        yield _values_table(what, own)
    place = quote(str(folder.relative_to(state.folder.path)))
    inner = f"{place}/{PAGE}" if (folder / PAGE).exists() else f"{place}/"
    yield f'<p><a href="./{escape(inner)}">The step\'s own results</a></p>'


def _values_table(what: str, own: Sequence[Beside]) -> str:
    """Series down, places across: here, and below it what was published."""
    places = list(dict.fromkeys(value.at for value in own))
    head = "".join(f"<th>{escape(at)}</th>" for at in places)
    lines = [f'<div class="wide"><table><caption>{escape(what)}: here, below it published</caption>'
             f"<tr><th></th>{head}</tr>"]
    for series in dict.fromkeys(value.series for value in own):
        by_place = {value.at: value for value in own if value.series == series}
        note = next((value.note for value in by_place.values() if value.note), "")
        cells = []
        for at in places:
            value = by_place.get(at)
            below = "" if value is None else value.published_text
            cells.append("<td></td>" if value is None else
                         f"<td>{escape(published.number(value.here))}<small>{escape(below)}</small></td>")
        lines.append(f"<tr><td>{escape(series)}<small>{escape(note)}</small></td>{''.join(cells)}</tr>")
    lines.append("</table></div>")
    return "\n".join(lines)


def _facts(facts: Mapping[str, str]) -> str:
    lines = [f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in facts.items()]
    return f'<table class="facts">{"".join(lines)}</table>'
