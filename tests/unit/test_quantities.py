"""Quantities on command lines: every option of every subcommand that has a unit, found by walking the parsers."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.quantities import BYTES, MBPS, PER_CENT, SECONDS, Quantity
from workloads.commands import main as cli
from workloads.options import common as options

#: Of each kind: a text with a unit, one of another kind, and a unit that the error has to name.
SAMPLES = {"time": ("2s", "3Gbit", "ms"), "rate": ("20M", "1ms", "Mbit"), "size": ("1KB", "1ms", "KB"),
           "share": ("5%", "5ms", "%"), "percentage": ("5%", "1Mbit", "%"), "number": ("1k", "1ms", "k"),
           "number a second": ("1k", "1ms", "/s")}
#: Words in a metavar or a name that give a quantity away.
_TELLING = ("-us", "-ns", "-ms", "-mbps", "-bytes", "--seconds", "--timeout", "--size", "--rate", "--delay",
            "--loss", "--load", "--buffer", "--mtu", "--bw", "--jitter", "--days", "--cap", "--value", "--window")


def walk(parser: argparse.ArgumentParser, path: tuple[str, ...] = ()) -> Iterator[tuple[str, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from walk(below, (*path, name))
        elif action.nargs != 0 and not isinstance(action, argparse._HelpAction):
            yield f"{' '.join(path)} {'/'.join(action.option_strings) or action.dest}", action


ACTIONS = dict(walk(cli.build_parser()))
QUANTITIES = {where: a for where, a in ACTIONS.items() if isinstance(a.type, Quantity)}


def read(action: argparse.Action, text: str) -> object:
    assert callable(action.type)
    parser = cli._Parser(prog="p")
    parser.add_argument("--it", type=action.type)
    return parser.parse_args([f"--it={text}"]).it


def test_no_quantity_is_read_by_anything_else():
    assert len(QUANTITIES) > 150
    others = {where: a for where, a in ACTIONS.items() if where not in QUANTITIES}
    for where, action in others.items():
        assert action.type not in (int, float), where
        if any(word in option for option in action.option_strings for word in _TELLING):
            # Lists and words among which sizes may be; tested below.
            assert action.type is not None, where


@pytest.mark.parametrize("where", QUANTITIES)
def test_every_quantity_takes_its_default_plain_numbers_and_units(where, capsys):
    action = QUANTITIES[where]
    quantity = action.type
    assert isinstance(quantity, Quantity)
    kind = quantity.kind
    right, wrong, unit = SAMPLES[kind.name]
    if isinstance(action.default, int | float) and action.default != 0:
        assert read(action, f"{action.default:.15g}") == action.default
    least = quantity.least if not quantity.above else quantity.least + 0.25
    assert read(action, f"{least:.15g}") == least
    if action.default == 0 and "default: 0" in (action.help or ""):
        assert read(action, "0") == 0
    own = quantity.own.lower()
    in_own = kind.units[right.lstrip("0123456789").lower()] / kind.units.get(own, 1.0)
    value = float(right.rstrip("%/abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")) * in_own
    if value == int(value) or not quantity.whole:
        assert read(action, right) == pytest.approx(value)
    for bad in (wrong, "x", "nan", "inf", "-1", "", "1e999", "5 apples"):
        with pytest.raises(SystemExit) as e:
            read(action, bad)
        said = capsys.readouterr().err
        assert e.value.code == 2
        assert said.startswith(f"p: argument --it: {bad!r} is not a ")
        assert kind.name in said
        assert unit in said
        assert said.count("\n") == 1


@pytest.mark.parametrize("where", [w for w in QUANTITIES if "--poll-us" in w])
def test_busy_waiting_may_be_left_off_in_words(where):
    assert read(QUANTITIES[where], "0") == 0
    assert read(QUANTITIES[where], "1ms") == 1000


@pytest.mark.parametrize(("quantity", "text", "value"), [
    (MBPS, "10G", 10_000.0), (MBPS, "10Gbit", 10_000.0), (MBPS, "100Mbps", 100.0), (MBPS, "64kbit", 0.064),
    (MBPS, "2.5 Gbit/s", 2500.0), (MBPS, "0.5", 0.5), (SECONDS, "1ms", 0.001), (SECONDS, "2", 2.0),
    (SECONDS, "1.5min", 90.0), (quantities.MICROSECONDS, "0.3ms", 300.0),
    (quantities.MICROSECONDS, "50 msecs", 50_000.0),
    (quantities.MICROSECONDS, "7µs", 7.0), (quantities.DAYS, "36500d", None), (quantities.DAYS, "48h", 2),
    (quantities.DAYS, "36h", None), (BYTES, "64KB", 64_000), (BYTES, "64KiB", 65_536), (BYTES, "1M", 1_000_000),
    (BYTES, "1.5k", 1500), (BYTES, "1.5", None), (BYTES, "0", None), (quantities.FRACTION, "5%", 0.05),
    (quantities.FRACTION, "0.05", 0.05), (quantities.FRACTION, "1.5", None), (quantities.FRACTION, "150%", None),
    (PER_CENT, "5%", 5.0), (PER_CENT, "0.05", 0.05), (PER_CENT, "101", None),
    (quantities.PER_SECOND, "10k/s", 10_000.0),
    (quantities.PER_SECOND, "0", None), (SECONDS, "0", None), (SECONDS, "1e3", 1000.0), (SECONDS, "5m", None),
    (quantities.WHOLE_MICROSECONDS, "1500ns", None), (quantities.POSITIVE, "10k", 10_000),
])
def test_as_people_write_them(quantity, text, value):
    if value is None:
        with pytest.raises(ConfigError, match=r"^it: "):
            quantity.read("it", text)
    else:
        assert quantity.read("it", text) == value


@given(st.sampled_from([quantities.TIME, quantities.RATE, quantities.SIZE, quantities.SHARE, quantities.COUNT,
                        quantities.FREQUENCY]), st.data(), st.integers(1, 10**6))
def test_a_unit_is_a_factor(kind, data, number):
    unit = data.draw(st.sampled_from(sorted(kind.units)))
    own = data.draw(st.sampled_from(sorted(kind.units)))
    value = Quantity(kind, own).value(f"{number}{unit.upper() if unit.isascii() else unit}")
    assert value == pytest.approx(number * kind.units[unit] / kind.units[own])


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_an_error_of_one_line(text):
    for quantity in (SECONDS, BYTES, MBPS, PER_CENT):
        try:
            value = quantity.read("it", text)
        except ConfigError as e:
            said = str(e)
        else:
            said = ""
            assert quantity.least <= value <= quantity.most
        assert "\n" not in said


def test_sizes_among_words():
    assert quantities.sizes("64KB,w3,1000") == "64000,w3,1000"
    assert quantities.size_and_number("1MBx10k") == "1000000x10000"
    args = cli.build_parser("run").parse_args(["run", "kv", "--value", "4KB", "--padding", "buckets:64,4KB"])
    assert (args.value, args.padding) == ("4000", "buckets:64,4000")
    with pytest.raises(argparse.ArgumentTypeError, match="'64parsec' is not a whole size"):
        quantities.sizes("64parsec")


@pytest.mark.parametrize(("text", "value"), [("unsched_bytes=64KB", 64_000), ("tick_ns=1ms", 1_000_000),
                                             ("link_mbps=1G", 1000), ("max_overcommit=4", 4)])
def test_parameters_of_the_transport_are_quantities(text, value):
    assert options.parse_param(text) == (text.partition("=")[0], value)


@pytest.mark.parametrize("argv", [[], ["bogus"], ["run"], ["run", "echo", "--bogus"], ["run", "echo", "--poll-us"],
                                  ["call", "echo"], ["run", "echo", "--nic", "x"], ["ca"], ["pcap", "decode"]])
def test_usage_errors_are_one_line(argv, capsys):
    with pytest.raises(SystemExit) as e:
        cli.main(argv)
    said = capsys.readouterr()
    assert e.value.code == 2
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "--help" in said.err
