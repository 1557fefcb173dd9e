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
    NO_SESSION = "there is no session with the peer"
    SESSION_ENDED = "its session with the peer ended"
    NOT_SENT = "the session that it waited for cannot carry it"
    TOO_LONG = "the response is longer than was agreed on"


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
    """A request of ours ended without a response; the server may have executed it, once at most.

    With reason NOT_SENT it has not, nor with NO_SESSION, unless it was 0-RTT data whose refusal somebody forged.
    """

    __slots__ = ("detail", "reason", "rpc")

    def __init__(self, rpc: Rpc, reason: Reason, detail: str = "") -> None:
        self.rpc = rpc
        self.reason = reason
        #: More about it, for people; may be empty.
        self.detail = detail

    def __repr__(self) -> str:
        return f"Failed({self.rpc!r}, {self.reason.name})"


Event = Request | Response | Failed
