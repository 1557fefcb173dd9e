"""The folder that a run leaves: run.json, tables, raw samples; written for the user behind sudo."""

from __future__ import annotations

import csv
import io
import json
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
from typing import Any

from smtstack.errors import ConfigError, SmtError
from workloads.results.points import describe, points
from workloads.results.row import Row

#: Of run.json. A reader refuses what is newer.
SCHEMA = 1
LATEST = "latest"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
#: Of run.json's environment: the folder in which the command was typed, from which its paths are.
DIRECTORY = "directory"
#: Set while a run is repeated, to the folder of the first one; "repeats" of run.json's parameters.
REPEATS = "SMTNET_REPEATS"


def csv_text(table: Sequence[Mapping[str, Any]]) -> str:
    """A table as CSV: a line for each entry, a column for each name that any of them has."""
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for line in table for name in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()


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
