"""Makes an image, once, from the archives that the host's apt is configured with, and from PyPI."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from smtstack.errors import ConfigError, SmtError, Unsupported
from topo.commands import run
from topo.probes import ROOT, find
from workloads.results.progress import Progress
from workloads.vm import recipe as recipes
from workloads.vm.cache import RECORD, Cache, size_of
from workloads.vm.recipe import Recipe, Release

#: Programs that a build runs, and Debian's and Ubuntu's packages of them.
TOOLS = {"mmdebstrap": "mmdebstrap", "mke2fs": "e2fsprogs", "unshare": "util-linux", "chroot": "coreutils",
         "apt-get": "apt"}
#: Before a command: the kernel ends it when the process that started it is gone, however that ended.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
#: Its process namespace ends with it, with all that runs therein; its mounts are nobody else's.
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
_TAIL = 15
#: The authorities that this host believes, who may not be those that the guest's fresh packages know.
_CERTIFICATES = "/etc/ssl/certs/ca-certificates.crt"


@dataclass(frozen=True, slots=True)
class Image:
    """One that is whole."""

    folder: Path
    built_s: float
    """0.0: it was there already."""

    @property
    def octets(self) -> int:
        """On the disk."""
        return size_of(self.folder)


def recipe_of(release: Release) -> Recipe:
    """What an image of this release is made of, by this checkout. Raises :class:`ConfigError` outside of one."""
    constraints = ROOT / "constraints" / "build.txt"
    if not constraints.is_file() or not (ROOT / "tests").is_dir():
        raise ConfigError("smtnet vm needs a checkout of smtnet: tests are not part of what is installed")
    return Recipe(release, requirements(metadata.requires("smtnet") or []), constraints.read_text())


def requirements(declared: Sequence[str]) -> tuple[str, ...]:
    """What the guest's Python gets of what smtnet's metadata has: all but what checks the code (extra ``dev``)."""
    found = []
    for one in declared:
        what, _semicolon, condition = one.partition(";")
        if "extra ==" not in condition:
            found.append(one.strip())
        elif "dev" not in condition:
            found.append(what.strip())
    return tuple(sorted(set(found)))


def get(release: Release, cache: Cache, mirror: str | None = None) -> Image:
    """The image of this release, from the cache; if it is not there, it is made, which needs root and network."""
    wanted = recipe_of(release)
    folder = cache.find(wanted.name)
    if folder is not None:
        return Image(folder, 0.0)
    lacking = sorted({package for program, package in TOOLS.items() if find(program) is None})
    if lacking:
        raise Unsupported("an image cannot be built: sudo apt-get install --no-install-recommends "
                          f"{' '.join(lacking)}")
    if os.geteuid() != 0:
        raise Unsupported(f"an image of {release.name} has to be built, which needs root, this once: "
                          f"sudo .venv/bin/smtnet vm build --release {release.name}")
    lines = sources(release, mirror)
    begun = time.monotonic()
    with cache.building(wanted.name) as place:
        folder = cache.find(wanted.name)
        if folder is not None:  # by somebody else, while we waited
            return Image(folder, 0.0)
        _build(wanted, lines, place)
        seconds = time.monotonic() - begun
        (place / RECORD).write_text(json.dumps({"release": release.name, "built_s": round(seconds, 1),
                                                "requirements": wanted.requirements}) + "\n")
    return Image(cache.folder / wanted.name, seconds)


def sources(release: Release, mirror: str | None) -> list[str]:
    """Lines of a sources.list, by what the host's apt is configured with now."""
    system = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    said = run(["apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                "Created-By: Packages"])
    return recipes.archives(release, recipes.read_sources(said), system.get("ID", "").strip('"'),
                            system.get("VERSION_CODENAME", "").strip('"'), mirror)


def _build(recipe: Recipe, lines: Sequence[str], place: Path) -> None:
    house, hooks, root, temporary = place / "wheels", place / "hooks", place / "root", place / "tmp"
    house.mkdir()
    # What a program that is killed leaves of its own goes with the rest.
    temporary.mkdir()
    _write_hooks(recipe, hooks, house)
    environment = {**os.environ, "PIP_CONSTRAINT": str(ROOT / "constraints" / "build.txt"),
                   "PIP_BUILD_CONSTRAINT": str(ROOT / "constraints" / "build.txt"),
                   "PIP_DISABLE_PIP_VERSION_CHECK": "1", "TMPDIR": str(temporary)}
    pip = [sys.executable, "-m", "pip"]
    with Progress(f"image of {recipe.release.name}", 3) as progress:
        for what, command in (
                ("wheels of what PyPI has as source only", recipes.source_wheels(pip, recipe, str(house))),
                (f"packages of {recipe.release.suite}, and Python's (minutes, this once)",
                 recipes.bootstrap(recipe, lines, str(root), str(hooks))),
                ("the file system", recipes.file_system(str(root), str(place / "root.img")))):
            progress.step(what)
            _run(command, environment, place / "log", progress, what)
    for kind, name in (("vmlinuz", "vmlinuz"), ("initrd.img", "initrd.img")):
        found = sorted((root / "boot").glob(f"{kind}-*"))
        if len(found) != 1:
            raise SmtError(f"{recipe.release.name}: the image has {len(found)} of boot/{kind}-*, not one")
        shutil.copy(found[0], place / name)
        (place / name).chmod(0o644)
    for left in (house, hooks, root, temporary):
        shutil.rmtree(left)
    (place / "log").unlink()


def _write_hooks(recipe: Recipe, hooks: Path, house: Path) -> None:
    for name, text in {**{f"initramfs/{name}": text for name, text in recipes.INITRAMFS.items()},
                       "init": recipes.init_script(), "setup": recipes.setup_hook(shlex.quote(str(hooks))),
                       "constraints.txt": recipe.constraints,
                       "customize": recipes.customize_hook(
                           shlex.quote(str(hooks)), shlex.quote(str(house)),
                           shlex.quote(_pip_says("cert") or _CERTIFICATES), _pip_says("index-url"),
                           recipe.requirements)}.items():
        path = hooks / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)


def _pip_says(name: str) -> str:
    """How this host's pip is configured; empty: it is not."""
    done = subprocess.run([sys.executable, "-m", "pip", "config", "get", f"global.{name}"], capture_output=True,
                          text=True, check=False)
    return os.environ.get(f"PIP_{name.upper().replace('-', '_')}") or done.stdout.strip()


def _run(command: Sequence[str], environment: dict[str, str], log: Path, progress: Progress, what: str) -> None:
    """One step, apart; what it says is only told where it fails."""
    with log.open("wb") as out:
        process = subprocess.Popen([*DIES_WITH_US, *_APART, *command], stdin=subprocess.DEVNULL, stdout=out,
                                   stderr=out, env=environment)
    try:
        while True:
            try:
                process.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                progress.say(what)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    if process.returncode:
        said = log.read_text(errors="replace").splitlines()
        raise SmtError(f"{what}: {command[0]} ended with {process.returncode}:\n" + "\n".join(said[-_TAIL:]))
