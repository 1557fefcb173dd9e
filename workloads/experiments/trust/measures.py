"""What ``smtnet reproduce trust`` measures beside UDP, each as a row a trial: SMT's KV store, KV over TCP, files
in blocks, several workers, and with the processor's AES masked."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from smtstack.errors import SmtError
from smtstack.ktls_io.coproc import WITHOUT_AES
from topo.network import SmtNet
from workloads.experiments.trust.interfaces import MODELLED, NATIVE, RING, smt_words
from workloads.fleet.fleet import Fleet
from workloads.fleet.kv import KvFleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.load.measure import rtt_summary
from workloads.load.ycsb_load import LOAD_PHASE, YcsbLoad
from workloads.results.fidelity import FidelityMonitor, doubted
from workloads.results.row import BY_DEFAULT, Row

#: Modes of rows.
KV_SMT, KV_TCP, FILE, WORKERS, AES = "trust-kv-smt", "trust-kv-tcp", "trust-file", "trust-workers", "trust-aes"
#: Of anything, a trial takes no longer, in seconds; a loaded machine needs a tenth of it.
LONGEST_S = 300.0
#: Of a sealed message that is long enough that AES is felt.
AES_SIZE = 64_000
AES_ON, AES_OFF = "ring, AES-NI", "ring, AES-NI masked"
#: The masked processor must take so many times as long for a record of 16 KB: 2.0 is far below what was ever seen.
LEAST_EFFECT = 2.0
_VALUE = 100
_MEASURE = "from smtstack.ktls_io.coproc import seconds_a_record; print(seconds_a_record())"


def aes_effect() -> float:
    """How many times as long a record takes where the processor's AES is masked, each in a fresh process."""
    took = []
    for more in ({}, WITHOUT_AES):
        done = _done("the rate of AES", [sys.executable, "-c", _MEASURE], {**os.environ, **more})
        if done.returncode:
            raise SmtError(f"the rate of AES could not be measured: {done.stderr.strip()[-200:]}")
        took.append(float(done.stdout))
    return took[1] / took[0]


def _done(what: str, argv: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A program that has ended. Raises SmtError if it does not."""
    try:
        return subprocess.run(argv, env=dict(environment), capture_output=True, text=True, check=False,
                              timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        raise SmtError(f"{what}: not done within {LONGEST_S:.0f} s, and ended") from None


class Measures:
    """Fleets on ``net``, one at a time: an interface has one ring."""

    def __init__(self, net: SmtNet, topo: str, folder: Path, exit_us: float) -> None:
        self._net = net
        self._topo = topo
        self._folder = folder / "hosts"
        self._exit_us = exit_us
        self._number = 0

    def _next(self) -> int:
        # Ports of fleets go by their number; those of one that is gone can be had again.
        self._number += 1
        return self._number % 100

    def _setup(self, interface: str, pairs: str, **more: Any) -> Setup:
        return Setup("smt", "sw", pairs, options=smt_words(interface, self._exit_us), **more)

    def _folder_of(self) -> Path:
        return self._folder / f"fleet{self._number}"

    def kv(self, interface: str, ops: int, clients: int, trial: int) -> Row:
        """YCSB A, a server and a client, over SMT by an interface."""
        return self._ycsb(KV_SMT, interface, self._setup(interface, "h2:h1"), (), ops, clients, trial)

    def kv_tcp(self, interface: str, ops: int, clients: int, trial: int) -> Row:
        """YCSB A over TCP; if not by NATIVE the server's TCP is the host's, by io_uring or by exits."""
        setup = Setup("tcp", pattern="h2:h1", connections=clients)
        words = () if interface == NATIVE else smt_words(interface, self._exit_us)
        return self._ycsb(KV_TCP, interface, setup, words, ops, clients, trial)

    def _ycsb(self, mode: str, interface: str, setup: Setup, hosting: tuple[str, ...], ops: int, clients: int,
              trial: int) -> Row:
        common: dict[str, Any] = {"size": str(_VALUE), "fields": 1, "records": 200, "concurrency": clients,
                                  "workload": "a", "seed": trial}
        number = self._next()
        with KvFleet(self._net, self._topo, setup, self._folder_of(), number, hosting=hosting) as fleet:
            fleet.longest_s = LONGEST_S
            fleet.load(YcsbLoad(phase=LOAD_PHASE, count=200, warm_up=0, **common))
            row = fleet.measure(YcsbLoad(count=ops, **common), trial).row
        return _named(row, mode, interface)

    def workers(self, interface: str, count: int, rpcs: int, trial: int) -> Row:
        """Echo by so many pairs of processes, each on interfaces, rings and keys of its own."""
        pairs = ",".join(f"h{2 * n + 1}:h{2 * n + 2}" for n in range(count))
        number = self._next()
        with Fleet(self._net, self._topo, self._setup(interface, pairs), self._folder_of(), number) as fleet:
            fleet.longest_s = LONGEST_S
            row = fleet.measure(Load("1024", count=rpcs * count, concurrency=8 * count, seed=trial), trial).row
        return _named(row, WORKERS, f"{interface} x{count}")

    def aes(self, masked: bool, rpcs: int, trial: int) -> Row:
        """Echo of long messages over a ring, by fresh processes with or without the processor's AES."""
        setup = replace(self._setup(RING, "h2:h1"),
                        environment=tuple(WITHOUT_AES.items()) if masked else (("SMTNET_AES", "1"),))
        number = self._next()
        with Fleet(self._net, self._topo, setup, self._folder_of(), number) as fleet:
            fleet.longest_s = LONGEST_S
            row = fleet.measure(Load(str(AES_SIZE), count=rpcs, concurrency=4, seed=trial), trial).row
        return _named(row, AES, AES_OFF if masked else AES_ON)

    def file(self, interface: str, block: int, count: int, trial: int) -> Row:
        """A file encrypted in blocks by an interface; ``rpcs``: blocks."""
        with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
            Path(place, "plain").write_bytes(os.urandom(block * count))
            monitor = FidelityMonitor(pids=[])
            monitor.start()
            done = _done(f"file by {interface}", [
                sys.executable, "-m", "workloads.experiments.trust.file_program", interface, place, str(block),
                str(count), str(round(self._exit_us * 1000) if interface == MODELLED else 0)], os.environ)
            fidelity = monitor.stop()
        if done.returncode:
            raise SmtError(f"file by {interface}, {block} bytes: {done.stderr.strip()[-300:]}")
        told = json.loads(done.stdout)
        if told["guarded"] != (interface != NATIVE):
            raise SmtError(f"file by {interface}: its process is not under its filter")
        if told["refused"]:
            fidelity = doubted(fidelity, f"{told['refused']} results of an honest host were refused")
        return {"topo": self._topo, "transport": "file", "nic": None, "mode": FILE, "poll": BY_DEFAULT,
                "variant": interface, "size": block, "concurrency": 1, "trial": trial, "rpcs": count, "errors": 0,
                "content_ok": told["wrong"] == 0, "rpc_per_s": round(count / told["s"], 1),
                "rtt_us": rtt_summary(array("Q")), "bytes": block * count,
                "cpu": {"wall_s": told["s"], "client_s": told["cpu_s"]},
                "fidelity": fidelity}


def _named(row: Mapping[str, Any], mode: str, variant: str) -> Row:
    return cast(Row, {**row, "mode": mode, "variant": variant})
