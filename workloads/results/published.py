"""What was measured beside what was published: ``published.json`` of a result folder, as table and picture.

Whoever measures says which published figure it is (:class:`Published`), and which of its values stand beside which
of theirs (:class:`Beside`); ``smtnet reproduce all`` shows all of them on one page.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from workloads.results import plots
from workloads.results.points import grouped
from workloads.results.table import aligned
from workloads.results.table import number as large

#: In a result folder.
FILE = "published.json"
#: Inches of one panel.
_WIDTH, _HEIGHT = 3.9, 2.9


def number(value: float | None) -> str:
    """For tables: three digits, ratios too."""
    return f"{value:.2f}" if value is not None and abs(value) < 10 else large(value)


@dataclass(frozen=True, slots=True)
class Published:
    """Which published figure an experiment stands beside, and how far the two can be compared."""

    source: str = ""
    """Paper or talk, and the number of the figure or table; empty: nothing was published."""
    emulated: str = ""
    """What of the published set-up is emulated here, and by what."""
    modelled: str = ""
    """What is computed by a model in place of being measured; empty: nothing is."""
    not_comparable: str = ""
    """What must not be compared, and why."""
    words: tuple[str, ...] = ()
    """Further words of its command line in ``smtnet reproduce all``."""
    quick: tuple[str, ...] | None = None
    """Those instead with ``--quick``; None: ``words``, and ``--quick`` if it has such an option."""


@dataclass(frozen=True, slots=True)
class Beside:
    """One value of a figure, here and published."""

    what: str
    """The panel, with its unit: ``round trip (us)``. All values of one are drawn on one axis."""
    series: str
    """The system or way, as tables here call it."""
    at: str
    """The place on the axis below: ``64 B``."""
    here: float | None
    """None: not measured here."""
    published: float | None = None
    """None: not published, or as a range."""
    low: float | None = None
    """With ``high``, what was published as a range."""
    high: float | None = None
    note: str = ""
    """As what stands in for it."""

    @property
    def published_text(self) -> str:
        """For tables; a range if it is one, empty if nothing was published."""
        if self.low is not None and self.high is not None:
            return f"{number(self.low)} to {number(self.high)}"
        return "" if self.published is None else number(self.published)

    @property
    def published_value(self) -> float | None:
        """For pictures: of a range the middle."""
        if self.low is not None and self.high is not None:
            return (self.low + self.high) / 2
        return self.published


def as_json(values: Sequence[Beside]) -> str:
    """What :func:`read` reads."""
    return json.dumps([asdict(value) for value in values], indent=1) + "\n"


def read(folder: Path) -> list[Beside]:
    """What a run left there; empty if nothing was published beside it. Raises :class:`ConfigError` for another
    file of that name."""
    path = folder / FILE
    if not path.is_file():
        return []
    try:
        return [Beside(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as e:
        raise ConfigError(f"{path}: not what a run of smtnet leaves ({type(e).__name__}: {e})") from None


def ratios(values: Sequence[Beside], series: str, other: str, what: str) -> list[Beside]:
    """``series`` by ``other``, here and published, wherever both are: what can be compared across machines."""
    by_place = {(value.series, value.at): value for value in values}
    out = []
    for at in dict.fromkeys(value.at for value in values):
        ours, theirs = by_place.get((series, at)), by_place.get((other, at))
        if ours is None or theirs is None:
            continue
        out.append(Beside(what, f"{series} / {other}", at, _share(ours.here, theirs.here),
                          _share(ours.published, theirs.published), note=theirs.note or ours.note))
    return out


def _share(a: float | None, b: float | None) -> float | None:
    return round(a / b, 4) if a is not None and b else None


def panels(values: Sequence[Beside]) -> dict[str, list[Beside]]:
    """By what they are of."""
    return grouped(values, lambda value: value.what)


def text(values: Sequence[Beside]) -> str:
    """For people: a table for each panel, here and published in columns."""
    blocks = []
    for what, found in panels(values).items():
        lines = [["", "", "here", "published", ""]]
        lines += [[value.series, value.at, number(value.here), value.published_text, value.note]
                  for value in found]
        blocks.append(f"{what}\n{aligned(lines, left=2)}")
    return "\n\n".join(blocks)


def picture(values: Sequence[Beside], path: Path) -> bool:
    """For each panel two pictures side by side, published and here, each with its own scale; False: there is
    nothing published to draw, and no file."""
    found = {what: own for what, own in panels(values).items()
             if any(value.published_value is not None for value in own)}
    if not found:
        return False
    figure = plots.new_figure(2 * _WIDTH + 1.5, _HEIGHT * len(found))
    grid = figure.subplots(len(found), 2, squeeze=False)
    series = list(dict.fromkeys(value.series for own in found.values() for value in own))
    styles = plots.styles_of(series)
    for line, (what, own) in zip(grid, found.items(), strict=True):
        places = {at: place for place, at in enumerate(dict.fromkeys(value.at for value in own))}
        for axes, where in zip(line, ("published", "here"), strict=True):
            axes.set_title(f"{what}, {where}", fontsize=9)
            axes.set_xticks(list(places.values()), list(places), fontsize=8,
                            rotation=30 if max(map(len, places)) > 8 else 0)
            axes.set_xmargin(0.1)
            for name in dict.fromkeys(value.series for value in own):
                _draw(axes, styles[name], [value for value in own if value.series == name], where, places)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=8)
    figure.legend(handles=plots.line_keys(series), loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=plots.DPI)
    return True


def _draw(axes: Any, style: tuple[str, str, str], own: Sequence[Beside], where: str,
          places: dict[str, int]) -> None:
    color, marker, line = style
    marks = []
    for value in own:
        y = value.here if where == "here" else value.published_value
        if y is None:
            continue
        marks.append((places[value.at], y))
        if where == "published" and value.low is not None and value.high is not None:
            axes.plot([places[value.at]] * 2, [value.low, value.high], color=color, linewidth=4, alpha=0.3)
    axes.plot([x for x, _y in marks], [y for _x, y in marks], color=color, marker=marker, linestyle=line,
              linewidth=1.4, markersize=5)
