"""Which tests run in a guest, and what came of them. Pure, but for reading the tests' files and JUnit's."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from smtstack.errors import SmtError
from topo.needs import NEEDS
from workloads.vm.recipe import VENV

#: Of JUnit's results; more is no result of ours.
_MOST_OCTETS = 64 << 20


def wanted(missing: Collection[str]) -> list[str]:
    """The needs whose tests run: those that the host lacks; where it lacks none, all."""
    return [need for need in NEEDS if need in missing] or list(NEEDS)


def files_with(needs: Collection[str], root: Path) -> list[str]:
    """The test files in which one of the marks stands. Without KVM a guest needs minutes to read them all."""
    mark = re.compile(rf"pytest\.mark\.({'|'.join(needs)})\b")
    return sorted(str(path.relative_to(root)) for path in (root / "tests").rglob("test_*.py")
                  if mark.search(path.read_text(encoding="utf-8")))


def pytest_command(needs: Sequence[str], root: Path, arguments: Sequence[str], workers: int) -> list[str]:
    """The guest's command line. ``arguments``: what pytest gets instead of the marks and their files."""
    chosen = list(arguments) or ["-m", " or ".join(needs), *files_with(needs, root)]
    # Without KVM everything is ten times slower.
    return [f"{VENV}/bin/python", "-m", "pytest", "-v", "-p", "no:cacheprovider", "--color=no", "-n", str(workers),
            "--dist", "worksteal", "--timeout=600", "--junitxml=/mnt/share/junit.xml", *chosen]


def script(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The shell script that the guest runs."""
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    # What a run leaves comes back.
    return (f"{exports}{shlex.join(command)}\ncode=$?\n"
            "if [ -d results ]; then cp -r results /mnt/share/; fi\nexit $code\n")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What JUnit's file says: names of tests, as pytest has them."""

    passed: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    """With the reason."""
    tests_s: float = 0.0
    """Seconds of all tests, by the guest's clock."""

    def text(self) -> str:
        """A line, and one for each test that was not run, or failed."""
        lines = [f"{len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped in the guest"]
        lines += [f"  failed: {name}" for name in self.failed]
        lines += [f"  skipped: {name}: {reason}" for name, reason in self.skipped.items()]
        return "\n".join(lines)


def read_junit(path: Path) -> Outcome:
    """Raises :class:`SmtError` for what is no such file: the guest wrote it."""
    try:
        if path.stat().st_size > _MOST_OCTETS:
            raise SmtError(f"{path}: too long for results of tests")
        text = path.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise SmtError(f"{path}: results of tests have no DOCTYPE")
        suites = ElementTree.fromstring(text)  # noqa: S314 - has no entities
        passed, failed, skipped = [], [], {}
        for case in suites.iter("testcase"):
            name = f"{case.attrib['classname'].replace('.', '/')}.py::{case.attrib['name']}"
            skip = case.find("skipped")
            if case.find("failure") is not None or case.find("error") is not None:
                failed.append(name)
            elif skip is not None:
                skipped[name] = skip.attrib.get("message", "")
            else:
                passed.append(name)
        seconds = sum(float(suite.attrib.get("time", 0)) for suite in suites.iter("testsuite"))
    except OSError as e:
        raise SmtError(f"{path}: {e.strerror}: the guest left no results of tests") from None
    except (ElementTree.ParseError, UnicodeDecodeError, KeyError, ValueError) as e:
        raise SmtError(f"{path}: no results of tests ({type(e).__name__}: {e})") from None
    return Outcome(tuple(passed), tuple(failed), skipped, seconds)
