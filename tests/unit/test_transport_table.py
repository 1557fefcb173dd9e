"""One record makes a transport known everywhere: in choices, comparisons, pictures, credentials, and on a wire."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from smtstack.errors import ConfigError
from topo import doctor, programs
from workloads import transports
from workloads.transports.table import BASELINE, TABLE, TransportKind, chosen, compared, register, systems

#: All that a further transport on TCP takes.
TOY = """
from workloads.transports.stream import Stream
from workloads.transports.table import Look, TransportKind, register

def open_streams(settings, server):
    return lambda sock, peer: Stream(sock, peer, settings.limit)

register(TransportKind(name="toy", about="plain TCP by another name", streams=open_streams, certified=True,
                       beside="tcp", looks={"sw": Look("#123456", "x", ":")},
                       compared=frozenset({"demo", "wire", "mix", "queries"})))
"""
#: What the places that list transports have, as JSON.
LOOK = """
import argparse, json, sys
from pathlib import Path
from workloads import transports
from workloads.experiments import bench_wire, demo, queries
from workloads.experiments.mix import run as mix
from workloads.fleet import credentials
from workloads.fleet.setup import Setup
from workloads.options import common, declare
from workloads.results import plots

def parsed(add, *words):
    parser = argparse.ArgumentParser()
    add(parser)
    return parser.parse_args(words)

def mix_parser(parser):
    mix.EXPERIMENT.add(parser.add_subparsers())

made = credentials.make(Path(sys.argv[1]), "toy", {"a": "10.0.0.1"})
print(json.dumps({
    "chosen": parsed(common.add_transport_options, "--transport", "toy").transport,
    "color": plots.color_of("toy"),
    "demo": [setup.transport for setup in demo.setups()[0]],
    "wire": ["/".join(pair) for pair in bench_wire.RATIOS],
    "mix": parsed(mix_parser, "mix", "--workload", "w3").transport,
    "queries": parsed(lambda parser: declare.add(queries.Queries, parser)).transport,
    "credentials": made.args("a"), "uses_nic": Setup("toy").uses_nic,
    "kinds": [name for name in transports.NAMES if name in transports.STREAM_TRANSPORTS],
}))
"""


@pytest.fixture
def with_toy(tmp_path, monkeypatch):
    """Programs started from here on have a transport toy."""
    Path(tmp_path, "toy_transport.py").write_text(TOY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), os.environ.get("PYTHONPATH")))))
    monkeypatch.setenv("SMTNET_TRANSPORTS", "toy_transport")


def smtnet(*words: str, **popen) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-m", "workloads", *words], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **popen)


@pytest.mark.usefixtures("with_toy")
def test_a_transport_of_one_record_is_in_every_list(tmp_path):
    done = subprocess.run([sys.executable, "-c", LOOK, str(tmp_path / "keys")], capture_output=True, text=True,
                          check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["chosen"] == "toy"
    assert found["color"] == "#123456"
    assert "toy" in found["demo"]
    assert found["wire"] == ["smt-sw/tls", "smt-hw/tls", "homa/tcp", "ktls-sw/tls", "toy/tcp"]
    assert found["mix"] == ["smt", "homa", "tcp", "tls", "ktls-sw", "toy"]
    assert found["queries"] == ["smt", "tls", "ktls-sw", "toy"]
    assert found["credentials"] == ["--certs", str(tmp_path / "keys" / "a")]
    assert found["uses_nic"] is False
    assert found["kinds"] == ["tcp", "tls", "ktls", "ktls-sw", "ktls-nic", "toy"]


@pytest.mark.usefixtures("with_toy")
def test_a_transport_of_one_record_carries_an_echo(tmp_path):
    certs = str(tmp_path / "certs")
    made = smtnet("ca", certs, "--host=a=127.0.0.1")
    made.communicate(timeout=60)
    assert made.returncode == 0
    both = ["--transport", "toy", "--certs", f"{certs}/a", "--json"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = "{}:{}".format(*free.getsockname())
    server = smtnet("serve", "echo", "--addr", address, *both)
    try:
        assert server.stderr is not None
        said = server.stderr.readline()
        assert "serving" in said, said
        client = smtnet("call", "echo", "--peer", address, "--size", "100", "--count", "20",
                        *both)
        out, errors = client.communicate(timeout=60)
        result = json.loads(out)
    finally:
        server.send_signal(signal.SIGTERM)
        server.communicate(timeout=60)
    assert client.returncode in (0, 4), errors  # 4: the times are not faithful, the bytes are
    assert (result["transport"], result["rpcs"], result["errors"], result["content_ok"]) == ("toy", 20, 0, True)


def test_without_its_record_there_is_no_such_transport():
    program = smtnet("call", "echo", "--transport", "toy", "--peer", "127.0.0.1:9")
    assert "invalid choice: 'toy'" in program.communicate(timeout=60)[1]
    assert program.returncode == 2


def test_a_module_that_is_not_there_is_named():
    program = smtnet("call", "echo", "--peer", "127.0.0.1:9", env={**os.environ, "SMTNET_TRANSPORTS": "no_such"})
    assert program.communicate(timeout=60)[1].startswith("smtnet: SMTNET_TRANSPORTS: cannot import no_such: ")
    assert program.returncode == 2


def test_two_records_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="two transports tcp"):
        register(TransportKind(name="tcp"))


def test_mn_knows_what_the_table_says_of_its_transports():
    """topo starts workloads by their command line, and has what it needs for that by itself."""
    assert compared("mn", "tap") == list(programs.TRANSPORTS)
    for name, needs in programs.TRANSPORTS.items():
        assert (needs.packets, needs.certified) == (TABLE[name].packets, TABLE[name].certified)


def test_the_doctor_tells_of_every_transport_that_a_machine_may_lack():
    text = Path(doctor.__file__).read_text()
    for kind in TABLE.values():
        assert kind.check is None or f"transport {kind.name} is skipped" in text


def test_what_is_divided_has_its_yardstick_beside_it():
    named = {TABLE[name].label(nic) for name, nic in systems("wire")}
    assert BASELINE in named
    assert all(TABLE[name].beside in named for name in compared("wire") if TABLE[name].beside)


def test_hosts_whose_nics_own_their_interfaces_have_one_system_more():
    for comparison in ("demo", "wire", "mix", "queries", "mn"):
        assert set(compared(comparison, "tap")) - set(compared(comparison)) == {"ktls-nic"}
        assert chosen(compared(comparison), comparison, "tap") == compared(comparison, "tap")
        assert chosen(["tcp"], comparison, "tap") == ["tcp"]
    with pytest.raises(ConfigError, match=r"ktls-nic needs .*--nic-hosting tap"):
        transports.check("ktls-nic", "inline")
    transports.check("ktls-nic", "tap")
    transports.check("ktls-sw", "inline")


def test_nobody_but_the_nic_of_an_encrypted_packet_transport_is_named():
    assert [TABLE["smt"].label(nic) for nic in ("sw", "hw")] == ["smt-sw", "smt-hw"]
    assert [TABLE[name].label("sw") for name in ("homa", "linux", "tcp")] == ["homa", "linux-sw", "tcp"]
    assert transports.ENCRYPTED == ("smt", "linux", "tls", "ktls", "ktls-sw", "ktls-nic")
