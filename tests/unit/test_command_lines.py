"""Every help text, and every command line that somebody is shown: parsed by the parsers themselves.

tests/command_lines.py finds them. What a command checks before it makes a network is checked, too, and what can be
run in seconds without root is run.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shutil
import socket
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from smtstack import exit_codes
from smtstack.errors import ConfigError, SmtError, Unsupported
from tests.command_lines import ROOT, CommandLine, all_lines, of_page, of_text, pages, walk
from tests.mn_parser import PARSED
from tests.net import starting
from topo import cli_verbs, sandbox
from workloads import experiments
from workloads.commands import bench
from workloads.commands import main as cli
from workloads.experiments.experiment import Experiment
from workloads.load import memory_echo

#: The rest of a line that needs another end, a recording or a running program: parsed, not run.
_NEED_OTHERS = {"vm", "serve", "call", "kv", "nic", "tickets", "interop", "cluster"}
#: Words that make a long run of a command short.
_SHORT = {"slowdown": ("--messages", "200"), "bench": ("--quick", "--rounds", "1"),
          "reproduce slowdown": ("--messages", "200"), "reproduce table2": ("--quick",)}
#: Batches of runs: what only shows what would be run is run, and sweeps are read.
_BATCHES = {"reproduce all": "--list", "sweep": "--check"}
#: Of the lines that measure the same, and show it in other ways, the first does.
_run_bench = cache(memory_echo.run_bench)
#: What a command may say of a line whose files are not there.
_MISSING = re.compile(r"No such file|no result folder|unable to open|has no \S+\.pem")


def _lines(*programs: str) -> list[CommandLine]:
    return [line for line in all_lines() if line.program in programs]


@cache
def _parser(strict: bool) -> argparse.ArgumentParser:
    parser = cli.build_parser()
    if not strict:
        for _path, part in walk(parser):
            for option in part._actions:
                option.required = False
            for group in part._mutually_exclusive_groups:
                group.required = False
    return parser


def _parse(words: tuple[str, ...], strict: bool) -> argparse.Namespace | None:
    """None: it says something and ends, as --help does. Raises AssertionError with what is wrong."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            return _parser(strict).parse_args(words)
    except SystemExit as end:
        if end.code:
            pytest.fail(said.getvalue().strip().splitlines()[-1])
        return None


@cache
def _experiments() -> list[Experiment]:
    return experiments.load()


def _in_a_sandbox(words: tuple[str, ...], args: argparse.Namespace) -> bool:
    """Whether it would go on in namespaces of its own."""
    asked = words[:2] if words[0] in ("run", "reproduce", "bench") else ("", words[0])
    found = [experiment for experiment in _experiments() if (experiment.command, experiment.name) == asked]
    if found:
        return any(experiment.sandboxed for experiment in found)
    return hasattr(sys.modules[args.run.__module__], "sandbox")


# -- help texts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, _parser in walk(cli.build_parser())], ids=" ".join)
def test_every_help_text(path, capsys):
    """Also those of subcommands of subcommands; a bare "%" is an error of argparse's."""
    with pytest.raises(SystemExit) as end:
        cli.main([*path, "--help"])
    assert end.value.code == 0
    usage = capsys.readouterr().out.split("\n\n")[0].split()
    assert usage[:2] == ["usage:", "smtnet"]
    assert set(path) - {"x"} < set(usage)


def _programs() -> list[str]:
    """Modules that are programs with options of their own."""
    found = []
    for package in ("workloads", "topo", "controllers", "smtstack"):
        for source in sorted((ROOT / package).rglob("*.py")):
            text = source.read_text()
            if "ArgumentParser(" in text and '__name__ == "__main__"' in text:
                found.append(".".join(source.relative_to(ROOT).with_suffix("").parts))
    return found


