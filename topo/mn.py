"""smtnet for plain Mininet::

    sudo mn --custom topo/mn.py --topo fanout,4 --host smt --link smartnic --switch auto --test smtecho

``mn`` executes this file and takes the dictionaries; the rest is in :mod:`topo.mn_plugin`. Any other name
here would replace one of mn's own: that is why they have underscores.
"""

import inspect as _inspect
import sys as _sys
from pathlib import Path as _Path

# Executed, not imported: there is no __file__.
_ROOT = _Path(_inspect.getfile(lambda: None)).resolve().parents[1]
if str(_ROOT) not in _sys.path:
    _sys.path.insert(0, str(_ROOT))

try:
    from topo.mn_plugin import (  # noqa: F401
        controllers,
        hosts,
        install,
        links,
        switches,
        tests,
        topos,
    )
except ImportError as _e:
    # mn would catch it, and then end the Mininet runs of everybody on this machine.
    _sys.exit(f"smtnet: {_e} (or take {_ROOT}/.venv/bin/mn)")

install()
