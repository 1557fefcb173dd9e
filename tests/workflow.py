"""``python -m tests.workflow JOB [NAME=VALUE ...]``: the commands of a job of the hosted workflow, run here.

One step after the other until one fails. NAME=VALUE are the matrix's. Left out, and named: steps that are actions
(fetching the code, a Python, keeping artifacts), and those of some machines of the matrix only.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / ".github" / "workflows" / "ci.yml"
#: As on hosted machines, a step ends at its first failure, also in a pipe; they have sudo, root may do without.
_PRELUDE = """set -eo pipefail
command -v sudo >/dev/null || sudo() { env "$@"; }
"""
_EXPRESSION = re.compile(r"\$\{\{ *([\w.]+) *\}\}")


class Step(NamedTuple):
    """One step of a job."""

    job: str
    name: str
    run: str
    """What its shell gets; empty: it is an action."""
    condition: str
    environment: Mapping[str, str]


def jobs() -> dict[str, Any]:
    """Jobs by name, as the file has them."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["jobs"]
    return found


def steps(job: str | None = None) -> Iterator[Step]:
    """All steps, or those of one job."""
    for name, body in jobs().items():
        if job in (None, name):
            for step in body["steps"]:
                environment = {**body.get("env", {}), **step.get("env", {})}
                uses = step.get("uses", "")
                yield Step(name, step.get("name", uses), step.get("run", ""), str(step.get("if", "")), environment)


def filled(text: str, matrix: Mapping[str, str]) -> str:
    """``text`` with what the matrix says. Raises :class:`ValueError` for an expression of anything else."""
    def value(found: re.Match[str]) -> str:
        kind, _, name = found[1].partition(".")
        if kind != "matrix" or name not in matrix:
            raise ValueError(f"{found[0]} is not known here; give NAME=VALUE")
        return matrix[name]
    return _EXPRESSION.sub(value, text)


def main(job: str, *words: str) -> int:
    """The exit code of the first step that failed."""
    matrix = dict(word.split("=", 1) for word in words)
    for step in steps(job):
        if not step.run or "matrix." in step.condition:
            print(f"workflow: left out: {step.name}", file=sys.stderr)
            continue
        print(f"workflow: {step.name}", file=sys.stderr)
        environment = [f"{name}={filled(value, matrix)}" for name, value in step.environment.items()]
        done = subprocess.run(["env", *environment, "bash", "-c", _PRELUDE + filled(step.run, matrix)], cwd=ROOT,
                              check=False)
        if done.returncode:
            print(f"workflow: exit code {done.returncode}: {step.name}", file=sys.stderr)
            return done.returncode
    return 0


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in jobs():
        sys.exit(f"workflow: which job: {', '.join(jobs())}?")
    sys.exit(main(*sys.argv[1:]))
