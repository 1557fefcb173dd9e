"""RESP, the protocol of Redis, version 2 and 3: requests off the wire, replies onto it.

Requests come from anybody, so they are cut here, within limits: what a length claims is compared with the limit
before anything is kept, and nothing is reserved for what has not come. hiredis cannot be told such limits: it
makes a list as long as a request says it is, takes arrays in arrays, and does not look at what ends a string.
Replies come from a server that we chose: ``hiredis.Reader`` turns them into objects, :class:`ReplyCutter` leaves
them bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from smtstack.errors import PeerError
from workloads.kv.limits import Limits, of_message

#: Bytes of a length.
_MAX_LENGTH_LINE = 32
#: Arguments from this size on are collected apart from what surrounds them.
_LARGE = 65_536

CRLF, LF = b"\r\n", b"\n"
OK = b"+OK\r\n"
ZERO, ONE = b":0\r\n", b":1\r\n"
EMPTY_ARRAY = b"*0\r\n"

#: Bytes looked at together, and how the lengths that fit in there are written.
_WINDOW = 8192
_COUNTS = {b"*%d" % n: n for n in range(1, 64)}
_LENGTHS = [b"$%d" % n for n in range(_WINDOW + 1)]
_SPACES = b" \t\n\r\x0b\x0c\0"
_HEX = re.compile(rb"[0-9a-fA-F]{2}")
_ESCAPES = {ord("n"): 10, ord("r"): 13, ord("t"): 9, ord("b"): 8, ord("a"): 7}

Command = list[bytes]


class RespError(PeerError):
    """The client does not speak RESP: after this nothing it says can be believed. The text is Redis's."""

    def __init__(self, text: str) -> None:
        super().__init__(f"Protocol error: {text}")

    def reply(self) -> bytes:
        """What the client is told."""
        return error(f"ERR {self}")


#: Looks at a line of text: (line, whether it is whole, whether nothing came before). Raises RespError.
Guard = Callable[[bytes, bool, bool], None]


class CommandParser:
    """Cuts a client's stream into commands. Holds no more than one incomplete one."""

    __slots__ = ("_args", "_buffer", "_guard", "_left", "_limits", "_quickly", "_size", "_spoken", "_wanted")

    def __init__(self, limits: Limits, guard: Guard | None = None) -> None:
        self._limits = limits
        self._guard = guard
        #: Whether short commands are within the limits whatever they are.
        self._quickly = min(limits.bulk, limits.query) >= _WINDOW and limits.arguments >= len(_COUNTS)
        self._buffer = bytearray()
        #: Bytes the buffer must have before it is worth looking at.
        self._wanted = 1
        #: The command under way: arguments that are there, how many are not, bytes it has taken so far.
        self._args: Command = []
        self._left = 0
        self._size = 0
        #: Whether there was a command before.
        self._spoken = False

    def __len__(self) -> int:
        """Bytes kept of an incomplete command."""
        return len(self._buffer) + sum(map(len, self._args))

    @property
    def unfinished(self) -> bool:
        """Whether a command has begun and not ended."""
        return bool(self._left or self._buffer)

    def take(self, data: bytes) -> tuple[list[Command], RespError | None]:
        """The commands that ``data`` completes, and what was wrong with what follows them: then it is over."""
        buffer = self._buffer
        commands: list[Command] = []
        try:
            if buffer:
                buffer += data
                if len(buffer) < self._wanted:
                    return [], None
                if self._wanted > _LARGE:
                    data = self._take_large(commands)
                else:
                    data = bytes(buffer)
                    buffer.clear()
            at = 0
            if self._left:
                at = self._scan(data, at, commands)
            if not self._left and self._quickly:
                at = _quick(data, at, commands)
            self.take_rest(data, at, commands)
        except RespError as e:
            self._args = []
            buffer.clear()
            return commands, e
        self._spoken = self._spoken or bool(commands)
        return commands, None

    def _take_large(self, commands: list[Command]) -> bytes:
        """Take the argument that is whole now out of the buffer, and what is behind it: copied once."""
        buffer, wanted = self._buffer, self._wanted
        _check_end(buffer, wanted - 2)
        with memoryview(buffer) as view:
            self._end(view[buffer.index(CRLF) + 2:wanted - 2].tobytes(), wanted, commands)
            rest = view[wanted:].tobytes()
        buffer.clear()
        self._wanted = 1
        return rest

    def _end(self, arg: bytes, size: int, commands: list[Command]) -> None:
        """An argument is whole."""
        self._args.append(arg)
        self._size += size
        self._left -= 1
        if not self._left:
            commands.append(self._args)
            self._args = []

    def take_rest(self, data: bytes, at: int, commands: list[Command]) -> None:
        """Take what ``data`` has from ``at`` on, and keep what is incomplete. Raises :class:`RespError`."""
        before = -1
        while at != before:
            before = at
            at = self._scan(data, at, commands)
        if at < len(data):
            self._buffer += data[at:] if at else data

    def _scan(self, data: bytes, at: int, commands: list[Command]) -> int:
        """Take one command, argument after argument; how far it came."""
        size, limits = len(data), self._limits
        self._wanted = 1
        while at < size:
            start = at
            if not self._left:
                if data[at] != 42:  # *
                    return self._scan_line(data, at, commands)
                end = _line(data, at, _MAX_LENGTH_LINE, "too big mbulk count string")
                if end < 0:
                    break
                count = _number(data[at + 1:end], "invalid multibulk length")
                if count > limits.arguments:
                    raise RespError(f"invalid multibulk length: {limits.named('arguments')}")
                self._left = max(0, count)
                self._args = []
                at = end + 2
                self._size = at - start
                if not self._left:
                    break
                continue
            if data[at] != 36:  # $
                raise RespError(f"expected '$', got '{printable(data[at:at + 1])}'")
            end = _line(data, at, _MAX_LENGTH_LINE, "too big bulk count string")
            if end < 0:
                break
            length = _number(data[at + 1:end], "invalid bulk length")
            if length < 0:
                raise RespError("invalid bulk length")
            if length > limits.bulk:
                raise RespError(f"invalid bulk length: {limits.named('bulk')}")
            stop = end + 2 + length
            if self._size + stop + 2 - at > limits.query:
                raise RespError(f"too big command: {limits.named('query')}")
            if stop + 2 > size:
                self._wanted = stop + 2 - at
                break
            _check_end(data, stop)
            at = stop + 2
            self._end(data[end + 2:stop], at - start, commands)
            if not self._left:
                break
        return at

    def _scan_line(self, data: bytes, at: int, commands: list[Command]) -> int:
        """Take a command that is a line of text; how far it came."""
        limits = self._limits
        end = data.find(LF, at, at + limits.inline + 1)
        if self._guard is not None:
            line = data[at:end] if end >= 0 else data[at:at + limits.inline]
            self._guard(line, end >= 0, not (self._spoken or commands))
        if end < 0:
            if len(data) - at > limits.inline:
                raise RespError(f"too big inline request: {limits.named('inline')}")
            return at
        if args := split_arguments(data[at:end]):
            commands.append(args)
        return end + 1


