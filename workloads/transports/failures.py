"""What goes wrong with a server's clients, said while it serves."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from workloads.transports.contract import Server


class FailureNotes:
    """Says on stderr what fails at these servers, when it happens; of several things at once the last."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._said = [""] * len(servers)

    def look(self) -> None:
        """Say what is new."""
        for index, server in enumerate(self._servers):
            failure = server.failure()
            if failure != self._said[index]:
                self._said[index] = failure
                if failure:
                    print(f"smtnet: failure: {failure}", file=sys.stderr, flush=True)
