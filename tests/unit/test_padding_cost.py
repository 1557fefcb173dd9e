"""What padding costs: the model against the frames our stack makes, and the tables made of it."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path
from typing import Any

import pytest

from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import DEMO_SECRET, PairKeys
from smtstack.crypto.padding import padding_named
from smtstack.sim.pair import MemoryPair
from smtstack.transport.params import SOFTWARE
from smtstack.wire import homa
from smtstack.wire.frame import TYPE_AT
from tests.rows import row
from workloads.experiments.padding import report as padding_report
from workloads.experiments.padding.model import POLICIES, cost, costs, frame_bytes, sent_bytes
from workloads.load.distributions import WORKLOADS, Distribution, workload

SIZES = (1, 64, 1400, 1418, 1419, 9000, 20_000)


def sent_by_the_stack(size: int, policy: str) -> int:
    """Bytes of the DATA frames of one request."""
    params = SessionParams(padding=padding_named(policy))
    pair = MemoryPair("smt", SOFTWARE, keys=lambda: PairKeys({}, params, default=DEMO_SECRET))
    pair.request(bytes(size))
    total = 0
    for _turn in range(100):
        frames = pair.client.transmit(pair.now)
        total += sum(len(frame) for frame in frames if frame[TYPE_AT] == homa.DATA)
        pair.server.receive(frames, pair.now)
        if pair.server.endpoint.next_event() is not None:
            return total
        pair.client.receive(pair.server.transmit(pair.now), pair.now)
        pair.elapse(100_000)
    raise AssertionError("the request never arrived")


@pytest.mark.parametrize("policy", POLICIES)
def test_the_model_is_what_the_stack_sends(policy):
    for size in SIZES:
        assert frame_bytes(padding_named(policy)(size)) == sent_by_the_stack(size, policy), size


def test_many_messages_are_the_sum():
    assert sent_bytes([64, 64, 9000], "none") == 2 * frame_bytes(64) + frame_bytes(9000)
    assert sent_bytes([65], "power-of-two") == frame_bytes(128)


def test_cost_by_hand():
    sizes = Distribution("made up", [(100, 0.5), (128, 0.75), (300, 1.0)])
    found = cost(sizes, "power-of-two")
    assert found.mean_bytes == 157
    assert found.message_share == pytest.approx((0.75 * 128 + 0.25 * 512) / 157 - 1)
    assert found.wire_share == pytest.approx((0.75 * (128 + 96) + 0.25 * (512 + 96)) / (157 + 96) - 1)
    # Two lengths, three to one.
    assert found.lengths == 2
    assert found.entropy_bits == pytest.approx(2 - 0.75 * math.log2(3))
    plain = cost(sizes, "none")
    assert (plain.message_share, plain.wire_share, plain.lengths) == (0.0, 0.0, 3)
    assert plain.entropy_bits == pytest.approx(1.5)


def test_padding_hides_and_costs_on_every_workload():
    by_key = {(found.workload, found.policy): found for found in costs()}
    assert len(by_key) == 5 * len(POLICIES)
    for name in WORKLOADS:
        none, power, _buckets = (by_key[name, policy] for policy in POLICIES)
        assert none.wire_share == 0
        assert 0 < power.message_share <= 1
        assert power.entropy_bits < none.entropy_bits
        assert none.mean_bytes == pytest.approx(workload(name).mean())


def rows() -> list[Any]:
    """Power-of-two takes 1.1 of the time and 1.3 of the bytes; of W1 alone something was counted."""
    out = []
    for trial in (1, 2, 3):
        for policy, times, more in ((POLICIES[0], 1.0, 1.0), (POLICIES[1], 1.1, 1.3)):
            common: dict[str, Any] = {"policy": policy, "trial": trial}
            name = f"smt, {policy}"
            out += [row(name, None, p50=90.0 * times * trial, size=100, wire={"bytes": 0, "data": 0, "plain": 0},
                        **common),
                    row(name, None, mode="loaded", concurrency=8, rpc_per_s=1000 / times, size="w1",
                        wire={"bytes": int(11_000 * more), "data": int(10_000 * more), "plain": 9000}, **common)]
    return out


def test_the_tables():
    found = padding_report.comparison(costs(), rows())
    times = {(line["size"], line["policy"]): line for line in found["times"]}
    assert times[100, POLICIES[1]]["ratio"] == 1.1
    assert times[100, POLICIES[1]]["median"] == 198.0
    assert times["w1", POLICIES[1]]["ratio"] == pytest.approx(1 / 1.1, abs=0.001)
    counted = {(line["workload"], line["policy"]): line["measured_share"] for line in found["bytes"]}
    assert counted["w1", POLICIES[1]] == {"counted": 0.3, "computed": 0.3, "beside_data": 0.1}
    assert counted["w1", POLICIES[0]]["counted"] == 0.0
    assert counted["w2", POLICIES[1]] is None
    lines = list(csv.DictReader(io.StringIO(padding_report.as_csv(found["bytes"]))))
    assert len(lines) == 15
    assert (lines[1]["policy"], lines[1]["counted_share"], lines[4]["counted_share"]) == (POLICIES[1], "0.3", "")
    text = padding_report.as_text(found)
    assert "W1" in text
    assert "1.10" in text


def test_the_picture(tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert padding_report.picture(rows(), tmp_path / "padding.png")
    assert (tmp_path / "padding.png").read_bytes()[:4] == b"\x89PNG"
    assert not padding_report.picture([row()], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
