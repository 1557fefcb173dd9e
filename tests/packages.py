"""``python -m tests.packages FOLDER``: the source archive and the wheel of smtnet, as ``make dist`` has them.

Built from a copy of what belongs to the checkout, so that nothing else gets in: no module that was removed and
still lies in ``build``. By this Python's pip and setuptools, without a network. With the same
SOURCE_DATE_EPOCH the same files give the same bytes; with compiled modules, from the same compiler and mypy.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
#: What is installed, besides a module for "python -m smtnet".
PACKAGES = ("smtstack", "topo", "controllers", "workloads")


class Packages(NamedTuple):
    """Files that were built."""

    archive: Path
    wheel: Path


def files(checkout: Path = ROOT) -> list[str]:
    """What belongs to a checkout: what git has or would take; in an unpacked source archive, what it came with."""
    try:
        listed = _git(checkout, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = (checkout / "smtnet.egg-info" / "SOURCES.txt").read_text().splitlines()
    own = re.compile(r"smtnet\.egg-info/|setup\.cfg$|PKG-INFO$")
    return sorted(name for name in set(listed) if name and not own.match(name) and (checkout / name).is_file())


def _git(checkout: Path, *words: str) -> str:
    """Raises :class:`OSError` or :class:`subprocess.CalledProcessError` where this is not git's."""
    if not (checkout / ".git").exists():
        raise FileNotFoundError(f"{checkout} is no checkout of git")
    return subprocess.run(["git", *words], cwd=checkout, capture_output=True, text=True, check=True).stdout


def epoch(checkout: Path = ROOT) -> int:
    """SOURCE_DATE_EPOCH; else when the last commit was made; without git, when its changelog was written."""
    if given := os.environ.get("SOURCE_DATE_EPOCH"):
        return int(given)
    try:
        return int(_git(checkout, "log", "-1", "--format=%ct"))
    except (OSError, ValueError, subprocess.CalledProcessError):
        return int((checkout / "CHANGELOG.md").stat().st_mtime)


def copy(folder: Path, checkout: Path = ROOT) -> None:
    """What belongs to the checkout, into a new ``folder``."""
    for name in files(checkout):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(checkout / name, folder / name)


def build(folder: Path, checkout: Path = ROOT, compiled: bool = False) -> Packages:
    """Both, into ``folder``. ``compiled``: the wheel has the hot modules compiled as well, for this Python and
    processor. Raises :class:`subprocess.CalledProcessError`, with what the tools said."""
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(epoch(checkout)), "SMTNET_MYPYC": str(int(compiled))}
    folder = folder.resolve()
    with tempfile.TemporaryDirectory(prefix="smtnet-dist-") as temporary:
        place, archives, wheels = (Path(temporary, name) for name in ("checkout", "archives", "wheels"))
        copy(place, checkout)

        def run(*arguments: str | Path) -> None:
            # Modes of files get into the wheel.
            subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=place, env=environment, check=True,
                           umask=0o022, stdin=subprocess.DEVNULL, capture_output=True, text=True)

        run("setup.py", "-q", "sdist", "--dist-dir", archives)
        (archive,) = archives.iterdir()
        # Of the archive, as whoever gets that would build it.
        run("-m", "pip", "-qq", "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--use-pep517",
            "--wheel-dir", wheels, archive)
        (wheel,) = wheels.iterdir()
        folder.mkdir(parents=True, exist_ok=True)
        return Packages(*(Path(shutil.copy2(made, folder)) for made in (archive, wheel)))


if __name__ == "__main__":
    try:
        for path in build(Path(sys.argv[1]), compiled="--compiled" in sys.argv[2:]):
            print(path)
    except subprocess.CalledProcessError as e:
        sys.exit(f"{e.stdout}{e.stderr}dist: that failed: {' '.join(map(str, e.cmd))}")
