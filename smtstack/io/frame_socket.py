"""What the packet loop needs of whatever it sends and receives frames by."""

from __future__ import annotations

import socket
from abc import abstractmethod

from smtstack.compiled import mypyc_attr


@mypyc_attr(allow_interpreted_subclasses=True)
class FrameSocket:
    """Frames of one (address, port, protocol) on one interface."""

    #: Of the interface.
    mac: bytes
    #: Frames given up because nobody took them.
    send_drops: int

    @abstractmethod
    def watch(self, other: socket.socket) -> None:
        """Wake up for another socket as well; who reads it is the caller's affair."""

    @abstractmethod
    def fileno(self) -> int:
        """For select and asyncio."""

    @abstractmethod
    def receive(self, limit: int) -> list[bytes]:
        """The frames that wait, oldest first, at most ``limit``."""

    @abstractmethod
    def too_long(self) -> tuple[int, int]:
        """(how many IP packets longer than our MTU came, bytes of the longest)."""

    @abstractmethod
    def clear_error(self) -> None:
        """For when nothing came."""

    @abstractmethod
    def send(self, frames: list[bytes]) -> None:
        """Send frames; waits a little for a full queue, then counts a frame as lost, as a link would."""

    @abstractmethod
    def wait(self, timeout_ns: int) -> None:
        """Block until a frame is there, or this long."""

    @abstractmethod
    def statistics(self) -> tuple[int, int]:
        """(frames received, frames dropped for want of buffer) since the socket was made."""

    def more_counters(self) -> dict[str, int]:
        """What this kind of socket counts beside that."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""
