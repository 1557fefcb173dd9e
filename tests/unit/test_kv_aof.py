"""The append-only file: what was acknowledged is there again, what is damaged is refused."""

from __future__ import annotations

import os
import random
import struct
import time
import zlib
from collections import deque
from typing import get_args, get_origin

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack.errors import ConfigError
from workloads.kv import aof as aof_module
from workloads.kv import aof_file, resp
from workloads.kv import store as store_module
from workloads.kv.aof import FSYNC, Aof, AofError
from workloads.kv.aof_file import FORMAT
from workloads.kv.arguments import Session
from workloads.kv.backend import EmbeddedStore
from workloads.kv.commands import execute
from workloads.kv.databases import Journal
from workloads.kv.store import KINDS, Keyspace, Slots
from workloads.kv.zset import SortedSet

HEAD = FORMAT.head
NOW = 1_700_000_000_000


def contents(keys):
    """All there is, in any order."""
    return sorted(str(entry) for entry in keys.snapshot())


def write(path, turns, fsync="no"):
    """Do commands, a turn each list; the keyspace, and the file's length after each turn."""
    keys = Keyspace()
    aof = Aof(path, fsync, keys)
    keys.databases.journal = Journal()
    ends = []
    for turn in turns:
        for line in turn:
            assert not execute(keys, line.split(), Session(), NOW).startswith(b"-")
        aof.write(keys.databases.journal.take(), time.monotonic_ns())
        ends.append(path.stat().st_size)
    aof.close()
    return keys, ends


def load(path):
    """The keyspace of a file, and the warnings."""
    keys = Keyspace()
    aof = Aof(path, "no", keys)
    aof.close()
    return keys, aof.warnings


TURNS = [[b"SET a 1", b"INCR a"], [b"HSET h f v g w"], [b"SET b x EX 100", b"ZADD z 1.25 m 3 n"],
         [b"APPEND c tail"]]


@pytest.mark.parametrize("fsync", FSYNC)
def test_what_was_written_is_there_again(tmp_path, fsync):
    keys, _ends = write(tmp_path / "f", TURNS, fsync)
    again, warnings = load(tmp_path / "f")
    assert contents(again) == contents(keys)
    assert not warnings
    # And goes on from there.
    more, _ends = write(tmp_path / "f", [[b"INCRBY n 5"]])
    assert execute(load(tmp_path / "f")[0], [b"GET", b"n"], Session(), NOW) == b"$1\r\n5\r\n"
    assert len(more) == len(keys) + 1


def test_every_cut_at_the_end_drops_the_last_entry_and_says_so(tmp_path):
    path = tmp_path / "f"
    _keys, ends = write(path, TURNS)
    whole = path.read_bytes()
    start = ends[-2]
    expected, _ = load_of(tmp_path, whole[:start])
    for cut in range(start + 1, len(whole)):
        path.write_bytes(whole[:cut])
        keys, warnings = load(path)
        assert contents(keys) == contents(expected)
        assert len(warnings) == 1
        assert f"offset {start}" in warnings[0]
        assert f"{cut - start} bytes dropped" in warnings[0]
        assert path.stat().st_size == start
        assert load(path)[1] == []


def load_of(folder, data):
    """The keyspace of a file with these bytes."""
    path = folder / "other"
    path.write_bytes(data)
    return load(path)


def refusal(path, data):
    """What a file with these bytes is refused with; it is left as it is."""
    path.write_bytes(data)
    with pytest.raises(ConfigError) as refused:
        load(path)
    assert path.read_bytes() == data
    return str(refused.value)


