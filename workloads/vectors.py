"""``smtnet vectors``: does our engine make, and understand, the wire test vectors of the kernel module?"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from smtstack.crypto.aead import DirectionKeys
from smtstack.crypto.keys import linux_keys
from smtstack.errors import ConfigError
from workloads.vector_cases import check
from workloads.vector_file import Problem, Vector

#: The branch that profile ``linux`` is; and those that exist and speak otherwise.
_BRANCH = "main"
_OTHER_BRANCHES = ("smt-ng", "module-bsd")

_EXAMPLES = """examples:
  smtnet vectors smt-vectors.json
  smtnet vectors smt-vectors.json --json

Every vector of branch main is made with profile linux, sealed by software and by the device, compared byte
for byte, then received in order and in reverse. Vectors of other branches are skipped by name.

exit code: 0 if none fails, else 1
"""


class Report(NamedTuple):
    """Outcome by vector name."""

    passed: list[str]
    failed: dict[str, list[Problem]]
    skipped: list[str]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {"passed": len(self.passed), "failed": len(self.failed), "skipped": len(self.skipped),
                "names": {"passed": self.passed, "failed": list(self.failed), "skipped": self.skipped},
                "failures": [{"name": name, "problem": p.text, "packet": p.packet, "offset": p.offset}
                             for name, problems in self.failed.items() for p in problems]}


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``vectors``."""
    parser = commands.add_parser(
        "vectors", help="check wire test vectors", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Check profile linux against wire test vectors of the SMT kernel module.")
    parser.add_argument("file", type=Path, help="vectors, JSON")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Check ``args.file``; 1 if a vector fails."""
    report = check_all(load(args.file))
    if args.json:
        print(json.dumps(report.as_json()))
    else:
        print(text(report))
    return 1 if report.failed else 0


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
    report = Report([], {}, [])
    for vector in vectors:
        if vector.branch in _OTHER_BRANCHES:
            report.skipped.append(vector.name)
            continue
        problems = (check(vector, by_name, roles) if vector.branch == _BRANCH
                    else [Problem(f"unknown branch {vector.branch}")])
        if problems:
            report.failed[vector.name] = problems
        else:
            report.passed.append(vector.name)
    return report


def _roles(keys: Any) -> dict[str, DirectionKeys]:
    """Keys of client and server, for the side of an exchange that a vector does not show."""
    try:
        return {role: linux_keys(bytes.fromhex(keys[role]["key"]), bytes.fromhex(keys[role]["salt"]))
                for role in ("client", "server")}
    except (KeyError, TypeError, ValueError) as e:
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
    lines.append(f"{len(report.passed)} passed, {len(report.failed)} failed, {len(report.skipped)} skipped")
    return "\n".join(lines)
