"""Packaging. Everything about *how* the code is checked is in pyproject.toml."""

import os
from pathlib import Path

from setuptools import Extension, find_packages, setup

#: What is compiled: what a packet passes through. The rest waits for people or for the kernel.
#: Of sessions and captures, what derives from a compiled class: it must be compiled, too.
HOT = ("wire/*.py", "crypto/*.py", "transport/*.py", "nic/*.py", "session/plane.py", "session/manager.py",
       "capture/keylog.py", "sim/*.py", "stack.py", "waiting.py", "loop.py", "io/packet_socket.py", "io/ring.py")


def compiled_modules() -> list[Extension]:
    """The hot modules as C extensions by mypyc, from the same source; none unless SMTNET_MYPYC=1.

    Optional, as it needs a C compiler and half a minute: without it the same modules are interpreted.
    """
    if os.environ.get("SMTNET_MYPYC") != "1":
        return []
    from mypyc.build import mypycify

    sources = [str(p) for hot in HOT for p in sorted(Path("smtstack").glob(hot)) if p.name != "__init__.py"]
    modules: list[Extension] = mypycify(sources, opt_level="3", target_dir=".venv/compiled-c")
    return modules


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
    # py.typed: without it a type checker ignores our annotations in an installed copy.
    package_data={"smtstack": ["py.typed", "capture/*.lua"]},
    ext_modules=compiled_modules(),
    # The checkout itself goes on sys.path, so a package added later is found. Here, as pip before 22.1
    # (Ubuntu 22.04) cannot be told on its command line.
    options={"editable_wheel": {"mode": "compat"}},
    entry_points={"console_scripts": ["smtnet = workloads.commands.main:main"]},
    # Every bound is one that the tests pass with (uv pip install --resolution lowest-direct), on every Python from
    # 3.10 to 3.13 by a wheel, but for mininet and ryu, which have none.
    install_requires=[
        # PyPI has nothing but this pre-release, Debian has 2.3.0: naming the pre-release lets both in.
        "mininet>=2.3.0.dev6",
        # The last release ever. Builds only with an old setuptools: see constraints/build.txt.
        "ryu==4.34",
        "cryptography>=41",
        "psutil>=5.9.8",
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
        # Beside transport quic, which is aioquic's (workloads/transports/quic.py).
        "quic": ["aioquic>=1.2"],
        "test": ["pytest>=8", "pytest-timeout>=2.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "scapy>=2.6",
                 "hiredis>=3.1", "lupa>=2.8", "lz4>=4.4", "redis>=5", "zstandard>=0.23"],
        # One minor series each: a new one brings new checks, and lint must not turn red by itself.
        # (mypy~=2.4 would let 2.5 in: "~=" frees the last part that is written.)
        "dev": ["ruff~=0.17.5", "mypy~=2.4.0"],
    },
)
