"""A kernel TCP socket with TLS of ours on it: :class:`KtlsSocket`, as an application sees kTLS.

Keys come from a handshake by OpenSSL (:mod:`smtstack.ktls_io.handshake`); ``send`` and ``recv`` then carry data.
What comes between data (alerts, tickets, key updates) is answered here; :meth:`KtlsSocket.recv_record` shows it
raw.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
from collections import Counter
from typing import Any, Final, Protocol, Self

from smtstack.errors import BadPacket, HandshakeError
from smtstack.ktls import control_records as control
from smtstack.ktls.backends import Registry
from smtstack.ktls.connection import KtlsConnection
from smtstack.ktls.key_schedule import Suite, next_secret, traffic_params
from smtstack.ktls.params import (
    SOL_TLS,
    TLS_RX,
    TLS_RX_EXPECT_NO_PAD,
    TLS_SET_RECORD_TYPE,
    TLS_TX,
    TLS_TX_ZEROCOPY_RO,
    VERSION_1_3,
    TlsParams,
    parse_crypto_info,
)
from smtstack.ktls.receive import ReceiveMachine
from smtstack.ktls.records import ALERT, DATA, HANDSHAKE, Buffer, Record
from smtstack.ktls.sendq import OutRecord
from smtstack.ktls.session import TlsSession
from smtstack.ktls.stats import NIC, SW, TlsStats
from smtstack.ktls_io.backends import default_backends
from smtstack.ktls_io.handshake import Established, Handshake

#: What is sealed and given to the kernel at a time: records of full size.
CHUNK: Final = 16 * 16_384
#: A socket that does not wait takes nothing more while so many bytes of its records are not sent.
MOST_BACKLOG: Final = 1 << 20
#: Records handed out by one :meth:`KtlsSocket.recv`, at most.
_BATCH: Final = 16
#: struct tcp_info (linux/tcp.h): tcpi_bytes_sent, tcpi_bytes_retrans.
_BYTES_SENT_AT, _TCP_INFO_LEN = 200, 216
#: Bytes between looks whether too much is sent again.
_ACCOUNT_EVERY: Final = 1 << 20


class TxFlow(Protocol):
    """Plaintext records on their way through a NIC that seals them (:mod:`smtstack.ktls_io.nic_mode`)."""

    def append(self, record: OutRecord) -> memoryview | None:
        """Keep the record for as long as TCP may send it again; what to give TCP. None: no room now."""

    def poll(self) -> None:
        """Let go of what is acknowledged. Raises OSError(ECONNABORTED) where the NIC gave the connection up."""

    def empty(self) -> bool:
        """Whether all is acknowledged."""

    def close(self) -> None:
        """No further record. What is not acknowledged stays with the NIC until it is."""


class NicPort(Protocol):
    """How a socket gets NICs to seal."""

    def install(self, sock: socket.socket, session: TlsSession, number: int) -> TxFlow:
        """From the next byte written on. Raises OSError: ENXIO no such NIC, ENOSPC no context left."""


class KtlsSocket:
    """``sock``: connected. ``rules``: whose errnos and habits, ``freebsd`` or ``linux``. ``nic``: how records get
    into a NIC; None: software seals. Waits as ``sock`` does (``settimeout``)."""

    def __init__(self, sock: socket.socket, rules: str = "freebsd", backends: Registry | None = None,
                 stats: TlsStats | None = None, nic: NicPort | None = None) -> None:
        self.sock = sock
        self.stats = stats or TlsStats()
        self.connection = KtlsConnection(backends or default_backends(nic=nic is not None), self.stats, rules,
                                         nic is not None)
        #: Bytes copied, by what for: ``read`` of a file, ``seal`` into new memory, ``send`` into the kernel,
        #: ``map`` for a NIC that may have to send again.
        self.copies: Counter[str] = Counter()
        #: Session tickets that came (TLS 1.3).
        self.tickets = 0
        self.zerocopy_ro = False
        self._nic = nic
        self._flow: TxFlow | None = None
        self._flow_session: TlsSession | None = None
        #: Of the record under way through the NIC.
        self._under_way: memoryview | None = None
        self._rest = b""
        self._ended = False
        self._told_next: OSError | None = None
        #: Whether the peer has said that no more comes.
        self.close_notify = False
        self._messages = control.HandshakeMessages()
        self._suite: Suite | None = None
        self._tx_secret = bytearray()
        self._rx_secret = bytearray()
        self._accounted = 0

    # -- beginning and end -----------------------------------------------------------------------------------

    @classmethod
    def client(cls, sock: socket.socket, context: Any, server_name: str = "", **how: Any) -> Self:
        """Shake hands, then turn TLS on. ``how``: as for the class. Raises
        :class:`~smtstack.errors.HandshakeError`, OSError."""
        own = cls(sock, **how)
        own.turn_on(shake_hands(sock, Handshake(context, False, server_name)))
        return own

    @classmethod
    def server(cls, sock: socket.socket, context: Any, tickets: bool = False, **how: Any) -> Self:
        """The same for the other side; ``tickets``: send some."""
        own = cls(sock, **how)
        own.turn_on(shake_hands(sock, Handshake(context, True, tickets=tickets)))
        return own

    def turn_on(self, keys: Established) -> None:
        """Both directions, with the keys of a handshake."""
        self.txtls_enable(keys.tx)
        self.rxtls_enable(keys.rx)
        self._suite = keys.suite
        self._tx_secret[:], self._rx_secret[:] = keys.tx_secret, keys.rx_secret

    def fileno(self) -> int:
        """Of the TCP socket."""
        return self.sock.fileno()

    def shutdown(self) -> None:
        """Send what is queued, say that no more comes (close_notify), and end our half of the TCP connection."""
        if self.connection.tx is not None:
            self.connection.flush()
            self.connection.write(bytes((control.WARNING, control.CLOSE_NOTIFY)), ALERT)
            self.push(wait=self.sock.gettimeout() != 0)
        self.sock.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Say close_notify if it can be said at once, close the TCP connection, and forget all keys."""
        if self.sock.fileno() >= 0 and self.connection.tx is not None:
            with contextlib.suppress(OSError):
                self.connection.flush()
                self.connection.write(bytes((control.WARNING, control.CLOSE_NOTIFY)), ALERT)
                self.push(wait=False)
        self._forget()
        self.sock.close()

    def abort(self) -> None:
        """End the TCP connection by a reset: nothing that is queued goes out."""
        if self.sock.fileno() >= 0:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._forget()
        self.sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _forget(self) -> None:
        if self._flow is not None:
            self._flow.close()
            self._flow = None
        if self._flow_session is not None:
            self._flow_session.free()
            self._flow_session = None
        self.connection.close()
        self._tx_secret[:] = bytes(len(self._tx_secret))
        self._rx_secret[:] = bytes(len(self._rx_secret))

    # -- options ---------------------------------------------------------------------------------------------

    def txtls_enable(self, params: TlsParams) -> None:
        """TCP_TXTLS_ENABLE: what is written from now on is records."""
        self.connection.txtls_enable(params)
        if self.connection.txtls_mode == NIC:
            self._install_or_leave()

    def rxtls_enable(self, params: TlsParams) -> None:
        """TCP_RXTLS_ENABLE: what comes from now on is records."""
        self.connection.rxtls_enable(params)

    @property
    def txtls_mode(self) -> str:
        """TCP_TXTLS_MODE: ``none``, ``sw`` or ``nic``; may be set while data flows."""
        return self.connection.txtls_mode

    @txtls_mode.setter
    def txtls_mode(self, mode: str) -> None:
        self.connection.set_txtls_mode(mode)
        self._begin_flow()

    @property
    def rxtls_mode(self) -> str:
        """TCP_RXTLS_MODE."""
        return self.connection.rxtls_mode

    def setsockopt(self, level: int, option: int, value: int | bytes) -> None:
        """SOL_TLS as Linux has it (keys as ``struct tls12_crypto_info_*``); anything else is the TCP socket's."""
        if level != SOL_TLS:
            self.sock.setsockopt(level, option, value)
        elif option in {TLS_TX, TLS_RX}:
            if not isinstance(value, bytes):
                raise OSError(errno.EINVAL, "keys are bytes")
            (self.txtls_enable if option == TLS_TX else self.rxtls_enable)(parse_crypto_info(value))
        elif option in {TLS_TX_ZEROCOPY_RO, TLS_RX_EXPECT_NO_PAD}:
            flag = int.from_bytes(value, "little") if isinstance(value, bytes) else value
            if flag not in {0, 1}:
                raise OSError(errno.EINVAL, "0 or 1")
            if option == TLS_TX_ZEROCOPY_RO:
                self.zerocopy_ro = bool(flag)
            else:
                rx = self.connection.rx
                if rx is None or rx.session.version != VERSION_1_3:
                    raise OSError(errno.EINVAL, "only TLS 1.3 has padding")
                rx.expect_no_pad = bool(flag)
        else:
            raise OSError(errno.ENOPROTOOPT, f"SOL_TLS has no option {option}")

    # -- sending ---------------------------------------------------------------------------------------------

    def send(self, data: Buffer, kind: int = DATA, more: bool = False) -> int:
        """Bytes that were taken: all of them, or (a socket that does not wait) BlockingIOError while too much is
        queued; :meth:`push` sends that. ``kind``: the record's type, ``more``: MSG_MORE."""
        wait = self.sock.gettimeout() != 0
        if not wait and self.connection.queue.backlog >= MOST_BACKLOG and not self.push(wait=False):
            raise BlockingIOError(errno.EAGAIN, "records wait to be sent")
        size = len(data)
        if size <= CHUNK or kind != DATA:
            self._write(data, kind, more, wait)
            return size
        with memoryview(data) as view:
            for at in range(0, size, CHUNK):
                last = at + CHUNK >= size
                self._write(view[at:at + CHUNK], kind, more or not last, wait)
        return size

    def _write(self, data: Buffer, kind: int, more: bool, wait: bool) -> None:
        try:
            self.connection.write(data, kind, more)
        except OSError as e:
            if e.errno == errno.EIO:
                self.abort()
            raise
        if self.txtls_mode == SW:
            self.copies["seal"] += len(data)
        self.push(wait)

    def sendmsg(self, buffers: list[bytes], ancillary: list[tuple[int, int, bytes]] | None = None,
                flags: int = 0) -> int:
        """With (SOL_TLS, TLS_SET_RECORD_TYPE, one byte) a record of that type."""
        kind = DATA
        for level, name, value in ancillary or []:
            if level != SOL_TLS or name != TLS_SET_RECORD_TYPE or len(value) != 1:
                raise OSError(errno.EINVAL, "no such control message")
            kind = value[0]
        return self.send(b"".join(buffers), kind, bool(flags & socket.MSG_MORE))

    def flush(self) -> bool:
        """Close the record that MSG_MORE keeps open, and send; whether all is gone."""
        self.connection.flush()
        return self.push(self.sock.gettimeout() != 0)

    def push(self, wait: bool) -> bool:
        """Give TCP what is ready; whether nothing is left. ``wait``: until then.

        Raises OSError: EIO, and the connection is reset, if a record could not be sealed; the kernel's own.
        """
        queue = self.connection.queue
        try:
            while (head := queue.head()) is not None:
                if not head.ready:
                    self.connection.collect()
                    if not head.ready:
                        if not wait:
                            return False
                        self._wait_for_sealing()
                    continue
                if not (self._push_nic(head, wait) if head.session.mode == NIC else self._push_sw(wait)):
                    return False
        except BlockingIOError:
            return False
        except OSError as e:
            if e.errno in {errno.EIO, errno.ECONNABORTED}:
                self.abort()
            raise
        if self._flow is not None:
            self._account()
        return True

    def _push_sw(self, wait: bool) -> bool:
        """What software has sealed. Not before all that a NIC had is acknowledged: the mark that says "seal
        this" is the socket's, not the record's."""
        if self._flow is not None and not self._end_flow(wait):
            return False
        queue = self.connection.queue
        flags = 0 if wait else socket.MSG_DONTWAIT
        if self._nic is not None:
            # A NIC may begin with the next byte: no segment is to have both.
            flags |= socket.MSG_EOR
        while parts := queue.ready():
            count = self.sock.sendmsg(parts, [], flags)
            self.copies["send"] += count
            queue.sent(count)
        return True

    # -- receiving -------------------------------------------------------------------------------------------

    def recv_record(self) -> Record | None:
        """The next record of any type, as ``recvmsg`` with TLS_GET_RECORD; None at the end of the stream.

        Raises OSError: EBADMSG (the tag; FreeBSD's rules: the next call goes on), EINVAL and EMSGSIZE (a header
        that cannot be, the end inside a record), BlockingIOError.
        """
        rx = self._rx()
        while (record := rx.next_record()) is None:
            if rx.ended:
                return None
            self._fill()
        return record

    def recv(self, size: int = CHUNK) -> bytes:
        """Data: all that has come, up to ``size`` bytes; b"" after the peer's close_notify or the end of its
        stream.

        What comes between data is dealt with. OSError(ECONNABORTED) if the peer sent an alert; EOPNOTSUPP, after
        an alert to it, for what we refuse.
        """
        if self._rest:
            data, self._rest = self._rest[:size], self._rest[size:]
            return data
        if self._told_next is not None:
            error, self._told_next = self._told_next, None
            raise error
        if self._ended:
            return b""
        rx = self._rx()
        parts: list[bytes] = []
        got = 0
        while got < size and len(parts) < _BATCH:
            try:
                record = rx.next_record()
            except OSError as e:
                if parts:
                    # It is told once: after what came before it.
                    self._told_next = e
                    break
                raise
            if record is None:
                if parts or rx.ended:
                    break
                self._fill()
            elif record.kind == DATA:
                if record.data:
                    parts.append(record.data)
                    got += record.length
            elif self._between(record):
                break
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if got > size:
            data, self._rest = data[:size], data[size:]
        if not parts:
            self._ended = True
        return data

    @property
    def buffered(self) -> int:
        """Bytes of data that :meth:`recv` has without asking the kernel."""
        return len(self._rest)

    def _rx(self) -> ReceiveMachine:
        if self.connection.rx is None:
            raise OSError(errno.ENOTCONN, "receiving is not turned on")
        return self.connection.rx

    def _fill(self) -> None:
        """More of the stream. Raises BlockingIOError, TimeoutError."""
        rx = self._rx()
        with rx.room() as room:
            count = self.sock.recv_into(room)
        rx.received(count)

    def _between(self, record: Record) -> bool:
        """Deal with a record that is no data; whether it ends the stream."""
        try:
            if record.kind == ALERT:
                level, what = control.alert_untrusted(record.data)
                if what == control.CLOSE_NOTIFY:
                    self._ended = self.close_notify = True
                    return True
                if level == control.WARNING and self._rx().session.version != VERSION_1_3:
                    return False
                raise OSError(errno.ECONNABORTED, f"the peer sent alert {what}")
            if record.kind != HANDSHAKE:
                raise BadPacket(f"a record of type {record.kind}")
            for kind, body in self._messages.take_untrusted(record.data):
                self._message(kind, body)
        except BadPacket as e:
            self._refuse(str(e))
        return False

    def _message(self, kind: int, body: bytes) -> None:
        if self._rx().session.version != VERSION_1_3:
            if kind not in {control.HELLO_REQUEST, control.CLIENT_HELLO}:
                raise BadPacket(f"a handshake message of type {kind}")
            self.send(bytes((control.WARNING, control.NO_RENEGOTIATION)), ALERT)
        elif kind == control.NEW_SESSION_TICKET:
            self.tickets += 1
        elif kind == control.KEY_UPDATE:
            wanted = control.wants_update_untrusted(body)
            if self._messages.partial:
                raise BadPacket("a key update and more in one record")
            self.stats.add("TlsRxRekeyReceived")
            if self.connection.rules == "freebsd":
                raise BadPacket("a key update: FreeBSD's rules have no second key")
            self._rx_secret[:] = self._next(self._rx_secret)
            self.rxtls_enable(self._params(self._rx_secret))
            if wanted:
                self.update_keys()
        else:
            raise BadPacket(f"a handshake message of type {kind}")

    def _refuse(self, why: str) -> None:
        with contextlib.suppress(OSError):
            self.send(bytes((control.FATAL, control.UNEXPECTED_MESSAGE)), ALERT)
        error = OSError(errno.EOPNOTSUPP, f"the peer sent {why}")
        self._rx().fail(error)
        raise error

    def update_keys(self, request: bool = False) -> None:
        """TLS 1.3: new keys for what we send; ``request``: the peer is to do the same. Raises OSError: EOPNOTSUPP
        where the rules (FreeBSD's; Linux's while a NIC seals) have no second key."""
        if self.connection.rules == "freebsd" or not self._tx_secret or self.txtls_mode == NIC:
            raise OSError(errno.EOPNOTSUPP,
                          "no new keys: FreeBSD's rules have none, Linux's none in a NIC, TLS 1.2 none at all")
        self.send(control.key_update(request), HANDSHAKE)
        self._tx_secret[:] = self._next(self._tx_secret)
        self.txtls_enable(self._params(self._tx_secret))

    def _next(self, secret: bytearray) -> bytes:
        assert self._suite is not None
        return next_secret(self._suite, bytes(secret))

    def _params(self, secret: bytearray) -> TlsParams:
        assert self._suite is not None
        return traffic_params(self._suite, bytes(secret))

    # -- through a NIC ---------------------------------------------------------------------------------------

    def _begin_flow(self) -> None:
        """Install the NIC where nothing is before its first record; else :meth:`push` does when it comes to that.
        Raises what the NIC says."""
        queue = self.connection.queue
        if self.connection.txtls_mode != NIC or queue.head() is not None or self._flow is not None:
            return
        session = self.connection.tx
        assert session is not None
        try:
            self._install(session, self.connection.number)
        except OSError:
            self.stats.add("stats.switch_failed")
            self.connection.switch(SW)
            raise

    def _install_or_leave(self) -> None:
        """When TLS is turned on: without a NIC that takes it, software seals and nobody is told."""
        with contextlib.suppress(OSError):
            self._begin_flow()

    def _install(self, session: TlsSession, number: int) -> None:
        assert self._nic is not None
        self._flow = self._nic.install(self.sock, session, number)
        self._flow_session = session.hold()

    def _push_nic(self, head: OutRecord, wait: bool) -> bool:
        """One plaintext record; whether it is gone."""
        if self._flow is not None and self._flow_session is not head.session and not self._end_flow(wait):
            return False
        if self._flow is None:
            try:
                self._install(head.session, head.number)
            except OSError:
                self._seal_after_all()
                return True
        flow, queue = self._flow, self.connection.queue
        assert flow is not None
        view = self._under_way
        if view is None:
            while (view := flow.append(head)) is None:
                flow.poll()
                if (view := flow.append(head)) is not None:
                    break
                if not wait:
                    return False
                self._wait_for_acknowledgement()
            self.copies["map"] += len(view)
        self._under_way = view
        while view:
            count = self.sock.send(view, 0 if wait else socket.MSG_DONTWAIT)
            self.copies["send"] += count
            view = view[count:]
            self._under_way = view
        self._under_way = None
        queue.sent(head.size)
        return True

    def _end_flow(self, wait: bool) -> bool:
        """Take the NIC out once all that it had is acknowledged; whether it is out."""
        flow = self._flow
        assert flow is not None
        flow.poll()
        while not flow.empty():
            if not wait:
                return False
            self._wait_for_acknowledgement()
            flow.poll()
        flow.close()
        self._flow = None
        if self._flow_session is not None:
            self._flow_session.free()
            self._flow_session = None
        return True

    def _seal_after_all(self) -> None:
        """No NIC takes the records that wait for one: software seals them, under the same numbers."""
        self.stats.add("stats.switch_failed")
        if self.connection.txtls_mode == NIC:
            self.connection.switch(SW)
        self.connection.seal_in_software()

    def _account(self) -> None:
        """Give the NIC up for good where too much is sent again."""
        sent = self.copies["send"]
        if sent - self._accounted < _ACCOUNT_EVERY:
            return
        self._accounted = sent
        info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_LEN)
        if len(info) >= _TCP_INFO_LEN:
            total, again = struct.unpack_from("=QQ", info, _BYTES_SENT_AT)
            self.connection.account(total - again, again)

    # -- waiting ---------------------------------------------------------------------------------------------

    def _wait_for_sealing(self) -> None:
        waiter = select.poll()
        for backend in self.connection.sealing():
            fd = backend.fileno()
            if fd is not None:
                waiter.register(fd, select.POLLIN)
        waiter.poll(1000)

    def _wait_for_acknowledgement(self) -> None:
        """Nothing tells of one: look again soon, or earlier if the connection ends."""
        waiter = select.poll()
        waiter.register(self.sock, 0)
        if waiter.poll(1):
            error = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            raise OSError(error or errno.EPIPE, os.strerror(error or errno.EPIPE))


def shake_hands(sock: socket.socket, handshake: Handshake) -> Established:
    """Move bytes until it is over; ``sock`` waits. Raises :class:`~smtstack.errors.HandshakeError`, OSError."""
    while True:
        if out := handshake.output():
            sock.sendall(out)
        if handshake.done:
            return handshake.established()
        data = sock.recv(handshake.wanted)
        if not data:
            raise HandshakeError("the peer closed the connection")
        try:
            handshake.feed(data)
        except HandshakeError:
            with contextlib.suppress(OSError):
                sock.sendall(handshake.output())
            raise
