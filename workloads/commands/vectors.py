"""``smtnet vectors``: does our engine make, and understand, the wire test vectors of the kernel module?"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from smtstack.crypto.aead import DirectionKeys
from smtstack.crypto.keys import linux_keys
from smtstack.errors import ConfigError
from workloads.vectors.cases import check
from workloads.vectors.file import Problem, Vector
from workloads.vectors.state import NotApplicableError

#: The branch that profile ``linux`` is; and those that exist and speak otherwise.
_BRANCH = "main"
_OTHER_BRANCHES = ("smt-ng", "module-bsd")

_EXAMPLES = """examples:
  smtnet vectors smt-vectors.json
  smtnet vectors smt-vectors.json --json

Every vector of branch main is made with profile linux, sealed by software and by the device, compared byte
for byte, then received in order and in reverse. Vectors of other branches are skipped by name.

A vector whose inputs ask for what smtnet cannot bring about is not applicable, and the field is named.

exit code: 0 if at least one passes and none fails, else 1
"""


class Report(NamedTuple):
    """Outcome by vector name."""

    passed: list[str]
    failed: dict[str, list[Problem]]
    skipped: list[str]
    not_applicable: dict[str, str]
    """Vectors that ask for something we cannot bring about, and the field that does."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"passed": len(self.passed), "failed": len(self.failed), "skipped": len(self.skipped),
                "not_applicable": len(self.not_applicable),
                "names": {"passed": self.passed, "failed": list(self.failed), "skipped": self.skipped,
                          "not_applicable": list(self.not_applicable)},
                "reasons": self.not_applicable,
                "failures": [{"name": name, "problem": p.text, "packet": p.packet, "offset": p.offset}
                             for name, problems in self.failed.items() for p in problems]}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``vectors``."""
    parser = commands.add_parser(
        "vectors", help="check wire test vectors", epilog=_EXAMPLES,
        description="Check profile linux against wire test vectors of the SMT kernel module.")
    parser.add_argument("file", type=Path, help="vectors, JSON")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check ``args.file``; 1 if a vector fails."""
    report = check_all(load(args.file))
    print(json.dumps(report.as_json()) if args.json else text(report))
    if not report.passed and not report.failed:
        print("smtnet: not one vector could be checked", file=sys.stderr)
    return 1 if report.failed or not report.passed else 0


def load(path: Path) -> dict[str, Any]:
    """Contents of a vectors file; raises :class:`ConfigError` if it is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"{path} is not JSON: {e}") from None
    if not isinstance(content, dict) or not isinstance(content.get("vectors"), list) or not content["vectors"]:
        raise ConfigError(f"{path} holds no list \"vectors\"")
    return content


def check_all(content: dict[str, Any]) -> Report:
    """Check every vector; raises :class:`ConfigError` for malformed ones."""
    roles = _roles(content.get("keys"))
    vectors = [Vector(entry, f"number {n}") for n, entry in enumerate(content["vectors"])]
    by_name = {v.name: v for v in vectors}
    if len(by_name) != len(vectors):
        raise ConfigError("two vectors have one name")
    report = Report([], {}, [], {})
    for vector in vectors:
        if vector.branch in _OTHER_BRANCHES:
            report.skipped.append(vector.name)
            continue
        try:
            problems = (check(vector, by_name, roles) if vector.branch == _BRANCH
                        else [Problem(f"unknown branch {vector.branch}")])
        except NotApplicableError as e:
            report.not_applicable[vector.name] = str(e)
            continue
        if problems:
            report.failed[vector.name] = problems
        else:
            report.passed.append(vector.name)
    return report


def _roles(keys: Any) -> dict[str, DirectionKeys]:
    """Keys of client and server, for the side of an exchange that a vector does not show."""
    try:
        return {role: linux_keys(bytes.fromhex(keys[role]["key"]), bytes.fromhex(keys[role]["salt"]))
                for role in {"client", "server", *(r for r, entry in keys.items() if isinstance(entry, dict))}}
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        raise ConfigError(f"the vectors' keys are missing or malformed: {type(e).__name__}: {e}") from None


def text(report: Report) -> str:
    """The report for people."""
    lines = [f"pass  {name}" for name in report.passed]
    lines += [f"skip  {name} (another branch of the module)" for name in report.skipped]
    for name, problems in report.failed.items():
        for p in problems:
            where = "" if p.packet is None else f", packet {p.packet}"
            where += "" if p.offset is None else f", first at byte {p.offset} of the IP packet"
            lines.append(f"FAIL  {name}: {p.text}{where}")
    lines += [f"n/a   {name}: not applicable: {why}" for name, why in report.not_applicable.items()]
    lines.append(f"{len(report.passed)} passed, {len(report.failed)} failed, {len(report.skipped)} skipped, "
                 f"{len(report.not_applicable)} not applicable")
    return "\n".join(lines)
