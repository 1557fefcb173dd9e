"""What came of an attack on a guest by its host."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

#: RPCs, or operations, of one measurement of the rate.
MEASURED: Final = 200


@dataclass(slots=True)
class Outcome:
    """What an attack came to."""

    mutations: Counter[str] = field(default_factory=Counter)
    accesses: int = 0
    violations: Counter[str] = field(default_factory=Counter)
    escaped: Counter[str] = field(default_factory=Counter)
    """Exceptions, by their class."""
    answered: int = 0
    """RPCs during the attack that got their answer, the right one, or operations that were done; and ..."""
    failed: int = 0
    """... that came to an error, or to nothing within the guest's patience."""
    forged: int = 0
    """Requests or responses delivered that nobody sent; results that cannot be."""
    refused: int = 0
    """Entries and indices that were not believed, over both ends."""
    records_failed: int = 0
    """Records that did not authenticate."""
    steps_before: int = 0
    """Looks at the rings that a number of these took before the attack, and ..."""
    steps_after: int = 0
    """... when it was over and the time to recover, too; 0: they did not end."""

    @property
    def held(self) -> bool:
        """Whether nothing went wrong, and there is full service again."""
        return not (self.violations or self.escaped or self.forged) and 0 < self.steps_after <= (
            self.steps_before * 21 // 20)
