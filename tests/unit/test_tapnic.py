"""What of a NIC that owns its interface needs no network: queues by mark, the guard's rule, messages, memory,
what becomes of flows, counting."""

from __future__ import annotations

import json
import os
import struct
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.crypto.stream_gcm import AES_128_GCM, CHACHA20_POLY1305, TLS13, StreamKeys, frame_record
from smtstack.errors import ConfigError
from smtstack.io import plaintext_guard
from smtstack.io.ebpf import steering_program
from smtstack.io.memory import map_untrusted, sealed_memory
from smtstack.nic.plaintext import NIC_GROUP, PLAINTEXT_MARK, PLAINTEXT_MASK
from smtstack.nic.record_map import RecordMapWriter, map_bytes
from smtstack.tapnic import messages
from smtstack.tapnic.flows import Flows, KnownFlow
from smtstack.tapnic.nic import TapNic
from smtstack.tapnic.process import NicOptions
from smtstack.wire import tcp

KEYS = StreamKeys(TLS13, AES_128_GCM, bytes(16), bytes(12))
OWN, PEER = 0x0A000001, 0x0A000002
FLOW = tcp.flow_key(OWN, PEER, 4000, 443)
START = 0xFFFF_FF00
PLAIN, OTHER_NIC = 77, 78


def packet(seq: int, payload: bytes, flow: bytes = FLOW) -> bytes:
    """A frame of TCP, its checksum still to be completed."""
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 40 + len(payload), 1, 0x4000, 64, 6, 0) + flow[:8]
    head = flow[8:] + struct.pack("!IIBBHHH", seq & 0xFFFFFFFF, 1, 0x50, tcp.ACK, 100, 0, 0)
    return bytes(12) + b"\x08\0" + ip + head + payload


# -- what the kernel is given ------------------------------------------------------------------------------------


def run_program(program: bytes, mark: int, flow_hash: int) -> int:
    """What an eBPF program of the few instructions that are used here returns."""
    registers = [0] * 11
    at = 0
    fields = {8: mark, 68: flow_hash}
    while True:
        code, pair, offset, constant = struct.unpack_from("=BBhI", program, 8 * at)
        target, source = pair & 15, pair >> 4
        at += 1
        match code:
            case 0x61:
                registers[target] = fields[offset]
            case 0xB4:
                registers[target] = constant
            case 0x54:
                registers[target] &= constant
            case 0x97:
                registers[target] %= constant
            case 0x07:
                registers[target] += constant
            case 0x5D:
                at += offset if registers[target] != registers[source] else 0
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"instruction {code:#x}")


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(1, 64), st.booleans())
def test_marked_packets_have_queues_of_their_own(mark, flow_hash, queues, ours):
    if ours:
        mark = PLAINTEXT_MARK | mark & ~PLAINTEXT_MASK
    marked = mark & PLAINTEXT_MASK == PLAINTEXT_MARK
    assert run_program(steering_program(queues), mark, flow_hash) == flow_hash % queues + (queues if marked else 0)


def test_the_guards_messages_are_whole():
    """Lengths of netlink's messages and of their attributes add up; mark and group are in the rule."""
    batch = plaintext_guard.rule_batch()
    kinds = []
    while batch:
        length, kind = struct.unpack_from("=IH", batch)
        kinds.append(kind)
        at = 20
        while at < length:
            size, = struct.unpack_from("=H", batch, at)
            assert 4 <= size <= length - at
            at += size + 3 & ~3
        assert at == length
        rule = kind == 10 << 8 | 6
        assert batch[:length].count(struct.pack("=I", PLAINTEXT_MARK)) == rule
        assert batch[:length].count(struct.pack("=I", NIC_GROUP)) == rule
        batch = batch[length:]
    assert kinds == [0x10, 10 << 8, 10 << 8 | 3, 10 << 8 | 6, 0x11]


def test_memory_that_may_shrink_is_not_mapped():
    descriptor, memory = sealed_memory("test", 4096)
    with memory, map_untrusted(descriptor, 4096) as seen:
        memory[:3] = b"abc"
        assert seen[:3] == b"abc"
    with pytest.raises(ConfigError):
        map_untrusted(descriptor, 4095)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)
    descriptor = os.memfd_create("loose", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, 4096)
    with pytest.raises(ConfigError):
        map_untrusted(descriptor, 4096)
    os.close(descriptor)
    reader, writer = os.pipe()
    with pytest.raises(ConfigError):
        map_untrusted(reader, 4096)
    os.close(reader)
    os.close(writer)


# -- messages ----------------------------------------------------------------------------------------------------


def test_keys_pass_as_they_are():
    fields = messages.read_untrusted(messages.tx_request(FLOW, KEYS, "linux", "dump", True))
    assert messages.keys_untrusted(fields) == KEYS
    assert fields["do"] == messages.TX


@given(st.one_of(st.binary(max_size=60), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(("do", "flow", "version", "cipher", "key", "iv", "x")), inner, max_size=6),
    max_leaves=8).map(lambda value: json.dumps(value).encode())))
