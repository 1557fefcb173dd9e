"""The device half of TLS receive offload: follows the records of a TCP stream, and decrypts what is in order.

A packet is passed up decrypted as a whole, or exactly as it came. A gap that holds no record's beginning costs the
record it is in: the next begins where the device expects it. One that does makes the device wait for the missing
packet, and search when more than a record has gone by: for something that looks like a header, with another where
its length says. From there it counts records, and asks which it was. It decrypts again when it is told.
"""

from __future__ import annotations

from typing import Final

from smtstack.crypto.stream_gcm import (
    MAX_RECORD,
    PREFIX_LEN,
    TAG_LEN,
    RecordCrypto,
    StreamKeys,
    record_len_untrusted,
)
from smtstack.wire.tcp import advance, distance

#: Knows nothing, and waits to be told; knows where the next record begins; looks for one.
START: Final = "start"
TRACKING: Final = "tracking"
SEARCHING: Final = "searching"
_MASK64: Final = (1 << 64) - 1
#: The second and third byte of a header.
_VERSION: Final = b"\x03\x03"


class TlsRxContext:
    """What the device keeps of one stream."""

    __slots__ = ("_body", "_candidate", "_carry", "_crypto", "_first", "_header", "_highest", "_rest", "_searches",
                 "_skip", "_tag", "asks", "authenticates", "base", "errors", "keys", "number", "seq", "tracker")

    def __init__(self, keys: StreamKeys, seq: int, number: int, searches: bool) -> None:
        """Record ``number`` begins at ``seq``. ``searches``: for records, when they are lost; else it is told."""
        self.keys = keys
        self._searches = searches
        self.tracker = TRACKING
        #: Whether it knows the number of the next record, and so decrypts it.
        self.authenticates = True
        #: TCP sequence number of the byte that comes next.
        self.seq = seq
        #: Number of the record under way or, between records, of the next. While it does not authenticate: how
        #: many there were since the one at ``base``.
        self.number = number
        #: TCP sequence number of the header that the device asks about; -1: of none.
        self.base = -1
        #: It has just begun to ask.
        self.asks = False
        #: Records whose tag was wrong.
        self.errors = 0
        #: Behind the last byte seen, while the packet with the header at ``seq`` is missing; -1: none is.
        self._highest = -1
        #: What is still to be searched, from ``seq`` on.
        self._rest = b""
        self._begin_record()
        self._forget_search()

    def _begin_record(self) -> None:
        #: What there is of the header.
        self._header = b""
        #: Of a record that is decrypted: its state, body bytes to come, what there is of the tag.
        self._crypto: RecordCrypto | None = None
        self._body = 0
        self._tag = b""
        #: Bytes to come of a record that is not.
        self._skip = 0

    def _forget_search(self) -> None:
        #: The last bytes before ``seq``, in which a header may begin.
        self._carry = b""
        #: TCP sequence numbers of what looks like a header, and of where another must follow; -1: none does.
        self._first = self._candidate = -1

    @property
    def in_step(self) -> bool:
        """Whether the device decrypts what comes next; if not, word of where a record begins may help."""
        return self.authenticates and self._highest < 0

    def receive_untrusted(self, seq: int, payload: bytes) -> bytes | None:
        """The payload decrypted; None: pass it up as it came. Raises nothing."""
        out = None
        ahead = distance(self.seq, seq)
        if self.tracker == TRACKING:
            if self._highest >= 0:
                self._while_missing(seq, payload)
            elif not ahead:
                out = self._walk(payload)
            elif ahead > 0:
                self._after_gap(seq, ahead, payload)
            elif -ahead < len(payload):
                # Seen before, but for what hangs over.
                self._walk(payload[-ahead:])
        elif ahead + len(payload) > 0:
            self._rest = payload[max(-ahead, 0):]
            self._look_from(advance(seq, max(-ahead, 0)))
        # A loop: whatever the bytes are, each turn has fewer.
        while self._rest:
            self._search()
        return out

    # -- in step -------------------------------------------------------------------------------------------

    def _walk(self, data: bytes) -> bytes | None:
        """The bytes at ``seq``, decrypted; None: not every one of them is, or a tag is wrong."""
        keys = self.keys
        header_len = keys.header_len
        out = []
        whole = True
        at, size = 0, len(data)
        start = self.seq
        self.seq = advance(start, size)
        view = memoryview(data)
        while at < size:
            crypto = self._crypto
            if self._skip:
                step = min(self._skip, size - at)
                at += step
                whole = False
                self._skip -= step
                if not self._skip:
                    self._end_record()
            elif crypto is None:
                had = len(self._header)
                header = self._header = self._header + data[at:at + header_len - had]
                length = record_len_untrusted(keys, header) if len(header) >= PREFIX_LEN else 1
                if not length:
                    self._lose(advance(start, at), data[at:])
                    return None
                at += len(header) - had
                out.append(header[had:])
                if len(header) < header_len:
                    break
                if self.authenticates:
                    self._body = length - header_len - TAG_LEN
                    self._crypto = RecordCrypto(keys, self.number, header, encrypt=False)
                else:
                    self._skip = length - header_len
                    whole = False
                    if self.base < 0:
                        self.base = advance(start, at - header_len)
                        self.number = 0
                        self.asks = True
            elif self._body:
                end = min(at + self._body, size)
                out.append(crypto.update(view[at:end]))
                self._body -= end - at
                at = end
            else:
                piece = data[at:at + TAG_LEN - len(self._tag)]
                self._tag += piece
                at += len(piece)
                out.append(piece)
                if len(self._tag) == TAG_LEN:
                    if not crypto.verify(self._tag):
                        # It may be the number that is wrong, and then every record's: to be confirmed.
                        self.errors += 1
                        whole = False
                        self.authenticates = False
                        self.base = -1
                    self._end_record()
        return b"".join(out) if whole else None

    def _end_record(self) -> None:
        self.number = self.number + 1 & _MASK64
        self._begin_record()

    def answer(self, seq: int, number: int) -> bool:
        """Take word that record ``number`` begins at ``seq``; False: it is too late, or about something else.

        What it decrypts begins with the next record.
        """
        if self.in_step:
            return False
        if self.tracker == TRACKING and self.base == seq:
            self.number = number + self.number & _MASK64
        elif self._searches:
            return False
        else:
            ahead = distance(self._highest if self._highest >= 0 else self.seq, seq)
            if ahead < 0:
                return False
            self.seq = advance(seq, -ahead)
            self._highest = -1
            self._begin_record()
            self._skip = ahead
            # Where there is something to skip, its end counts.
            self.number = number - 1 & _MASK64 if ahead else number
            self.tracker = TRACKING
        self.authenticates = True
        self.base = -1
        return True

    # -- gaps ----------------------------------------------------------------------------------------------

    def _to_next_header(self) -> int:
        """Bytes from ``seq`` to where the next record begins; -1: the header that would say so is not complete."""
        if self._crypto is not None:
            return self._body + TAG_LEN - len(self._tag)
        return -1 if self._header and not self._skip else self._skip

    def _pass_over(self, count: int) -> None:
        """Go on so many bytes, at most to the next header; a record under way is not decrypted any longer."""
        left = self._to_next_header()
        self.seq = advance(self.seq, count)
        if left > 0:
            self._begin_record()
            self._skip = left - count
            if not self._skip:
                self.number = self.number + 1 & _MASK64

    def _wait_for_header(self, left: int) -> None:
        """Stand at the header that is missing: the next, or the one that is not complete."""
        if left >= 0:
            self._pass_over(left)
        else:
            self.seq = advance(self.seq, -len(self._header))
            self._begin_record()

    def _after_gap(self, seq: int, ahead: int, payload: bytes) -> None:
        left = self._to_next_header()
        if left >= ahead:
            self._pass_over(ahead)
            self._walk(payload)
            return
        # The packet with the header may only be late.
        self._wait_for_header(left)
        self._highest = self.seq
        self._while_missing(seq, payload)

    def _while_missing(self, seq: int, payload: bytes) -> None:
        """The packet with the header at ``seq`` is missing: this may be it, or one more behind it."""
        end = advance(seq, len(payload))
        if distance(self._highest, end) > 0:
            self._highest = end
        before = distance(seq, self.seq)
        if 0 <= before < len(payload):
            self._walk(payload[before:])
            if self.tracker != TRACKING:
                return
            left = self._to_next_header()
            passed = distance(self.seq, self._highest)
            if left >= passed or not passed:
                if passed:
                    self._pass_over(passed)
                self._highest = -1
                return
            self._wait_for_header(left)
        if distance(self.seq, self._highest) > MAX_RECORD:
            self._lose(self._highest, b"")

    # -- lost ----------------------------------------------------------------------------------------------

    def _lose(self, seq: int, rest: bytes) -> None:
        """Nobody knows where a record begins. What is to be searched first is at ``seq``, if there is any."""
        self.authenticates = False
        self.base = -1
        self.asks = False
        self.number = 0
        if self._highest >= 0:
            # All up to there was passed up; the packet that is here now may lie before others.
            seq, rest = self._highest, b""
            self._highest = -1
        self._begin_record()
        self._forget_search()
        self.tracker = SEARCHING if self._searches else START
        self.seq = seq
        self._rest = rest

    def _look_from(self, seq: int) -> None:
        """Search what begins at ``seq``, with what is known of the bytes before if these were the last ones."""
        if seq != self.seq:
            self._carry = b""
            if self._candidate >= 0 and distance(seq, self._candidate) < 0:
                self._first = self._candidate = -1
            self.seq = seq

    def _search(self) -> None:
        """Look for a header with another behind it, in bytes that begin at ``seq``."""
        data, self._rest = self._rest, b""
        if not self._searches:
            self.seq = advance(self.seq, len(data))
            return
        keys = self.keys
        buffer = self._carry + data
        start = advance(self.seq, -len(self._carry))
        self.seq = advance(self.seq, len(data))
        # A place for a header has five bytes.
        last = len(buffer) - PREFIX_LEN
        at = 0
        while True:
            if self._candidate >= 0:
                place = distance(start, self._candidate)
                if place > last:
                    break
                if record_len_untrusted(keys, buffer[place:place + PREFIX_LEN]):
                    self.tracker = TRACKING
                    self.seq = self._candidate
                    self._forget_search()
                    self._walk(buffer[place:])
                    return
                at = max(distance(start, self._first) + 1, 0)
                self._first = self._candidate = -1
            found = buffer.find(_VERSION, at + 1)
            if not 0 < found <= last + 1:
                break
            at = found
            length = record_len_untrusted(keys, buffer[found - 1:found - 1 + PREFIX_LEN])
            if length:
                self._first = advance(start, found - 1)
                self._candidate = advance(self._first, length)
        self._carry = buffer[max(last + 1, 0):]

    def lose_track(self) -> None:
        """Nothing is known of the stream: it went on without this context."""
        self._lose(self.seq, b"")
