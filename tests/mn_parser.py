"""Run as a program: a command line of ``mn``, up to where it would make a network. Exits with PARSED then.

    python -m tests.mn_parser .venv/bin/mn --topo star,4
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

#: What no ``mn`` exits with.
PARSED = 77


def _main() -> None:
    program, *words = sys.argv[1:]
    # mn's own names are those of the main module: that is where custom files look for them.
    names = vars(sys.modules["__main__"])
    os.geteuid = lambda: 0
    names["__name__"] = "mn"
    exec(compile(Path(program).read_text(), program, "exec"), names)  # noqa: S102 (it is Mininet's)
    sys.argv = ["mn", *words]

    def network(*_args: object, **_params: object) -> None:
        for test in runner.options.test:
            if test.partition(",")[0] not in names["TESTS"]:
                sys.exit(f"--test {test}: there is no such test")
        sys.exit(PARSED)

    names["Mininet"] = names["MininetWithControlNet"] = network
    runner = object.__new__(names["MininetRunner"])
    runner.options = runner.args = runner.validate = None
    runner.parseArgs()
    runner.begin()


if __name__ == "__main__":
    _main()
