"""The device half of TLS transmit offload, by descriptors; no nonce serves twice, whatever is written anew."""

from __future__ import annotations

from random import Random

import pytest

from smtstack.crypto.stream_gcm import TLS12, TLS13, open_record_untrusted
from smtstack.errors import AuthError, ConfigError
from smtstack.nic.tls_descriptors import (
    Dump,
    Failed,
    Fence,
    GetProgress,
    Progress,
    SetProgress,
    SetStatic,
    TcpSend,
)
from smtstack.nic.tls_flow import RxFlow, TxFlow
from smtstack.wire import tcp
from tests.tls_rig import (
    FLOW,
    KINDS,
    Stream,
    Wire,
    make_keys,
    make_nic,
    offloaded,
    send_all,
    tcp_frame,
    text,
)

# -- nonces, and what the application changes ---------------------------------------------------------------


def nonces_of(stream: Stream, packets: list[tuple[int, bytes]]) -> dict[bytes, set[bytes]]:
    """By nonce, what was sent under it, of every copy of every whole record that can be put together."""
    found: dict[bytes, set[bytes]] = {}
    ends = [*stream.starts[1:], len(stream.plain)]
    for n, (start, end) in enumerate(zip(stream.starts, ends, strict=True)):
        variants: dict[int, set[int]] = {}
        for at, payload in packets:
            for place in range(max(at, start), min(at + len(payload), end)):
                variants.setdefault(place, set()).add(payload[place - at])
        nonce = stream.keys.nonce(stream.number + n, bytes(stream.plain[start:start + stream.keys.header_len]))
        for place, values in variants.items():
            found.setdefault(nonce + place.to_bytes(4, "big"), set()).update(bytes((v,)) for v in values)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_no_nonce_serves_twice(kind):
    """Every byte of every copy, by device, by software, by another NIC: one value for each place under a nonce."""
    rng = Random(3)
    stream = Stream(make_keys(*kind))
    for n in range(5):
        stream.push(text(2000, n))
    nics = [make_nic(1), make_nic(2)]
    wire = Wire(stream)
    flow = stream.flow()
    for turn in range(60):
        if turn % 10 == 0:
            with_context = turn // 10 % 2
            nics[1 - with_context].add_flow(flow, context=False)
            nics[with_context].add_flow(flow)
        at = rng.randrange(len(stream.plain))
        size = min(rng.randint(1, 2500), len(stream.plain) - at)
        wire.take(rng.choice(nics).transmit(stream.packet(at, size), 536, True, 34, 16, marked=True))
    assert all(len(values) == 1 for values in nonces_of(stream, wire.packets).values())
    assert min(nic.counters.tx_tls_ooo for nic in nics) > 3
    assert min(nic.counters.tx_tls_fallback for nic in nics) > 3
    # The control: other plaintext under a nonce that was used is noticed.
    for n in range(100):
        stream.plain[stream.starts[1] + n + 100] ^= 1
    wire.take(nics[0].transmit(stream.packet(stream.starts[1], 300), marked=True))
    assert any(len(values) == 2 for values in nonces_of(stream, wire.packets).values())


@pytest.mark.parametrize("version", [TLS12, TLS13])
def test_a_file_that_changes_between_two_transmissions(version):
    """Zero-copy sendfile: TCP sends again what the file holds now. The tag is not of that, so it is noticed."""
    stream = Stream(make_keys(version))
    for n in range(2):
        stream.push(text(2000, n))
    nic, wire = offloaded(stream)
    send_all(stream, nic, wire, 500)
    genuine = wire.received()
    size = stream.starts[1]
    # 500 to 1000 was lost, and the file is changed meanwhile.
    stream.plain[600:700] = b"changed" * 14 + b"ch"
    wire.take(nic.transmit(stream.packet(500, 500), marked=True))
    again = wire.packets[-1][1]
    got = genuine[:500] + again + genuine[1000:]
    assert got != genuine
    with pytest.raises(AuthError):
        open_record_untrusted(stream.keys, 0, got[:size])
    # What was sent before, and every other record, is right.
    assert open_record_untrusted(stream.keys, 0, genuine[:size])[1] == text(2000, 0)
    assert open_record_untrusted(stream.keys, 1, got[size:])[1] == text(2000, 1)


# -- the device, at the level of descriptors ----------------------------------------------------------------


def device_with_context(version=TLS13, number=5):
    stream = Stream(make_keys(version), start=0, number=number)
    for n in range(2):
        stream.push(text(100, n))
    device = make_nic().tx
    context = device.create_context()
    device.post(0, SetStatic(context, stream.keys, number))
    device.post(0, SetProgress(context, 0))
    device.post(0, Fence())
    return stream, device, context


def send(stream: Stream, device, context: int, at: int, size: int) -> list[bytes]:
    frame = stream.packet(at, size)
    packet = tcp.parse_untrusted(frame)
    device.post(0, TcpSend(frame, packet, frame[packet.payload_at:], 0, context))
    return [f[54:] for f in device.process(0)]


def test_what_is_set_counts_from_the_next_fence_on():
    stream, device, context = device_with_context()
    assert send(stream, device, context, 0, 50) == [stream.sealed[:50]]
    device.post(0, SetProgress(context, stream.starts[1]))
    # Without a fence it goes on where it was, so what was meant for the new place is refused.
    assert send(stream, device, context, stream.starts[1], 20) == []
    assert isinstance(device.completions[-1], Failed)
    device.post(0, Fence())
    assert send(stream, device, context, 0, 50) == []


