"""``smtnet run`` with guarded processes behind rings: what its results say of these."""

from __future__ import annotations

import csv

import pytest

from tests.net.test_run import check, smtnet

pytestmark = pytest.mark.root


@pytest.mark.parametrize("work", ["echo", "kv"])
def test_nothing_of_an_honest_host_is_rejected_and_results_say_so(tmp_path, work):
    more = {"echo": ["--size", "3000", "--count", "200", "--concurrency", "4"],
            "kv": ["--workload", "a", "--records", "50", "--ops", "200", "--clients", "4"]}[work]
    result, errors, code = smtnet(tmp_path, "run", work, "--transport", "smt", "--nic-hosting", "ring", *more,
                                  "--trials", "1")
    if work == "echo":
        check(result, code, 200)
    assert (result["errors"], result["content_ok"]) == (0, True)
    assert "rejected" not in errors
    ring = result["ring"]
    assert [ring["rejected_indices"], ring["invalid_frames"], ring["in_memory"]] == [0, 0, 0]
    # They do sleep, and wake each other: these are counters of something.
    assert ring["sleeps"] > 0 < ring["bells"]
    (line,) = csv.DictReader((tmp_path / "latest" / "results.csv").read_text().splitlines())
    assert line["ring.rejected_indices"] == "0"
    for name in ("index.html", "summary.txt"):
        assert "0 indices rejected" in (tmp_path / "latest" / name).read_text()
