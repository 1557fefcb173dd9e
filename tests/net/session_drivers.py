"""What test_run_sessions.py does where it cannot be done from outside. JSON on stdout.

``modes FOLDER`` in a sandbox; ``dns IP KEY`` in a namespace: a DNS server, until SIGTERM.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from smtstack.session.established import MODES
from smtstack.session_io.tsig_file import read_tsig
from tests.net.inside import go_inside
from topo.dns import DnsServer, LocalHost
from topo.link_options import LinkOptions
from topo.network import open_network
from workloads.fleet.fleet import Fleet
from workloads.fleet.kv import KvFleet
from workloads.fleet.setup import Setup
from workloads.load.loops import Load
from workloads.load.ycsb_load import LOAD_PHASE, YcsbLoad

TOPO = "back2back"
#: RPCs of echo, operations of YCSB.
COUNT, OPS, RECORDS = 40, 60, 20


def modes(folder: str) -> dict[str, Any]:
    """Echo and YCSB in every mode, one after the other on one network; the rows."""
    found: dict[str, Any] = {}
    with open_network(TOPO, LinkOptions()) as net:
        for number, mode in enumerate(MODES):
            setup = Setup("smt", session=mode)
            with Fleet(net, TOPO, setup, Path(folder, "echo"), number) as fleet:
                echo = fleet.measure(Load("3000", count=COUNT, concurrency=4)).row
            with KvFleet(net, TOPO, setup, Path(folder, "kv"), number) as kv:
                kv.load(YcsbLoad(phase=LOAD_PHASE, count=RECORDS, records=RECORDS, warm_up=0))
                ycsb = kv.measure(YcsbLoad(count=OPS, records=RECORDS, concurrency=4)).row
            found[mode] = {"echo": echo, "kv": ycsb}
    return found


def dns(ip: str, key: str) -> None:
    """Says so once it answers."""
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    with DnsServer(LocalHost(ip), read_tsig(Path(key))):
        print("serving", file=sys.stderr, flush=True)
        signal.pause()


if __name__ == "__main__":
    if sys.argv[1] == "dns":
        dns(*sys.argv[2:])
    go_inside()
    print(json.dumps(modes(*sys.argv[2:])))
