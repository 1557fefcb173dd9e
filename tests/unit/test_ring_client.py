"""A guarded process asks for its ring, of a host that says what it likes; and what it does with a good one."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.io.memory import sealed_memory
from smtstack.io.xdp import EXPECTED_OFFSETS
from smtstack.nic.device import NicConfig, SmartNic
from smtstack.ringnic import messages
from smtstack.ringnic.bell import GUARDED_SLEEPS, SIZE, Bell
from smtstack.ringnic.client import has_ring, open_ring
from smtstack.rings.host import MemoryHost
from smtstack.rings.layout import RINGS, UMEM, RingConfig
from smtstack.rings.memory import SharedMemory
from smtstack.socket import SmtContext

CONFIG = RingConfig()
NAME = f"t{os.getpid()}"


class Host:
    """A control process for one guest, in a thread: an honest answer, but for what ``change`` does to it."""

    def __init__(self, change: Callable[[dict[str, Any], list[int]], None]) -> None:
        self._change = change
        where, size = messages.places(CONFIG)
        rings, self.rings = sealed_memory("rings", size)
        umem, self.umem = sealed_memory("umem", CONFIG.umem_bytes)
        page, mapping = sealed_memory("page", SIZE)
        self.page = Bell(mapping)
        self.bell, self.question = (os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2))
        self.life, self.alive = os.pipe2(os.O_NONBLOCK)
        self.descriptors = [rings, umem, page, self.bell, self.question, self.life]
        self.answer: dict[str, Any] = {
            "mac": "020000000001", "frame_size": CONFIG.frame_size, "backing": messages.MEMORY,
            "rings": [{"name": ring, "entries": CONFIG.ring_entries(ring), "length": CONFIG.ring_bytes(ring),
                       **EXPECTED_OFFSETS} for ring in RINGS]}
        view = memoryview(self.rings)
        memories = {ring: SharedMemory(ring, view[at:at + CONFIG.ring_bytes(ring)]) for ring, at in where.items()}
        self.host = MemoryHost({UMEM: SharedMemory(UMEM, self.umem), **memories}, CONFIG)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(messages.address(NAME))
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        connection, _address = self._listener.accept()
        with connection:
            self.opening = messages.Opening.read_untrusted(connection.recv(messages.LONGEST))
            self._change(self.answer, self.descriptors)
            socket.send_fds(connection, [json.dumps(self.answer).encode()], self.descriptors)
            connection.recv(1)

    def close(self) -> None:
        self._thread.join()
        self._listener.close()
        for descriptor in {*self.descriptors, self.alive} - {-1}:
            os.close(descriptor)


Change = Callable[[dict[str, Any], list[int]], None]


@contextmanager
def host(change: Change = lambda _answer, _descriptors: None) -> Iterator[Host]:
    made = Host(change)
    try:
        yield made
    finally:
        made.close()


def test_frames_go_both_ways_and_neighbours_are_asked_for():
    with host() as control:
        ring = open_ring(NAME, 1, 2, 146)
        assert control.opening == messages.Opening(1, 2, 146)
        assert ring.mac == bytes.fromhex("020000000001")
        ring.send([b"one", b"two"])
        assert control.host.collect() == [b"one", b"two"]
        control.host.deliver([b"three"])
        assert ring.receive(10) == [b"three"]
        # Where the monitor does not sleep nobody is woken.
        assert ring.more_counters()["ring_bells"] == 0

        def answer() -> None:
            while (asked := control.page.question()) is None:
                time.sleep(0.001)
            control.page.answer(asked.to_bytes(6, "big"))

        thread = threading.Thread(target=answer)
        thread.start()
        assert ring.neighbour(0x0A000001) == bytes.fromhex("00000a000001")
        thread.join()
        ring.close()


def test_sleep_ends_when_it_is_woken_and_not_before_what_came_was_seen():
    with host() as control:
        ring = open_ring(NAME, 1, 2, 146)

        def wake() -> None:
            while not control.page.words[GUARDED_SLEEPS]:
                time.sleep(0.001)
            control.host.deliver([b"packet"])
            control.page.wake()

        thread = threading.Thread(target=wake)
        thread.start()
        ring.wait(20_000_000_000)
        assert ring.receive(1) == [b"packet"]
        thread.join()
        control.host.deliver([b"there already"])
        ring.wait(20_000_000_000)
        assert ring.more_counters()["ring_sleeps"] == 1
        ring.close()


def test_a_host_that_is_gone_is_an_error():
    with host() as control:
        ring = open_ring(NAME, 1, 2, 146)
        ring.clear_error()
        os.close(control.alive)
        control.alive = -1
        with pytest.raises(Unsupported, match=r"the ring of .* is dead"):
            ring.clear_error()
        ring.close()


def _set(name: str, value: object) -> Change:
    return lambda answer, _descriptors: answer.update({name: value})


def _of_ring(name: str, value: object) -> Change:
    return lambda answer, _descriptors: answer["rings"][2].update({name: value})


def _few(_answer: dict[str, Any], descriptors: list[int]) -> None:
    os.close(descriptors.pop())


def _may_shrink(_answer: dict[str, Any], descriptors: list[int]) -> None:
    os.close(descriptors[1])
    descriptors[1] = os.memfd_create("shrinks")
    os.ftruncate(descriptors[1], CONFIG.umem_bytes)


def _short(_answer: dict[str, Any], descriptors: list[int]) -> None:
    os.close(descriptors[0])
    descriptors[0], _mapping = sealed_memory("short", 4096)


@pytest.mark.parametrize("change", [
    _set("rings", None), _set("rings", []), _set("rings", [{}]), _set("rings", 7), _set("mac", "02"),
    _set("mac", None), _set("frame_size", 4096), _set("frame_size", "x"), _set("frame_size", 1e400),
    _set("backing", messages.KERNEL), _of_ring("entries", 4096), _of_ring("entries", -1),
    _of_ring("length", 1 << 40), _of_ring("producer", 4), _of_ring("consumer", 0), _of_ring("flags", None),
    _of_ring("descriptors", 1 << 70), _of_ring("name", "tx"), _of_ring("name", "others"), _few, _may_shrink,
    _short,
    _set("error", "no"), _set("error", {"no": 1}),
], ids=lambda change: getattr(change, "__name__", ""))
def test_what_a_host_may_not_say_is_one_error(change: Change):
    before = set(os.listdir("/proc/self/fd"))
    with host(change), pytest.raises(SmtError):
        open_ring(NAME, 1, 2, 146)
    # Nothing of it is kept.
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1


def test_where_there_is_no_host():
    assert not has_ring("none0")
    with pytest.raises(Unsupported, match="none0 has no ring"):
        open_ring("none0", 1, 2, 146)


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"ip": 1, "port": 65536, "protocol": 1}',
                                  b'{"ip": "1", "port": 1, "protocol": 1}',
                                  b'{"ip": -1, "port": 1, "protocol": 1}'])
def test_what_is_no_opening(data: bytes):
    with pytest.raises(ConfigError):
        messages.Opening.read_untrusted(data)


@pytest.mark.parametrize(("context", "why"), [
    (SmtContext("x", hosting="rings"), "unknown hosting 'rings'"),
    (SmtContext("x", hosting="ring", nic=NicConfig(tls_hw_tx_offload=True)), "take --nic sw"),
    (SmtContext("x", hosting="ring", overlay="tcp"), "no overlay tcp"),
    (SmtContext("x", "upstream", hosting="ring"), "no profile upstream"),
    (SmtContext("x", hosting="ring", dns=("10.0.0.3", 53)), "asks DNS"),
])
def test_what_cannot_go_by_a_ring(context: SmtContext, why: str):
    with pytest.raises(ConfigError, match=why):
        _ = context.has_ring


def test_a_nic_that_is_not_trusted_never_has_tls_offload():
    with pytest.raises(ConfigError, match="not trusted"):
        SmartNic(NicConfig(tls_hw_tx_offload=True, trusted=False))
    nic, other = SmartNic(NicConfig(trusted=False)), SmartNic(NicConfig())
    for device in (nic, other):
        device.set_feature("tls-hw-tx-offload", True)
        device.set_feature("tso", False)
    assert [nic.features()["tls-hw-tx-offload"], nic.tso, nic.counters.tx_tls_refused] == [False, False, 1]
    assert nic.create_context(0x303, bytes(16), bytes(4), 0) == 0
    # The control: one that is trusted does as it is told.
    assert other.features()["tls-hw-tx-offload"]
    assert other.create_context(0x303, bytes(16), bytes(4), 0) != 0
