"""Which bytes of a TCP stream a NIC passed up decrypted: what ``skb->decrypted`` is in a kernel.

One flat buffer for each flow and NIC, memory that the NIC and an application in another process both map. The
NIC writes what it did with a packet *before* the kernel gets it, so whoever has read bytes from the socket finds
their marks here. Ranges passed up in one form and then in the other are *ambiguous*: which copy the kernel took,
only the record's tag can tell. A record whose every byte, the last of the tag among them, is marked decrypted and
nothing else, was verified by the device: it passes the packet in which a tag ends as decrypted only if that tag is
right.

Questions of a device that lost the records' beginnings go the same way, and answers the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from smtstack.errors import ConfigError
from smtstack.nic.record_map import Buffer
from smtstack.wire.tcp import distance

_MAGIC: Final = int.from_bytes(b"smtmark\1", "big")
(_AT_MAGIC, _AT_CAPACITY, _AT_HEAD, _AT_OVERFLOW, _AT_TAIL, _AT_STARTS, _AT_START, _AT_QUESTIONS, _AT_QUESTION,
 _AT_ANSWERS, _AT_ANSWER_SEQ, _AT_ANSWER_NUMBER) = range(12)
_HEADER_WORDS: Final = 16
_MASK32: Final = 0xFFFFFFFF
_MASK64: Final = 0xFFFFFFFFFFFFFFFF
#: An entry is one word: sequence number (32 bits), length (24), form (8).
_LENGTH_LIMIT: Final = 0xFFFFFF
#: What a range may be. Bits: passed up as it came, passed up decrypted.
ENCRYPTED: Final = 1
DECRYPTED: Final = 2
AMBIGUOUS: Final = 3
#: Entries where nobody says otherwise.
DEFAULT_ENTRIES: Final = 4096


def mark_bytes(entries: int = DEFAULT_ENTRIES) -> int:
    """Size of a buffer for so many entries."""
    return 8 * (_HEADER_WORDS + entries)


def _words(buffer: Buffer) -> memoryview:
    size = len(buffer) & ~7
    if size < 8 * (_HEADER_WORDS + 2):
        raise ConfigError(f"a buffer of marks has at least {8 * (_HEADER_WORDS + 2)} bytes, not {len(buffer)}")
    return memoryview(buffer)[:size].cast("Q")


class MarkWriter:
    """The NIC's end. It makes the buffer new, and believes nothing that the application writes there."""

    __slots__ = ("_answered", "_capacity", "_head", "_hull", "_last", "_questions", "_starts", "_words")

    def __init__(self, buffer: Buffer) -> None:
        """Raises :class:`ConfigError` where the buffer is too small."""
        words = self._words = _words(buffer)
        self._capacity = len(words) - _HEADER_WORDS
        words[_AT_MAGIC] = 0
        for at in range(1, _HEADER_WORDS):
            words[at] = 0
        words[_AT_CAPACITY] = self._capacity
        words[_AT_MAGIC] = _MAGIC
        # Counted here: what stands in the buffer the application may have changed.
        self._head = self._starts = self._questions = 0
        #: The newest entry as (sequence number behind it, length, form).
        self._last = (0, 0, 0)
        #: What was passed up while there was no room: (start, length).
        self._hull = (0, 0)
        self._answered = 0

    def close(self) -> None:
        """Let go of the buffer."""
        self._words.release()

    def log(self, seq: int, length: int, decrypted: bool) -> bool:
        """Note what is about to be passed up. False: no room, so it must be passed up as it came.

        Ranges passed up as they came are noted in any case, if need be together with what lies between them.
        """
        if self._hull[1] and not self._write_hull():
            if not decrypted:
                self._extend_hull(seq, length)
            return False
        if self._append(seq, length, DECRYPTED if decrypted else ENCRYPTED):
            return True
        if not decrypted:
            self._extend_hull(seq, length)
        return False

    def _append(self, seq: int, length: int, form: int) -> bool:
        words = self._words
        head = self._head
        end, before, last_form = self._last
        if end == seq and form == last_form and before + length <= _LENGTH_LIMIT and before:
            start = (seq - before) & _MASK32
            end = seq + length & _MASK32
            length += before
            words[_HEADER_WORDS + (head - 1) % self._capacity] = start << 32 | length << 8 | form
            self._last = (end, length, form)
            return True
        # The reader leaves the newest entry, which may grow: so one place less than there are.
        if not 0 <= head - words[_AT_TAIL] < self._capacity - 1:
            return False
        words[_HEADER_WORDS + head % self._capacity] = seq << 32 | length << 8 | form
        self._head = words[_AT_HEAD] = head + 1
        self._last = (seq + length & _MASK32, length, form)
        return True

    def _extend_hull(self, seq: int, length: int) -> None:
        start, size = self._hull
        if not size:
            start, size = seq, length
        else:
            ahead = distance(start, seq)
            end = max(size, ahead + length)
            low = min(0, ahead)
            start, size = start + low & _MASK32, end - low
        self._hull = (start, size)
        self._words[_AT_OVERFLOW] = start << 32 | size & _MASK32

    def _write_hull(self) -> bool:
        start, size = self._hull
        while size:
            piece = min(size, _LENGTH_LIMIT)
            if not self._append(start, piece, ENCRYPTED):
                break
            start, size = start + piece & _MASK32, size - piece
        self._hull = (start, size)
        # After the entries: whoever reads in between finds it twice, never not at all.
        self._words[_AT_OVERFLOW] = start << 32 | size if size else 0
        return not size

    def ask(self, seq: int) -> None:
        """Ask whether a record begins at ``seq``, and which."""
        self._questions += 1
        self._words[_AT_QUESTION] = seq
        self._words[_AT_QUESTIONS] = self._questions

    def ask_later(self, seq: int, length: int) -> None:
        """Have the application remember where records begin, from this packet on: a question will follow."""
        self._starts += 1
        self._words[_AT_START] = seq << 32 | length
        self._words[_AT_STARTS] = self._starts

    def answer(self) -> tuple[int, int] | None:
        """(TCP sequence number of a record's first byte, record number) as the application says; None: no news.

        Not only in answer to a question: where it drives the resync, the application says so by itself.
        """
        words = self._words
        count = words[_AT_ANSWERS]
        if count == self._answered:
            return None
        seq, number = words[_AT_ANSWER_SEQ] & _MASK32, words[_AT_ANSWER_NUMBER]
        if words[_AT_ANSWERS] != count:
            # It is being written; the next packet will find it.
            return None
        self._answered = count
        return seq, number


