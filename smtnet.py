"""``python -m smtnet``: the smtnet command, where no script of it is on the path."""

import sys

from workloads.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
