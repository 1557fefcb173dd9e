"""A server's session state in a file (SQLite), shared by its processes and kept over restarts.

What is committed survives the end of every process, kill -9 included, as the kernel has it then. It is not
forced to the disk, which would cost each hello milliseconds: when the *machine* stops, the last hellos may be
lost. So tickets and keys are given up when the machine has been started since; clients get new ones. Never
restore such a file from a backup: hellos since then could be replayed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from weakref import WeakSet

from smtstack.errors import BadPacket, ConfigError
from smtstack.session.state import LOOK_EVERY, MAX_HELLOS, SEALING_KEY_LEN, SEALING_S, SealingKey, StateError
from smtstack.session.tickets import SKEW_S, TicketSecret, parse_untrusted

_VERSION = 2
#: Milliseconds to wait for another process's write; they take microseconds.
_BUSY_MS = 2000
_MAX_PARSED = 64
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (version INTEGER NOT NULL, boot TEXT NOT NULL,
                                  forgotten INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tickets (id BLOB PRIMARY KEY, ticket BLOB NOT NULL, private BLOB NOT NULL,
                                    revoked INTEGER NOT NULL, not_after INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS hellos (mark BLOB PRIMARY KEY, until INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS hellos_until ON hellos (until);
CREATE TABLE IF NOT EXISTS keys (number INTEGER PRIMARY KEY, key BLOB NOT NULL, since INTEGER NOT NULL);
"""


