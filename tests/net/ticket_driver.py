"""Programs of test_dns.py, run on a host: ``publish``, ``lookup`` or ``withdraw`` the ticket of host b, port 2000.

Prints JSON: what came of it, or the error.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from smtstack.errors import SmtError
from smtstack.session.offer import Offer
from smtstack.session_io.identity_files import load_identity
from smtstack.session_io.state_file import SqliteState
from smtstack.session_io.ticket_dns import DnsTickets, TicketPublisher
from smtstack.session_io.tsig_file import read_tsig
from smtstack.wire.ipv4 import address
from tests.net.netns import B

PORT = 2000


def main(action: str, credentials: str, dns: str, state: str = "") -> None:
    """``credentials``: this host's folder. ``dns``: address of the server."""
    folder, utc = Path(credentials), int(time.time())
    identity = load_identity(folder)
    if action == "lookup":
        ticket = DnsTickets(identity, (dns, 53)).ticket(address(B), PORT, utc)
        print(json.dumps({"id": ticket.ticket_id.hex(), "name": ticket.name, "bytes": len(ticket.pack())}))
        return
    publisher = TicketPublisher(identity, SqliteState(Path(state)), address(B), PORT, Offer(),
                                forward_secret_only=False, client_auth=True, server=(dns, 53),
                                key=read_tsig(folder / "tsig.key"))
    if action == "withdraw":
        publisher.withdraw()
        print("{}")
    else:
        print(json.dumps({"id": publisher.publish(utc).ticket_id.hex()}))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except SmtError as e:
        print(json.dumps({"error": str(e), "kind": type(e).__name__}))
