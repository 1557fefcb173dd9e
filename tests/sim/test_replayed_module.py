"""Our engine in the place of either end of recorded conversations with the real SMT module, in virtual time."""

from __future__ import annotations

import pytest

from tests.allowed import told
from tests.module_cases import CASES, MORE, Case
from tests.performing import perform


@pytest.mark.parametrize("case", CASES + MORE, ids=str)
def test_it_says_what_the_module_accepted(case: Case) -> None:
    recording = case.recording()
    wrong, compared = case.judge(recording, perform(case.plan(recording)))
    assert told(compared) == ""
    assert wrong == []
    assert set(compared.explained) == set(case.explained)
