"""The state of a batch, a file of its result folder: what is finished, and how it went, for who goes on."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from smtstack.exit_codes import EXIT_ENVIRONMENT, EXIT_FAILED, EXIT_OK, EXIT_UNFAITHFUL
from workloads.results.folder import ResultFolder

FILE, LOCK = "state.json", ".lock"
#: Of the file. A reader refuses what is newer.
SCHEMA = 1


class Status(str, Enum):
    """What became of a member of a batch."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    UNFAITHFUL = "not faithful"
    """Done, and the machine was measured as well."""
    LACKING = "lacks something"
    """This machine cannot do it."""
    FAILED = "failed"
    INTERRUPTED = "interrupted"

    @property
    def finished(self) -> bool:
        """Whether there is a result, so that it is not done again."""
        return self in (Status.DONE, Status.UNFAITHFUL)


@dataclass(slots=True)
class Member:
    """One step of a reproduction, or one point of a sweep."""

    status: Status = Status.WAITING
    words: list[str] = field(default_factory=list)
    """The command line after ``smtnet``, without where results go."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that it was given."""
    tries: int = 0
    code: int | None = None
    """Exit code of the last try."""
    seconds: float = 0.0
    """How long the last try took."""
    began: str = ""
    """UTC, ISO 8601."""
    folder: str = ""
    """The result folder, from that of the batch."""
    reasons: list[str] = field(default_factory=list)
    """Why it failed, or was not faithful."""
    told: dict[str, Any] = field(default_factory=dict)
    """A sweep: what the command said (``--json``), and where it ran."""

    def end(self, code: int, seconds: float, verdict: Mapping[str, Any] | None, why: str) -> None:
        """What becomes of it. ``verdict``: that of fidelity; None: it left no result. ``why``: what it said
        last."""
        self.code, self.seconds, self.reasons = code, round(seconds, 1), []
        if code == EXIT_ENVIRONMENT:
            self.status, self.reasons = Status.LACKING, [why]
        elif code not in (EXIT_OK, EXIT_UNFAITHFUL):
            self.status, self.reasons = Status.FAILED, [why or f"exit code {code}"]
        elif verdict is None:
            self.status, self.reasons = Status.FAILED, ["it left no result"]
        else:
            faithful = verdict.get("ok", True) and code == EXIT_OK
            self.status = Status.DONE if faithful else Status.UNFAITHFUL
            self.reasons = [str(reason) for reason in verdict.get("reasons") or ()]

    def is_finished(self, words: list[str], environment: Mapping[str, str]) -> bool:
        """Whether its result is the one of this command line."""
        return self.status.finished and self.words == words and self.environment == dict(environment)


def exit_code(members: Iterable[Member]) -> int:
    """1: one failed; else 3: this machine lacks something; else 4: one was not faithful; else 0."""
    found = {member.status for member in members}
    for status, code in ((Status.FAILED, EXIT_FAILED), (Status.LACKING, EXIT_ENVIRONMENT),
                         (Status.UNFAITHFUL, EXIT_UNFAITHFUL)):
        if status in found:
            return code
    return EXIT_OK


def now() -> str:
    """UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


@dataclass(slots=True)
class State:
    """All of a batch, by the names of its members. Use :meth:`open`."""

    folder: ResultFolder
    settings: dict[str, Any]
    """What a batch must have in common with this one to go on with it."""
    members: dict[str, Member] = field(default_factory=dict)
    began: str = ""
    _lock: int = -1

    @classmethod
    def open(cls, base: Path, name: str, settings: dict[str, Any], anew: bool = False) -> State:
        """The newest batch of these settings in ``base``, or a new one; nobody else works on it until
        :meth:`close`. Raises :class:`ConfigError`."""
        found = None if anew else find(base, name, settings)
        state = cls(ResultFolder.create(name, base), settings) if found is None else found
        state._take()
        if found is not None:
            # Somebody may have gone on meanwhile.
            state.members = read(state.folder.path).members
        return state

    @classmethod
    def look(cls, base: Path, name: str, settings: dict[str, Any]) -> State | None:
        """The batch that :meth:`open` would go on with, but only to look at; None: there is none."""
        return find(base, name, settings)

    def _take(self) -> None:
        self._lock = os.open(self.folder.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise ConfigError(f"{self.folder.path}: somebody is at work on it; wait, or take another --results"
                              ) from None

    def close(self) -> None:
        """Others may go on with it."""
        os.close(self._lock)
        self.folder.hand_over()

    def __enter__(self) -> State:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def member(self, name: str) -> Member:
        """The one of that name; a new one if there is none."""
        return self.members.setdefault(name, Member())

    def save(self) -> None:
        """The file, whole or not at all."""
        self.folder.write(FILE, json.dumps({
            "schema": SCHEMA, "settings": self.settings, "began": self.began,
            "members": {name: asdict(member) for name, member in self.members.items()}}, indent=1) + "\n")


def read(folder: Path) -> State:
    """The state of a batch, to look at. Raises :class:`ConfigError`."""
    path = folder / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] > SCHEMA:
            raise ConfigError(f"{path}: written by a newer smtnet (schema {data['schema']}, known: {SCHEMA})")
        members = {name: Member(**{**entry, "status": Status(entry["status"])})
                   for name, entry in data["members"].items()}
        return State(ResultFolder(folder), data["settings"], members, data["began"])
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(f"{path}: no state of a batch ({type(e).__name__}: {e})") from None


def find(base: Path, name: str, settings: dict[str, Any]) -> State | None:
    """The newest batch of that name and these settings in ``base``; None: there is none."""
    for path in sorted(base.glob(f"*-{name}*/{FILE}"), reverse=True):
        state = read(path.parent)
        if state.settings == settings:
            return state
    return None
