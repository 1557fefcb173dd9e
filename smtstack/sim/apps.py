"""Small applications for endpoints in virtual time."""

from __future__ import annotations

from smtstack.errors import LocalError
from smtstack.sim.host import SimEndpoint
from smtstack.sim.network import Network
from smtstack.transport.events import Event, Failed, Request, Response


def echo(here: SimEndpoint, event: Event) -> None:
    """A server that answers every request with its own bytes."""
    if isinstance(event, Request):
        here.send_reply(event.rpc, event.data)


def call(net: Network, client: SimEndpoint, ip: int, port: int, data: bytes) -> Response | Failed:
    """One RPC from start to end; runs ``net`` until nothing is left to happen. Replaces ``client.on_event``."""
    ends: list[Response | Failed] = []

    def keep(_here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Response | Failed):
            ends.append(event)

    client.on_event = keep
    client.send_request(ip, port, data)
    net.run()
    if len(ends) != 1:
        raise LocalError(f"the RPC ended {len(ends)} times")
    return ends[0]
