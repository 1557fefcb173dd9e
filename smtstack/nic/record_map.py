"""Which record of a TLS stream lies where in TCP's sequence, with its bytes: kept until it is wholly acknowledged.

One flat buffer, memory that an application and the driver half of a NIC in another process both map. The
application writes, in this order: a record's bytes, its entry, the count of records. The driver reads, copies, and
then looks whether the record is still there: what was released meanwhile may be overwritten, and counts as gone.
Every word has one writer, and is written by one store of 64 bits. The driver believes nothing it reads: a place
outside of the buffer is no record.

What is sent before :attr:`FlowWords.start_seq` (the *start marker*) is no record: it goes out as it is. A record
may also be *sealed*: its bytes in TCP's stream are ciphertext already, as software made it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from smtstack.crypto.stream_gcm import Data
from smtstack.errors import ConfigError, LocalError
from smtstack.wire.tcp import distance

Buffer = bytearray | memoryview

_MAGIC: Final = int.from_bytes(b"smttls\0\1", "big")
(_AT_MAGIC, _AT_CAPACITY, _AT_DATA, _AT_SIZE, _AT_START, _AT_NUMBER, _AT_CREATED, _AT_RELEASED, _AT_SEALED,
 _AT_OWNER, _AT_ABORTED, _AT_RESET, _AT_SENT, _AT_AGAIN, _AT_WANTED, _AT_ANSWERED, _AT_SYNC_SEQ,
 _AT_SYNC_NUMBER) = range(18)
_HEADER_WORDS: Final = 32
_ENTRY_WORDS: Final = 3
_MASK32: Final = 0xFFFFFFFF
_MASK64: Final = 0xFFFFFFFFFFFFFFFF
#: In place of where a record's bytes are: nowhere, it is sealed.
_SEALED: Final = _MASK64
#: Records a map takes at once where nobody says otherwise.
DEFAULT_RECORDS: Final = 4096
#: No record is as long as that, so an entry that says so is none.
_LENGTH_LIMIT: Final = 1 << 16


def map_bytes(data: int, records: int = DEFAULT_RECORDS) -> int:
    """Size of a buffer for so many bytes of records, and so many records, under way."""
    return 8 * (_HEADER_WORDS + _ENTRY_WORDS * records) + (data + 7 & ~7)


class FlowWords:
    """What application, driver and device know of one flow together: the first words of its record map."""

    __slots__ = ("_bytes", "_words")

    def __init__(self, buffer: Buffer) -> None:
        size = len(buffer) & ~7
        if size < 8 * _HEADER_WORDS:
            raise ConfigError(f"a record map has at least {8 * _HEADER_WORDS} bytes, not {len(buffer)}")
        self._bytes = memoryview(buffer)
        self._words = self._bytes[:size].cast("Q")

    def close(self) -> None:
        """Let go of the buffer; the map is not to be used any longer."""
        self._words.release()
        self._bytes.release()

    @property
    def start_seq(self) -> int:
        """TCP sequence number of the first record's first byte (``start_offload_tcp_sn``)."""
        return self._words[_AT_START] & _MASK32

    @property
    def first_number(self) -> int:
        """Record number of the first record."""
        return self._words[_AT_NUMBER]

    @property
    def created(self) -> int:
        """Records ever put in."""
        return self._words[_AT_CREATED]

    @property
    def released(self) -> int:
        """Records ever taken out: wholly acknowledged, or gone with the connection."""
        return self._words[_AT_RELEASED]

    @property
    def sealed(self) -> int:
        """Records in the map now that are ciphertext already; while it is 0, nobody has to look for them."""
        return self._words[_AT_SEALED]

    @property
    def owner(self) -> int:
        """Number of the NIC that has the flow's context; 0: none has."""
        return self._words[_AT_OWNER]

    @owner.setter
    def owner(self, nic: int) -> None:
        self._words[_AT_OWNER] = nic

    @property
    def aborted(self) -> bool:
        """The connection is to end (ECONNABORTED): nothing of it may be sent any longer."""
        return self._words[_AT_ABORTED] != 0

    @aborted.setter
    def aborted(self, value: bool) -> None:
        self._words[_AT_ABORTED] = int(value)

    @property
    def reset_pending(self) -> bool:
        """A packet came to a NIC that does not have the context: set by it (FreeBSD's EAGAIN), cleared by who has
        given the flow a context where it now goes."""
        return self._words[_AT_RESET] != 0

    @reset_pending.setter
    def reset_pending(self, value: bool) -> None:
        self._words[_AT_RESET] = int(value)

    @property
    def sent_bytes(self) -> int:
        """Payload bytes of the flow that NICs sent for the first time."""
        return self._words[_AT_SENT]

    @property
    def retransmitted_bytes(self) -> int:
        """Payload bytes of the flow that NICs sent again."""
        return self._words[_AT_AGAIN]


