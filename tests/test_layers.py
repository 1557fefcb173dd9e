"""Imports point one way: wire <- crypto <- transport <- session <- nic, capture <- stack <- io, sim <- loop <-
socket, aio <- topo <- controllers <- workloads.

And the lower half does no I/O and reads no clock, which is what lets sim replay it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# A unit may import itself and lower ranks; units of one rank stand beside each other.
RANK = {
    "smtstack": 0,  # with smtstack.compiled and smtstack.errors one unit, which everybody may import
    "smtstack.exit_codes": 1,
    "smtstack.quantities": 1,
    "smtstack.wire": 1,
    "smtstack.crypto": 2,
    "smtstack.udp": 2,  # UDP/IP of a guarded process
    "smtstack.waiting": 2,  # how long to look before sleeping
    "smtstack.transport": 3,
    "smtstack.session": 4,
    "smtstack.nic": 5,
    "smtstack.capture": 5,
    "smtstack.rings": 5,  # shared with a host that is not trusted
    "smtstack.ktls": 6,  # TLS records on the kernel's TCP
    "smtstack.stack": 6,  # one end: an endpoint on a NIC
    "smtstack.io": 7,
    "smtstack.sim": 7,
    "smtstack.nicshare": 8,
    "smtstack.storage": 8,  # block devices, and what protects them
    "smtstack.ringnic": 8,  # a guarded process' ring, and the host's processes behind it
    "smtstack.hostcalls": 9,  # ways to the wire with a host in them, to compare rings with
    "smtstack.loop": 9,
    "smtstack.session_io": 9,
    "smtstack.tapnic": 10,  # the process of a NIC that owns its interface; applications' side of it
    "smtstack.ktls_io": 11,
    "smtstack.ringio": 11,  # TCP and files of a guarded process, and the host's process behind them
    "smtstack.socket": 10,
    "smtstack.aio": 11,  # the asyncio face of smtstack.socket
    "topo": 12,  # starts workloads by their command line, never by import
    "controllers": 13,
    "topo.mn_plugin": 14,  # plain mn's entrance to all that, as workloads is ours
    "topo.mn": 15,
    "workloads.transports": 14,
    "workloads.results": 15,
    "workloads.options": 16,
    "workloads.vm": 16,
    "workloads.kv": 17,
    "workloads.blocks": 17,
    "workloads.load": 18,
    "workloads.vectors": 18,
    "workloads.fleet": 19,
    "workloads.experiments": 20,
    "workloads.batch": 21,
    "workloads.commands": 22,
    "workloads": 23,  # python -m workloads
}
PACKAGES = ("smtstack", "topo", "controllers", "workloads")
SANS_IO = {"smtstack.wire", "smtstack.crypto", "smtstack.transport", "smtstack.session", "smtstack.nic",
           "smtstack.ktls", "smtstack.rings", "smtstack.stack", "smtstack.udp", "smtstack.waiting"}
OUTSIDE_WORLD = {"socket", "time", "threading", "random", "asyncio", "select", "os", "pathlib", "io", "subprocess",
                 "tempfile", "shutil", "glob", "mmap", "fcntl", "signal", "multiprocessing", "concurrent",
                 "logging", "secrets"}
#: Session makes keys, tickets and proofs: secret randomness is all it has of the world (docs/architecture.md).
SECRETS = {"smtstack.session"}
#: Built-ins that touch files or the terminal, and what sys has of these.
OUTSIDE_CALLS = {"open", "print", "input"}
OUTSIDE_OF_SYS = {"stdin", "stdout", "stderr", "exit"}
#: Modules of a command that has several, and the one module that may import them.
FAMILIES = {"pcap_decrypt": "pcap", "pcap_dissector": "pcap", "serve_kv": "serve", "call_kv": "call",
            "serve_blocks": "serve", "serve_nbd": "serve", "call_blocks": "call", "reproduce_all": "reproduce",
            "kv_file": "kv"}
SEEDED = {"smtstack.nic", "smtstack.rings", "smtstack.sim"}  # may use random.Random(seed), nothing else of random
MAX_LINES = 700
READ_NAMESPACES = {"workloads.options", "workloads.commands"}


def unit_of(module: str) -> str | None:
    """The unit a dotted name belongs to; None for other people's code."""
    first, _, rest = module.partition(".")
    if first not in PACKAGES:
        return None
    second = f"{first}.{rest.partition('.')[0]}"
    return second if second in RANK else first


def imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[tuple[int, str]]:
    """Every import with its line, absolute, wherever it stands (a function, "if TYPE_CHECKING", ...)."""
    parts = module.split(".")
    here = parts if is_package else parts[:-1]
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=origin, names=names, level=level):
                base = here[: len(here) - level + 1] if level else []
                prefix = ".".join([*base, *([origin] if origin else [])])
                # "from smtstack import wire" imports smtstack.wire: the name counts as well.
                yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in names)
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def unseeded(tree: ast.AST) -> Iterator[int]:
    """Lines that take from random anything but random.Random(seed)."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="random"), attr=attr) if attr != "Random":
                yield node.lineno
            case ast.ImportFrom(module="random", names=names) if any(n.name != "Random" for n in names):
                yield node.lineno
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="random"), attr="Random") | ast.Name(id="Random"),
                args=[],
                keywords=[],
            ):
                yield node.lineno


def outside_calls(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Lines that touch files or the terminal by a built-in or by sys."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in OUTSIDE_CALLS:
                yield node.lineno, name
            case ast.Attribute(value=ast.Name(id="sys"), attr=attr) if attr in OUTSIDE_OF_SYS:
                yield node.lineno, f"sys.{attr}"
            case ast.ImportFrom(module="sys", names=names):
                yield from ((node.lineno, f"sys.{n.name}") for n in names if n.name in OUTSIDE_OF_SYS)


def foreign_command(module: str, name: str) -> bool:
    """Whether ``module`` imports, as ``name``, a command that is not its own affair."""
    prefix = "workloads.commands."
    if not name.startswith(prefix) or not module.startswith("workloads"):
        # Others may import nothing of workloads at all.
        return False
    command = name.removeprefix(prefix).partition(".")[0]
    if module in {prefix + command, f"{prefix}main"}:
        return False
    if command == "main":
        return module != "workloads.__main__"
    return module != prefix + FAMILIES.get(command, "main")


def check(source: str, module: str, is_package: bool = False) -> list[str]:
    """What is wrong with a module's imports, one line each."""
    tree = ast.parse(source)
    own = unit_of(module)
    assert own is not None
    if own == "smtstack" and module not in {"smtstack", "smtstack.compiled", "smtstack.errors"}:
        return [f"{module}: has no layer; give it one in tests/test_layers.py"]
    if own == "workloads" and module not in {"workloads", "workloads.__main__"}:
        return [f"{module}: its folder has no rank; give it one in tests/test_layers.py"]
    problems = []
    for line, name in imports(tree, module, is_package):
        target, top = unit_of(name), name.partition(".")[0]
        if target is not None and target != own and RANK[target] >= RANK[own]:
            problems.append(f"{module}:{line}: {own} must not import {target} ({name})")
        if own.startswith("smtstack") and top in {"mininet", "ryu"}:
            problems.append(f"{module}:{line}: smtstack must not import {top}")
        if foreign_command(module, name):
            problems.append(f"{module}:{line}: {name} is a command: only main.py and its family import it")
        allowed = (top == "random" and own in SEEDED) or (top == "secrets" and own in SECRETS)
        if own in SANS_IO and top in OUTSIDE_WORLD and not allowed:
            problems.append(f"{module}:{line}: {own} does no I/O, so must not import {top}")
    if own in SANS_IO:
        problems += [f"{module}:{line}: {own} does no I/O, so no {name}" for line, name in outside_calls(tree)]
    if own in SEEDED:
        problems += [f"{module}:{line}: only random.Random(seed) repeats" for line in unseeded(tree)]
    return problems


def module_files() -> Iterator[tuple[Path, str, bool]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            yield path, ".".join(parts[:-1] if is_package else parts), is_package


def test_imports_point_one_way():
    files = list(module_files())
    assert files, "found no module to check"
    problems = [
        problem
        for path, module, is_package in files
        for problem in check(path.read_text(encoding="utf-8"), module, is_package)
    ]
    assert not problems, "\n".join(problems)


def test_only_options_and_commands_read_a_namespace():
    """Everybody else gets typed options (workloads/options/declare.py); programs of hosts read their own words."""
    problems = []
    for path, module, _is_package in module_files():
        source = path.read_text(encoding="utf-8")
        own_words = '__name__ == "__main__"' in source
        if module.startswith("workloads.") and unit_of(module) not in READ_NAMESPACES and not own_words:
            problems += [f"{module}:{node.lineno}: an argparse.Namespace" for node in ast.walk(ast.parse(source))
                         if isinstance(node, ast.Attribute) and node.attr == "Namespace"]
    assert not problems, "\n".join(problems)


def test_no_module_is_too_long():
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path, *_ in module_files()}
    too_long = [f"{path.relative_to(ROOT)}: {n} lines" for path, n in lengths.items() if n > MAX_LINES]
    assert not too_long, f"more than {MAX_LINES} lines:\n" + "\n".join(too_long)


