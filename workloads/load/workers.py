"""Several processes for one job: forked, watched, stopped together."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from smtstack.errors import PeerError, SmtError

#: Workers are forked: they start at once and inherit the arguments.
FORK = multiprocessing.get_context("fork")
#: Seconds a worker gets to say that it is ready, and to end when told.
PATIENCE_S = 10.0

#: What a worker does with its pipe. What it returns is what it says last.
Job = Callable[[Connection], Any]


class Workers:
    """Runs every job in a process of its own. Leaving the ``with`` block ends them."""

    def __init__(self, jobs: Sequence[Job], name: str) -> None:
        self._workers: list[tuple[BaseProcess, Connection]] = []
        try:
            for number, job in enumerate(jobs):
                ours, theirs = FORK.Pipe()
                process: BaseProcess = FORK.Process(target=_work, args=(job, theirs), daemon=True,
                                                    name=f"{name} {number}")
                process.start()
                theirs.close()
                self._workers.append((process, ours))
        except BaseException:
            self.end()
            raise

    def hear(self, patience_s: float | None = PATIENCE_S) -> list[Any]:
        """The next thing each of them says, within that time (None: however long it takes).

        Raises what a worker raised, and PeerError if one died.
        """
        said: dict[Connection, Any] = {}
        # In the order they come: one that died must not wait for one that serves.
        while waiting := [pipe for _process, pipe in self._workers if pipe not in said]:
            ready = wait(waiting, patience_s)
            if not ready:
                raise PeerError(f"a worker said nothing for {patience_s:.0f} s")
            said |= {pipe: _take(pipe) for pipe in waiting if pipe in ready}
        return [said[pipe] for _process, pipe in self._workers]

    def tell(self, message: object) -> None:
        """Say something to all of them."""
        for _process, pipe in self._workers:
            try:
                pipe.send(message)
            except OSError:
                raise PeerError("a worker died") from None

    def terminate(self) -> None:
        """Send them SIGTERM. For signal handlers, too."""
        for process, _pipe in self._workers:
            process.terminate()

    def end(self) -> None:
        """Stop them, and wait until they are gone."""
        self.terminate()
        for process, _pipe in self._workers:
            process.join(PATIENCE_S)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.end()


def _work(job: Job, pipe: Connection) -> None:
    """A worker's life: its job, then the result or the error that ended it."""
    try:
        pipe.send(job(pipe))
    except SmtError as e:
        pipe.send(e)


def _take(pipe: Connection) -> Any:
    """What a worker says; raises what it reports."""
    try:
        said = pipe.recv()
    except (EOFError, OSError):
        raise PeerError("a worker died") from None
    if isinstance(said, SmtError):
        raise said
    return said
