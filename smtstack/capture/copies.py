"""Every differing copy of every packet, and which of them make an authentic record.

Retransmissions must carry the same bytes. Where a capture shows two different payloads in one place,
somebody changed a packet, or a sender used a nonce twice; a receiver never learns, because it keeps
what came first. Here all copies are kept, and a record is tried with each of them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple

from smtstack.errors import AuthError

#: Different copies kept of one packet; more are only counted.
MAX_COPIES = 16
#: Combinations of differing copies tried for one record.
MAX_TRIES = 256
#: Bytes looked at for differing copies where no header says how long the record is.
_REACH = 1 << 16

Choice = dict[int, int]


class Copies:
    """Payloads by place; a place is a byte offset, or (``counted``) a packet's number in its record."""

    __slots__ = ("_by_place", "_counted", "_places", "crowded")

    def __init__(self, counted: bool) -> None:
        self._by_place: dict[int, list[bytes]] = {}
        self._counted = counted
        self._places: list[int] = []
        #: Copies beyond MAX_COPIES of one place, not kept.
        self.crowded = 0

    def __len__(self) -> int:
        return len(self._by_place)

    def add(self, place: int, payload: bytes) -> int:
        """Keep a payload unless an equal one is there; how many bytes are kept."""
        copies = self._by_place.get(place)
        if copies is None:
            self._by_place[place] = [payload]
            return len(payload)
        if payload not in copies:
            if len(copies) < MAX_COPIES:
                copies.append(payload)
                return len(payload)
            self.crowded += 1
        return 0

    def takes(self, place: int, payload: bytes) -> bool:
        """The place is free, or an equal payload is there."""
        copies = self._by_place.get(place)
        return copies is None or payload in copies

    def drop(self, place: int) -> None:
        """Forget what is in a place."""
        if self._by_place.pop(place, None) is not None:
            self._places = []

    def places(self) -> list[int]:
        """All places, ascending."""
        if len(self._places) != len(self._by_place):
            self._places = sorted(self._by_place)
        return self._places

    def of(self, place: int) -> list[bytes]:
        """The copies of a place, in order of arrival."""
        return self._by_place[place]

    def end(self) -> int:
        """Where the last place ends (byte offsets only)."""
        return max((p + max(map(len, c)) for p, c in self._by_place.items()), default=0)

    def holding(self, offset: int) -> int | None:
        """The place whose payload covers byte ``offset``; None: a hole."""
        places = self.places()
        n = bisect_right(places, offset)
        if not n:
            return None
        place = places[n - 1]
        return place if offset < place + max(map(len, self._by_place[place])) else None

    def next_place(self, after: int) -> int | None:
        """The first place beyond ``after``."""
        places = self.places()
        n = bisect_right(places, after)
        return places[n] if n < len(places) else None

    def row(self, place: int, skip: int, size: int, choice: Choice) -> list[tuple[int, bytes]]:
        """(place, payload) without a hole from ``skip`` bytes into ``place``, until ``size`` bytes are there.

        The last payload may hold more. ``choice`` says which copy to take where it is not the first.
        """
        out: list[tuple[int, bytes]] = []
        while size > 0:
            copies = self._by_place.get(place)
            if copies is None:
                break
            payload = copies[min(choice.get(place, 0), len(copies) - 1)]
            piece = payload[skip:]
            if not piece:
                break
            out.append((place, piece))
            size -= len(piece)
            place += 1 if self._counted else len(payload)
            skip = 0
        return out


class Opened(NamedTuple):
    """A record that authenticated."""

    number: int
    data: bytes
    #: The message ends with it.
    last: bool
    #: Nothing had authenticated under its number before.
    fresh: bool = True


class Verdict(NamedTuple):
    """What became of the record at one place."""

    #: Its length, by the header of the copy that authenticates, or else of the first copy. 0: that is no
    #: valid header, -1: not even a whole header is there.
    size: int
    #: In at least one combination of copies, all its bytes are there.
    whole: bool
    #: Of the first combination that authenticates.
    opened: Opened | None
    #: Packets differ between copies and at least one copy is in no authentic record.
    unexplained: bool


def judge(copies: Copies, place: int, skip: int, header_len: int, measure: Callable[[bytes], int],
          open_untrusted: Callable[[list[bytes], int], Opened]) -> Verdict:
    """Open the record ``skip`` bytes into ``place``, with every combination of copies where they differ.

    ``measure`` gives the length a header claims (0: invalid); ``open_untrusted`` gets the payloads that
    hold the record and its length, and raises :class:`AuthError`. It sees every combination that is
    whole, so it is where to watch nonces.
    """
    opened: Opened | None = None
    whole = False
    first_size = -1
    contested: list[tuple[int, int]] = []
    #: Places the record covers; of which copies it authenticated.
    covered: set[int] = set()
    explained: set[tuple[int, int]] = set()
    for number, choice in enumerate(_choices(contested)):
        head = b"".join([p for _place, p in copies.row(place, skip, header_len, choice)])[:header_len]
        size = measure(head) if len(head) == header_len else -1
        row = copies.row(place, skip, size if size > 0 else _REACH, choice)
        if number == 0:
            first_size = size
            covered = {p for p, _piece in row}
            # Filled in while the generator rests after its first choice, which needs none of it.
            contested += [(p, len(copies.of(p))) for p in sorted(covered) if len(copies.of(p)) > 1]
        if size <= 0 or sum([len(piece) for _place, piece in row]) < size:
            continue
        whole = True
        try:
            result = open_untrusted([piece for _place, piece in row], size)
        except AuthError:
            continue
        if opened is None:
            opened, first_size = result, size
            covered = set()
        covered.update(p for p, _piece in row)
        explained.update((p, choice.get(p, 0)) for p, _piece in row)
    unexplained = any(p in covered and (p, n) not in explained for p, count in contested for n in range(count))
    return Verdict(first_size, whole, opened, unexplained)


def _choices(contested: list[tuple[int, int]]) -> Iterator[Choice]:
    """Which copy to take where: the first everywhere, then likely mixtures, at most MAX_TRIES.

    A message sent anew under a used number differs in all packets: "the n-th copy everywhere" finds it.
    One changed packet is found by exchanging one copy at a time.
    """
    yield {}
    tried: list[Choice] = []
    most = max((count for _place, count in contested), default=1)
    waves = [{p: min(n, count - 1) for p, count in contested} for n in range(1, most)]
    singles = [{p: n} for p, count in contested for n in range(1, count)]
    for choice in (waves + singles)[:MAX_TRIES]:
        if choice not in tried:
            tried.append(choice)
            yield choice
