"""Whether frames of full length get from one host to another and back: an ICMP echo, without the program ping."""

from __future__ import annotations

import errno
import os
import socket
import struct
import time

from smtstack.errors import SmtError
from smtstack.io.namespaces import within
from smtstack.wire.ipv4 import checksum

_ECHO_REQUEST, _ECHO_REPLY = 8, 0
_HEADER = struct.Struct("!BBHHH")  # type, code, checksum, identifier, number
_IP_HEADER = 20
# Linux <linux/in.h>: never cut a packet, whatever is known about the path.
_IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE = 10, 3
#: Seconds between attempts; over a link that loses frames one of them gets through.
_INTERVAL_S = 0.1


def echo(pid: int, address: str, length: int, patience_s: float) -> bool:
    """Whether ``address`` answers an IPv4 packet of ``length`` bytes from the namespace of process ``pid``.

    Raises :class:`SmtError` where the packet cannot even be sent.
    """
    return within(pid, lambda: _echo(address, length, patience_s))


def _echo(address: str, length: int, patience_s: float) -> bool:
    identifier = os.getpid() & 0xFFFF
    data = bytes(length - _IP_HEADER - _HEADER.size)
    deadline = time.monotonic() + patience_s
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as s:
        s.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_PROBE)
        s.connect((address, 0))
        number = 0
        while (now := time.monotonic()) < deadline:
            number += 1
            fields = (_ECHO_REQUEST, 0, identifier, number & 0xFFFF)
            bare = _HEADER.pack(*fields[:2], 0, *fields[2:]) + data
            try:
                s.send(_HEADER.pack(*fields[:2], checksum(bare + bytes(len(bare) & 1)), *fields[2:]) + data)
            except OSError as e:
                if e.errno == errno.EMSGSIZE:
                    raise SmtError(f"its own interface does not take packets of {length} bytes") from None
                if e.errno != errno.ENOBUFS:
                    raise SmtError(f"cannot send: {e.strerror}") from None
            if _answered(s, identifier, min(deadline, now + _INTERVAL_S)):
                return True
    return False


def _answered(s: socket.socket, identifier: int, until: float) -> bool:
    while (left := until - time.monotonic()) > 0:
        s.settimeout(left)
        try:
            packet = s.recv(65_536)
        except TimeoutError:
            return False
        except OSError:  # an ICMP error came for an earlier attempt
            continue
        kind, _code, _sum, theirs, _number = _HEADER.unpack_from(packet, (packet[0] & 15) * 4)
        if (kind, theirs) == (_ECHO_REPLY, identifier):
            return True
    return False
