"""The NIC of a host seen and changed from outside its namespace, while traffic runs."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from smtstack.capture.decode import Decoder
from smtstack.capture.files import CaptureFile
from smtstack.capture.pcapfile import Reader
from smtstack.capture.reading import read_into
from smtstack.errors import ConfigError
from smtstack.io import key_file
from smtstack.io.namespaces import Census
from smtstack.io.packet_socket import interface_mtu
from smtstack.nicshare import file as nic_file
from smtstack.nicshare.state import NicState
from tests.net.netns import IFACE, PATIENCE, Net, Running, run
from workloads.commands import nic as nic_command

pytestmark = pytest.mark.root


def until(reached: Callable[[], bool]) -> None:
    """Fails if it takes longer than anything should."""
    end = time.monotonic() + PATIENCE
    while not reached():
        assert time.monotonic() < end, "never happened"
        time.sleep(0.01)


def of_host(namespace: str) -> int:
    """Some process there."""
    return int(run(["ip", "netns", "pids", namespace]).stdout.split()[0])


@pytest.fixture
def client(net: Net) -> Iterator[Running]:
    """A busy client and its server, both with offloading NICs."""
    with serving(net), asking(net) as client:
        yield client


def serving(net: Net) -> Running:
    """A server on host b."""
    return net.start(net.b, "tests.net.steady", "serve", net.keys, "2000", ready="serving")


def asking(net: Net) -> Running:
    """A client on host a, busy until it is stopped."""
    return net.start(net.a, "tests.net.steady", "ask", net.keys, str(net.port()), ready="asking")


@pytest.fixture
def state(net: Net, client: Running) -> Iterator[NicState]:
    """The client's NIC."""
    state = NicState.open(IFACE, of_host(net.a))
    moved(state)
    yield state
    state.remove()


def moved(state: NicState, counter: str = "responses_delivered", by: int = 50) -> dict[str, int]:
    """The counters when ``counter`` is larger by this."""
    before = state.counters()[counter]
    until(lambda: state.counters()[counter] >= before + by)
    return state.counters()


def apply(state: NicState, *texts: str) -> dict[str, int]:
    """Set; the counters since every endpoint has it."""
    state.assign(*texts)
    assert state.wait_applied(PATIENCE)
    return state.counters()


def all_was_well(client: Running) -> dict[str, Any]:
    result = client.stop()
    assert result["errors"] == []
    assert result["wrong"] == 0
    assert result["counters"]["records_failed"] == 0
    return result


def test_offload_is_switched_while_traffic_runs(client, state):
    assert moved(state, "tx_tls_encrypted_packets")["tx_tls_fallback"] == 0
    off = apply(state, "offload=off")
    assert moved(state)["tx_tls_encrypted_packets"] == off["tx_tls_encrypted_packets"]
    on = apply(state, "offload=on")
    assert moved(state, "tx_tls_encrypted_packets")["tx_tls_ooo"] > on["tx_tls_ooo"]
    none = apply(state, "max-contexts=0")
    later = moved(state)
    assert later["tx_tls_encrypted_packets"] == none["tx_tls_encrypted_packets"]
    assert later["tx_tls_no_ctx"] > none["tx_tls_no_ctx"]
    assert later["tx_tls_ctx"] == later["tx_tls_del"]
    whole = apply(state, "tso=off", "max-contexts=default")
    assert moved(state)["tx_tso_packets"] == whole["tx_tso_packets"]
    state.reset()
    moved(state, "tx_tls_encrypted_packets")
    moved(state, "tx_tso_packets")
    result = all_was_well(client)
    # What is seen from outside is what the socket says itself, and nothing is left when nothing is set.
    assert result["counters"]["requests_sent"] >= result["good"] > 250
    assert state.endpoints() == []
    assert set(state.counters().values()) == {0}


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_loss_is_set_while_traffic_runs(client, state, direction):
    assert state.counters()["impaired_dropped"] == 0
    apply(state, f"{direction}.loss=5%", f"{direction}.duplicate=5%", f"{direction}.reorder=10%")
    counters = moved(state, "impaired_dropped", 20)
    assert min(counters["impaired_duplicated"], counters["impaired_reordered"]) > 0
    none = apply(state, f"{direction}=default")
    assert moved(state)["impaired_dropped"] == none["impaired_dropped"]
    state.reset()
    assert all_was_well(client)["counters"]["impaired_dropped"] == none["impaired_dropped"]


def test_recordings_while_traffic_runs(net, client, state, tmp_path):
    wire, both = tmp_path / "wire.pcapng", tmp_path / "both.pcapng"
    for path, host_side in ((wire, False), (both, True)):
        state.start_tap(path, host_side)
        assert state.wait_applied(PATIENCE)
        moved(state)
        assert state.stop_tap() == str(path)
        assert state.counters()["tap_errors"] == 0
        size = path.stat().st_size
        moved(state)
        assert path.stat().st_size == size
        decoder = Decoder("smt", key_file.load(net.keys, "smt"))
        notes = read_into(decoder, CaptureFile(path))
        assert [note for note in notes if "host side" not in note] == []
        result = decoder.result()
        assert (result.records_bad, result.bad_packets, result.ignored, result.nonce_reuse) == (0, 0, 0, 0)
        assert result.messages_complete > 50
    with both.open("rb") as f:
        names = {c.interface for c in Reader(f).frames_untrusted()}
    assert names == {IFACE, IFACE + " host"}
    if shutil.which("capinfos") is not None:
        subprocess.run(["capinfos", str(both)], check=True, capture_output=True)
    all_was_well(client)