@pytest.mark.parametrize("module", _programs())
def test_every_help_text_of_the_programs_in_hosts(module):
    done = starting.run([sys.executable, "-m", module, "--help"], timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")


# -- lines are found ---------------------------------------------------------------------------------------------


def test_lines_are_found_by_their_form():
    page = "\n".join([
        "Take `smtnet run echo` or", "`sudo .venv/bin/smtnet nic IFACE --set",
        "loss=1%`; `--loss` and `smtstack` are no commands.", "", "```sh",
        "sudo ip netns exec a X=1 .venv/bin/smtnet run echo --size 64 \\",
        "    --count 3   # three",
        "smtnet serve echo … ; smtnet nic $(smtnet keys k | head -1) >file", "```", "", "    smtnet plan star,4",
        "",
        "```", "mininet> smt echo h1 h2 64", "h1 -> h2 smtnet is output", "```"])
    found = [(line.where, *line.words) if line.whole else (line.where, line.words) for line in of_page("x", page)]
    assert found == [
        ("x:6", ".venv/bin/smtnet", "run", "echo", "--size", "64", "--count", "3"),
        ("x:8", "smtnet", "keys", "k"), ("x:8", "head", "-1"),
        ("x:8", ("smtnet", "serve", "echo")), ("x:8", "smtnet", "nic", "1"),
        ("x:14", "smt", "echo", "h1", "h2", "64"),
        ("x:11", "smtnet", "plan", "star,4"),
        ("x:1", ("smtnet", "run", "echo")),
        ("x:2", (".venv/bin/smtnet", "nic", "IFACE", "--set", "loss=1%"))]
    text = ("examples:\n  smtnet run echo \\\n      --loss 1%%\n  smtnet plan x    what it is\n\n"
            "'smtnet ca x' makes one")
    assert [line.words for line in of_text("y", text)] == [
        ("smtnet", "run", "echo", "--loss", "1%"), ("smtnet", "plan", "x"), ("smtnet", "ca", "x")]


def test_lines_are_found_where_there_are_some():
    """A finder that finds nothing would let everything pass."""
    places = {line.where.partition(":")[0] for line in all_lines()}
    for page in pages():
        if re.search(r"^(sudo )?(\.venv/bin/smtnet|smtnet) ", page.read_text(), re.MULTILINE):
            assert page.relative_to(ROOT).as_posix() in places
    for path, parser in walk(cli.build_parser()):
        if "examples:" in (parser.epilog or "") and path:
            first = f"{' '.join(('smtnet', *path))}"
            assert any(" ".join(line.words).startswith(first) for line in all_lines())


# -- our own -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", _lines("smtnet"), ids=str)
def test_our_lines_are_parsed(line, tmp_path, monkeypatch):
    words = line.words[1:]
    args = _parse(words, line.whole)
    if args is None or not line.whole:
        return
    if not _in_a_sandbox(words, args):
        return
    # An experiment: what it finds wrong before it would go on in namespaces of its own.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "inside", lambda: False)
    monkeypatch.setattr(sandbox, "enter", lambda: PARSED)
    try:
        assert args.run(args) == PARSED
    except Unsupported:
        pass  # this machine lacks something; the line is right
    except ConfigError as e:
        if not _MISSING.search(str(e)):
            raise


def _only_shows(words: tuple[str, ...]) -> list[str]:
    """What has a batch of runs only say what it would run."""
    return [word for batch, word in _BATCHES.items() if " ".join(words).startswith(batch)]


def _run_here() -> list[CommandLine]:
    found = []
    for line in _lines("smtnet"):
        if not line.whole or len(line.words) < 2 or line.words[1] in _NEED_OTHERS:
            continue
        args = _parse(line.words[1:], True)
        if args is not None and not _in_a_sandbox(line.words[1:], args):
            found.append(line)
    return found


@pytest.mark.parametrize("line", _run_here(), ids=str)
def test_what_needs_nobody_else_runs(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(bench, "run_bench", _run_bench)
    code = cli.main([*line.words[1:], *_SHORT.get(" ".join(line.words[1:3]), _SHORT.get(line.words[1], ())),
                     *_only_shows(line.words[1:])])
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    if code == exit_codes.EXIT_USAGE:
        assert _MISSING.search(said.err), said.err
    else:
        # A machine may lack something that "doctor" looks for.
        assert code == 0 or (line.words[1] == "doctor" and code == exit_codes.EXIT_ENVIRONMENT), said.err


def _asks_by_stream() -> list[CommandLine]:
    """Clients that need no root: they ask the kernel's TCP, without certificates."""
    return [line for line in _lines("smtnet") if line.whole and line.words[1] in ("call", "kv")
            and "tcp" in line.words and "--iface" not in line.words]


@pytest.mark.parametrize("line", _asks_by_stream(), ids=str)
def test_clients_run_against_a_server_of_ours(line):
    """Of the line only the server's address is another."""
    words = list(line.words[1:])
    what = next((other for other in ("kv", "blocks") if other in words[:2]), "echo")
    command = [sys.executable, "-m", "workloads"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        peer = f"127.0.0.1:{free.getsockname()[1]}"
    words[words.index("--peer") + 1] = peer
    # Options, where a line has them, in the order of parsing: the last one counts.
    short = [word for name, value in (("--seconds", "0.3"), ("--records", "50"), ("--commands", "99"))
             if name in words
             for word in (name, value)]
    server = starting.popen([*command, "serve", what, "--transport", "tcp", "--addr", peer])
    try:
        assert server.stderr is not None
        assert "serving" in server.stderr.readline()
        done = starting.run([*command, *words, *short], timeout=60)
        if done.returncode != exit_codes.EXIT_USAGE or not _MISSING.search(done.stderr):
            assert done.returncode in (0, exit_codes.EXIT_UNFAITHFUL), done.stderr
    finally:
        server.terminate()
        server.communicate(timeout=30)


@pytest.mark.parametrize("words", [
    "run echo --sizes 64", "run ecko", "serve echo --iface", "nic", "run kv --seconds soon"])
def test_lines_that_are_wrong_are_noticed(words):
    with pytest.raises(pytest.fail.Exception):
        _parse(tuple(words.split()), True)


# -- those of others, as far as they can be checked --------------------------------------------------------------


@pytest.mark.parametrize("line", [line for line in _lines("mn") if len(line.words) > 1 and "-c" not in line.words],
                         ids=str)
def test_lines_of_mn(line):
    """By mn's own parser, with our plug-in, up to where it would make the network."""
    program = shutil.which("mn", path=os.pathsep.join([str(ROOT / ".venv/bin"), os.environ["PATH"]]))
    if program is None:
        pytest.skip("there is no mn here")
    done = starting.run([sys.executable, "-m", "tests.mn_parser", program, *line.words[1:]], timeout=60)
    assert done.returncode in (PARSED, exit_codes.EXIT_ENVIRONMENT), done.stdout + done.stderr


class _EmptyNet:
    """A network in which nobody is found: by then a line has been understood."""

    hosts: tuple[object, ...] = ()
    links: tuple[object, ...] = ()
    controllers: tuple[object, ...] = ()


@pytest.mark.parametrize("line", [line for line in _lines("smt") if len(line.words) > 1], ids=str)
def test_lines_of_mininets_prompt(line):
    verb = line.words[1]
    if not line.whole:
        # A sentence may leave out what a verb needs, or say how it is used; other things that are called smt are
        # none.
        usages = " ".join(usage for _run, usage, _meaning in cli_verbs.VERBS.values())
        if verb not in cli_verbs.VERBS or set(line.words[2:]) & set(usages.split()):
            return
    try:
        cli_verbs.run_verb(_EmptyNet(), " ".join(line.words[1:]))
    except SmtError as e:
        understood = "no (host|link|controller) " if line.whole else "no (host|link|controller) |usage: "
        assert re.match(understood, str(e)), str(e)  # noqa: PT017


@pytest.mark.parametrize("line", _lines("tshark"), ids=str)
def test_fields_of_the_dissector(line):
    source = (ROOT / "smtstack/capture/smt.lua").read_text()
    known = set(re.findall(r'Proto(?:Field\.\w+)?\("(smt[\w.]*)"', source))
    used = set(re.findall(r"\bsmt\.[\w.]+", " ".join(line.words)))
    assert known
    assert used <= known


@pytest.mark.parametrize("line", _lines("make"), ids=str)
def test_targets_of_make(line):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {word for word in line.words[1:] if re.fullmatch("[a-z]+", word)} <= targets


@pytest.mark.parametrize("line", [line for line in all_lines() if line.words[:2] == ("python", "-m")], ids=str)
def test_programs_that_are_modules(line):
    assert find_spec(line.words[2]) is not None
    module = ROOT.joinpath(*line.words[2].split("."))
    if module.with_suffix(".py").exists():
        source = "".join(path.read_text() for path in module.parent.glob("*.py"))
        for word in line.words[3:]:
            assert not word.startswith("--") or word.removeprefix("--") in source, word


@pytest.mark.parametrize("line", [line for line in all_lines() if line.words[0].startswith(".venv/bin/")], ids=str)
def test_programs_of_the_venv(line):
    assert line.program in ("smtnet", "mn", "python")


def test_files_that_lines_name_in_the_checkout():
    for line in all_lines():
        for word in line.words:
            if re.fullmatch(r"(topo|workloads|controllers|smtstack|tests|docs|examples)/[\w./]+", word):
                assert Path(ROOT, word).exists(), str(line)