class Range:
    """Bytes of one form: from ``start`` to before ``end``, counted from wherever the caller asked from."""

    __slots__ = ("end", "form", "start")

    def __init__(self, start: int, end: int, form: int) -> None:
        self.start = start
        self.end = end
        #: :data:`ENCRYPTED`, :data:`DECRYPTED` or :data:`AMBIGUOUS`.
        self.form = form


class _Log:
    """One buffer as the application reads it."""

    __slots__ = ("asked", "begun", "capacity", "tail", "words")

    def __init__(self, buffer: Buffer) -> None:
        self.words = _words(buffer)
        self.capacity = self.words[_AT_CAPACITY]
        if self.words[_AT_MAGIC] != _MAGIC or not 2 <= self.capacity <= len(self.words) - _HEADER_WORDS:
            raise ConfigError("this memory has no marks of a NIC")
        self.tail = 0
        self.asked = self.words[_AT_QUESTIONS]
        self.begun = self.words[_AT_STARTS]

    def entries(self) -> list[int]:
        """All that is new, and the newest again, as it may have grown; then what did not fit."""
        words, capacity = self.words, self.capacity
        head = words[_AT_HEAD]
        # More than there is room for only if somebody scribbled.
        count = min(max(head - self.tail, 0), capacity)
        out = [words[_HEADER_WORDS + ordinal % capacity] for ordinal in range(head - count, head)]
        if count:
            self.tail = head - 1
            words[_AT_TAIL] = self.tail
        overflow = words[_AT_OVERFLOW]
        start, size = overflow >> 32, overflow & _MASK32
        while size:
            piece = min(size, _LENGTH_LIMIT)
            out.append(start << 32 | piece << 8 | ENCRYPTED)
            start, size = start + piece & _MASK32, size - piece
        return out


