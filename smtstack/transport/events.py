"""What an endpoint tells its application.

Plain slotted classes, not frozen dataclasses: one is made for every message, and a frozen one costs four
times as much.
"""

from __future__ import annotations

from enum import Enum

from smtstack.transport.rpc import Rpc


class Reason(Enum):
    """Why an RPC failed."""

    TIMEOUT = "the peer stopped answering"
    ABORTED = "aborted by the application"
    NO_MEMORY = "unfinished messages exceed max_rx_bytes"


class Request:
    """A request arrived whole and (in sealed profiles) authentic. Answer with ``endpoint.send_reply(rpc)``."""

    __slots__ = ("data", "rpc")

    def __init__(self, rpc: Rpc, data: bytes) -> None:
        self.rpc = rpc
        self.data = data

    def __repr__(self) -> str:
        return f"Request({self.rpc!r}, {len(self.data)} B)"


class Response:
    """The response to a request of ours arrived; the RPC is over."""

    __slots__ = ("data", "rpc")

    def __init__(self, rpc: Rpc, data: bytes) -> None:
        self.rpc = rpc
        self.data = data

    def __repr__(self) -> str:
        return f"Response({self.rpc!r}, {len(self.data)} B)"


class Failed:
    """A request of ours ended without a response; the server may have executed it, once at most."""

    __slots__ = ("reason", "rpc")

    def __init__(self, rpc: Rpc, reason: Reason) -> None:
        self.rpc = rpc
        self.reason = reason

    def __repr__(self) -> str:
        return f"Failed({self.rpc!r}, {self.reason.name})"


Event = Request | Response | Failed