def test_other_messages_raise_one_error(message):
    try:
        messages.keys_untrusted(messages.read_untrusted(message))
    except ConfigError:
        return
    raise AssertionError("it was taken")


# -- flows -------------------------------------------------------------------------------------------------------


class Kernel:
    """The kernel's side of :class:`Flows`, as a test says."""

    def __init__(self) -> None:
        self.news = SimpleNamespace(fileno=lambda: 0)
        self.waiting: int | None = 0
        self.flags = 1
        self.index = 5
        self.hooked = False
        self.aborted: list[tuple[int, ...]] = []

    def unacknowledged(self, *_connection: int) -> int | None:
        return self.waiting

    def abort(self, *connection: int) -> bool:
        self.aborted.append(connection)
        return True

    def take_news(self) -> bool:
        return True

    def link(self, index: int) -> tuple[int, int]:
        return self.flags, 0 if index == PLAIN else NIC_GROUP

    def has_hooks(self, _index: int) -> bool:
        return self.hooked

    def way_out(self, _own: int, _peer: int, _mark: int) -> int:
        return self.index

    def close(self) -> None:
        """There is nothing."""


class Nic:
    """A NIC's flows, with applications' requests."""

    def __init__(self, number: int = 5, kernel: Kernel | None = None) -> None:
        self.kernel = kernel or Kernel()
        self.device = TapNic(number, 1500, super_frames=False)
        made: Any = self.kernel
        self.flows = Flows(self.device, number, None, made, made)
        self.flows.routes_changed()

    def begin(self, descriptor: int, keys: StreamKeys = KEYS, flow: bytes = FLOW, policy: str = "linux",
              context: bool = True) -> tuple[KnownFlow | None, dict[str, Any]]:
        fields = messages.read_untrusted(messages.tx_request(flow, keys, policy, "dump", context))
        known, answer = self.flows.begin(fields, map_untrusted(descriptor, 1 << 20))
        return known, json.loads(answer)

    def sends(self, seq: int, payload: bytes) -> list[bytes]:
        """What becomes of a marked packet."""
        return [tcp_payload(frame) for frame in self.device.segment(packet(seq, payload), 0)]


def tcp_payload(frame: bytes) -> bytes:
    return frame[tcp.parse_untrusted(frame).payload_at:]


@pytest.fixture
def shared():
    descriptor, memory = sealed_memory("test records", map_bytes(1 << 16, 64))
    records = RecordMapWriter(memoryview(memory), START, 0, 64)
    yield descriptor, records
    records.close()
    memory.close()
    os.close(descriptor)


def test_a_flow_stays_until_nothing_of_it_can_be_sent(shared):
    descriptor, records = shared
    nic = Nic()
    known, answer = nic.begin(descriptor)
    assert known is not None
    assert (answer["context"], answer["number"], records.owner) == (True, 5, 5)
    record = bytes(records.append(START, frame_record(KEYS, 23, b"secret" * 100)))
    first = nic.sends(START, record)
    assert len(first[0]) == len(record)
    assert first != [record]
    nic.kernel.waiting = len(record)
    nic.flows.end(known)
    nic.flows.tend()
    assert nic.sends(START, record) == first
    # While that is so, other keys are not for this connection.
    assert nic.begin(descriptor)[1]["busy"]
    nic.kernel.waiting = None
    nic.flows.tend()
    assert nic.device.tls.contexts() == nic.device.tls.flows() == 0
    assert nic.sends(START, record) == []
    assert nic.begin(descriptor)[1]["context"]


def test_one_connection_has_one_offload(shared):
    nic = Nic()
    nic.begin(shared[0])
    with pytest.raises(ConfigError, match="already"):
        nic.begin(shared[0])


def test_refusals_say_why(shared):
    nic = Nic()
    nic.device.context_limit = 0
    assert nic.begin(shared[0])[1]["full"]
    nic = Nic()
    answer = nic.begin(shared[0], StreamKeys(TLS13, CHACHA20_POLY1305, bytes(32), bytes(12)))[1]
    assert (answer["context"], answer["full"]) == (False, False)
    nic = Nic()
    nic.device.set_feature("tls-hw-tx-offload", False)
    assert not nic.begin(shared[0])[1]["context"]
    with pytest.raises(ConfigError):
        nic.begin(shared[0], policy="hope")


def test_a_context_goes_when_no_plaintext_is_under_way(shared):
    descriptor, records = shared
    nic = Nic()
    known, _answer = nic.begin(descriptor)
    assert known is not None
    framed = frame_record(KEYS, 23, b"x" * 100)
    records.append(START, framed)
    assert json.loads(nic.flows.context(known, False))["context"]
    records.append_sealed(START + len(framed), 50)
    nic.flows.tend()
    assert records.owner == 5
    records.release(START + len(framed) & 0xFFFFFFFF)
    nic.flows.tend()
    assert (records.owner, nic.device.tls.contexts()) == (0, 0)
    assert json.loads(nic.flows.context(known, True))["context"]
    assert records.owner == 5


def test_a_lower_limit_takes_contexts_away(shared):
    nic = Nic()
    nic.begin(shared[0])
    nic.device.context_limit = 0
    nic.flows.tend()
    assert (shared[1].owner, nic.device.tls.contexts()) == (0, 0)


