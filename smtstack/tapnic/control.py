"""Where applications tell a NIC of flows: its end of the control socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from typing import Any, Final, Protocol

from smtstack.errors import ConfigError, SmtError
from smtstack.io.memory import map_untrusted
from smtstack.tapnic import messages

#: Bytes of the largest record map that is taken, or memory for marks.
LARGEST_MEMORY: Final = 64 << 20
_QUEUE: Final = 128
_BATCH: Final = 16


class Registry(Protocol):
    """What is done about flows."""

    def begin(self, fields: dict[str, Any], memory: Any) -> tuple[object | None, bytes]:
        """A flow of a request; what it is known by, if it is taken, and the answer. Raises :class:`SmtError`."""

    def context(self, flow: Any, take: bool) -> bytes:
        """Give a flow a context, or take it away; the answer."""

    def end(self, flow: Any) -> None:
        """The application of a flow is done, or gone."""


class ControlServer:
    """Listens in the network namespace of the thread that makes it. :meth:`serve` when it is readable."""

    def __init__(self, interface: str, registry: Registry) -> None:
        self._registry = registry
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._poll = select.epoll()
        #: Connections by descriptor, with the flow that the first message began.
        self._open: dict[int, tuple[socket.socket, object | None]] = {}
        try:
            self._listener.bind(messages.address(interface))
            self._listener.listen(_QUEUE)
            self._listener.setblocking(False)
            self._poll.register(self._listener, select.EPOLLIN)
        except OSError as e:
            self.close()
            raise ConfigError(f"another process is the NIC of {interface}: {e.strerror}") from None

    def fileno(self) -> int:
        """Readable when there is something to serve."""
        return self._poll.fileno()

    def serve(self) -> None:
        """Take what waits, some at a time; whoever is in a hurry for packets goes on with these then."""
        for descriptor, _events in self._poll.poll(0, _BATCH):
            if descriptor == self._listener.fileno():
                self._accept()
            else:
                self._hear(descriptor)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _address = self._listener.accept()
            uid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
            if uid not in (0, os.geteuid()):
                connection.close()
                return
            connection.setblocking(False)
            self._open[connection.fileno()] = connection, None
            self._poll.register(connection, select.EPOLLIN)

    def _hear(self, descriptor: int) -> None:
        connection, flow = self._open[descriptor]
        try:
            message, descriptors, _flags, _address = socket.recv_fds(connection, messages.LONGEST, 1)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        try:
            if not message:
                self._forget(descriptor)
                return
            flow, reply = self._answer(flow, message, descriptors)
        except SmtError as e:
            reply = messages.answer(error=str(e))
        finally:
            for received in descriptors:
                os.close(received)
        self._open[descriptor] = connection, flow
        with contextlib.suppress(OSError):  # it went away: the next recv says so
            connection.send(reply)

    def _answer(self, flow: object | None, message: bytes,
                descriptors: list[int]) -> tuple[object | None, bytes]:
        fields = messages.read_untrusted(message)
        word = fields.get("do")
        if word in (messages.TX, messages.RX) and flow is None:
            if len(descriptors) != 1:
                raise ConfigError("the shared memory's descriptor is missing")
            memory = map_untrusted(descriptors[0], LARGEST_MEMORY)
            try:
                return self._registry.begin(fields, memory)
            except SmtError:
                memory.close()
                raise
        if word in (messages.TAKE, messages.GIVE) and flow is not None:
            return flow, self._registry.context(flow, word == messages.TAKE)
        raise ConfigError(f"{word!r} is nothing a NIC does now")

    def _forget(self, descriptor: int) -> None:
        connection, flow = self._open.pop(descriptor)
        self._poll.unregister(connection)
        connection.close()
        if flow is not None:
            self._registry.end(flow)

    def close(self) -> None:
        """Nobody is heard any more."""
        for connection, _flow in self._open.values():
            connection.close()
        self._listener.close()
        self._poll.close()
