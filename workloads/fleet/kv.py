"""A key-value server and YCSB clients on a network: a :class:`Fleet` of them.

The store is ours in the server's memory, or a Redis of its own for each fleet, behind our
front end by a Unix socket or, ``direct``, asked by the clients themselves.
"""

from __future__ import annotations

import csv
import io
import shutil
import subprocess
import tempfile
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import psutil

from smtstack.errors import ConfigError, SmtError, Unsupported
from topo.host import SmtHost
from topo.network import SmtNet
from topo.running import Program
from workloads.fleet import redis as redis_program
from workloads.fleet.fleet import Fleet, Measured
from workloads.fleet.kv_storage import NONE, Kept
from workloads.fleet.setup import Setup
from workloads.kv.client import require_hiredis
from workloads.load import kinds
from workloads.load.loops import Load
from workloads.load.ycsb import KINDS
from workloads.load.ycsb_load import KINDS_SUFFIX, Described, YcsbLoad, described
from workloads.results.row import Answered, Row
from workloads.transports import PROXIED

STORES = {"embedded": "ours, in the server's memory", "redis": "a real Redis behind our front end"}
#: What redis-server's log says of a port ("Ready ...") or a socket ("... is now ready ...").
_REDIS_READY = "eady to accept connections"
#: Seconds redis-benchmark gets.
_YARDSTICK_S = 120.0


class KvRow(Row, Described):
    """One trial of YCSB; ``rpcs`` are operations."""

    store: str
    storage: str
    """What is kept on the disk, and how (:data:`~workloads.fleet.kv_storage.STORAGE`)."""
    ops: Mapping[str, Any]
    """By kind of operation: ``count``, ``errors``, ``rtt_us``."""
    server_rss_mb: float
    """Memory of the server's processes afterwards."""


def check(transport: str, store: str, direct: bool) -> None:
    """Raises :class:`ConfigError`, :class:`Unsupported` for a store not to be had here over this transport."""
    require_hiredis()
    if direct and (store, transport) != ("redis", "tcp"):
        raise ConfigError("--direct asks a stock Redis, which speaks plain TCP: --store redis --transport tcp")
    if store == "redis" and not redis_program.is_installed():
        raise Unsupported("--store redis needs a Redis: apt-get install redis-tools")


