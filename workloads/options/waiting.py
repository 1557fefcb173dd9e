"""How ends wait, on a command line: one meaning for every transport."""

from __future__ import annotations

from dataclasses import dataclass

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.waiting import HYBRID, INTERRUPT, LONGEST_NS, MODES, POLL, Waiting
from workloads.options.declare import option


@dataclass(frozen=True)
class Waits:
    """How servers and clients wait for what comes."""

    wait: str | None = option(
        "--wait", choices=MODES,
        help="hybrid: busy-wait where that pays and a processor is free, then sleep; interrupt: always sleep; "
             "poll: always busy-wait first, for a whole core each (default: hybrid for smt, homa, linux, "
             "upstream; interrupt for tcp, tls, ktls)")
    poll_us: int | None = option(
        "--poll-us", type=quantities.WHOLE_MICROSECONDS, metavar="US",
        help=f"busy-wait at most this long before sleeping (default: {LONGEST_NS // 1000}); alone it means --wait "
             "poll, and 0 --wait interrupt")

    def waiting(self) -> Waiting | None:
        """What was asked for; None: as each transport does by default. Raises :class:`ConfigError`."""
        if self.poll_us is None:
            return None if self.wait is None else Waiting(self.wait)
        if self.wait == INTERRUPT and self.poll_us:
            raise ConfigError(f"--wait interrupt never busy-waits, and --poll-us {self.poll_us} does: leave one "
                              "out")
        if self.poll_us == 0:
            if self.wait in (HYBRID, POLL):
                raise ConfigError(f"--wait {self.wait} busy-waits, and --poll-us 0 does not: leave one out")
            return Waiting(INTERRUPT)
        return Waiting(self.wait or POLL, self.poll_us * 1000)


def wait_words(how: Waiting) -> list[str]:
    """A way to wait as the options that ask for it, for command lines of servers and clients."""
    longest = [] if how.mode == INTERRUPT else ["--poll-us", str(how.longest_ns // 1000)]
    return ["--wait", how.mode, *longest]
