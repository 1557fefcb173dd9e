"""Super-frames that leave uncut, for a port that cuts: sealed by the device or by software, or dropped."""

from __future__ import annotations

import pytest

from smtstack.nic.tls_flow import FREEBSD, LINUX, NO_POLICY
from smtstack.wire import tcp
from tests.tls_rig import Stream, make_nic, text


def leaves(policy: str, context: bool) -> tuple[list[bytes], Stream]:
    """(payloads that leave of one super-frame, the stream)."""
    stream = Stream()
    for n in range(3):
        stream.push(text(2000, n))
    nic = make_nic()
    nic.add_flow(stream.flow(policy), context)
    nic.tx.whole = True
    frames = nic.transmit(stream.packet(0, 5000), 1448, marked=True)
    packets = [(frame, tcp.parse_untrusted(frame)) for frame in frames]
    return [frame[packet.payload_at:packet.end] for frame, packet in packets], stream


@pytest.mark.parametrize(("policy", "context"), [(LINUX, True), (LINUX, False), (FREEBSD, True)])
def test_it_is_sealed(policy, context):
    payloads, stream = leaves(policy, context)
    assert payloads == [bytes(stream.sealed[:5000])]


def test_it_is_dropped_where_nobody_seals():
    assert leaves(FREEBSD, False)[0] == []


def test_the_control_leaks():
    payloads, stream = leaves(NO_POLICY, False)
    assert payloads == [bytes(stream.plain[:5000])]
