"""What commands that run YCSB take, and the loads it makes."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from workloads.load.ycsb import FIELDS, WORKLOADS
from workloads.load.ycsb_choice import DISTRIBUTIONS
from workloads.load.ycsb_load import LOAD_PHASE, YcsbLoad
from workloads.load.ycsb_properties import SIZES, Chosen, choose, overriding, read, refuse_twice
from workloads.options import common as options
from workloads.options.declare import option

#: Insertions under way in the load phase, if there are not more clients.
_LOAD_CLIENTS = 16
#: Where neither an option nor a property says otherwise. A file gets YCSB's fields and bytes of a field, letters
#: the paper's.
_RECORDS, _OPS, _VALUE = 1000, 1000, 1024
_YCSB_FIELDS, _YCSB_LENGTH = 10, 100
#: YCSB's own files, by name.
_FILES = {f"workload{letter}": letter for letter in WORKLOADS}


@dataclass(frozen=True)
class Ycsb:
    """Options for :func:`ycsb_loads`; None: as the workload has it."""

    workload: str = option(
        "--workload", default="a", metavar="X|FILE",
        help=("; ".join(f"{letter}: {found.meaning}" for letter, found in WORKLOADS.items())
              + "; also by the names of YCSB's files (workloada); or a property file of YCSB's "
                "core workload").replace("%", "%%") + " (default: %(default)s)")
    property: list[str] = option(
        "-p", action="append", default=[], metavar="NAME=VALUE",
        help="a property of the workload, as -p readproportion=0.9 (repeatable); comes before what the file says")
    value: str | None = option(
        "--value", type=quantities.sizes, metavar="B",
        help="bytes of a record's fields together; the paper has 64, 1024, 4096 (default: "
             f"{_VALUE}; with a file {_YCSB_FIELDS} fields of {_YCSB_LENGTH})")
    fields: int | None = option("--fields", type=options.positive, metavar="N",
                                help="fields of a record; an update changes one of them (default: "
                                     f"{FIELDS}; with a file {_YCSB_FIELDS})")
    records: int | None = option("--records", type=options.positive, metavar="N",
                                 help=f"records inserted before (default: {_RECORDS})")
    distribution: str = option("--distribution", choices=DISTRIBUTIONS, default="",
                               help="of the records that are asked for (default: the workload's own)")
    ops: int | None = option("--ops", type=options.positive, metavar="N", either="limit",
                             help=f"operations in all (default: {_OPS})")
    seconds: float | None = option("--seconds", type=quantities.SECONDS, metavar="S", either="limit",
                                   help="time for each trial")
    clients: int | None = option("--clients", type=options.positive, metavar="N",
                                 help="operations under way in all: YCSB's threads (default: 1)")
    rate: float | None = option(
        "--rate", type=quantities.PER_SECOND, metavar="R",
        help="open loop: R operations a second in all, at random times (default: closed loop)")
    timeout: float = option("--timeout", type=quantities.SECONDS, default=10.0, metavar="S",
                            help="give up an operation's step after this long (default: 10)")
    seed: int = option("--seed", type=options.positive, default=1,
                       help="of operations, records, arrivals, faults (default: 1)")


def chosen_workload(asked: Ycsb) -> Chosen:
    """What ``--workload`` and ``-p`` say. Raises :class:`ConfigError`."""
    name, given = asked.workload, {}
    path = Path(name)
    if name.lower() in WORKLOADS:
        name = name.lower()
    elif path.is_file() or "/" in name or path.suffix:
        # Also one of YCSB's names: who has such a file here may have changed it.
        given = read(path)
    elif name.lower() in _FILES:
        name = _FILES[name.lower()]
    else:
        raise ConfigError(f"workload {name!r}; YCSB has {', '.join(WORKLOADS)} ({', '.join(_FILES)}), and there "
                          "is no such file")
    chosen = choose(name, {**given, **overriding(asked.property)})
    refuse_twice(chosen, {option: getattr(asked, option[2:]) for option in
                          ("--records", "--ops", "--seconds", "--clients", "--rate", "--fields", "--value",
                           "--distribution")})
    return chosen


def ycsb_loads(asked: Ycsb) -> tuple[YcsbLoad, YcsbLoad]:
    """(the load phase, the run phase). Raises :class:`ConfigError`."""
    chosen = chosen_workload(asked)
    ours = chosen.name in WORKLOADS and not {"fieldcount", "fieldlength"} & chosen.properties.keys()
    fields = asked.fields or chosen.number("fieldcount") or (FIELDS if ours else _YCSB_FIELDS)
    value = asked.value or str(_VALUE if ours else fields * (chosen.number("fieldlength") or _YCSB_LENGTH))
    records = asked.records or chosen.number("recordcount") or _RECORDS
    clients = asked.clients or chosen.number("threadcount") or 1
    rate = asked.rate or float(chosen.number("target") or 0)
    ops, seconds = asked.ops or chosen.number("operationcount"), asked.seconds or chosen.number("maxexecutiontime")
    if asked.seconds:
        ops = None
    elif asked.ops:
        seconds = None
    if ops and seconds:
        raise ConfigError(f"{chosen.where['operationcount']}: operationcount, and "
                          f"{chosen.where['maxexecutiontime']}: maxexecutiontime: only one can end a run; --ops "
                          "or --seconds says which")
    properties = {name: text for name, text in chosen.properties.items() if name not in SIZES}
    common: dict[str, Any] = {
        "size": value, "fields": fields, "records": records, "concurrency": clients, "timeout": asked.timeout,
        "seed": asked.seed, "workload": chosen.name,
        "properties": properties if properties or chosen.name not in WORKLOADS else None}
    run = YcsbLoad(count=None if seconds else ops or _OPS, seconds=float(seconds) if seconds else None, rate=rate,
                   distribution=asked.distribution, **common)
    first = run.kind.first
    inserted = chosen.number("insertcount") or records - first
    if first + inserted != records:
        raise ConfigError(f"insertstart {first} and insertcount {inserted} are {first + inserted} records, "
                          f"recordcount is {records}: the others would be asked for and are not there")
    load = YcsbLoad(phase=LOAD_PHASE, count=inserted, warm_up=0,
                    **common | {"concurrency": max(clients, _LOAD_CLIENTS)})
    return load, run


def say_unused(asked: Ycsb) -> None:
    """What of a property file has no effect here, or another one, on stderr."""
    chosen = chosen_workload(asked)
    if chosen.unused:
        print(f"smtnet: workload {chosen.name}: without effect here: {', '.join(chosen.unused)}", file=sys.stderr)
    if chosen.number("target") and not asked.rate:
        print(f"smtnet: workload {chosen.name}: target: as --rate, so operations begin at random times, however "
              "many are under way", file=sys.stderr)
