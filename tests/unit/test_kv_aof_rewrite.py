"""The append-only file written anew while it is in use: nothing that was acknowledged is lost, come what may."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import struct
import time
import warnings
from collections import deque
from pathlib import Path

import pytest

from smtstack.errors import ConfigError
from workloads.kv import aof as aof_module
from workloads.kv import aof_file, aof_rewrite
from workloads.kv.aof import Aof
from workloads.kv.arguments import Session
from workloads.kv.backend import EmbeddedStore
from workloads.kv.commands import execute
from workloads.kv.databases import Journal
from workloads.kv.store import Keyspace

NOW = 1_700_000_000_000
PATIENCE_S = 30


def fork():
    """A process that this one starts, whatever threads it has: the new one takes no locks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def contents(keys):
    return sorted(str(entry) for entry in keys.snapshot())


def load(path):
    keys = Keyspace()
    aof = Aof(path, "no", keys, growth=0)
    aof.close()
    assert not any("damaged" in warning for warning in aof.warnings)
    return keys


class Store:
    """A keyspace and its file, a turn each call."""

    def __init__(self, path, fsync="always", **more):
        self.keys = Keyspace()
        self.said: list[str] = []
        self.aof = Aof(path, fsync, self.keys, say=self.said.append, **more)
        self.keys.databases.journal = Journal()
        self.keys.databases.persistence = self.aof

    def do(self, *lines):
        replies = [execute(self.keys, line.split(), Session(), NOW) for line in lines]
        assert self.keys.databases.journal is not None
        self.aof.write(self.keys.databases.journal.take(), time.monotonic_ns())
        self.aof.turn(time.monotonic_ns())
        return replies

    @property
    def pid(self):
        """Of the process that writes."""
        assert self.aof._rewrite is not None
        return self.aof._rewrite.pid

    def wait(self):
        """Until the file is written anew, or that has failed."""
        until = time.monotonic() + PATIENCE_S
        while self.aof.info()["aof_rewrite_in_progress"] or self.aof.info()["aof_rewrite_scheduled"]:
            assert time.monotonic() < until
            time.sleep(0.0005)
            self.do()


FILL = [b"SET k%d %d" % (i, i) for i in range(100)] + [b"HSET h f%d v" % i for i in range(300)] + [b"ZADD z 0.1 m"]


@pytest.mark.parametrize("fsync", aof_module.FSYNC)
def test_it_becomes_short_and_keeps_what_came_meanwhile(tmp_path, monkeypatch, fsync):
    monkeypatch.setattr(aof_file, "BATCH", 500)
    path = tmp_path / "f"
    store = Store(path, fsync)
    store.do(*FILL)
    for i in range(3000):
        store.do(b"INCR counter", b"PEXPIREAT counter %d" % (NOW + 10_000 + i))
    before = path.stat().st_size
    assert store.do(b"BGREWRITEAOF") == [b"+Background append only file rewriting started\r\n"]
    assert store.aof.info()["aof_rewrite_in_progress"] == 1
    assert b"already in progress" in store.do(b"BGREWRITEAOF")[0]
    for i in range(200):
        store.do(b"APPEND tail x", b"HDEL h f%d" % i, b"INCR counter")
    store.do(b"SET k1 now", b"DEL k2")
    store.wait()
    info = store.aof.info()
    assert info["aof_rewrites"] == 1
    assert info["aof_last_bgrewrite_status"] == "ok"
    assert int(str(info["aof_last_rewrite_time_sec"])) >= 0
    assert int(str(info["aof_base_size"])) <= path.stat().st_size == info["aof_current_size"]
    assert path.stat().st_size < before / 2
    assert list(tmp_path.iterdir()) == [path]
    # It goes on in the new file, which is as much ours as the old one was.
    store.do(b"SET after 1")
    with pytest.raises(ConfigError, match="another server is using it"):
        load(path)
    expected = contents(store.keys)
    store.aof.close()
    assert contents(load(path)) == expected
    assert not store.said


def test_by_itself_when_it_has_grown(tmp_path):
    path = tmp_path / "f"
    store = Store(path, "no", growth=50, least=20_000)
    sizes = []
    for i in range(3000):
        store.do(b"SET k %d" % i)
        sizes.append(path.stat().st_size)
        if store.aof.info()["aof_rewrite_in_progress"]:
            assert sizes[-1] >= 20_000
            store.wait()
    assert store.aof.rewrites >= 3
    assert max(sizes) < 22_000
    # Not when it is short, not when there is nothing to gain but it has not grown, not when that is switched off.
    store.aof.close()
    for growth, least in ((0, 1), (100_000, 1), (1, 1 << 30)):
        store = Store(path, "no", growth=growth, least=least)
        store.do(*FILL)
        assert store.aof.info()["aof_rewrite_in_progress"] == 0
        store.aof.close()


