"""Command lines that people are shown: in README and docs, in help texts, docstrings and messages.

Found by form, so that a new one is found without anybody thinking of it: lines of code blocks and of "examples:",
code within a sentence that begins with one of our programs, and quoted commands in texts of the program itself.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
#: What code within a sentence has to begin with to be a command line.
OURS = re.compile(r"(sudo )?(\.venv/bin/)?(smtnet|mn|smt|make|python -m [\w.]+|tshark)( |$)")
_PACKAGES = ("smtstack", "workloads", "topo", "controllers", "examples")
_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
#: As in "'smtnet doctor' says what".
_QUOTED = re.compile(r"'((?:sudo )?(?:smtnet|mn|make) [^'\n{}]+)'")
#: A module where nothing looks like this, once strings that follow each other are one, has no command line in its
#: texts: to parse all modules takes seconds. In the middle of a sentence a program's name is none.
_PROGRAM = re.compile(r"(?:^| {2}|examples?: |\\n|[\"'])(?:sudo )?"
                      r"(?:(?:\.venv/bin/)?smtnet|mn|make|python -m [\w.]+) ", re.MULTILINE)
_BETWEEN_STRINGS = re.compile(r"[\"']\s*\n\s*[rf]*[\"']")
#: Of docstrings and help texts: indented, and not the beginning of a sentence.
_INDENTED = re.compile(r"(?: {2,}|examples?: )((?:sudo )?(?:(?:\.venv/bin/)?smtnet|mn|python -m [\w.]+) "
                       r"(?!\w+s? [a-z]+ [a-z]+ ).*)")
#: What a shell would put in the place of "$(...)": a number is a word, too.
_SUBSTITUTE = "1"
#: What "on|off" in a sentence is kept together by.
_OR = "¦"
_SUBSTITUTION = re.compile(r"\$\(([^()]*)\)")
_DOTS = {"…", "..."}
_PROMPT = "mininet> "


@dataclass(frozen=True)
class CommandLine:
    """One command, as a shell would start it."""

    where: str
    """Page and line."""
    words: tuple[str, ...]
    """Without what only says who runs it and where: sudo, ip netns exec, VARIABLE=VALUE."""
    whole: bool
    """Whether it is to be typed as it stands; what is mentioned in a sentence may leave out what it needs."""

    @property
    def program(self) -> str:
        """Without its folder."""
        return self.words[0].rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)}"


def walk(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...],
                                                                                        argparse.ArgumentParser]]:
    """A parser and all its subcommands, each with the words that lead to it: arguments on the way are "x"."""
    yield path, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, sub in action.choices.items():
                yield from walk(sub, (*path, name))
        elif not action.option_strings:
            path = (*path, "x")


def pages() -> list[Path]:
    """What people read: Markdown here, in docs and in the folders of it."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "tests/corpus").glob("*.md")])


@cache
def all_lines() -> tuple[CommandLine, ...]:
    """All of them, each once."""
    from workloads.commands.main import build_parser

    found: list[CommandLine] = []
    for page in pages():
        found += of_page(page.relative_to(ROOT).as_posix(), page.read_text())
    for path, parser in walk(build_parser()):
        where = " ".join(("help of smtnet", *path))
        for text in (parser.description, parser.epilog, *(action.help for action in parser._actions)):
            found += of_text(where, text or "")
    for package in _PACKAGES:
        for source in sorted((ROOT / package).rglob("*.py")):
            content = source.read_text()
            for number, text in texts_of(content) if _PROGRAM.search(_BETWEEN_STRINGS.sub("", content)) else ():
                found += of_text(f"{source.relative_to(ROOT).as_posix()}:{number}", text)
    once: dict[tuple[tuple[str, ...], bool], CommandLine] = {}
    for line in found:
        once.setdefault((line.words, line.whole), line)
    return tuple(once.values())


def of_page(name: str, text: str) -> list[CommandLine]:
    """Of a page of Markdown."""
    found: list[CommandLine] = []
    for block in _FENCE.finditer(text):
        if block[1] in ("", "sh", "bash", "console"):
            at = text.count("\n", 0, block.start(2)) + 1
            # Without a language it may be output or a drawing: then only what looks like ours.
            found += _block(name, at, block[2], any_program=block[1] != "")
    text = _FENCE.sub(lambda block: "\n" * block[0].count("\n"), text)
    for first, lines in _indented_blocks(text):
        found += _block(name, first, lines, any_program=False)
    for code in _INLINE.finditer(text):
        said = " ".join(code[1].replace("\\|", "|").split())
        if OURS.match(said):
            found += split(f"{name}:{text.count(chr(10), 0, code.start()) + 1}", said, whole=False)
    return found


def of_text(where: str, text: str) -> list[CommandLine]:
    """Of a help text, docstring or message."""
    found: list[CommandLine] = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if example := _INDENTED.fullmatch(line.replace("%%", "%")):
            # What is set off says what it does.
            found += split(where, re.split(r" {2,}", example[1])[0], whole=True)
    for quoted in _QUOTED.finditer(text):
        found += split(where, quoted[1].replace("%%", "%"), whole=False)
    return found


def texts_of(source: str) -> Iterator[tuple[int, str]]:
    """(line, text) of every string in a module."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def split(where: str, text: str, whole: bool) -> list[CommandLine]:
    """The commands of one line of shell, also those in ``$(...)``; "…" and "..." stand for any more words."""
    found: list[CommandLine] = []
    if not whole:
        text = re.sub(r"\b\|\b", _OR, text)
    for inner in _SUBSTITUTION.findall(text):
        found += split(where, inner, whole)
    lexer = shlex.shlex(_SUBSTITUTION.sub(_SUBSTITUTE, text), posix=True, punctuation_chars=";&|<>")
    lexer.whitespace_split = True
    words: list[str] = []
    target = False
    for word in [*lexer, ";"]:
        if target:
            target = False
        elif word.strip("<>&") == "" and {"<", ">"} & set(word):
            target = True
        elif word.strip(";&|") == "":
            bare = _bare(words)
            dots = _DOTS & set(bare)
            # After an option they are its value.
            bare = [w for before, w in zip(["", *bare], bare, strict=False)
                    if w not in _DOTS or before.startswith("--")]
            if bare:
                found.append(CommandLine(where, tuple(bare), whole and not dots))
            words = []
        else:
            words.append(word)
    return found


def _bare(words: list[str]) -> list[str]:
    while words:
        if words[0] in ("sudo", "time", "exec", "nohup") or re.match(r"[A-Z_]+=", words[0]):
            words = words[1:]
        elif words[:3] == ["ip", "netns", "exec"]:
            words = words[4:]
        else:
            break
    return words


def _block(name: str, first: int, text: str, any_program: bool) -> list[CommandLine]:
    found: list[CommandLine] = []
    at = first
    for line in re.sub(r"\\\n\s*", "\0", text).splitlines():
        where, lines = f"{name}:{at}", line.count("\0") + 1
        at += lines
        said = line.replace("\0", "").strip()
        if said.startswith(_PROMPT):
            found += split(where, said.removeprefix(_PROMPT), whole=True)
        elif any_program or OURS.match(said):
            found += split(where, said, whole=True)
    return found


def _indented_blocks(text: str) -> Iterator[tuple[int, str]]:
    """(first line, text) of blocks that are code because four blanks are before them, without these."""
    lines = text.split("\n")
    block: list[str] = []
    for number, line in enumerate([*lines, ""], 1):
        if line.startswith("    ") and (block or not lines[number - 2].strip()):
            block.append(line[4:])
        elif block:
            yield number - len(block), "\n".join(block)
            block = []
