"""The records in docs/decisions: numbers without gaps, a date, three parts, and an index of all of them."""

from __future__ import annotations

import re
from datetime import date
from pathlib import Path

import pytest

from tests.command_lines import ROOT

FOLDER = ROOT / "docs/decisions"
RECORDS = sorted(path for path in FOLDER.glob("*.md") if path.name != "README.md")
_HEAD = re.compile(r"# (\d{4}): (.+)\n\n(\d{4}-\d\d-\d\d)\n\n")


def head(path: Path) -> tuple[int, str, date]:
    """Number, title and date."""
    found = _HEAD.match(path.read_text())
    assert found is not None, f"{path.name} begins with '# NUMBER: title' and a date"
    return int(found[1]), found[2], date.fromisoformat(found[3])


def test_numbers_have_no_gap_and_are_those_of_the_files():
    assert RECORDS
    numbers = [head(path)[0] for path in RECORDS]
    assert numbers == list(range(1, len(RECORDS) + 1))
    assert [path.name[:5] for path in RECORDS] == [f"{number:04}-" for number in numbers]


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_has_its_parts(path):
    text = path.read_text()
    assert re.findall(r"^## (.+)", text, re.MULTILINE) == ["Context", "Decision", "Consequences"]
    assert all(len(part.strip()) > 40 for part in re.split(r"^## .+", text, flags=re.MULTILINE)[1:])
    assert date(2026, 11, 20) <= head(path)[2]


def test_dates_go_on_with_numbers():
    dates = [head(path)[2] for path in RECORDS]
    assert dates == sorted(dates)


def test_the_index_has_all_records():
    index = (FOLDER / "README.md").read_text()
    rows = re.findall(r"^\| \[(\d{4})\]\((.+?)\) \| (\S+) \| (.+) \|$", index, re.MULTILINE)
    made = [(f"{number:04}", path.name, when.isoformat(), title)
            for path in RECORDS for number, title, when in [head(path)]]
    assert rows == made


def test_files_that_records_name_are_there():
    for path in RECORDS:
        for named in re.findall(r"`((?:smtstack|topo|tests|workloads|controllers)/[\w./]+)`", path.read_text()):
            assert (ROOT / named).exists(), f"{path.name}: {named}"
        for named in re.findall(r"`((?:transport|session|crypto)/\w+\.py)`", path.read_text()):
            assert (ROOT / "smtstack" / named).exists(), f"{path.name}: {named}"
