"""Every command with a stdout or stderr that is closed, full or read by nobody: its words and exit code."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.streams_driver import CLOSED, FULL, GONE, GOOD, ROOT, Ended, run_each
from workloads.commands import main as cli

#: One cheap run at least of every command; some fail by themselves, which broken streams must not change.
RUNS = [
    "doctor --nonsense", "demo --nonsense", "run echo --topo nonsense", "report nowhere",
    "serve echo", "serve kv", "nic no-such-interface",
    "call echo --transport tcp --peer 127.0.0.1:1 --size 64 --count 1 --warm-up 0",
    "call echo --transport tcp --peer 127.0.0.1:1 --size 64 --count 1 --warm-up 0 --json",
    "call kv --transport tcp --peer 127.0.0.1:1 --ops 1 --records 1", "keys", "tickets list --state none",
    "interop --iface no-such-interface --addr 127.0.0.1:1 --peer 127.0.0.1:2",
    "pcap decode none.pcap", "pcap dissector", "trace none.sqlog", "vectors none.json",
    "slowdown --load nonsense", "bench memory --rounds 0",
    "kv --transport tcp --peer 127.0.0.1:1 PING", "reproduce nonsense", "reproduce all --list",
    "hostile --mutations 200", "sweep none.toml", "cluster star,4", "plan star,4", "plan star,4 --json",
    "vm test --release nonsense", "vm run --release nonsense", "vm build --release nonsense", "vm clean nonsense",
    "ca", "--version", "", "nonsense",
]
BROKEN = [(CLOSED, "cannot write to stdout: Bad file descriptor"), (FULL, "cannot write to stdout: No space left"),
          (GONE, "")]


def leaves(parser: argparse.ArgumentParser, words: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Every command and subcommand; beyond positional arguments of its own, a subcommand cannot be named."""
    yield list(words)
    for action in parser._actions:
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction):
            return
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from leaves(child, (*words, name))


def check(lines: list[list[str]], folder: Path) -> list[str]:
    """Each command line with good streams, then with each kind of broken ones; what is wrong."""
    orders = [(line, *streams) for line in lines
              for streams in ((GOOD, GOOD), *((out, GOOD) for out, _words in BROKEN), (GOOD, CLOSED), (GOOD, FULL),
                              (CLOSED, CLOSED))]
    answers = iter(run_each(orders, folder))
    wrong = []
    for line in lines:
        good = next(answers)
        for (out, words), broken in zip(BROKEN, answers, strict=False):
            silent = out == GONE or not good.out
            code = good.code if not good.out else 141 if out == GONE else 1
            if broken.code != code or (silent and "cannot write" in broken.err) or words not in (
                    words if silent else broken.err):
                wrong.append(f"{line}, stdout {out}: {code} was to be {broken}")
            if "Traceback" in broken.err or "Exception" in broken.err:
                wrong.append(f"{line}, stdout {out}: {broken.err}")
        for err in (CLOSED, FULL):
            broken = next(answers)
            if broken.code != good.code or bool(broken.out) != bool(good.out):
                wrong.append(f"{line}, stderr {err}: {good} was to be {broken}")
        code = next(answers).code
        if code != (1 if good.out else good.code):
            wrong.append(f"{line}, both closed: {code}")
    assert next(answers, None) is None
    return wrong


def test_help_of_every_command(tmp_path: Path):
    lines = [[*words, "--help"] for words in leaves(cli.build_parser())]
    assert len(lines) > len(cli.COMMANDS)
    kinds = [(CLOSED, 1), (FULL, 1), (GONE, 141)]
    ended = run_each([(line, out, GOOD) for line in lines for out, _code in kinds], tmp_path)
    for number, each in enumerate(ended):
        line, (out, code) = lines[number // len(kinds)], kinds[number % len(kinds)]
        assert each.code == code, (line, out, each)
        assert ("cannot write to stdout: " in each.err, each.err.count("\n")) == ((True, 1) if code == 1 else
                                                                                  (False, 0)), (line, out, each)


def test_a_cheap_run_of_every_command(tmp_path: Path):
    lines = [text.split() for text in RUNS]
    assert {line[0] for line in lines if line} >= set(cli.COMMANDS)
    assert check(lines, tmp_path) == []


def test_the_driver_sees_what_is_written(tmp_path: Path):
    """The control."""
    (good, silent) = run_each([(["--version"], GOOD, GOOD), (["nonsense"], GOOD, GOOD)], tmp_path)
    assert good == Ended(0, good.out, "")
    assert good.out.startswith("smtnet ")
    assert (silent.code, silent.out) == (2, "")
    assert "nonsense" in silent.err


@pytest.mark.parametrize("more", [[], ["-u"]])
def test_head_ends_a_long_answer_without_a_word(more: list[str]):
    """More than a pipe holds; the reader takes one line."""
    command = [sys.executable, *more, "-m", "workloads", "plan", "fattree,4", "--json"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1) == b"{"
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait() == 141


def test_a_pipe_that_does_not_block_gets_all(tmp_path: Path):
    """Some programs make theirs so, for all that share it."""
    command = [sys.executable, "-m", "workloads", "plan", "fattree,4", "--json"]
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with subprocess.Popen(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        with open(reader, "rb") as pipe:
            assert json.loads(pipe.read())
        assert process.wait() == 0
