"""What a client can resume its sessions from, in a file: for programs that begin again and again.

Keys are in it, so it has mode 600. Processes may share it: each looks and writes under a lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from smtstack.errors import ConfigError
from smtstack.session.resumption import Psk, PskStore


class PskFile(PskStore):
    """A :class:`PskStore` whose content is that of ``path``. Raises :class:`ConfigError`, whenever it is used."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        with self._held(write=False):
            pass

    def put(self, ip: int, port: int, psk: Psk) -> None:
        with self._held(write=True):
            super().put(ip, port, psk)

    def get(self, ip: int, port: int, utc: int) -> Psk | None:
        with self._held(write=False):
            return super().get(ip, port, utc)

    def drop(self, ip: int, port: int) -> None:
        with self._held(write=True):
            super().drop(ip, port)

    @contextmanager
    def _held(self, write: bool) -> Iterator[None]:
        """Nobody else changes the file meanwhile; ``write``: it gets what we have then."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as e:
            raise ConfigError(f"PSK file {self._path}: {e.strerror}") from None
        with os.fdopen(descriptor) as file:
            mode = os.fstat(descriptor).st_mode
            if mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise ConfigError(f"PSK file {self._path} can be read by others (mode {mode & 0o777:03o}); "
                                  f"chmod 600 {self._path}")
            fcntl.flock(descriptor, fcntl.LOCK_EX if write else fcntl.LOCK_SH)
            try:
                text = file.read()
                self._psks = PskStore.from_dict(json.loads(text))._psks if text else {}
            except (ValueError, ConfigError) as e:
                raise ConfigError(f"PSK file {self._path}: {e}") from None
            yield
            if write:
                self._write(descriptor)

    def _write(self, descriptor: int) -> None:
        content = json.dumps(self.to_dict()).encode()
        try:
            if os.pwrite(descriptor, content, 0) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.ftruncate(descriptor, len(content))
        except OSError as e:
            # Nothing to resume from is better than half of it, which nobody could read.
            os.ftruncate(descriptor, 0)
            raise ConfigError(f"PSK file {self._path}: {e.strerror}") from None
