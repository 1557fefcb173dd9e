"""Made-up results, for what writes, tabulates and draws them."""

from __future__ import annotations

from typing import Any

from workloads import experiments
from workloads.results.row import Row

# Made known: the modes that rows may have.
experiments.load()

#: Median round trip in us of 64 bytes.
BASE = {("smt", "sw"): 90.0, ("smt", "hw"): 84.0, ("homa", "sw"): 76.0, ("tcp", None): 86.0, ("tls", None): 120.0}


def row(transport: str = "smt", nic: str | None = "sw", *, p50: float | None = 90.0, rpc_per_s: float = 10_000.0,
        mode: str = "unloaded", reasons: tuple[str, ...] = (), **more: Any) -> Any:
    """One trial, of any experiment's type; every field can be given."""
    times = (0.8, 1.0, 1.2, 1.8, 3.0, 9.0, 1.1)
    names = ("min", "p50", "p90", "p99", "p999", "max", "mean")
    return {
        "topo": "back2back", "transport": transport, "nic": nic, "mode": mode, "poll": "interrupt", "size": 64,
        "concurrency": 1 if mode == "unloaded" else 50, "trial": 1, "rpcs": 1000, "errors": 0, "content_ok": True,
        "rpc_per_s": rpc_per_s,
        "rtt_us": {name: None if p50 is None else p50 * f for name, f in zip(names, times, strict=True)},
        "cpu": {"client_s": 0.3, "us_per_rpc": 33.0},
        "fidelity": {"ok": not reasons, "reasons": list(reasons), "steal": 0.0}, **more}


def comparison() -> list[Row]:
    """Five systems, two topologies, four sizes and three loads, three trials each."""
    rows = []
    for topo, slower in (("back2back", 1.0), ("star,4", 1.5)):
        for (transport, nic), base in BASE.items():
            for trial in (1, 2, 3):
                noise = 1 + trial / 50
                alone, rate = base * slower * noise, 5e6 / base / slower * noise
                rows += [row(transport, nic, topo=topo, size=size, trial=trial, p50=alone + size / 200)
                         for size in (64, 1024, 8192, 65536)]
                rows += [row(transport, nic, topo=topo, mode="loaded", concurrency=n, trial=trial,
                             rpc_per_s=n / (n + 10) * rate) for n in (1, 50, 150)]
    return rows
