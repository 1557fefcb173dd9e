"""From the records of a connection to its TCP socket: those that software has sealed as they are, those that a
NIC is to seal by way of its record map.

Once a NIC has a flow it stays for the connection's life: the mark on the socket says "what is in this stream may
be plaintext", so that records which software has sealed are announced to the NIC as well.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections import Counter, deque
from typing import Final, Protocol

from smtstack.crypto.stream_gcm import Data, StreamKeys
from smtstack.errors import Unsupported
from smtstack.ktls.connection import KtlsConnection
from smtstack.ktls.records import Buffer
from smtstack.ktls.sendq import MOST_BUFFERS
from smtstack.ktls.session import OutRecord, TlsSession
from smtstack.ktls.stats import NIC, SW
from smtstack.nic.marks import MarkReader

#: struct tcp_info (linux/tcp.h): tcpi_bytes_sent, tcpi_bytes_retrans.
_BYTES_SENT_AT: Final = 200
_TCP_INFO_LEN: Final = 216
#: Bytes between looks whether too much is sent again, and what is acknowledged.
_ACCOUNT_EVERY: Final = 1 << 20
_RELEASE_EVERY: Final = 1 << 19


class TxFlow(Protocol):
    """Records on their way through NICs: :class:`smtstack.tapnic.client.TxOffload`."""

    @property
    def aborted(self) -> bool:
        """A NIC has given the connection up rather than leak."""

    @property
    def sync_wanted(self) -> bool:
        """A NIC waits for the next record: it is to begin a segment."""

    def append(self, *parts: Data) -> memoryview | None:
        """Keep a record for as long as TCP may send it again; what to give TCP. None: no room now."""

    def append_sealed(self, length: int) -> bool:
        """Announce a record that is ciphertext already; False: no room now."""

    def release(self) -> int:
        """Let go of records that are acknowledged; how many these were."""

    def take_context(self) -> None:
        """The NIC of the route seals. Raises OSError: ENOSPC, ENXIO."""

    def give_context(self) -> None:
        """No NIC's hardware seals any more."""

    def close(self) -> None:
        """No further record. What is not acknowledged stays with the NIC until it is."""


class RxFlow(Protocol):
    """What NICs say of a stream that arrives: :class:`smtstack.tapnic.client.RxOffload`."""

    marks: MarkReader
    seq: int

    def close(self) -> None:
        """Nothing is decrypted any more."""


class NicPort(Protocol):
    """How a socket gets NICs to seal and open. ``receives``: whether they are to open, too."""

    receives: bool
    rx_resync: str

    def install_tx(self, sock: socket.socket, keys: StreamKeys, number: int) -> TxFlow:
        """From the next byte written on. Raises OSError: ENOSPC no context left, ENXIO no such NIC on the
        route."""

    def install_rx(self, sock: socket.socket, keys: StreamKeys, number: int) -> RxFlow:
        """From the next byte read on. Raises as :meth:`install_tx`."""


