"""Captures and keylogs as people have them: files, compressed ones, and ``-`` for stdin and stdout."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from smtstack.errors import ConfigError

#: stdin or stdout.
STANDARD = Path("-")

_MAGIC_LEN = 6
#: What compressed files begin with: those that this Python reads itself, and others that packages do.
_GZIP, _BZIP2, _XZ, _ZSTD, _LZ4 = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18"
_KINDS = {_GZIP: "gzip", _BZIP2: "bzip2", _XZ: "xz", _ZSTD: "zstd", _LZ4: "lz4"}
_OPTIONAL = {_ZSTD: (("compression.zstd", "ZstdFile"), ("backports.zstd", "ZstdFile"), ("zstandard", "open")),
             _LZ4: (("lz4.frame", "LZ4FrameFile"),)}
_COPY, _BUFFER = 1 << 20, 1 << 16


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class CaptureFile:
    """A capture to be read ``passes`` times. Where that is more than once, stdin is kept in a file meanwhile."""

    def __init__(self, path: Path, passes: int = 1) -> None:
        self.path = path
        self._passes = passes
        self._kept: BinaryIO | None = None
        #: Its compressed data ended before their end, when it was read last.
        self.cut_off = False

    def __str__(self) -> str:
        return name_of(self.path)

    @contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """The content, unpacked. Raises :class:`ConfigError`, also while it is read."""
        self.cut_off = False
        with ExitStack() as stack:
            if self.path != STANDARD:
                with naming(self.path):
                    stream: BinaryIO = stack.enter_context(self.path.open("rb"))
            elif self._passes == 1 and self._kept is None:
                stream = standard_input()
            else:
                stream = stack.enter_context(self._kept or _copied(standard_input()))
                stream.seek(0)
            with naming(self.path):
                source = _Source(self.path, _unpacked(stream))
            yield cast("BinaryIO", source)
            self.cut_off = source.cut_off
            self._passes -= 1
            if self.path == STANDARD and self._passes:
                # Open until the last pass, or one that fails.
                self._kept = stream
                stack.pop_all()


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the operating system as :class:`ConfigError` with the name of the file."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as e:
        raise ConfigError(f"{name_of(path)}: {e.strerror or e}") from None


def name_of(path: Path) -> str:
    """What messages to people call the file."""
    return "stdin" if path == STANDARD else str(path)


def standard_input() -> BinaryIO:
    """Raises :class:`ConfigError` where nobody pipes anything into it."""
    if sys.stdin is None or sys.stdin.closed:
        raise ConfigError("stdin is closed: pipe a file into it, or give its name instead of -")
    if sys.stdin.isatty():
        raise ConfigError("stdin is a terminal: pipe a file into it, or give its name instead of -")
    return cast("BinaryIO", sys.stdin.buffer)


def standard_output() -> BinaryIO:
    """Raises :class:`ConfigError` where it would be a terminal that gets the bytes."""
    if sys.stdout is None or sys.stdout.closed:
        raise ConfigError("stdout is closed: give the name of a file instead of -")
    if sys.stdout.isatty():
        raise ConfigError("stdout is a terminal: send it into a pipe or a file, or give a name instead of -")
    return cast("BinaryIO", sys.stdout.buffer)


def only_once(*paths: Path) -> None:
    """Raises :class:`ConfigError` where stdin is to be several of these files."""
    if sum(path == STANDARD for path in paths) > 1:
        raise ConfigError("stdin (-) can be one of the files only")


def _copied(stream: BinaryIO) -> BinaryIO:
    # Kept as it came, compressed perhaps; gone with the process.
    kept = tempfile.TemporaryFile()  # noqa: SIM115
    while block := stream.read(_COPY):
        kept.write(block)
    return cast("BinaryIO", kept)


def _unpacked(stream: BinaryIO) -> _Readable:
    """``stream``, or what is compressed in it. It need not be able to go back."""
    start = b""
    while len(start) < _MAGIC_LEN and (more := stream.read(_MAGIC_LEN - len(start))):
        start += more
    whole = io.BufferedReader(_Rejoined(start, stream), _BUFFER)
    return next((_opened(magic, whole) for magic in _KINDS if start.startswith(magic)), whole)


def _opened(magic: bytes, stream: Any) -> _Readable:
    if magic == _GZIP:
        return gzip.GzipFile(fileobj=stream)
    if magic == _BZIP2:
        return bz2.BZ2File(stream)
    if magic == _XZ:
        return lzma.LZMAFile(stream)
    for module, function in _OPTIONAL[magic]:
        try:
            opener = getattr(import_module(module), function)
        except ImportError:
            continue
        return io.BufferedReader(opener(stream))
    package = "zstandard" if magic == _ZSTD else "lz4"
    raise OSError(f"it is compressed with {_KINDS[magic]}, which this Python does not read: unpack it first "
                  f"({_KINDS[magic]} -dc FILE | smtnet pcap ... -), or pip install {package}")


class _Rejoined(io.RawIOBase):
    """What was read from a stream already, and the rest of it."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        super().__init__()
        self._start = start
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._start[:len(buffer)] or self._stream.read(len(buffer))
        self._start = self._start[len(buffer):]
        buffer[:len(data)] = data
        return len(data)


class _Source:
    """Reads with the name of the file in errors. Compressed data may be cut off, as those under way are."""

    def __init__(self, path: Path, stream: _Readable) -> None:
        self._path = path
        self._stream = stream
        self._empty = True
        self.cut_off = False

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; fewer at the end only."""
        try:
            data = self._stream.read(size)
            self._empty = False
            return data
        except EOFError:
            if self._empty:
                raise ConfigError(f"{name_of(self._path)}: its compressed data end before the first "
                                  "byte of what is in them") from None
            self.cut_off = True
            return b""
        except OSError as e:
            raise ConfigError(f"{name_of(self._path)}: {e.strerror or e}") from None
        except (zlib.error, lzma.LZMAError, RuntimeError) as e:
            raise ConfigError(f"{name_of(self._path)}: damaged compressed data: {e}") from None
