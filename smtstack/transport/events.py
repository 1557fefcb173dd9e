"""What an endpoint tells its application.

Not frozen: a frozen dataclass costs four times as much to make, and one is made for every message.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from smtstack.transport.rpc import Rpc


class Reason(Enum):
    """Why an RPC failed."""

    TIMEOUT = "the peer stopped answering"
    ABORTED = "aborted by the application"
    NO_MEMORY = "unfinished messages exceed max_rx_bytes"


@dataclass(slots=True)
class Request:
    """A request arrived whole and (in sealed profiles) authentic. Answer with ``endpoint.send_reply(rpc)``."""

    rpc: Rpc
    data: bytes


@dataclass(slots=True)
class Response:
    """The response to a request of ours arrived; the RPC is over."""

    rpc: Rpc
    data: bytes


@dataclass(slots=True)
class Failed:
    """A request of ours ended without a response; the server may have executed it, once at most."""

    rpc: Rpc
    reason: Reason


Event = Request | Response | Failed
