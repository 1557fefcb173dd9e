"""Fuzz targets of the block store: its capsules, a target that gets any bytes, an initiator that does."""

from __future__ import annotations

import struct
from collections.abc import Callable
from itertools import count
from random import Random
from typing import TYPE_CHECKING

from smtstack.errors import BadPacket, PeerError
from smtstack.storage.device import MemoryDevice
from tests.blocks import HOST, Net, Rates, Request, ask
from workloads.blocks.capsule import (
    BLOCK,
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
from workloads.blocks.initiator import BlockCall, Initiator
from workloads.blocks.nbd import option_untrusted, request_untrusted
from workloads.blocks.target import Target

if TYPE_CHECKING:
    from tests import fuzz

_OF = "workloads.blocks.capsule"
_ASSOCIATION = 0x0123456789ABCDEF


def commands() -> list[bytes]:
    """A capsule of each kind, in the order in which the target below takes them."""
    block = bytes(range(256)) * (BLOCK // 256)
    made = [Command(Opcode.CONNECT, 0, 2, data=Wanted(HOST, 4).pack())]
    made += [Command(opcode, number % 4, number // 4 + 1, _ASSOCIATION, number, data=data, fua=number == 1)
             for number, (opcode, data) in enumerate((
                 (Opcode.READ, b""), (Opcode.WRITE, block), (Opcode.COMPARE, block), (Opcode.WRITE_ZEROES, b""),
                 (Opcode.FLUSH, b""), (0x04, b""), (Opcode.DISCONNECT, b"")))]
    return [command.pack() for command in made]


def completions() -> list[bytes]:
    """Some answers."""
    return [Completion(0, Status.SUCCESS, 1, _ASSOCIATION, 0, bytes(BLOCK)).pack(),
            Completion(0, Status.LBA_OUT_OF_RANGE, 1, _ASSOCIATION).pack(),
            Completion(0, Status.COMMAND_SEQUENCE_ERROR, 1, _ASSOCIATION).pack(),
            Completion(0, Status.SUCCESS, 1, _ASSOCIATION, 8, Granted(4, 64, True).pack()).pack()]


def _again(parse: Callable[[bytes], Command | Completion]) -> Callable[[bytes], object]:
    """What was accepted means something: packed again it is the same."""
    def call(buf: bytes) -> None:
        if parse(buf).pack() != buf:
            raise AssertionError("it does not survive packing")

    return call


class _Target:
    """A target that goes on whatever comes, and answers all of it at once or when it has flushed."""

    def __init__(self) -> None:
        self._fed = 0
        self._new()

    def _new(self) -> None:
        numbers = count(_ASSOCIATION)
        self._target = Target(MemoryDevice(8), number=lambda: next(numbers), clock=lambda: 0.0)
        ask(self._target, Command(Opcode.CONNECT, 0, 1, data=Wanted(HOST, 4).pack()))

    def __call__(self, buf: bytes) -> None:
        answers: list[bytes] = []
        self._target.handle(Request(buf, answers.append))
        self._target.settle()
        completion_untrusted(answers[0])
        if len(answers) != 1:
            raise AssertionError(f"{len(answers)} answers")
        self._fed += 1
        if self._fed % 64 == 0:
            self._new()


class _Answers(Target):
    """A target that says what it is told to, once it has connected."""

    says = b""

    def handle(self, request) -> None:
        if request.data[0] == Opcode.CONNECT:
            super().handle(request)
        else:
            request.reply(self.says)


def _initiator(buf: bytes) -> None:
    """Whatever it is answered, a command ends."""
    net = Net(lambda: _Answers(MemoryDevice(8), number=lambda: _ASSOCIATION), Rates(), Random(1))
    assert isinstance(net.target, _Answers)
    net.target.says = buf
    initiator = Initiator(net, HOST, 4, net.clock)
    initiator.prepare(4)
    try:
        data = initiator.run(BlockCall(Opcode.READ, 3), timeout_s=0.1)
    except PeerError as e:
        if isinstance(e, BadPacket):
            raise AssertionError("what cannot be read is no answer") from e
        return
    completion = completion_untrusted(buf)
    if (completion.status, completion.association, completion.data) != (Status.SUCCESS, _ASSOCIATION, data):
        raise AssertionError(f"{data[:20]!r} of {buf[:40]!r}")


def targets(kind: type[fuzz.Target]) -> list[fuzz.Target]:
    """All of them."""
    ours = Wanted(HOST, 4).pack(), Wanted(HOST, 1024).pack()
    theirs = Granted(4, 64, True).pack(), Granted(1, 1, False).pack()
    asks = [struct.pack(">IHHQQI", 0x25609513, 1, number, 7, 4096, 8192) for number in (0, 1, 2, 3, 6)]
    options = [b"IHAVEOPT" + struct.pack(">II", number, 6) for number in (1, 2, 3, 6, 7)]
    return [kind("workloads.blocks.nbd.request_untrusted", request_untrusted, asks, share=0.3),
            kind("workloads.blocks.nbd.option_untrusted", option_untrusted, options, share=0.3),
            kind(f"{_OF}.command_untrusted", _again(command_untrusted), commands(), share=0.5),
            kind(f"{_OF}.command_untrusted", _Target(), commands(), (), share=0.5),
            kind(f"{_OF}.completion_untrusted", _again(completion_untrusted), completions(), share=0.5),
            kind(f"{_OF}.completion_untrusted", _initiator, completions(), (), share=0.02),
            kind(f"{_OF}.wanted_untrusted", wanted_untrusted, list(ours), share=0.3),
            kind(f"{_OF}.granted_untrusted", granted_untrusted, list(theirs), share=0.3)]
