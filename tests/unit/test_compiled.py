"""Which build runs: never a stale one, and whoever asks is told the truth."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from pathlib import Path

import pytest

from smtstack import compiled
from smtstack.compiled import VARIABLE
from smtstack.crypto.epochs import Session
from smtstack.crypto.keys import Endpoints, KeyStore
from smtstack.errors import ConfigError
from tests import builds
from tests.command_lines import ROOT
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, make_side
from topo.interpreter import host_environment
from workloads.results.environment import environment

#: Says what it runs, and where a hot module came from.
SAY = """
from smtstack import compiled
print(compiled.description())
from smtstack.wire import ethernet
print(ethernet.__file__)
"""
BUILT = compiled.is_compiled()
#: Where a run does without a build, as on a machine without a compiler, there is nothing of these to see.
needs_build = pytest.mark.skipif(not BUILT, reason="not compiled here; make test runs it compiled, too")


def module_of(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".")


def test_what_runs_is_what_is_said():
    """The control of all that runs compiled: every hot module comes from the compiler, or none does."""
    hot = compiled.hot_sources()
    assert len(hot) > 40
    loaders = {path: import_module(module_of(path)).__loader__ for path in hot}
    assert {path for path, loader in loaders.items() if isinstance(loader, ExtensionFileLoader)} == (
        set(hot) if BUILT else set())
    assert environment()["protocol_code"] == compiled.description()
    if os.environ.get(VARIABLE) in ("yes", "no"):
        assert (os.environ[VARIABLE] == "yes") == BUILT


def test_programs_on_hosts_run_what_we_do():
    done = subprocess.run([sys.executable, "-c", SAY], env=host_environment(), capture_output=True, text=True,
                          check=True, cwd="/")
    said, file = done.stdout.split("\n")[:2]
    assert (said == "compiled") == BUILT == (not file.endswith(".py"))


def test_the_suites_are_there():
    for suite in builds.SUITES:
        assert list(builds.FOLDER.glob(f"{suite}*.py")), suite


# -- a copy, and a build of it -----------------------------------------------------------------------------------


class Copy:
    """The package as a checkout of its own has it. Of a build it has the record alone, which is what is judged."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        shutil.copytree(ROOT / "smtstack", folder / "smtstack", ignore=shutil.ignore_patterns("__pycache__"))
        # By which an installed copy is told from it.
        (folder / "setup.py").touch()
        self.build = folder / ".venv" / "compiled"
        self.record = self.build / "smtstack" / "build.json"

    def compile(self) -> None:
        """As make does."""
        self.record.parent.mkdir(parents=True)
        self.ask(f"""
from smtstack import compiled
compiled.write_record({str(self.build)!r}, compiled.state_of_sources())""")

    def ask(self, program: str = SAY, **environment: str) -> str:
        """What a program prints that has this copy first on its path."""
        variables = {name: value for name, value in os.environ.items() if name != VARIABLE}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False,
                              cwd="/", env={**variables, "PYTHONPATH": str(self.root), **environment})
        return done.stdout + done.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path)


@pytest.fixture
def built(copy: Copy) -> Copy:
    copy.compile()
    assert copy.ask().startswith("compiled\n")
    return copy


def test_without_a_build_the_sources_run_and_say_why(copy: Copy, tmp_path: Path):
    said = copy.ask(PATH=str(tmp_path))
    assert said == ("interpreted: no C compiler; run: make system, then: make compiled\n"
                    f"{tmp_path}/smtstack/wire/ethernet.py\n")
    (tmp_path / "cc").touch(mode=0o755)
    assert copy.ask(PATH=str(tmp_path)).startswith("interpreted: not built; run: make compiled\n")


