"""A kernel TCP socket with TLS of ours on it: :class:`KtlsSocket`, as an application sees kTLS.

Keys come from a handshake by OpenSSL (:mod:`smtstack.ktls_io.handshake`); ``send`` and ``recv`` then carry data.
What comes between data (alerts, tickets, key updates) is answered here; :meth:`KtlsSocket.recv_record` shows it
raw.
"""

from __future__ import annotations

import contextlib
import errno
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from smtstack.errors import BadPacket, HandshakeError, Unsupported
from smtstack.ktls import control_records as control
from smtstack.ktls.backends import Registry
from smtstack.ktls.connection import KtlsConnection
from smtstack.ktls.key_schedule import Suite, next_secret, traffic_params
from smtstack.ktls.nic_marks import NicMarks
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
from smtstack.ktls.stats import NIC, SW, TlsStats
from smtstack.ktls_io.backends import default_backends
from smtstack.ktls_io.handshake import Established, Handshake
from smtstack.ktls_io.sending import NicPort, RxFlow, Sender, quietly

if TYPE_CHECKING:
    from typing_extensions import Self  # Python 3.10 has none

#: What is sealed and given to the kernel at a time: records of full size.
CHUNK: Final = 16 * 16_384
#: A socket that does not wait takes nothing more while so many bytes of its records are not sent.
MOST_BACKLOG: Final = 1 << 20


class KtlsSocket:
    """``sock``: connected. ``rules``: whose errnos and habits, ``freebsd`` or ``linux``. ``nic``: how records get
    into a NIC; None: software seals. Waits as ``sock`` does (``settimeout``)."""

    def __init__(self, sock: socket.socket, rules: str = "freebsd", backends: Registry | None = None,
                 stats: TlsStats | None = None, nic: NicPort | None = None) -> None:
        self.sock = sock
        self.stats = stats or TlsStats()
        self.connection = KtlsConnection(backends or default_backends(nic=nic is not None), self.stats, rules,
                                         nic is not None, nic is not None and nic.receives)
        #: Session tickets that came (TLS 1.3).
        self.tickets = 0
        self.zerocopy_ro = False
        self._nic = nic
        self._sender = Sender(sock, self.connection, nic)
        #: Bytes copied, by what for: ``read`` of a file, ``seal`` into new memory, ``send`` into the kernel,
        #: ``map`` for a NIC that may have to send again.
        self.copies = self._sender.copies
        self._rx_flow: RxFlow | None = None
        self._rest = b""
        self._ended = False
        self._told_next: OSError | None = None
        #: Whether the peer has said that no more comes.
        self.close_notify = False
        self._messages = control.HandshakeMessages()
        self._suite: Suite | None = None
        self._tx_secret = bytearray()
        self._rx_secret = bytearray()

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
        """Shake hands as a server, then turn TLS on; ``tickets``: send some."""
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
        """The TCP socket's descriptor."""
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
        self._sender.close()
        if self._rx_flow is not None:
            self._rx_flow.close()
            self._rx_flow = None
        self.connection.close()
        self._tx_secret[:] = bytes(len(self._tx_secret))
        self._rx_secret[:] = bytes(len(self._rx_secret))

    # -- options ---------------------------------------------------------------------------------------------

    def txtls_enable(self, params: TlsParams) -> None:
        """TCP_TXTLS_ENABLE: what is written from now on is records."""
        self.connection.txtls_enable(params)
        if self.connection.txtls_mode == NIC:
            quietly(self._sender)

    def rxtls_enable(self, params: TlsParams) -> None:
        """TCP_RXTLS_ENABLE: what comes from now on is records."""
        self.connection.rxtls_enable(params)
        rx = self._rx()
        if self.connection.rxtls_mode == NIC and self._rx_flow is None:
            assert self._nic is not None
            try:
                flow = self._nic.install_rx(self.sock, rx.session.keys(), params.number)
            except (OSError, Unsupported):
                self.connection.open_in_software()
            else:
                self._rx_flow = flow
                rx.marks = NicMarks(flow.marks, flow.seq, self._nic.rx_resync, self.stats)

    @property
    def txtls_mode(self) -> str:
        """TCP_TXTLS_MODE: ``none``, ``sw`` or ``nic``; may be set while data flows."""
        return self.connection.txtls_mode

    @txtls_mode.setter
    def txtls_mode(self, mode: str) -> None:
        before = self.connection.tx
        self.connection.set_txtls_mode(mode)
        if self.connection.tx is not before:
            self._sender.mode_changed()

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
            self._perhaps_abort(e)
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

    def _perhaps_abort(self, error: OSError) -> None:
        if error.errno in {errno.EIO, errno.ECONNABORTED}:
            self.abort()

    def ready_for_files(self) -> bool:
        """Whether :meth:`send_file_part` may be called: a NIC seals, and nothing waits to be sent before."""
        self.connection.flush()
        return (self.push(wait=True) and self.connection.txtls_mode == NIC and self._sender.flow is not None)

    def send_file_part(self, payload: bytes, descriptor: int, offset: int) -> None:
        """A record whose payload TCP takes from a file's own pages (:mod:`smtstack.ktls_io.files`)."""
        try:
            self._sender.send_file_part(payload, descriptor, offset)
        except OSError as e:
            self._perhaps_abort(e)
            raise

    def flush(self) -> bool:
        """Close the record that MSG_MORE keeps open, and send; whether all is gone."""
        self.connection.flush()
        return self.push(self.sock.gettimeout() != 0)

    def push(self, wait: bool) -> bool:
        """Give TCP what is ready; whether nothing is left. ``wait``: until then.

        Raises OSError: EIO if a record could not be sealed and ECONNABORTED if a NIC gave up, and the connection
        is reset then; the kernel's own.
        """
        try:
            return self._sender.push(wait)
        except OSError as e:
            self._perhaps_abort(e)
            raise

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
        """Data: all that has come and is whole, up to ``size`` bytes; b"" after the peer's close_notify or the
        end of its stream.

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
        try:
            while got < size:
                record = rx.next_record()
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
        except OSError as e:
            if not parts:
                raise
            # It is told once: after what came before it.
            self._told_next = e
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        if got > size:
            data, self._rest = data[:size], data[size:]
        if not parts:
            self._ended = True
        return data

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
