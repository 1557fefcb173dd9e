"""Faults that come and go: on wires and processes that stand for a network's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from smtstack.nic.impairments import ImpairmentRates
from topo.link_options import LinkOptions
from workloads.experiments.scenario.file import Fault, FaultTable
from workloads.experiments.scenario.play import Faults
from workloads.experiments.scenario.schedule import Span

ENDS = ("h1", "s1")
BASE = LinkOptions(delay_us=100)


@dataclass
class _Wire:
    rates: dict[str, ImpairmentRates] = field(default_factory=dict)

    def set_rates(self, to: str, rates: ImpairmentRates) -> None:
        self.rates[to] = rates


@pytest.fixture
def wire() -> _Wire:
    return _Wire()


@pytest.fixture
def net(wire) -> Any:
    one, two = (SimpleNamespace(name=f"{name}-eth0", node=SimpleNamespace(name=name)) for name in ENDS)
    return SimpleNamespace(links=[SimpleNamespace(intf1=one, intf2=two, wire=wire, ends=(BASE, BASE))], hosts=[])


def on_link(**what: Any) -> Fault:
    return Fault(FaultTable(host="h1", **what), Span(0, 1), ENDS)


def test_a_link_has_what_all_its_faults_say(net, wire):
    with Faults(net, [on_link(loss=5.0), on_link(delay_us=9.0), on_link(down=True)], []) as faults:
        faults.begin(0)
        lossy = ImpairmentRates(drop=0.05, delay_ns=100_000)
        assert wire.rates == {"left": lossy, "right": lossy}
        faults.begin(1)
        assert wire.rates["left"] == ImpairmentRates(drop=0.05, delay_ns=9000)
        faults.begin(2)
        assert wire.rates["right"] == ImpairmentRates(drop=1.0)
        faults.end(0)
        faults.end(2)
        assert wire.rates["left"] == ImpairmentRates(delay_ns=9000)
    assert wire.rates == {"left": BASE.rates(), "right": BASE.rates()}, "gone at the end"


@pytest.fixture
def server() -> Iterator[psutil.Process]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield psutil.Process(process.pid)
    process.kill()
    process.communicate()


def test_servers_stand_still_and_go_on_even_after_an_error(net, server):
    fleet: Any = SimpleNamespace(server_pids=lambda host: [server.pid] if host == "h1" else [])
    stall = Fault(FaultTable(host="h1", stall=True), Span(0, 1), None)

    def interrupted() -> None:
        with Faults(net, [stall, stall], [fleet]) as faults:
            faults.begin(0)
            assert server.status() == psutil.STATUS_STOPPED
            faults.begin(1)
            faults.end(0)
            assert server.status() == psutil.STATUS_STOPPED, "the other one is still there"
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert server.status() != psutil.STATUS_STOPPED
