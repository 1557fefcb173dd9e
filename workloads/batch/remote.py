"""A point of a sweep where it runs, on a worker of Dask's: a process of its own, whose files come back with it.

So worker and sweep need no file system in common, only the same smtnet.
"""

from __future__ import annotations

import io
import socket
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from smtstack import __version__
from topo.interpreter import ROOT
from workloads.batch import job
from workloads.results.environment import git_state

#: Bytes of stderr that come back: its end.
_LOG_BYTES = 20_000


class Stopped(Exception):
    """The sweep was interrupted."""


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a point."""

    ended: job.Ended
    out: str
    """What the command printed: one JSON object, if all went well."""
    why: str
    """What it said last on stderr."""
    log: str
    files: bytes
    """The point's result folder, as a zip file."""
    host: str
    version: str
    """The version of smtnet there."""


def run_point(words: Sequence[str], timeout_s: float, event: str) -> Done:
    """For Dask. ``event``: the name of the distributed event that ends all. Raises :class:`Stopped`."""
    return run_here(words, timeout_s, _stopper(event))


def run_here(words: Sequence[str], timeout_s: float, look: Callable[[], None]) -> Done:
    """One point, in a folder of its own that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="smtnet-point-") as place:
        results, out, log = (Path(place, name) for name in ("results", "out", "log"))
        ended = job.run([*words, "--json", "--results", str(results)], out, log, timeout_s, look=look)
        told = log.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
        return Done(ended, out.read_text(errors="replace"), job.reason(log), told, _packed(results),
                    socket.gethostname(), version())


def version() -> str:
    """The version of smtnet here: the number, and the commit if there is one."""
    state = git_state(ROOT)
    return f"{__version__} {state['commit'] or ''}".strip() + ("+" if state["changed"] else "")


def _stopper(name: str) -> Callable[[], None]:
    from distributed import Event

    event = Event(name)

    def look() -> None:
        # Without a scheduler nobody waits for the result any more.
        try:
            stop = event.is_set()
        except Exception:
            stop = True
        if stop:
            raise Stopped("the sweep was interrupted")

    return look


def _packed(results: Path) -> bytes:
    """The newest result folder; empty if there is none."""
    found = sorted(path for path in results.glob("*") if path.is_dir() and not path.is_symlink())
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(found[-1].rglob("*")) if found else ():
            if path.is_file():
                archive.write(path, path.relative_to(found[-1]))
    return data.getvalue()
