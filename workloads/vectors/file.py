"""Entries of a file of wire test vectors, read with suspicion: it is not ours."""

from __future__ import annotations

from typing import Any, NamedTuple

from smtstack.errors import ConfigError
from smtstack.wire import ipv4


class Problem(NamedTuple):
    """Why a vector failed."""

    text: str
    #: Number of the packet, and the first differing byte of its IP packet, where that is the matter.
    packet: int | None = None
    offset: int | None = None


class Vector:
    """One entry of a vectors file. Reading a field that is missing or malformed raises ConfigError."""

    def __init__(self, entry: Any, where: str) -> None:
        if not isinstance(entry, dict):
            raise ConfigError(f"{where} is no object")
        self.entry = entry
        self.name = str(entry.get("name", where))
        self.branch: str = self.get(entry, "branch", str)
        self.inputs: dict[str, Any] = self.get(entry, "inputs", dict)
        packets: list[Any] = self.get(entry, "packets", list)
        self.packets = [self.hex(p, "ip_packet") for p in packets]
        ranges = entry.get("dont_care_transport_bytes", [])
        if not isinstance(ranges, list) or not all(
                isinstance(r, list) and len(r) == 2 and all(isinstance(n, int) for n in r) for r in ranges):
            raise ConfigError(f"vector {self.name}: dont_care_transport_bytes is not a list of pairs")
        self.dont_care: list[tuple[int, int]] = [(int(a), int(b)) for a, b in ranges]

    def get(self, table: Any, field: str, kind: type) -> Any:
        """``table[field]``, which must be a ``kind``."""
        value = table.get(field) if isinstance(table, dict) else None
        if not isinstance(value, kind):
            raise ConfigError(f"vector {self.name}: {field} is missing or no {kind.__name__}")
        return value

    def hex(self, table: Any, field: str) -> bytes:
        """A field of hexadecimal digits."""
        try:
            return bytes.fromhex(self.get(table, field, str))
        except ValueError:
            raise ConfigError(f"vector {self.name}: {field} is not hexadecimal") from None

    def number(self, field: str, limit: int = 1 << 16) -> int:
        """An integer input, 0 to ``limit`` - 1."""
        value: int = self.get(self.inputs, field, int)
        if not 0 <= value < limit:
            raise ConfigError(f"vector {self.name}: {field} is {value}; less than {limit} is possible")
        return value

    def address(self, field: str) -> int:
        """An IPv4 address among the inputs."""
        try:
            return ipv4.address(self.get(self.inputs, field, str))
        except ValueError as e:
            raise ConfigError(f"vector {self.name}: {field}: {e}") from None

    def own_errors(self) -> list[Problem]:
        """Where the vector's own parts disagree."""
        out = []
        for n, (entry, packet) in enumerate(zip(self.entry["packets"], self.packets, strict=True)):
            joined = self.hex(entry, "ip_header") + self.hex(entry, "transport_and_payload")
            at = first_difference(packet, joined, [])
            if at is not None:
                out.append(Problem("ip_packet is not ip_header and transport_and_payload", n, at))
            if (entry.get("ip_total_length"), entry.get("ip_id")) != (
                    int.from_bytes(packet[2:4], "big"), int.from_bytes(packet[4:6], "big")):
                out.append(Problem("ip_total_length or ip_id is not what the packet says", n))
        return out


def first_difference(wanted: bytes, got: bytes, dont_care: list[tuple[int, int]]) -> int | None:
    """Offset of the first byte that differs outside the half-open ranges, or of a missing one; None: equal."""
    for at, (a, b) in enumerate(zip(wanted, got, strict=False)):
        if a != b and not any(start <= at < stop for start, stop in dont_care):
            return at
    return min(len(wanted), len(got)) if len(wanted) != len(got) else None
