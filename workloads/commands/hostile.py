"""``smtnet hostile``: work over memory-backed rings while their hosts attack them; what came of it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from typing import Any

from smtstack.exit_codes import EXIT_FAILED
from smtstack.sim.outcome import MEASURED, Outcome
from smtstack.sim.ring_pair import RECOVERY_NS, attack
from smtstack.sim.uring_attack import RECOVERY_NS as URING_RECOVERY_NS
from smtstack.sim.uring_attack import attack_uring
from workloads.options.common import not_negative, positive

_EXAMPLES = """examples:
  smtnet hostile --mutations 10000
  smtnet hostile --mutations 2000 --seed 7 --json
  smtnet hostile --mutations 2000 --rings io_uring

exit code: 0 nothing was wrong, and full service came back; 1 else. docs/trust.md.
"""


_XSK, _URING = "af_xdp", "io_uring"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``hostile``."""
    parser = commands.add_parser(
        "hostile", help="attack a guarded stack from its host, in memory", epilog=_EXAMPLES,
        description="A client and a server behind certified rings in memory, whose hosts change it between any "
                    "two accesses: indices, descriptors, completions, bytes; or one that reads, writes, sends and "
                    "receives by an io_uring, whose host answers what it likes. Needs no root; repeats by its "
                    "seed.")
    parser.add_argument("--rings", choices=(_XSK, _URING), default=_XSK,
                        help="which rings are attacked (default: %(default)s)")
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
    attacked = attack if args.rings == _XSK else attack_uring
    outcome = attacked(args.mutations, args.seed, certified=not args.unchecked)
    if args.json:
        counted = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
        print(json.dumps({"rings": args.rings, **counted, "held": outcome.held, "seed": args.seed,
                          "seconds": time.perf_counter() - begun}))
    else:
        _print_table(outcome, time.perf_counter() - begun, args.rings)
    return 0 if outcome.held else EXIT_FAILED


def _print_table(outcome: Outcome, seconds: float, rings: str) -> None:
    what = "RPCs" if rings == _XSK else "operations"
    rows: dict[str, Any] = {
        "mutations": outcome.mutations.total(), "accesses watched": outcome.accesses,
        "entries and indices refused": outcome.refused,
        "records that did not authenticate": outcome.records_failed,
        f"{what} answered meanwhile": outcome.answered, f"{what} failed meanwhile": outcome.failed,
        "accesses that must not be": outcome.violations.total(),
        "exceptions that escaped": outcome.escaped.total(),
        "delivered, and nobody sent it": outcome.forged}
    for name, value in rows.items():
        print(f"{name:36}{value:>14,}")
    for name, count in (*outcome.violations.items(), *outcome.escaped.items()):
        print(f"  {name:34}{count:>14,}")
    after = f"{outcome.steps_after:,}" if outcome.steps_after else "none"
    recovery_ns = RECOVERY_NS if rings == _XSK else URING_RECOVERY_NS
    print(f"looks at the rings for {MEASURED} {what}: {outcome.steps_before:,} before, {after} "
          f"{recovery_ns // 10**6} ms after")
    print(f"{'held' if outcome.held else 'NOT held'}, in {seconds:.1f} s")
