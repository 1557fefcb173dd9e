"""What the kernel's TCP knows of a connection: sequence numbers, its route, whether it is there at all.

Linux ``tcp(7)``, ``TCP_REPAIR``; needs CAP_NET_ADMIN. Numbers are 32-bit TCP sequence numbers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import socket
import struct
import sys

from smtstack.errors import LocalError, Unsupported

# Linux <linux/tcp.h>, <asm-generic/socket.h>, <linux/sockios.h>; Python has no names for these.
_TCP_REPAIR, _TCP_REPAIR_QUEUE, _TCP_QUEUE_SEQ = 19, 20, 21
_REPAIR_OFF_NO_WINDOW_PROBE = -1
_RECEIVE_QUEUE, _SEND_QUEUE = 1, 2
_SO_MARK = 36
_SIOCINQ, _SIOCOUTQ = 0x541B, 0x5411
#: Where struct tcp_info has tcpi_bytes_acked.
_BYTES_ACKED_AT, _INFO_SIZE = 120, 128
_BYTES_ACKED = struct.Struct("=Q")
# Linux <linux/netlink.h>, <linux/sock_diag.h>, <linux/inet_diag.h>, <linux/rtnetlink.h>.
_REQUEST, _ACK, _ERROR = 1, 4, 2
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _SOCK_DESTROY = 4, 20, 21
_TCP, _ALL_STATES, _TIME_WAIT, _CLOSE = 6, 0xFFFFFFFF, 6, 7
#: Where struct inet_diag_msg has idiag_wqueue.
_WQUEUE_AT = 60
_NO_COOKIE = b"\xff" * 8
_RTM_NEWLINK, _RTM_GETLINK, _RTM_NEWROUTE, _RTM_GETROUTE = 16, 18, 24, 26
_RTA_DST, _RTA_SRC, _RTA_OIF, _RTA_MARK = 1, 2, 4, 16
_IFLA_GROUP = 27
_RTM_NEWQDISC, _RTM_GETQDISC, _DUMP, _DONE, _TCA_KIND = 36, 38, 0x300, 3, 1
#: What filters and their actions hang on that see packets beside an interface's queue.
_HOOKS = (b"ingress\0", b"clsact\0")
#: RTMGRP_LINK, RTMGRP_TC, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE.
_CHANGES = 0x1 | 0x8 | 0x10 | 0x40 | 0x80
_HEADER = struct.Struct("=IHHII")
_ROUTE = struct.Struct("=BBBBBBBBI")
_LINK = struct.Struct("=BxHiII")
_QDISC = struct.Struct("=BxxxiIII")
_ATTRIBUTE = struct.Struct("=HH")
_U32 = struct.Struct("=I")


def sequences(sock: socket.socket) -> tuple[int, int]:
    """(sequence number of the next byte written to an established TCP socket, of the next that is read)."""
    reuse = sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
    except PermissionError:
        raise Unsupported("sequence numbers of a connection need root (CAP_NET_ADMIN, TCP_REPAIR): "
                          "run with sudo") from None
    try:
        found = []
        for queue in (_SEND_QUEUE, _RECEIVE_QUEUE):
            sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR_QUEUE, queue)
            found.append(struct.unpack("=I", sock.getsockopt(socket.IPPROTO_TCP, _TCP_QUEUE_SEQ, 4))[0])
        return found[0], found[1]
    finally:
        # With a probe the peer would get a packet that no program sent.
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, _REPAIR_OFF_NO_WINDOW_PROBE)
        # It forgets this one, and nobody could listen on the port again for as long as the connection is known.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)


def set_mark(sock: socket.socket, mark: int) -> None:
    """Mark all packets of a socket from now on (SO_MARK). Raises :class:`Unsupported` without root."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, mark)
    except PermissionError:
        raise Unsupported("marking packets needs root (CAP_NET_ADMIN): run with sudo") from None


