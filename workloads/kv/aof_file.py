"""The format of the append-only file: a head and entries, each with its checksum.

An entry is a group of commands: all of them are replayed or none. It holds what one turn of the event loop has
changed, so whatever was done together (a transaction, a push and the pop that waited for it) is in one entry. It
begins in database 0 and ends there, whatever SELECTs are in it::

    head    "smtnet kv 2\\n"
    entry   length of the commands: 64 bits, big-endian
            CRC-32 of the commands; CRC-32 of the length and of that: 32 bits each
            the commands, as RESP

Each CRC goes on from that of the commands before, so an entry that is missing is noticed as well as one that was
changed. What a crash leaves behind is a file that ends within an entry: nothing else is taken for that. The first
version had lengths of 32 bits.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from smtstack.errors import ConfigError
from workloads.kv.databases import Journal
from workloads.kv.resp import Command


@dataclass(frozen=True, slots=True)
class Format:
    """A version of the format."""

    head: bytes
    entry: struct.Struct
    """What stands before the commands."""


FORMAT = Format(b"smtnet kv 2\n", struct.Struct("!QII"))
_FORMATS = (FORMAT, Format(b"smtnet kv 1\n", struct.Struct("!III")))
_HEAD_SIZE = len(FORMAT.head)
#: So many bytes of a head must be right for it to be one that was damaged.
_ALIKE = 8
#: Arguments from this size on are written from where they are.
_LARGE = 65_536
#: Bytes of commands in an entry of a file that is written at once.
BATCH = 1 << 20
#: Buffers that the kernel takes in one call (IOV_MAX).
_MOST_BUFFERS = 1024
_CHECK = 4


@dataclass(slots=True, eq=False)
class EntryWriter:
    """Appends entries to ``fd``. ``crc`` is that of the entry before, ``size`` the length of the file."""

    fd: int
    crc: int = 0
    size: int = 0

    def begin(self) -> None:
        """Write the head."""
        self._put([FORMAT.head])

    def append(self, commands: Iterable[Command]) -> None:
        """Write a group of commands. Raises OSError; the file may end within the entry then."""
        self.append_encoded(encode(commands))

    def append_encoded(self, body: list[bytes]) -> None:
        """Append commands that are encoded already, in pieces."""
        crc, length = self.crc, 0
        for piece in body:
            crc = zlib.crc32(piece, crc)
            length += len(piece)
        start = FORMAT.entry.pack(length, crc, 0)[:-_CHECK]
        self._put([start + zlib.crc32(start, self.crc).to_bytes(_CHECK, "big"), *body])
        self.crc = crc

    def _put(self, pieces: list[bytes]) -> None:
        for at in range(0, len(pieces), _MOST_BUFFERS):
            part = pieces[at:at + _MOST_BUFFERS]
            written = os.writev(self.fd, part)
            self.size += written
            if written < sum(map(len, part)):
                rest = memoryview(b"".join(part))[written:]
                while rest:
                    written = os.write(self.fd, rest)
                    self.size += written
                    rest = rest[written:]


def encode(commands: Iterable[Command]) -> list[bytes]:
    """Commands as RESP, in pieces: large arguments are not copied."""
    pieces: list[bytes] = []
    small: list[bytes] = []
    for args in commands:
        small.append(b"*%d\r\n" % len(args))
        for arg in args:
            if len(arg) < _LARGE:
                small.append(b"$%d\r\n%b\r\n" % (len(arg), arg))
            else:
                small.append(b"$%d\r\n" % len(arg))
                pieces += [b"".join(small), arg]
                small = [b"\r\n"]
    if small:
        pieces.append(b"".join(small))
    return pieces


def write_snapshot(writer: EntryWriter, commands: Iterable[tuple[int, Command]]) -> Iterator[None]:
    """Write a whole file, of commands with their databases; a pause after each entry. What it says counts from
    when the file gets its name."""
    writer.begin()
    yield
    batch = Journal()
    size = 0
    for database, args in commands:
        batch.add(database, args)
        size += sum(map(len, args))
        if size >= BATCH:
            writer.append(batch.take())
            size = 0
            yield
    if batch:
        writer.append(batch.take())
        yield


def _alike(head: bytes, other: bytes) -> int:
    return sum(a == b for a, b in zip(head, other, strict=False))


class EntryReader:
    """Reads entries of ``source``, of ``size`` bytes; after them, :attr:`whole` is where the last whole one ends.

    Raises :class:`ConfigError` that names ``path`` and the offset of what is damaged.
    """

    def __init__(self, path: Path, source: BinaryIO, size: int) -> None:
        self._path = path
        self._source = source
        self._size = size
        self.form = FORMAT
        self.crc = 0
        #: 0: not even the head is.
        self.whole = 0

    def head(self) -> None:
        """Read the head."""
        head = self._source.read(_HEAD_SIZE)
        for form in _FORMATS:
            if head == form.head:
                self.form = form
                self.whole = _HEAD_SIZE
                return
        if len(head) < _HEAD_SIZE and any(form.head.startswith(head) for form in _FORMATS):
            return
        form = max(_FORMATS, key=lambda form: _alike(head, form.head))
        if _alike(head, form.head) < _ALIKE:
            raise ConfigError(f"--aof {self._path}: this is no append-only file of smtnet; name another")
        at = next(i for i, byte in enumerate(form.head) if head[i] != byte)
        line = form.head.decode().strip()
        raise ConfigError(f"--aof {self._path}: damaged at offset {at}, in the first line, or of another version; "
                          f"if that line should be {line!r}, keep a copy and run: "
                          f"echo {line} | dd of={self._path} conv=notrunc")

    def go_on(self, whole: int, crc: int, size: int) -> None:
        """Read on from the end of an entry, with its CRC, up to ``size``."""
        self._source.seek(whole)
        self.whole, self.crc, self._size = whole, crc, size

    def entries(self) -> Iterator[tuple[int, bytes]]:
        """Offset and commands of each whole entry, all checksums right."""
        entry = self.form.entry
        while self.whole and self._size - self.whole >= entry.size:
            at = self.whole
            start = self._source.read(entry.size)
            length, crc, check = entry.unpack(start)
            if zlib.crc32(start[:-_CHECK], self.crc) != check:
                raise self._damaged(at)
            end = at + entry.size + length
            if end > self._size:
                return
            body = self._source.read(length)
            if zlib.crc32(body, self.crc) != crc:
                raise self._damaged(at)
            self.crc, self.whole = crc, end
            yield at, body

    def _damaged(self, at: int) -> ConfigError:
        return ConfigError(f"--aof {self._path}: damaged at offset {at}; to go on with what is before that, keep "
                           f"a copy and run: truncate -s {at} {self._path}")
