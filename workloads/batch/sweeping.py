"""``smtnet sweep``: the points of a grid by Dask, on workers here or on a cluster; each is done once."""

from __future__ import annotations

import io
import json
import logging
import sys
import uuid
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from smtstack.errors import ConfigError, Unsupported
from workloads.batch import remote, sweep_page
from workloads.batch.grid import Point, Sweep
from workloads.batch.remote import Done, Stopped
from workloads.batch.state import Member, State, Status, now
from workloads.results.progress import Progress

TRIES = 2
POINTS = "points"
#: Where Dask's web servers are, which it always starts, here without a page.
_NO_PAGES = "127.0.0.1:0"
#: Seconds until a cluster must have answered.
_CONNECT_S = 10.0
#: Seconds that points which run may take to end when the sweep is interrupted.
_STOP_S = 30.0


def require_dask() -> None:
    """Raises :class:`Unsupported` where there is none."""
    try:
        import distributed  # noqa: F401
    except ImportError:
        raise Unsupported("a sweep needs Dask: pip install 'smtnet[sweep]'") from None


@contextmanager
def cluster(workers: int, scheduler: str | None) -> Iterator[Any]:
    """A client of ``workers`` local workers, which are threads of this process, or of a cluster by its address.
    Raises :class:`ConfigError` if nobody answers there, or has no worker."""
    import dask
    import distributed

    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    if scheduler is None:
        # Each point is a process of its own: workers only wait for it. All within this process: who reaches a
        # scheduler by a port may run what he likes as its user, and here that is often root.
        nobody: dict[str, list[str]] = {f"distributed.{part}.http.routes": [] for part in ("scheduler", "worker")}
        with dask.config.set(nobody), warnings.catch_warnings():
            # Dask names itself by this machine's address, which it learns from the way to the Internet.
            warnings.filterwarnings("ignore", "Couldn't detect a suitable IP address", RuntimeWarning)
            local = distributed.LocalCluster(
                n_workers=workers, threads_per_worker=1, processes=False, protocol="inproc://",
                dashboard_address=_NO_PAGES, worker_dashboard_address=_NO_PAGES, memory_limit=0,
                silence_logs=logging.CRITICAL)
        with local, distributed.Client(local) as client:
            yield client
        return
    try:
        client = distributed.Client(scheduler, timeout=_CONNECT_S)
    except (OSError, ValueError) as e:
        raise ConfigError(f"--scheduler {scheduler}: no scheduler of Dask answers ({e})") from None
    with client:
        if not client.scheduler_info()["workers"]:
            raise ConfigError(f"--scheduler {scheduler}: it has no workers; start some: dask worker {scheduler}")
        yield client


@dataclass
class Sweeping:
    """A sweep, and the state of its points."""

    sweep: Sweep
    state: State
    progress: Progress

    def waiting(self) -> list[Point]:
        """Points that are not finished."""
        return [point for point in self.sweep.points
                if not self.state.member(point.key).is_finished(list(point.words), {})]

    def run(self, client: Any) -> None:
        """All points that wait; those that fail once more. Raises KeyboardInterrupt when the state is saved."""
        waiting = self.waiting()
        for point in waiting:
            self.state.members[point.key] = Member(words=list(point.words))
        self.state.began = self.state.began or now()
        self.state.save()
        for turn in range(TRIES):
            if turn and waiting:
                print(f"{len(waiting)} points failed; once more", file=sys.stderr)
            self._run(client, waiting)
            waiting = [point for point in waiting if self.state.members[point.key].status is Status.FAILED]

    def _run(self, client: Any, points: Sequence[Point]) -> None:
        from distributed import Event, as_completed

        stop = Event(f"smtnet-sweep-{uuid.uuid4()}", client=client)
        futures = {}
        try:
            for number, point in enumerate(points):
                member = self.state.members[point.key]
                member.status, member.began, member.tries = Status.RUNNING, now(), member.tries + 1
                key = f"{point.key}-{member.tries}-{uuid.uuid4().hex[:8]}"
                future = client.submit(remote.run_point, point.words, self.sweep.head.timeout, stop.name, key=key,
                                       priority=-number)
                futures[future] = point
            for future in as_completed(list(futures)):
                self._take(futures[future], future)
        except BaseException:
            self._stop(stop, futures)
            raise

    def _stop(self, stop: Any, futures: Mapping[Any, Point]) -> None:
        """End what runs, in order, and save what had come so far."""
        from distributed import wait

        stop.set()
        with suppress(Exception):
            wait(list(futures), timeout=_STOP_S)
        for future, point in futures.items():
            member = self.state.members[point.key]
            if member.status is Status.RUNNING:
                member.status = Status.INTERRUPTED
                if future.done() and future.status == "finished":
                    self._take(point, future)
        self.state.save()

    def _take(self, point: Point, future: Any) -> None:
        """The result of a point, into its folder and the state."""
        member = self.state.members[point.key]
        try:
            done: Done = future.result()
        except Stopped:
            member.status = Status.INTERRUPTED
            return
        except Exception as e:
            # A worker that went away, or has another smtnet: Dask says it in many ways.
            why = " ".join(str(e).split())[:300]
            member.status, member.reasons = Status.FAILED, [f"{type(e).__name__}: {why}"]
            self.state.save()
            return
        folder = self.state.folder.path / POINTS / point.key
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "out.json").write_text(done.out)
        (folder / "log").write_text(done.log)
        with zipfile.ZipFile(io.BytesIO(done.files)) as archive:
            archive.extractall(folder)
        said = _object(done.out)
        verdict = None if said is None else said.get("fidelity") or {"ok": True}
        why = f"not through after {self.sweep.head.timeout:g} s" if done.ended.timed_out else done.why
        member.folder = f"{POINTS}/{point.key}"
        member.end(done.ended.code, done.ended.seconds, verdict, why)
        member.told = {**flat(said or {}), "ran_on": done.host, "smtnet": done.version}
        self.state.save()
        self.progress.step(f"{point.text()}: {member.status.value}, {member.seconds:.1f} s")

    def save(self) -> dict[str, Any]:
        """Table and page; what ``--json`` prints."""
        return sweep_page.make(self.sweep, self.state)


def _object(text: str) -> dict[str, Any] | None:
    """The last line, if that is an object: what ``--json`` prints."""
    try:
        found = json.loads(text.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def flat(said: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Numbers, texts and truths by their paths, as ``rtt_us.p50``; lists are left to out.json."""
    found: dict[str, Any] = {}
    for name, value in said.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{name}."))
        elif value is None or isinstance(value, bool | int | float | str):
            found[prefix + name] = value
    return found
