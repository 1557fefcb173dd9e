"""``smtnet tickets``: what a server's state file holds; revoke a ticket, publish another."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError
from smtstack.session.tickets import TicketSecret
from smtstack.session_io.identity_files import load_identity
from smtstack.session_io.state_file import SqliteState
from smtstack.session_io.tsig_file import DNS_PORT, TSIG, ZONE, read_tsig
from smtstack.wire.ipv4 import address, format_address
from workloads.options.common import parse_address

_EXAMPLES = """examples:
  smtnet tickets list --state server.state
  smtnet tickets revoke --state server.state 5f0c
  smtnet tickets revoke --state server.state all
  smtnet tickets publish --state server.state --certs lab.ca/b --addr 10.9.0.2:2000 --dns 10.9.0.3

A running server looks into the file at every hello, so a ticket that is revoked lets nobody in any more. It
publishes another within a second or so; clients that have the old one from DNS ask again after it was refused.
Sessions that exist go on.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``tickets``."""
    tickets = commands.add_parser(
        "tickets", help="the 0-RTT tickets of a server: list, revoke, publish", epilog=_EXAMPLES,
        description="Look at the tickets in a server's state file (smtnet serve --state), revoke them, or publish "
                    "another. Running servers notice at once.")
    actions = tickets.add_subparsers(dest="action", required=True, metavar="list | revoke | publish")
    every = argparse.ArgumentParser(add_help=False)
    every.add_argument("--state", type=Path, required=True, metavar="FILE", help="the server's state file")
    every.add_argument("--json", action="store_true", help="one JSON object on stdout")
    shape: Any = {"parents": [every], "epilog": _EXAMPLES}
    listing = actions.add_parser("list", help="show them", description="Show the tickets.", **shape)
    listing.set_defaults(run=run_list)
    revoke = actions.add_parser("revoke", help="let nobody in with a ticket",
                                description="Let nobody in with these tickets from now on.", **shape)
    revoke.add_argument("ids", nargs="+", metavar="ID",
                        help="as 'list' shows it, or its beginning; all: every one")
    revoke.set_defaults(run=run_revoke)
    publish = actions.add_parser(
        "publish", help="put a new ticket into DNS", **shape,
        description="Make a ticket with the conditions of the server's last one, and put it into DNS.")
    publish.add_argument("--certs", type=Path, required=True, metavar="FOLDER",
                         help="the server's certificate ('smtnet ca' makes one for each host)")
    publish.add_argument("--addr", required=True, metavar="IP:PORT", help="the server's address")
    publish.add_argument("--dns", required=True, metavar="IP[:PORT]", help="the DNS server")
    publish.add_argument("--tsig", type=Path, metavar="FILE",
                         help=f"the key that may change the zone (default: {TSIG} in the folder of --certs)")
    publish.add_argument("--zone", default=ZONE, help="where tickets are (default: %(default)s)")
    publish.set_defaults(run=run_publish)


def run_list(args: argparse.Namespace) -> int:
    """Show what is in the state."""
    utc = int(time.time())
    rows = [_row(secret, utc) for secret in SqliteState(args.state, create=False).tickets()]
    if args.json:
        print(json.dumps({"tickets": rows}))
    elif not rows:
        print(f"{args.state} has no tickets", file=sys.stderr)
    else:
        for row in rows:
            wants = ", ".join([row["ciphers"][0], *(["forward secrecy"] if row["forward_secret_only"] else []),
                               *(["client certificates"] if row["client_auth"] else [])])
            print(f"{row['id']}  {row['host']}  {row['address']}  {row['status']}  ({wants})")
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    """Revoke what is named."""
    state = SqliteState(args.state, create=False)
    known = {s.ticket.ticket_id.hex(): s for s in state.tickets()}
    chosen: dict[str, TicketSecret] = {}
    for text in args.ids:
        found = known if text == "all" else {i: s for i, s in known.items() if i.startswith(text.lower())}
        if not found:
            raise ConfigError(f"{args.state} has no ticket {text}; 'smtnet tickets list' shows what it has")
        if len(found) > 1 and text != "all":
            raise ConfigError(f"{len(found)} tickets begin with {text!r}; give more of it")
        chosen.update(found)
    for secret in chosen.values():
        state.revoke(secret.ticket.ticket_id)
    if args.json:
        print(json.dumps({"revoked": list(chosen)}))
    else:
        print(f"revoked {len(chosen)} of {len(known)} tickets", file=sys.stderr)
    return 0


def run_publish(args: argparse.Namespace) -> int:
    """A new ticket in DNS."""
    from smtstack.session_io.ticket_dns import TicketPublisher

    ip, port = parse_address(args.addr)
    state = SqliteState(args.state, create=False)
    last = next((s.ticket for s in reversed(state.tickets())
                 if (s.ticket.ip, s.ticket.port) == (address(ip), port)), None)
    if last is None:
        raise ConfigError(f"{args.state} has no ticket of a server at {args.addr} to go by: a server publishes "
                          "its first one itself when it starts")
    identity = load_identity(args.certs)
    key = read_tsig(args.tsig or args.certs / TSIG)
    publisher = TicketPublisher(identity, state, address(ip), port, last.offer,
                                forward_secret_only=last.forward_secret_only, client_auth=last.wants_client,
                                server=parse_address(args.dns, DNS_PORT), key=key, zone=args.zone)
    ticket = publisher.publish(int(time.time()))
    if args.json:
        print(json.dumps({"published": ticket.ticket_id.hex(), "not_after": ticket.not_after}))
    else:
        print(f"published {ticket.ticket_id.hex()} for {ticket.name}, port {port}", file=sys.stderr)
    return 0


def _row(secret: TicketSecret, utc: int) -> dict[str, Any]:
    ticket = secret.ticket
    if secret.revoked:
        status = "revoked"
    elif utc > ticket.not_after:
        status = "expired"
    else:
        status = f"valid for {ticket.not_after - utc} s"
    return {"id": ticket.ticket_id.hex(), "host": ticket.name,
            "address": f"{format_address(ticket.ip)}:{ticket.port}", "status": status,
            "revoked": secret.revoked, "not_before": ticket.not_before, "not_after": ticket.not_after,
            "forward_secret_only": ticket.forward_secret_only, "client_auth": ticket.wants_client,
            "ciphers": list(ticket.offer.ciphers), "padding": ticket.offer.padding}
