"""What the controller's launcher says where it cannot start: one line, and an exit code. No switch, no root."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from controllers.controller import checked
from controllers.fabric import fabric_of_topo
from smtstack.errors import ConfigError
from tests.net import starting
from topo.topologies import make_topo

pytest.importorskip("ryu", reason="Ryu is not installed: make venv")


def launch(*arguments: str) -> tuple[int, list[str]]:
    """Exit code and lines."""
    done = starting.run([sys.executable, "-m", "controllers.launch", *arguments], timeout=60)
    return done.returncode, done.stderr.splitlines()


def fabric_file(folder: Path) -> str:
    path = folder / "fabric.json"
    path.write_text(fabric_of_topo(make_topo("star,2")).to_json())
    return str(path)


@pytest.mark.parametrize(("arguments", "text"), [
    ([], "smtnet: which network is it? --smtnet-fabric FILE, as this writes it: smtnet plan TOPO --fabric FILE"),
    (["--smtnet-fabric", "/nowhere"],
     "smtnet: --smtnet-fabric /nowhere: No such file or directory; this writes one: smtnet plan TOPO --fabric"),
    (["--smtnet-fabric", "BAD"], "smtnet: --smtnet-fabric BAD: a fabric is JSON"),
    (["--smtnet-fabric", "GOOD", "--smtnet-multipath", "most"],
     "smtnet: --smtnet-multipath most: there are flow, message, ecmp"),
    (["--smtnet-fabric", "GOOD", "--smtnet-lldp", "0.01"], "smtnet: --smtnet-lldp 0.01: 0, or from 0.1 s"),
])
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], text: str):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    names = {"GOOD": fabric_file(tmp_path), "BAD": str(bad)}
    code, lines = launch("fanout", *(names.get(a, a) for a in arguments))
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith(text.replace("BAD", str(bad)))


@pytest.mark.parametrize("option", ["--ofp-tcp-listen-port", "--wsapi-port"])
def test_a_port_that_is_taken_is_not_shared(tmp_path: Path, option: str):
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        code, lines = launch("fanout", "--smtnet-fabric", fabric_file(tmp_path), option, str(port))
    assert code == 2
    assert lines == [f"smtnet: cannot listen on 127.0.0.1:{port}: Address already in use; take another with "
                     f"{option}"]


def test_options_of_a_controller():
    assert checked({"seed": "7", "lldp_s": 1}) == {"seed": 7, "lldp_s": 1.0}
    assert checked({"multipath": "ecmp"}) == {"multipath": "ecmp"}


@pytest.mark.parametrize(("options", "text"), [
    ({"sed": 1}, "no option 'sed'; there are multipath, seed, lldp_s"),
    ({"multipath": "some"}, "multipath is 'some'; one of flow, message, ecmp"),
    ({"seed": "x"}, "seed is 'x'; a number from 0"),
    ({"lldp_s": -1}, "lldp_s is -1; a number from 0"),
])
def test_wrong_options_of_a_controller(options: dict[str, object], text: str):
    with pytest.raises(ConfigError, match=text):
        checked(options)
