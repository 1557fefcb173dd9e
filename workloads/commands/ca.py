"""``smtnet ca``: an authority and certificates of hosts, in a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.session_io.tsig_file import TSIG
from workloads.fleet.authority import CA_KEY, DAYS, KINDS, add_hosts, make_folder

_EXAMPLES = """examples:
  smtnet ca run.ca --host a=10.9.0.1 --host b=10.9.0.2
  smtnet serve echo --iface veth1 --addr 10.9.0.2:2000 --certs run.ca/b
  smtnet call echo --iface veth0 --addr 10.9.0.1:40000 --peer 10.9.0.2:2000 --certs run.ca/a
  OPENSSL_CONF=run.ca/b/openssl.cnf smtnet serve echo --transport tls --certs run.ca/b --addr 10.9.0.2:2000
  smtnet ca lab.ca --host a=10.9.0.1 --days 90 --keep-key
  smtnet ca lab.ca --host c=10.9.0.3 --add
  smtnet ca dns.ca --host a=10.9.0.1 --host b=10.9.0.2 --publisher b

Copy FOLDER/NAME to host NAME, and nothing else. Without --keep-key the private key of the authority is never
written. After --add, 'hosts' has changed in every folder.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``ca``."""
    parser = commands.add_parser(
        "ca", help="make an authority and certificates of hosts", epilog=_EXAMPLES,
        description="Write an authority and a certificate for each host into a fresh folder: FOLDER/NAME is for "
                    "--certs on host NAME.")
    parser.add_argument("folder", type=Path, help="the folder to make (--add: that is there)")
    parser.add_argument("--host", action="append", required=True, metavar="NAME=IP", help="once for each host")
    parser.add_argument("--key", choices=KINDS,
                        help=f"kind of the keys (default: {KINDS[0]}; with --add that of the authority)")
    parser.add_argument("--days", type=quantities.DAYS, default=DAYS, metavar="N",
                        help="how long certificates hold (default: %(default)s)")
    parser.add_argument("--keep-key", action="store_true",
                        help=f"keep the authority's private key, FOLDER/{CA_KEY}: who has it can be any host")
    parser.add_argument("--publisher", action="append", default=[], metavar="NAME",
                        help=f"this host puts tickets into DNS: it gets a {TSIG}, which the DNS server needs, too")
    parser.add_argument("--add", action="store_true", help="add hosts to a folder made with --keep-key")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    hosts: dict[str, str] = {}
    for text in args.host:
        name, equals, ip = text.partition("=")
        if not equals:
            raise ConfigError(f"--host {text!r}; NAME=IP, as in a=10.9.0.1")
        if name in hosts:
            raise ConfigError(f"--host {name} is given twice")
        hosts[name] = ip
    if args.add:
        if args.keep_key:
            raise ConfigError("--keep-key is for a new folder; --add needs one that has the key")
        add_hosts(args.folder, hosts, args.key, args.days, args.publisher)
    else:
        make_folder(args.folder, hosts, args.key or KINDS[0], args.days, args.keep_key, args.publisher)
    return 0
