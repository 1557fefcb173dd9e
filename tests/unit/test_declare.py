"""Options as dataclasses: what argparse is told, and what comes back."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from tests.typed import typed
from workloads.options import declare
from workloads.options.common import JudgedResults, QuotedResults, Reported
from workloads.options.declare import group, option


@dataclass(frozen=True)
class Inner:
    rate: float | None = option("--rate", type=float, metavar="R", title="links", help="Mbit/s")
    words: list[str] = option("--word", action="append", default=[])
    folder: Path = option("--folder", type=Path, default=Path("here"))


@dataclass(frozen=True)
class Outer:
    count: int | None = option("--count", type=int, either="limit")
    inner: Inner = group(Inner, rate=5.0)
    seconds: float | None = option("--seconds", type=float, either="limit")
    size: int = option("--size", type=int, default="64")
    loud: bool = option("--loud", action="store_true")


@dataclass(frozen=True)
class Outermost:
    outer: Outer = group(Outer, rate=7.0, size=1)


def test_defaults_are_the_same_read_or_made():
    assert typed(Outer) == Outer()
    made = Outer()
    assert (made.count, made.inner, made.size, made.loud) == (None, Inner(5.0, [], Path("here")), 64, False)
    with pytest.raises(FrozenInstanceError):
        made.size = 3  # type: ignore[misc]


def test_whoever_takes_a_group_may_set_its_defaults():
    assert typed(Outermost) == Outermost()
    assert (Outermost().outer.inner.rate, Outermost().outer.size) == (7.0, 1)
    assert typed(Outermost, "--rate", "2").outer.inner.rate == 2.0
    assert Inner().rate is None


def test_words_are_read_into_their_places():
    found = typed(Outer, "--count", "3", "--word", "a", "--word", "b", "--loud", "--folder", "x")
    assert found == Outer(3, Inner(5.0, ["a", "b"], Path("x")), None, 64, True)
    assert Outer().inner.words == [], "nobody shares a list"


def test_of_either_one_may_be_given(capsys):
    with pytest.raises(SystemExit):
        typed(Outer, "--count", "3", "--seconds", "1")
    assert "not allowed with" in capsys.readouterr().err


def test_help_has_the_order_and_the_headings():
    parser = argparse.ArgumentParser()
    declare.add(Outer, parser)
    general, _, links = parser.format_help().partition("links:")
    assert general.index("--count") < general.rindex("--word") < general.rindex("--size")
    assert "--rate R" in links


def test_all_options_by_name():
    assert declare.as_dict(typed(Outer, "--word", "w")) == {
        "count": None, "rate": 5.0, "words": ["w"], "folder": "here", "seconds": None, "size": 64, "loud": False}


def test_a_group_is_found_wherever_it_stands():
    assert declare.part(Outermost(), Inner) == Inner(7.0)
    assert declare.part(Inner(), Outer) is None


@pytest.mark.parametrize(("kind", "word", "without", "given"), [
    (JudgedResults, "--allow-unfaithful", True, False), (QuotedResults, "--strict", False, True)])
def test_two_words_are_one_rule(kind, word, without, given):
    for words, judged in (((), without), ((word,), given)):
        end = declare.part(typed(kind, *words), Reported)
        assert end is not None
        assert end.judged is judged