@pytest.mark.parametrize("path", ["wire/homa.py", "errors.py"])
def test_an_edit_makes_it_stale(built: Copy, path: str):
    """Any source of the package: the compiler takes constants of those that are not compiled themselves."""
    source = built.root / "smtstack" / path
    text = source.read_text()
    # As long as before.
    source.write_text(text.replace("e", "f", 1))
    said = built.ask()
    assert said.startswith("interpreted: sources changed since the build; run: make compiled\n")
    assert said.endswith("smtstack/wire/ethernet.py\n")
    source.write_text(text)
    assert built.ask().startswith("compiled\n"), "the same again, if later: as in a fresh copy"
    source.unlink()
    assert "sources changed" in built.ask("from smtstack.compiled import BUILD; print(BUILD.why)")


def test_a_build_of_another_python_is_none(built: Copy):
    record = json.loads(built.record.read_text())
    built.record.write_text(json.dumps({**record, "python": ".cpython-27.so"}))
    assert built.ask().startswith("interpreted: the build is another Python's; run: make compiled\n")
    built.record.write_text("{")
    assert built.ask().startswith("interpreted: ")


def test_a_build_that_was_cut_short_is_none(built: Copy):
    built.ask(f"from smtstack import compiled; compiled.remove_record({str(built.build)!r})")
    assert built.ask().startswith("interpreted: ")


def test_what_the_variable_says_is_done_or_refused(built: Copy):
    assert built.ask(**{VARIABLE: "no"}).startswith(f"interpreted: {VARIABLE}=no\n")
    assert built.ask(**{VARIABLE: "yes"}).startswith("compiled\n")
    built.record.unlink()
    (built.root / "cc").touch(mode=0o755)  # a machine without a compiler is told of that
    refused = built.ask(PATH=str(built.root), **{VARIABLE: "yes"})
    assert refused.splitlines()[-1].startswith(f"ImportError: {VARIABLE}=yes, but not built; run: make compiled")
    assert "ImportError: SMTNET_COMPILED=maybe: yes or no, or not set" in built.ask(**{VARIABLE: "maybe"})


def test_something_compiled_beside_a_source_is_not_taken_for_it(copy: Copy):
    """As an older way of building left it: Python alone would prefer it, whatever it is of."""
    (copy.root / "smtstack" / "wire" / f"ethernet{EXTENSION_SUFFIXES[0]}").write_bytes(b"stale")
    assert copy.ask().endswith("smtstack/wire/ethernet.py\n")


def test_a_command_refuses_in_one_line(tmp_path: Path):
    done = subprocess.run([sys.executable, "-m", "workloads", "run"], capture_output=True, text=True, check=False,
                          cwd=ROOT, env={**os.environ, VARIABLE: "perhaps"})
    assert (done.returncode, done.stderr) == (3, f"smtnet: {VARIABLE}=perhaps: yes or no, or not set\n")


def test_the_version_says_it():
    done = subprocess.run([sys.executable, "-m", "workloads", "--version"], capture_output=True, text=True,
                          check=True, cwd=ROOT)
    assert done.stdout.endswith(f" ({compiled.description()})\n")


def test_looking_costs_a_start_next_to_nothing(built: Copy):
    """A status of each source, and none is read."""
    said = built.ask("""
import builtins, os
from smtstack import compiled
opened, asked, really = [], [], os.stat
builtins.open = lambda name, *rest, old=open: opened.append(name) or old(name, *rest)
os.stat = lambda path, *rest, **words: asked.append(path) or really(path, *rest, **words)
assert not compiled.find("").why
print(len(opened), len(asked) < 400)""")
    assert said == "1 True\n"


@needs_build
def test_a_compiled_class_can_be_derived_from_where_that_is_meant():
    class Own(KeyStore):
        def session(self, ends: Endpoints) -> Session | None:
            self.asked = ends
            return None

    own = Own()
    with pytest.raises(ConfigError):
        make_side(CLIENT, CLIENT_PORT, "homa", own).endpoint.send_request(SERVER, SERVER_PORT, b"x", 0)
    # Compiled code called it, as it would one of its own.
    assert own.asked == Endpoints(CLIENT, CLIENT_PORT, SERVER, SERVER_PORT)
