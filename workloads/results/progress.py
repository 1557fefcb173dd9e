"""How far a long command is, on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import sys
import time
from typing import Any

#: Seconds between two lines where there is no terminal.
_LINE_S = 10.0


class Progress:
    """``with Progress("demo", steps) as progress: progress.step("tls, 64 B")``."""

    def __init__(self, title: str, steps: int | None = None) -> None:
        self._title = title
        self._steps = steps
        self._done = 0
        self._bar: Any = None
        self._task: Any = None
        self._said = time.monotonic()

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            try:
                from rich import progress
                from rich.console import Console
            except ImportError:
                return self
            columns: list[Any] = [progress.SpinnerColumn(), progress.TextColumn("{task.description}")]
            if self._steps:
                columns += [progress.BarColumn(), progress.MofNCompleteColumn(), progress.TimeRemainingColumn()]
            columns.append(progress.TimeElapsedColumn())
            self._bar = progress.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._title, total=self._steps)
            self._bar.start()
        return self

    def __exit__(self, *_error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def say(self, what: str) -> None:
        """What is going on now."""
        if self._bar is not None:
            self._bar.update(self._task, description=f"{self._title}: {what}")
        elif time.monotonic() - self._said >= _LINE_S:
            self._said = time.monotonic()
            count = f" ({self._done} of {self._steps})" if self._steps else ""
            print(f"{self._title}{count}: {what}", file=sys.stderr, flush=True)

    def step(self, what: str) -> None:
        """One more of the steps begins."""
        self.say(what)
        self._done += 1
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done - 1)
