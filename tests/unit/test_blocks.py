"""The block store: capsules, a target's statuses, and commands that are done once whatever becomes of capsules."""

from __future__ import annotations

import errno
from functools import partial
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from smtstack.errors import AuthError, BadPacket, LocalError, PeerError
from smtstack.storage.device import MemoryDevice
from smtstack.storage.protected import ProtectedDevice, device_sectors, format_device, new_superblock
from tests.blocks import HOST, LONGEST, CacheDevice, Net, Rates, Request, ask, run_load
from workloads.blocks import target as target_module
from workloads.blocks.capsule import (
    BLOCK,
    MAX_BLOCKS,
    Command,
    Completion,
    Granted,
    Opcode,
    Status,
    Wanted,
    command_untrusted,
    completion_untrusted,
    granted_untrusted,
    wanted_untrusted,
)
from workloads.blocks.initiator import BlockCall, BlockError, Initiator, RemoteDevice
from workloads.blocks.model import Model
from workloads.blocks.target import Target

A, B = bytes([1]) * BLOCK, bytes([2]) * BLOCK
SECTORS = 32


# -- capsules ------------------------------------------------------------------------------------------------

numbers = st.integers(0, 2**64 - 1)


@given(opcode=st.sampled_from([*Opcode, 0x04, 0x7F]), cid=st.integers(0, 65535), sequence=st.integers(0, 2**32 -
1),
       association=numbers, slba=numbers, blocks=st.integers(1, 3), fua=st.booleans(), nsid=st.integers(0, 2**32 -
       1))
def test_a_command_survives_packing(opcode, cid, sequence, association, slba, blocks, fua, nsid):
    data = b"x" * blocks * BLOCK if opcode in (Opcode.WRITE, Opcode.COMPARE) else b""
    if opcode == Opcode.CONNECT:
        data = Wanted(HOST, 8).pack()
    command = Command(opcode, cid, sequence, association, slba, blocks, data, fua, nsid)
    assert command_untrusted(command.pack()) == command


def test_a_write_is_laid_out_as_the_page_says():
    capsule = Command(Opcode.WRITE, 3, 7, 0x1122334455667788, 0x99, 2, A + B, fua=True).pack()
    assert capsule[:32].hex(" ", 4) == "01010300 01000000 88776655 44332211 07000000 01000000 99000000 00000000"
    assert capsule[32:] == A + B
    answer = Completion(3, Status.LBA_OUT_OF_RANGE, 7, 0x1122334455667788, 5, b"x").pack()
    assert answer.hex() == "03008000" "07000000" "8877665544332211" "0500000000000000" "78"
    assert Status.LBA_OUT_OF_RANGE.text == "LBA Out of Range"
    assert Status.INVALID_NAMESPACE_OR_FORMAT.text == "Invalid Namespace or Format"


@pytest.mark.parametrize("capsule", [
    b"", Command(Opcode.READ).pack()[:-1], Command(Opcode.READ).pack() + b"x", Command(Opcode.WRITE).pack(),
    Command(Opcode.WRITE, data=A + b"x").pack(), Command(Opcode.WRITE, blocks=2, data=A).pack(),
    Command(Opcode.FLUSH, data=A).pack(), Command(Opcode.CONNECT).pack(),
    Command(Opcode.READ).pack()[:1] + b"\2" + Command(Opcode.READ).pack()[2:],
    Command(Opcode.READ).pack()[:22] + b"\1" + Command(Opcode.READ).pack()[23:]])
def test_what_is_no_command_is_refused_and_answered(capsule):
    with pytest.raises(BadPacket):
        command_untrusted(capsule)
    answers: list[bytes] = []
    target = Target(MemoryDevice(8))
    target.handle(Request(capsule, answers.append))
    assert completion_untrusted(answers[0]).status == Status.INVALID_FIELD_IN_COMMAND
    assert target.counters()["malformed"] == 1


