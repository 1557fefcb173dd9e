"""The client of ``smtnet reproduce sessions``: takes words on stdin, answers on stdout, a JSON line each.

``{"do": "open"}`` makes a session from each port and echoes once, ``"echo"`` echoes once more over all of them,
``"closed"`` closes them. Says "ready" on stderr once it is open. Ends with its stdin.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

from smtstack.io.packet_socket import interface_mtu
from smtstack.session.config import SessionConfig
from smtstack.session.established import MODES
from smtstack.session.manager import SessionManager
from smtstack.session.offer import Offer
from smtstack.session.pool import KeyPool
from smtstack.session.resumption import PskStore
from smtstack.session_io.identity_files import load_identity
from smtstack.session_io.ticket_dns import DnsTickets
from smtstack.transport.params import SOFTWARE
from workloads.experiments.sessions.swarm import Swarm
from workloads.fleet.programs import run_on_host
from workloads.options.common import parse_address, positive

#: Seconds a task may take for each session, and at least.
_EACH_S, _LEAST_S = 0.2, 30.0
#: Seconds the server gets to ask for acknowledgements before its memory is looked at.
_LINGER_S = 0.2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="swarm_client")
    parser.add_argument("--iface", required=True)
    parser.add_argument("--addr", required=True, help="our address and first port")
    parser.add_argument("--peer", required=True)
    parser.add_argument("--count", type=positive, required=True)
    parser.add_argument("--window", type=positive, required=True)
    parser.add_argument("--size", type=positive, required=True)
    parser.add_argument("--session", choices=MODES, required=True)
    parser.add_argument("--certs", type=Path, required=True)
    parser.add_argument("--dns", help="of ticket modes")
    return parser


def _serve(args: argparse.Namespace) -> None:
    ip, first = parse_address(args.addr)
    peer = parse_address(args.peer)
    params = dataclasses.replace(SOFTWARE, mtu=min(interface_mtu(args.iface), 65535))
    config = SessionConfig(load_identity(args.certs), args.session, Offer(max_message=params.max_message_length))
    # What an application would have once, all endpoints share.
    psks, pool = PskStore(), KeyPool()
    tickets = None if args.dns is None else DnsTickets(config.identity, parse_address(args.dns))
    timeout_s = max(_LEAST_S, args.count * _EACH_S)

    def manager() -> SessionManager:
        return SessionManager(config, time.time_ns, tickets=tickets, psks=psks, pool=pool)

    with Swarm(args.iface, ip, range(first, first + args.count), manager, params) as swarm:
        print("ready", file=sys.stderr, flush=True)
        for line in sys.stdin:
            closing = json.loads(line)["do"] == "closed"
            tally = (swarm.end(peer, args.window, timeout_s) if closing else
                     swarm.echo(peer, args.size, args.window, timeout_s))
            swarm.linger(_LINGER_S)
            if closing:
                swarm.forget()
            median_us = round(statistics.median(tally.times_ns) / 1000, 1) if tally.times_ns else None
            print(json.dumps({"done": tally.done, "failed": tally.failed, "wrong": tally.wrong,
                              "first_error": tally.first_error, "seconds": tally.seconds,
                              "median_us": median_us}), flush=True)


if __name__ == "__main__":
    run_on_host(_parser().parse_args, _serve)
