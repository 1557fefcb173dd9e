"""Packaging. Everything about *how* the code is checked is in pyproject.toml."""

import gzip
import os
import runpy
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist

#: Says what is compiled, and keeps the record of it.
COMPILED = runpy.run_path(str(Path(__file__).with_name("smtstack") / "compiled.py"))
#: Where mypyc's C code and its objects stay from one build to the next.
C_CODE = Path(".venv/compiled-c")


def compiled_modules() -> list[Extension]:
    """The hot modules as C extensions by mypyc, from the same source; none unless SMTNET_MYPYC=1.

    A C file for each module, so that a change makes few of them new; optimised as far as it gained something.
    """
    if os.environ.get("SMTNET_MYPYC") != "1":
        return []
    from mypyc.build import mypycify

    modules: list[Extension] = mypycify(COMPILED["hot_sources"](), opt_level="1", debug_level="0", multi_file=True,
                                        target_dir=str(C_CODE))
    return modules


class BuildCompiled(build_ext):
    """Compiles on all processors, only what is new; leaves the record by which a stale build is known."""

    def build_extensions(self) -> None:
        if not self.extensions:
            return
        # Other settings make all anew.
        settings = Path(__file__).stat().st_mtime
        self.force = COMPILED["time_of_record"](self.build_lib) < settings
        COMPILED["remove_record"](self.build_lib)
        shared = max([settings, *(header.stat().st_mtime for header in C_CODE.rglob("*.h"))])
        compile_one: Callable[..., None] = self.compiler._compile

        def compile_new(obj: str, src: str, *rest: Any) -> None:
            made = Path(obj).stat().st_mtime if Path(obj).exists() else 0.0
            # mypyc leaves a file alone that would come out the same.
            if made <= max(Path(src).stat().st_mtime, shared):
                compile_one(obj, src, *rest)

        def compile_all(sources: Sequence[str], output_dir: str | None = None, macros: Any = None,
                        include_dirs: Any = None, debug: Any = 0, extra_preargs: Any = None,
                        extra_postargs: Any = None, depends: Any = None) -> list[str]:
            """As the compiler's own method, but side by side."""
            compiler = self.compiler
            macros, objects, extra_postargs, options, build = compiler._setup_compile(
                output_dir, macros, include_dirs, sources, depends, extra_postargs)
            arguments = compiler._get_cc_args(options, debug, extra_preargs)
            with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
                for done in [pool.submit(compile_new, obj, *build[obj], arguments, extra_postargs, options)
                             for obj in objects]:
                    done.result()
            return list(objects)

        self.compiler.compile = compile_all
        self.parallel = len(os.sched_getaffinity(0))
        super().build_extensions()
        COMPILED["write_record"](self.build_lib, SOURCES)


class Sdist(sdist):
    """With SOURCE_DATE_EPOCH, in seconds, the same bytes from the same files, as the wheel is by itself."""

    def make_archive(self, base_name: str, format: str, root_dir: str | None = None, base_dir: str | None = None,
                     owner: str | None = None, group: str | None = None) -> str:
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar" or base_dir is None:
            made: str = super().make_archive(base_name, format, root_dir, base_dir, owner, group)
            return made
        path = f"{base_name}.tar.gz"
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with (open(path, "wb") as file, gzip.GzipFile("", "wb", 9, file, int(epoch)) as packed,
              tarfile.open(mode="w", fileobj=packed, format=tarfile.PAX_FORMAT) as archive):
            for member in (Path(base_dir), *sorted(Path(base_dir).rglob("*"))):
                info = archive.gettarinfo(member)
                info.mtime, info.uid, info.gid, info.uname, info.gname = int(epoch), 0, 0, "", ""
                info.mode = 0o755 if info.mode & 0o100 else 0o644
                if info.isdir():
                    archive.addfile(info)
                else:
                    with open(member, "rb") as content:
                        archive.addfile(info, content)
        return path


#: Before the compiler reads them: an edit meanwhile makes the build a stale one.
SOURCES = COMPILED["state_of_sources"]()


setup(
    name="smtnet",
    version="0.1.0",
    description="A network emulator for encrypted message transports",
    license="BSD-3-Clause",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # By name: tests/ stays in the checkout, it is no package to install beside other people's.
    packages=find_packages(
        include=[p for name in ("smtstack", "topo", "controllers", "workloads") for p in (name, f"{name}.*")]
    ),
    # "python -m smtnet".
    py_modules=["smtnet"],
    # py.typed: without it a type checker ignores our annotations in an installed copy.
    package_data={"smtstack": ["py.typed", "capture/*.lua"]},
    ext_modules=compiled_modules(),
    cmdclass={"build_ext": BuildCompiled, "sdist": Sdist},
    # The checkout itself goes on sys.path, so a package added later is found. Here, as pip before 22.1
    # (Ubuntu 22.04) cannot be told on its command line.
    options={"editable_wheel": {"mode": "compat"}},
    entry_points={"console_scripts": ["smtnet = workloads.commands.main:main"]},
    # Every bound is one that the tests pass with, all of them at once (make check LOWEST=yes), on every Python
    # from 3.10 to 3.13 by a wheel, but for mininet and ryu, which have none.
    install_requires=[
        # PyPI has nothing but this pre-release, Debian has 2.3.0: naming the pre-release lets both in.
        "mininet>=2.3.0.dev6",
        # The last release ever. Builds only with an old setuptools: see constraints/build.txt.
        "ryu==4.34",
        # The oldest that pyOpenSSL 25.2 goes with.
        "cryptography>=45.0.7",
        "psutil>=6",
        # Scenario files; from 3.11 on Python reads TOML itself.
        'tomli>=2; python_version < "3.11"',
    ],
    extras_require={
        "plot": ["matplotlib>=3.10.8"],
        "ui": ["rich>=13"],
        # The key-value store: reads what Redis servers, ours among them, reply; Lua for scripts.
        "kv": ["hiredis>=3.1", "lupa>=2.8"],
        # Handshakes of transport smt (the ssl module has no exporter, and keeps from ktls the keys that the
        # kernel wants), and its tickets.
        "session": ["pyOpenSSL>=25.2", "dnspython>=2.7"],
        # SQLite on protected storage, which needs a VFS of its own.
        "sqlite": ["apsw>=3.47"],
        # Beside transport quic, which is aioquic's (workloads/transports/quic.py).
        "quic": ["aioquic>=1.2"],
        # Grids of experiments, here or on a cluster (workloads/batch/sweeping.py).
        "sweep": ["distributed>=2025.1"],
        "test": ["pytest>=8", "pytest-timeout>=2.3.1", "pytest-xdist>=3.6.1", "hypothesis>=6.140", "scapy>=2.6",
                 "hiredis>=3.1", "lupa>=2.8", "lz4>=4.4.3", "pyyaml>=6.0.1", "redis>=5", "zstandard>=0.23"],
        # One minor series each: a new one brings new checks, and lint must not turn red by itself.
        # (mypy~=2.4 would let 2.5 in: "~=" frees the last part that is written.)
        "dev": ["ruff~=0.17.5", "mypy~=2.4.0",
                'check-jsonschema~=0.39.0; python_version >= "3.11"',
                'zizmor~=1.32.0; python_version >= "3.11"',
                # What an old setuptools (constraints/build.txt) builds a wheel with.
                "wheel>=0.43"],
    },
)
