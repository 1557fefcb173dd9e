"""``smtnet run --again DIR``: what a result folder came from, run once more.

The command line of its run.json is read again, in the folder in which it was typed, so files and ``--results``
mean what they meant. What is typed now comes after it, and so counts where both say something; its paths are from
where the user is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from smtstack.errors import ConfigError
from workloads import experiments
from workloads.results.environment import environment
from workloads.results.folder import DIRECTORY, REPEATS, ResultFolder

#: Reads a command line, or ends the program with a message.
Parse: TypeAlias = Callable[[Sequence[str]], argparse.Namespace]
#: What leaves folders of results.
_COMMANDS = ("run", "demo", "bench", "reproduce")
#: Of an environment, what is of a moment or of a network that is gone.
_FLEETING = ("load_1min", "qdiscs", DIRECTORY)


def run(words: Sequence[str], parse: Parse) -> int:
    """``words``: the folder, and further options. Raises :class:`ConfigError`."""
    path, *further = words
    experiments.load()
    folder = ResultFolder.open(path)
    recorded = folder.read_run()
    typed = typed_words(folder, recorded.command, parse)
    place = Path(recorded.environment.get(DIRECTORY) or Path.cwd())
    if not place.is_dir():
        print(f"smtnet: {place}, where it was run, is not here: its paths are taken from {Path.cwd()}",
              file=sys.stderr)
        place = Path.cwd()
    elif place != Path.cwd():
        print(f"smtnet: in {place}, where it was run", file=sys.stderr)
        further = [from_here(word, before) for before, word in zip(["", *further], further, strict=False)]
    for line in differences(recorded.environment, environment()):
        print(f"smtnet: differs from then: {line}", file=sys.stderr)
    again = [*typed, *further]
    print(f"smtnet: {shlex.join(['smtnet', *again])}", file=sys.stderr)
    with _as_if_typed(again, place, folder.path):
        args = parse(again)
        code: int = args.run(args)
        return code


def typed_words(folder: ResultFolder, command: str, parse: Parse) -> list[str]:
    """The words after ``smtnet``. Raises :class:`ConfigError` for a command that is none today."""
    said = io.StringIO()
    try:
        program, *words = shlex.split(command)
        if program != "smtnet" or words[0] not in _COMMANDS:
            raise ValueError("that is no command with results")
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            parse(words)
    except SystemExit:
        why = said.getvalue().strip().splitlines()[-1:] or ["it only shows something"]
        raise ConfigError(f"{folder.path}: its command {command!r} is no longer understood: {why[0]}; type it "
                          "anew with the options of today") from None
    except (ValueError, IndexError) as e:
        raise ConfigError(f"{folder.path}: run.json has no command that can be run again ({command!r}: {e}); type "
                          "it anew") from None
    return words


def from_here(word: str, before: str) -> str:
    """A word typed here, for a command that runs elsewhere: what ``--results`` names, and every file that there
    is, as a whole path."""
    name, equals, value = word.partition("=")
    if name == "--results" and equals:
        return f"--results={Path(value).absolute()}"
    if name.startswith("-") and equals and "/" not in name and Path(value).exists():
        return f"{name}={Path(value).absolute()}"
    if before == "--results" or (not word.startswith("-") and Path(word).exists()):
        return str(Path(word).absolute())
    return word


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What both environments know and is not the same, a line each."""
    lines = []
    for name, value in _flat(then).items():
        found = _flat(now)
        if name in found and found[name] != value:
            lines.append(f"{name} is {_text(found[name])}, was {_text(value)}")
    return lines


def _flat(known: Mapping[str, Any]) -> dict[str, Any]:
    found = {name: value for name, value in known.items()
             if name not in (*_FLEETING, "sysctl") and value is not None}
    # Those of ipv4 are of a network namespace, which an experiment makes for itself.
    sysctls = (known.get("sysctl") or {}).items()
    return found | {name: value for name, value in sysctls if not name.startswith("net.ipv4.")}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def _as_if_typed(words: Sequence[str], place: Path, repeats: Path) -> Iterator[None]:
    """The command line of this process, and where it is: what it starts in a sandbox, and what it records."""
    before, home = sys.argv, Path.cwd()
    sys.argv = [before[0], *words]
    os.environ[REPEATS] = str(repeats)
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(home)
        del os.environ[REPEATS]
        sys.argv = before
