"""Which Python runs the programs in hosts, where ``mn`` itself may be run by the system's.

Debian's mn has ``/usr/bin/python3``, which lacks what the stack needs; the checkout's ``.venv`` has it.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import warnings
from functools import cache
from pathlib import Path

from smtstack import compiled

ROOT = Path(__file__).resolve().parents[1]
#: What ``smtnet`` needs beyond the standard library.
_NEEDED = ("cryptography", "psutil")


def _missing() -> list[str]:
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def borrow_packages() -> None:
    """Let this interpreter, if it lacks something, import what ``.venv`` has; its own packages go first.

    Importing :mod:`topo` does it. Raises :class:`ImportError` that says what would help.
    """
    if not _missing():
        return
    # Compiled packages fit one minor version.
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    packages = ROOT / f".venv/lib/python{version}/site-packages"
    if packages.is_dir() and str(packages) not in sys.path:
        sys.path.append(str(packages))
    if missing := _missing():
        raise ImportError(f"{sys.executable} (Python {version}) has no {', '.join(missing)}, nor has {ROOT}/.venv "
                          f"for that version: run this with {ROOT}/.venv/bin/python, or in {ROOT} "
                          f"'make venv PYTHON={sys.executable}' before")


def import_distutils() -> None:
    """Import the ``distutils`` of the standard library, up to Python 3.11, before Mininet does.

    Mininet compares one version by it. Where setuptools is installed, it makes the name mean a copy of its own,
    and all of setuptools and pkg_resources comes along: more than half of the time that Mininet takes to import.
    """
    if sys.version_info >= (3, 12):
        return
    if (hack := sys.modules.get("_distutils_hack")) is not None:
        hack.remove_shim()
    # Deprecated, as its last Pythons say. Debian has most of it in a package of its own, but not this.
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")
        importlib.import_module("distutils.version")


@cache
def host_python() -> str:
    """The interpreter for ``-m workloads`` in a host."""
    venv = ROOT / ".venv/bin/python"
    # A venv's own interpreter is the one its user chose.
    if not venv.exists() or sys.prefix != sys.base_prefix:
        return sys.executable
    return str(venv)


def host_environment() -> dict[str, str]:
    """Ours, with the checkout importable; what PYTHONPATH names goes first.

    Whoever is compiled is so with all its programs: an edit meanwhile ends them by name, rather than that some of
    a run's processes have other code than others.
    """
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH"), str(ROOT)) if p)
    build = {compiled.VARIABLE: compiled.YES} if compiled.is_compiled() and host_python() == sys.executable else {}
    # "python -m" would look into the current folder first, which may be somebody else's.
    return {**os.environ, **build, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
