"""Which version of a field a reader may still see: YCSB's check that the store never answers with an older value.

A field of a record is a register: a write replaces what was there, and each write has a version of its own, so a
version that was replaced never comes back. A reader knows for certain that a version was replaced if, before it
asked, somebody of this process had seen another one that came later:

- two reads or acknowledged writes, the second begun after the first was over, that show different versions: the
  first version is gone, and with it all that its writer had finished before;
- a version tells by itself that its writer had no other write to that field under way when it began
  (:data:`OVERLAPPED` is not set): then all that this writer wrote to the field before is gone, whoever reads it.

Writes that were under way together may have taken effect in either order: of these nothing is concluded, so a
store that is right is never blamed (tests/unit/test_ycsb_history.py tries it against a model). A write without an
answer may take effect at any time, and counts as under way for ever.

Nothing here knows the time: what was known when an operation began is what :meth:`History.before` gave then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from smtstack.errors import SmtError

#: Bits of a version, in the order writer, number, :data:`OVERLAPPED`; five bytes. 0 is what was loaded.
WRITER_BITS, NUMBER_BITS = 12, 27
#: The writer had another write to that field under way.
OVERLAPPED = 1
#: Fields of which something is remembered: beyond, what has not been written or read for longest is forgotten.
LIMIT = 200_000
#: Of a field: versions last seen, and single ones that are gone, that are remembered.
_LIVE, _GONE = 4, 8

_NUMBERS = (1 << NUMBER_BITS) - 1


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of one field, at some time."""

    floors: Mapping[int, int]
    """By writer: what has a lower number is gone."""
    live: tuple[int, ...]
    """Versions that were there at some time before, not known to be gone."""
    gone: tuple[int, ...]
    """Some that are gone, of which that does not hold for those before them."""

    def excludes(self, version: int) -> bool:
        """Whether it is gone for certain. (What was loaded is, once anything else was there.)"""
        return not version or number_of(version) < self.floors.get(writer_of(version), 0) or version in self.gone


#: What is known of a record's fields.
Known = tuple["_Known | None", ...]


def writer_of(version: int) -> int:
    """Who wrote it."""
    return version >> NUMBER_BITS + 1


def number_of(version: int) -> int:
    """The number of a version among its writer's."""
    return version >> 1 & _NUMBERS


class History:
    """What one process (``writer``, from 1) has written and seen, of records with ``fields`` fields.

    No two processes that ever wrote to a store may have the same number.
    """

    def __init__(self, writer: int, fields: int) -> None:
        if not 0 < writer < 1 << WRITER_BITS:
            raise SmtError(f"{writer} client processes have written to this store; load it again")
        self._writer = writer
        self._fields = fields
        self._written = 0
        self._known: dict[bytes, Known] = {}
        self._under_way: Counter[tuple[bytes, int]] = Counter()
        self._most = max(1, LIMIT // fields)

    def before(self, key: bytes) -> Known | None:
        """What is known of a record now: for an operation that begins."""
        return self._known.get(key)

    def write(self, key: bytes, fields: Iterable[int]) -> int:
        """The version for a write to these fields that begins now."""
        self._written += 1
        if self._written > _NUMBERS:
            raise SmtError(f"this process has written {_NUMBERS} times; load the store again")
        version = self._writer << NUMBER_BITS + 1 | self._written << 1
        for field in fields:
            if self._under_way[key, field]:
                version |= OVERLAPPED
            self._under_way[key, field] += 1
        return version

    def written(self, key: bytes, fields: Iterable[int], version: int, before: Known | None) -> None:
        """A write was acknowledged."""
        seen = dict.fromkeys(fields, version)
        for field in seen:
            self._under_way[key, field] -= 1
            if not self._under_way[key, field]:
                del self._under_way[key, field]
        self.read(key, seen, before)

    def read(self, key: bytes, seen: Mapping[int, int], before: Known | None) -> str:
        """An operation that began when ``before`` was known has shown the versions ``seen``, by field. What is
        wrong with that, or ""."""
        changed: list[_Known | None] | None = None
        for field, version in seen.items():
            was = before[field] if before is not None else None
            if was is None:
                if not version:
                    continue
            elif was.excludes(version):
                return (f"{key.decode()}: field{field} is older than what was seen before: "
                        f"{_said(version)}, after {' and '.join(map(_said, was.live)) or 'later ones'}")
            elif was.live == (version,):
                continue
            if changed is None:
                changed = list(self._known.get(key) or [None] * self._fields)
            changed[field] = _later(changed[field], was, version)
        if changed is not None:
            # To the end: the first ones are those that nothing was learnt of for longest.
            self._known.pop(key, None)
            self._known[key] = tuple(changed)
            if len(self._known) > self._most:
                del self._known[next(iter(self._known))]
        return ""


def _later(now: _Known | None, was: _Known | None, version: int) -> _Known:
    """What is known after ``version`` was there, at some time after ``was`` was known."""
    floors = dict(now.floors) if now is not None else {}
    gone = now.gone if now is not None else ()
    over = [v for v in was.live if v != version] if was is not None else []
    for old in over:
        if old & OVERLAPPED:
            gone = (*gone, old)[-_GONE:]
        else:
            floors[writer_of(old)] = max(floors.get(writer_of(old), 0), number_of(old) + 1)
    if not version & OVERLAPPED:
        floors[writer_of(version)] = max(floors.get(writer_of(version), 0), number_of(version))
    live = [v for v in (now.live if now is not None else ()) if v != version and v not in over]
    return _Known(floors, (*live, version)[-_LIVE:], gone)


def _said(version: int) -> str:
    return f"write {number_of(version)} of client {writer_of(version)}" if version else "what was loaded"