def test_what_is_no_completion_or_parameter_is_refused():
    good = Completion(1, Status.SUCCESS).pack()
    for bad in (b"", good[:-1], good[:2] + b"\x55\x55" + good[4:]):
        with pytest.raises(BadPacket):
            completion_untrusted(bad)
    assert wanted_untrusted(Wanted(HOST, 8).pack()) == Wanted(HOST, 8)
    for data in (b"", Wanted(HOST, 0).pack(), Wanted(HOST, 1025).pack(), Wanted(HOST, 1).pack() + b"x"):
        with pytest.raises(BadPacket):
            wanted_untrusted(data)
    assert granted_untrusted(Granted(8, 64, True).pack()) == Granted(8, 64, True)
    for data in (b"", Granted(0, 64, True).pack(), Granted(8, 0, True).pack(), Granted(8, 65, True).pack(),
                 Granted(8, 64, True).pack()[:-1] + b"\1"):
        with pytest.raises(BadPacket):
            granted_untrusted(data)


# -- the target ----------------------------------------------------------------------------------------------


def status_of(target: Target, command: Command, longest: int = LONGEST) -> int:
    """What becomes of one command."""
    answer = ask(target, command, longest=longest)
    assert answer is not None
    return answer.status


class Asker:
    """An initiator by hand, with one slot."""

    def __init__(self, target: Target, host: bytes = HOST, attempt: int = 1, depth: int = 1) -> None:
        self.target = target
        answer = ask(target, Command(Opcode.CONNECT, 0, attempt, data=Wanted(host, depth).pack()))
        assert answer is not None
        self.answer = answer
        self.association = answer.association
        self.sequence = 0

    def command(self, opcode: int, slba: int = 0, data: bytes = b"", **more) -> Command:
        self.sequence += 1
        return Command(opcode, 0, self.sequence, self.association, slba, data=data, **more)

    def do(self, opcode: int, slba: int = 0, data: bytes = b"", **more) -> tuple[int, bytes]:
        answer = ask(self.target, self.command(opcode, slba, data, **more))
        assert answer is not None
        assert (answer.cid, answer.sequence, answer.association) == (0, self.sequence, self.association)
        return answer.status, answer.data


def test_commands_and_their_statuses():
    asker = Asker(Target(MemoryDevice(8)))
    assert (asker.answer.status, asker.answer.result) == (Status.SUCCESS, 8)
    assert granted_untrusted(asker.answer.data) == Granted(1, MAX_BLOCKS, cache=True)
    ok = Status.SUCCESS, b""
    assert asker.do(Opcode.WRITE, 6, A + B, blocks=2) == ok
    assert asker.do(Opcode.READ, 5, blocks=3) == (Status.SUCCESS, bytes(BLOCK) + A + B)
    assert asker.do(Opcode.COMPARE, 6, A + B, blocks=2) == ok
    assert asker.do(Opcode.COMPARE, 6, B) == (Status.COMPARE_FAILURE, b"")
    assert asker.do(Opcode.WRITE_ZEROES, 6) == ok
    assert asker.do(Opcode.READ, 6) == (Status.SUCCESS, bytes(BLOCK))
    assert asker.do(Opcode.FLUSH) == ok
    for slba, blocks in ((8, 1), (7, 2), (2**64 - 1, 1), (0, 9)):
        for opcode in (Opcode.READ, Opcode.WRITE_ZEROES):
            assert asker.do(opcode, slba, blocks=blocks) == (Status.LBA_OUT_OF_RANGE, b"")
        assert asker.do(Opcode.WRITE, slba, A * blocks, blocks=blocks) == (Status.LBA_OUT_OF_RANGE, b"")
    assert asker.do(0x04) == (Status.INVALID_COMMAND_OPCODE, b"")
    assert asker.do(Opcode.READ, nsid=2) == (Status.INVALID_NAMESPACE_OR_FORMAT, b"")
    assert asker.do(Opcode.READ, blocks=MAX_BLOCKS + 1) == (Status.INVALID_FIELD_IN_COMMAND, b"")
    assert status_of(asker.target, asker.command(Opcode.READ, blocks=8), longest=8 * BLOCK) \
        == Status.INVALID_FIELD_IN_COMMAND, "the answer is too long for this client"
    assert status_of(asker.target, Command(Opcode.READ, 1, 1, asker.association)) \
        == Status.INVALID_FIELD_IN_COMMAND, "there is no such slot"
    assert asker.do(Opcode.READ, 7)[1] == B, "nothing was written beyond the end"
    assert asker.do(Opcode.DISCONNECT)[0] == Status.SUCCESS
    assert asker.do(Opcode.READ)[0] == Status.COMMAND_SEQUENCE_ERROR


