"""The initiator: commands to a target by the depth of a queue, sent again until they are completed.

:class:`Initiator` is a :class:`~workloads.transports.contract.Caller` around another one, so that every loop and
every transport carries it: its calls are commands (:class:`BlockCall`), each an RPC or, if that fails, several.
:class:`RemoteDevice` is the same as a block device, one command at a time.

When an RPC fails (the target was killed, its connection broke, nobody answered) its command waits a little and is
sent again, with the same id and sequence; the target does it once (target.py). When the target knows nothing of
our association, it is another one than before: the initiator connects anew, and sends again what it has no
completion of. Commands under way at the same time are done in any order, as in NVMe: who needs one after the
other waits.
"""

from __future__ import annotations

import errno
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from smtstack.errors import BadPacket, LocalError, PeerError
from smtstack.socket import Address, RpcTimeout
from workloads import transports
from workloads.blocks.capsule import (
    BLOCK,
    HOST_ID_LEN,
    MAX_DEPTH,
    NSID,
    Command,
    Completion,
    Granted,
    Opcode,
    Status,
    Wanted,
    completion_untrusted,
    granted_untrusted,
)
from workloads.transports.contract import Call, Caller, rpc_to

#: Milliseconds until commands that failed are sent again: at first, and at most.
_FIRST_RETRY_MS, _LAST_RETRY_MS = 10, 500
#: Seconds for Connect, and for a command of a RemoteDevice, with all retries.
PATIENCE_S = 30.0
#: For Disconnect: a target that does not answer finds out by itself.
_GOODBYE_NS = 200_000_000
_SEQUENCES = (1 << 32) - 1


