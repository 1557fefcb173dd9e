"""Scenario files: every key of every table, what is refused and how, and the page that describes them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import ConfigError
from smtstack.nic.impairments import ImpairmentRates
from smtstack.quantities import Quantity
from topo.link_options import LinkOptions
from workloads.commands import main as cli
from workloads.experiments.scenario import file as scenario_file
from workloads.experiments.scenario.file import LISTS, TABLES, FaultTable, Head, impaired, read
from workloads.options import declare

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "scenarios.md"
EXAMPLES = sorted((ROOT / "examples" / "scenarios").glob("*.toml"))
KINDS: dict[str, type] = {"": Head, **TABLES, **LISTS}
#: A file that is right, by table.
RIGHT = {
    "": 'seed = 3\ntransports = ["smt", "tls"]\n',
    "network": 'topo = "star,3"\n',
    "load": "seconds = 2\n",
    "fault": 'at = "500ms"\nfor = "1s"\nhost = "h2"\n',
}
#: Keys that the file above has already, or that go with nothing else there.
_MORE_FAULT = {"loss", "delay", "jitter", "duplicate", "reorder", "corrupt", "down", "stall"}


def text_of(**more: str) -> str:
    """The right file, with lines in the place of those of the same key, or added."""
    parts = []
    for name, lines in RIGHT.items():
        own = more.get(name or "head", "")
        taken = {line.partition("=")[0].strip() for line in own.splitlines()}
        kept = [line for line in lines.splitlines() if line.partition("=")[0].strip() not in taken]
        if name == "fault" and not taken & _MORE_FAULT:
            kept.append("loss = 1")
        heading = {"": "", "network": "[network]\n"}.get(name, f"[[{name}]]\n")
        parts.append(heading + "\n".join([*kept, own]))
    return "\n".join(parts)


@pytest.fixture
def refused(tmp_path: Path):
    """What is said of a file that is not right."""
    def say(text: str) -> str:
        path = tmp_path / "x.toml"
        path.write_text(text)
        with pytest.raises(ConfigError) as e:
            read(path)
        assert str(e.value).startswith(str(path))
        return str(e.value).removeprefix(str(path))

    return say


@pytest.fixture
def accepted(tmp_path: Path):
    """What a file says."""
    def say(text: str):
        path = tmp_path / "x.toml"
        path.write_text(text)
        return read(path)

    return say


def keys() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for table, found in scenario_file.keys().items():
        yield from ((table, key, words) for key, words in found)


ALL = list(keys())


def each(found: list[tuple[str, str, dict[str, Any]]]) -> pytest.MarkDecorator:
    """A test for each of these keys."""
    return pytest.mark.parametrize(("table", "key", "words"), found,
                                   ids=[f"{table or 'head'}-{key}" for table, key, _words in found])


# -- every key ---------------------------------------------------------------------------------------------------


@each(ALL)
def test_a_wrong_type_is_refused_with_its_key(table, key, words, refused):
    wrong = {"store_true": '"yes"'}.get(words.get("action", ""), "{x = 1}")
    said = refused(text_of(**{table or "head": f"{key} = {wrong}"}))
    assert f", {key}: " in said
    assert f"[{table}]" in said or not table


@each([one for one in ALL if isinstance(one[2].get("type"), Quantity)])
def test_a_wrong_unit_is_refused_with_what_is_possible(table, key, words, refused):
    said = refused(text_of(**{table or "head": f'{key} = "3 parsecs"'}))
    assert f", {key}: '3 parsecs' is not {words['type'].possible()}" in said


@each([one for one in ALL if one[2].get("choices")])
def test_a_word_that_is_none_is_refused(table, key, words, refused):
    said = refused(text_of(**{table or "head": f'{key} = "nonsense"'}))
    assert f", {key}: " in said
    assert all(str(choice) in said for choice in words["choices"])


@each([one for one in ALL if len(one[1]) > 3])
def test_a_mistyped_key_gets_the_nearest(table, key, words, refused):
    known = {own for where, own, _words in keys() if where == table}
    mistyped = key[:-2] + key[-1] + key[-2]
    if mistyped in known or mistyped == key:
        mistyped = key + "x"
    said = refused(text_of(**{table or "head": f"{mistyped} = 1"}))
    assert f": there is no key '{mistyped}'; did you mean " in said
    assert key in said
    assert f"[{table}]" in said or not table


@each([one for one in ALL if "-" in one[1]])
def test_blanks_of_other_languages_get_the_nearest(table, key, words, refused):
    said = refused(text_of(**{table or "head": f"{key.replace('-', '_')} = 1"}))
    assert f"did you mean {key}?" in said


# -- values are those of a command line --------------------------------------------------------------------------


def test_quantities_have_units_or_are_plain(accepted):
    found = accepted(text_of(network='bw = "0.1G"\ndelay = "5ms"\nloss = "1%"',
                             load="seconds = '500ms'\nstart = 1.5",
                             fault="at = 1\nfor = '250ms'\ndelay = 300"))
    links = found.network.network.links(found.head.seed)
    assert (links.rate_mbps, links.delay_us, links.loss, links.seed) == (100.0, 5000.0, 1.0, 3)
    assert (found.loads[0].span, found.seconds) == ((1.5, 2.0), 2.0)
    assert found.faults[0].span == (1.0, 1.25)
    assert found.faults[0].table.changes() == {"delay_us": 300.0}


def test_link_reads_as_on_a_command_line(accepted, refused):
    found = accepted(text_of(network='link = "bw=10,delay=5ms,nic=tso:off"'))
    links = found.network.network.links()
    assert (links.rate_mbps, links.delay_us, links.nic) == (10.0, 5000.0, ("tso=off",))
    assert "link has no option 'bv'" in refused(text_of(network='link = "bv=10"'))


def test_two_names_of_one_thing(refused):
    assert "rate-mbps: bw has said it already" in refused(text_of(network="bw = 1\nrate-mbps = 2"))


def test_every_transport_has_the_same_load(accepted):
    found = accepted(text_of(head="nic = 'hw'\nparam = ['max_overcommit=4']"))
    smt, tls = (found.setup(name, found.loads[0]) for name in found.head.transports)
    assert smt.options == ("--param", "max_overcommit=4")
    assert (smt.nic, tls.options) == ("hw", ())
    assert found.load(0, 1) == found.load(0, 1)
    assert found.load(0, 1).seed != found.load(0, 2).seed


def test_a_fault_has_a_wire_and_other_links_have_none(accepted):
    topo = accepted(text_of()).topology()
    wires = {ends: topo.linkInfo(*ends).get("wire") for ends in topo.links()}
    assert wires == {("h1", "s1"): None, ("h2", "s1"): "yes", ("h3", "s1"): None}
    assert "wire" not in accepted(text_of(fault="stall = true")).topology().linkInfo("h2", "s1")


# -- what cannot be ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "says"), [
    ("seconds = ", ": no TOML: "),
    ("seed = 1\n", ": there is no [[load]]"),
    ("[load]\nseconds = 1\n", ": load is a list of tables, each under [[load]]"),
    ("[[network]]\n[[load]]\nseconds = 1\n", ": network is a table, under [network]"),
    ("[[laod]]\nseconds = 1\n", ": there is no key 'laod'; did you mean load?"),
    ("[[load]]\n", ", [[load]] 1: seconds is missing"),
    (text_of(load="rate = 5\nconcurrency = 2"), ", [[load]] 1: either rate or concurrency"),
    ("[[load]]\nseconds = 1\nname = 'a'\n" * 2, ": two loads are called 'a'"),
    (text_of(load="pattern = 'h1:h9'"), ", [[load]] 1: pattern 'h1:h9': there is no host h9"),
    (text_of(load="size = 'w9'"), ", [[load]] 1: "),
    (text_of(network="topo = 'ring,3'"), ", [network]: "),
    (text_of(network="multipath = 'flow'"), ", [network]: --multipath flow needs --controller fanout"),
    (text_of(head="transports = ['smtp']"), ", transports: there is no transport 'smtp'"),
    (text_of(head="transports = 'smt'"), ", transports: 'smt' is no list"),
    (text_of(head="transports = ['tls']\nsession = 'ticket'"), ": --session"),
    (text_of(head="transports = ['tls']\nparam = ['window=5']"), ", param: none of the transports has any"),
    (text_of(head="interval = '1us'"), ", interval: "),
    (text_of(head="trials = 500"), ": 1000 times trials, transports and loads"),
    (text_of(head="name = '../x'"), ", name: '../x' is none"),
    (text_of(fault="host = 'h7'"), ", [[fault]] 1, host: there is no host 'h7', but h1, h2, h3"),
    (text_of(fault="host = ''"), ", [[fault]] 1: where? Either host or link"),
    (text_of(fault="link = 'h2-s1'"), ", [[fault]] 1: where? Either host or link"),
    (text_of(fault="host = ''\nlink = 'h1-h2'"), ", [[fault]] 1, link: there is no link 'h1-h2', but h1-s1"),
    (text_of(fault="host = ''\nlink = 'h2-s1'\nstall = true"), ", [[fault]] 1: servers are on a host"),
    (text_of(fault="down = true\nloss = 1"), ", [[fault]] 1: one of stall, down, or what to do to frames"),
    (text_of(fault="down = false"), ", [[fault]] 1: one of stall, down, or what to do to frames"),
    (text_of(fault="at = 2"), ", [[fault]] 1: it goes from 2 s to 3 s, and the last load is over after 2 s"),
    (text_of(fault="for = 1.6"), ", [[fault]] 1: it goes from 0.5 s to 2.1 s"),
    (text_of(fault="loss = 101"), ", [[fault]] 1, loss: '101' is not a percentage"),
    (text_of(load="pattern = 'h1:h3'", fault="stall = true"), ", [[fault]] 1, host: h2 has no servers"),
    (RIGHT["load"].join(["[[load]]\n", "[[fault]]\nhost = 'h2'\nloss = 1"]), ", [[fault]] 1: at is missing"),
])
def test_what_cannot_be_says_where(text, says, refused):
    assert refused(text).startswith(says)


def test_the_control(accepted):
    """The file of which all these are changes is right."""
    found = accepted(text_of())
    assert (found.name, found.head.seed, len(found.loads), len(found.faults)) == ("x", 3, 1, 1)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read(tmp_path / "none.toml")


# -- faults at once ----------------------------------------------------------------------------------------------


def test_faults_at_once():
    links = LinkOptions(delay_us=100, loss=1)
    lossy, slow, lossier = FaultTable(loss=5.0), FaultTable(delay_us=300.0), FaultTable(loss=9.0)
    assert impaired(links, []) == links.rates()
    assert impaired(links, [lossy, slow]) == ImpairmentRates(drop=0.05, delay_ns=300_000)
    assert impaired(links, [lossy, lossier]).drop == 0.09, "the later one counts"
    assert impaired(links, [FaultTable(down=True), lossy]) == ImpairmentRates(drop=1.0)


# -- the command, the examples and the page ----------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_right_without_root(path, capsys):
    assert cli.main(["run", "scenario", str(path), "--check", "--trials", "2", "--seed", "9"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("trials 2, seed 9")
    times = [float(line.split(" s ")[0]) for line in lines[1:]]
    assert times == sorted(times)
    found = read(path)
    assert len(lines) == 2 + len(found.loads) + 2 * len(found.faults)


def test_check_says_what_is_wrong(tmp_path, capsys):
    path = tmp_path / "x.toml"
    path.write_text(text_of(fault="los = 1"))
    assert cli.main(["run", "scenario", str(path), "--check"]) == 2
    assert capsys.readouterr().err == (
        f"smtnet: {path}, [[fault]] 1: there is no key 'los'; did you mean loss? there are "
        f"{', '.join(key for key, _words in scenario_file.keys()['fault'])}\n")


def described(kind: type) -> list[tuple[str, str, str]]:
    """(keys that mean the same, what they may be, default) of a table, as the page has them."""
    found = []
    for _name, flags, words in declare.flat(kind):
        names = ", ".join(f"`{flag.removeprefix('--')}`" for flag in flags if flag.startswith("--"))
        found.append((names, _values(words), _default(words)))
    return found


def _values(words: dict[str, Any]) -> str:
    kind = words.get("type")
    if words.get("action") == "store_true":
        return "true, false"
    if words.get("choices"):
        return ", ".join(f"`{choice}`" for choice in words["choices"])
    if isinstance(words.get("default"), list):
        return "list of texts"
    if isinstance(kind, Quantity):
        return f"{kind.kind.name}, in {kind.own}" if kind.own else kind.kind.name
    return "text"


def _default(words: dict[str, Any]) -> str:
    default = words.get("default")
    if words.get("action") == "store_true":
        return "`false`"
    if default == argparse.SUPPRESS or default is None or default in ("", []):
        return ""
    texts = default if isinstance(default, list) else [default]
    return ", ".join(f"`{text:g}`" if isinstance(text, float) else f"`{text}`" for text in texts)


@pytest.mark.parametrize("table", KINDS)
def test_the_page_has_every_key(table):
    heading = {"": "Before the first table", "network": "`[network]`"}.get(table, f"`[[{table}]]`")
    part = PAGE.read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [re.split(r" *(?<!\\)\| *", line.strip().strip("|").strip()) for line in part.splitlines()
             if line.startswith("| `")]
    assert [tuple(line[:3]) for line in lines] == described(KINDS[table])
    assert all(len(line) == 4 and line[3] for line in lines), "each says what it means"


def test_the_page_shows_an_example_whole():
    """What it shows as a file is one that is right."""
    shown = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert (ROOT / "examples/scenarios/flap.toml").read_text() in shown
    assert "scenarios.md" in (ROOT / "docs/experiments.md").read_text()
