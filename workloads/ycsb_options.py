"""What commands that run YCSB take, and the loads it makes."""

from __future__ import annotations

import argparse

from smtstack.io import quantities
from workloads import options
from workloads.ycsb import DISTRIBUTIONS, FIELDS, WORKLOADS
from workloads.ycsb_load import LOAD_PHASE, YcsbLoad

#: Insertions under way in the load phase, if there are not more clients.
_LOAD_CLIENTS = 16


def add_ycsb_options(parser: argparse.ArgumentParser) -> None:
    """Options for :func:`ycsb_loads`."""
    parser.add_argument("--workload", default="a", metavar="X",
                        help="; ".join(f"{letter}: {found.meaning}" for letter, found in WORKLOADS.items())
                        .replace("%", "%%") + " (default: %(default)s)")
    parser.add_argument("--value", type=quantities.sizes, default="1024", metavar="B",
                        help="bytes of a record's fields together; the paper has 64, 1024, 4096 (default: 1024)")
    parser.add_argument("--fields", type=options.positive, default=FIELDS, metavar="N",
                        help="fields of a record; an update changes one of them (default: %(default)s)")
    parser.add_argument("--records", type=options.positive, default=1000, metavar="N",
                        help="records inserted before (default: %(default)s)")
    parser.add_argument("--distribution", choices=DISTRIBUTIONS, default="",
                        help="of the records that are asked for (default: the workload's own)")
    limit = parser.add_mutually_exclusive_group()
    limit.add_argument("--ops", type=options.positive, metavar="N", help="operations in all (default: 1000)")
    limit.add_argument("--seconds", type=quantities.SECONDS, metavar="S", help="time for each trial")
    parser.add_argument("--clients", type=options.positive, default=1, metavar="N",
                        help="operations under way in all: YCSB's threads (default: 1)")
    parser.add_argument("--rate", type=quantities.PER_SECOND, default=0.0, metavar="R",
                        help="open loop: R operations a second in all, at random times (default: closed loop)")
    parser.add_argument("--timeout", type=quantities.SECONDS, default=10.0, metavar="S",
                        help="give up an operation's step after this long (default: 10)")
    parser.add_argument("--seed", type=options.positive, default=1,
                        help="of operations, records, arrivals, faults (default: 1)")


def ycsb_loads(args: argparse.Namespace) -> tuple[YcsbLoad, YcsbLoad]:
    """(the load phase, the run phase). Raises :class:`ConfigError`."""
    common = {"size": args.value, "fields": args.fields, "records": args.records, "concurrency": args.clients,
              "timeout": args.timeout, "seed": args.seed, "workload": args.workload.lower()}
    load = YcsbLoad(phase=LOAD_PHASE, count=args.records, warm_up=0,
                    **common | {"concurrency": max(args.clients, _LOAD_CLIENTS)})
    run = YcsbLoad(count=None if args.seconds else args.ops or 1000, seconds=args.seconds, rate=args.rate,
                   distribution=args.distribution, **common)
    return load, run