class MarkReader:
    """The application's end, over the buffers of all NICs that may receive the flow."""

    __slots__ = ("_base", "_logs", "_ranges", "_seq")

    def __init__(self, buffers: Sequence[Buffer], seq: int) -> None:
        """``seq``: TCP sequence number from which on marks count.

        Raises :class:`ConfigError` for what is no buffer of marks.
        """
        self._logs = [_Log(buffer) for buffer in buffers]
        self._seq = seq
        #: Position of ``_seq``, counted from the beginning without wrapping.
        self._base = 0
        #: Disjoint, in order: [start, end, bits], in such positions.
        self._ranges: list[list[int]] = []

    def close(self) -> None:
        """Let go of the buffers."""
        for log in self._logs:
            log.words.release()

    def forms(self, seq: int, length: int) -> list[Range]:
        """In which forms so many bytes from ``seq`` were passed up: ranges that cover them, counted from ``seq``.

        Bytes that no NIC noted came as they were on the wire: :data:`ENCRYPTED`. Neighbours differ in form.
        """
        self._pull()
        start = self._base + distance(self._seq, seq)
        end = start + length
        out: list[Range] = []
        at = start
        for low, high, bits in self._ranges:
            if high <= at:
                continue
            if low >= end:
                break
            if low > at:
                _add(out, at - start, low - start, ENCRYPTED)
                at = low
            _add(out, at - start, min(high, end) - start, bits)
            at = min(high, end)
        if at < end:
            _add(out, at - start, end - start, ENCRYPTED)
        return out

    def release(self, seq: int) -> None:
        """Forget what is before ``seq``: those bytes are delivered."""
        self._base += distance(self._seq, seq)
        self._seq = seq
        ranges = self._ranges
        while ranges and ranges[0][1] <= self._base:
            del ranges[0]

    def _pull(self) -> None:
        for log in self._logs:
            for entry in log.entries():
                start = self._base + distance(self._seq, entry >> 32)
                end = start + (entry >> 8 & _LENGTH_LIMIT)
                bits = entry & AMBIGUOUS
                if end > self._base and bits:
                    self._note(max(start, self._base), end, bits)

    def _note(self, start: int, end: int, bits: int) -> None:
        ranges = self._ranges
        if not ranges or start >= ranges[-1][1]:
            if start == end:
                return
            if ranges and start == ranges[-1][1] and bits == ranges[-1][2]:
                ranges[-1][1] = end
            else:
                ranges.append([start, end, bits])
            return
        # Out of order, or again: cut at its ends, mark what is there, fill what is not.
        out: list[list[int]] = []
        at = start
        for low, high, have in ranges:
            if high <= start or low >= end:
                if low >= end and at < end:
                    out.append([at, end, bits])
                    at = end
                out.append([low, high, have])
                continue
            if low < start:
                out.append([low, start, have])
            if low > at:
                out.append([at, low, bits])
            at = min(high, end)
            out.append([max(low, start), at, have | bits])
            if high > end:
                out.append([end, high, have])
        if at < end:
            out.append([at, end, bits])
        merged: list[list[int]] = []
        for one in out:
            if merged and merged[-1][1] == one[0] and merged[-1][2] == one[2]:
                merged[-1][1] = one[1]
            else:
                merged.append(one)
        self._ranges = merged

    def questions(self) -> list[tuple[int, int]]:
        """(which buffer, TCP sequence number) of every new question whether a record begins there."""
        out = []
        for which, log in enumerate(self._logs):
            count = log.words[_AT_QUESTIONS]
            if count != log.asked:
                log.asked = count
                out.append((which, log.words[_AT_QUESTION] & _MASK32))
        return out

    def announced(self) -> list[tuple[int, int, int]]:
        """(which buffer, TCP sequence number, length) of every packet from which on beginnings are to be
        remembered."""
        out = []
        for which, log in enumerate(self._logs):
            count = log.words[_AT_STARTS]
            if count != log.begun:
                log.begun = count
                start = log.words[_AT_START]
                out.append((which, start >> 32, start & _MASK32))
        return out

    def answer(self, which: int, seq: int, number: int) -> None:
        """Tell a NIC that record ``number`` begins at ``seq``."""
        words = self._logs[which].words
        words[_AT_ANSWER_SEQ] = seq & _MASK32
        words[_AT_ANSWER_NUMBER] = number & _MASK64
        words[_AT_ANSWERS] = words[_AT_ANSWERS] + 1 & _MASK64

    @property
    def nics(self) -> int:
        """How many buffers there are: :meth:`answer` takes numbers below it."""
        return len(self._logs)


def _add(out: list[Range], start: int, end: int, form: int) -> None:
    if out and out[-1].form == form and out[-1].end == start:
        out[-1].end = end
    elif end > start:
        out.append(Range(start, end, form))
