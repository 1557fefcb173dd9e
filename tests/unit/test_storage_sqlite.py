"""The real SQLite on protected storage: transactions are whole after any power cut, and nobody reads the file."""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest

pytest.importorskip("apsw", reason="the extra sqlite is not installed")

import apsw

from smtstack.errors import AuthError, ConfigError
from smtstack.storage.faults import PowerCutError
from smtstack.storage.files import Protected, Protection, open_file
from smtstack.storage.keys import Secret
from smtstack.storage.layout import MODES
from smtstack.storage.sqlite import connect, open_database
from tests.disks import KEY, Disk

HOW = Protection(Secret(key=KEY))
CANARY = "the-canary-sings"


@pytest.mark.parametrize("mode", MODES)
def test_it_is_the_real_sqlite_and_its_file_cannot_be_read(tmp_path, mode):
    path, how = tmp_path / "db", Protection(Secret(key=KEY), mode)
    connection, real = open_database(path, how), sqlite3.connect(":memory:")
    random = Random(1)
    changes = ["insert into t(b) values(:text)", "update t set b = :text where a > :n",
               "delete from t where a = :n", "insert into t select null, b || :n from t where a = :n"]
    script = ["create table t(a integer primary key, b text)", "create index i on t(b)",
              *random.choices(changes, k=60)]
    for statement in script:
        words = {"text": f"{CANARY} {random.random()}" * random.randrange(90), "n": random.randrange(20)}
        for one in (connection, real):
            one.execute(statement, words)
    expected = real.execute("select * from t order by a").fetchall()
    real.close()
    assert connection.execute("select * from t order by a").fetchall() == expected
    connection.execute("vacuum")
    connection.close()
    connection = open_database(path, how)
    assert connection.execute("select * from t order by a").fetchall() == expected
    assert connection.pragma("integrity_check") == "ok"
    assert (CANARY.encode() in path.read_bytes()) == (mode == "plain")
    assert [p.name for p in tmp_path.iterdir()] == ["db"]
    # It would take away what a sync means; and what cannot be locked out must not come in.
    assert connection.pragma("journal_mode", "wal") != "wal"
    with pytest.raises(ConfigError, match="another process"):
        open_database(path, how)
    connection.close()


def test_a_rolled_back_transaction_and_one_that_is_too_long_leave_nothing(tmp_path):
    def open_small(_name):
        return Protected(Path("db"), disk.disk, disk.open(autocommit=False), KEY, None)

    disk = Disk("aead", "none", sectors=4000, journal=40)
    connection = connect(tmp_path / "db", open_small)
    connection.execute("create table t(b)")
    connection.execute("insert into t values('kept')")
    connection.execute("begin")
    connection.execute("insert into t values('dropped')")
    connection.execute("rollback")
    with pytest.raises(apsw.FullError):
        # More pages than a commit of this journal has.
        connection.execute("insert into t values(randomblob(400000))")
    assert connection.execute("select b from t").fetchall() == [("kept",)]
    connection.execute("insert into t values('after')")
    connection.close()
    connection = connect(tmp_path / "db", open_small)
    assert connection.execute("select b from t").fetchall() == [("kept",), ("after",)]
    assert connection.pragma("integrity_check") == "ok"
    connection.close()


@pytest.mark.parametrize("mode", ["xts", "aead"])
def test_every_transaction_is_whole_after_power_cuts(tmp_path, mode):
    disk = Disk(mode, "none", sectors=400, journal=30)
    random = Random(mode)
    cuts = 0

    def open_one(_name):
        return Protected(Path("db"), disk.disk, disk.open(autocommit=False), KEY, None)

    connection = connect(tmp_path / "db", open_one)
    connection.execute("create table account(name primary key, sum)")
    connection.execute("insert into account values('a', 500), ('b', 500), ('moved', 0)")
    connection.close()
    acknowledged = 0
    for _turn in range(25):
        disk.supply.cut_after(random.randrange(1, 60 * 4096))
        cut: apsw.Connection | None = None
        try:
            cut = connect(tmp_path / "db", open_one)
            while True:
                amount = random.randrange(9)
                with cut:
                    cut.execute("update account set sum = sum - ? where name = 'a'", (amount,))
                    cut.execute("update account set sum = sum + ? where name = 'b'", (amount,))
                    cut.execute("update account set sum = sum + 1 where name = 'moved'")
                acknowledged += 1
        except (PowerCutError, apsw.Error):
            # (A callback's own exception comes through SQLite, which may have others on the way back.)
            cuts += 1
        if cut is not None:
            # That process is gone: it can write nothing any more.
            with suppress(PowerCutError, apsw.Error):
                cut.close()
        disk.disk.lose(random)
        disk.supply.restore()
        connection = connect(tmp_path / "db", open_one)
        sums: dict = {row[0]: row[1] for row in connection.execute("select * from account")}
        assert sums["a"] + sums["b"] == 1000
        # One more than was acknowledged may be there: the one that was cut.
        assert sums["moved"] in (acknowledged, acknowledged + 1)
        acknowledged = sums["moved"]
        connection.close()
    assert cuts == 25
    assert acknowledged > 50


def test_a_changed_database_is_an_error_and_an_unprotected_one_is_refused(tmp_path):
    path = tmp_path / "db"
    connection = open_database(path, HOW)
    connection.execute("create table t(b)")
    connection.execute("insert into t values(randomblob(30000))")
    connection.close()
    with pytest.raises(AuthError, match="key or passphrase is wrong"):
        open_database(path, Protection(Secret(key=bytes(32))))
    # Now everything is in its place.
    open_database(path, HOW).close()
    protected = open_file(path, HOW, read_only=True)
    places = [protected.device.block.place(sector) * 4096 for sector in (3, 6)]
    protected.close()
    with path.open("r+b") as file:
        for at in places:
            file.seek(at)
            file.write(b"somebody else's")
    connection = open_database(path, HOW)
    with pytest.raises(apsw.CorruptError, match=r"sector \d was changed"):
        connection.execute("select hex(b) from t").fetchall()
    connection.close()
    plain = sqlite3.connect(tmp_path / "plain")
    plain.execute("create table t(b)")
    plain.close()
    with pytest.raises(ConfigError, match="not protected"):
        open_database(tmp_path / "plain", HOW)