class Failing(MemoryDevice):
    """Raises what it is told to."""

    error: Exception | None = None
    only_flush = False

    def _check(self) -> None:
        if self.error is not None and not self.only_flush:
            raise self.error

    def read(self, sector: int, count: int) -> bytes:
        self._check()
        return super().read(sector, count)

    def write(self, sector: int, data: bytes) -> None:
        self._check()
        super().write(sector, data)

    def flush(self) -> None:
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize(("error", "opcode", "status"), [
    (OSError(errno.EIO, "bad sector"), Opcode.READ, Status.UNRECOVERED_READ_ERROR),
    (OSError(errno.EIO, "bad sector"), Opcode.COMPARE, Status.UNRECOVERED_READ_ERROR),
    (OSError(errno.EIO, "bad sector"), Opcode.WRITE, Status.WRITE_FAULT),
    (OSError(errno.EIO, "bad sector"), Opcode.FLUSH, Status.WRITE_FAULT),
    (OSError(errno.ENOSPC, "full"), Opcode.WRITE, Status.CAPACITY_EXCEEDED),
    (AuthError("sector 0 was changed"), Opcode.READ, Status.INTERNAL_ERROR),
    (AuthError("sector 0 was changed"), Opcode.WRITE_ZEROES, Status.INTERNAL_ERROR)])
def test_what_the_device_raises_has_a_status(error, opcode, status):
    device = Failing(8)
    asker = Asker(Target(device))
    device.error = error
    data = A if opcode in (Opcode.WRITE, Opcode.COMPARE) else b""
    assert asker.do(opcode, 0, data) == (status, b"")
    assert str(error) in asker.target.last_failure
    again = Command(opcode, 0, asker.sequence, asker.association, data=data)
    assert status_of(asker.target, again) == status, "sent again it has the same"
    device.error = None
    assert asker.do(Opcode.READ)[0] == Status.SUCCESS


def test_after_a_flush_that_failed_nothing_is_promised_any_more():
    device = Failing(8)
    asker = Asker(Target(device))
    assert asker.do(Opcode.WRITE, 0, A)[0] == Status.SUCCESS
    device.error, device.only_flush = OSError(errno.EIO, "the disk"), True
    assert asker.do(Opcode.WRITE, 1, A, fua=True)[0] == Status.WRITE_FAULT
    device.error = None
    # The system would say of the next flush that all is well: what the first one lost is lost.
    assert asker.do(Opcode.FLUSH)[0] == Status.WRITE_FAULT
    assert asker.do(Opcode.WRITE, 0, B)[0] == Status.WRITE_FAULT
    assert asker.do(Opcode.READ) == (Status.SUCCESS, A)


def test_commands_that_wait_for_the_disk_share_a_flush():
    device = CacheDevice(8, Random(1))
    target = Target(device, durable=True)
    asker = Asker(target, depth=4)
    assert not granted_untrusted(asker.answer.data).cache
    writes = [Command(Opcode.WRITE, cid, 1, asker.association, cid, data=A) for cid in range(3)]
    assert [ask(target, write, settle=False) for write in writes] == [None] * 3
    answers: list[bytes] = []
    target.handle(Request(writes[0].pack(), answers.append))
    assert answers == [], "a second copy has to wait, too"
    device.cut()
    target.settle()
    assert completion_untrusted(answers[0]).status == Status.SUCCESS
    assert target.counters()["device_flushes"] == 1
    assert target.counters()["repeated"] == 1
    target.settle()
    assert target.counters()["device_flushes"] == 1, "nobody waits"


def test_a_command_that_comes_again_is_done_once():
    device = CacheDevice(8, Random(1))
    asker = Asker(Target(device))
    first = asker.command(Opcode.WRITE, 0, A)
    assert [status_of(asker.target, first) for _ in range(3)] == [Status.SUCCESS] * 3
    assert device.written == {(0, A): 1}
    assert asker.do(Opcode.WRITE, 0, B)[0] == Status.SUCCESS
    # A late copy: the block has a newer content by now.
    assert status_of(asker.target, first) == Status.COMMAND_SEQUENCE_ERROR
    assert asker.do(Opcode.READ)[1] == B
    # Also for the successor of the target, whom nobody told of it.
    assert status_of(Target(device), first) == Status.COMMAND_SEQUENCE_ERROR
    assert device.read(0, 1) == B


