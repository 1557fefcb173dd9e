"""``smtnet nic``: look at the smart NIC of an interface, and change it, while traffic runs."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.nicshare.state import NicState
from smtstack.nicshare.text import describe

_EXAMPLES = """examples:
  smtnet nic h1-eth0
  smtnet nic h1-eth0 --pid 4711 --json
  smtnet nic h1-eth0 --set offload=off --set loss=1%
  smtnet nic h1-eth0 --reset
  smtnet nic h1-eth0 tap start h1.pcapng
  smtnet nic h1-eth0 tap stop

settings (NAME=default gives one back to the endpoints):
  tso tls-hw-tx-offload (short: offload) tso-seq rx-checksum gso  on, off
  tls-hw-rx-offload                                               on, off: of a NIC that owns its interface
  max-contexts                                                    0, 1, ...: TLS contexts of each endpoint; of all
                                                                  together where a NIC owns the interface
  queues                                                          1, 2, ...: of sockets opened from now on
  paths                                                           1, 2, ...: messages take one after another
  loss duplicate reorder corrupt                                  1%, 0.01: of what leaves; rx.loss: what arrives
  delay jitter reorder-delay                                      2ms, 50us
  seed                                                            of the faults
  tx rx                                                           only default: no impairments set

What is set stays until --reset, also when no endpoint runs.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``nic``."""
    nic = commands.add_parser(
        "nic", help="the smart NIC of an interface: look, set, record", epilog=_EXAMPLES,
        description="Show the settings and counters of an interface's smart NIC, over all endpoints that use it, "
                    "and change them while traffic runs. Needs root.")
    nic.add_argument("iface", metavar="IFACE", help="network interface")
    _add_common(nic)
    nic.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                     help="force a setting (repeatable)")
    nic.add_argument("--reset", action="store_true",
                     help="all settings as the endpoints were configured; comes before --set")
    nic.set_defaults(run=run_nic)
    actions = nic.add_subparsers(dest="action", metavar="tap start FILE | tap stop")
    tap = actions.add_parser("tap", help="record the NIC's packets", description="Record the NIC's packets.")
    switches = tap.add_subparsers(dest="switch", required=True, metavar="start FILE | stop")
    start = switches.add_parser("start", help="into a new pcapng file",
                                description="Record into a new pcapng file.")
    start.add_argument("file", metavar="FILE", help="must not exist")
    start.add_argument("--host-side", action="store_true",
                       help="also what drivers post to the NIC: with TLS offload that is plaintext")
    stop = switches.add_parser("stop", help="end the recording", description="End the recording.")
    for parser, run in ((start, run_tap_start), (stop, run_tap_stop)):
        _add_common(parser, default=argparse.SUPPRESS)
        parser.set_defaults(run=run)


def _add_common(parser: argparse.ArgumentParser, default: Any = None) -> None:
    parser.add_argument("--pid", type=quantities.POSITIVE, metavar="PID", default=default,
                        help="any process of the host that has the interface (default: where this runs)")
    parser.add_argument("--json", action="store_true", default=default or False, help="one JSON object on stdout")


def run_nic(args: argparse.Namespace) -> int:
    """Show, after setting what is to be set."""
    state = NicState.open(args.iface, args.pid)
    if args.reset:
        state.reset()
    if args.set:
        state.assign(*args.set)
    if (args.reset or args.set) and not state.wait_applied():
        print("smtnet: some endpoints are busy and have not taken the settings yet", file=sys.stderr)
    print(json.dumps(as_dict(state)) if args.json else describe(state))
    return 0


def run_tap_start(args: argparse.Namespace) -> int:
    """Start recording."""
    _refuse_changes(args)
    state = NicState.open(args.iface, args.pid)
    state.start_tap(args.file, args.host_side)
    if not state.wait_applied():
        print("smtnet: some endpoints are busy and do not record yet", file=sys.stderr)
    _tell(args, f"recording {args.iface} into {args.file}", recording=args.file)
    return 0


def run_tap_stop(args: argparse.Namespace) -> int:
    """Stop recording."""
    _refuse_changes(args)
    state = NicState.open(args.iface, args.pid)
    path = state.stop_tap()
    errors = state.counters()["tap_errors"]
    _tell(args, f"recorded {args.iface} into {path}", recorded=path, tap_errors=errors)
    if errors:
        print(f"smtnet: endpoints could not write recordings of {args.iface} (so far {errors} times): packets are "
              "missing", file=sys.stderr)
    return 0


def as_dict(state: NicState) -> dict[str, Any]:
    """What ``--json`` prints."""
    return {"interface": state.interface, "settings": dataclasses.asdict(state.settings()),
            "endpoints": [dataclasses.asdict(e) for e in state.endpoints()], "counters": state.counters()}


def _refuse_changes(args: argparse.Namespace) -> None:
    if args.set or args.reset:
        raise ConfigError("'tap' takes no --set or --reset: give them by themselves")


def _tell(args: argparse.Namespace, text: str, **fields: Any) -> None:
    print(json.dumps({"interface": args.iface, **fields}) if args.json else text)