def addresses(sock: socket.socket) -> tuple[int, int, int, int]:
    """(own IPv4 address, own port, peer's address, peer's port) of a connected TCP socket.

    Raises :class:`LocalError` for one that is not connected, :class:`Unsupported` for IPv6.
    """
    try:
        peer, own = sock.getpeername(), sock.getsockname()
    except OSError as e:
        raise LocalError(f"no connected TCP socket: {e.strerror}") from None
    if sock.type != socket.SOCK_STREAM or sock.family not in (socket.AF_INET, socket.AF_INET6):
        raise LocalError("no TCP socket")
    numbers = []
    for host, port in (own[:2], peer[:2]):
        text = host.removeprefix("::ffff:")
        try:
            numbers += [int.from_bytes(socket.inet_aton(text), "big"), port]
        except OSError:
            raise Unsupported(f"{host}: a NIC offloads TLS of TCP over IPv4 only") from None
    return numbers[0], numbers[1], numbers[2], numbers[3]


def acknowledged_bytes(sock: socket.socket) -> int:
    """Bytes of the stream that the peer has acknowledged since the connection began (TCP_INFO, RFC 4898); counts a
    SYN and a FIN as TCP's sequence does, or not: only differences mean something."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_SIZE)
    return int(_BYTES_ACKED.unpack_from(info, _BYTES_ACKED_AT)[0])


def unsent_or_unacknowledged(sock: socket.socket) -> int:
    """Bytes written to a socket that the peer has not acknowledged (SIOCOUTQ)."""
    return _queue(sock, _SIOCOUTQ)


def unread(sock: socket.socket) -> int:
    """Bytes that wait to be read (SIOCINQ)."""
    return _queue(sock, _SIOCINQ)


def _queue(sock: socket.socket, request: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(sock, request, bytes(4)))[0])


class Routes:
    """Asks the kernel for routes and interfaces of the network namespace in which it was made."""

    def __init__(self, news: bool = False) -> None:
        """``news``: it becomes readable when routes, addresses, interfaces or their queues change."""
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._sock.settimeout(5.0)
        self.news: socket.socket | None = None
        if news:
            self.news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            self.news.bind((0, _CHANGES))
            self.news.setblocking(False)

    def take_news(self) -> bool:
        """Whether anything changed since the last call, as far as can be known."""
        changed = False
        if self.news is not None:
            with contextlib.suppress(BlockingIOError):
                while True:
                    try:
                        self.news.recv(1 << 16)
                    except OSError as e:
                        if e.errno != errno.ENOBUFS:  # more than fitted
                            raise
                    changed = True
        return changed

    def way_out(self, own: int, peer: int, mark: int) -> int:
        """Index of the interface by which marked packets from ``own`` to ``peer`` leave now; 0: there is none."""
        attributes = b"".join(_ATTRIBUTE.pack(8, kind) + value for kind, value in (
            (_RTA_DST, peer.to_bytes(4, "big")), (_RTA_SRC, own.to_bytes(4, "big")),
            (_RTA_MARK, struct.pack("=I", mark))))
        body = _ROUTE.pack(socket.AF_INET, 32, 32, 0, 0, 0, 0, 0, 0) + attributes
        answer = self._ask(_RTM_GETROUTE, _RTM_NEWROUTE, body)
        return int.from_bytes(_attribute(answer, _ROUTE.size, _RTA_OIF), sys.byteorder)

    def link(self, index: int) -> tuple[int, int]:
        """(flags, as IFF_UP, of an interface; the group that it is in); (0, -1): it is gone."""
        body = _LINK.pack(socket.AF_UNSPEC, 0, index, 0, 0)
        answer = self._ask(_RTM_GETLINK, _RTM_NEWLINK, body)
        group = _attribute(answer, _LINK.size, _IFLA_GROUP)
        if not group:
            return 0, -1
        return _LINK.unpack_from(answer, _HEADER.size)[3], int.from_bytes(group, sys.byteorder)

    def has_hooks(self, index: int) -> bool:
        """Whether filters of tc may see an interface's packets (``ingress`` or ``clsact`` is there), and so send
        copies of them elsewhere."""
        body = _QDISC.pack(socket.AF_UNSPEC, index, 0, 0, 0)
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), _RTM_GETQDISC, _REQUEST | _DUMP, 1, 0) + body)
        found = False
        while True:
            answer = self._sock.recv(1 << 16)
            at = 0
            while at + _HEADER.size <= len(answer):
                length, kind = struct.unpack_from("=IH", answer, at)
                if kind in (_DONE, _ERROR):
                    return found
                if kind == _RTM_NEWQDISC and _QDISC.unpack_from(answer, at + _HEADER.size)[1] == index:
                    found |= _attribute(answer[at:at + length], _QDISC.size, _TCA_KIND) in _HOOKS
                at += length + 3 & ~3

    def _ask(self, question: int, wanted: int, body: bytes) -> bytes:
        """The kernel's answer; empty: it is an error."""
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), question, _REQUEST, 1, 0) + body)
        answer = self._sock.recv(1 << 15)
        return answer if struct.unpack_from("=IH", answer)[1] == wanted else b""

    def close(self) -> None:
        """No more questions."""
        self._sock.close()
        if self.news is not None:
            self.news.close()