def _check_end(data: bytes | bytearray, stop: int) -> None:
    if data[stop:stop + 2] != CRLF:
        raise RespError("a string is longer than its length")


def _quick(data: bytes, at: int, commands: list[Command]) -> int:
    """Take short commands whose arguments have no line end in them: nearly all. How far it came."""
    size = len(data)
    while data[at:at + 1] == b"*":
        parts = data[at:at + _WINDOW].split(CRLF)
        last = len(parts) - 1  # What follows the last line end.
        i = 0
        while i < last:
            count = _COUNTS.get(parts[i])
            if count is None:
                break
            end = i + 1 + 2 * count
            if end > last:
                break
            args = parts[i + 2:end:2]
            if parts[i + 1:end:2] != [_LENGTHS[len(a)] for a in args]:
                break
            commands.append(args)
            i = end
        if not i:
            break
        rest = sum(map(len, parts[i:])) + 2 * (last - i)
        at = min(size, at + _WINDOW) - rest
    return at


def parse_message(data: bytes, limit: int) -> tuple[list[Command], RespError | None]:
    """The commands of a message, which holds whole ones only."""
    commands: list[Command] = []
    at = _quick(data, 0, commands) if len(data) <= limit else 0
    if at < len(data) or not data:
        parser = CommandParser(of_message(limit))
        try:
            parser.take_rest(data, at, commands)
        except RespError as e:
            return commands, e
        if parser.unfinished or not commands:
            return commands, RespError("the message does not end with a whole command")
    return commands, None


def _line(data: bytes, at: int, limit: int, complaint: str) -> int:
    """Where the line that begins at ``at`` ends; -1: not here yet."""
    found = data.find(CRLF, at, at + limit + len(CRLF))
    if found < 0 and len(data) - at >= limit + len(CRLF):
        raise RespError(complaint)
    return found


def _number(text: bytes, complaint: str) -> int:
    """A length as Redis takes it: no sign but "-", no zero in front. Anything below 0 is -1."""
    digits = text[1:] if text[:1] == b"-" else text
    if not digits.isdigit() or (digits[:1] == b"0" and len(text) > 1):
        raise RespError(complaint)
    return -1 if digits is not text else int(text)


