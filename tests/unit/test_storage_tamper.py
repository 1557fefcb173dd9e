"""What each mode finds of what somebody with the disk can do, asserted as it is; and what the disk tells.

AES-XTS alone is no integrity: it finds nothing. A code for each sector finds what was changed or moved; only
freshness finds an old disk that is put back.
"""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import XTS

from smtstack.errors import AuthError, ConfigError
from smtstack.storage.device import SECTOR
from smtstack.storage.keys import derive
from smtstack.storage.layout import ENTRY, GROUP, JOURNAL
from smtstack.storage.protected import ProtectedDevice
from smtstack.storage.trusted import TrustedState
from tests.disks import ALL, KEY, Disk, pattern

CANARY = b"the-canary-sings"


def written(mode, freshness):
    """A device with sectors 0 to 19 in their places, twice over: with older contents before. The older disk."""
    disk = Disk(mode, freshness)
    device = disk.open()
    for turn in (1, 2):
        for i in range(20):
            device.write(i, pattern(1000 * turn + i))
        device.flush()
        device.checkpoint()
        if turn == 1:
            older = bytes(disk.raw.data)
    return disk, older


def place(disk, sector):
    return disk.open(read_only=True).block.place(sector) * SECTOR


def entry(disk, sector):
    block = disk.open(read_only=True).block
    return block.entries_place(sector // GROUP) * SECTOR + sector % GROUP * ENTRY.size


def detected(disk):
    """Whether anything is noticed, by opening the device and reading all; what was read if not."""
    try:
        device = disk.open()
        return False, [device.read(i, 1) for i in range(20)]
    except AuthError:
        return True, []


def flip(disk, _older):
    disk.raw.data[place(disk, 3) + 77] ^= 4


def swap(disk, _older):
    """Two sectors, with all that is known of them."""
    data = disk.raw.data
    spans = [(place(disk, 3), place(disk, 9), SECTOR)]
    if disk.open(read_only=True).block.tagged:
        spans.append((entry(disk, 3), entry(disk, 9), ENTRY.size))
    for a, b, size in spans:
        data[a:a + size], data[b:b + size] = data[b:b + size], data[a:a + size]


def replay_sector(disk, older):
    """An older version of a sector, with all that was known of it."""
    spans = [(place(disk, 5), SECTOR)]
    if disk.open(read_only=True).block.tagged:
        spans.append((entry(disk, 5), ENTRY.size))
    for at, size in spans:
        disk.raw.data[at:at + size] = older[at:at + size]


def replay_disk(disk, older):
    disk.raw.data[:] = older


def cut_off(disk, _older):
    del disk.raw.data[place(disk, 10):]


# What is expected to be found: (flip, swap, replay of a sector, replay of the disk).
MATRIX = {("plain", "none"): "nnnn", ("xts", "none"): "nnnn", ("xts+hmac", "none"): "yynn",
          ("aead", "none"): "yynn", **{one: "yyyy" for one in ALL if one[1] != "none"}}
ATTACKS = (flip, swap, replay_sector, replay_disk)


@pytest.mark.parametrize(("mode", "freshness"), ALL)
def test_the_tamper_matrix_is_as_it_is_said_to_be(mode, freshness):
    found = ""
    for attack in ATTACKS:
        disk, older = written(mode, freshness)
        attack(disk, older)
        seen, content = detected(disk)
        found += "ny"[seen]
        if not seen:
            # It was an attack: somebody reads what nobody wrote there last.
            assert content != [pattern(2000 + i) for i in range(20)], attack.__name__
    assert found == MATRIX[mode, freshness]


@pytest.mark.parametrize(("mode", "freshness"), ALL)
def test_truncation_is_found_in_every_mode(mode, freshness):
    disk, older = written(mode, freshness)
    cut_off(disk, older)
    with pytest.raises(AuthError, match="cut off"):
        disk.open()


@pytest.mark.parametrize("mode", ["plain", "xts"])
def test_a_flip_garbles_what_xts_says_it_garbles(mode):
    """One block of 16 bytes in xts, one bit in plain: and nobody is told."""
    disk, older = written(mode, "none")
    flip(disk, older)
    read, wrote = disk.open().read(3, 1), pattern(2003)
    wrong = [i for i in range(SECTOR) if read[i] != wrote[i]]
    assert wrong
    assert {i // 16 for i in wrong} == {77 // 16}
    assert (len(wrong) == 1) == (mode == "plain")


@pytest.mark.parametrize("freshness", ["sealed", "counter"])
@pytest.mark.parametrize("mode", ["plain", "xts", "aead"])
def test_a_commit_in_the_journal_that_is_taken_away_is_missed(mode, freshness):
    disk = Disk(mode, freshness)
    device = disk.open()
    device.write(0, pattern(1))
    device.flush()
    disk.raw.data[JOURNAL * SECTOR + 50] ^= 1
    with pytest.raises(AuthError, match="older than what was acknowledged"):
        disk.open()


@pytest.mark.parametrize("freshness", ["sealed", "counter"])
def test_a_fork_of_the_same_length_is_refused(freshness):
    """Two disks that went on from one state: the one that was not acknowledged is refused, once the other was."""
    disk = Disk("aead", freshness)
    device = disk.open()
    device.write(0, pattern(1))
    device.flush()
    before = bytes(disk.raw.data)
    device.write(0, pattern(2))
    device.commit()
    fork = bytes(disk.raw.data)
    # Not acknowledged: the machine went down, and the disk that came up is the one before.
    disk.raw.data[:] = before
    device = disk.open()
    device.write(0, pattern(3))
    device.flush()
    disk.raw.data[:] = fork
    with pytest.raises(AuthError):
        disk.open()


@pytest.mark.parametrize(("mode", "freshness"), ALL)
def test_no_canary_is_on_the_disk_and_equal_data_does_not_look_equal(mode, freshness):
    disk = Disk(mode, freshness)
    device = disk.open()
    data = CANARY * (SECTOR // len(CANARY))
    images = []
    for _turn in range(2):
        device.write(0, data + data)
        device.write(7, data)
        device.flush()
        # In the journal, and then in its place.
        device.checkpoint()
        images.append(bytes(disk.raw.data))
        device.write(0, pattern(5))
        device.flush()
        device.checkpoint()
    total = sum(image.count(CANARY) for image in images)
    # The control: without encryption it is there, so this would find it.
    assert (total == 0) == (mode != "plain")
    if mode == "plain":
        return
    block = device.block
    places = [block.place(sector) * SECTOR for sector in (0, 1, 7)]
    sealed = [[image[at + i:at + i + 16] for i in range(0, SECTOR, 16)] for image in images for at in places]
    for one in sealed:
        assert len(set(one)) == len(one)
    first, second = sealed[:3], sealed[3:]
    assert not set(first[0]) & set(first[1])
    assert not set(first[0]) & set(first[2])
    # XTS says that the same was written to the same place again, and cannot do otherwise; AEAD does not.
    assert (first == second) == (mode != "aead")
    assert mode != "aead" or not {x for one in first for x in one} & {x for one in second for x in one}


def test_xts_is_the_one_of_dm_crypt():
    """aes-xts-plain64 with sectors of 4096 bytes: the tweak is the number of the sector."""
    disk = Disk("xts", "none")
    device = disk.open()
    device.write(7, pattern(7))
    device.checkpoint()
    key = derive(KEY, device.block.device, b"xts", 64)
    code = Cipher(AES(key), XTS((7).to_bytes(16, "little"))).encryptor()
    at = place(disk, 7)
    assert bytes(disk.raw.data[at:at + SECTOR]) == code.update(pattern(7))


def test_no_nonce_is_used_twice_though_the_disk_was_set_back():
    """Without freshness nobody notices the old disk; still the same version of a sector is sealed otherwise."""
    disk = Disk("aead", "none")
    saved = disk.save()
    streams = []
    for turn in range(2):
        disk.load(saved)
        device = disk.open()
        device.write(0, bytes([turn]) * SECTOR)
        device.checkpoint()
        at = place(disk, 0)
        streams.append(bytes(b ^ turn for b in disk.raw.data[at:at + SECTOR]))
    assert streams[0] != streams[1]


def test_wrong_keys_and_states_are_told_apart():
    disk, _older = written("aead", "sealed")
    with pytest.raises(AuthError, match="key or passphrase is wrong"):
        ProtectedDevice(disk.disk, bytes(32), disk.trusted())
    with pytest.raises(ConfigError, match="trusted state is needed"):
        ProtectedDevice(disk.disk, KEY)
    with pytest.raises(AuthError, match="cannot be opened"):
        TrustedState(disk.trusted_disk, bytes(32), "sealed")
    other, _older = written("aead", "sealed")
    with pytest.raises(AuthError, match="about another device"):
        ProtectedDevice(disk.disk, KEY, other.trusted())
    disk.raw.data[:2 * SECTOR] = bytes(2 * SECTOR)
    with pytest.raises(ConfigError, match="no protected device"):
        disk.open()


@pytest.mark.parametrize(("mode", "freshness"), ALL)
def test_any_flipped_bit_of_a_fresh_device_is_found_or_does_not_matter(mode, freshness):
    """Where there are codes or freshness, what is read is what was written, or nothing is."""
    disk, _older = written(mode, freshness)
    saved = disk.save()
    expected = [pattern(2000 + i) for i in range(20)]
    wrong = 0
    for at in range(0, len(disk.raw.data), 997):
        disk.load(saved)
        disk.raw.data[at] ^= 1 << at % 8
        try:
            seen, content = detected(disk)
        except ConfigError:
            continue
        wrong += not seen and content != expected
    assert (wrong > 0) == (MATRIX[mode, freshness][0] == "n")
