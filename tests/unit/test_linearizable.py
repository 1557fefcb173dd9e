"""The checker of histories agrees with one that tries all orders; and it does find what is wrong."""

from __future__ import annotations

from itertools import permutations

from hypothesis import example, given, settings
from hypothesis import strategies as st

from workloads.load.linearizable import NEVER, Operation, violation


def tried(history: list[Operation]) -> bool:
    """Whether some order is right, by trying: writes without an answer may be left out."""
    pending = [one for one in history if one.end == NEVER]
    for left in range(1 << len(pending)):
        out = [one for i, one in enumerate(pending) if left >> i & 1]
        rest = [one for one in history if one not in out]
        for order in permutations(rest):
            value, fine = 0, True
            for i, one in enumerate(order):
                if any(later.end < one.begin for later in order[i + 1:]) or (not one.write and one.value != value):
                    fine = False
                    break
                value = one.value if one.write else value
            if fine:
                return True
    return False


@st.composite
def histories(draw):
    """Few operations, at different times, of any shape."""
    count = draw(st.integers(1, 5))
    times = draw(st.permutations(range(2 * count)))
    writes = [draw(st.booleans()) for _ in range(count)]
    values = [i + 1 for i, write in enumerate(writes) if write]
    found = []
    for i, write in enumerate(writes):
        begin, end = sorted(times[2 * i:2 * i + 2])
        value = i + 1 if write else draw(st.sampled_from([0, *values]))
        found.append(Operation(write, value, begin, NEVER if write and draw(st.integers(0, 3)) == 0 else end))
    return found


@settings(max_examples=300)
@given(histories())
@example([Operation(True, 1, 0, 1), Operation(False, 0, 2, 3)])
def test_it_agrees_with_trying_all_orders(history):
    assert (violation(history) == "") == tried(history)


def test_what_is_wrong_is_said():
    written = [Operation(True, 1, 0, 1), Operation(True, 2, 2, 3)]
    assert violation([*written, Operation(False, 2, 4, 5)]) == ""
    # A write that was acknowledged is lost.
    assert "was there" in violation([*written, Operation(False, 1, 4, 5)])
    assert "was there" in violation([*written, Operation(False, 0, 4, 5)])
    assert "nobody wrote" in violation([Operation(False, 7, 4, 5)])
    assert "before it was written" in violation([Operation(False, 2, 0, 1), written[1]])
    assert "written twice" in violation([written[0], written[0]])
    # Seen, then not any more, though its writer never had an answer.
    unknown = Operation(True, 3, 4)
    assert violation([*written, unknown, Operation(False, 2, 6, 7), Operation(False, 3, 8, 9)]) == ""
    assert violation([*written, unknown, Operation(False, 3, 6, 7), Operation(False, 2, 8, 9)])