def test_who_connects_again_ends_what_was_before_and_a_late_connect_does_not():
    target = Target(MemoryDevice(8))
    old, new = Asker(target), Asker(target, attempt=2)
    assert old.do(Opcode.READ)[0] == Status.COMMAND_SEQUENCE_ERROR
    assert new.do(Opcode.READ)[0] == Status.SUCCESS
    assert Asker(target, attempt=1).answer.status == Status.COMMAND_SEQUENCE_ERROR
    assert Asker(target, attempt=2).association == new.association
    assert new.do(Opcode.READ)[0] == Status.SUCCESS


def test_initiators_are_bounded_and_who_is_silent_gives_way(monkeypatch):
    monkeypatch.setattr(target_module, "MAX_ASSOCIATIONS", 2)
    now = [0.0]
    target = Target(MemoryDevice(8), clock=lambda: now[0])
    first, second = Asker(target, b"1" * 16), Asker(target, b"2" * 16)
    assert Asker(target, b"3" * 16).answer.status == Status.CONTROLLER_BUSY
    now[0] += target_module.KEEP_ALIVE_S
    assert second.do(Opcode.READ)[0] == Status.SUCCESS
    assert Asker(target, b"3" * 16).answer.status == Status.SUCCESS
    assert first.do(Opcode.READ)[0] == Status.COMMAND_SEQUENCE_ERROR
    assert second.do(Opcode.READ)[0] == Status.SUCCESS


# -- the model -----------------------------------------------------------------------------------------------


def test_the_model_sees_what_is_old_elsewhere_torn_or_unwritten():
    model = Model(10, 4, 1)
    one = model.begin(10)
    model.written(10)
    before = model.before(10)
    assert model.judge(10, one, before) == ""
    two = model.begin(10)
    assert model.judge(10, one, before) == "", "the write is under way"
    assert model.judge(10, two, before) == ""
    assert "from 2 to 2" in model.judge(10, one, model.before(10)), "it was seen"
    model.unknown(10)
    zeros = model.begin(10, zeros=True)
    assert zeros == b""
    assert model.judge(10, bytes(BLOCK), model.before(10)) == ""
    assert model.judge(10, two, model.before(10)) != "", "zeros were seen"
    model.written(10)
    assert model.hold(10) == bytes(BLOCK)
    assert 10 in model.busy
    other = model.begin(11)
    model.written(11)
    for wrong in (one, two[:2048] + bytes(2048), other, bytes([1]) * BLOCK, b"short"):
        assert model.judge(10, wrong, model.before(10)) != ""
    assert model.judge(11, bytes(BLOCK), model.before(11)) != ""


# -- both, and a bad net between them ------------------------------------------------------------------------


def test_errors_reach_the_caller_by_name_and_a_device_has_errnos():
    rng = Random(1)
    net = Net(lambda: Target(MemoryDevice(200)), Rates(), rng)
    initiator = Initiator(net, HOST, clock=net.clock)
    device = RemoteDevice(initiator)
    assert device.sectors == 200
    data = rng.randbytes(150 * BLOCK)
    device.write(20, data)
    device.flush()
    assert device.read(20, 150) == data
    with pytest.raises(OSError, match="LBA Out of Range") as found:
        device.read(190, 11)
    assert found.value.errno == errno.EINVAL
    for opcode, said in ((0x55, "opcode 0x55 of 1 blocks at 0: Invalid Command Opcode"),
                         (Opcode.COMPARE, "compare of 1 blocks at 0: Compare Failure")):
        with pytest.raises(BlockError, match=said):
            initiator.run(BlockCall(opcode, 0, 1, A if opcode == Opcode.COMPARE else b""))
    with pytest.raises(LocalError):
        initiator.prepare(5000)
    device.close()
    assert net.target.counters()["connects"] == 1


