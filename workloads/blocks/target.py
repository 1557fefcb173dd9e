"""The target: commands on a block device, each done once while the target lives, however often it is sent.

A transport may deliver a request late or, after a retry, twice. So every command names an *association*, a random
number that the target gave to its initiator in Connect and forgets when it ends, and in its slot of the queue (the
command id) a *sequence*, which rises by one with each command:

- the next sequence of a slot is done;
- the last one again was done already: it gets the same status, and only a read is done again;
- any other one is a late copy, of which nobody waits for the answer: Command Sequence Error, and nothing is done;
- so it is with every command of another association: what was sent to a target before it was killed is never done
  by its successor. The initiator hears the error, connects, and sends again what it has no completion of.

NFS 4.1 does the same in its sessions (RFC 8881, 2.10.6). The memory for it is bounded: a number and a status for
each slot. After a restart a command without a completion may be done a second time: that is once to everybody, as
long as no other initiator writes to the same blocks meanwhile.

**What is durable when.** A completed write is seen by every read that begins later, by whomever. Killing the
target loses nothing that a file holds already: what was written is the kernel's. A power cut may lose what came
after the last completed Flush, except writes with FUA; with ``durable`` every write is as one with FUA, and
Connect says that there is no volatile cache. Flushes that are asked for at once are one flush of the device
(:meth:`Target.settle`). When a flush fails nobody knows what is on the disk: from then on the target completes
writes and flushes with Write Fault, until it is started again.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from smtstack.errors import BadPacket, SmtError
from smtstack.storage.device import BlockDevice
from workloads.blocks.capsule import (
    BLOCK,
    COMPLETION_LEN,
    MAX_BLOCKS,
    NSID,
    WITH_BLOCKS,
    Command,
    Completion,
    Granted,
    Opcode,
    Status,
    command_untrusted,
    wanted_untrusted,
)
from workloads.transports.contract import Incoming

#: Initiators that may be connected; one silent for so many seconds gives way (NVMe's keep-alive time-out).
MAX_ASSOCIATIONS = 256
KEEP_ALIVE_S = 120.0
#: In the completion of a capsule that could not be read.
NO_CID = 0xFFFF
_SEQUENCES = (1 << 32) - 1
_WRITES = frozenset({Opcode.WRITE, Opcode.WRITE_ZEROES, Opcode.FLUSH})
#: Where the store ran full: NVMe has a status for it.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(slots=True)
class _Slot:
    """The last command of a slot."""

    sequence: int = 0
    status: int = Status.SUCCESS
    waits: bool = False
    """Whether that command is done but for the flush it waits for."""


@dataclass(slots=True)
class _Association:
    """One initiator."""

    number: int
    host: bytes
    attempt: int
    """The sequence of its Connect."""
    heard: float
    slots: list[_Slot]


@dataclass(slots=True)
class _Waiting:
    """A command that is completed when the device has been flushed."""

    request: Incoming
    command: Command
    slot: _Slot
    again: bool = field(default=False)


class Target:
    """A namespace (:data:`~workloads.blocks.capsule.NSID`) on ``device``. Give it requests by :meth:`handle`, and
    call :meth:`settle` when there are none at the moment.

    ``durable``: every write is on the disk before it is completed. ``number``: what makes 64-bit numbers of
    associations, which nobody may guess. ``clock``: seconds.
    """

    def __init__(self, device: BlockDevice, *, durable: bool = False,
                 number: Callable[[], int] = lambda: secrets.randbits(64),
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._device = device
        self._sectors = device.sectors
        self._durable = durable
        self._number = number
        self._clock = clock
        self._associations: dict[int, _Association] = {}
        self._hosts: dict[bytes, _Association] = {}
        self._waiting: list[_Waiting] = []
        self._counters: Counter[str] = Counter()
        self._broken = False
        #: Capsules, of whatever kind.
        self.handled = 0
        #: What the device said when it failed last; "": never.
        self.last_failure = ""

    def counters(self) -> dict[str, int]:
        """Commands done by opcode, ``bytes_read``, ``bytes_written``, ``device_flushes``; ``repeated``: commands
        that came again; ``out_of_sequence``: late copies and those of no association; ``malformed`` capsules;
        ``refused``: completed with an error."""
        return dict(self._counters)

    def handle(self, request: Incoming) -> None:
        """One capsule: completed now, or by :meth:`settle`."""
        self.handled += 1
        try:
            command = command_untrusted(request.data)
        except BadPacket:
            self._counters["malformed"] += 1
            request.reply(Completion(NO_CID, Status.INVALID_FIELD_IN_COMMAND).pack())
            return
        if command.opcode == Opcode.CONNECT:
            request.reply(self._connect(command, request.longest).pack())
            return
        association = self._associations.get(command.association)
        if association is None:
            self._out_of_sequence(request, command)
            return
        association.heard = self._clock()
        if command.opcode == Opcode.DISCONNECT:
            self._end(association)
            _complete(request, command, Status.SUCCESS)
            return
        if command.cid >= len(association.slots):
            _complete(request, command, Status.INVALID_FIELD_IN_COMMAND)
            return
        slot = association.slots[command.cid]
        if command.sequence == slot.sequence:
            self._repeat(request, command, slot)
        elif command.sequence == slot.sequence + 1 & _SEQUENCES:
            slot.sequence = command.sequence
            self._do(request, command, slot)
        else:
            self._out_of_sequence(request, command)

    def settle(self) -> None:
        """Flush the device once, if commands wait for it, and complete these."""
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        status = Status.SUCCESS
        try:
            if self._broken:
                status = Status.WRITE_FAULT
            else:
                self._device.flush()
                self._counters["device_flushes"] += 1
        except (OSError, SmtError) as e:
            self._broken = True
            status = self._failure(e, Status.WRITE_FAULT)
        for one in waiting:
            if not one.again:
                one.slot.waits = False
                one.slot.status = status
                self._counters["refused"] += status != Status.SUCCESS
            _complete(one.request, one.command, one.slot.status)

    # -- associations --------------------------------------------------------------------------------------

    def _connect(self, command: Command, longest: int) -> Completion:
        """What a Connect gets."""
        try:
            wanted = wanted_untrusted(command.data)
        except BadPacket:
            self._counters["malformed"] += 1
            return Completion(command.cid, Status.INVALID_FIELD_IN_COMMAND, command.sequence)
        known = self._hosts.get(wanted.host)
        if known is not None and command.sequence < known.attempt:
            self._counters["out_of_sequence"] += 1
            return Completion(command.cid, Status.COMMAND_SEQUENCE_ERROR, command.sequence)
        most = min(MAX_BLOCKS, (longest - COMPLETION_LEN) // BLOCK)
        if command.nsid != NSID or most < 1:
            status = Status.INVALID_NAMESPACE_OR_FORMAT if most >= 1 else Status.INVALID_FIELD_IN_COMMAND
            return Completion(command.cid, status, command.sequence)
        if known is None or command.sequence > known.attempt:
            if known is not None:
                self._end(known)
            if not self._room():
                self._counters["refused"] += 1
                return Completion(command.cid, Status.CONTROLLER_BUSY, command.sequence)
            number = self._number()
            while not number or number in self._associations:
                number = self._number()
            known = _Association(number, wanted.host, command.sequence, self._clock(),
                                 [_Slot() for _ in range(wanted.depth)])
            self._associations[number] = self._hosts[wanted.host] = known
            self._counters["connects"] += 1
        granted = Granted(len(known.slots), most, not self._durable)
        return Completion(command.cid, Status.SUCCESS, command.sequence, known.number, self._sectors,
                          granted.pack())

    def _room(self) -> bool:
        """Whether another initiator may connect; who was silent for too long makes room."""
        if len(self._associations) < MAX_ASSOCIATIONS:
            return True
        longest = min(self._associations.values(), key=lambda one: one.heard)
        if self._clock() - longest.heard < KEEP_ALIVE_S:
            return False
        self._end(longest)
        return True

    def _end(self, association: _Association) -> None:
        del self._associations[association.number]
        del self._hosts[association.host]

    # -- commands ------------------------------------------------------------------------------------------

    def _out_of_sequence(self, request: Incoming, command: Command) -> None:
        self._counters["out_of_sequence"] += 1
        _complete(request, command, Status.COMMAND_SEQUENCE_ERROR)

    def _repeat(self, request: Incoming, command: Command, slot: _Slot) -> None:
        """A command that was done before."""
        self._counters["repeated"] += 1
        if slot.waits:
            self._waiting.append(_Waiting(request, command, slot, again=True))
        elif command.opcode == Opcode.READ and slot.status == Status.SUCCESS:
            _complete(request, command, *self._read(command, request.longest))
        else:
            _complete(request, command, slot.status)

    def _do(self, request: Incoming, command: Command, slot: _Slot) -> None:
        """A new command."""
        status, data = self._refusal(command), b""
        if status == Status.SUCCESS:
            if command.opcode == Opcode.READ:
                status, data = self._read(command, request.longest)
            elif command.opcode == Opcode.COMPARE:
                status, found = self._read(command, None)
                if status == Status.SUCCESS and found != command.data:
                    status = Status.COMPARE_FAILURE
            elif command.opcode != Opcode.FLUSH:
                status = self._write(command)
            if status == Status.SUCCESS:
                self._counters[Opcode(command.opcode).name.lower()] += 1
                durable = command.fua or self._durable
                if command.opcode == Opcode.FLUSH or (command.opcode in _WRITES and durable):
                    slot.waits = True
                    self._waiting.append(_Waiting(request, command, slot))
                    return
        slot.status = status
        self._counters["refused"] += status != Status.SUCCESS
        _complete(request, command, status, data)

    def _refusal(self, command: Command) -> Status:
        """Why a command is not done; SUCCESS: nothing is against it."""
        opcode = command.opcode
        if opcode not in WITH_BLOCKS and opcode != Opcode.FLUSH:
            return Status.INVALID_COMMAND_OPCODE
        if command.nsid != NSID:
            return Status.INVALID_NAMESPACE_OR_FORMAT
        if opcode in WITH_BLOCKS:
            if command.blocks > MAX_BLOCKS:
                return Status.INVALID_FIELD_IN_COMMAND
            if command.slba + command.blocks > self._sectors:
                return Status.LBA_OUT_OF_RANGE
        if self._broken and opcode in _WRITES:
            return Status.WRITE_FAULT
        return Status.SUCCESS

    def _read(self, command: Command, longest: int | None) -> tuple[Status, bytes]:
        if longest is not None and command.blocks * BLOCK + COMPLETION_LEN > longest:
            return Status.INVALID_FIELD_IN_COMMAND, b""
        try:
            data = self._device.read(command.slba, command.blocks)
        except (OSError, SmtError) as e:
            return self._failure(e, Status.UNRECOVERED_READ_ERROR), b""
        self._counters["bytes_read"] += len(data)
        return Status.SUCCESS, data

    def _write(self, command: Command) -> Status:
        data = command.data if command.opcode == Opcode.WRITE else bytes(command.blocks * BLOCK)
        try:
            self._device.write(command.slba, data)
        except (OSError, SmtError) as e:
            return self._failure(e, Status.WRITE_FAULT)
        self._counters["bytes_written"] += len(data)
        return Status.SUCCESS

    def _failure(self, error: OSError | SmtError, media: Status) -> Status:
        """The status for what the device raised: ``media`` for an I/O error. A store that refuses its own content
        (damaged, older than it must be) is an internal error."""
        self.last_failure = str(error)
        if isinstance(error, OSError):
            return Status.CAPACITY_EXCEEDED if error.errno in _FULL else media
        return Status.INTERNAL_ERROR


def _complete(request: Incoming, command: Command, status: int, data: bytes = b"") -> None:
    request.reply(Completion(command.cid, status, command.sequence, command.association, 0, data).pack())
