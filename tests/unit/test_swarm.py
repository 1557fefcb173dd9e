"""Many sessions: the filter of a range of ports, and what is said of a server's memory."""

from __future__ import annotations

import csv
import io
import socket
from dataclasses import asdict

import pytest

from smtstack.io import bpf
from workloads.experiments.sessions import run as sessions
from workloads.experiments.sessions.run import Stage
from workloads.experiments.sessions.swarm import range_filter
from workloads.results.folder import csv_text

MB = 1 << 20
IP, PORTS, PROTOCOL = 0x0A000001, range(32_768, 42_768), 146


def frame(port: int, ip: int = IP, protocol: int = PROTOCOL, ethertype: int = 0x0800, vihl: int = 0x45) -> bytes:
    return b"".join((bytes(12), ethertype.to_bytes(2, "big"), bytes((vihl,)), bytes(8), bytes((protocol,)),
                     bytes(6), ip.to_bytes(4, "big"), bytes(2), port.to_bytes(2, "big"), bytes(60)))


def test_the_filter_lets_its_ports_through_and_nothing_else():
    """By the kernel's own judgement: a filter works on any socket."""
    sender, receiver = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with sender, receiver:
        bpf.attach(receiver, range_filter(IP, PORTS, PROTOCOL))
        receiver.setblocking(False)
        inside = [frame(port) for port in (PORTS.start, PORTS.start + 1, PORTS.stop - 1)]
        outside = [frame(PORTS.start - 1), frame(PORTS.stop), frame(0), frame(65_535),
                   frame(PORTS.start, ip=IP + 1), frame(PORTS.start, protocol=6),
                   frame(PORTS.start, ethertype=0x86DD), frame(PORTS.start, vihl=0x46)]
        for sent in [*outside, *inside]:
            sender.send(sent)
        got = []
        while True:
            try:
                got.append(receiver.recv(200))
            except BlockingIOError:
                break
        assert got == inside


def stages(peaks: list[float], closed: list[float], count: int = 1000) -> list[Stage]:
    """A server that has 50 MB alone; memory in MB."""
    found = [Stage(0, "start", 60 * MB, 55 * MB, 50 * MB)]
    for number, (peak, after) in enumerate(zip(peaks, closed, strict=True), 1):
        found += [Stage(number, name, own + 10 * MB, own + 5 * MB, own, count, 2.0, 900.0)
                  for name, own in (("open", int((peak - 1) * MB)), ("echo", int(peak * MB)),
                                    ("closed", int(after * MB)))]
    return found


def test_memory_of_a_session_and_rates():
    found = sessions.judge(stages([70, 70.5], [52, 52.5]), 1000)
    assert found["kb_per_session"] == 20.48
    assert found["kept_kb_per_session"] == [2.05, 2.56]
    assert found["sessions_per_s"] == [500.0, 500.0]
    assert found["flat"] is True


@pytest.mark.parametrize(("peaks", "closed", "words"), [([70, 90], [52, 52], "round 2, echo"),
                                                        ([70, 70, 70], [52, 52, 60], "round 3, closed")])
def test_a_leak_is_named(peaks, closed, words):
    found = sessions.judge(stages(peaks, closed), 1000)
    assert found["flat"] is False
    (reason,) = found["reasons"]
    assert reason.startswith(words)


def test_hellos_that_are_remembered_are_no_leak():
    # 1000 hellos a round: a quarter of a MB each.
    grown = stages([70, 72.1], [52, 54.1])
    assert sessions.judge(grown, 1000)["flat"] is False
    assert sessions.judge(grown, 1000, early=True)["flat"] is True


def test_one_round_proves_nothing():
    found = sessions.judge(stages([70], [52]), 1000)
    assert found["flat"] is None
    assert "not known to be flat" in sessions.as_text("mtls", stages([70], [52]), found)


def test_tables():
    found = stages([70, 70.5], [52, 52.5])
    lines = list(csv.DictReader(io.StringIO(csv_text([asdict(stage) for stage in found]))))
    assert [(line["round"], line["name"]) for line in lines[:3]] == [("0", "start"), ("1", "open"), ("1", "echo")]
    text = sessions.as_text("mtls", found, sessions.judge(found, 1000))
    assert "server alone" in text
    assert text.endswith("mtls: 20.48 KB a session; after close flat")
