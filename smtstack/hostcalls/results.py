"""What a host may say that a call has come to. It may lie (an Iago attack): what it says is checked against what
was asked before anybody uses it, as Gramine and RAKIS do. Sans-IO.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import Final

from smtstack.errors import PeerError

SEND: Final = 1
RECEIVE: Final = 2
WAIT: Final = 3
NEIGHBOUR: Final = 4
NAMES: Final = {SEND: "send", RECEIVE: "receive", WAIT: "wait", NEIGHBOUR: "neighbour"}
#: Errors that each call can have; any other one is a lie, and becomes EPERM.
ERRNOS: Final = {
    SEND: frozenset((errno.EAGAIN, errno.ENOBUFS, errno.EMSGSIZE, errno.ENETDOWN, errno.ENETUNREACH,
                     errno.EHOSTUNREACH, errno.ECONNREFUSED)),
    RECEIVE: frozenset((errno.EAGAIN, errno.EINTR, errno.ENETDOWN, errno.ECONNREFUSED)),
    WAIT: frozenset((errno.EINTR,)),
    NEIGHBOUR: frozenset((errno.EHOSTUNREACH,)),
}
#: Interruptions one after the other that are believed.
MAX_INTERRUPTED: Final = 64
_MULTICAST: Final = 0xE000_0000


class HostLie(PeerError):
    """The host says what cannot be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the host says, each word copied once: a result, or a negative errno; whose the data are."""

    result: int
    address: int = 0
    port: int = 0


def check(call: int, asked: int, answer: Answer, datagrams: bool) -> int:
    """The result, if it can be. ``asked``: bytes to send, or room for what comes; ``datagrams``: addresses are
    those of UDP.

    Raises OSError for an error that there is, :class:`HostLie` for anything else.
    """
    result, name = answer.result, NAMES[call]
    if result < 0:
        if -result in ERRNOS[call]:
            raise OSError(-result, f"{name}, says the host")
        raise HostLie(f"{name}: the host says error {-result}, which there is not")
    if call == WAIT:
        if result > 1:
            raise HostLie(f"wait: the host says {result} of one descriptor")
        return result
    if result > asked:
        raise HostLie(f"{name}: the host says {result} bytes, of {asked}")
    if call in (SEND, NEIGHBOUR) and result != asked:
        raise HostLie(f"{name}: the host says {result} bytes, of {asked} that go or come as a whole")
    if call == RECEIVE and datagrams and not (0 < answer.port < 1 << 16 and 0 < answer.address < _MULTICAST):
        raise HostLie(f"receive: the host says that it is from {answer.address:#x}:{answer.port}")
    return result
