"""``smtnet doctor``: is everything there, and what is done without? Changes nothing."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from smtstack.exit_codes import EXIT_ENVIRONMENT, EXIT_OK
from topo.doctor import Check, checks
from topo.probes import gather

_COLORS = {"ok": "\033[32m", "warn": "\033[33m", "fail": "\033[31m"}
_PLAIN = "\033[0m"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``smtnet doctor``."""
    parser = commands.add_parser(
        "doctor", help="is everything there that a run needs?",
        description="Try what runs need, in namespaces of its own, and name the fix for what is missing. Changes "
                    "nothing on the machine. 'warn' means: done another way, or left out by name.",
        epilog="example: sudo smtnet doctor --json\n\nexit code: 0 all that is needed is there, 3 not so")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    found = checks(gather())
    missing = [check for check in found if check.status == "fail"]
    if args.json:
        print(json.dumps({"ok": not missing, "checks": [asdict(check) for check in found]}))
    else:
        print(text(found, sys.stdout.isatty()), end="")
    return EXIT_ENVIRONMENT if missing else EXIT_OK


def text(found: Sequence[Check], colors: bool = False) -> str:
    """A line for each check, its fix below it, and the verdict."""
    width = max(len(check.name) for check in found)
    lines = []
    for check in found:
        status = f"{check.status:<4}"
        if colors:
            status = f"{_COLORS[check.status]}{status}{_PLAIN}"
        lines.append(f"{status}  {check.name:<{width}}  {check.detail}")
        if check.fix:
            lines.append(f"{'':6}{'':{width}}  fix: {check.fix}")
    counts = {status: sum(check.status == status for check in found) for status in _COLORS}
    verdict = "something that is needed is missing" if counts["fail"] else "all that is needed is there"
    lines.append(f"{verdict} (ok: {counts['ok']}, warn: {counts['warn']}, fail: {counts['fail']})")
    return "\n".join(lines) + "\n"
