"""What goes wrong is said in one line, with the exit code it has."""

from __future__ import annotations

import shutil
import sys

import pytest

from tests.net.netns import IFACE, IMPATIENT, A, B, Net, run

pytestmark = pytest.mark.root

USAGE, ENVIRONMENT, FAILED = 2, 3, 1


def said(errors: str) -> str:
    """The one line."""
    lines = errors.splitlines()
    assert len(lines) == 1, errors
    assert lines[0].startswith("smtnet: ")
    return lines[0]


@pytest.mark.parametrize(("options", "words"), [
    (["--iface", "nope"], "no interface 'nope'"),
    (["--mtu", "9000"], f"mtu 9000 is more than the 1500 of {IFACE}"),
    (["--addr", f"{B}:40000"], f"{B} is no address of {IFACE}, which has {A}"),
    (["--addr", "10.9.0.1"], "no IP:PORT"),
    (["--addr", "10.9.0.1:0"], "no IP:PORT"),
    (["--peer", "host:1"], "no IP:PORT"),
    (["--keys", "demo"], "no demo keys"),
    (["--keys", "/no/such/file"], "key file /no/such/file"),
    (["--size", "1000001"], "at most 1000000"),
    (["--max-gso-size", "70000"], "max_gso_size is 70000"),
])
def test_wrong_options(net: Net, options, words):
    _result, errors, code = net.call("smt", *options)
    assert code == USAGE
    assert words in said(errors)


def test_a_peer_without_a_key(net: Net):
    _result, errors, code = net.call("smt", "--peer", "10.9.0.77:2000")
    assert code == USAGE
    assert "10.9.0.77" in said(errors)


def test_nobody_at_the_address_and_nobody_at_the_port(net: Net):
    result, errors, code = net.call("homa", *IMPATIENT, "--peer", "10.9.0.77:2000")
    assert code == FAILED
    assert "RPC to 10.9.0.77:2000" in said(errors)
    assert "ARP" in errors
    assert (result["rpcs"], result["rtt_us"]["p50"]) == (0, None)
    _result, errors, code = net.call("homa", *IMPATIENT)
    assert code == FAILED
    assert f"RPC to {B}:2000: the peer stopped answering" in said(errors)


def test_wrong_key(net: Net):
    with net.serve("smt") as server:
        result, errors, code = net.call("smt", *IMPATIENT, "--keys", net.make_keys("other.keys"))
        served = server.stop()
    assert code == FAILED
    assert f"RPC to {B}:2000" in said(errors)
    assert "same keys" in errors
    assert (result["rpcs"], served["requests"]) == (0, 0)
    assert served["counters"]["records_failed"] > 0


def test_links_of_different_mtu(net: Net):
    set_mtu = ["ip", "-n", net.b, "link", "set", IFACE, "mtu"]
    assert run([*set_mtu, "1000"]).returncode == 0
    try:
        with net.serve("smt"):
            result, errors, code = net.call("smt", *IMPATIENT, "--size", "64,9000", "--count", "5")
    finally:
        assert run([*set_mtu, "1500"]).returncode == 0
    assert code == FAILED
    assert [r["rpcs"] for r in result["results"]] == [5, 0]
    line = next(text for text in errors.splitlines() if "stopped answering" in text)
    assert "MTU" in line


def test_a_port_used_twice(net: Net):
    with net.serve("smt"):
        command = ["ip", "netns", "exec", net.b, *net.call_command("smt", "--addr", f"{B}:2000")]
        done = run(command)
        # Workers share a port with each other only.
        shared = run(["ip", "netns", "exec", net.b, sys.executable, "-m", "workloads", "serve", "echo",
                      "--iface", IFACE, "--addr", f"{B}:2000", "--keys", net.keys, "--workers", "2"])
        # Another port is another socket.
        with net.serve("smt", port=2001):
            _result, _errors, code = net.call("smt", port=2001)
    assert (done.returncode, code in {0, 4}) == (USAGE, True)
    assert f"{B}:2000 is in use" in said(done.stderr)
    assert shared.returncode == USAGE
    assert f"{B}:2000 is in use" in said(shared.stderr)
    with net.serve("smt"):
        pass  # Entering waits for "serving": the port was free again at once.


@pytest.mark.skipif(not shutil.which("setpriv"), reason="setpriv (util-linux) is missing")
def test_without_the_right_to_open_raw_sockets(net: Net):
    command = net.call_command("homa")
    done = run(["ip", "netns", "exec", net.a, "setpriv", "--bounding-set", "-net_raw", "--inh-caps", "-net_raw",
                *command])
    assert done.returncode == ENVIRONMENT
    assert "root" in said(done.stderr)


def test_key_files(net: Net):
    assert (net.folder / "run.keys").stat().st_mode & 0o777 == 0o600
    keys = [sys.executable, "-m", "workloads", "keys"]
    for options, words in [([net.keys, "--pair", f"{A},{B}"], "is there already"),
                           (["/no/such/folder/k", "--pair", f"{A},{B}"], "No such file"),
                           ([str(net.folder / "k"), "--pair", A], "two different hosts"),
                           ([str(net.folder / "k"), "--pair", f"{A},{A}"], "two different hosts"),
                           ([str(net.folder / "k"), "--pair", f"{A},x"], "no IPv4 address"),
                           ([str(net.folder / "k"), "--pair", f"{A},{B}", "--cipher", "DES"], "unknown cipher")]:
        done = run([*keys, *options])
        assert done.returncode == USAGE
        assert words in said(done.stderr)
    assert not (net.folder / "k").exists()


def test_the_interface_goes_away_and_comes_back(net: Net):
    """Down is a link that loses everything, and so is one that takes shorter packets than it did."""
    other = Net(net.folder / "other")
    answers = ["--response-size", "1400"]
    try:
        other.up()
        with other.serve("smt", *answers) as server:
            link = ["ip", "-n", other.b, "link", "set", IFACE]
            assert run([*link, "down"]).returncode == 0
            _result, errors, code = other.call("smt", *answers, *IMPATIENT)
            assert code == FAILED, errors
            assert run([*link, "up"]).returncode == 0
            result, errors, code = other.call("smt", *answers, "--count", "10")
            assert code in {0, 4}, errors
            assert result["rpcs"] == 10
            assert run([*link, "mtu", "1000"]).returncode == 0
            result, errors, code = other.call("smt", *answers, *IMPATIENT, "--count", "1", "--warm-up", "0")
            assert (result["rpcs"], code) == (0, FAILED), errors
            served = server.stop()
        assert served["counters"]["socket_send_drops"] > 0
        assert not served["fidelity"]["ok"]
    finally:
        other.down()


def test_an_interface_that_is_down_costs_no_processor(net: Net):
    with net.serve("homa"):
        result = net.drive("down", str(net.port()))
    assert result["answer"] == "?"
    assert result["wakeups"] < 50


def test_the_interface_is_removed(net: Net):
    other = Net(net.folder / "removed")
    try:
        other.up()
        with other.serve("homa"):
            result = other.drive("removed", str(other.port()))
    finally:
        other.down()
    assert result["known"] == f"Unsupported: interface {IFACE} was removed"
    # Nobody can be asked for its address any more; but an acknowledgement may be due to the other before.
    assert result["unknown"] in {"RpcTimeout", "Unsupported"}


def test_of_many_frames_by_one_call_each_has_its_own_fate(net: Net):
    """Which are too long, or come while the interface is down, are lost; all others arrive as they are."""
    assert net.drive("batches") == {"whole": 200, "short": True, "long_lost": True, "down": 0, "down_lost": 100,
                                    "up": True, "removed": "Unsupported: interface s0 was removed"}
