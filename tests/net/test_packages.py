"""The wheel as a user has it: in a venv of its own, without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from smtstack import __version__
from tests import packages
from tests.net.netns import IFACE, A, B, Net

pytestmark = pytest.mark.root


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a venv with the wheel, and with what the checkout's venv has of other people's."""
    folder = tmp_path_factory.mktemp("wheel")
    wheel = packages.build(folder / "dist").wheel
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "-qq", "--python", folder / "venv/bin/python", "install",
                    "--no-deps", "--no-index", wheel], check=True)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # A path alone: what that folder says of the checkout, in files of this kind, is not read.
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))
    return folder / "venv" / "bin"


def environment() -> dict[str, str]:
    """Without a word of the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "SMTNET_COMPILED")}


def said(*argv: str | Path, cwd: Path, codes: tuple[int, ...] = (0,)) -> str:
    """What a program prints that is not started in the checkout."""
    done = subprocess.run([*argv], cwd=cwd, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode in codes, done.stderr
    return done.stdout


def test_it_is_there_by_both_names(installed: Path, tmp_path: Path):
    version = f"smtnet {__version__} (interpreted: a wheel without compiled modules; other: make dist COMPILE=yes"
    for command in ([installed / "smtnet"], [installed / "python", "-m", "smtnet"]):
        assert said(*command, "--version", cwd=tmp_path).startswith(version)
    # What is tried here is the wheel.
    code = "import smtstack, topo, workloads; print(*(m.__file__ for m in (smtstack, topo, workloads)))"
    for path in said(installed / "python", "-c", code, cwd=tmp_path).split():
        assert Path(path).is_relative_to(installed.parent)


def test_doctor_finds_all_that_is_needed(installed: Path, tmp_path: Path):
    """Programs that it starts find their modules, too: a controller among them."""
    checks = json.loads(said(installed / "smtnet", "doctor", "--json", cwd=tmp_path))["checks"]
    report = {check["name"]: check["status"] for check in checks}
    assert report["mininet"] == report["ryu"] == "ok"
    assert "fail" not in report.values()


def test_echo_between_two_hosts(installed: Path, net: Net, tmp_path: Path):
    smtnet = str(installed / "smtnet")
    said(smtnet, "ca", "ca", "--host", f"a={A}", "--host", f"b={B}", cwd=tmp_path)
    with subprocess.Popen(
            ["ip", "netns", "exec", net.b, smtnet, "serve", "echo", "--iface", IFACE, "--addr", f"{B}:2000",
             "--certs", "ca/b"], cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr
            assert "serving" in server.stderr.readline()
            results = json.loads(said(
                "ip", "netns", "exec", net.a, smtnet, "call", "echo", "--iface", IFACE, "--addr", f"{A}:40000",
                "--peer", f"{B}:2000", "--certs", "ca/a", "--size", "64,20000", "--count", "10", "--json",
                cwd=tmp_path, codes=(0, 4)))["results"]
            assert [(r["rpcs"], r["errors"], r["content_ok"]) for r in results] == [(10, 0, True)] * 2
        finally:
            server.terminate()