class Sender:
    """The sending half of one socket. ``copies`` counts bytes that are copied, by what for."""

    def __init__(self, sock: socket.socket, connection: KtlsConnection, nic: NicPort | None) -> None:
        self._sock = sock
        self._connection = connection
        self._nic = nic
        self.copies: Counter[str] = Counter()
        self.flow: TxFlow | None = None
        #: Sessions of the records that are in the map, in order: theirs until they are acknowledged.
        self._in_map: deque[TlsSession] = deque()
        #: What is left of the plaintext record that TCP has a part of.
        self._under_way: memoryview | None = None
        self._accounted = self._released = 0

    def push(self, wait: bool) -> bool:
        """Give TCP what is ready; whether nothing is left. ``wait``: until then.

        Raises OSError: EIO if a record could not be sealed, ECONNABORTED if a NIC gave up; the kernel's own.
        """
        queue = self._connection.queue
        try:
            while (head := queue.head()) is not None:
                if not head.ready:
                    self._connection.collect()
                    if not head.ready:
                        if not wait:
                            return False
                        self._wait_for_sealing()
                    continue
                if head.session.mode == NIC:
                    gone = self._push_plain(head, wait)
                elif self.flow is None:
                    gone = self._push_sealed(wait)
                else:
                    gone = self._push_announced(wait)
                if not gone:
                    return False
        except BlockingIOError:
            return False
        if self.flow is not None:
            self._account()
        return True

    # -- the NIC ---------------------------------------------------------------------------------------------

    def mode_changed(self) -> None:
        """The connection's mode was switched. To the NIC: raises what it says if it refuses, and software goes
        on."""
        connection = self._connection
        if connection.txtls_mode == SW:
            if self.flow is not None:
                self.flow.give_context()
            return
        try:
            if self.flow is not None:
                self.flow.take_context()
            elif connection.queue.head() is None:
                self._install(connection.tx, connection.number)
        except (OSError, Unsupported) as e:
            connection.stats.add("stats.switch_failed")
            connection.switch(SW)
            connection.seal_in_software()
            raise _as_os_error(e) from None

    def _install(self, session: TlsSession | None, number: int) -> None:
        assert self._nic is not None
        assert session is not None
        self.flow = self._nic.install_tx(self._sock, session.keys(), number)

    def _push_plain(self, head: OutRecord, wait: bool) -> bool:
        """One plaintext record; whether it is gone."""
        connection = self._connection
        if self.flow is None:
            try:
                self._install(head.session, head.number)
            except (OSError, Unsupported):
                # No NIC takes what waited for one.
                connection.stats.add("stats.switch_failed")
                if connection.txtls_mode == NIC:
                    connection.switch(SW)
                connection.seal_in_software()
                return True
        flow = self.flow
        assert flow is not None
        if self._under_way is None:
            while (view := flow.append(*head.parts)) is None:
                if not self._make_room(wait):
                    return False
            self._in_map.append(head.session.hold())
            self.copies["map"] += head.size
            self._under_way = view
        flags = self._flags(wait) | (socket.MSG_EOR if flow.sync_wanted else 0)
        view = self._under_way
        while view:
            count = self._sock.send(view, flags)
            self.copies["send"] += count
            view = self._under_way = view[count:]
        self._under_way = None
        connection.queue.sent(head.size)
        self._release()
        return True

    def send_file_part(self, payload: bytes, descriptor: int, offset: int) -> None:
        """One plaintext record whose payload TCP takes from the pages of a file, by reference: ``payload`` is
        what is there now, for the map. The socket waits, nothing is queued, and the flow is there."""
        flow = self.flow
        assert flow is not None
        record = self._connection.next_plain(payload)
        while flow.append(*record.parts) is None:
            self._make_room(wait=True)
        # The map's reference.
        self._in_map.append(record.session)
        self.copies["map"] += record.size
        header, _payload, trailer = record.parts
        self._sock.sendall(header, socket.MSG_MORE)
        end = offset + len(payload)
        while offset < end:
            count = os.sendfile(self._sock.fileno(), descriptor, offset, end - offset)
            if not count:
                # Cut off meanwhile: the record has to be as long as its header says.
                self._sock.sendall(bytes(end - offset), socket.MSG_MORE)
                break
            offset += count
        self._sock.sendall(trailer)
        self.copies["send"] += len(header) + len(trailer)
        self._release()

    def _push_announced(self, wait: bool) -> bool:
        """What software has sealed, in a stream that NICs watch."""
        flow, queue = self.flow, self._connection.queue
        assert flow is not None
        while True:
            parts: list[Buffer] = []
            for record in queue:
                if not record.ready or record.session.mode == NIC or len(parts) >= MOST_BUFFERS:
                    break
                if not record.announced:
                    if not flow.append_sealed(record.size):
                        break
                    record.announced = True
                    self._in_map.append(record.session.hold())
                parts += record.parts
            if not parts:
                head = queue.head()
                if head is None or not head.ready or head.session.mode == NIC:
                    return True
                if not self._make_room(wait):
                    return False
                continue
            count = self._sock.sendmsg(parts, [], self._flags(wait) | socket.MSG_EOR)
            self.copies["send"] += count
            queue.sent(count)
            self._release()

    def _make_room(self, wait: bool) -> bool:
        """Let go of what is acknowledged; whether it is worth trying again. TimeoutError after the socket's
        time."""
        patience = self._sock.gettimeout()
        end = None if patience is None else time.monotonic() + patience
        while not self._release(now=True):
            if not wait:
                return False
            if end is not None and time.monotonic() > end:
                raise TimeoutError("nothing was acknowledged in time")
            self._wait_for_acknowledgement()
        return True

    def _release(self, now: bool = False) -> int:
        """Records that are acknowledged let their sessions go. Now and then, or ``now``."""
        flow = self.flow
        assert flow is not None
        if flow.aborted:
            raise OSError(errno.ECONNABORTED, "the NIC gave the connection up: its packets went another way")
        sent = self.copies["send"]
        if not now and sent - self._released < _RELEASE_EVERY:
            return 0
        self._released = sent
        count = flow.release()
        for _ in range(count):
            self._in_map.popleft().free()
        return count

    def _account(self) -> None:
        """Give the NIC up for good where too much is sent again."""
        sent = self.copies["send"]
        if sent - self._accounted < _ACCOUNT_EVERY or self._connection.txtls_mode != NIC:
            return
        self._accounted = sent
        info = self._sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LEN)
        if len(info) >= _TCP_INFO_LEN:
            total, again = struct.unpack_from("=QQ", info, _BYTES_SENT_AT)
            if self._connection.account(total - again, again):
                self.mode_changed()

    # -- software --------------------------------------------------------------------------------------------

    def _push_sealed(self, wait: bool) -> bool:
        """Give TCP what one call takes of the first record's session: behind that may be what only a NIC may
        send."""
        flags = self._flags(wait)
        if self._nic is not None:
            # A NIC may begin with the next byte: no segment is to have both.
            flags |= socket.MSG_EOR
        queue = self._connection.queue
        count = self._sock.sendmsg(queue.ready(), [], flags)
        self.copies["send"] += count
        queue.sent(count)
        return True

    @staticmethod
    def _flags(wait: bool) -> int:
        return 0 if wait else socket.MSG_DONTWAIT

    # -- waiting, and the end --------------------------------------------------------------------------------

    def close(self) -> None:
        """The connection is done with it."""
        self._under_way = None  # looks into the map
        if self.flow is not None:
            self.flow.close()
            self.flow = None
        while self._in_map:
            self._in_map.popleft().free()

    def _wait_for_sealing(self) -> None:
        waiter = select.poll()
        for backend in self._connection.sealing():
            descriptor = backend.fileno()
            if descriptor is not None:
                waiter.register(descriptor, select.POLLIN)
        waiter.poll(1000)

    def _wait_for_acknowledgement(self) -> None:
        """Nothing tells of one: look again soon, or at once if the connection ends. Raises OSError then."""
        waiter = select.poll()
        waiter.register(self._sock, 0)
        if waiter.poll(1):
            error = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            raise OSError(error or errno.EPIPE, os.strerror(error or errno.EPIPE))


def _as_os_error(error: Exception) -> OSError:
    """FreeBSD has one word for a NIC that is not there: ENXIO."""
    return error if isinstance(error, OSError) else OSError(errno.ENXIO, str(error))


def quietly(sender: Sender) -> None:
    """Tell NICs of the mode that TLS begins with: where none takes it, software seals and nobody is told."""
    with contextlib.suppress(OSError):
        sender.mode_changed()
