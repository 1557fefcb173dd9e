"""A client process of an experiment: takes loads on stdin, answers with results on stdout, a JSON line each.

Says "ready" on stderr once it is open. A line has the fields of :class:`~workloads.load.loops.Load` (``--work
kv``: of :class:`~workloads.load.ycsb_load.YcsbLoad`, ``query``: of :class:`~workloads.load.queries.QueryLoad`,
``blocks``: of :class:`~workloads.load.blocks.BlockLoad`), and may have ``raw`` (a file for the round trips) and
``barrier``: then, warmed up and connected, it answers ``{"ready": true}`` and begins with the next line, whatever
that is, so that clients of many hosts begin together. Ends with its stdin. Errors are one line on stderr, exit
codes those of ``smtnet``.

    python -m workloads.fleet.agent --transport tcp --peer 10.0.0.2:2000
    {"size": "64", "count": 1000, "concurrency": 8}
"""

from __future__ import annotations

import argparse
import json
import sys
from importlib import import_module
from pathlib import Path

from smtstack.errors import ConfigError
from workloads import transports
from workloads.fleet.programs import run_on_host
from workloads.load.measure import LINGER_S, Series
from workloads.options import common as options
from workloads.options.common import add_caller_options, parse_address
from workloads.results.fidelity import shorten_pauses
from workloads.transports.contract import Caller

#: What a client does, and the module of ``workloads.load`` with its kind of Series: imported when it is asked for.
WORK = {"echo": "measure:Series", "kv": "ycsb_load:YcsbSeries", "query": "queries:QuerySeries",
        "mix": "mix:MixSeries", "timed": "timed:TimedSeries", "blocks": "blocks:BlockSeries"}
#: What opens its caller, if it is not one of RPCs.
OPENERS = {"kv": "workloads.kv.client", "blocks": "workloads.blocks.initiator"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="agent")
    add_caller_options(parser)
    parser.add_argument("--work", choices=WORK, default="echo")
    return parser


def _serve(args: argparse.Namespace) -> None:
    settings = options.settings(args)
    peers = [parse_address(text) for text in args.peer]
    module = import_module(OPENERS[args.work]) if args.work in OPENERS else transports
    with module.open_caller(settings, peers, args.connections) as caller:
        series = _series(args.work, caller)
        shorten_pauses()
        print("ready", file=sys.stderr, flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            raw, barrier = order.pop("raw", None), order.pop("barrier", False)
            try:
                load = series.LOAD(**order)
            except TypeError as e:
                raise ConfigError(f"no load: {e}") from None
            point = series.measure(load, _meet if barrier else None)
            caller.linger(LINGER_S)
            if raw is not None:
                series.write_raw(Path(raw), load, point.tally)
            print(json.dumps(series.result(settings, load, point)), flush=True)


def _series(work: str, caller: Caller) -> Series:
    module, _, name = WORK[work].partition(":")
    made: Series = getattr(import_module(f"workloads.load.{module}"), name)(caller)
    return made


def _meet() -> None:
    print('{"ready": true}', flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    run_on_host(_parser().parse_args, _serve)