def test_a_target_that_never_answers_is_an_error_in_the_end():
    net = Net(lambda: Target(MemoryDevice(200)), Rates(), Random(1))
    initiator = Initiator(net, HOST, clock=net.clock)
    initiator.prepare(1)
    net._rates = Rates(lose=1.0)
    with pytest.raises(PeerError, match="write of 1 blocks at 3: no completion in time; no answer"):
        initiator.run(BlockCall(Opcode.WRITE, 3, 1, A), timeout_s=2)
    net._rates = Rates()
    assert initiator.run(BlockCall(Opcode.READ, 3)) in (A, bytes(BLOCK))
    assert initiator.counters()["blocks_connects"] == 2, "no late copy of the write is done under the new one"


def test_a_protected_device_on_a_remote_one_shows_the_target_ciphertext_only():
    rng = Random(7)
    below = MemoryDevice(device_sectors("aead", "none", 64, 64))
    net = Net(lambda: Target(below), Rates(0.1, 0.1, 0.1), rng)
    remote = RemoteDevice(Initiator(net, HOST, clock=net.clock))
    key = rng.randbytes(32)
    format_device(remote, new_superblock("aead", "none", 64, 64), key)
    device = ProtectedDevice(remote, key)
    device.write(9, A + B)
    net.kill()
    device.flush()
    assert device.read(9, 2) == A + B
    assert A not in below.data
    device.close()
    assert ProtectedDevice(below, key).read(9, 2) == A + B


shares = st.floats(0, 0.3, allow_nan=False)


@given(seed=st.integers(0, 2**32), lose=shares, repeat=shares, late=shares, depth=st.sampled_from([1, 2, 7, 32]),
       kills=st.integers(0, 3), power=st.booleans())
@example(seed=1326273, lose=0.0, repeat=0.25, late=0.0, depth=1, kills=1, power=True)
@example(seed=1, lose=0.3, repeat=0.3, late=0.3, depth=32, kills=3, power=True)
@example(seed=2, lose=0.3, repeat=0.3, late=0.3, depth=7, kills=3, power=False)
def test_whatever_is_lost_repeated_late_or_killed_all_is_right(seed, lose, repeat, late, depth, kills, power):
    """With ``power`` a kill is a power cut of a device with a volatile cache; then writes are durable."""
    rng = Random(seed)
    device = CacheDevice(SECTORS, rng)
    net = Net(lambda: Target(device, durable=power), Rates(lose, repeat, late), rng)
    for _ in range(kills):
        net.at(rng.randrange(100_000_000, 400_000_000), lambda: net.kill(device.cut if power else lambda: None))
    tally, _initiator, _model = run_load(net, net.clock, 250, depth, seed=seed)
    assert (tally.errors, tally.wrong) == (0, 0), tally.first_error
    assert len(tally.rtt_ns) == 250 + SECTORS // 8
    # Once while a target lives.
    assert max(device.written.values()) <= 1 + net.kills


class Forgetful(Target):
    """The control: a target that does all that comes."""

    def _repeat(self, request, command, slot) -> None:
        self._do(request, command, slot)

    def _out_of_sequence(self, request, command) -> None:
        association = self._associations.get(command.association)
        if association is None:
            super()._out_of_sequence(request, command)
        else:
            self._do(request, command, association.slots[command.cid])


def test_the_model_finds_a_target_that_does_late_copies():
    found = 0
    for seed in range(5):
        device = CacheDevice(SECTORS, Random(seed))
        net = Net(partial(Forgetful, device), Rates(0.1, 0.3, 0.3), Random(seed))
        tally, *_rest = run_load(net, net.clock, 250, 7, seed=seed)
        found += tally.wrong > 0 and max(device.written.values()) > 1
    assert found >= 4


def test_the_model_finds_writes_that_a_power_cut_took():
    """The control of durability: without a flush completed writes are gone."""
    found = 0
    for seed in range(5):
        device = CacheDevice(SECTORS, Random(seed))
        net = Net(partial(Target, device), Rates(), Random(seed))
        net.at(150_000_000, partial(net.kill, device.cut))
        tally, *_rest = run_load(net, net.clock, 1000, 7, pattern="randrw", seed=seed)
        found += tally.wrong > 0
    assert found == 5
