"""The replayed conversations notice when a field or rule of profile ``linux`` changes.

A few changes by default; all of them with SMTNET_PROFILE_CHANGES=all, which takes some minutes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from smtstack.errors import BadPacket
from tests.allowed import Comparison, told
from tests.module_cases import CASES, Case
from tests.mutations import MUTATIONS, Dead, Mutants, Mutation
from tests.performing import Performance, Plan
from tests.replay import Recording

#: One of records, one of what is answered.
FEW = ("AAD has the record's length", "NEED_ACK is not answered")
CHOSEN = [m for m in MUTATIONS if os.environ.get("SMTNET_PROFILE_CHANGES") == "all" or m.name in FEW]


class Trial:
    """All cases of the repository, read once."""

    def __init__(self, folder: Path) -> None:
        self.recordings: list[tuple[Case, Recording]] = [(case, case.recording()) for case in CASES]
        self.plans: list[Plan] = [case.plan(recording) for case, recording in self.recordings]
        self.mutants = Mutants(folder)

    def noticed(self, mutation: Mutation | None) -> list[str]:
        """What of the cases goes wrong."""
        try:
            done = self.mutants.perform(mutation, self.plans)
        except Dead as e:
            return [f"the engine fails: {e}"]
        found = []
        for (case, recording), performance in zip(self.recordings, done, strict=True):
            found += [f"{case}: {what}" for what in _wrong(case, recording, performance)]
        return found


def _wrong(case: Case, recording: Recording, done: Performance) -> list[str]:
    try:
        wrong, compared = case.judge(recording, done)
    except BadPacket as e:
        return [f"it says what is no packet: {e}"]
    return wrong + _lines(compared) + sorted(set(compared.explained) ^ set(case.explained))


def _lines(compared: Comparison) -> list[str]:
    return told(compared).splitlines()


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    return Trial(tmp_path_factory.mktemp("mutants"))


def test_without_a_change_nothing_is_noticed(trial: Trial) -> None:
    assert trial.noticed(None) == []


@pytest.mark.parametrize("mutation", CHOSEN, ids=str)
def test_a_change_is_noticed(trial: Trial, mutation: Mutation) -> None:
    found = trial.noticed(mutation)
    assert bool(found) != bool(mutation.passes), found[:5] or mutation
    if os.environ.get("SMTNET_PROFILE_CHANGES") == "all":
        print(f"VERDICT {mutation.name}: {found[0] if found else 'passes: ' + mutation.passes}")


def test_each_change_is_one_of_the_source_as_it_is() -> None:
    root = Path(__file__).parents[2] / "smtstack"
    for mutation in MUTATIONS:
        assert (root / mutation.file).read_text().count(mutation.old) == mutation.times, mutation.name
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)
