"""What a host may answer to an operation: anything else is refused, whatever it means.

A host that is not trusted attacks by what its calls return, too: more bytes than were asked for, errors that
nobody expects there, descriptors that are somebody else's (Iago attacks; Checkoway and Shacham, ASPLOS '13).
"""

from __future__ import annotations

import errno
from typing import Final

from smtstack.rings.uring_layout import (
    ACCEPT,
    CLOSE,
    CONNECT,
    FSYNC,
    LISTEN,
    LOCK,
    NAME,
    OPENAT,
    POLL,
    READ,
    READY,
    RECV,
    SEND,
    SHUTDOWN,
    SIZE,
    SOCKET,
    TRUNCATE,
    WRITE,
)

#: Operations whose result is bytes moved: at most what was asked for. The second ones never move none.
_READS: Final = frozenset((READ, RECV))
_WRITES: Final = frozenset((WRITE, SEND))
#: Operations whose result names something new: a number from 0 on.
NAMING: Final = frozenset((ACCEPT, OPENAT, LISTEN, SOCKET))
#: No descriptor of Linux is so large (fs.nr_open), and no file.
MOST_DESCRIPTORS: Final = 1 << 30
LARGEST_FILE: Final = (1 << 63) - 1

_CAME_TO_NOTHING: Final = (errno.EINTR, errno.EAGAIN, errno.ECANCELED)
_FILE: Final = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EBADF, errno.EINVAL)
_CONNECTION: Final = (errno.ECONNRESET, errno.EPIPE, errno.ENOTCONN, errno.ETIMEDOUT, errno.ECONNABORTED,
                      errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENOBUFS, errno.ENOMEM,
                      errno.EBADF)
_NEW: Final = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
#: The errors that each operation may end with, as ``errno`` has them. Linux' manual pages name others, which
#: cannot come of what we ask for.
ERRORS: Final[dict[int, frozenset[int]]] = {code: frozenset(errors) for code, errors in {
    READ: (*_CAME_TO_NOTHING, errno.EIO, errno.EBADF, errno.EINVAL, errno.EISDIR),
    WRITE: (*_CAME_TO_NOTHING, *_FILE),
    FSYNC: (*_CAME_TO_NOTHING, *_FILE),
    RECV: (*_CAME_TO_NOTHING, *_CONNECTION, errno.ECONNREFUSED),
    SEND: (*_CAME_TO_NOTHING, *_CONNECTION),
    ACCEPT: (*_CAME_TO_NOTHING, *_NEW, errno.ECONNABORTED, errno.EBADF, errno.EINVAL, errno.EPERM),
    CONNECT: (*_CAME_TO_NOTHING, *_CONNECTION, errno.ECONNREFUSED, errno.EADDRNOTAVAIL, errno.EADDRINUSE,
              errno.EISCONN, errno.EACCES),
    SHUTDOWN: (*_CAME_TO_NOTHING, errno.ENOTCONN, errno.EBADF),
    CLOSE: (*_CAME_TO_NOTHING, errno.EBADF, errno.EIO, errno.ENOSPC, errno.EDQUOT),
    OPENAT: (*_NEW, errno.EACCES, errno.ENOENT, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ELOOP,
             errno.ENAMETOOLONG, errno.ENOSPC, errno.EROFS, errno.EPERM, errno.EIO, errno.EINTR),
    LISTEN: (*_NEW, errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES),
    SOCKET: (*_NEW, errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES),
    NAME: (errno.EBADF, errno.ENOTCONN, errno.ENOTSOCK, errno.EINVAL),
    SIZE: (errno.EBADF, errno.EIO),
    TRUNCATE: (errno.EINTR, *_FILE),
    LOCK: (errno.EAGAIN, errno.EBADF, errno.EINTR, errno.ENOLCK),
    POLL: (errno.EINTR, errno.ENOMEM),
}.items()}
#: What an operation has come to whose result was refused. Nobody knows what the host did.
REFUSED: Final = -errno.EIO


def is_believable(code: int, asked: int, result: int) -> bool:
    """Whether a host may answer so to operation ``code`` over ``asked`` bytes: -errno, or what it came to."""
    if result < 0:
        return -result in ERRORS[code]
    if code in _READS:
        return result <= asked
    if code in _WRITES:
        return result <= asked and (result > 0 or asked == 0)
    if code == POLL:
        return result <= asked and not result % READY.size
    if code in NAMING:
        return result < MOST_DESCRIPTORS
    if code == SIZE:
        return result <= LARGEST_FILE
    return result == 0
