"""A power cut at every byte, torn writes, lost caches, full disks, errors: what was acknowledged is there, whole.

``SMTNET_STORAGE=full`` cuts at every single byte, in every mode; by default at some hundred of them.
"""

from __future__ import annotations

import errno
import os
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.errors import AuthError
from smtstack.storage.device import SECTOR
from smtstack.storage.faults import PowerCutError
from smtstack.storage.layout import JOURNAL
from tests.disks import ALL, Disk, contents, pattern

FULL = os.environ.get("SMTNET_STORAGE") == "full"
STRIDE = 1 if FULL else 1021
MODES = ALL if FULL else [("plain", "none"), ("xts", "none"), ("xts+hmac", "counter"), ("aead", "sealed")]


def cuts(total):
    """Bytes at which to cut: around every boundary of a sector, and every STRIDE-th."""
    around = {at + step for at in range(0, total + 1, SECTOR) for step in (-1, 0, 1)}
    return sorted((around | set(range(0, total, STRIDE)) | {total}) & set(range(total + 1)))


def state(device):
    return contents(device), device.length


@pytest.mark.parametrize(("mode", "freshness"), MODES)
def test_a_cut_at_every_byte_of_a_commit_leaves_all_or_none_of_it(mode, freshness):
    disk = Disk(mode, freshness, sectors=12, journal=16)
    device = disk.open()
    for i in range(6):
        device.write(2 * i, pattern(i))
    device.length = 1
    device.flush()
    saved, before = disk.save(), state(device)
    outcomes = set()

    def commit():
        device = disk.open()
        base = disk.supply.written
        device.write(1, pattern(100))
        device.write(4, pattern(101) + pattern(102))
        device.length = 2
        yield device, base
        device.flush()
        yield device, base

    for device, start in commit():
        after, base = state(device), start
    total = disk.supply.written - base
    assert total > 4 * SECTOR
    for cut in cuts(total):
        disk.load(saved)
        steps = commit()
        next(steps)
        disk.supply.cut_after(cut)
        acknowledged = True
        try:
            next(steps)
        except PowerCutError:
            acknowledged = False
        if cut % 2:
            disk.disk.lose(Random(cut))
            disk.trusted_disk.lose(Random(cut))
        disk.supply.restore()
        found = state(disk.open())
        assert found == after if acknowledged else found in (before, after), f"cut at {cut}"
        outcomes.add((acknowledged, found == after))
    # Both ends of it were seen, so the cuts did hit it. (Without a second flush nothing follows the record.)
    assert {(False, False), (True, True)} <= outcomes


