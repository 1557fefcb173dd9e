"""``python -m workloads``: the smtnet command where no script of it is on the path, as on emulated hosts."""

import sys

from workloads.commands.main import main

sys.exit(main())
