"""What a guarded process and the control process of an interface say to each other: one request, one answer."""

from __future__ import annotations

import json
import mmap
from dataclasses import asdict, dataclass
from typing import Any, Final

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.rings.layout import RINGS, RingConfig

LONGEST: Final = 1 << 14
#: Whose the rings are: the kernel's (AF_XDP), or memory with a packet socket behind it.
KERNEL: Final = "kernel"
MEMORY: Final = "memory"
#: Descriptors that come with an answer, in this order. The first one is to map the rings by.
DESCRIPTORS: Final = ("rings", "umem", "page", "bell", "question", "life")
_ERRORS: Final[dict[str, type[SmtError]]] = {"config": ConfigError, "unsupported": Unsupported}


def address(interface: str) -> str:
    """Name of the control process' socket, in the network namespace of the interface."""
    return f"\0smtnet-ring-{interface}"


@dataclass(frozen=True, slots=True)
class Opening:
    """What is wanted: the packets of an endpoint."""

    ip: int
    port: int
    protocol: int

    def pack(self) -> bytes:
        """For :meth:`read_untrusted`."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def read_untrusted(cls, data: bytes) -> Opening:
        """What :meth:`pack` made. Raises :class:`ConfigError` for anything else."""
        fields = read_untrusted(data)
        values = [fields.get(name) for name in ("ip", "port", "protocol")]
        limits = (1 << 32, 1 << 16, 1 << 8)
        if not all(isinstance(value, int) and 0 <= value < limit for value, limit in zip(values, limits,
                                                                                       strict=True)):
            raise ConfigError("no endpoint is named")
        return cls(*(value for value in values if isinstance(value, int)))


def places(config: RingConfig) -> tuple[dict[str, int], int]:
    """Where each ring is in memory that has all of them, from whole pages on; bytes of all."""
    where, at = {}, 0
    for ring in RINGS:
        where[ring] = at
        at += -(-config.ring_bytes(ring) // mmap.PAGESIZE) * mmap.PAGESIZE
    return where, at


def read_untrusted(data: bytes) -> dict[str, Any]:
    """The fields of a message. Raises :class:`ConfigError`."""
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError):  # lists in lists in lists
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError("no message of ours")
    return fields


def refusal(error: SmtError) -> bytes:
    """An answer that says why not."""
    kind = "unsupported" if isinstance(error, Unsupported) else "config"
    return json.dumps({"error": str(error), "kind": kind}).encode()


def check(fields: dict[str, Any]) -> None:
    """Raises what a refusal says."""
    if "error" in fields:
        raise _ERRORS.get(str(fields.get("kind")), SmtError)(str(fields["error"]))