class BlockError(PeerError):
    """The target completed a command with an error: ``status``."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(f"{what}: {Status(status).text}")
        self.status = Status(status)


class BlockCall(Call):
    """A command: ``status`` when it is completed, of a read with its blocks as ``response``."""

    __slots__ = ("blocks", "cid", "command", "fua", "nsid", "opcode", "slba", "status", "under_way")

    def __init__(self, opcode: int, slba: int = 0, blocks: int = 1, data: bytes = b"", *, fua: bool = False,
                 nsid: int = NSID) -> None:
        super().__init__(data)
        self.opcode = opcode
        self.slba = slba
        self.blocks = blocks
        self.fua = fua
        self.nsid = nsid
        self.status: int | None = None
        #: Our slot in the queue, and what was sent last; None: not begun yet, or over.
        self.cid: int | None = None
        self.command: Command | None = None
        self.under_way: _Attempt | None = None

    def what(self) -> str:
        """The command for people."""
        try:
            name = Opcode(self.opcode).name.lower().replace("_", " ")
        except ValueError:
            name = f"opcode {self.opcode:#04x}"
        return f"{name} of {self.blocks} blocks at {self.slba}"


class _Attempt(Call):
    """An RPC of ours; ``of`` None: a Connect."""

    __slots__ = ("of",)

    def __init__(self, data: bytes, of: BlockCall | None) -> None:
        super().__init__(data)
        self.of = of


class Initiator(Caller):
    """Commands over ``inner``, at most ``depth`` of them under way: further ones wait in line. :meth:`prepare`
    makes the queue deeper.

    ``host``: 16 bytes that no other initiator has. It owns ``inner``. ``finished`` has commands. Nothing is done
    before :meth:`prepare` has connected.
    """

    def __init__(self, inner: Caller, host: bytes, depth: int = 1,
                 clock: Callable[[], int] = time.monotonic_ns) -> None:
        super().__init__(inner.peers[:1])
        if not 0 < depth <= MAX_DEPTH:
            raise LocalError(f"a queue of {depth}: 1 to {MAX_DEPTH}")
        self.inner = inner
        self.depth = depth
        self._host = host
        self._clock = clock
        self._attempts = 0
        self._association = 0
        self._connecting: _Attempt | None = None
        #: What the target granted; None: never connected yet.
        self.granted: Granted | None = None
        #: Blocks of the namespace.
        self.sectors = 0
        self._sequence = [0] * depth
        self._free: list[int] = []
        #: By command id.
        self._open: dict[int, BlockCall] = {}
        self._line: deque[BlockCall] = deque()
        #: Begun, not under way: to be sent again.
        self._again: list[BlockCall] = []
        self._retry_at: int | None = None
        self._retry_ms = _FIRST_RETRY_MS
        #: Why an RPC failed, or Connect was refused, the last time.
        self.last_error = ""
        self._counters: Counter[str] = Counter({"blocks_connects": 0, "blocks_sent_again": 0})

    # -- the contract --------------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self.inner.fileno()

    def next_wake(self) -> int | None:
        wakes = [at for at in (self.inner.next_wake(), self._retry_at) if at is not None]
        return min(wakes, default=None)

    def prepare(self, concurrency: int) -> None:
        """Connections or sessions for a queue at least so deep, and Connect. Raises PeerError; LocalError for a
        deeper queue while commands are under way."""
        if concurrency > self.depth:
            if self._open or concurrency > MAX_DEPTH:
                raise LocalError(f"a queue of {concurrency}: at most {MAX_DEPTH}, and when nothing is under way")
            self.depth = concurrency
            self._association = 0
        self.inner.prepare(self.depth)
        self._await_association()

    def begin(self, call: Call) -> None:
        assert isinstance(call, BlockCall)
        self._line.append(call)
        self._submit()

    def abort(self, call: Call) -> None:
        """Give up a command. Nobody knows whether it was done: so that no late copy of it ever is, the next one
        goes under a new association."""
        assert isinstance(call, BlockCall)
        if call in self._line:
            self._line.remove(call)
        else:
            attempt = call.under_way
            self._drop(call)
            if attempt is not None:
                self.inner.abort(attempt)
            self._association = 0
            self._retry(0)
        why = f"; {self.last_error}" if self.last_error else ""
        self.fail(call, RpcTimeout(f"{rpc_to(self.peers[0])}: {call.what()}: no completion in time{why}"))

    def poll(self) -> None:
        self._maintain()
        self.inner.poll()
        self._collect()

    def drive(self, timeout_s: float) -> None:
        if self.finished:
            return
        self._maintain()
        if self._retry_at is not None:
            timeout_s = min(timeout_s, max(0, self._retry_at - self._clock()) / 1e9)
        self.inner.drive(timeout_s)
        self._collect()

    def linger(self, timeout_s: float) -> None:
        self.inner.linger(timeout_s)

    def counters(self) -> dict[str, int]:
        """The transport's, ``blocks_connects``, and ``blocks_sent_again``: commands."""
        return {**self.inner.counters(), **self._counters}

    def drops(self) -> tuple[int, int]:
        return self.inner.drops()

    def take_late_ns(self) -> int:
        return self.inner.take_late_ns()

    def close(self) -> None:
        """Disconnect, if that takes no time, and close ``inner``."""
        if self._association:
            bye = _Attempt(Command(Opcode.DISCONNECT, association=self._association).pack(), None)
            self._association = 0
            end = self._clock() + _GOODBYE_NS
            self.inner.begin(bye)
            while not bye.ended and (left := end - self._clock()) > 0:
                self.inner.drive(left / 1e9)
                self.inner.finished.clear()
        self.inner.close()

    # -- commands ------------------------------------------------------------------------------------------

    def _submit(self) -> None:
        """Begin as many as there are slots."""
        while self._line and self._free and self._association:
            call = self._line.popleft()
            call.cid = self._free.pop()
            self._open[call.cid] = call
            self._send(call)

    def _send(self, call: BlockCall) -> None:
        """A command in its slot, for the first time under this association."""
        cid = call.cid
        assert cid is not None
        sequence = self._sequence[cid] = self._sequence[cid] + 1 & _SEQUENCES
        call.command = Command(call.opcode, cid, sequence, self._association, call.slba, call.blocks, call.data,
                               call.fua, call.nsid)
        self._attempt(call)

    def _attempt(self, call: BlockCall) -> None:
        assert call.command is not None
        attempt = call.under_way = _Attempt(call.command.pack(), call)
        self.inner.begin(attempt)

    def _collect(self) -> None:
        """What the transport has finished."""
        finished = self.inner.finished
        while finished:
            attempt = finished.popleft()
            assert isinstance(attempt, _Attempt)
            call = attempt.of
            if call is None:
                if attempt is self._connecting:
                    self._connected(attempt)
            elif call.under_way is attempt:
                call.under_way = None
                self._judge(call, attempt)
        self._submit()

    def _judge(self, call: BlockCall, attempt: _Attempt) -> None:
        """An RPC of a command is over."""
        completion = self._completion(attempt)
        command = call.command
        assert command is not None
        if completion is not None and (completion.cid, completion.sequence, completion.association) != (
                command.cid, command.sequence, command.association):
            self.last_error = f"the target answered to another command ({Status(completion.status).text})"
            completion = None
        if completion is None:
            self._again.append(call)
            self._retry()
        elif completion.status == Status.COMMAND_SEQUENCE_ERROR:
            self.last_error = "the target does not know us: it was started again"
            if command.association == self._association:
                self._association = 0
            self._again.append(call)
            self._retry(0)
        else:
            self._retry_ms = _FIRST_RETRY_MS
            call.status = completion.status
            call.response = completion.data
            call.ended = attempt.ended
            self._drop(call)
            self.finished.append(call)

    def _completion(self, attempt: _Attempt) -> Completion | None:
        """What an RPC brought; None: nothing that can be read, and :attr:`last_error` says why."""
        if attempt.response is None:
            self.last_error = str(attempt.error)
            return None
        try:
            return completion_untrusted(attempt.response)
        except BadPacket as e:
            self.last_error = str(e)
            return None

    def _drop(self, call: BlockCall) -> None:
        """A command is over, and its slot free. A slot whose command was given up is of no use under this
        association, which ends with it."""
        call.under_way = None
        if call in self._again:
            self._again.remove(call)
        if call.cid is not None:
            del self._open[call.cid]
            self._free.append(call.cid)
            call.cid = None

    # -- retries and associations --------------------------------------------------------------------------

    def _retry(self, after_ms: int | None = None) -> None:
        """Look again in a while, longer each time."""
        if after_ms is None:
            after_ms = self._retry_ms
            self._retry_ms = min(2 * self._retry_ms, _LAST_RETRY_MS)
        at = self._clock() + after_ms * 1_000_000
        self._retry_at = at if self._retry_at is None else min(self._retry_at, at)

    def _maintain(self) -> None:
        """If it is time: connections and sessions that were lost, the association, commands sent again."""
        if self._retry_at is None or self._clock() < self._retry_at:
            return
        self._retry_at = None
        try:
            self.inner.prepare(self.depth)
        except PeerError as e:
            self.last_error = str(e)
            self._retry()
            return
        if not self._association:
            if self._connecting is None:
                self._connect()
            return
        again, self._again = self._again, []
        for call in again:
            self._counters["blocks_sent_again"] += 1
            command = call.command
            if command is None or command.association != self._association:
                self._send(call)
            else:
                self._attempt(call)

    def _connect(self) -> None:
        self._attempts += 1
        data = Wanted(self._host, self.depth).pack()
        self._connecting = _Attempt(Command(Opcode.CONNECT, 0, self._attempts, data=data).pack(), None)
        self.inner.begin(self._connecting)

    def _connected(self, attempt: _Attempt) -> None:
        """The Connect is over."""
        self._connecting = None
        completion = self._completion(attempt)
        if completion is not None:
            try:
                if completion.status != Status.SUCCESS:
                    raise BlockError("connect", completion.status)
                granted = granted_untrusted(completion.data)
                if granted.depth != self.depth or not completion.association:
                    raise PeerError(f"connect: a queue of {granted.depth}, not of {self.depth}")
            except PeerError as e:
                self.last_error = str(e)
                completion = None
        if completion is None:
            self._retry()
            return
        self.granted = granted
        self.sectors = completion.result
        self._association = completion.association
        self._counters["blocks_connects"] += 1
        self._sequence = [0] * self.depth
        self._free = [cid for cid in reversed(range(self.depth)) if cid not in self._open]
        self._retry_ms = _FIRST_RETRY_MS
        if self._again:
            self._retry(0)
            self._maintain()

    def _await_association(self) -> None:
        """Connect, and go on until it has. Raises PeerError."""
        if self._association:
            return
        end = self._clock() + int(PATIENCE_S * 1e9)
        if self._connecting is None:
            self._connect()
        while not self._association:
            left = end - self._clock()
            if left <= 0:
                raise PeerError(f"{rpc_to(self.peers[0])}: no Connect: {self.last_error or 'no answer'}")
            self.drive_on(left / 1e9)

    def drive_on(self, timeout_s: float) -> None:
        """Wait and do, as :meth:`drive`, also if commands have finished that nobody has taken yet."""
        self._maintain()
        if self._retry_at is not None:
            timeout_s = min(timeout_s, max(0, self._retry_at - self._clock()) / 1e9)
        self.inner.drive(timeout_s)
        self._collect()

    def run(self, call: BlockCall, timeout_s: float = PATIENCE_S) -> bytes:
        """One command from its beginning to its end, with no others under way. The blocks of a read. Raises
        :class:`BlockError`, PeerError."""
        call.started = time.perf_counter_ns()
        end = self._clock() + int(timeout_s * 1e9)
        self.begin(call)
        while not call.ended:
            left = end - self._clock()
            if left <= 0:
                self.abort(call)
                break
            self.drive_on(left / 1e9)
        self.finished.remove(call)
        if call.error is not None:
            raise call.error
        assert call.status is not None
        if call.status != Status.SUCCESS:
            raise BlockError(call.what(), call.status)
        return call.response or b""


