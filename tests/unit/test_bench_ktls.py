"""smtnet bench ktls: the table from trials."""

from __future__ import annotations

import pytest

from smtstack.errors import ConfigError
from workloads.experiments import bench_ktls
from workloads.experiments.bench_ktls import Options, as_text, table_of


def trial(rate: float, nic: float = 0.0) -> dict[str, float]:
    return {"gbit_per_s": rate, "application_s": 1.0, "helper_s": 0.5, "nic_s": nic, "copies": 2.0}


def test_medians_ratios_and_the_talks_figures():
    points = table_of({("user TLS", 16_384, 1): [trial(1.0), trial(3.0), trial(2.0)],
                       ("nic", 16_384, 1): [trial(4.0, 2.5)], ("nic", 16_384, 4): [trial(8.0)]})
    assert [(p["system"], p["gbit_per_s"], p["talk_gbit_per_s"]) for p in points] == [
        ("user TLS", 2.0, 7.9), ("nic", 4.0, 72.0), ("nic", 8.0, 64.0)]
    text = as_text(points, {"coproc": "why"}).splitlines()
    assert text[0] == "records of 16 KB, 1 worker"
    assert " ".join(text[2].split()) == "user TLS 2.000 1.00 1.00 0.50 0.00 OpenSSL in nginx 7.9"
    assert " ".join(text[3].split()) == "nic 4.000 2.00 1.00 0.50 2.50 2.00 T6, NIC TLS 72.0"
    assert " ".join(text[7].split()) == "nic 8.000 1.00 0.50 0.00 2.00 T6, NIC TLS 64.0"
    assert text[-1] == "coproc skipped: why"


def test_sizes_that_no_record_has():
    assert bench_ktls.check(Options()).sizes == [1024, 4096, 16_384]
    with pytest.raises(ConfigError, match="maxlen is 64 to 16384, not 16385"):
        bench_ktls.check(Options(sizes=[16_385]))