def test_a_device_that_was_not_told_refuses_rather_than_reuse_a_nonce():
    stream, device, context = device_with_context()
    assert send(stream, device, context, 0, 122) == [stream.sealed[:122]]
    assert send(stream, device, context, 0, 122) == []
    assert send(stream, device, context, 122, 22) == [stream.sealed[122:144]]


def test_a_stale_counter_of_tls_1_2_spoils_the_tag_only():
    """The record brings its nonce, the device the number: ciphertext right, tag wrong (SMT paper, Fig. 2)."""
    stream, device, context = device_with_context(TLS12)
    size = stream.starts[1]
    (first,) = send(stream, device, context, 0, size)
    assert first == stream.sealed[:size]
    (again,) = send(stream, device, context, 0, size)
    assert again[:-16] == stream.sealed[:size - 16]
    assert again[-16:] != stream.sealed[size - 16:size]
    # Inside of a record it would be other bytes under the same key stream.
    send(stream, device, context, 0, 50)
    assert send(stream, device, context, 20, 30) == []


def test_bytes_that_are_no_record_are_not_sent():
    stream, device, context = device_with_context()
    device.post(0, SetProgress(context, 50))
    device.post(0, Fence())
    assert send(stream, device, context, 50, 60) == []
    assert send(stream, device, context, 110, 5) == []
    # Gone: nothing of it leaves in clear.
    device.destroy_context(context)
    assert send(stream, device, context, 0, 50) == []
    assert [type(c) for c in device.completions] == [Failed] * 3


def test_progress_is_told():
    stream, device, context = device_with_context()
    device.process(0)
    for what in (Dump(context, bytes(stream.plain[:30])), GetProgress(context)):
        device.post(0, what)
    device.process(0)
    told = device.completions[-1]
    assert isinstance(told, Progress)
    assert (told.seq, told.number, told.tracker, told.authenticates) == (30, 5, "tracking", True)


def test_keys_and_number_are_posted_only_if_the_number_changed():
    """A second retransmission of the same record: progress and fence alone."""
    stream = Stream()
    for n in range(2):
        stream.push(text(1000, n))
    nic, wire = offloaded(stream)
    driver = nic._driver

    def posted(at: int) -> list[str]:
        frame = stream.packet(at, 100)
        assert driver.transmit(0, frame, tcp.parse_untrusted(frame), 0, marked=True)
        names = [type(d).__name__ for d in nic.tx._rings[0]]
        wire.take(nic.tx.process(0))
        return names

    assert posted(0) == ["SetStatic", "SetProgress", "Fence", "TcpSend"]
    assert posted(300) == ["SetProgress", "Fence", "Dump", "TcpSend"]
    assert posted(1100) == ["SetStatic", "SetProgress", "Fence", "Dump", "TcpSend"]
    assert posted(1200) == ["TcpSend"]
    assert posted(1100) == ["SetProgress", "Fence", "Dump", "TcpSend"]
    assert not wire.wrong


def test_a_ring_without_room():
    """A packet that needs more descriptors than there are waits; nothing of it is posted."""
    stream = Stream()
    stream.push(text(16384))
    nic, wire = offloaded(stream, ring_size=64)
    send_all(stream, nic, wire, 1000)
    frame = stream.packet(9000, 1000)
    packet = tcp.parse_untrusted(frame)
    posted = 0
    while nic._driver.transmit(0, frame, packet, 0, marked=True):
        posted += 1
    assert nic.counters.tx_queue_stopped == 1
    assert posted > 3
    wire.take(nic.tx.process(0))
    nic._driver.completed()
    # Each is a resync of its own, and each was right.
    assert nic.counters.tx_tls_ooo == posted
    assert nic.counters.tx_tls_dump_bytes == 9000 * posted
    assert not wire.wrong
    again = [payload for at, payload in wire.packets if at == 9000]
    assert again == [bytes(stream.sealed[9000:10000])] * (posted + 1)


def test_no_key_is_left():
    """10,000 flows come and go: nothing of them stays."""
    nic = make_nic()
    stream = Stream(room=1000, records=2)
    stream.push(text(100))
    for n in range(10_000):
        flow = TxFlow(n.to_bytes(12, "big"), stream.keys, stream.buffer)
        assert nic.add_flow(flow)
        nic.transmit(tcp_frame(stream.start, bytes(stream.plain), flow=flow.flow), marked=True)
        nic.remove_flow(flow)
    assert nic.flows() == nic.contexts() == 0
    assert nic.counters.tx_tls_ctx == nic.counters.tx_tls_del == 10_000
    assert stream.map.owner == 0
    assert nic.tx.process(0) == []
    # No view of the buffer is left, so it can be resized.
    stream.map.close()
    stream.buffer.append(0)


def test_words_that_are_none():
    stream = Stream()
    with pytest.raises(ConfigError, match="policy is 'darwin'"):
        stream.flow("darwin")
    with pytest.raises(ConfigError, match="resync is 'never'"):
        stream.flow(resync="never")
    with pytest.raises(ConfigError, match="12 bytes"):
        TxFlow(FLOW[1:], stream.keys, stream.buffer)
    for seq, number in ((-1, 0), (1 << 32, 0), (0, -1), (0, 1 << 64)):
        with pytest.raises(ConfigError, match="32 bits"):
            RxFlow(FLOW, stream.keys, stream.buffer, seq, number)
    nic = make_nic()
    with pytest.raises(ConfigError, match="no record map"):
        nic.add_flow(TxFlow(FLOW, stream.keys, bytearray(5000)))
    assert nic.flows() == 0