def split_arguments(line: bytes) -> Command:
    """A line of text as people type it: words, '...' and "..." with escapes. Raises :class:`RespError`."""
    if b'"' not in line and b"'" not in line:
        return line.translate(None, b"\0").split() if b"\0" in line else line.split()
    args: Command = []
    at, size = 0, len(line)
    while True:
        while at < size and line[at] in _SPACES:
            at += 1
        if at >= size:
            return args
        word = bytearray()
        while at < size and line[at] not in _SPACES:
            quote = line[at]
            at += 1
            if quote not in b"\"'":
                word.append(quote)
                continue
            at = _quoted(line, at, quote, word)
            if at < size and line[at] not in _SPACES:
                raise RespError("unbalanced quotes in request")
        args.append(bytes(word))


def _quoted(line: bytes, at: int, quote: int, word: bytearray) -> int:
    """Append what stands between quotes, the first of which is before ``at``; where the text goes on."""
    size = len(line)
    while at < size:
        char = line[at]
        at += 1
        if char == quote:
            return at
        if char == 92 and at < size:  # \
            following = line[at]
            if quote == 39:  # '
                if following == 39:
                    char = 39
                    at += 1
            elif following == 120 and _HEX.match(line, at + 1):  # x
                char = int(line[at + 1:at + 3], 16)
                at += 3
            else:
                char = _ESCAPES.get(following, following)
                at += 1
        word.append(char)
    raise RespError("unbalanced quotes in request")


def printable(data: bytes) -> str:
    """Bytes from outside within a line of text."""
    return "".join(chr(c) if 32 <= c < 127 else "?" for c in data)


class ReplyCutter:
    """Cuts a server's stream into replies, as bytes. For a server that is trusted: there are no limits."""

    __slots__ = ("_at", "_buffer", "_items", "_start")

    def __init__(self) -> None:
        self._buffer = bytearray()
        #: Where the reply under way starts, how far it was looked at, values it still needs.
        self._start = self._at = 0
        self._items = 1

    def take(self, data: bytes) -> list[bytes]:
        """The replies that ``data`` completes. Raises :class:`RespError`."""
        buffer = self._buffer
        buffer += data
        replies = []
        size, at = len(buffer), self._at
        while at < size:
            end = buffer.find(CRLF, at)
            if end < 0:
                break
            kind = buffer[at]
            following = end + 2
            items = -1
            if kind in b"$=!":
                length = int(buffer[at + 1:end])
                if length >= 0:
                    following += length + 2
                    if following > size:
                        break
            elif kind in b"*~>":
                items += max(0, int(buffer[at + 1:end]))
            elif kind == 37:  # %
                items += 2 * int(buffer[at + 1:end])
            elif kind not in b"+-:_#,(":
                raise RespError(f"a reply of type '{printable(bytes(buffer[at:at + 1]))}'")
            self._items += items
            at = following
            if not self._items:
                replies.append(bytes(buffer[self._start:at]))
                self._start = at
                self._items = 1
        if self._start == size:
            buffer.clear()
            at = self._start = 0
        elif self._start:
            del buffer[:self._start]
            at -= self._start
            self._start = 0
        self._at = at
        return replies


# -- what is sent ------------------------------------------------------------------------------------------

def command(args: Iterable[bytes | str | int | float]) -> bytes:
    """A command as clients send it."""
    parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
    return array([bulk(p) for p in parts])


def bulk(data: bytes) -> bytes:
    """A string of any bytes."""
    return b"$%d\r\n%b\r\n" % (len(data), data)


def whole(number: int) -> bytes:
    """A whole number."""
    return b":%d\r\n" % number


def error(text: str) -> bytes:
    """``text`` starts with its kind in capitals: ``ERR``, ``WRONGTYPE``."""
    return b"-%b\r\n" % text.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace")


def array(items: Sequence[bytes]) -> bytes:
    """A list of encoded values."""
    return b"*%d\r\n%b" % (len(items), b"".join(items))


def null(version: int) -> bytes:
    """No value."""
    return b"_\r\n" if version == 3 else b"$-1\r\n"


def null_array(version: int) -> bytes:
    """No list: nothing came in time, or a transaction was not done."""
    return b"_\r\n" if version == 3 else b"*-1\r\n"


def bulk_or_null(data: bytes | None, version: int) -> bytes:
    """A string, or none."""
    return null(version) if data is None else b"$%d\r\n%b\r\n" % (len(data), data)


def mapping(items: Sequence[bytes], version: int) -> bytes:
    """Encoded keys and values by turns; version 2 has no maps and sends a list."""
    return b"%%%d\r\n%b" % (len(items) // 2, b"".join(items)) if version == 3 else array(items)


def unordered(items: Sequence[bytes], version: int) -> bytes:
    """Encoded members of a set; version 2 sends a list."""
    return b"~%d\r\n%b" % (len(items), b"".join(items)) if version == 3 else array(items)


def double(number: float, version: int) -> bytes:
    """A number with a fraction, as Redis writes it: 17 digits if there are so many. Version 2 has no such type and
    sends a string."""
    text = b"%.17g" % number
    return b",%b\r\n" % text if version == 3 else bulk(text)
