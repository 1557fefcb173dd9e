"""A toy experiment for batches, there for this process and for the processes it starts."""

from __future__ import annotations

import contextlib
import sys
import time
from pathlib import Path

from workloads import experiments
from workloads.batch.job import Ended
from workloads.commands import main as cli
from workloads.results import kinds

#: What stands at a path says how a run of it goes: an exit code for each, used up from the left.
TOY = '''
import time
from dataclasses import dataclass
from pathlib import Path

from smtstack import quantities
from smtstack.errors import ConfigError, Unsupported
from workloads.experiments.experiment import Experiment, Outcome
from workloads.options.common import QuotedResults
from workloads.options.declare import group, option
from workloads.results.published import Beside, Published


@dataclass(frozen=True)
class Options:
    quick: bool = option("--quick", action="store_true", help="short")
    size: int = option("--size", type=quantities.POSITIVE, default=1, help="of nothing")
    colour: str = option("--colour", choices=("red", "blue"), default="red", help="of nothing")
    seed: int = option("--seed", type=quantities.POSITIVE, default=1, help="of nothing")
    wait: float = option("--wait", type=quantities.SECONDS, default=0.0, help="before it is through")
    fate: Path | None = option("--fate", type=Path, help="how it goes")
    end: QuotedResults = group(QuotedResults)


def check(asked):
    if asked.size == 13:
        raise ConfigError("--size 13: an unlucky number")
    return asked


def measure(asked, running):
    fate = "fine"
    if asked.fate is not None:
        words = asked.fate.read_text().split()
        fate = words[0]
        asked.fate.write_text(" ".join(words[1:] or words))
    if fate == "lacks":
        raise Unsupported("there are no toys here")
    time.sleep(asked.wait)
    ok = fate != "noisy"
    return Outcome(
        result={"sum": asked.size + 1, "seed": asked.seed, "inner": {"double": 2 * asked.size}},
        text="a toy", table=False, failed="toys failed" if fate == "fails" else "",
        fidelity={"ok": ok, "reasons": [] if ok else ["9 frames lost"]},
        published=[Beside("size", "toy", "1 B", float(asked.size), 2.5), Beside("size", "toy", "2 B", None, 3.0)])


EXPERIMENT = Experiment(
    "toy", command="reproduce", help="a toy of a figure", options=Options, check=check, measure=measure,
    sandboxed=False, ends_with="results", place=1,
    published=Published("The Toy Paper, Fig. 0", emulated="a toy", not_comparable="toys"))
'''
#: In front of every program that finds it on its path.
_EVERYWHERE = '''
from workloads import experiments

experiments.__path__.append({folder!r})
'''


def put(folder: Path, monkeypatch, text: str = TOY) -> None:
    """Have ``smtnet reproduce toy``; programs started from here have it, too."""
    toys = folder / "toys"
    toys.mkdir()
    (toys / "toy.py").write_text(text)
    (folder / "sitecustomize.py").write_text(_EVERYWHERE.format(folder=str(toys)))
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(toys)])
    monkeypatch.setattr(kinds, "_KNOWN", dict(kinds._KNOWN))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("SMTNET_COMPILED", "no")


def run_in_this_process(words, out: Path, log: Path, timeout_s, environment=None, look=lambda: None) -> Ended:
    """In place of :func:`workloads.batch.job.run`, where it is not processes that are looked at."""
    began = time.monotonic()
    with out.open("w") as stdout, log.open("w") as stderr, contextlib.redirect_stdout(stdout), \
            contextlib.redirect_stderr(stderr):
        code = cli.main(list(words))
    return Ended(code, time.monotonic() - began)


def forget() -> None:
    """Afterwards."""
    sys.modules.pop("workloads.experiments.toy", None)
    vars(experiments).pop("toy", None)
