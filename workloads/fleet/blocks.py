"""A target of the block store and initiators on a network: a :class:`Fleet` of them. The target may be killed and
started again while they are at work."""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psutil

from smtstack.errors import ConfigError
from smtstack.storage.keys import make_key_file
from topo.host import SmtHost
from topo.network import SmtNet
from topo.running import Program
from workloads.fleet.fleet import Fleet, Measured, Trial
from workloads.fleet.programs import cpu_s
from workloads.fleet.setup import Setup
from workloads.load import kinds
from workloads.load.blocks import KINDS, KINDS_SUFFIX, BlockLoad
from workloads.load.loops import Load
from workloads.results.row import Answered, Row

#: Rows of this mode are judged by the median, as the paper's figure is.
MODE = "blocks"
#: The stores of a run: gone with it.
STORES = {"memory": "in the target's memory",
          "file": "a file in the result folder, deleted at the end",
          "protected": "the same, encrypted and authenticated, with a trusted state; always durable"}
#: Seconds between a start of the target, or of the measurement, and the next kill.
KILL_EVERY_S = 1.0


class BlockRow(Row):
    """One trial; ``rpcs`` are commands, ``concurrency`` the depth of the queue."""

    pattern: str
    """One of :data:`~workloads.load.blocks.PATTERNS`."""
    store: str
    blocks: int
    """Blocks of the namespace."""
    ops: Mapping[str, Any]
    """By kind of command: ``count``, ``errors``, ``rtt_us``."""
    sent_again: int
    """Commands that were sent again, because an RPC failed or the target was another one."""
    kills: int
    """How often the target was killed and started again."""


class BlockFleet(Fleet):
    """The first host of ``net`` is the target, all others ask."""

    WORK = "blocks"
    TAGS = KINDS_SUFFIX

    def __init__(self, net: SmtNet, topo: str, setup: Setup, folder: Path, number: int = 0, *,
                 store: str = "memory", blocks: int, durable: bool = False, keep_keys: bool = False) -> None:
        super().__init__(net, topo, setup, folder, number, keep_keys)
        self._store = store
        self._blocks = blocks
        self._durable = durable
        self._disk: Path | None = None
        #: Kills that are still to come in this trial, when the next one is, and the trial.
        self._kills = 0
        self._kill_at = 0.0
        self._trial: Trial | None = None
        self._killed = 0

    def _start_server(self, host: SmtHost) -> None:
        self._servers.append(self._target(host))

    def _target(self, host: SmtHost) -> Program:
        if self._store != "memory" and self._disk is None:
            self._disk = Path(tempfile.mkdtemp(prefix="store-", dir=self._folder))
            if self._store == "protected":
                make_key_file(self._disk / "key")
        store = ["memory"] if self._disk is None else [f"file:{self._disk / 'blocks'}"]
        if self._store == "protected":
            store += ["--storage-key", f"{self._disk}/key", "--storage-state", f"{self._disk}/state"]
        log = self._folder / f"{host.name}-server{f'-{self._killed}' if self._killed else ''}.log"
        durable = ["--durable"] if self._durable else []
        return self._program(host, "server", log, "workloads", "serve", "blocks", *self._common(host, self._port),
                             *self.key_options(host.name), "--store", *store, "--blocks", str(self._blocks),
                             *durable, "--json")

    def stop(self) -> None:
        super().stop()
        if self._disk is not None:
            shutil.rmtree(self._disk, ignore_errors=True)
            self._disk = None

    # -- measuring -----------------------------------------------------------------------------------------

    def measure(self, load: Load, trial: int = 1, kills: int = 0) -> Measured[BlockRow]:
        """One trial, in which the target is killed (SIGKILL) and started again ``kills`` times, as far as there is
        time for it."""
        if kills and self._store == "memory":
            raise ConfigError("what is in the target's memory is gone when it is killed: take another --store")
        before = self._killed
        prepared = self.prepare(load, trial)
        self._kills, self._trial = kills, prepared
        self.begin(prepared)
        self._kill_at = time.monotonic() + KILL_EVERY_S
        try:
            measured = cast("Measured[BlockRow]", self.collect(prepared))
        finally:
            self._kills, self._trial = 0, None
        measured.row["kills"] = self._killed - before
        failed = cast("Counter[str]", measured.row["ops"])
        measured.row["ops"] = kinds.summary(KINDS, measured.rtt_ns, measured.tags, failed)
        return measured

    def look(self) -> None:
        if self._kills and time.monotonic() >= self._kill_at:
            self._kills -= 1
            self._restart()
            self._kill_at = time.monotonic() + KILL_EVERY_S
        super().look()

    def _restart(self) -> None:
        """Kill the target, and start another one with the same store."""
        (old,) = self._servers
        accounts = self._trial.accounts if self._trial is not None else []
        process = psutil.Process(old.pid)
        took = cpu_s(process)
        old.process.send_signal(signal.SIGKILL)
        old.process.wait()
        self._killed += 1
        new = self._target(cast(SmtHost, old.host))
        self._servers[:] = [new]
        new.wait_for(self.READY)
        # What the old one took stays the trial's.
        for index, (kind, account, before) in enumerate(accounts):
            if account.pid == old.pid:
                accounts[index] = kind, psutil.Process(new.pid), before - took

    def share(self, load: Load, index: int, many: int) -> dict[str, Any]:
        """What falls to client process ``index`` of ``many``: also its part of the namespace, always the same."""
        return super().share(load, index, many) | {"index": index, "of": len(self._clients)}

    def _row(self, load: Load, trial: int, done: Sequence[dict[str, Any]], samples: array[int]) -> Answered:
        assert isinstance(load, BlockLoad)
        failed: Counter[str] = Counter()
        for answer in done:
            failed.update({kind: found["errors"] for kind, found in answer["ops"].items()})
        variant = ", ".join([load.pattern, *([self._store] if self._store != "memory" else []),
                             *(["durable"] if self._durable else [])])
        return cast(BlockRow, {
            **super()._row(load, trial, list(done), samples), "mode": MODE, "variant": variant,
            "pattern": load.pattern, "store": self._store, "blocks": self._blocks, "ops": failed,
            "sent_again": sum(answer["sent_again"] for answer in done), "kills": 0})
