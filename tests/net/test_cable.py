"""What an observer of the cable sees: no plaintext, no ICMP, right checksums. Each detector fires once."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from tests.net.drivers import CANARY
from tests.net.netns import IMPATIENT, Net

pytestmark = pytest.mark.root

ICMP, UNREACHABLE, PROTOCOL_UNREACHABLE = 1, 3, 2
OURS = {"smt": 146, "homa": 146, "linux": 253}


def of_protocol(frames: list[bytes], protocol: int) -> list[bytes]:
    return [f for f in frames if f[12:14] == b"\x08\x00" and f[23] == protocol]


def refusals(frames: list[bytes]) -> list[bytes]:
    """ICMP: we do not speak this protocol."""
    return [f for f in of_protocol(frames, ICMP) if f[34:36] == bytes([UNREACHABLE, PROTOCOL_UNREACHABLE])]


@pytest.mark.parametrize("profile", ["smt", "linux", "homa"])
def test_plaintext_is_seen_in_profile_homa_only(net: Net, profile):
    frames: list[bytes] = []
    with ExitStack() as stack:
        server = stack.enter_context(net.serve(profile))
        with net.sniff(frames):
            stack.enter_context(net.start(
                net.a, "tests.net.drivers", "canary", profile, str(net.port()),
                net.keys if profile == "smt" else "demo", ready="done"))
            # It asks for the last acknowledgements, and where no socket is left the kernel answers by ICMP:
            # so the client outlives it.
            server.stop()
    ours = of_protocol(frames, OURS[profile])
    assert len(ours) > 30
    leaks = sum(CANARY[4:12] in f for f in ours)
    assert leaks > 28 if profile == "homa" else leaks == 0
    assert not refusals(frames)


def test_the_kernel_refuses_our_protocols_where_no_socket_is(net: Net):
    """The control of the above: without the guard socket the host does answer by ICMP."""
    frames: list[bytes] = []
    with net.sniff(frames):
        _result, errors, code = net.call("homa", *IMPATIENT)
    assert code == 1, errors
    assert refusals(frames)


@pytest.mark.parametrize("profile", ["smt", "linux"])
def test_scapy_agrees_with_every_frame(net: Net, profile):
    pytest.importorskip("scapy")
    from scapy.layers.inet import IP
    from scapy.layers.l2 import Ether

    frames: list[bytes] = []
    with net.serve(profile, "--nic", "hw"), net.sniff(frames):
        net.call(profile, "--nic", "hw", "--size", "64,20000", "--count", "3", "--warm-up", "0")
    ours = of_protocol(frames, OURS[profile])
    assert len(ours) > 90
    ends = {f[:6] for f in ours}
    assert len(ends) == 2
    for frame in ours:
        packet = Ether(frame)
        assert {frame[:6], frame[6:12]} == ends
        assert packet[IP].len == len(frame) - 14
        del packet[IP].chksum
        assert bytes(packet) == frame
