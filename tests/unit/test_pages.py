"""Files and folders that the pages for people name are there, and so are the places that links lead to."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command_lines import ROOT, pages

_FILE = re.compile(r"`((?:smtstack|workloads|topo|controllers|tests|docs|examples)/[\w./]*\w/?)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
#: A workflow's page and badge, from README.md where it is hosted.
_HOSTED = re.compile(r"\.\./\.\./actions/workflows/([\w.-]+?)(?:/badge\.svg)?")
#: Lists of what was moved are of their day.
_OLD = {"CHANGELOG.md"}


def anchors(page: Path) -> set[str]:
    """What links into a page may be called."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_what_a_page_names_is_there(page):
    text = page.read_text()
    if page.name not in _OLD:
        missing = [name for name in _FILE.findall(text) if not (ROOT / name).exists()]
        assert missing == []
    for target, anchor in _LINK.findall(re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)):
        hosted = _HOSTED.fullmatch(target)
        path = f".github/workflows/{hosted[1]}" if hosted else target
        to = (page.parent / path).resolve() if target else page
        assert to.exists(), target
        if anchor:
            assert anchor in anchors(to), f"{target}#{anchor}"


def test_names_and_links_are_found():
    text = "`tests/story.py`, `tests/corpus/` and `make test`; [a](docs/kv.md#limits), [b](#c), [d](https://e.f)"
    assert _FILE.findall(text) == ["tests/story.py", "tests/corpus/"]
    assert _LINK.findall(text) == [("docs/kv.md", "limits"), ("", "c")]
