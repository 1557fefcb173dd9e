"""What an installation may lack: its commands say so in a line."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import metadata, requires
from pathlib import Path

import pytest

from smtstack.exit_codes import EXIT_ENVIRONMENT
from workloads.commands import main as cli
from workloads.commands.main import EXTRAS


def test_every_extra_is_known_by_what_is_imported():
    pattern = re.compile(r"""([\w.-]+).*; extra == ['"](\w+)['"]""")
    found = {match.groups() for line in requires("smtnet") or () if (match := pattern.match(line))}
    assert found, metadata("smtnet")
    users = {(name, extra) for name, extra in found if extra not in ("test", "dev")}
    assert users == set(EXTRAS.values())


@pytest.mark.parametrize(("hidden", "words"), [
    ("OpenSSL", ("ca", "certs", "--host", "a=10.0.0.1")),
    ("OpenSSL", ("call", "echo", "--iface", "lo", "--addr", "127.0.0.1:40000", "--peer", "127.0.0.1:2000",
                 "--certs", "certs/a", "--size", "64", "--count", "1")),
])
def test_a_command_without_its_package_ends_with_the_fix(hidden: str, words: tuple[str, ...], tmp_path: Path):
    code = (f"import sys; sys.modules[{hidden!r}] = None\n"
            f"from workloads.commands.main import main; sys.exit(main({list(words)!r}))")
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                           check=False)
    assert ended.returncode == EXIT_ENVIRONMENT, ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert f"pip install 'smtnet[{EXTRAS[hidden][1]}]'" in ended.stderr


def test_what_nobody_knows_is_not_hidden(monkeypatch):
    def missing(argv):
        raise ModuleNotFoundError("No module named 'surely'", name="surely")

    monkeypatch.setattr(cli, "parse", missing)
    with pytest.raises(ModuleNotFoundError, match="surely"):
        cli.main(["doctor"])
