"""Which build of the hot modules this process runs: that of mypyc, or their sources, interpreted.

``make compiled`` builds them beside the checkout, in ``.venv/compiled``, with a record of all sources as they
were. Importing :mod:`smtstack` looks at that record, whoever imports it (a command, a program on a host, a test, a
script): where the build is of this Python and of these very sources it is used, else the sources are. Never some
of each: compiled classes know each other's layout. ``SMTNET_COMPILED=yes`` or ``no`` decides instead; ``yes``
where there is no such build is an error. docs/compiled.md is for people.

Also run by setup.py, from its file: imports nothing of ours.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from glob import glob
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    # Not there at run time: the compiler reads it, nobody calls it.
    from mypy_extensions import mypyc_attr as mypyc_attr  # noqa: PLC0414
else:
    def mypyc_attr(**_settings):
        """Marks a class for the compiler: ``allow_interpreted_subclasses=True``, where tests and others derive."""
        return lambda cls: cls

#: What is compiled: what a packet passes through. The rest waits for people or for the kernel.
#: Of sessions and captures, what derives from a compiled class: it must be compiled, too.
HOT = ("wire/*.py", "crypto/*.py", "transport/*.py", "nic/*.py", "rings/*.py", "session/plane.py",
       "session/manager.py", "capture/keylog.py", "sim/*.py", "stack.py", "waiting.py", "loop.py",
       "io/frame_socket.py", "io/packet_socket.py", "io/ring.py", "io/send_batch.py")
#: Decides, where it is set to one of these.
VARIABLE, YES, NO = "SMTNET_COMPILED", "yes", "no"

_PACKAGE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(_PACKAGE)
#: Else this is an installed copy, where nothing can be made.
_IS_CHECKOUT = os.path.exists(os.path.join(_ROOT, "setup.py"))
#: What mends every reason but the lack of a compiler, which it names.
FIX = "make compiled" if _IS_CHECKOUT else "make dist COMPILE=yes, in a checkout, and install that wheel"
#: In the folder that a build fills: paths of all sources, as they were; of the compiled modules.
_RECORD = os.path.join("smtstack", "build.json")
#: Where a build may be: beside a checkout; in an installed copy, among its sources.
_BUILDS = (os.path.join(_ROOT, ".venv", "compiled"), _ROOT)


class Build(NamedTuple):
    """What was decided."""

    why: str
    """Why the sources are interpreted, and what would help; empty: compiled."""
    modules: Mapping[str, str]
    """Files of the compiled modules, by their names."""
    error: str = ""
    """Why the hot modules may not be imported at all."""


def hot_sources() -> list[str]:
    """Paths of what is to be compiled, relative to the checkout."""
    paths = (path for pattern in HOT for path in sorted(glob(os.path.join(_PACKAGE, *pattern.split("/")))))
    return [os.path.relpath(path, _ROOT) for path in paths if os.path.basename(path) != "__init__.py"]


def state_of_sources() -> dict[str, tuple[int, int, str]]:
    """Size, time of change and digest of every source of the package: of each of them the compiler may have taken
    a constant or a type."""
    found = {}
    for path in sorted(glob(os.path.join(_PACKAGE, "**", "*.py"), recursive=True)):
        status = os.stat(path)
        found[os.path.relpath(path, _ROOT)] = (status.st_size, status.st_mtime_ns, _digest(path))
    return found


def write_record(folder: str, sources: Mapping[str, Sequence[object]]) -> None:
    """Say of the build in ``folder`` what it was made of. Last of all: a build without it is none."""
    suffix = EXTENSION_SUFFIXES[0]
    # Beside our modules there is the library of mypyc's that holds the code of all of them.
    files = (os.path.relpath(path, folder)
             for path in glob(os.path.join(folder, "**", f"*{suffix}"), recursive=True))
    modules = {file.removesuffix(suffix).replace(os.sep, "."): file for file in files}
    path = os.path.join(folder, _RECORD)
    with open(f"{path}.new", "w") as file:
        json.dump({"python": suffix, "sources": sources, "modules": modules}, file)
    os.replace(f"{path}.new", path)


def time_of_record(folder: str) -> float:
    """When the build in ``folder`` was finished, in seconds; 0: there is none."""
    path = os.path.join(folder, _RECORD)
    return os.stat(path).st_mtime if os.path.exists(path) else 0.0


def remove_record(folder: str) -> None:
    """Before anything in ``folder`` changes."""
    if os.path.exists(path := os.path.join(folder, _RECORD)):
        os.remove(path)


def find(wanted: str) -> Build:
    """What to use, where :data:`VARIABLE` has the value ``wanted``."""
    if wanted == NO:
        return Build(f"{VARIABLE}={NO}", {})
    if wanted not in ("", YES):
        why = f"{VARIABLE}={wanted}: {YES} or {NO}, or not set"
        return Build(why, {}, why)
    build = _look()
    if build.why and wanted == YES:
        return build._replace(error=f"{VARIABLE}={YES}, but {build.why}")
    return build


def _look() -> Build:
    for folder in _BUILDS:
        try:
            with open(os.path.join(folder, _RECORD)) as file:
                record = json.load(file)
        except (OSError, ValueError):
            continue
        if record["python"] not in EXTENSION_SUFFIXES:
            return Build(f"the build is another Python's; run: {FIX}", {})
        if not all(_is_as(path, *state) for path, state in record["sources"].items()):
            return Build(f"sources changed since the build; run: {FIX}", {})
        return Build("", {name: os.path.join(folder, path) for name, path in record["modules"].items()})
    if not _IS_CHECKOUT:
        return Build(f"a wheel without compiled modules; other: {FIX}", {})
    if any(os.access(os.path.join(folder, "cc"), os.X_OK) for folder in os.get_exec_path()):
        return Build(f"not built; run: {FIX}", {})
    return Build(f"no C compiler; run: make system, then: {FIX}", {})


def _is_as(path: str, size: int, changed_ns: int, digest: str) -> bool:
    """Whether this source still is what it was. Read only if its times are new, as in a fresh copy."""
    path = os.path.join(_ROOT, path)
    try:
        status = os.stat(path)
        return status.st_size == size and (status.st_mtime_ns == changed_ns or _digest(path) == digest)
    except OSError:
        return False


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.blake2b(file.read(), digest_size=16).hexdigest()


class _Finder:
    """Finds the modules of this package, and the compiler's library, where :class:`Build` says."""

    def __init__(self, build: Build) -> None:
        self._build = build

    def find_spec(self, name: str, path: Sequence[str] | None = None,
                  _target: ModuleType | None = None) -> ModuleSpec | None:
        if (file := self._build.modules.get(name)) is not None:
            return spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))
        if not name.startswith("smtstack.") or path is None:
            return None
        # The source, even if there is something compiled beside it: that would be of another build.
        folder = next(iter(path))
        file = os.path.join(folder, name.rpartition(".")[2] + ".py")
        if not os.path.exists(file):
            return None
        if self._build.error and _is_hot(file):
            raise ImportError(self._build.error)
        return spec_from_file_location(name, file, loader=SourceFileLoader(name, file))


def _is_hot(file: str) -> bool:
    return os.path.relpath(file, _ROOT) in hot_sources()


def use(build: Build) -> None:
    """From now on modules of this package are found as ``build`` says."""
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Finder)]
    sys.meta_path.insert(0, _Finder(build))


#: What this process runs.
BUILD = find(os.environ.get(VARIABLE, ""))


def is_compiled() -> bool:
    """Whether the protocol code is the one that mypyc compiled."""
    return not BUILD.why


def description() -> str:
    """``compiled``, or ``interpreted: ...`` with the reason."""
    return f"interpreted: {BUILD.why}" if BUILD.why else "compiled"
