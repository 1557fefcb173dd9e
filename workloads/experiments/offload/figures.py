"""What transfers came to: medians of trials, ratios within trials, processor time and copies for each byte."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

from workloads.experiments.offload.hosts import StreamRow
from workloads.experiments.offload.senders import COPIES
from workloads.results.points import grouped, size_text
from workloads.results.table import aligned
from workloads.transports.table import TABLE

#: Colours of systems and paths: those of the transports that they are.
_OF_TRANSPORTS = {
    "plain": ("tcp", "sw"), "tls": ("tls", "sw"), "read": ("tls", "sw"), "ktls-sw": ("ktls-sw", "sw"),
    "sendfile-sw": ("ktls-sw", "sw"), "ktls-nic": ("ktls-nic", "sw"), "sendfile-nic": ("ktls-nic", "sw"),
    "smt-hw": ("smt", "hw")}
COLOURS = {name: TABLE[transport].looks[nic].colour for name, (transport, nic) in _OF_TRANSPORTS.items()}
COLOURS["sendfile-nic, zerocopy"] = "#7B68C8"
COPY_COLOURS = {"read": "#999999", "seal": "#D55E00", "map": "#0072B2", "send": "#F0E442"}


class Line(TypedDict):
    """All trials of one system at one load. Ratios are to the same trial's of the yardstick, medians of these;
    None: there was none."""

    system: str
    size: int
    """Bytes of a file, or of each write."""
    connections: int
    variant: str
    trials: int
    mbit_per_s: float
    low: float
    high: float
    ratio: float | None
    """Throughput, by that of the yardstick."""
    host_ns_per_byte: float
    """Processor time of the sending processes."""
    device_ns_per_byte: float
    """Processor time of their NIC's process."""
    host_ratio: float | None
    copies_per_byte: dict[str, float]
    """By what for."""
    resent_share: float
    """Bytes that TCP sent again, of all that it sent."""
    dump_per_byte: float
    """Bytes that the driver had the device read again to get back to its state, for each byte of payload."""
    resyncs_per_mb: float
    """How often the device was given another state, for each 10**6 bytes of payload."""
    disabled: int
    """Connections that gave the NIC up, in all trials."""
    faithful: bool
    """In every trial."""


def host_ns(row: StreamRow) -> float:
    """Nanoseconds of the sending processes for each byte."""
    return row["sender"]["host_s"] * 1e9 / row["bytes"]


def device_ns(row: StreamRow) -> float:
    """Nanoseconds of the sender's NIC's process for each byte."""
    return row["sender"]["device_s"] * 1e9 / row["bytes"]


def dump_per_byte(row: StreamRow) -> float:
    """Bytes of DUMP descriptors for each byte of payload."""
    return row["counters"].get("tx_tls_dump_bytes", 0) / row["bytes"]


def resyncs_per_mb(row: StreamRow) -> float:
    """How often the device was given another state, for each 10**6 bytes of payload."""
    return row["counters"].get("tx_tls_ooo", 0) * 1e6 / row["bytes"]


def resent_share(row: StreamRow) -> float:
    """Bytes sent again, of all that were sent."""
    return row["sender"]["resent"] / max(1, row["sender"]["sent"])


def lines(rows: Sequence[StreamRow], yardstick: str) -> list[Line]:
    """A line for each point, in the order of the rows."""
    by_point = grouped(rows, lambda row: (row["transport"], row["size"], row["concurrency"], row["variant"]))
    out: list[Line] = []
    for (system, size, connections, variant), trials in by_point.items():
        others = {row["trial"]: row for row in by_point.get((yardstick, size, connections, variant), [])}
        rates = [row["mbit_per_s"] for row in trials]
        out.append({
            "system": system, "size": int(size), "connections": connections, "variant": variant,
            "trials": len(trials), "mbit_per_s": statistics.median(rates), "low": min(rates),
            "high": max(rates), "ratio": _ratio(trials, others, lambda row: row["mbit_per_s"]),
            "host_ns_per_byte": _median(trials, host_ns), "device_ns_per_byte": _median(trials, device_ns),
            "host_ratio": _ratio(trials, others, host_ns), "copies_per_byte": _copies(trials),
            "resent_share": _median(trials, resent_share, 5), "dump_per_byte": _median(trials, dump_per_byte, 5),
            "resyncs_per_mb": _median(trials, resyncs_per_mb, 2),
            "disabled": sum(row["sender"]["disabled"] for row in trials),
            "faithful": all(row["fidelity"]["ok"] for row in trials)})
    return out


def _median(rows: Sequence[StreamRow], value: Callable[[StreamRow], float], digits: int = 3) -> float:
    return round(statistics.median(map(value, rows)), digits)


def _ratio(rows: Iterable[StreamRow], others: Mapping[int, StreamRow],
           value: Callable[[StreamRow], float]) -> float | None:
    shares = [value(row) / base for row in rows
              if row["trial"] in others and (base := value(others[row["trial"]]))]
    return round(statistics.median(shares), 3) if shares else None


def _copies(rows: Sequence[StreamRow]) -> dict[str, float]:
    return {name: round(statistics.median(row["sender"]["copies"][name] / row["bytes"] for row in rows), 3)
            for name in COPIES}


def as_csv_rows(table: Sequence[Line]) -> list[dict[str, Any]]:
    """Lines for a CSV file: copies are columns, and their sum."""
    out = []
    for line in table:
        flat: dict[str, Any] = {name: value for name, value in line.items() if name != "copies_per_byte"}
        copies = line["copies_per_byte"]
        out.append(flat | {f"copies_{name}": value for name, value in copies.items()}
                   | {"copies_per_byte": round(sum(copies.values()), 3)})
    return out


def as_text(table: Sequence[Line], yardstick: str, what: str, copies: bool = False) -> str:
    """For people: a line for each, those of one size together; ``what``: what the size is of."""
    head = [what, "system", "Mbit/s", "low-high", f"/ {yardstick}", "host ns/B", "device ns/B", "sum"]
    grid = [[*head, "copies/B", *COPIES] if copies else head]
    for line in table:
        many = f" x{line['connections']}" if line["connections"] > 1 else ""
        cells = [size_text(line["size"]) + many, line["system"],
                 f"{line['mbit_per_s']:,.0f}{'' if line['faithful'] else '~'}",
                 f"{line['low']:,.0f}-{line['high']:,.0f}",
                 "-" if line["ratio"] is None else f"{line['ratio']:.2f}",
                 f"{line['host_ns_per_byte']:.2f}", f"{line['device_ns_per_byte']:.2f}",
                 f"{line['host_ns_per_byte'] + line['device_ns_per_byte']:.2f}"]
        if copies:
            by_place = line["copies_per_byte"]
            cells += [f"{sum(by_place.values()):.2f}", *(f"{by_place[name]:.2f}" for name in COPIES)]
        grid.append(cells)
    return aligned(grid, left=2)


#: What has to stand below every table here.
NOTE = ("host: processor time of the sending processes; device: of their NIC's process, which is Python here and\n"
        "hardware in a real NIC: moved, not saved. ~: not faithful; processor time does not depend on waiting.")
