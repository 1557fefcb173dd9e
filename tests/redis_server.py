"""A real Redis server on a unix socket, for tests that compare ours with it or put it behind ours."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from tests.patience import FACTOR
from workloads.fleet import redis as redis_program
from workloads.kv import resp
from workloads.kv.resp import ReplyCutter

#: Seconds for what takes a moment on a loaded machine.
PATIENCE = 20.0 * FACTOR


def need(*programs: str) -> None:
    """Skip, by name, what this machine lacks."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed (Debian: redis-tools)")


@contextmanager
def redis_server() -> Iterator[tuple[Path, int]]:
    """Its socket, and its process."""
    if not redis_program.is_installed():
        pytest.skip("no redis-server (Debian: redis-tools)")
    # pytest's folders have names too long for a socket.
    with tempfile.TemporaryDirectory(prefix="smtnet-") as folder:
        path = Path(folder) / "redis.sock"
        command = [redis_program.redis_server(Path(folder)), "--port", "0", "--unixsocket", str(path),
                   "--save", "", "--appendonly", "no", "--dir", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            # What it says later is read as well: where a pipe is full, it answers no more.
            reading = Thread(target=server.stdout.read, daemon=True)
            try:
                # It says so when the socket is there.
                for line in server.stdout:
                    if "ready to accept connections" in line.lower():
                        break
                reading.start()
                yield path, server.pid
            finally:
                server.terminate()
                server.wait(PATIENCE)
                if reading.ident is not None:
                    reading.join(PATIENCE)


class RawClient:
    """Sends commands, gives replies as the bytes they came in."""

    def __init__(self, address: str | tuple[str, int]) -> None:
        kind = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(kind, socket.SOCK_STREAM)
        self.sock.settimeout(PATIENCE)
        self.sock.connect(address)
        self._cutter = ReplyCutter()
        self._replies: list[bytes] = []

    def send(self, *commands: list[bytes]) -> list[bytes]:
        """The replies, in order."""
        self.sock.sendall(b"".join(map(resp.command, commands)))
        return self.replies(len(commands))

    def replies(self, count: int) -> list[bytes]:
        """The next ``count``."""
        end = time.monotonic() + PATIENCE
        while len(self._replies) < count:
            data = self.sock.recv(65_536)
            assert data, f"the server hung up; it said {self._replies}"
            assert time.monotonic() < end
            self._replies += self._cutter.take(data)
        found, self._replies = self._replies[:count], self._replies[count:]
        return found

    def one(self, line: str) -> bytes:
        """The reply to a command of plain words."""
        return self.send(line.encode().split())[0]

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def version_of(client: RawClient) -> tuple[int, ...]:
    """Of the Redis at the other end."""
    found = re.search(rb"redis_version:([0-9.]+)", client.one("INFO server"))
    assert found
    return tuple(map(int, found[1].split(b".")))
