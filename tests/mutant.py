"""A process of ``tests/mutations.py``: plans in, performances out, by the ``smtstack`` that is found first."""

from __future__ import annotations

import pickle
import sys

from tests.performing import perform

if __name__ == "__main__":
    plans = pickle.load(sys.stdin.buffer)  # noqa: S301 - of our own parent
    pickle.dump([perform(plan) for plan in plans], sys.stdout.buffer)
