"""What was measured beside what was published: ``published.json`` of a result folder, as table and picture.

Whoever measures says which published figure it is (:class:`Published`), and which of its values stand beside which
of theirs (:class:`Beside`); ``smtnet reproduce all`` shows all of them on one page.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from smtstack.errors import ConfigError
from workloads.results import plots
from workloads.results.points import grouped
from workloads.results.table import aligned
from workloads.results.table import number as large

#: Colour, marker, line.
_Style: TypeAlias = tuple[str, str, Any]
#: In a result folder.
FILE = "published.json"
#: Of lines that are no systems: Okabe and Ito's, in another order than those of systems.
_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#8C6D31")
_MARKERS = "XosD^vP*<"
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
    """What stands instead of ``words`` with ``--quick``; None: ``words``, and ``--quick`` where it has that
    option."""


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
    """What it is, if it stands in for what was published."""
    bars: bool = False
    """Places are names, no quantity that grows: a panel of bars."""

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
    heights = [_HEIGHT if not own[0].bars else 1.0 + 0.2 * len(own) for own in found.values()]
    figure = plots.new_figure(2 * _WIDTH + 2.2, sum(heights))
    grid = figure.subplots(len(found), 2, squeeze=False, height_ratios=heights)
    series = list(dict.fromkeys(value.series for own in found.values() for value in own))
    styles = _styles(series)
    for line, (what, own) in zip(grid, found.items(), strict=True):
        for axes, where in zip(line, ("published", "here"), strict=True):
            axes.set_title(f"{what}, {where}", fontsize=9)
            axes.tick_params(labelsize=8)
            (_draw_bars if own[0].bars else _draw_lines)(axes, styles, own, where)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=color, marker=marker, linestyle=line, linewidth=1.4, label=name)
               for name, (color, marker, line) in styles.items()]
    figure.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    figure.savefig(path, dpi=plots.DPI)
    return True


def _styles(series: Sequence[str]) -> dict[str, _Style]:
    """Systems as everywhere; others, as ratios, by colours of their own."""
    known = plots.styles_of([])
    others = [name for name in series if name not in known]
    return {name: known[name] if name in known else
            (_COLORS[others.index(name) % len(_COLORS)], _MARKERS[others.index(name) % len(_MARKERS)], ":")
            for name in series}


def _value(value: Beside, where: str) -> float | None:
    return value.here if where == "here" else value.published_value


def _draw_lines(axes: Any, styles: Mapping[str, _Style], own: Sequence[Beside], where: str) -> None:
    places = {at: place for place, at in enumerate(dict.fromkeys(value.at for value in own))}
    axes.set_xticks(list(places.values()), list(places), rotation=30 if max(map(len, places)) > 7 else 0)
    axes.set_xlim(-0.5, len(places) - 0.5)
    axes.grid(alpha=0.3)
    highest = 0.0
    for name, found in grouped(own, lambda value: value.series).items():
        color, marker, line = styles[name]
        marks = [(places[value.at], y) for value in found if (y := _value(value, where)) is not None]
        for value in found:
            if where == "published" and value.low is not None and value.high is not None:
                axes.plot([places[value.at]] * 2, [value.low, value.high], color=color, linewidth=4, alpha=0.3)
                highest = max(highest, value.high)
        axes.plot([x for x, _y in marks], [y for _x, y in marks], color=color, marker=marker, linestyle=line,
                  linewidth=1.4, markersize=5)
        highest = max([highest, *(y for _x, y in marks)])
    axes.set_ylim(0, highest * 1.1 or 1)


def _draw_bars(axes: Any, styles: Mapping[str, _Style], own: Sequence[Beside], where: str) -> None:
    places = {at: place for place, at in enumerate(dict.fromkeys(value.at for value in own))}
    names = list(dict.fromkeys(value.series for value in own))
    width = 0.8 / len(names)
    for number, name in enumerate(names):
        found = [(places[value.at] + (number - (len(names) - 1) / 2) * width, y) for value in own
                 if value.series == name and (y := _value(value, where)) is not None]
        axes.barh([place for place, _y in found], [y for _place, y in found], width, color=styles[name][0])
    axes.set_yticks(list(places.values()), list(places) if where == "published" else [])
    axes.set_ylim(len(places) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