class KvFleet(Fleet):
    """The first host of ``net`` serves, all others ask."""

    WORK = "kv"
    TAGS = KINDS_SUFFIX

    def __init__(self, net: SmtNet, topo: str, setup: Setup, folder: Path, number: int = 0, *,
                 store: str = "embedded", direct: bool = False, keep_keys: bool = False,
                 storage: str = NONE, fsync: str = "everysec", hosting: Sequence[str] = ()) -> None:
        super().__init__(net, topo, setup, folder, number, keep_keys)
        self.storage = storage
        self._fsync = fsync
        #: Where the server's TCP is an untrusted host's: options that say how it comes by it.
        self._hosting = tuple(hosting) if setup.transport in PROXIED else ()
        #: What the server keeps on the disk.
        self.kept: Kept | None = None
        self._store = store
        self._direct = direct
        if direct:
            self.READY = _REDIS_READY
        #: Redis servers behind ours, and the folder they work in.
        self._behind: list[Program] = []
        self._private: Path | None = None

    # -- processes -----------------------------------------------------------------------------------------

    def _start_server(self, host: SmtHost) -> None:
        log = self._folder / f"{host.name}-server.log"
        if self._direct:
            where = ["--port", str(self._port), "--bind", host.IP(), "--protected-mode", "no"]
            self._servers.append(self._redis(host, "kv server", log, *where))
            return
        store = []
        if self._store == "redis":
            # Not among the results, where the path may be longer than a socket's can be.
            path = self._private_folder() / "redis.sock"
            redis_log = self._folder / f"{host.name}-redis.log"
            where = ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
            redis = self._redis(host, "redis-server", redis_log, *where)
            self._behind.append(redis)
            redis.wait_for(_REDIS_READY)
            store = ["--store", f"redis:unix:{path}"]
        if self.storage != NONE:
            self.kept = Kept(self.storage, self._folder, self._private_folder(), host.name, self._fsync)
            store = self.kept.words()
        arguments = ["serve", "kv", *self._common(host, self._port), *self.key_options(host.name), *store,
                     *self._hosting, "--json"]
        self._servers.append(self._program(host, "server", log, "workloads", *arguments))

    def _redis(self, host: SmtHost, what: str, log: Path, *options: str) -> Program:
        """A Redis that keeps nothing on disk."""
        folder = self._private_folder()
        argv = [redis_program.redis_server(folder), "--save", "", "--appendonly", "no", "--dir", str(folder),
                *options]
        return Program(host, what, argv, log, answers=False, cores=self._cores.get(host.name))

    def _private_folder(self) -> Path:
        # The sandbox's own /run, in memory: it goes with the sandbox.
        self._private = self._private or Path(tempfile.mkdtemp(prefix="redis-", dir="/run"))
        return self._private

    def stop(self) -> None:
        super().stop()
        for redis in self._behind:
            redis.stop()
        if self.kept is not None:
            self.kept.remove()
        if self._private is not None:
            shutil.rmtree(self._private, ignore_errors=True)
        self._behind, self._private = [], None

    def _processes(self) -> list[tuple[str, psutil.Process]]:
        return super()._processes() + [("server", psutil.Process(redis.pid)) for redis in self._behind]

    # -- measuring -----------------------------------------------------------------------------------------

    def load(self, load: YcsbLoad) -> KvRow:
        """The load phase: the store holds nothing but the records afterwards. Its row; raises SmtError."""
        row = self.measure(load, 0).row
        if row["errors"] or not row["content_ok"]:
            raise SmtError(f"loading records failed: {row.get('first_error')}")
        return row

    def measure(self, load: Load, trial: int = 1) -> Measured[KvRow]:
        """One trial; a row's ``rpcs`` are operations."""
        measured = cast("Measured[KvRow]", super().measure(load, trial))
        failed = cast("Counter[str]", measured.row["ops"])
        measured.row["ops"] = kinds.summary(KINDS, measured.rtt_ns, measured.tags, failed)
        memory = sum(p.memory_info().rss for kind, p in self._processes() if kind == "server")
        measured.row["server_rss_mb"] = round(memory / 1e6, 1)
        return measured

    def share(self, load: Load, index: int, many: int) -> dict[str, Any]:
        """What falls to client process ``index`` of ``many``."""
        return super().share(load, index, many) | {"index": index, "of": many}

    def _row(self, load: Load, trial: int, done: list[dict[str, Any]], samples: array[int]) -> Answered:
        assert isinstance(load, YcsbLoad)
        failed: Counter[str] = Counter()
        for answer in done:
            failed.update({kind: found["errors"] for kind, found in answer["ops"].items()})
        facts = described(load)
        return cast(KvRow, {
            **super()._row(load, trial, done, samples), "variant": f"ycsb {facts['workload']}", **facts,
            "store": "redis, direct" if self._direct else self._store, "storage": self.storage, "ops": failed})

    def yardstick(self, clients: int, value_bytes: int, count: int) -> dict[str, Any] | None:
        """What ``redis-benchmark`` says of the server, from the first client's host: ops/s and p50 of SET and GET.

        None where there is no redis-benchmark.
        """
        tool = shutil.which("redis-benchmark")
        if tool is None:
            return None
        client = self._clients[0].host
        program = Program(
            client, "redis-benchmark",
            [tool, "-h", self._servers[0].host.IP(), "-p", str(self._port), "-c", str(clients), "-n", str(count),
             "-d", str(value_bytes), "-t", "set,get", "--csv"],
            self._folder / f"{client.name}-redis-benchmark.log", cores=self._cores.get(client.name))
        try:
            said, _errors = program.process.communicate(timeout=_YARDSTICK_S)
        except subprocess.TimeoutExpired:
            program.process.kill()
            program.process.communicate()
            raise SmtError(f"{client.name}: redis-benchmark did not end within {_YARDSTICK_S:.0f} s") from None
        if program.process.returncode:
            raise SmtError(f"{client.name}: redis-benchmark: {program.last_line()}")
        program.log.unlink()
        return {line["test"].lower(): {"per_s": float(line["rps"]), "p50_us": float(line["p50_latency_ms"]) * 1000}
                for line in csv.DictReader(io.StringIO(said))}
