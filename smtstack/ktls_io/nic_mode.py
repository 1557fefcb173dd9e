"""NICs that own their interfaces (:mod:`smtstack.tapnic`) as what seals, and opens, for a :class:`KtlsSocket`."""

from __future__ import annotations

import socket

from smtstack.crypto.stream_gcm import Data, StreamKeys
from smtstack.nic.marks import MarkReader
from smtstack.nic.tls_flow import DUMP, LINUX, SCAN
from smtstack.tapnic import client


class TapTx:
    """A :class:`~smtstack.ktls_io.sending.TxFlow`."""

    def __init__(self, offload: client.TxOffload) -> None:
        self.offload = offload

    @property
    def aborted(self) -> bool:
        return self.offload.aborted

    @property
    def sync_wanted(self) -> bool:
        return self.offload.records.sync_wanted

    def append(self, *parts: Data) -> memoryview | None:
        return self.offload.append(*parts)

    def append_sealed(self, length: int) -> bool:
        return self.offload.append_sealed(length)

    def release(self) -> int:
        return self.offload.release()

    def take_context(self) -> None:
        self.offload.take_context()

    def give_context(self) -> None:
        self.offload.give_context()

    def close(self) -> None:
        self.offload.close()


class TapRx:
    """A :class:`~smtstack.ktls_io.sending.RxFlow`."""

    def __init__(self, offload: client.RxOffload) -> None:
        self.offload = offload
        self.marks: MarkReader = offload.marks
        self.seq = offload.seq

    def close(self) -> None:
        self.offload.close()


class TapNics:
    """A :class:`~smtstack.ktls_io.sending.NicPort`: the NICs of this network namespace. ``policy``, ``resync`` and
    ``rx_resync`` are words of :mod:`smtstack.nic.tls_flow`; ``room``: bytes of records that may be under way."""

    def __init__(self, policy: str = LINUX, resync: str = DUMP, receives: bool = False,
                 rx_resync: str = SCAN, room: int = client.DEFAULT_ROOM) -> None:
        self._room = room
        self.policy = policy
        self.resync = resync
        self.receives = receives
        self.rx_resync = rx_resync

    def install_tx(self, sock: socket.socket, keys: StreamKeys, number: int) -> TapTx:
        """Raises OSError, :class:`~smtstack.errors.Unsupported`: :func:`smtstack.tapnic.client.install_tx`."""
        return TapTx(client.install_tx(sock, keys, number, policy=self.policy, resync=self.resync,
                                        room=self._room))

    def install_rx(self, sock: socket.socket, keys: StreamKeys, number: int) -> TapRx:
        """Raises OSError, :class:`~smtstack.errors.Unsupported`: :func:`smtstack.tapnic.client.install_rx`."""
        return TapRx(client.install_rx(sock, keys, number, resync=self.rx_resync))
