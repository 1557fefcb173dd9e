"""The key-value store on protected storage: all of what the plain file promises, and what that cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import time
from contextlib import suppress
from random import Random

import pytest

from smtstack.errors import AuthError, ConfigError
from smtstack.storage.files import Protection, open_file
from smtstack.storage.keys import ScryptCost, Secret, make_key_file, read_key_file, read_passphrase_file
from smtstack.storage.layout import MODES
from workloads.commands import kv_file
from workloads.kv import aof_file
from workloads.kv.aof import FSYNC, Aof
from workloads.kv.aof_protected import opener, plain_opener
from workloads.kv.arguments import Session
from workloads.kv.commands import execute
from workloads.kv.databases import Journal
from workloads.kv.store import Keyspace

NOW = 1_700_000_000_000
KEY = Secret(key=bytes(range(32)))
CANARY = b"the-canary-sings"
PATIENCE_S = 30
CASES = [("plain", None), ("xts", None), ("xts+hmac", "counter"), ("aead", "sealed")]


def contents(keys):
    return sorted(str(entry) for entry in keys.snapshot())


def protection(folder, mode="aead", kind="sealed"):
    return Protection(KEY, mode, folder / "trusted" if kind else None, kind or "sealed")


class Store:
    """A keyspace and its file, a turn each call."""

    def __init__(self, path, how, fsync="always", upgrade=False, **more):
        self.keys = Keyspace()
        self.said: list[str] = []
        self.aof = Aof(path, fsync, self.keys, say=self.said.append, log=opener(how, upgrade), **more)
        self.keys.databases.journal = Journal()
        self.keys.databases.persistence = self.aof

    def do(self, *lines):
        replies = [execute(self.keys, line.split(), Session(), NOW) for line in lines]
        assert self.keys.databases.journal is not None
        self.aof.write(self.keys.databases.journal.take(), time.monotonic_ns())
        self.aof.turn(time.monotonic_ns())
        return replies

    def wait(self):
        """Until the file is written anew, or that has failed."""
        until = time.monotonic() + PATIENCE_S
        while self.aof.info()["aof_rewrite_in_progress"] or self.aof.info()["aof_rewrite_scheduled"]:
            assert time.monotonic() < until
            time.sleep(0.0005)
            self.do()


def load(path, how):
    store = Store(path, how, "no", growth=0)
    store.aof.close()
    return store.keys


@pytest.mark.parametrize(("mode", "kind"), CASES)
@pytest.mark.parametrize("fsync", FSYNC)
def test_what_was_written_is_there_again_and_is_not_to_be_seen(tmp_path, mode, kind, fsync):
    path, how = tmp_path / "f", protection(tmp_path, mode, kind)
    store = Store(path, how, fsync)
    store.do(b"SET a " + CANARY, b"INCR n")
    store.do(b"HSET h f v", b"ZADD z 1.25 m", b"SET long " + CANARY * 5000)
    expected = contents(store.keys)
    store.aof.close()
    again = Store(path, how, fsync)
    assert contents(again.keys) == expected
    again.do(b"INCR n")
    # The process ends, with nothing closed: what was answered is in the file.
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for file in tmp_path.iterdir():
        if file.is_file():
            shutil.copy(file, elsewhere)
    left = load(elsewhere / "f", protection(elsewhere, mode, kind))
    assert execute(left, [b"GET", b"n"], Session(), NOW) == b"$1\r\n2\r\n"
    again.aof.close()
    assert (CANARY in path.read_bytes()) == (mode == "plain")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("mode", "kind"), CASES)
@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_it_is_written_anew_while_it_is_in_use(tmp_path, monkeypatch, mode, kind, fsync):
    monkeypatch.setattr(aof_file, "BATCH", 5000)
    path, how = tmp_path / "f", protection(tmp_path, mode, kind)
    store = Store(path, how, fsync)
    store.do(*[b"SET k%d %d" % (i, i) for i in range(300)])
    for _turn in range(100):
        store.do(*[b"SET k%d %s" % (j, b"x" * 100) for j in range(20)], b"INCR counter")
    before = store.aof.info()["aof_current_size"]
    assert store.do(b"BGREWRITEAOF") == [b"+Background append only file rewriting started\r\n"]
    for i in range(30):
        store.do(b"APPEND tail x", b"DEL k%d" % (100 + i), b"INCR counter")
    store.wait()
    assert store.aof.info()["aof_last_bgrewrite_status"] == "ok"
    assert store.aof.rewrites == 1
    assert not store.said
    assert int(str(store.aof.info()["aof_current_size"])) < int(str(before)) / 2
    store.do(b"SET after 1")
    with pytest.raises(ConfigError, match="another process is using it"):
        load(path, how)
    expected = contents(store.keys)
    store.aof.close()
    assert contents(load(path, how)) == expected
    assert not (tmp_path / "f.new").exists()


def test_a_failed_rewrite_leaves_the_old_file(tmp_path, monkeypatch):
    path, how = tmp_path / "f", protection(tmp_path)
    store = Store(path, how)
    store.do(b"SET a 1")

    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("fork", "pipe"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            store.do(b"BGREWRITEAOF")
        assert store.aof.info()["aof_last_bgrewrite_status"] == "err"
    with monkeypatch.context() as patch:
        patch.setattr("workloads.kv.aof_protected.write_snapshot", full)
        store.do(b"BGREWRITEAOF")
        store.wait()
    assert "No space left" in store.said[-1]
    store.do(b"BGREWRITEAOF")
    assert store.aof._rewrite is not None
    with suppress(ProcessLookupError):
        os.kill(store.aof._rewrite.pid, signal.SIGKILL)
    store.wait()
    store.do(b"SET a 2", b"BGREWRITEAOF")
    # It is closed while it is written.
    store.aof.close()
    assert contents(load(path, how)) == contents(store.keys)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f", "trusted"]


def test_an_old_file_a_changed_one_and_none_are_refused(tmp_path):
    path, how = tmp_path / "f", protection(tmp_path)
    store = Store(path, how)
    store.do(b"SET a 1")
    store.aof.close()
    old = path.read_bytes()
    store = Store(path, how)
    store.do(b"SET a 2", b"BGREWRITEAOF")
    store.wait()
    store.aof.close()
    new = path.read_bytes()
    path.write_bytes(old)
    with pytest.raises(AuthError, match="older than what was acknowledged"):
        load(path, how)
    path.unlink()
    with pytest.raises(AuthError, match="is gone"):
        load(path, how)
    path.write_bytes(new)
    assert execute(load(path, how), [b"GET", b"a"], Session(), NOW) == b"$1\r\n2\r\n"
    with pytest.raises(ConfigError, match="its mode is aead"):
        load(path, protection(tmp_path, "xts"))
    with pytest.raises(ConfigError, match="is protected: give"):
        plain_opener(path)
    with pytest.raises(AuthError, match="cannot be opened"):
        load(path, Protection(Secret(key=bytes(32)), "aead", tmp_path / "trusted"))
    data = bytearray(path.read_bytes())
    at = open_file(path, how, read_only=True)
    place = at.device.block.place(0) * 4096
    at.close()
    data[place + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(AuthError, match=r"f: sector 0 was changed"):
        load(path, how)


def test_a_plain_file_is_taken_over_only_when_that_is_asked_for(tmp_path):
    path, how = tmp_path / "f", protection(tmp_path)
    plain = Aof(path, "no", Keyspace())
    plain.write([[b"SET", b"a", CANARY]], 0)
    plain.close()
    with pytest.raises(ConfigError, match="--aof-upgrade"):
        load(path, how)
    store = Store(path, how, upgrade=True)
    assert store.do(b"GET a") == [b"$16\r\n%s\r\n" % CANARY]
    store.do(b"SET b 1")
    store.aof.close()
    assert CANARY not in path.read_bytes()
    assert contents(load(path, how)) == contents(store.keys)
    # Somebody puts a plain one there: it is not taken for ours, whatever is asked for.
    path.unlink()
    plain = Aof(path, "no", Keyspace())
    plain.close()
    with pytest.raises(AuthError, match="trusted state"):
        Store(path, how, upgrade=True)


def test_keys_come_from_private_files_and_passphrases(tmp_path):
    make_key_file(tmp_path / "key")
    assert len(read_key_file(tmp_path / "key").key) == 32
    with pytest.raises(FileExistsError):
        make_key_file(tmp_path / "key")
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_key_file(tmp_path / "key")
    (tmp_path / "short").write_text("00")
    (tmp_path / "short").chmod(0o600)
    with pytest.raises(ConfigError, match="64 hex digits"):
        read_key_file(tmp_path / "short")
    (tmp_path / "pass").write_text("correct horse\n")
    (tmp_path / "pass").chmod(0o600)
    how = Protection(read_passphrase_file(tmp_path / "pass"), cost=ScryptCost(4))
    store = Store(tmp_path / "f", how)
    store.do(b"SET a 1", b"BGREWRITEAOF")
    store.wait()
    store.aof.close()
    assert contents(load(tmp_path / "f", how)) == contents(store.keys)
    with pytest.raises(AuthError, match="wrong"):
        load(tmp_path / "f", Protection(Secret(passphrase=b"wrong horse")))
    with pytest.raises(ConfigError, match="wants a passphrase"):
        load(tmp_path / "f", Protection(KEY))


def test_check_and_dump(tmp_path, capsys, monkeypatch):
    path, key = tmp_path / "f", tmp_path / "key"
    assert kv_file.run(["key", str(key)]) == 0
    how = Protection(read_key_file(key), "xts+hmac", tmp_path / "trusted", "counter")
    options = ["--storage-key", str(key), "--storage-mode", "xts+hmac", "--storage-freshness", "counter",
               "--storage-state", str(tmp_path / "trusted")]
    store = Store(path, how)
    store.do(b"SET a 1", b"SELECT 3", b"HSET h f v")
    with pytest.raises(ConfigError, match="another process"):
        kv_file.run(["check", str(path), *options])
    store.aof.close()
    before = path.read_bytes()
    assert kv_file.run(["check", str(path), "--json", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["storage"], said["freshness"], said["keys"], said["cut off"]) == ("xts+hmac", "counter", 2, 0)
    assert kv_file.run(["dump", str(path), *options]) == 0
    assert "*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\n1\r\n" in capsys.readouterr().out
    assert kv_file.run(["dump", str(path), "--json", *options]) == 0
    assert [json.loads(line)["command"][0] for line in capsys.readouterr().out.splitlines()] == ["SET", "HSET"]
    # Nothing was changed, not even to put something right.
    assert path.read_bytes() == before
    with pytest.raises(ConfigError, match="is protected"):
        kv_file.run(["check", str(path)])


@pytest.mark.parametrize("mode", MODES)
def test_cut_at_any_place_it_begins_with_whole_turns(tmp_path, mode):
    """A crash of the machine before a sync: some first turns are there, none half."""
    path, how = tmp_path / "f", protection(tmp_path, mode, None)
    store = Store(path, how, "no")
    states = [contents(store.keys)]
    random = Random(mode)
    for i in range(8):
        store.do(b"SET a%d %s" % (i % 3, random.randbytes(random.choice((9, 3000, 9000))).hex().encode()),
                 b"INCR n", b"APPEND t x")
        states.append(contents(store.keys))
    image = path.read_bytes()
    store.aof.close()
    seen = set()
    for cut in range(3 * 4096, 40 * 4096, 9001):
        # Of the journal nothing behind the cut has reached the disk.
        path.write_bytes(image[:cut] + bytes(len(image) - cut))
        found = contents(load(path, how))
        assert found in states, f"cut at {cut}"
        seen.add(states.index(found))
    assert len(seen) > 4
