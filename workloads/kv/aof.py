"""The append-only file: every change of the keyspace, so that a restarted server has what it had.

Its entries (:mod:`workloads.kv.aof_file`) hold commands that give the same whenever they are replayed: times are
absolute, the end of a key is a DEL. What a crash cuts off is at the end: an entry that is not whole there is
dropped, with a warning. Anything else that is wrong is damage, and nothing is served from such a file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from smtstack.errors import AuthError, ConfigError, SmtError
from workloads.kv.aof_file import FORMAT, EntryReader
from workloads.kv.aof_log import Log, PlainLog, Rewriting
from workloads.kv.aof_rewrite import RewriteFailed, open_locked
from workloads.kv.arguments import Session
from workloads.kv.commands import execute
from workloads.kv.commands_databases import OUT_OF_RANGE
from workloads.kv.limits import Limits
from workloads.kv.resp import Command, CommandParser, error
from workloads.kv.store import Keyspace

FSYNC = ("always", "everysec", "no")
_SECOND_NS = 1_000_000_000
#: Per cent and bytes of Redis: a file is written anew when it has grown so much, and is so long.
GROWTH, LEAST = 100, 64 << 20
#: After a failure, none by itself for so long.
_RETRY_NS = 60 * _SECOND_NS
#: A file is written anew at the start when it is so long, and so much longer than it need be.
_LONG = 1 << 20
_WORTH = 2


class AofError(SmtError):
    """The file cannot be written any more. What it does not hold was not acknowledged."""


class Aof:
    """An open file, locked against a second server. ``fsync``: ``always`` (before a change is acknowledged),
    ``everysec`` (each second, by a thread) or ``no`` (when the kernel likes).

    It is written anew while it is in use when that is asked for (:meth:`ask_rewrite`), and by itself once it is
    ``least`` bytes long and ``growth`` per cent longer than after the last time (0: never by itself). ``say`` is
    told what people should know of that.

    ``log``: what opens the file; by default a plain one.

    Raises :class:`ConfigError` naming the file, and the offset where it is damaged.
    """

    def __init__(self, path: Path, fsync: str, keys: Keyspace, growth: int = GROWTH, least: int = LEAST,
                 say: Callable[[str], object] = lambda _text: None,
                 log: Callable[[Path], Log] = lambda path: PlainLog(path, open_locked(path))) -> None:
        self._path = path
        self._fsync = fsync
        self._keys = keys
        self._growth = growth
        self._least = least
        self._say = say
        self._dirty = False
        self._synced_at = 0
        self._thread: ThreadPoolExecutor | None = None
        self._syncing: Future[None] | None = None
        #: What happened at the start, for people.
        self.warnings: list[str] = []
        self.loaded = self.entries = self.bytes = self.syncs = self.rewrites = 0
        self._rewrite: Rewriting | None = None
        self._asked = False
        self._rewrite_failed = False
        self._rewrite_began = 0
        #: Seconds that the last one took; -1: there was none.
        self._rewrite_took = -1
        #: None by itself before this.
        self._rewrite_from = 0
        try:
            self._log = log(path)
        except OSError as e:
            raise ConfigError(f"--aof {path}: {e.strerror}") from None
        try:
            if self._load(keys) or (growth and self._is_long(keys)):
                self._write_anew(keys)
            self._base = self._log.writer.size
        except OSError as e:
            self._log.close()
            raise ConfigError(f"--aof {path}: {e.strerror}") from None
        except SmtError:
            self._log.close()
            raise

    # -- while it runs ---------------------------------------------------------------------------------------

    def write(self, journal: list[Command], now_ns: int) -> None:
        """Append what a turn has changed, as one group that is replayed as a whole or not at all.

        With ``always`` it is on the disk then. Raises :class:`AofError`. ``now_ns`` is a
        ``time.monotonic_ns()``; an empty journal is how time passes.
        """
        try:
            if journal:
                writer = self._log.writer
                before = writer.size
                writer.append(journal)
                self.bytes += writer.size - before
                self.entries += 1
                self._dirty = True
            if not self._dirty:
                return
            if self._fsync == "always":
                self._log.sync()
                self.syncs += 1
                self._dirty = False
                return
            if journal:
                self._log.put()
            if self._fsync == "everysec" and now_ns - self._synced_at >= _SECOND_NS:
                self._sync_aside(now_ns)
        except OSError as e:
            raise AofError(f"--aof {self._path}: {e.strerror}; changes since were not acknowledged") from None

    def _sync_aside(self, now_ns: int) -> None:
        if self._syncing is not None:
            if not self._syncing.done():
                return
            self._syncing.result()
        self._syncing = self._aside().submit(self._log.sync)
        self._synced_at = now_ns
        self.syncs += 1
        self._dirty = False

    def _aside(self) -> ThreadPoolExecutor:
        """One thing after the other, not in the loop."""
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "aof")
        return self._thread

    def ask_rewrite(self) -> bool:
        """Have it written anew, soon; whether that is not being done already."""
        if self._rewrite is not None:
            return False
        self._asked = True
        return True

    def turn(self, now_ns: int) -> None:
        """Begin to write the file anew, or go on with it. All changes must have been written.

        Raises :class:`AofError`.
        """
        try:
            if self._rewrite is not None:
                if self._rewrite.is_written():
                    self._take_new(self._rewrite, now_ns)
            elif self._asked or self._has_grown(now_ns):
                self._asked = False
                self._rewrite_began = now_ns
                self._rewrite = self._log.rewriting(self._keys)
        except RewriteFailed as e:
            self._rewrite = None
            self._rewrite_failed = True
            self._rewrite_from = now_ns + _RETRY_NS
            self._say(f"--aof {self._path}: it could not be written anew: {e}; it goes on as it is")
        except OSError as e:
            raise AofError(f"--aof {self._path}: {e.strerror}; changes since were not acknowledged") from None

    def _has_grown(self, now_ns: int) -> bool:
        size = self._log.writer.size
        return (self._growth > 0 and size >= self._least and size * 100 >= self._base * (100 + self._growth)
                and now_ns >= self._rewrite_from)

    def _take_new(self, rewrite: Rewriting, now_ns: int) -> None:
        old = self._log
        self._rewrite = None
        self._log = rewrite.finish(old.writer)
        self._rewrite_failed = self._dirty = False
        self._rewrite_took = (now_ns - self._rewrite_began) // _SECOND_NS
        self._base = self._log.writer.size
        self.rewrites += 1
        # To close a long file that has no name is to delete it, which takes long; and it may just be synced.
        self._aside().submit(old.close)

    def info(self) -> dict[str, object]:
        """The fields of the append-only file, as INFO tells them."""
        running = self._rewrite is not None
        return {"loading": 0, "aof_enabled": 1, "aof_rewrite_in_progress": int(running),
                "aof_rewrite_scheduled": int(self._asked), "aof_last_rewrite_time_sec": self._rewrite_took,
                "aof_current_rewrite_time_sec":
                    (time.monotonic_ns() - self._rewrite_began) // _SECOND_NS if running else -1,
                "aof_last_bgrewrite_status": "err" if self._rewrite_failed else "ok",
                "aof_rewrites": self.rewrites, "aof_last_write_status": "ok",
                "aof_current_size": self._log.writer.size, "aof_base_size": self._base,
                "aof_fsync": self._fsync, "aof_entries": self.entries, "aof_syncs": self.syncs}

    def settings(self) -> dict[str, object]:
        """The settings of the append-only file, as CONFIG GET tells them."""
        return {"appendonly": "yes", "appendfsync": self._fsync, "auto-aof-rewrite-percentage": self._growth,
                "auto-aof-rewrite-min-size": self._least}

    def counters(self) -> dict[str, int]:
        """What was loaded, and written since."""
        return {"aof_loaded": self.loaded, "aof_entries": self.entries, "aof_bytes": self.bytes,
                "aof_syncs": self.syncs, "aof_rewrites": self.rewrites}

    def close(self) -> None:
        """Everything is on the disk after this, unless the policy is ``no``. Raises :class:`AofError`."""
        try:
            if self._rewrite is not None:
                self._rewrite.abort()
            if self._thread is not None:
                self._thread.shutdown()
            if self._dirty and self._fsync != "no":
                self._log.sync()
        except OSError as e:
            raise AofError(f"--aof {self._path}: {e.strerror}") from None
        finally:
            self._log.close()

    # -- at the start ----------------------------------------------------------------------------------------

    def _load(self, keys: Keyspace) -> bool:
        """Replay what is there; whether an older version wrote it."""
        size = self._log.size
        with self._log.reading() as source:
            reader = EntryReader(self._path, source, size)
            try:
                self.loaded, _entries = replay(reader, keys, f"--aof {self._path}")
            except AuthError as e:
                raise AuthError(f"--aof {self._path}: {e}") from None
        if reader.whole < size and reader.whole:
            self.warnings.append(f"--aof {self._path}: the last entry, at offset {reader.whole}, is not "
                                 f"whole: {size - reader.whole} bytes dropped")
        self._log.start(reader.crc, reader.whole)
        return reader.form is not FORMAT or self._log.outdated

    def _is_long(self, keys: Keyspace) -> bool:
        """Whether most of the file is about what is not there any more."""
        if self._log.writer.size < _LONG:
            return False
        needed = sum(sum(map(len, entry)) + 6 * len(entry) for _database, entry in keys.databases.snapshot())
        return self._log.writer.size >= _WORTH * needed

    def _write_anew(self, keys: Keyspace) -> None:
        self._log = self._log.anew(keys)


def replay(reader: EntryReader, keys: Keyspace, name: str) -> tuple[int, int]:
    """Do what all entries say; how many commands and entries there were. Raises :class:`ConfigError` (``name``
    names the file), :class:`AuthError`."""
    session = Session()
    done = entries = 0
    reader.head()
    for at, body in reader.entries():
        # The parser's limits are for clients; what we wrote may be as long as a client's APPENDs made it.
        commands, wrong = CommandParser(Limits(len(body), len(body), len(body))).take(body)
        session.database = 0
        # Nothing expires while time stands still: what did is in the file as DEL.
        replies = [execute(keys, args, session, now=0) for args in commands]
        failed = [reply for reply in replies if reply.startswith(b"-")]
        if error(OUT_OF_RANGE) in failed:
            raise ConfigError(f"{name}: the entry at offset {at} is about a database above "
                              f"{len(keys.databases.all) - 1}: start with a larger --databases")
        if wrong is not None or failed:
            raise ConfigError(f"{name}: the entry at offset {at} cannot be replayed: another version wrote it; "
                              f"start with another file")
        done += len(commands)
        entries += 1
    keys.databases.now = 0
    return done, entries
