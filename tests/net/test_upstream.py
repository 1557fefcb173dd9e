"""Profile upstream over a cable: both shapes, and the hosts' own TCP, which they must leave alone."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import pytest

from smtstack.transport.params import SOFTWARE
from smtstack.wire import homa, ipv4, upstream
from smtstack.wire.ethernet import Ethernet, parse_mac
from smtstack.wire.ipv4 import IPv4, address
from tests.net import starting
from tests.net.netns import IFACE, PATIENCE, A, B, Net, run, run_environment
from tests.net.test_cable import of_protocol

pytestmark = pytest.mark.root

NATIVE, TCP = ("--param", "hijack_tcp=0"), ("--param", "hijack_tcp=1")
RST = 0x04
#: Nobody is given up for want of a processor.
PATIENT = ("--param", f"timeout_ticks={10 * SOFTWARE.timeout_ticks}")


def good(called: tuple[dict[str, Any], str, int], count: int) -> None:
    result, errors, code = called
    assert (result["rpcs"], result["errors"], result["content_ok"]) == (count, 0, True), errors
    assert code in (0, 4)


def resets(net: Net) -> dict[str, tuple[int, int]]:
    """By host: connections that were reset, and RSTs that the kernel sent."""
    out = {}
    for namespace in (net.a, net.b):
        done = run(["ip", "netns", "exec", namespace, "cat", "/proc/net/snmp"])
        names, values = (line.split() for line in done.stdout.splitlines() if line.startswith("Tcp:"))
        found = dict(zip(names, values, strict=True))
        out[namespace] = int(found["EstabResets"]), int(found["OutRsts"])
    return out


def shaped(frame: bytes) -> bool:
    return upstream.tcp_shaped(frame[34:])


@pytest.mark.parametrize("server", [NATIVE, TCP], ids=["server native", "server tcp"])
def test_both_shapes_at_one_server(net: Net, server: tuple[str, str]) -> None:
    frames: list[bytes] = []
    with net.serve("upstream", *server, *PATIENT), net.sniff(frames):
        for shape in (NATIVE, TCP, NATIVE):
            good(net.call("upstream", *shape, *PATIENT, "--size", "64", "--count", "50"), 50)
            good(net.call("upstream", *shape, *PATIENT, "--size", "100000", "--count", "3"), 3)
    native, tcp = of_protocol(frames, homa.PROTO_HOMA), of_protocol(frames, ipv4.PROTO_TCP)
    assert len(native) > 300
    assert len(tcp) > 300
    assert all(shaped(frame) for frame in tcp)
    assert all(upstream.tcp_checksum(int.from_bytes(f[26:30], "big"), int.from_bytes(f[30:34], "big"),
                                     f[34:14 + int.from_bytes(f[16:18], "big")]) == 0 for f in tcp)


def test_a_client_that_ends_leaves_nothing_to_be_asked_for(net: Net) -> None:
    with net.serve("upstream", *PATIENT) as server:
        good(net.call("upstream", *PATIENT, "--size", "64", "--count", "20"), 20)
        frames: list[bytes] = []
        with net.sniff(frames):
            time.sleep(0.5)
        server.stop()
    assert [f for f in of_protocol(frames, homa.PROTO_HOMA) if f[45] == homa.NEED_ACK] == []


def test_the_hosts_own_tcp_stays_whole_and_silent(net: Net) -> None:
    before = resets(net)
    with net.serve("upstream", *TCP, *PATIENT):
        command = ["ip", "netns", "exec", net.a, *net.call_command(
            "upstream", *TCP, *PATIENT, "--size", "3000", "--count", "1500")]
        with net.start(net.b, "tests.net.tcp_driver", "serve", B, "5001", ready="serving") as sink:
            caller = starting.popen(command, run_environment())
            done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "tests.net.tcp_driver", "send", B,
                        "5001", "40"])
            out, errors = caller.communicate(timeout=2 * PATIENCE)
            sink.wait()
    assert caller.returncode is not None
    assert done.stdout.strip() == sink.output.strip() != ""
    good((json.loads(out), errors, caller.returncode), 1500)
    assert resets(net) == before


def test_a_segment_of_tcp_to_our_port_is_answered_by_the_kernel(net: Net) -> None:
    """The control: flags that TCP knows bring a reset, and the capture has it."""
    frames: list[bytes] = []
    before = resets(net)
    with net.serve("upstream", *TCP), net.sniff(frames):
        transport = bytearray(upstream.pack(homa.Busy(40_999, 2000, 2)))
        transport[13] = 0x10
        send_frame(net, bytes(transport))
        good(net.call("upstream", *TCP, "--size", "64", "--count", "1"), 1)
    answers = [f for f in of_protocol(frames, ipv4.PROTO_TCP) if not shaped(f) and f[47] & RST]
    assert len(answers) == 1
    assert resets(net)[net.b][1] == before[net.b][1] + 1


def send_frame(net: Net, transport: bytes) -> None:
    """One packet from host a to host b."""
    ip = IPv4(address(A), address(B), ipv4.PROTO_TCP, 20 + len(transport)).pack()
    checksum = upstream.tcp_checksum(address(A), address(B), transport)
    summed = transport[:16] + checksum.to_bytes(2, "big") + transport[18:]
    program = ("import socket, sys; s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0); "
               "s.bind((sys.argv[1], 0)); s.send(bytes.fromhex(sys.argv[2]))")
    # The host's TCP takes nothing that was sent to all.
    (link,) = json.loads(run(["ip", "-j", "-n", net.b, "link", "show", IFACE]).stdout)
    ethernet = Ethernet(parse_mac(link["address"]), bytes(6)).pack()
    frame = ethernet + ip + summed
    done = run(["ip", "netns", "exec", net.a, sys.executable, "-c", program, IFACE, frame.hex()])
    assert done.returncode == 0, done.stderr


def test_no_connection_of_the_hosts_gets_our_port(net: Net) -> None:
    program = ("import socket, sys; s = socket.socket(); s.bind((sys.argv[1], int(sys.argv[2])))")
    command = ["ip", "netns", "exec", net.b, sys.executable, "-c", program, B]
    with net.serve("upstream"):
        taken, free = run([*command, "2000"]), run([*command, "2001"])
    assert "Address already in use" in taken.stderr
    assert free.returncode == 0
    # Only as long as we are there, and other profiles leave TCP's ports alone.
    with net.serve("homa"):
        assert run([*command, "2000"]).returncode == 0


def interop(net: Net, *options: str) -> tuple[dict[str, Any], str, int]:
    done = run(["ip", "netns", "exec", net.a, sys.executable, "-m", "workloads", "interop", "--iface", IFACE,
                "--addr", f"{A}:{net.port()}", "--peer", f"{B}:2000", "--json", *options])
    return json.loads(done.stdout) if done.stdout.startswith("{") else {}, done.stderr, done.returncode


def test_the_matrix_of_interop(net: Net) -> None:
    with net.serve("upstream", *PATIENT):
        result, errors, code = interop(net, "--sizes", "1,1425,100000", "--under-way", "1,8", "--loss", "0,5%",
                                       "--count", "8", *PATIENT)
    assert code == 0, errors
    assert result["ok"]
    assert len(result["cells"]) == len(errors.splitlines()) == 2 * 2 * 2 * 3
    assert {(c["answered"], c["failed"], c["wrong"]) for c in result["cells"]} == {(8, 0, 0)}
    lossy = [c["packets_resent"] + c["resends"] for c in result["cells"] if c["loss"]]
    assert sum(lossy) > 0


def test_interop_says_what_fails(net: Net) -> None:
    result, errors, code = interop(net, "--sizes", "64", "--under-way", "1", "--count", "2", "--param",
                                   "timeout_ticks=50")
    assert code == 1
    assert "2 FAILED: RPC to 10.9.0.2:2000: the peer stopped answering" in errors
    assert not result["ok"]
    assert interop(net, "--loss", "100%")[2] == 2
    assert "10.9.0.9 is no address of e0" in interop(net, "--addr", "10.9.0.9:4000")[1]
    assert interop(net, "--profile", "linux")[2] == 2