@pytest.mark.parametrize("version", [1, 2])
def test_any_flipped_bit_is_damage_where_it_is_and_never_a_torn_end(tmp_path, version):
    path = tmp_path / "f"
    if version == 1:
        whole = old_file(TURNS)
        starts = old_starts(whole)
    else:
        _keys, ends = write(path, TURNS)
        whole = path.read_bytes()
        starts = [len(HEAD), *ends[:-1]]
    for at in range(len(whole)):
        for bit in range(8):
            said = refusal(path, whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1:])
            if at < len(HEAD):
                assert f"damaged at offset {at}," in said
                assert at == 10 or f"echo smtnet kv {version} | dd of={path} conv=notrunc" in said
            else:
                entry = max(start for start in starts if start <= at)
                assert f"damaged at offset {entry};" in said
                assert f"truncate -s {entry} {path}" in said
    # Zeros where the last entry was, and an entry that is missing altogether.
    assert f"offset {starts[-1]};" in refusal(path, whole[:starts[-1]] + bytes(len(whole) - starts[-1]))
    assert f"offset {starts[-1]};" in refusal(path, whole[:-3] + bytes(3))
    assert f"offset {starts[1]};" in refusal(path, whole[:starts[1]] + whole[starts[2]:])
    # The advice given works.
    path.write_bytes(whole)
    os.truncate(path, starts[1])
    assert load(path)[1] == []


def old_file(turns):
    """A file as the first version wrote it."""
    data, crc = b"smtnet kv 1\n", 0
    for turn in turns:
        body = b"".join([resp.command(line.split()) for line in turn])
        after = zlib.crc32(body, crc)
        start = struct.pack("!II", len(body), after)
        data += start + struct.pack("!I", zlib.crc32(start, crc)) + body
        crc = after
    return data


def old_starts(data):
    """Where its entries begin."""
    starts, at = [], 12
    while at < len(data):
        starts.append(at)
        at += 12 + int.from_bytes(data[at:at + 4], "big")
    return starts


def test_a_file_of_the_first_version_is_read_and_becomes_one_of_this(tmp_path):
    path = tmp_path / "f"
    turns = [[b"SET a 1", b"INCR a"], [b"HSET h f v"], [b"PEXPIREAT h 1999999999999"], [b"ZADD z 0.1 m"]]
    path.write_bytes(old_file(turns))
    keys, warnings = load(path)
    assert not warnings
    assert path.read_bytes().startswith(HEAD)
    assert contents(load(path)[0]) == contents(keys) == contents(write(tmp_path / "g", turns)[0])
    assert sorted(tmp_path.iterdir()) == [path, tmp_path / "g"]
    # Torn.
    path.write_bytes(old_file(turns)[:-1])
    keys, warnings = load(path)
    assert "not whole" in warnings[0]
    assert execute(keys, [b"ZCARD", b"z"], Session(), NOW) == b":0\r\n"
    assert load(path)[1] == []


def test_a_turn_is_replayed_as_a_whole_or_not_at_all(tmp_path):
    path = tmp_path / "f"
    _keys, ends = write(path, [[b"SET before 1"], [b"SET k%d v" % i for i in range(50)]])
    whole = path.read_bytes()
    for cut in range(ends[0], len(whole) + 1, 7):
        path.write_bytes(whole[:cut])
        assert len(load(path)[0]) == (51 if cut == len(whole) else 1)


VALUES = {bytes: [b"SET k v"], dict: [b"HSET k f v g w"], SortedSet: [b"ZADD k 0.1 m -inf n 3 o"],
          deque: [b"RPUSH k b a c b"], Slots: [b"SADD k b a c"]}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: KINDS[kind].name.decode())
def test_every_type_of_values_can_be_rebuilt(kind):
    assert set(KINDS) == {get_origin(t) or t for t in get_args(store_module.Value)} == set(VALUES)
    keys = Keyspace()
    for line in VALUES[kind]:
        execute(keys, line.split(), Session(), NOW)
    value = keys.get(b"k")
    assert type(value) is kind
    assert execute(keys, [b"TYPE", b"k"], Session(), NOW) == b"+%b\r\n" % KINDS[kind].name
    again = Keyspace()
    for args in KINDS[kind].rebuild(b"k", value):
        assert not execute(again, args, Session(), NOW).startswith(b"-")
    assert contents(again) == contents(keys)


def test_large_values_are_written_in_pieces_and_read_whole(tmp_path):
    keys = Keyspace()
    aof = Aof(tmp_path / "f", "no", keys)
    large = random.Random(1).randbytes(3_000_000)
    group = [[b"SET", b"a", large], [b"SET", b"b", b"x"],
             *[[b"SET", b"c%d" % i, large[:70_000]] for i in range(600)]]
    aof.write(group, 0)
    aof.write([[b"SET", b"d", b"y"]], 0)
    aof.close()
    again, warnings = load(tmp_path / "f")
    assert not warnings
    assert again.get(b"a") == large
    assert again.get(b"c599") == large[:70_000]
    assert again.get(b"d") == b"y"