def test_workers_are_all_seen_and_changed(net: Net):
    with net.serve("smt", "--nic", "hw", "--workers", "3") as server:
        state = NicState.open(IFACE, of_host(net.b))
        assert [e.address for e in state.endpoints()] == ["10.9.0.2:2000"] * 3
        assert len({e.pid for e in state.endpoints()}) == 3
        state.set_feature("tls-hw-tx-offload", False)
        assert state.wait_applied(PATIENCE)
        assert not any(e.features["tls-hw-tx-offload"] for e in state.endpoints())
        result, errors, code = net.call("smt", "--nic", "hw", "--count", "60", "--size", "3000")
        assert (result["rpcs"], code in (0, 4)) == (60, True), errors
        until(lambda: state.counters()["requests_delivered"] >= 60)
        state.set_feature("tls-hw-tx-offload", None)
        counters = server.stop()["counters"]
    assert counters["tx_tls_encrypted_packets"] == 0
    assert state.endpoints() == []


def test_a_killed_endpoint_leaves_no_slot_and_no_file(net: Net):
    # What nothing keeps is removed by the next who looks, be it a process of somebody else.
    for kept in (True, False):
        with serving(net) as server, asking(net):
            state = NicState.open(IFACE, of_host(net.b))
            if kept:
                state.set_feature("tso", True)
            moved(state, "requests_delivered", 20)
            server.stop(signal.SIGKILL)
            before = state.counters()
        assert state.endpoints() == []
        assert state.counters() == before or not kept
        with serving(net):  # the port is free, and so is its slot
            assert len(state.endpoints()) == 1
            if kept:
                assert state.counters()["requests_delivered"] == before["requests_delivered"]
        state.remove()
    assert files_of(net) == []


def test_settings_end_with_their_network(net: Net, tmp_path):
    other = Net(tmp_path / "other")
    other.up()
    try:
        name = f"/run/netns/{other.a}"
        # A moment's process is enough to find the way in; afterwards only the mount holds the network.
        with net.start(other.a, "topo.sniffer", IFACE, str(tmp_path / "x"), ready="sniffing"):
            state = NicState.open(IFACE, of_host(other.a))
            state.set_feature("tso", False)
        inode = Path(name).stat().st_ino
        assert Census().knows(inode)
        NicState.open("lo")
        assert state.settings().features == {"tso": False}
        assert len(files_of(other)) == 1
    finally:
        other.down()
    assert not Census().knows(inode)
    NicState.open("lo")
    assert state.settings().features == {}


def files_of(net: Net) -> list[Path]:
    """What is left of the NICs of these hosts."""
    inodes = {Path(f"/run/netns/{name}").stat().st_ino for name in (net.a, net.b)}
    return [p for p in nic_file.FOLDER.glob(f"*-{IFACE}")
            if int.from_bytes(p.read_bytes()[40:48], "little") in inodes]


def test_no_such_host_or_interface(net: Net):
    with serving(net), pytest.raises(ConfigError, match="no interface 'e9' on the host of process"):
        NicState.open("e9", of_host(net.b))
    with pytest.raises(ConfigError, match="no interface 'e0' here"):
        NicState.open(IFACE)


def test_mtu_is_that_of_our_own_namespace_whatever_sys_shows(net: Net):
    """On a Mininet host /sys is that of the machine."""
    code = f"from smtstack.io.packet_socket import interface_mtu; print(interface_mtu({IFACE!r}))"
    done = run(["nsenter", f"--net=/run/netns/{net.a}", sys.executable, "-c", code])
    assert (done.stdout, done.stderr) == ("1500\n", "")
    assert interface_mtu("lo") > 1500


# -- the command -----------------------------------------------------------------------------------------

def command(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[str, str]:
    parser = argparse.ArgumentParser(exit_on_error=False)
    nic_command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["nic", *argv])
    assert args.run(args) == 0
    said = capsys.readouterr()
    return said.out, said.err


def test_the_command(net: Net, capsys, tmp_path):
    with serving(net):
        here = (IFACE, "--pid", str(of_host(net.b)))
        out, errors = command(capsys, *here)
        assert "e0: smart NIC of 1 endpoint" in out
        assert "10.9.0.2:2000 smt" in out
        assert errors == ""
        out, _errors = command(capsys, *here, "--set", "offload=off", "--set", "rx.loss=1%", "--json")
        shown = json.loads(out)
        assert shown["settings"]["features"] == {"tls-hw-tx-offload": False}
        assert shown["settings"]["rx"]["rates"]["drop"] == 0.01
        endpoint, = shown["endpoints"]
        assert (endpoint["up_to_date"], endpoint["features"]["tls-hw-tx-offload"]) == (True, False)
        path = tmp_path / "x.pcapng"
        assert "recording" in command(capsys, *here, "tap", "start", str(path))[0]
        with pytest.raises(ConfigError, match="recorded already"):
            command(capsys, *here, "tap", "start", str(tmp_path / "y"))
        with asking(net):
            moved(NicState.open(IFACE, of_host(net.b)), "requests_delivered", 5)
        assert f"recorded e0 into {path}" in command(capsys, IFACE, "tap", "stop", *here[1:])[0]
        with path.open("rb") as f:
            assert len(list(Reader(f).frames_untrusted())) >= 10
        for wrong in (("--set", "loss=1%", "--reset", "tap", "stop"), ("--set", "xyzzy=1")):
            with pytest.raises(ConfigError):
                command(capsys, *here, *wrong)
        out, _errors = command(capsys, *here, "--reset", "--set", "tso=off", "--json")
        assert json.loads(out)["settings"]["features"] == {"tso": False}
        assert "none; all as the endpoints" in command(capsys, *here, "--reset")[0]
    assert files_of(net) == []
