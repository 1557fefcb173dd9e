"""UDP/IP behind rings in memory: copied out, or parsed where it lies; what is not in the region is never seen."""

from __future__ import annotations

import random

import pytest

from smtstack.rings.host import MemoryHost, memory_for, share
from smtstack.rings.layout import ENTRIES_AT, HEADROOM, RX, UMEM, RingConfig
from smtstack.rings.xsk import CertifiedXsk
from smtstack.udp.stack import UdpStack
from tests.unit.test_udp import ONE, PORT, TWO, end

CONFIG = RingConfig(frames=64, frame_size=2048, entries=16)


class Rig:
    """A socket, its honest host, and a stack of UDP behind it."""

    def __init__(self, certified: bool = True) -> None:
        self.buffers = memory_for(CONFIG)
        self.xsk = CertifiedXsk(share(self.buffers), CONFIG, certified)
        self.host = MemoryHost(share(self.buffers), CONFIG)
        self.stack: UdpStack = end(TWO)

    def take(self, in_place: bool) -> list[bytes]:
        def use(frame: bytes | memoryview) -> bytes | None:
            got = self.stack.receive(frame, 0)
            return None if got is None else got.data

        found = self.xsk.receive_in_place(16, use) if in_place else [use(frame) for frame in self.xsk.receive(16)]
        return [data for data in found if data is not None]


@pytest.mark.parametrize("in_place", [False, True])
def test_datagrams_and_fragments_come_through_a_ring(in_place):
    rig, one = Rig(), end(ONE)
    sent = [random.Random(n).randbytes(n) for n in (0, 1, 3, 1460, 4001)]
    for data in sent:
        rig.host.deliver(one.send(TWO, PORT, data))
    got = rig.take(in_place)
    assert got == sent
    # Nothing points into the host's memory any more, which it may change, and all frames are where they belong.
    rig.buffers[UMEM][:] = bytes(len(rig.buffers[UMEM]))
    assert got == sent
    assert rig.xsk.counters()["xsk_rx_invalid_frame"] == 0
    assert rig.stack.reassembly.taken == 0


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("address", "length"), [
    (CONFIG.umem_bytes, 60), (CONFIG.umem_bytes - 10, 60), (HEADROOM, 4096), (HEADROOM, 0), ((1 << 64) - 8, 60),
    (50 * 2048, 60)])
def test_what_is_not_in_the_region_or_not_the_hosts_is_never_looked_at(in_place, address, length):
    seen = []
    for certified in (True, False):
        rig = Rig(certified)
        rig.host.deliver(end(ONE).send(TWO, PORT, b"honest"))
        rig.host.memories[RX].put_descriptor(ENTRIES_AT, address, length)
        looked: list[int] = []
        rig.xsk._umem.watcher = type("W", (), {"accessed": staticmethod(
            lambda _name, _write, start, stop, looked=looked: looked.append(stop - start))})()
        try:
            assert not rig.take(in_place) or not certified
        except IndexError:
            looked.append(-1)
        seen.append(looked)
        assert rig.xsk.counters()["xsk_rx_invalid_frame"] == certified
    # The control: who believes the host looks there.
    assert seen[0] == []
    assert seen[1] != []


def test_a_packet_that_changes_while_it_is_parsed_is_bad_or_as_it_was():
    """In place the host may write meanwhile: the checksum is of the bytes, which are copied afterwards. What it
    gains is a datagram that it could have sent itself; what it does not gain is one of other ends or lengths."""
    rig, draw = Rig(), random.Random(5)
    for _round in range(200):
        rig.host.deliver(end(ONE).send(TWO, PORT, bytes(100)))
        at = draw.randrange(42, 142)

        def use(frame: memoryview, at: int = at) -> int:
            got = rig.stack.receive(frame, 0)
            rig.buffers[UMEM][at] ^= 1
            return -1 if got is None else len(got.data)

        assert set(rig.xsk.receive_in_place(16, use)) <= {-1, 100}
        rig.xsk.refill()