class Record:
    """One record as the map has it."""

    __slots__ = ("length", "number", "offset", "ordinal", "sealed", "start")

    def __init__(self, start: int, length: int, number: int, offset: int, ordinal: int, sealed: bool) -> None:
        #: TCP sequence number of its first byte.
        self.start = start
        #: Bytes of the whole record, with header and tag.
        self.length = length
        #: Record number.
        self.number = number
        self.offset = offset
        #: How many records were put in before it.
        self.ordinal = ordinal
        #: Its bytes in the stream are ciphertext already; the map has none.
        self.sealed = sealed


class RecordMapWriter(FlowWords):
    """The application's end: records go in as they are sent, and out as they are acknowledged."""

    __slots__ = ("_capacity", "_data", "_data_at", "_head", "_in", "_size", "_tail")

    def __init__(self, buffer: Buffer, start_seq: int, first_number: int = 0,
                 records: int = DEFAULT_RECORDS) -> None:
        """Make an empty map of the buffer: records begin at ``start_seq`` in TCP's stream with ``first_number``.

        Raises :class:`ConfigError` where the buffer is too small (:func:`map_bytes`).
        """
        super().__init__(buffer)
        self._data_at = 8 * (_HEADER_WORDS + _ENTRY_WORDS * records)
        self._size = len(buffer) - self._data_at
        if records < 1 or self._size < 1:
            raise ConfigError(f"a buffer of {len(buffer)} bytes has no room for {records} records")
        self._capacity = records
        #: (sequence number behind it, end of its data, sealed) of each record in the map.
        self._in: deque[tuple[int, int, bool]] = deque()
        # Bytes ever put in and out of the data ring, with what was skipped at its end.
        self._head = self._tail = 0
        words = self._words
        words[_AT_MAGIC] = 0
        for at in range(1, _HEADER_WORDS):
            words[at] = 0
        words[_AT_CAPACITY] = records
        words[_AT_DATA] = self._data_at
        words[_AT_SIZE] = self._size
        words[_AT_START] = start_seq & _MASK32
        words[_AT_NUMBER] = first_number
        words[_AT_MAGIC] = _MAGIC

    def append(self, seq: int, *parts: Data) -> memoryview | None:
        """Put in the next record, framed, that begins at ``seq``: its bytes, in one or more parts.

        Returns those bytes in the map, to be given to TCP: they stay as they are until the record is released.
        None: there is no room until more is acknowledged. Call it before TCP gets the first byte.
        """
        length = sum(map(len, parts))
        if not 0 < length < _LENGTH_LIMIT:
            raise LocalError(f"a record of {length} bytes")
        at = self._head % self._size
        skipped = self._size - at if at + length > self._size else 0
        head = self._head + skipped + length
        if head - self._tail > self._size or len(self._in) >= self._capacity:
            return None
        start = at = self._data_at + (0 if skipped else at)
        for part in parts:
            end = at + len(part)
            self._bytes[at:end] = part
            at = end
        self._head = head
        self._enter(seq, length, start - self._data_at)
        return self._bytes[start:at]

    def append_sealed(self, seq: int, length: int) -> bool:
        """Put in the next record, which is ciphertext already: ``length`` bytes from ``seq`` go out as they are.

        False: there is no room.
        """
        if not 0 < length < _LENGTH_LIMIT:
            raise LocalError(f"a record of {length} bytes")
        if len(self._in) >= self._capacity:
            return False
        # The count first: whoever sees the record looks for sealed ones.
        self._words[_AT_SEALED] += 1
        self._enter(seq, length, _SEALED)
        return True

    def _enter(self, seq: int, length: int, offset: int) -> None:
        words = self._words
        ordinal = words[_AT_CREATED]
        at = _HEADER_WORDS + ordinal % self._capacity * _ENTRY_WORDS
        words[at] = (seq & _MASK32) << 32 | length
        words[at + 1] = offset
        words[at + 2] = ordinal
        words[_AT_CREATED] = ordinal + 1
        self._in.append((seq + length & _MASK32, self._head, offset == _SEALED))
        self._answer(seq, ordinal)

    def _answer(self, seq: int, ordinal: int) -> None:
        """Tell a NIC that asked where the next record begins, and its number."""
        words = self._words
        wanted = words[_AT_WANTED]
        if wanted != words[_AT_ANSWERED]:
            words[_AT_SYNC_SEQ] = seq & _MASK32
            words[_AT_SYNC_NUMBER] = words[_AT_NUMBER] + ordinal & _MASK64
            words[_AT_ANSWERED] = wanted

    @property
    def sync_wanted(self) -> bool:
        """A NIC waits for the next record: let it begin a segment (MSG_EOR on what is written before it)."""
        return self._words[_AT_WANTED] != self._words[_AT_ANSWERED]

    def release(self, acked: int) -> int:
        """Take out the records that TCP's acknowledgement number covers wholly; how many these were."""
        inside = self._in
        words = self._words
        count = 0
        while inside and distance(inside[0][0], acked) >= 0:
            _end, data_end, sealed = inside.popleft()
            # First the record, then its room is free for others: who reads it meanwhile sees that.
            words[_AT_RELEASED] += 1
            if sealed:
                words[_AT_SEALED] -= 1
            self._tail = data_end
            count += 1
        if not inside:
            self._tail = self._head
        return count

    def release_all(self) -> int:
        """Take out whatever is left, as the connection is gone; how many records these were."""
        count = 0
        while self._in:
            count += self.release(self._in[0][0])
        return count

    def __len__(self) -> int:
        """Records in the map."""
        return len(self._in)


