"""``smtnet run``: experiments on emulated topologies."""

from __future__ import annotations

import argparse
from typing import NoReturn

from workloads import experiments

_EXAMPLES = """examples:
  smtnet run echo --topo star,4 --transport smt --size 1024 --count 10000
  smtnet run --again results/latest --trials 5 --results other
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser], only: str | None = None) -> None:
    """Add ``run`` and its experiments, or of those the one asked for."""
    parser = commands.add_parser("run", help="experiments on emulated topologies",
                                 description="Experiments on emulated topologies. Need root.", epilog=_EXAMPLES,
                                 formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", nargs=argparse.REMAINDER, metavar="DIR",
                        help="instead of WHAT: the run of this result folder once more, with the same options, "
                             "and those that follow, which win")
    actions = parser.add_subparsers(dest="action", metavar="WHAT")
    for experiment in experiments.asked("run", only):
        experiment.add(actions)

    def nothing(found: argparse.Namespace) -> NoReturn:
        parser.error("the following arguments are required: WHAT" if found.again is None
                     else "argument --again: expected the folder of a run")

    # Where there is one, main.py reads the command line that it names.
    parser.set_defaults(run=nothing)
