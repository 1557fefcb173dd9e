"""The hosted workflow: no machine of ours runs it, so what can be known of it here is checked here.

``make lint`` has the linters for such files.
"""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from tests import lowest, workflow
from tests.command_lines import split
from tests.workflow import ROOT, Step
from workloads.commands import main as cli

STEPS = list(workflow.steps())
RUN = [step for step in STEPS if step.run]
MAKEFILE = (ROOT / "Makefile").read_text()


def words_after(program: str, step: Step) -> list[tuple[str, ...]]:
    """What a step's shell script gives to a program, whoever starts it."""
    found = []
    for line in step.run.replace("\\\n", "").splitlines():
        for command in split("ci.yml", line, whole=True):
            names = [word.rpartition("/")[2] for word in command.words]
            if program in names and command.words[:2] != ("podman", "build"):
                found.append(command.words[names.index(program) + 1:])
    return found


def test_every_job_may_do_no_more_than_read_the_code():
    assert "\npermissions: {}\n" in workflow.FILE.read_text()
    assert {name: job["permissions"] for name, job in workflow.jobs().items()} == {
        name: {"contents": "read"} for name in workflow.jobs()}
    assert all(job["timeout-minutes"] <= 60 for job in workflow.jobs().values())


def test_actions_are_named_by_what_cannot_be_moved():
    """A tag can be, by whoever takes over the action's repository. The version beside it is for people."""
    used = re.findall(r"uses: (.*)", workflow.FILE.read_text())
    assert len(used) == len(STEPS) - len(RUN)
    pinned = [re.fullmatch(r"(actions/[a-z-]+)@[0-9a-f]{40} # v\d+\.\d+\.\d+", one) for one in used]
    assert None not in pinned, used
    assert len(set(used)) == len({one[1] for one in pinned if one}), "one version of each"


@pytest.mark.parametrize("step", RUN, ids=lambda step: f"{step.job}: {step.name}")
def test_every_shell_script_can_be_read(step: Step):
    done = subprocess.run(["bash", "-n"], input=step.run, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert "${{" not in step.run, "what an expression becomes would be read as shell: hand it over by env"


def test_make_is_given_what_it_has():
    targets: dict[str, set[str]] = {}
    variables = {name for step in RUN for name in step.environment}
    for step in RUN:
        for words in words_after("make", step):
            targets.setdefault(step.job, set()).add(words[0])
            variables |= {word.partition("=")[0] for word in words[1:]}
    assert targets == {"quick": {"check", "lint"}, "two-commands": {"test", "demo"}, "vm": {"vm-test"},
                       "packages": {"dist"}}
    there = set(re.findall(r"^\.PHONY: (.*)", MAKEFILE, re.MULTILINE)[0].split())
    if not (ROOT / "workloads" / "vm").is_dir():
        there.add("vm-test")
    assert set().union(*targets.values()) <= there
    assert {"JUNIT", "LOWEST"} <= variables <= set(re.findall(r"^([A-Z_]+) \?=", MAKEFILE, re.MULTILINE))


def test_every_command_of_ours_can_be_read():
    commands = [words for step in RUN for words in words_after("smtnet", step)]
    assert {words[0] for words in commands} == {"--version", "doctor", "run"}
    for words in commands:
        if words[0] != "--version":
            cli.parse(words)


def test_conditions_and_needs_name_what_is_there():
    for name, job in workflow.jobs().items():
        assert job.get("needs", name) in workflow.jobs()
        matrix = job.get("strategy", {}).get("matrix", {})
        known = {*matrix, *(key for one in matrix.get("include", ()) for key in one)} - {"include"}
        assert set(re.findall(r"matrix\.(\w+)", str(job))) <= known, name


def test_every_python_is_tried():
    """From the oldest that setup.py takes on; the oldest also with the oldest libraries."""
    oldest = re.search(r'python_requires=">=3\.(\d+)"', (ROOT / "setup.py").read_text())
    assert oldest
    matrix = workflow.jobs()["quick"]["strategy"]["matrix"]
    assert matrix["python"] == [f"3.{minor}" for minor in range(int(oldest[1]), 14)]
    assert matrix["include"] == [{"python": matrix["python"][0], "lowest": "yes"}]


def test_a_jobs_commands_run_here(tmp_path, monkeypatch, capfd):
    file = tmp_path / "ci.yml"
    file.write_text("""jobs:
  one:
    env: {WHAT: "${{ matrix.what }}"}
    steps:
      - uses: actions/checkout@v1
      - run: echo "has $WHAT"
      - {name: fails, run: "false | cat"}
      - {name: never, run: exit 0}
""")
    monkeypatch.setattr(workflow, "FILE", file)
    assert workflow.main("one", "what=it") == 1
    output, said = capfd.readouterr()
    assert output == "has it\n"
    assert said.splitlines()[0] == "workflow: left out: actions/checkout@v1"
    assert said.splitlines()[-1] == "workflow: exit code 1: fails"
    with pytest.raises(ValueError, match=r"matrix\.what"):
        workflow.main("one")


def test_a_container_gets_what_its_file_says_it_needs():
    first, = (line for line in (ROOT / "Containerfile").read_text().splitlines() if "podman run" in line)
    needed = first.partition("podman run ")[2].partition(" smtnet ")[0]
    assert "--cap-add" in needed
    hosted = [line for step in RUN for line in step.run.splitlines() if "podman run" in line]
    assert hosted
    assert all(f"podman run {needed} smtnet " in line for line in hosted)


# -- lowest versions ---------------------------------------------------------------------------------------------


def test_every_dependency_has_one_lower_bound(tmp_path, monkeypatch):
    lines = lowest.constraints()
    assert {"mininet==2.3.0.dev6", "ryu==4.34"} <= set(lines)
    assert {line.partition("==")[0] for line in lines} == {
        re.split("[>=~]", requirement)[0] for group in lowest.declared().values() for requirement in group}
    setup = tmp_path / "setup.py"
    monkeypatch.setattr(lowest, "SETUP", setup)
    setup.write_text('setup(install_requires=["a>=1"], extras_require={"x": ["b"]})')
    with pytest.raises(ValueError, match="'b' has no lower bound"):
        lowest.constraints()
    setup.write_text('setup(install_requires=["a>=1"], extras_require={"x": ["A>=2"]})')
    with pytest.raises(ValueError, match="two bounds of one package"):
        lowest.constraints()
    setup.write_text('setup(install_requires=["a>=1", \'c~=2.0; python_version < "3.11"\'], extras_require={})')
    assert lowest.constraints() == ["a==1", "c==2.0"]


def test_it_needs_nothing_installed():
    done = subprocess.run([sys.executable, "-I", "-S", lowest.__file__], capture_output=True, text=True,
                          check=True)
    assert done.stdout.splitlines() == lowest.constraints()
