"""``smtnet reproduce all``: one step after another, each a process of its own; what is finished is not done again.

The state is a file of the result folder. Ctrl-C ends the step that runs, in order; the same command goes on there.
A step that failed is tried once more when all others are through.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workloads.batch import job, page
from workloads.batch.host_file import HostFile
from workloads.batch.state import Member, State, Status, exit_code, now
from workloads.batch.steps import Step
from workloads.results.environment import environment
from workloads.results.folder import ResultFolder

#: Seconds that a step may take.
TIMEOUT_S, QUICK_TIMEOUT_S = 3600.0, 600.0
TRIES = 2
STEPS = "steps"
#: Variables whose values are printed: they change what is measured.
_TELLING = ("SMTNET_", "PYTHON", "OPENSSL")


@dataclass
class Reproduction:
    """Steps, the state of all of them, and what this machine's file says."""

    state: State
    steps: Sequence[Step]
    """All that there are."""
    host: HostFile
    quick: bool
    environment: dict[str, Any] = field(default_factory=environment)

    def words(self, step: Step) -> list[str]:
        """A step's command line after ``smtnet``, without where results go."""
        return [*step.words, *self.host.options.get(step.name, ())]

    def finished(self, step: Step) -> bool:
        """Whether there is a result of what would be run now."""
        member = self.state.members.get(step.name)
        return member is not None and member.is_finished(self.words(step), self.host.environment)

    def run(self, chosen: Sequence[Step], again: Sequence[str] = ()) -> None:
        """Every chosen step that is not finished, and those of ``again`` in any case. Raises KeyboardInterrupt
        when the state is saved."""
        self._begin(again)
        waiting = [step for step in chosen if not self.finished(step) and step.name not in self.host.skip]
        for step in waiting:
            self.state.members[step.name] = Member(words=self.words(step), environment=dict(self.host.environment))
        self.state.save()
        for turn in range(TRIES):
            for step in waiting:
                if turn:
                    _say(f"{step.name} failed; once more")
                self._try(step, f"{chosen.index(step) + 1}/{len(chosen)}")
            waiting = [step for step in waiting if self.state.members[step.name].status is Status.FAILED]

    def _begin(self, again: Sequence[str]) -> None:
        for name in again:
            self.state.members.pop(name, None)
        self.state.began = self.state.began or now()
        for name in (*map(str, self.environment), ""):
            if name and not isinstance(self.environment[name], dict):
                _say(f"{name}: {self.environment[name]}")
        for name in sorted(os.environ):
            if name.startswith(_TELLING):
                _say(f"variable {name}={os.environ[name]}")
        if self.host.text:
            _say(f"settings of this machine: {self.host.path}")
            shutil.copyfile(self.host.path, self.state.folder.path / self.host.path.name)
        else:
            _say(f"this machine has no settings of its own ({self.host.path} would be read)")
        _say(f"results: {self.state.folder.path}")

    def _try(self, step: Step, place: str) -> None:
        """One step once; the state is saved before and after, and the page made anew."""
        member = self.state.members[step.name]
        base = self.state.folder.path / STEPS / step.name
        base.mkdir(parents=True, exist_ok=True)
        member.status, member.began, member.reasons = Status.RUNNING, now(), []
        member.tries += 1
        self.state.save()
        words = [*member.words, "--results", str(base)]
        variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in member.environment.items())
        _say(f"[{place}] {step.name}: {step.title}")
        _say(f"  {variables}{' ' * bool(variables)}{shlex.join(['smtnet', *words])}")
        before = set(base.iterdir())
        log = base / f"try{member.tries}.log"
        tail = job.Tail(log)

        def look() -> None:
            for line in tail.lines():
                _say(f"  {line}")

        try:
            out = log.with_suffix(".out")
            ended = job.run(words, out, log, self._timeout_s(), member.environment, look)
        except BaseException:
            member.status = Status.INTERRUPTED
            self._save()
            raise
        look()
        self._judge(member, ended, log, sorted(set(base.iterdir()) - before))
        self._save()
        why = f": {'; '.join(member.reasons)}" if member.reasons and not member.status.finished else ""
        _say(f"[{place}] {step.name}: {member.status.value}, {member.seconds:.0f} s{why}")

    def _judge(self, member: Member, ended: job.Ended, log: Path, made: Sequence[Path]) -> None:
        found = [path for path in made if (path / "run.json").is_file() and not path.is_symlink()]
        verdict = None
        if found:
            member.folder = str(found[-1].relative_to(self.state.folder.path))
            verdict = ResultFolder.open(found[-1]).read_run().fidelity
        why = f"not through after {self._timeout_s():.0f} s" if ended.timed_out else job.reason(log)
        member.end(ended.code, ended.seconds, verdict, why)

    def _timeout_s(self) -> float:
        return self.host.timeout_s or (QUICK_TIMEOUT_S if self.quick else TIMEOUT_S)

    def _save(self) -> None:
        self.state.save()
        page.make(self.state, self.steps, self.host, self.environment)

    def exit_code(self, chosen: Sequence[Step]) -> int:
        """The exit code of the steps that were chosen, as :func:`~workloads.batch.state.exit_code`."""
        return exit_code(self.state.members[step.name] for step in chosen if step.name in self.state.members)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
