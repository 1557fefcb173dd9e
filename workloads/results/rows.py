"""Results on disk and what is quoted of them.

A row (:mod:`workloads.results.row`) is one trial of one measured point.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import sys
import time
from array import array
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from smtstack.errors import ConfigError, SmtError
from workloads.results import kinds
from workloads.results.row import Row, Verdict
from workloads.transports.table import BASELINE, system_label

#: Of run.json. A reader refuses what is newer.
SCHEMA = 1
LATEST = "latest"

_NUMBER = re.compile(r"\d+(?:\.\d+)?")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: What makes two rows trials of the same point.
_POINT = ("topo", "transport", "nic", "mode", "poll", "variant", "size", "concurrency")


def label(row: Mapping[str, Any]) -> str:
    """The system as tables call it: ``smt-sw``, ``smt-hw``, ``homa``, ``tcp``. Where a NIC does nothing for a
    transport, it is not named."""
    return system_label(row["transport"], row.get("nic"))


class Load(NamedTuple):
    """A column of a table."""

    size: int | str
    """Request bytes; or the name of a distribution (``w3``)."""
    concurrency: int

    def order(self) -> tuple[bool, int | str, int]:
        """Sizes in ascending order, then names."""
        return isinstance(self.size, str), self.size, self.concurrency


@dataclass(frozen=True, slots=True)
class Point:
    """All trials of one point: the middle one is quoted, beside the lowest and the highest."""

    quoted: Row
    """The middle trial, by what its mode is judged by (:class:`~workloads.results.kinds.Mode`)."""
    value: float | None
    """What :func:`metric` says; None: nothing was answered."""
    low: float | None
    high: float | None
    trials: int
    errors: int
    """RPCs without an answer, of all trials."""
    content_ok: bool
    """In every trial."""
    reasons: tuple[str, ...] = ()
    """Why :attr:`value` is not faithful, from all trials; empty: it was in all."""

    @property
    def label(self) -> str:
        """See :func:`label`."""
        return label(self.quoted)

    @property
    def faithful(self) -> bool:
        """Every trial was: a middle among disturbed neighbours is no middle."""
        return not self.reasons

    @property
    def failed(self) -> bool:
        """RPCs were lost or answered wrongly: the figure is of what was left."""
        return self.value is None or self.errors > 0 or not self.content_ok

    @property
    def panel(self) -> tuple[str, str, str, str]:
        """What may stand in one table or picture: (topo, mode, poll, variant)."""
        row = self.quoted
        return row["topo"], row["mode"], row.get("poll") or "", row.get("variant") or ""

    @property
    def load(self) -> Load:
        """What the systems of a panel are compared at."""
        return Load(self.quoted["size"], self.quoted.get("concurrency") or 1)


def metric(row: Row) -> float | None:
    """What a trial is judged by: a time in us or RPC/s. None: no answer."""
    kind = kinds.mode(row["mode"])
    value = row["rtt_us"][kind.figure] if kind.timed else row["rpc_per_s"]
    return float(value) if value and math.isfinite(value) else None


def middle(rows: Sequence[Row]) -> Point:
    """The trials of one point as one: of an even number the worse of the two in the middle."""
    timed = kinds.mode(rows[0]["mode"]).timed
    # A trial without a single answer is the worst there is, not one to leave out.
    worst = math.inf if timed else 0.0
    values = sorted(((metric(row) or worst, index) for index, row in enumerate(rows)), reverse=not timed)
    value, index = values[len(values) // 2]
    known = [v for v, _i in values if v != worst]
    # A median can stand where a tail cannot.
    reasons = _by_kind((reason, row) for row in rows for reason in figure_reasons(row, figure_of(row)))
    return Point(
        rows[index], None if value == worst else value, min(known, default=None), max(known, default=None),
        len(rows), sum(row["errors"] for row in rows), all(row["content_ok"] for row in rows),
        tuple(max(found, key=_amount)[0] for found in reasons))


def figure_of(row: Row) -> str:
    """The name of what a trial is judged by."""
    return kinds.mode(row["mode"]).figure


def figure_reasons(row: Row, figure: str) -> list[str]:
    """Why a figure of a trial cannot stand; rows of older runs know of the whole trial only."""
    fidelity = row.get("fidelity") or {}
    if "figures" not in fidelity:
        return _reasons(row)
    if fidelity["figures"].get(figure, True):
        return []
    return str(fidelity["figure_reasons"].get(figure) or "not faithful").split("; ")


def _reasons(row: Row) -> list[str]:
    fidelity = row.get("fidelity") or {}
    if fidelity.get("ok", True):
        return []
    return [str(reason) for reason in fidelity.get("reasons") or ["not faithful"]]


def points(rows: Iterable[Row]) -> list[Point]:
    """Every point, in the order its first trial stands in."""
    grouped: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        grouped.setdefault(tuple(row.get(name) for name in _POINT), []).append(row)
    return [middle(trials) for trials in grouped.values()]


def ratio(point: Point, among: Iterable[Point]) -> float | None:
    """Its value by that of :data:`BASELINE` at the same load in the same panel; None if there is none."""
    for other in among:
        if other.label == BASELINE and other.panel == point.panel and other.load == point.load:
            return point.value / other.value if point.value and other.value else None
    return None


def _by_kind(reasons: Iterable[tuple[str, Row]]) -> list[list[tuple[str, Row]]]:
    """Reasons that differ in their numbers only, together."""
    kinds: dict[str, list[tuple[str, Row]]] = {}
    for reason, row in reasons:
        kinds.setdefault(_NUMBER.sub("#", reason), []).append((reason, row))
    return list(kinds.values())


def _amount(reason: tuple[str, Row]) -> float:
    found = _NUMBER.search(reason[0])
    return float(found[0]) if found else 0.0


def overall(rows: Sequence[Row]) -> Verdict:
    """One verdict for a whole run: ``ok``, ``reasons`` (each kind once, with the worst trial), ``trials``,
    ``unfaithful`` (how many of them)."""
    reasons = []
    for found in _by_kind((reason, row) for row in rows for reason in _reasons(row)):
        worst, row = max(found, key=_amount)
        reasons.append(f"{len(found)} of {len(rows)} trials, worst {describe(row)}: {worst}")
    unfaithful = sum(bool(_reasons(row)) for row in rows)
    return {"ok": not unfaithful, "reasons": reasons, "trials": len(rows), "unfaithful": unfaithful}


def describe(row: Row) -> str:
    """``smt-sw star,4 loaded 64 B x50 trial 2``."""
    load = "" if kinds.mode(row["mode"]).alone else f" x{row['concurrency']}"
    poll = " polling" if row.get("poll") == "polling" else ""
    variant = f" {row['variant']}" if row.get("variant") else ""
    return (f"{label(row)} {row['topo']} {row['mode']}{poll}{variant} {size_text(row['size'])}{load} "
            f"trial {row.get('trial', 1)}")


def size_text(size: int | str) -> str:
    """``64 B``, ``1 KB`` (1024 bytes), ``1 MB`` (a million or 2**20), ``W3``."""
    if isinstance(size, str):
        return size.upper()
    for unit, factor in (("MB", 1 << 20), ("MB", 1_000_000), ("KB", 1024)):
        if size >= factor and size % factor == 0:
            return f"{size // factor} {unit}"
    return f"{size} B"


@dataclass(slots=True)
class Run:
    """A run as run.json has it."""

    name: str
    parameters: dict[str, Any]
    environment: dict[str, Any]
    seed: int | None
    fidelity: Mapping[str, Any]
    results: list[Row]
    command: str = ""
    created: str = ""
    """UTC, ISO 8601."""
    schema: int = field(default=SCHEMA)


class ResultFolder:
    """``results/<utc>-<name>/``: run.json, results.csv, raw/, summary.txt and what else a run leaves.

    Everything written through it belongs to the user who called sudo, not to root.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, name: str, base: Path | str = "results") -> ResultFolder:
        """A new folder, which ``base/latest`` points to from now on. Never one that exists."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"result name {name!r}: letters, digits, '.', '_' and '-' only")
        base = Path(base)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        try:
            if not base.is_dir():
                base.mkdir(parents=True)
                _hand_over(base)
            for number in count(1):
                path = base / (f"{stamp}-{name}" if number == 1 else f"{stamp}-{name}-{number}")
                with suppress(FileExistsError):
                    path.mkdir()
                    break
            folder = cls(path)
            _hand_over(path)
            folder._point_latest()
        except OSError as e:
            raise ConfigError(f"results: cannot write {e.filename or base}: {e.strerror}; "
                              "name another folder or free this one") from None
        return folder

    @classmethod
    def open(cls, path: Path | str) -> ResultFolder:
        """One that exists; raises :class:`ConfigError` if it is none."""
        path = Path(path)
        if not (path / "run.json").is_file():
            raise ConfigError(f"{path}: no result folder (no run.json in it); smtnet demo makes one")
        return cls(path.resolve())

    def _point_latest(self) -> None:
        # A rename is atomic: two runs at once leave the link of one of them, never none.
        link, new = self.path.parent / LATEST, self.path.parent / f".{LATEST}-{os.getpid()}-{self.path.name}"
        new.symlink_to(self.path.name)
        _hand_over(new)
        try:
            new.replace(link)
        except OSError:
            new.unlink()
            raise

    def write_run(self, parameters: Mapping[str, Any], environment: Mapping[str, Any], seed: int | None,
                  fidelity: Mapping[str, Any], results: Sequence[Row], command: str | None = None) -> Path:
        """run.json, whole or not at all. ``command``: by default the command line of this process."""
        run = Run(self.path.name, dict(parameters), dict(environment), seed, dict(fidelity), list(results),
                  shlex.join(["smtnet", *sys.argv[1:]]) if command is None else command,
                  time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        return self.write("run.json", json.dumps(asdict(run), indent=1) + "\n")

    def read_run(self) -> Run:
        """What :meth:`write_run` wrote; raises :class:`ConfigError` for anything else."""
        path = self.path / "run.json"
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["schema"] > SCHEMA:
                raise ConfigError(f"{path}: written by a newer smtnet (schema {data['schema']}, known: {SCHEMA})")
            run = Run(**data)
            for row in run.results:
                describe(row)
            points(run.results)
        except OSError as e:
            raise ConfigError(f"{path}: {e.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise ConfigError(f"{path}: not a run of smtnet ({type(e).__name__}: {e})") from None
        return run

    def write_csv(self, rows: Sequence[Mapping[str, Any]], name: str = "results.csv") -> Path:
        """One line a row; columns are paths into the JSON (``rtt_us.p50``). Lists are joined by ``;``."""
        flat = [dict(_flatten(row)) for row in rows]
        columns = list(dict.fromkeys(key for row in flat for key in row))
        path = self.path / name
        with path.open("w", newline="", encoding="utf-8") as f:
            writer = csv.DictWriter(f, columns)
            writer.writeheader()
            writer.writerows(flat)
        _hand_over(path)
        return path

    def save_raw(self, name: str, samples: array[int]) -> Path:
        """``raw/<name>.u64``: nanoseconds, little endian, 8 bytes each. numpy: ``fromfile(path, "<u8")``."""
        if not _NAME.fullmatch(name) or samples.typecode != "Q":
            raise SmtError(f"raw samples {name!r}, {samples.typecode!r}: a plain name and array('Q') wanted")
        if sys.byteorder != "little":
            samples = samples[:]
            samples.byteswap()
        folder = self.path / "raw"
        if not folder.is_dir():
            folder.mkdir()
            _hand_over(folder)
        return self.write(f"raw/{name}.u64", samples.tobytes())

    def write(self, name: str, content: str | bytes) -> Path:
        """A file in the folder, whole or not at all."""
        path = self.path / name
        new = path.with_name(f".{path.name}.new")
        new.write_bytes(content.encode() if isinstance(content, str) else content)
        _hand_over(new)
        return new.replace(path)

    def hand_over(self) -> None:
        """Give the user what others (captures, logs) have written into the folder."""
        for folder, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                _hand_over(Path(folder, name))


def _flatten(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in row.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            yield prefix + key, "; ".join(map(str, value))
        else:
            yield prefix + key, value


def _hand_over(path: Path) -> None:
    """To the user behind sudo, if there is one."""
    try:
        user, group = int(os.environ["SUDO_UID"]), int(os.environ["SUDO_GID"])
    except (KeyError, ValueError):
        return
    # A file system that knows no owners (vfat, some network ones) is no reason to lose a result.
    with suppress(OSError):
        os.chown(path, user, group, follow_symlinks=False)