# The controls: the checker does see what it is there to see.
@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("smtstack.wire.records", "import smtstack.crypto.hkdf"),
        ("smtstack.wire.records", "from smtstack import crypto"),
        ("smtstack.wire.records", "from ..crypto import hkdf"),
        ("smtstack.wire.records", "from .. import crypto"),
        ("smtstack.wire.records", "def f():\n    from smtstack.crypto import hkdf"),
        ("smtstack.wire.records", "if TYPE_CHECKING:\n    from smtstack.crypto.hkdf import Key"),
        ("smtstack.wire.records", "import importlib\nimportlib.import_module('smtstack.crypto')"),
        ("smtstack.wire", "from . import x\nfrom smtstack.aio import y"),
        ("smtstack.errors", "import smtstack.wire"),
        ("smtstack.nic.queue", "import smtstack.capture"),
        ("smtstack.capture.pcap", "from smtstack.nic import queue"),
        ("smtstack.io.udp", "import smtstack.sim"),
        ("smtstack.sim.clock", "import smtstack.io"),
        ("smtstack.socket", "import smtstack.aio"),
        ("topo.lab", "import workloads.commands.main"),
        ("topo.network", "from controllers.plan import Plan"),
        ("topo.network", "from topo import mn_plugin"),
        ("controllers.plan", "import topo.mn"),
        ("topo.mn", "import workloads.commands.main"),
        ("controllers.app", "import workloads.commands.main"),
        ("smtstack.aio", "import mininet.net"),
        ("smtstack.io.udp", "from ryu.lib import packet"),
        ("smtstack.transport.conn", "import time"),
        ("smtstack.transport.conn", "from socket import AF_INET"),
        ("smtstack.transport.conn", "import random"),
        ("smtstack.nic.queue", "import asyncio"),
        ("smtstack.nic.impairments", "import random\nx = random.random()"),
        ("smtstack.sim.clock", "import random\nrng = random.Random()"),
        ("smtstack.sim.clock", "from random import randbytes"),
        ("smtstack.newcomer", ""),
        ("workloads.newcomer.thing", ""),
        ("workloads.newcomer", ""),
        ("smtstack.crypto.keys", "import os"),
        ("smtstack.crypto.keys", "from pathlib import Path"),
        ("smtstack.crypto.keys", "import secrets"),
        ("smtstack.crypto.keys", "def f(p):\n    return open(p)"),
        ("smtstack.session.tls", "import os"),
        ("smtstack.transport.conn", "import sys\nsys.stderr.write('x')"),
        ("smtstack.transport.conn", "from sys import stdout"),
        ("smtstack.wire.records", "import subprocess"),
        ("smtstack.wire.records", "import tempfile"),
        ("smtstack.wire.records", "import io"),
        ("smtstack.wire.records", "print('x')"),
        ("workloads.commands.bench", "from workloads.commands.doctor import run"),
        ("workloads.commands.bench", "from workloads.commands import doctor"),
        ("workloads.commands.serve", "from workloads.commands import call_kv"),
        ("workloads.commands.kv", "from workloads.commands.main import main"),
    ],
)
def test_checker_reports(module, source):
    assert len(check(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("smtstack.crypto.hkdf", "import hashlib\nfrom ..wire import records\nfrom smtstack.errors import E"),
        ("smtstack.crypto.hkdf", "from smtstack import __version__\nfrom . import keys"),
        ("smtstack.nic.impairments", "import random\ndef f(seed):\n    return random.Random(seed)"),
        ("smtstack.socket", "import socket\nimport time\nfrom . import io, sim"),
        ("smtstack.io.udp", "import socket"),
        ("workloads.load.loops", "import smtstack.aio\nimport mininet.net\nfrom . import bench"),
        ("smtstack.errors", "import smtstack"),
        ("smtstack.session.tls", "import secrets"),
        ("smtstack.transport.conn", "import sys\nx = sys.maxsize"),
        ("workloads.commands.main", "from workloads.commands import doctor, pcap, serve_kv"),
        ("workloads.commands.pcap", "from workloads.commands.pcap_decrypt import run"),
        ("workloads.__main__", "from workloads.commands.main import main"),
        ("controllers.fabric", "from topo.topologies import SmtTopo"),
        ("topo.mn_plugin", "from controllers.controller import RyuController\nfrom topo import network"),
    ],
)
def test_checker_accepts(module, source):
    assert check(source, module) == []


def test_checker_knows_a_package_from_a_module():
    # "from . import crypto" is smtstack.crypto in smtstack/__init__.py, smtstack.wire.crypto in wire's.
    assert len(check("from . import crypto", "smtstack", is_package=True)) == 1
    assert check("from . import crypto", "smtstack.wire", is_package=True) == []
