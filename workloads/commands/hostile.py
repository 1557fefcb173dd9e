"""``smtnet hostile``: RPCs over memory-backed rings while their hosts attack them; what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

from smtstack.exit_codes import EXIT_FAILED
from smtstack.sim.ring_pair import MEASURED, RECOVERY_NS, Outcome, attack
from workloads.options.common import not_negative, positive

_EXAMPLES = """examples:
  smtnet hostile --mutations 10000
  smtnet hostile --mutations 2000 --seed 7 --json

exit code: 0 nothing was wrong, and full service came back; 1 else. docs/trust.md.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``hostile``."""
    parser = commands.add_parser(
        "hostile", help="attack a guarded stack from its host, in memory", epilog=_EXAMPLES,
        description="A client and a server behind certified rings in memory, whose hosts change it between any "
                    "two accesses: indices, descriptors, completions, bytes. Needs no root; repeats by its seed.")
    parser.add_argument("--mutations", type=positive, default=100_000, metavar="N",
                        help="changes of memory, of both hosts together (default: %(default)s)")
    parser.add_argument("--seed", type=not_negative, default=1, metavar="S", help="(default: %(default)s)")
    parser.add_argument("--unchecked", action="store_true",
                        help="the control: believe the host, and violations are found (exit code 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    begun = time.perf_counter()
    outcome = attack(args.mutations, args.seed, certified=not args.unchecked)
    if args.json:
        counted = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
        print(json.dumps({**counted, "held": outcome.held, "seed": args.seed,
                          "seconds": time.perf_counter() - begun}))
    else:
        _print_table(outcome, time.perf_counter() - begun)
    return 0 if outcome.held else EXIT_FAILED


def _print_table(outcome: Outcome, seconds: float) -> None:
    rows: dict[str, Any] = {
        "mutations": outcome.mutations.total(), "accesses watched": outcome.accesses,
        "entries and indices refused": outcome.refused,
        "records that did not authenticate": outcome.records_failed,
        "RPCs answered meanwhile": outcome.answered, "RPCs given up meanwhile": outcome.failed,
        "accesses that must not be": outcome.violations.total(),
        "exceptions that escaped": outcome.escaped.total(),
        "delivered, and nobody sent it": outcome.forged}
    for name, value in rows.items():
        print(f"{name:36}{value:>14,}")
    for name, count in (*outcome.violations.items(), *outcome.escaped.items()):
        print(f"  {name:34}{count:>14,}")
    after = f"{outcome.steps_after:,}" if outcome.steps_after else "none"
    print(f"looks at the rings for {MEASURED} RPCs: {outcome.steps_before:,} before, {after} "
          f"{RECOVERY_NS // 10**6} ms after")
    print(f"{'held' if outcome.held else 'NOT held'}, in {seconds:.1f} s")