def test_a_flow_of_freebsd_gets_a_context_where_it_goes_now(shared):
    descriptor, records = shared
    here, there = Nic(5), Nic(OTHER_NIC)
    here.begin(descriptor, policy="freebsd")
    there.begin(descriptor, policy="freebsd", context=False)
    record = bytes(records.append(START, frame_record(KEYS, 23, b"y" * 900)))
    assert there.sends(START, record) == []
    assert records.reset_pending
    there.flows.tend()
    assert (records.owner, records.reset_pending, there.device.counters.ifnet_reset) == (OTHER_NIC, False, 1)
    here.flows.tend()
    assert here.device.tls.contexts() == 0
    (sealed,) = there.sends(START, record)
    assert sealed != record
    # The same flow, back again, while the other NIC has no room left.
    here.device.context_limit = 0
    assert here.sends(START, record) == []
    here.flows.tend()
    assert records.aborted
    assert here.kernel.aborted == [(OWN, 4000, PEER, 443)]
    assert there.sends(START, record) == []


@pytest.mark.parametrize(("policy", "index", "ends"), [
    ("freebsd", PLAIN, True), ("freebsd", OTHER_NIC, False), ("freebsd", 0, False), ("freebsd", 5, False),
    ("linux", PLAIN, False)])
def test_a_route_to_where_no_nic_is_ends_a_connection_of_freebsd(shared, policy, index, ends):
    nic = Nic()
    nic.begin(shared[0], policy=policy)
    nic.kernel.index = index
    nic.flows.routes_changed()
    assert shared[1].aborted == ends == bool(nic.kernel.aborted)


def test_a_device_that_goes_down_leaves_its_flows_to_software(shared):
    descriptor, records = shared
    nic = Nic()
    nic.begin(descriptor)
    record = bytes(records.append(START, frame_record(KEYS, 23, b"z" * 900)))
    by_device = nic.sends(START, record)
    nic.kernel.flags = 0
    nic.flows.routes_changed()
    nic.kernel.flags = 1
    nic.flows.routes_changed()
    assert records.owner == 0
    assert nic.sends(START, record) == by_device
    assert nic.device.counters.tx_tls_fallback == 1


def test_where_packets_may_be_mirrored_nothing_is_in_clear(shared):
    descriptor, records = shared
    nic = Nic()
    nic.begin(descriptor)
    record = bytes(records.append(START, frame_record(KEYS, 23, b"m" * 900)))
    assert nic.sends(START, record)
    nic.kernel.hooked = True
    nic.flows.routes_changed()
    # Plaintext is under way.
    assert records.aborted
    assert nic.kernel.aborted == [(OWN, 4000, PEER, 443)]
    assert nic.sends(START, record) == []
    other = tcp.flow_key(OWN, PEER, 4001, 443)
    assert nic.begin(descriptor, flow=other)[1]["hooked"]
    nic.kernel.hooked = False
    nic.flows.routes_changed()
    assert nic.begin(descriptor, flow=tcp.flow_key(OWN, PEER, 4002, 443))[1]["context"]


# -- the device --------------------------------------------------------------------------------------------------


@given(st.integers(1, 30_000), st.integers(500, 1460))
def test_a_segment_counts_as_the_packets_that_the_port_makes_of_it(size, cut):
    frame = packet(1, bytes(size))
    counted = []
    for way in (lambda nic: nic.passed(memoryview(frame), cut if size > cut else 0),
                lambda nic: nic.packets(frame, cut if size > cut else 0, True, 34, 16, False)):
        nic = TapNic(1, 1500, super_frames=False)
        way(nic)
        counted.append({n: v for n, v in nic.counters.snapshot().items() if v})
    assert counted[0] == counted[1]


def test_features_are_those_of_such_a_nic():
    nic = TapNic(1, 1500, super_frames=False)
    assert nic.features() == {"tso": True, "tls-hw-tx-offload": True, "rx-checksum": True,
                              "tls-hw-rx-offload": True}
    nic.set_feature("tls-hw-rx-offload", False)
    nic.set_feature("tso", False)
    assert not nic.features()["tls-hw-rx-offload"]
    assert not nic.tso


def test_options_pass_by_the_command_line():
    options = NicOptions("h1-eth0", 7, "n-h1-eth0", "020000000001", 9000, 2, True)
    assert NicOptions(**json.loads(options.pack())) == options


@given(st.integers(1, 30_000), st.integers(500, 1460))
def test_what_the_port_has_put_together_counts_as_the_packets_it_was(size, cut):
    frame = packet(1, bytes(size))
    sent, whole, looked_into = (TapNic(1, 1500, super_frames=False) for _ in range(3))
    sent.packets(frame, cut if size > cut else 0, True, 34, 16, False)
    whole.arrived(memoryview(frame), cut if size > cut else 0)
    looked_into.receive(frame, True, cut if size > cut else 0)
    assert whole.counters.rx_packets == sent.counters.tx_packets
    assert whole.counters.rx_bytes == sent.counters.tx_bytes
    assert whole.counters.snapshot() == looked_into.counters.snapshot()