@given(st.integers(0, 2**32))
def test_another_file_is_refused_and_left_alone(tmp_path_factory, seed):
    path = tmp_path_factory.mktemp("aof") / "f"
    data = random.Random(seed).randbytes(1 + seed % 100)
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="no append-only file of smtnet"):
        load(path)
    assert path.read_bytes() == data


def test_a_start_that_was_cut_in_the_head_is_no_trouble(tmp_path):
    for cut in range(len(HEAD)):
        (tmp_path / "f").write_bytes(HEAD[:cut])
        assert len(load(tmp_path / "f")[0]) == 0
        assert (tmp_path / "f").read_bytes() == HEAD


def test_one_server_at_a_time(tmp_path):
    aof = Aof(tmp_path / "f", "no", Keyspace())
    with pytest.raises(ConfigError, match="another server is using it"):
        load(tmp_path / "f")
    aof.close()
    load(tmp_path / "f")


def test_a_place_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="No such file or directory"):
        load(tmp_path / "none" / "f")


def test_a_long_history_is_shortened_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setattr(aof_module, "_LONG", 2000)
    monkeypatch.setattr(aof_file, "BATCH", 2000)
    path = tmp_path / "f"
    fill = [[b"SET k%d %d" % (i, i) for i in range(200)], [b"HSET h f v"], [b"ZADD z 0.1 m"], [b"EXPIRE h 1000"]]
    keys, _ends = write(path, [*fill, *[[b"SET k%d %d" % (i % 200, i)] for i in range(2000)]])
    before = path.stat().st_size
    again, _warnings = load(path)
    assert contents(again) == contents(keys)
    assert path.stat().st_size < before / 5
    assert list(tmp_path.iterdir()) == [path]
    assert contents(load(path)[0]) == contents(keys)
    # Nothing to gain a second time.
    inode = path.stat().st_ino
    load(path)
    assert path.stat().st_ino == inode


def test_nothing_is_answered_before_it_is_on_the_disk(tmp_path, monkeypatch):
    keys = Keyspace()
    aof = Aof(tmp_path / "f", "always", keys)
    store = EmbeddedStore(keys, aof)
    events: list[str] = []
    sync = os.fdatasync

    def synced(fd: int) -> None:
        events.append("sync")
        sync(fd)

    monkeypatch.setattr("os.fdatasync", synced)
    for _client in range(3):
        given = deque_of(b"SET a 1", b"INCR a")
        assert store.submit(Session(), given, lambda r: events.append(r.decode()), 1000) is None
    assert events == []
    store.turn()
    # One for all of them.
    assert events == ["sync", *["+OK\r\n:2\r\n"] * 3]
    store.submit(Session(), deque_of(b"GET a"), lambda r: events.append(r.decode()), 1000)
    store.turn()
    assert events[4:] == ["$1\r\n2\r\n"]

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fdatasync", full)
    store.submit(Session(), deque_of(b"SET a 3"), lambda r: events.append(r.decode()), 1000)
    with pytest.raises(AofError, match="No space left"):
        store.turn()
    assert len(events) == 5
    monkeypatch.undo()
    store.close()


def deque_of(*lines):
    """Commands to be done."""
    return deque(line.split() for line in lines)


def test_everysec_writes_at_once_and_syncs_aside(tmp_path, monkeypatch):
    synced: list[int] = []
    monkeypatch.setattr("os.fdatasync", synced.append)
    aof = Aof(tmp_path / "f", "everysec", Keyspace())
    start = time.monotonic_ns()
    aof.write([[b"SET", b"a", b"1"]], start)
    size = (tmp_path / "f").stat().st_size
    assert size > len(HEAD)
    for ms in (1, 500, 999):
        aof.write([[b"SET", b"a", b"2"]], start + ms * 1_000_000)
    assert aof.syncs == 1
    aof.write([], start + 1_100_000_000)
    assert aof.syncs in {1, 2}  # The thread may still be at the first.
    aof.close()
    assert synced
