"""What the guest's console says of how far it is. Pure; whatever else a kernel prints is ignored."""

from __future__ import annotations

import re
from dataclasses import dataclass

_UP = re.compile(r"SMTNET-VM up (\d+(?:\.\d+)?) (\S+)")
_DONE = re.compile(r"SMTNET-VM done (\d{1,3}) (\d+(?:\.\d+)?)")
_TROUBLE = re.compile(r"SMTNET-VM no-(share|checkout)")
_DEATH = re.compile(r"(Kernel panic - .*|Oops: .*|error: failed to set MSR.*|qemu-system-\w+: .*)")


@dataclass(frozen=True, slots=True)
class Seen:
    """How far a guest came."""

    up: bool = False
    """The guest's first process ran: from then on it is not booted again, for the command may have begun."""
    boot_s: float = 0.0
    """By the guest's clock, from the kernel's start to the command's."""
    kernel: str = ""
    code: int | None = None
    """What the command ended with; None: it has not ended."""
    trouble: str = ""
    """Why it cannot be of use, as far as the console says; empty: nothing is wrong."""


def read(text: str) -> Seen:
    """The console so far."""
    up, done = _UP.search(text), _DONE.search(text)
    trouble = ""
    if lacking := _TROUBLE.search(text):
        trouble = f"the guest cannot read its {lacking[1]}"
    elif not done and (death := _DEATH.search(text)):
        trouble = death[1].strip()
    return Seen(up is not None, float(up[1]) if up else 0.0, up[2] if up else "", int(done[1]) if done else None,
                trouble)


def boot_again(seen: Seen, ended: bool, used_s: float, limit_s: float) -> bool:
    """Whether this boot is given up, and another one tried: before it was up it ended, or took too many seconds of
    processors."""
    return not seen.up and (ended or used_s > limit_s)


def tail(text: str, lines: int = 25) -> str:
    """The console's last lines, without its terminal's control characters."""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\x1bc|[^\n\t\x20-\x7e]", "", text.replace("\r", "\n"))
    return "\n".join([line for line in plain.splitlines() if line.strip()][-lines:])