class RecordMapReader(FlowWords):
    """The driver's end, in another process than who writes. Apart from the constructor nothing raises."""

    __slots__ = ("_capacity", "_data_at", "_hint", "_size")

    def __init__(self, buffer: Buffer) -> None:
        """Raises :class:`ConfigError` where the buffer is no record map."""
        super().__init__(buffer)
        words = self._words
        self._capacity = words[_AT_CAPACITY]
        self._data_at = words[_AT_DATA]
        self._size = words[_AT_SIZE]
        # Kept from now on: whatever the other side writes there later, it is these that are inside of the buffer.
        if (words[_AT_MAGIC] != _MAGIC or not 1 <= self._capacity <= len(buffer)
                or self._data_at != 8 * (_HEADER_WORDS + _ENTRY_WORDS * self._capacity)
                or self._data_at + self._size > len(buffer)):
            raise ConfigError("this memory is no record map")
        # Ordinal of the record found last; the next is often it or the one behind.
        self._hint = 0

    def before_records(self, seq: int, length: int) -> bool:
        """Whether so many bytes lie wholly before the start marker.

        It counts until the first record is released: from then on everything before it is acknowledged, and 2 GB
        later sequence numbers would seem to lie there again.
        """
        words = self._words
        return words[_AT_RELEASED] == 0 and distance(words[_AT_START] & _MASK32, seq + length & _MASK32) <= 0

    def straddles_start(self, seq: int, length: int) -> int:
        """How many of so many bytes lie before the start marker, where some do and some do not; else 0."""
        words = self._words
        before = -distance(words[_AT_START] & _MASK32, seq)
        return before if words[_AT_RELEASED] == 0 and 0 < before < length else 0

    def lookup(self, seq: int) -> Record | None:
        """The record that the byte at ``seq`` belongs to; None: it is released, or there never was one."""
        words = self._words
        first, behind = words[_AT_RELEASED], words[_AT_CREATED]
        if not 0 < behind - first <= self._capacity:
            return None
        hint = self._hint
        for ordinal in (hint, hint + 1):
            if first <= ordinal < behind:
                record = self._record(ordinal, seq)
                if record is not None:
                    return record
        base = self._start(first)
        offset = (seq - base) & _MASK32
        low, high = first, behind
        while high - low > 1:
            middle = (low + high) >> 1
            if (self._start(middle) - base) & _MASK32 <= offset:
                low = middle
            else:
                high = middle
        return self._record(low, seq)

    def _start(self, ordinal: int) -> int:
        return self._words[_HEADER_WORDS + ordinal % self._capacity * _ENTRY_WORDS] >> 32

    def _record(self, ordinal: int, seq: int) -> Record | None:
        """The record of this ordinal, if ``seq`` is in it, and it still is there when all is read."""
        words = self._words
        at = _HEADER_WORDS + ordinal % self._capacity * _ENTRY_WORDS
        place, offset, stamp = words[at], words[at + 1], words[at + 2]
        start, length = place >> 32, place & _MASK32
        if stamp != ordinal or (seq - start) & _MASK32 >= length or words[_AT_RELEASED] > ordinal:
            return None
        if length >= _LENGTH_LIMIT:
            return None
        if offset != _SEALED and offset + length > self._size:
            return None
        self._hint = ordinal
        return Record(start, length, words[_AT_NUMBER] + ordinal & _MASK64, offset, ordinal, offset == _SEALED)

    def read(self, record: Record, length: int) -> bytes | None:
        """The first bytes of a record; None: it has none (sealed), has fewer, or was released meanwhile."""
        if record.sealed or not 0 <= length <= record.length or record.offset + record.length > self._size:
            return None
        at = self._data_at + record.offset
        data = bytes(self._bytes[at:at + length])
        return None if self._words[_AT_RELEASED] > record.ordinal else data

    def count(self, sent: int, again: int) -> None:
        """Add to the bytes that were sent, and sent again."""
        words = self._words
        if sent:
            words[_AT_SENT] = words[_AT_SENT] + sent & _MASK64
        if again:
            words[_AT_AGAIN] = words[_AT_AGAIN] + again & _MASK64

    def ask_sync(self) -> int:
        """Ask where the next record that is written begins; what :meth:`sync_answer` has to wait for."""
        words = self._words
        words[_AT_WANTED] = wanted = words[_AT_WANTED] + 1 & _MASK64
        return wanted

    def sync_answer(self, wanted: int) -> tuple[int, int] | None:
        """(TCP sequence number, record number) of the first record written after the question; None: not yet."""
        words = self._words
        if words[_AT_ANSWERED] != wanted:
            return None
        return words[_AT_SYNC_SEQ] & _MASK32, words[_AT_SYNC_NUMBER]
