"""A transport of one's own: TCP with every byte turned over, in every list, comparison and picture. As root::

    sudo SMTNET_TRANSPORTS=examples.own_transport .venv/bin/smtnet run echo --transport turned --count 100

Nothing of ours is edited; in the project it would be a record in ``workloads/transports/table.py``.
"""

from collections.abc import Callable
from socket import socket

from smtstack.socket import Address
from workloads.transports.stream import Stream
from workloads.transports.table import Look, Settings, TransportKind, register

_TURNED = bytes(byte ^ 0xFF for byte in range(256))


class Turned(Stream):
    def __init__(self, sock: socket, peer: Address, limit: int) -> None:
        super().__init__(sock, peer, limit)
        self._get = lambda size: sock.recv(size).translate(_TURNED)
        self._put = lambda data: sock.send(bytes(data).translate(_TURNED))


def streams(settings: Settings, _server: bool) -> Callable[[socket, Address], Stream]:
    return lambda sock, peer: Turned(sock, peer, settings.limit)


register(TransportKind(name="turned", about="TCP, turned over", streams=streams, beside="tcp",
                       looks={"sw": Look("#8B4513", "x", ":")}, compared=frozenset({"demo", "mix", "queries"})))
