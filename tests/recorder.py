"""A sink of traces that keeps them, for tests."""

from __future__ import annotations

from smtstack.transport.trace import TraceEvent


class Recorder:
    """Every event, in the order told."""

    def __init__(self) -> None:
        self.events: list[TraceEvent] = []

    def event(self, event: TraceEvent) -> None:
        self.events.append(event)

    def names(self, message: str | None = None) -> list[str]:
        """What happened; of one message, or of all."""
        return [e.name for e in self.events if message in (None, e.message)]
