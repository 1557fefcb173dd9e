"""What is compared with what, in words: for who sees the figures for the first time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from workloads.results.points import grouped, label
from workloads.results.row import Row
from workloads.transports.table import TABLE


def what_is_compared(rows: Sequence[Row], protocol_code: str) -> str:
    """Whose code makes the packets of which system, and how each waited; empty where it is one kind of code.

    ``protocol_code``: which build of ours ran (``smtstack.compiled.description``); empty: nobody knows.
    """
    ours = _labels(row for row in rows if (kind := TABLE.get(row["transport"])) and kind.packets)
    kernels = _labels(row for row in rows if (kind := TABLE.get(row["transport"])) and kind.streams)
    if not ours or not kernels:
        return ""
    build = f" ({protocol_code})" if protocol_code else ""
    sealed = " (tls sealed by OpenSSL, C as well)" if "tls" in kernels else ""
    words = [f"Compared: {', '.join(ours)} in Python in user space{build}, packet by packet, with "
             f"{', '.join(kernels)} in C in the kernel{sealed}; clients and servers above are the same Python."]
    words += [_waits(topo, found) for topo, found in grouped(rows, lambda row: row["topo"]).items()]
    return " ".join(filter(None, words))


def _waits(topo: str, rows: Sequence[Row]) -> str:
    """``Waiting on back2back: smt-sw, homa hybrid; tls interrupt.``"""
    by_way = grouped((row for row in rows if row.get("wait")), lambda row: row["wait"])
    ways = [f"{', '.join(_labels(found))} {way}" for way, found in by_way.items()]
    if len(ways) == 1:
        ways = [f"all {way}" for way in by_way]
    return f"Waiting on {topo}: {'; '.join(ways)}." if ways else ""


def _labels(rows: Iterable[Row]) -> list[str]:
    return list(dict.fromkeys(label(row) for row in rows))
