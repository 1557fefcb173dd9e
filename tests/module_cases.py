"""The recorded conversations with the real module that are replayed: files, whose place we take, settings, rules.

Files in tests/data/module are in the repository; the others are reference data, replayed where they are to be had.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests import allowed
from tests.allowed import Comparison, Rule
from tests.golden import golden
from tests.performing import Performance, Plan
from tests.replay import Recording, load, plan

DATA: Final = Path(__file__).parent / "data" / "module"
SMTNET: Final = "10.9.0.1"
CLIENT, SERVER = "192.168.12.2", "192.168.12.1"
#: What of the parameters of ``smtnet serve`` and ``call`` rules look at. They had these then.
SOFTWARE: Final[dict[str, Any]] = {"window": 200_000, "unsched_bytes": 60_000, "request_ack_ticks": 20}
#: Sysctls of the module in the captures without losses; its defaults are ours.
SLOW: Final[dict[str, Any]] = {"resend_ticks": 200, "resend_interval": 100, "timeout_resends": 50}
LOSSY: Final[dict[str, Any]] = {"timeout_resends": 50}
SMALL: Final[dict[str, Any]] = {"max_gso_size": 1500}


@dataclass(frozen=True, slots=True)
class Case:
    """A capture and the end whose place we take."""

    file: str
    ip: str
    software: bool
    """The recorded end was smtnet, by its command's parameters. Else the module, by its defaults."""
    params: dict[str, Any]
    """What was different."""
    rules: tuple[Rule, ...]
    sealed: bool = True
    folder: str = ""
    """Where it is in the reference data, where it is not in the repository."""
    explained: tuple[str, ...] = field(default=())
    """The rules that it needs: no others, and all of these."""

    def __str__(self) -> str:
        return f"{self.file}-{self.ip}"

    def path(self) -> Path:
        """The capture; skips the test where it is not to be had."""
        if self.folder:
            return golden(*self.folder.split("/"), f"{self.file}.pcap")
        return DATA / f"{self.file}.pcap.xz"

    def recording(self) -> Recording:
        """The capture, read."""
        return load(self.path(), self.ip, self.sealed)

    def plan(self, recording: Recording) -> Plan:
        """What our engine has to do."""
        return plan(recording, self.software, self.params)

    def judge(self, recording: Recording, done: Performance) -> tuple[list[str], Comparison]:
        """What is wrong with it, and how it differs."""
        return allowed.judge(recording, done), allowed.compare(
            recording, done, (SOFTWARE if self.software else {}) | self.params, self.rules)


def _ours(file: str, params: dict[str, Any], *explained: str, folder: str = "") -> Case:
    return Case(file, SMTNET, True, params, allowed.OURS, folder=folder, explained=explained)


def _module(file: str, ip: str, params: dict[str, Any], *explained: str, folder: str = "",
            sealed: bool = True) -> Case:
    return Case(file, ip, False, params, allowed.MODULE, sealed, folder, explained)


#: In the repository.
CASES: Final = (
    _ours("smtnet-client-gso10000-loss10", {}, "resend_at_need_ack"),
    _ours("smtnet-server-gso1400-loss10", SMALL, "need_acks", "asked_twice", "asked_before_the_reply"),
    _ours("d1a-server-forgets-response", {}, "need_acks", "cutoffs_on_their_way", "forgotten"),
    _ours("d1b-client-gives-up", {}, "forgotten", "more_patience"),
    _ours("d1c-8192-one-rpc", {}, "need_acks", "forgotten"),
    _module("main-smt-gso10000-loss10.client", CLIENT, LOSSY, "grants_in_steps", "withheld_record", "told_more",
            "gaps_by_rpc", "answered_already"),
    _module("main-homa-gso10000-lossless.server", SERVER, SLOW, "need_acks", "grants_in_steps", sealed=False),
    _module("main-homa-gso10000-lossless.server", CLIENT, SLOW, "grants_in_steps", "acks_of_other_ports",
            sealed=False),
    _module("main-homa-gso10000-loss10.server", SERVER, LOSSY, "need_acks", "grants_in_steps", "gaps_by_rpc",
            sealed=False),
)
#: Reference data.
MORE: Final = (
    _ours("smtnet-client-gso10000-lossless.host", {}, folder="pcaps/interop"),
    _ours("smtnet-server-gso10000-lossless.host", {}, "need_acks", folder="pcaps/interop"),
    _module("main-smt-gso10000-lossless.server", SERVER, SLOW, "need_acks", "grants_in_steps", folder="pcaps"),
    _module("main-smt-gso10000-lossless.server", CLIENT, SLOW, "grants_in_steps", folder="pcaps"),
    _module("main-smt-gso10000-loss10.server", SERVER, LOSSY, "need_acks", "grants_in_steps", "gaps_by_rpc",
            folder="pcaps"),
    _module("main-smt-gso1400-loss10.server", SERVER, LOSSY | SMALL, "need_acks", "grants_in_steps",
            "withheld_record", "told_more", "gaps_by_rpc", folder="pcaps"),
    _module("main-smt-gso1400-lossless.server", SERVER, SLOW | SMALL, "need_acks", "grants_in_steps",
            "withheld_record", "gaps_by_rpc", "cutoffs_of_the_lowest", folder="pcaps"),
    _module("main-smt-gso1400-lossless.server", CLIENT, SLOW | SMALL, "grants_in_steps", "withheld_record",
            "gaps_by_rpc", "cutoffs_of_the_lowest", "acks_of_other_ports", "answered_already", folder="pcaps"),
)
