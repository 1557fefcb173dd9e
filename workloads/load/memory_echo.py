"""The protocol code alone: a client, a server and two devices in one thread, with no kernel and no wire between.

What is measured is the cost of the stack itself; a run on real interfaces adds system calls.
"""

from __future__ import annotations

import cProfile
import platform
import pstats
import statistics
import time
from collections.abc import Callable
from typing import Any

from smtstack import compiled
from smtstack.errors import SmtError
from smtstack.nic.device import NicConfig
from smtstack.sim.pair import MemoryPair
from smtstack.transport.events import Event, Request, Response
from smtstack.transport.params import TransportParams
from workloads.results.fidelity import shorten_pauses

#: Outstanding RPCs of the closed loop.
CONCURRENCY = 16
#: Virtual time between two exchanges of frames.
STEP_NS = 200_000
#: (profile, device seals): the rows of the table.
SYSTEMS = {"homa": ("homa", False), "smt-sw": ("smt", False), "smt-hw": ("smt", True),
           "linux-sw": ("linux", False)}
SMALL_SIZES = (64, 1024)
BULK_SIZE = 1_000_000
#: Where a profiled function's time is booked.
_LAYERS = ("wire", "crypto", "transport", "nic", "workloads")


class EchoLoop:
    """Closed loop of echo RPCs of one size; every reply is compared with what was sent."""

    def __init__(self, profile: str, offload: bool, size: int) -> None:
        # Nothing here waits for a link: a pacer that ever said "wait" would be all that is measured.
        params = TransportParams(link_mbps=1_000_000_000, max_nic_queue_ns=10**15)
        self.pair = MemoryPair(profile, params, NicConfig(tls_hw_tx_offload=offload))
        self.data = bytes(i * 7 & 0xFF for i in range(size))

    def _serve(self, event: Event) -> None:
        if isinstance(event, Request):
            self.pair.server.endpoint.send_reply(event.rpc, event.data, self.pair.now)

    def run(self, count: int, concurrency: int = CONCURRENCY) -> float:
        """Seconds of processor time for ``count`` round trips; raises SmtError on a wrong answer."""
        pair = self.pair
        data = self.data
        sent = min(concurrency, count)
        done = 0
        start = time.process_time()
        for _ in range(sent):
            pair.request(data)
        while done < count:
            # About the time it takes: a clock that stood still would never let go of timers.
            pair.elapse(STEP_NS)
            for event in pair.step(self._serve):
                if not isinstance(event, Response) or event.data != data:
                    raise SmtError(f"echo went wrong: {event}")
                done += 1
                if sent < count:
                    sent += 1
                    pair.request(data)
        return time.process_time() - start


def measure(system: str, size: int, count: int, rounds: int) -> list[float]:
    """RPC/s of every round, after a warm-up."""
    loop = EchoLoop(*SYSTEMS[system], size)
    loop.run(max(20, count // 10))
    shorten_pauses()
    return [count / loop.run(count) for _ in range(rounds)]


def profile_small(count: int = 20_000) -> dict[str, Any]:
    """Where the time of a 64-byte RPC goes: own time by layer, and the ten dearest functions.

    The profiler slows everything down, calls most; shares are a guide, not a measurement.
    """
    loop = EchoLoop("smt", False, 64)
    loop.run(2000)
    profiler = cProfile.Profile()
    profiler.enable()
    loop.run(count)
    profiler.disable()
    layers = dict.fromkeys((*_LAYERS, "AES-GCM", "built-ins"), 0.0)
    functions: list[tuple[float, str]] = []
    for (path, _line, name), (_cc, calls, own, _cum, _callers) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        layer = next((x for x in _LAYERS if f"/{x}/" in path), "built-ins")
        if layer == "built-ins" and ("AESGCM" in name or "aead" in name):
            layer = "AES-GCM"
        layers[layer] += own
        functions.append((own, f"{layer}: {name.strip('<>')} x{calls / count:.1f}"))
    total = sum(layers.values())
    return {"share": {k: round(v / total, 3) for k, v in layers.items()},
            "dearest": [f"{own / total:.1%} {name}" for own, name in sorted(functions, reverse=True)[:10]]}


def run_bench(quick: bool, rounds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Every figure of the table; ``say`` is told how far it is."""
    small, bulk = (4000, 20) if quick else (20_000, 100)
    result: dict[str, Any] = {
        "python": platform.python_version(), "protocol_code": compiled.description(), "concurrency": CONCURRENCY,
        "rounds": rounds, "rpc_per_s": {}, "mb_per_s": {}}
    # Interleaved: a machine that slows down in mid-run slows all systems down.
    samples: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds):
        for system in SYSTEMS:
            for size in (*SMALL_SIZES, BULK_SIZE):
                say(f"bench: round {turn + 1} of {rounds}, {system} {size} B")
                count = bulk if size == BULK_SIZE else small
                samples.setdefault((system, size), []).extend(measure(system, size, count, 1))
    say("")
    for (system, size), rates in samples.items():
        middle = statistics.median(rates)
        if size == BULK_SIZE:
            # Both directions carry the message.
            result["mb_per_s"][system] = round(2 * middle * size / 1e6, 1)
        else:
            spread = {"median": round(middle), "min": round(min(rates)), "max": round(max(rates))}
            result["rpc_per_s"].setdefault(str(size), {})[system] = spread
    at64 = {s: v["median"] for s, v in result["rpc_per_s"]["64"].items()}
    result["ratios_64B"] = {"smt-sw/homa": round(at64["smt-sw"] / at64["homa"], 3),
                            "smt-hw/smt-sw": round(at64["smt-hw"] / at64["smt-sw"], 3)}
    # The profiler sees calls of Python functions: compiled ones have none.
    result["profile_64B_smt_sw"] = None if compiled.is_compiled() else profile_small(4000 if quick else 20_000)
    return result