def open_caller(settings: transports.Settings, peers: Sequence[Address], connections: int = 0) -> Initiator:
    """An initiator of the first of ``peers``, under a name that nobody else has. Raises ConfigError,
    Unsupported."""
    return Initiator(transports.open_caller(settings, peers[:1], connections), secrets.token_bytes(HOST_ID_LEN))


#: What a block device says for statuses; for others, and where nobody answers, EIO.
ERRNO = {Status.LBA_OUT_OF_RANGE: errno.EINVAL, Status.CAPACITY_EXCEEDED: errno.ENOSPC}


class RemoteDevice:
    """A namespace as a :class:`~smtstack.storage.device.BlockDevice`: whatever works on one, works on this one,
    one command at a time. Errors are OSError, as every device's."""

    def __init__(self, initiator: Initiator) -> None:
        initiator.prepare(initiator.depth)
        self._initiator = initiator
        assert initiator.granted is not None
        self._most = initiator.granted.max_blocks

    @property
    def sectors(self) -> int:
        """How many there are."""
        return self._initiator.sectors

    def read(self, sector: int, count: int) -> bytes:
        """``count`` sectors from ``sector`` on."""
        return b"".join(self._run(BlockCall(Opcode.READ, at, some)) for at, some in self._pieces(sector, count))

    def write(self, sector: int, data: bytes) -> None:
        """Whole sectors from ``sector`` on; what takes several commands may be there in part after an error."""
        blocks, rest = divmod(len(data), BLOCK)
        if rest:
            raise OSError(errno.EINVAL, f"{len(data)} bytes are no whole sectors")
        for at, some in self._pieces(sector, blocks):
            first = (at - sector) * BLOCK
            self._run(BlockCall(Opcode.WRITE, at, some, data[first:first + some * BLOCK]))

    def flush(self) -> None:
        """What was written before survives a power cut."""
        self._run(BlockCall(Opcode.FLUSH))

    def close(self) -> None:
        """Close the initiator."""
        self._initiator.close()

    def _run(self, call: BlockCall) -> bytes:
        try:
            return self._initiator.run(call)
        except BlockError as e:
            raise OSError(ERRNO.get(e.status, errno.EIO), str(e)) from None
        except PeerError as e:
            raise OSError(errno.EIO, str(e)) from None

    def _pieces(self, sector: int, count: int) -> list[tuple[int, int]]:
        """(first sector, how many) of the commands for a range."""
        return [(at, min(self._most, sector + count - at)) for at in range(sector, sector + count, self._most)]
