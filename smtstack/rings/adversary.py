"""What hostile hosts have in common: when they change memory, and what; by a seed, so that it can be repeated.

One changes memory between any two accesses of its guest: as the next :class:`~smtstack.rings.memory.Watcher` of an
audit it is told of each. What brought the guest into a state that it had not been in before
(:attr:`Adversary.outcome`) it does more often for a while.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Final

#: Half of the mutations are of so many kinds that had a new effect last.
_FAVOURED: Final = 8


class Adversary:
    """``all_kinds``: of mutations, by name; ``chance``: of one at each access of the guest, of 1; 0: it is honest,
    and :meth:`mutate` is all."""

    def __init__(self, all_kinds: tuple[str, ...], seed: int, chance: float = 0.0) -> None:
        self._random = random.Random(seed)  # noqa: S311 - has to repeat, not to surprise
        self.chance = chance
        self._all_kinds = all_kinds
        #: What it does.
        self.kinds: tuple[str, ...] = all_kinds
        #: Mutations, in all and by kind.
        self.mutated = 0
        self.mutations: Counter[str] = Counter()
        #: What state the guest is in, as far as that makes a difference; None: nobody tells.
        self.outcome: Callable[[], tuple[int, ...]] | None = None
        self._seen: set[tuple[int, ...]] = set()
        self._favoured: list[str] = []
        self._last = all_kinds[0]
        self._busy = False

    def accessed(self, memory: str, write: bool, start: int, end: int) -> None:
        """The guest is about to read or write: now is a good moment."""
        if self.chance and not self._busy and self._random.random() < self.chance:
            self.mutate()

    def mutate(self) -> None:
        """Change something."""
        self._busy = True
        if self.outcome is not None:
            # What is new is the work of the last one before this.
            state = self.outcome()
            if state not in self._seen:
                self._seen.add(state)
                self._favoured = [*self._favoured[1 - _FAVOURED:], self._last]
        favours = self._favoured if self.kinds is self._all_kinds and self._random.random() < 0.5 else None
        kind = self._last = self._random.choice(favours or self.kinds)
        self.mutated += 1
        self.mutations[kind] += 1
        self.change(kind)
        self._busy = False

    def change(self, kind: str) -> None:
        """Do a mutation."""
        raise NotImplementedError
