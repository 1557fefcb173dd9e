"""``smtnet serve echo`` and ``smtnet call echo`` over a cable: every profile, size and way of sealing."""

from __future__ import annotations

import pytest

from smtstack.wire import frame as wire_frame
from smtstack.wire import homa
from tests.net.netns import A, B, Net, run

pytestmark = pytest.mark.root

FIELDS = {"transport", "nic", "size", "rpcs", "errors", "content_ok", "rpc_per_s", "rtt_us", "cpu", "fidelity"}


def check(result, code):
    """Nothing failed. How loaded this machine is, is not the test's business; that it is told, is."""
    assert result.keys() >= FIELDS
    assert result["content_ok"] is True
    assert result["errors"] == 0
    assert code == (0 if result["fidelity"]["ok"] else 4)
    assert bool(result["fidelity"]["reasons"]) is not result["fidelity"]["ok"]
    rtt = result["rtt_us"]
    order = [rtt[name] for name in ("min", "p50", "p90", "p99", "p999", "max")]
    assert order == sorted(order)
    assert 0 < rtt["min"] <= rtt["mean"] <= rtt["max"]


@pytest.mark.parametrize("nic", ["sw", "hw"])
@pytest.mark.parametrize("profile", ["smt", "homa", "linux"])
def test_every_size_and_twenty_at_once(net: Net, profile, nic):
    sizes = [1, 64, 1400, 1500, 9000, 65_536, 1_000_000]
    with net.serve(profile, "--nic", nic) as server:
        several, errors, code = net.call(profile, "--nic", nic, "--size", ",".join(map(str, sizes)),
                                         "--count", "3", "--warm-up", "1")
        for result in several["results"]:
            check(result, 4 if not result["fidelity"]["ok"] else 0)
        assert code in {0, 4}, errors
        assert [r["size"] for r in several["results"]] == sizes
        result, _errors, code = net.call(profile, "--nic", nic, "--size", "5000", "--count", "200",
                                         "--concurrency", "20", "--warm-up", "0")
        check(result, code)
        assert (result["transport"], result["nic"], result["rpcs"]) == (profile, nic, 200)
        served = server.stop()
    assert server.code == 0
    assert served["requests"] == len(sizes) * 4 + 200
    offloaded = served["counters"]["tx_tls_encrypted_packets"]
    assert (offloaded > 0) is (nic == "hw" and profile != "homa")


def test_busy_polling_and_time_limits(net: Net):
    with net.serve("smt", "--poll-us", "50", "--count", "1000000"):
        result, _errors, code = net.call("smt", "--poll-us", "50", "--seconds", "0.3", "--concurrency", "4")
    check(result, code)
    assert 0.3 <= result["cpu"]["wall_s"] < 3
    assert result["rpcs"] > 4


def test_server_ends_after_count_and_answers_with_response_size(net: Net):
    with net.serve("smt", "--count", "12", "--response-size", "3000") as server:
        result, _errors, code = net.call("smt", "--size", "100", "--count", "10", "--warm-up", "2",
                                         "--response-size", "3000")
        check(result, code)
        server.wait()
        assert (server.code, server.stop()["requests"]) == (0, 12)


@pytest.mark.parametrize("gso", ["1500", "10000"])
def test_geometries_of_the_kernel_module(net: Net, gso):
    """One record a packet, or records over several packets told apart by the IP ID."""
    frames: list[bytes] = []
    with net.serve("linux", "--max-gso-size", gso), net.sniff(frames):
        result, _errors, code = net.call("linux", "--max-gso-size", gso, "--size", "20000", "--count", "5",
                                         "--warm-up", "0")
        check(result, code)
    ids = {int.from_bytes(f[18:20], "big") for f in frames if f[12:14] == b"\x08\x00" and f[23] == 253}
    assert ids == ({0} if gso == "1500" else set(range(6)))


@pytest.mark.parametrize("gso", ["1500", "10000"])
def test_geometries_of_the_kernel_module_with_loss(net: Net, gso):
    with net.serve("linux", "--max-gso-size", gso) as server:
        result = net.drive("lossy", str(net.port()), gso, "0.1")
        served = server.stop()
    assert result["good"] == result["rpcs"] == served["requests"]
    assert result["dropped"] > 20
    assert result["packets_resent"] + served["counters"]["packets_resent"] > 0


@pytest.mark.parametrize("profile", ["smt", "linux"])
def test_a_client_that_starts_over_uses_no_nonce_twice(net: Net, profile):
    """Same port, same keys, a new process: its ids must be new to the server, and to whoever watches."""
    frames: list[bytes] = []
    addr = f"{A}:{net.port()}"
    with net.serve(profile), net.sniff(frames):
        for size in ("300", "301"):
            result, _errors, code = net.call(profile, "--addr", addr, "--size", size, "--count", "20")
            check(result, code)
    fmt = homa.FORMATS[profile]
    seen: dict[tuple[int, int], bytes] = {}
    for raw in frames:
        if raw[12:14] == b"\x08\x00" and raw[23] == fmt.protocol:
            ip, packet, payload = wire_frame.parse_untrusted(raw, fmt)
            if isinstance(packet, homa.Data):
                assert seen.setdefault((ip.src, packet.sender_id), payload) == payload
    assert len(seen) >= 2 * 2 * 20


def test_people_get_a_table(net: Net):
    with net.serve("homa"):
        command = [a for a in net.call_command("homa", "--count", "20", "--size", "64,2000") if a != "--json"]
        done = run(["ip", "netns", "exec", net.a, *command])
    lines = done.stdout.splitlines()
    assert f"-> {B}:2000, homa" in lines[0]
    assert [line.split()[0] for line in lines[2:]] == ["64", "2000"]
