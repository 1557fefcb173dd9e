"""What the end of a run says of all its rows."""

from __future__ import annotations

from collections.abc import Iterable

from workloads.results.row import Row


def first_error(rows: Iterable[Row]) -> str:
    """What the first client said that had one; "": none did, however wrong the answers were."""
    return next((str(row["first_error"]) for row in rows if row.get("first_error")), "")


def session_lines(rows: Iterable[Row]) -> list[str]:
    """How the sessions of smt began since the clients were started, a line for each way; there may be none."""
    last = {(row["session"]["mode"], row.get("variant")): row for row in rows if "session" in row}
    lines = []
    for row in last.values():
        counts = dict(row["session"])
        mode = counts.pop("mode")
        said = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counts.items() if count)
        where = f"; tickets from the DNS server on {row['dns']}" if "dns" in row else ""
        lines.append(f"sessions: {mode}; {said}{where}")
    return list(dict.fromkeys(lines))