class SqliteState:
    """:class:`~smtstack.session.state.ServerState` in a file.

    A fork closes it, and its next use opens it again. Raises :class:`ConfigError` for a file that is none of
    ours or that others can read, and :class:`StateError` when it cannot be used later.
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        self._create = create
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._parsed: dict[bytes, TicketSecret] = {}
        self._added = 0
        self._full = False
        with self._using():
            _STATES.add(self)

    def remember(self, mark: bytes, until: int, utc: int) -> bool:
        """Whether ``mark`` (32 bytes) is new; it is remembered through second ``until``."""
        with self._using() as db:
            if self._full or self._added >= LOOK_EVERY:
                self._added = 0
                self.purge(utc)
                self._full = db.execute("SELECT count(*) FROM hellos").fetchone()[0] >= MAX_HELLOS
                if self._full:
                    raise StateError(f"it is full: {MAX_HELLOS} hellos of the last hour")
            self._added += 1
            return db.execute("INSERT OR IGNORE INTO hellos SELECT ?, ? WHERE ? >= (SELECT forgotten FROM about)",
                              (mark, until, until)).rowcount == 1

    def add_ticket(self, secret: TicketSecret) -> None:
        """Accept sessions that begin with this ticket."""
        ticket = secret.ticket
        with self._using() as db:
            db.execute("INSERT OR REPLACE INTO tickets VALUES (?, ?, ?, ?, ?)",
                       (ticket.ticket_id, ticket.pack(), secret.private, secret.revoked, ticket.not_after))

    def ticket(self, ticket_id: bytes) -> TicketSecret | None:
        """The ticket, revoked and expired ones included; None: never had it, or long forgotten."""
        with self._using() as db:
            row = db.execute("SELECT revoked FROM tickets WHERE id = ?", (ticket_id,)).fetchone()
            if row is None:
                return None
            secret = self._parsed.get(ticket_id)
            if secret is None:
                found = db.execute("SELECT ticket, private FROM tickets WHERE id = ?", (ticket_id,)).fetchone()
                if found is None:
                    # Another process has forgotten it just now.
                    return None
                if len(self._parsed) >= _MAX_PARSED:
                    self._parsed.clear()
                secret = self._parsed[ticket_id] = self._secret(*found)
            return replace(secret, revoked=bool(row[0]))

    def tickets(self) -> list[TicketSecret]:
        """All tickets, the oldest first."""
        with self._using() as db:
            rows = db.execute("SELECT ticket, private, revoked FROM tickets").fetchall()
        return sorted((replace(self._secret(packed, private), revoked=bool(revoked))
                       for packed, private, revoked in rows), key=lambda s: s.ticket.not_before)

    def revoke(self, ticket_id: bytes) -> bool:
        """From now on nobody gets in with this ticket; False: there is none."""
        with self._using() as db:
            return db.execute("UPDATE tickets SET revoked = 1 WHERE id = ?", (ticket_id,)).rowcount == 1

    def sealing_key(self, utc: int) -> SealingKey:
        """The key to seal with."""
        with self._using() as db:
            key = _newest_key(db)
            if key is not None and key.seals(utc):
                return key
            with _transaction(db):
                key = _newest_key(db)
                if key is None or not key.seals(utc):
                    key = SealingKey(secrets.randbits(32), secrets.token_bytes(SEALING_KEY_LEN), utc)
                    db.execute("DELETE FROM keys WHERE since + ? <= ?", (2 * SEALING_S, utc))
                    db.execute("INSERT INTO keys VALUES (?, ?, ?)", (key.number, key.key, key.since))
            return key

    def opening_key(self, number: int, utc: int) -> SealingKey | None:
        """The key of that number, if it still opens."""
        with self._using() as db:
            row = db.execute("SELECT number, key, since FROM keys WHERE number = ?", (number,)).fetchone()
        key = SealingKey(*row) if row is not None else None
        return key if key is not None and key.opens(utc) else None

    def purge(self, utc: int) -> int:
        """Forget what expired ``SKEW_S`` ago; the number of hellos forgotten."""
        with self._using() as db:
            db.execute("DELETE FROM tickets WHERE not_after < ?", (utc,))
            db.execute("DELETE FROM keys WHERE since + ? <= ?", (2 * SEALING_S, utc))
            with _transaction(db):
                db.execute("UPDATE about SET forgotten = max(forgotten, ?)", (utc - SKEW_S,))
                return db.execute("DELETE FROM hellos WHERE until < (SELECT forgotten FROM about)").rowcount

    def close(self) -> None:
        """Close the file; the next use opens it again."""
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None

    def __del__(self) -> None:
        self.close()

    def _secret(self, packed: bytes, private: bytes) -> TicketSecret:
        try:
            return TicketSecret(parse_untrusted(packed), private)
        except BadPacket as e:
            raise StateError(f"{self.path}: {e}") from None

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection()
            except sqlite3.Error as e:
                raise StateError(f"state file {self.path}: {e}") from None

    def _connection(self) -> sqlite3.Connection:
        if self._db is None:
            self._db = self._open()
        return self._db

    def _open(self) -> sqlite3.Connection:
        _make_private(self.path, self._create)
        # Each statement is a transaction of its own, unless it is said otherwise.
        db = sqlite3.connect(self.path, timeout=_BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.executescript(_SCHEMA)
            self._check_boot(db)
        except sqlite3.DatabaseError as e:
            db.close()
            if isinstance(e, sqlite3.OperationalError):
                raise
            raise ConfigError(f"{self.path} is no state file of smtnet: {e}; name another with --state") from None
        except BaseException:
            db.close()
            raise
        return db

    def _check_boot(self, db: sqlite3.Connection) -> None:
        boot = ""
        with contextlib.suppress(OSError):
            boot = _BOOT_ID.read_text().strip()
        with _transaction(db):
            row = db.execute("SELECT version, boot FROM about").fetchone()
            if row is None:
                db.execute("INSERT INTO about VALUES (?, ?, 0)", (_VERSION, boot))
            elif row[0] != _VERSION:
                raise ConfigError(f"state file {self.path} is of version {row[0]}, this is version {_VERSION}; "
                                  "name another with --state")
            elif row[1] != boot:
                db.execute("DELETE FROM tickets")
                db.execute("DELETE FROM keys")
                db.execute("UPDATE about SET boot = ?", (boot,))


def _newest_key(db: sqlite3.Connection) -> SealingKey | None:
    row = db.execute("SELECT number, key, since FROM keys ORDER BY since DESC LIMIT 1").fetchone()
    return SealingKey(*row) if row is not None else None


@contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _make_private(path: Path, create: bool) -> None:
    """An empty file if there is none, for its owner only: private keys go into it."""
    try:
        if create:
            # Never open one that is there: closing it would end SQLite's locks on it (fcntl(2)).
            with contextlib.suppress(FileExistsError):
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        mode = path.stat().st_mode
    except OSError as e:
        raise ConfigError(f"state file {path}: {e.strerror}") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"state file {path} is no file")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"state file {path} can be read by others (mode {mode & 0o777:03o}); chmod 600 {path}")


def _close_all() -> None:
    for state in list(_STATES):
        state.close()


_STATES: WeakSet[SqliteState] = WeakSet()
# What SQLite has open must not reach a child: not even to close it there is safe (sqlite.org/howtocorrupt.html).
os.register_at_fork(before=_close_all)