def test_a_failure_leaves_the_old_file_and_is_told(tmp_path, monkeypatch):
    path = tmp_path / "f"
    store = Store(path, growth=1, least=1)
    store.do(b"SET a 1")
    store.wait()
    done = store.aof.rewrites

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(aof_rewrite, "write_snapshot", full)
        store.do(b"SET a 2", b"BGREWRITEAOF")
        store.wait()
    assert store.aof.info()["aof_last_bgrewrite_status"] == "err"
    assert "No space left" in store.said[0]
    assert "goes on as it is" in store.said[0]
    # By itself it is not tried again at once; who asks for it gets it.
    store.do(*[b"SET a 3"] * 50)
    assert store.aof.info()["aof_rewrite_in_progress"] == 0
    store.do(b"BGREWRITEAOF")
    store.wait()
    assert store.aof.info()["aof_last_bgrewrite_status"] == "ok"
    assert store.aof.rewrites == done + 1
    for name in ("fork", "pipe"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            store.do(b"BGREWRITEAOF")
        assert store.aof.info()["aof_last_bgrewrite_status"] == "err"
    store.do(b"SET a 4")
    # The new process is killed, as by a machine without memory.
    store.do(b"BGREWRITEAOF")
    os.kill(store.pid, signal.SIGKILL)
    store.wait()
    assert store.aof.info()["aof_last_bgrewrite_status"] in {"err", "ok"}
    expected = contents(store.keys)
    store.aof.close()
    assert list(tmp_path.iterdir()) == [path]
    assert contents(load(path)) == expected


def test_damage_in_the_old_file_is_not_carried_over(tmp_path, monkeypatch):
    """It fails, and the old file goes on; what is wrong with that is found when it is read again."""
    monkeypatch.setattr(aof_rewrite, "_catch_up", lambda _path, _writer, old: (old.size, old.crc))
    path = tmp_path / "f"
    store = Store(path, "no")
    store.do(b"BGREWRITEAOF")
    start = path.stat().st_size
    store.aof.write([[b"SET", b"a", b"1"]], 0)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\xff")
    store.wait()
    assert store.aof.info()["aof_last_bgrewrite_status"] == "err"
    assert f"damaged at offset {start}" in store.said[0]
    store.aof.close()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match=f"damaged at offset {start};"):
        load(path)


def test_who_ends_while_it_is_written_leaves_no_process_and_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(aof_file, "BATCH", 100)
    path = tmp_path / "f"
    store = Store(path)
    store.do(*FILL)
    store.do(b"BGREWRITEAOF")
    pid = store.pid
    store.aof.close()
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    # What a server that was killed has left is of no account.
    (tmp_path / "f.new").write_bytes(b"half")
    assert contents(load(path)) == contents(store.keys)
    assert list(tmp_path.iterdir()) == [path]


def test_the_new_process_holds_nothing_of_the_server(tmp_path, monkeypatch):
    """Its locks and its ports are free when it is gone, even if that process still writes."""
    monkeypatch.setattr(aof_file, "BATCH", 1)
    path = tmp_path / "f"
    reading, writing = os.pipe()
    server = fork()
    if not server:
        store = Store(path)
        store.do(*FILL)
        # The new process stops before it writes anything, the server is killed.
        monkeypatch.setattr(aof_rewrite, "write_snapshot", lambda *_args: os.kill(os.getpid(), signal.SIGSTOP))
        store.do(b"BGREWRITEAOF")
        os.write(writing, struct.pack("i", store.pid))
        signal.pause()
    os.close(writing)
    (other,) = struct.unpack("i", os.read(reading, 4))
    state = Path(f"/proc/{other}/stat")
    until = time.monotonic() + PATIENCE_S
    while state.read_text().rsplit(")", 1)[1].split()[0] != "T":
        assert time.monotonic() < until
        time.sleep(0.001)
    os.kill(server, signal.SIGKILL)
    os.waitpid(server, 0)
    # The end of the pipe: nobody has its other end any more.
    assert os.read(reading, 1) == b""
    os.close(reading)
    try:
        assert len(load(path)) == 102
    finally:
        os.kill(other, signal.SIGKILL)


# -- the end comes at any step ---------------------------------------------------------------------------------

#: What changes files, and what makes changes last. One step each, in whichever process.
STEPS = ("writev", "write", "fsync", "fdatasync", "rename", "unlink", "fork", "pipe", "ftruncate")
ACK, SYNCED, RENAMED, FOLDER, OVER = range(5)
EVENT = struct.Struct("=BQQ")


