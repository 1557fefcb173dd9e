"""Which Python runs the programs in hosts, where ``mn`` itself may be run by the system's.

Debian's mn has ``/usr/bin/python3``, which lacks what the stack needs; the checkout's ``.venv`` has it.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What ``smtnet`` needs beyond the standard library.
_NEEDED = ("cryptography", "psutil")


def _complete() -> bool:
    return all(importlib.util.find_spec(name) for name in _NEEDED)


def borrow_packages() -> None:
    """Let this interpreter, if it lacks something, import what ``.venv`` has; its own packages go first."""
    if _complete():
        return
    # Compiled packages fit one minor version.
    packages = ROOT / f".venv/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    if packages.is_dir() and str(packages) not in sys.path:
        sys.path.append(str(packages))


@cache
def host_python() -> str:
    """The interpreter for ``-m workloads.cli`` in a host."""
    venv = ROOT / ".venv/bin/python"
    # A venv's own interpreter is the one its user chose.
    if not venv.exists() or sys.prefix != sys.base_prefix:
        return sys.executable
    return str(venv)


def host_environment() -> dict[str, str]:
    """Ours, with the checkout importable. What PYTHONPATH names (the compiled packages, perhaps) goes first."""
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), str(ROOT)) if p)
    # "python -m" would look into the current folder first: a checkout's sources would hide the compiled ones.
    return {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
