"""``smtnet plan``: what it prints, writes and refuses."""

from __future__ import annotations

import json

import pytest

from controllers.fabric import Fabric
from controllers.planner import make_plan
from tests.fabrics import real
from workloads.commands.main import main


def test_a_plan_for_people(capsys):
    assert main(["plan", "leafspine,2,4,2"]) == 0
    text = capsys.readouterr().out
    assert "4 hosts, 6 switches, 8 links between switches" in text
    assert "paths to each host: 4" in text
    assert "s3      3     0 " in text
    # All ways of the pair, and the one its flow has.
    plan = make_plan(real("leafspine,2,4,2"))
    path = plan.flow_path("h1", "h3")
    assert path is not None
    assert f"h1 to h3, by path {path}, {' '.join(plan.paths('h1', 'h3')[path])}; there are:" in text
    for way in plan.paths("h1", "h3"):
        assert f"\n  {' '.join(way)}\n" in text
    assert "and 8 other pairs" in text


def test_who_chooses_is_said(capsys):
    assert main(["plan", "leafspine,2,2,1", "--multipath", "message"]) == 0
    assert "messages by all of these, else by path" in capsys.readouterr().out
    assert main(["plan", "leafspine,2,2,1", "--multipath", "ecmp"]) == 0
    assert "h1 to h2, by the switches' hash:" in capsys.readouterr().out
    assert main(["plan", "star,2"]) == 0
    assert "h1 to h2\n  s1\n" in capsys.readouterr().out


def test_a_plan_for_programs(capsys):
    assert main(["plan", "leafspine,2,4,2", "--json", "--seed", "3", "--down", "s1-s3", "--down", "s6"]) == 0
    raw = json.loads(capsys.readouterr().out)
    assert (raw["topo"], raw["policy"], raw["seed"], raw["path_count"]) == ("leafspine,2,4,2", "flow", 3, 4)
    assert raw["down"] == {"links": ["s1:3-s3:1"], "switches": ["s6"]}
    assert len(raw["paths"]) == 12
    assert {tuple(way) for way in raw["paths"]["h1 h3"]} == {("s1", "s4", "s2"), ("s1", "s5", "s2")}


def test_pairs_that_are_cut_off_are_named(capsys):
    assert main(["plan", "dumbbell,2", "--down", "s1-s2"]) == 0
    text = capsys.readouterr().out
    assert "out of order: s1:1-s2:1" in text
    assert "h1 to h3: cut off\n" in text
    assert "cut off: 8 pairs, h1 to h3" in text


def test_the_fabric_for_a_controller_on_its_own(tmp_path, capsys):
    assert main(["plan", "fattree,2", "--fabric", str(tmp_path / "f.json")]) == 0
    assert Fabric.from_json((tmp_path / "f.json").read_text()) == real("fattree,2")
    assert "f.json" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "words"), [
    (["ring,4"], "unknown topology 'ring'"),
    (["back2back"], "use one with switches"),
    (["fattree,3"], "K is 3; an even number"),
    (["leafspine,2,2,1", "--down", "s1-s2"], "--down s1-s2: there is no link between these two; s1 has s1-s3"),
    (["leafspine,2,2,1", "--down", "s1-s9"], "there is no switch 's9'"),
    (["leafspine,2,2,1", "--down", "h1"], "there is no switch 'h1'"),
    (["star,2", "--fabric", "/nowhere/f.json"], "/nowhere/f.json: No such file"),
])
def test_what_is_mistyped_is_one_line_and_usage(arguments, words, capsys):
    assert main(["plan", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1