@pytest.mark.parametrize(("mode", "freshness"), MODES)
def test_cuts_anywhere_in_many_commits_and_in_the_recovery(mode, freshness):
    """Checkpoints, openings and growth are cut, too, and openings after that again."""
    random = Random(f"{mode} {freshness}")
    disk = Disk(mode, freshness, sectors=12, journal=8)
    states = [state(disk.open())]
    acknowledged = 0
    interrupted = 0
    for turn in range(3000 if FULL else 60):
        disk.supply.cut_after(random.randrange(1, 40 * SECTOR))
        try:
            device = disk.open()
            found = state(device)
            assert found in states[acknowledged:], f"turn {turn}"
            states, acknowledged = [found], 0
            while True:
                if random.random() < 0.02 and device.sectors < 200:
                    device.resize(device.sectors + random.randrange(100))
                for _ in range(random.randrange(1, 4)):
                    at = random.randrange(device.sectors - 1)
                    device.write(at, random.randbytes(8) * (SECTOR // 8) * random.choice((1, 1, 2)))
                device.length = random.getrandbits(60)
                states.append(state(device))
                if random.random() < 0.5:
                    device.commit()
                else:
                    device.flush()
                    acknowledged = len(states) - 1
        except PowerCutError:
            interrupted += 1
        disk.disk.lose(random)
        disk.trusted_disk.lose(random)
        disk.supply.restore()
    assert interrupted
    assert state(disk.open()) in states[acknowledged:]


def test_what_a_cut_leaves_of_a_commit_is_dropped_and_its_place_used_again():
    disk = Disk("xts+hmac", "none")
    device = disk.open()
    device.write(0, pattern(1))
    device.flush()
    disk.supply.cut_after(SECTOR + 5)
    device.write(0, pattern(2))
    with pytest.raises(PowerCutError):
        device.flush()
    disk.supply.restore()
    device = disk.open()
    assert device.read(0, 1) == pattern(1)
    device.write(0, pattern(3))
    device.flush()
    assert disk.open().read(0, 1) == pattern(3)


def test_commits_without_a_flush_may_go_in_a_cut_but_not_with_the_process():
    disk = Disk("aead", "none")
    device = disk.open()
    device.write(0, pattern(1))
    device.commit()
    # The process is gone, the disk's cache is not.
    saved = disk.save()
    assert disk.open(read_only=True).read(0, 1) == pattern(1)
    disk.load(saved)
    disk.raw.data[JOURNAL * SECTOR:(JOURNAL + 1) * SECTOR] = bytes(SECTOR)
    assert disk.open().read(0, 1) == bytes(SECTOR)


@pytest.mark.parametrize("mode", ["plain", "xts", "aead"])
def test_a_durable_commit_that_is_missing_before_others_is_damage(mode):
    disk = Disk(mode, "none")
    device = disk.open()
    for i in range(3):
        device.write(i, pattern(i))
        device.flush()
    # The first of three records: the second says that it was durable.
    disk.raw.data[JOURNAL * SECTOR + 100] ^= 1
    with pytest.raises(AuthError, match="was on the disk"):
        disk.open()


def write_on(device, what, acknowledged):
    """Write patterns to sectors, each durably; tell which were acknowledged. Ends by an error, if at all."""
    for number, sector in what:
        device.write(sector, pattern(number))
        device.flush()
        acknowledged(number)


@pytest.mark.parametrize("operation", range(8))
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_an_error_is_reported_and_nothing_acknowledged_is_lost(operation, number):
    disk = Disk("aead", "sealed", journal=4)
    device = disk.open()
    device.write(0, pattern(0))
    device.flush()
    disk.supply.errors[disk.supply.operations + operation] = number
    states = [contents(device)]
    with pytest.raises(OSError) as caught:
        write_on(device, ((i, i % 3) for i in range(1, 9)), lambda _i: states.append(contents(device)))
    last = len(states)
    states.append([pattern(last) if sector == last % 3 else data for sector, data in enumerate(states[-1])])
    assert caught.value.errno == number
    # Whether what failed is on the disk nobody knows: nothing is done any more that could hide it.
    for again in (device.flush, device.commit, lambda: device.write(0, pattern(9))):
        with pytest.raises(OSError, match="failed before"):
            again()
    assert contents(disk.open()) in states[-2:]


def test_a_full_disk_loses_nothing_and_goes_on_when_there_is_room():
    disk = Disk("xts+hmac", "none", sectors=100, journal=8, room=30)
    device = disk.open()
    acknowledged: list[int] = []
    with pytest.raises(OSError) as caught:
        write_on(device, ((i, i) for i in range(100)), acknowledged.append)
    assert caught.value.errno == errno.ENOSPC
    kept = acknowledged[-1]
    assert kept > 5
    read_only = disk.open(read_only=True)
    assert [read_only.read(i, 1) for i in range(kept + 1)] == [pattern(i) for i in range(kept + 1)]
    with pytest.raises(OSError, match="No space"):
        disk.open()
    disk.disk._room = None
    device = disk.open()
    device.write(kept + 1, pattern(kept + 1))
    device.flush()
    assert [disk.open().read(i, 1) for i in range(kept + 2)] == [pattern(i) for i in range(kept + 2)]


@settings(max_examples=400 if FULL else 40)
@given(st.data())
def test_it_is_an_array_of_sectors_whatever_is_done(data):
    mode, freshness = data.draw(st.sampled_from(ALL))
    disk = Disk(mode, freshness, sectors=9, journal=data.draw(st.integers(3, 9)))
    device = disk.open()
    model = [bytes(SECTOR)] * 9
    for i in range(data.draw(st.integers(1, 12))):
        match data.draw(st.sampled_from(("write", "flush", "commit", "checkpoint", "open"))):
            case "write":
                at = data.draw(st.integers(0, 8))
                count = data.draw(st.integers(1, 9 - at))
                device.write(at, b"".join(pattern(100 * i + j) for j in range(count)))
                model[at:at + count] = [pattern(100 * i + j) for j in range(count)]
            case "open":
                device.commit()
                device = disk.open()
            case what:
                getattr(device, what)()
        assert contents(device) == model
        assert device.read(2, 5) == b"".join(model[2:7])
    device.flush()
    assert contents(disk.open()) == model