def serve_until(path, fsync, stop_at, counter, events):
    """In a process of its own: serve and write anew, and end both processes before step ``stop_at``."""
    server = os.getpid()
    real = {name: getattr(os, name) for name in STEPS}
    folder = path.parent.stat().st_ino

    def tell(*event):
        real["write"](events, EVENT.pack(*event))

    def step(name):
        def do(*args, **more):
            if args[:1] == (events,):
                return real[name](*args, **more)
            count = int.from_bytes(counter[:8], "little")
            counter[:8] = (count + 1).to_bytes(8, "little")
            if count == stop_at:
                os.kill(server, signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)
            result = real[name](*args, **more)
            if name in {"fsync", "fdatasync"}:
                status = os.fstat(args[0])
                tell(FOLDER if status.st_ino == folder else SYNCED, status.st_ino, status.st_size)
            elif name == "rename":
                tell(RENAMED, os.stat(args[1]).st_ino, 0)
            return result
        return do

    close = aof_rewrite.close_all_but
    aof_rewrite.close_all_but = lambda *kept: close(*kept, events)
    for name in STEPS:
        setattr(os, name, step(name))
    store = Store(path, fsync)
    acknowledged = 0

    def turn(*lines):
        nonlocal acknowledged
        acknowledged += 1
        store.do(b"SET last %d" % acknowledged, b"INCR count", b"HSET h f%d v" % acknowledged, *lines)
        tell(ACK, acknowledged, 0)

    for _turn in range(4):
        turn()
    turn(b"BGREWRITEAOF")
    # Some turns come while the other process writes, some after that, before the server looks.
    for _turn in range(6):
        turn()
    store.wait()
    for _turn in range(3):
        turn()
    store.aof.close()
    tell(OVER, 0, 0)
    os._exit(0)


def check(path, acknowledged):
    keys = load(path)
    last = int(keys.get(b"last") or 0)
    # What was acknowledged is there; what was under way is there as a whole or not at all.
    assert acknowledged <= last <= acknowledged + 1
    assert int(keys.get(b"count") or 0) == last
    assert len(keys.get(b"h") or {}) == last


@pytest.mark.parametrize("fsync", ["always", "no"])
def test_killed_at_any_step_it_loses_nothing_that_was_acknowledged(tmp_path, monkeypatch, fsync):
    monkeypatch.setattr(aof_file, "BATCH", 60)
    counter = mmap.mmap(-1, 8)
    stages = set()
    for stop_at in range(10_000):
        folder = tmp_path / str(stop_at)
        folder.mkdir()
        path = folder / "f"
        path.touch()
        old = folder / "old"
        os.link(path, old)
        counter[:8] = bytes(8)
        reading, writing = os.pipe()
        server = fork()
        if not server:
            try:
                serve_until(path, fsync, stop_at, counter, writing)
            finally:
                os._exit(1)
        os.close(writing)
        with open(reading, "rb") as source:
            told = source.read()
        _pid, status = os.waitpid(server, 0)
        happened = [EVENT.unpack_from(told, at) for at in range(0, len(told), EVENT.size)]
        acknowledged = max((event[1] for event in happened if event[0] == ACK), default=0)
        stages.add((RENAMED in {e[0] for e in happened}, (folder / "f.new").exists()))
        if fsync == "always":
            power_fails(folder, path, old, happened, acknowledged)
        check(path, acknowledged)
        if happened and happened[-1][0] == OVER:
            assert os.waitstatus_to_exitcode(status) == 0
            break
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    # Before it, within it, after it.
    assert stages == {(False, False), (False, True), (True, False)}
    assert stop_at > 20


def power_fails(folder, path, old, happened, acknowledged):
    """What is left if the machine goes as well: of a file, what was synced; a new name, perhaps, until the folder
    was synced."""
    synced = {ino: size for kind, ino, size in happened if kind == SYNCED}
    renamed = [i for i, event in enumerate(happened) if event[0] == RENAMED]
    named = bool(renamed) and any(event[0] == FOLDER for event in happened[renamed[0]:])
    for source in ([path] if named or not renamed else [path, old]):
        left = folder / "left"
        left.write_bytes(source.read_bytes()[:synced.get(source.stat().st_ino, 0)])
        check(left, acknowledged)
        left.unlink()


def test_while_serving_the_store_looks_after_it(tmp_path):
    keys = Keyspace()
    aof = Aof(tmp_path / "f", "no", keys, growth=10, least=1000)
    store = EmbeddedStore(keys, aof)
    until = time.monotonic() + PATIENCE_S
    replies: list[bytes] = []
    while not aof.rewrites:
        assert time.monotonic() < until
        store.submit(Session(), deque([[b"SET", b"a", b"x" * 100]]), replies.append, 1000)
        store.turn()
    info = execute(keys, [b"INFO", b"persistence"], Session(), NOW)
    assert b"aof_rewrites:%d\r\n" % aof.rewrites in info
    assert b"aof_rewrite_in_progress:" in info
    config = execute(keys, [b"CONFIG", b"GET", b"a*"], Session(), NOW).split(b"\r\n")[2::2]
    assert config == [b"appendonly", b"yes", b"appendfsync", b"no", b"auto-aof-rewrite-percentage", b"10",
                      b"auto-aof-rewrite-min-size", b"1000"]
    store.close()
    assert b"aof_enabled:0" in execute(Keyspace(), [b"INFO", b"Persistence"], Session(), NOW)
    assert b"--aof" in execute(Keyspace(), [b"BGREWRITEAOF"], Session(), NOW)
