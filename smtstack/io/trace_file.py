"""Writes what the engine does into a qlog file, within bounds, so that a crash leaves a readable one."""

from __future__ import annotations

import os
import sys
from datetime import datetime, timezone
from pathlib import Path

from smtstack.capture import qlog
from smtstack.errors import ConfigError
from smtstack.transport.trace import TraceEvent
from smtstack.wire.ipv4 import format_address

#: Bytes of the longest file.
MAX_BYTES = 256 << 20
#: What is not written yet has at most so many bytes, and is at most so old when an event comes.
_BUFFER, _AGE_NS = 1 << 16, 100_000_000
#: Files of one process and endpoint in a folder.
_MAX_FILES = 1000


def is_folder(place: str) -> bool:
    """Whether a file is to be made in ``place``, with a name of its own: it is a folder, or ends in a slash."""
    return place.endswith("/") or Path(place).is_dir()


class TraceFile:
    """A :class:`~smtstack.transport.trace.TraceSink` of the endpoint at ``ip:port``.

    ``place``: a new file, or a folder (see :func:`is_folder`), which is made if it is not there. Raises
    :class:`ConfigError` where that cannot be. Nothing is written beyond ``max_bytes``; the last record says so.
    """

    def __init__(self, place: str, ip: int, port: int, profile: str, max_bytes: int = MAX_BYTES) -> None:
        self._ip = ip
        self._port = port
        self._left = max_bytes
        self._buffer: list[bytes] = []
        self._size = 0
        self._flushed = 0
        #: Why nothing more is recorded; "": it is.
        self.cut = ""
        self._fd, self.path = _create(place, format_address(ip), port)
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        program = " ".join(Path(word).name if n == 0 else word for n, word in enumerate(sys.argv[:2]))
        self._add(qlog.head(ip, port, profile, program, now))
        self.flush()

    def event(self, event: TraceEvent) -> None:
        """Record one event."""
        if self.cut:
            return
        record = qlog.encode(self._ip, self._port, event)
        if len(record) > self._left:
            self._end(event.time, "the file is as long as it may become")
            return
        self._add(record)
        if self._size > _BUFFER or event.time - self._flushed > _AGE_NS:
            self._flushed = event.time
            self.flush()

    def _add(self, record: bytes) -> None:
        self._buffer.append(record)
        self._size += len(record)
        self._left -= len(record)

    def _end(self, time_ns: int, why: str) -> None:
        self._add(qlog.encode_cut(time_ns, why))
        self.flush()
        self.cut = why

    def flush(self) -> None:
        """Write what is recorded: whole records."""
        if not self._buffer or self.cut:
            return
        data = b"".join(self._buffer)
        self._buffer.clear()
        self._size = 0
        try:
            written = os.write(self._fd, data)
        except OSError as e:
            self.cut = f"it cannot be written: {e.strerror}"
            return
        if written < len(data):
            self.cut = "it cannot be written in full"

    def close(self) -> None:
        """Write the rest."""
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1


def _create(place: str, ip: str, port: int) -> tuple[int, Path]:
    """A new file, open for writing, and its name."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    path = Path(place)
    try:
        if not is_folder(place):
            return os.open(path, flags, 0o644), path
        path.mkdir(parents=True, exist_ok=True)
        for number in range(_MAX_FILES):
            again = f"-{number}" if number else ""
            inside = path / f"{ip}-{port}-{os.getpid()}{again}.sqlog"
            try:
                return os.open(inside, flags, 0o644), inside
            except FileExistsError:
                continue
    except FileExistsError:
        raise ConfigError(f"{path} exists; traces are not overwritten: take another name, or a folder") from None
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    raise ConfigError(f"{path} holds {_MAX_FILES} traces of this process already")