def _attribute(answer: bytes, fixed: int, wanted: int) -> bytes:
    """The value of an attribute behind the answer's fixed part; empty: it is not there."""
    at = _HEADER.size + fixed
    while at + _ATTRIBUTE.size <= len(answer):
        size, name = _ATTRIBUTE.unpack_from(answer, at)
        if name == wanted:
            return answer[at + _ATTRIBUTE.size:at + size]
        at += max(size + 3 & ~3, _ATTRIBUTE.size)
    return b""


class Connections:
    """Asks the kernel about TCP connections of the network namespace in which it was made (sock_diag(7))."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
        self._sock.settimeout(5.0)

    def unacknowledged(self, own: int, own_port: int, peer: int, peer_port: int) -> int | None:
        """Bytes that this IPv4 connection may still have to send, again or for the first time; None: there is no
        such connection, or nothing of it but a memory (TIME-WAIT)."""
        answer = self._ask(_SOCK_DIAG_BY_FAMILY, _REQUEST, own, own_port, peer, peer_port)
        if struct.unpack_from("=IH", answer)[1] == _ERROR:
            return None
        state = answer[_HEADER.size + 1]
        if state in (_TIME_WAIT, _CLOSE):
            return None
        return int(_U32.unpack_from(answer, _HEADER.size + _WQUEUE_AT)[0])

    def abort(self, own: int, own_port: int, peer: int, peer_port: int) -> bool:
        """End a connection: its program gets ECONNABORTED. False: there is none, or this kernel cannot do it
        (CONFIG_INET_DIAG_DESTROY)."""
        answer = self._ask(_SOCK_DESTROY, _REQUEST | _ACK, own, own_port, peer, peer_port)
        return (int(struct.unpack_from("=IH", answer)[1]) == _ERROR
                and int(struct.unpack_from("=i", answer, _HEADER.size)[0]) == 0)

    def _ask(self, question: int, flags: int, own: int, own_port: int, peer: int, peer_port: int) -> bytes:
        ident = struct.pack("!HH4s12x4s12x", own_port, peer_port, own.to_bytes(4, "big"), peer.to_bytes(4, "big"))
        body = struct.pack("=BBBxI", socket.AF_INET, _TCP, 0, _ALL_STATES) + ident + bytes(4) + _NO_COOKIE
        self._sock.send(_HEADER.pack(_HEADER.size + len(body), question, flags, 1, 0) + body)
        return self._sock.recv(1 << 15)

    def close(self) -> None:
        """No more questions."""
        self._sock.close()
