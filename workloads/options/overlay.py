"""Whether DATA of our transports has the shape of TCP, on a command line."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from smtstack.errors import ConfigError
from smtstack.wire.overlay import NONE, OVERLAYS
from workloads.options.declare import option

#: Transports whose packets can have it: not linux, which sends what the kernel module sends.
OVERLAID = ("smt", "homa")


@dataclass(frozen=True)
class Overlay:
    """The shape of DATA."""

    overlay: str = option(
        "--overlay", choices=OVERLAYS, default=NONE,
        help="smt, homa: tcp: DATA of messages longer than a packet has the shape of TCP, so that one frame may "
             "hold 64 KB, which the kernel or a NIC cuts where the way needs it; the host's own TCP is kept from "
             "it. Both ends say the same (docs/protocol.md; default: %(default)s)")

    def check(self, transports: Collection[str]) -> None:
        """Raises :class:`ConfigError` if none of these transports has it."""
        if self.overlay != NONE and not set(OVERLAID) & set(transports):
            raise ConfigError(f"--overlay {self.overlay} is for {' and '.join(OVERLAID)}, not for "
                              f"{', '.join(transports)}")

    def words(self, transport: str) -> tuple[str, ...]:
        """The option again, for command lines of servers and clients; none for other transports."""
        return ("--overlay", self.overlay) if self.overlay != NONE and transport in OVERLAID else ()
