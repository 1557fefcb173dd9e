"""``sendfile`` on a socket with TLS of ours: how often each byte is copied, and what zero-copy costs.

Copying: pages are read, sealed into new memory (software) or put in clear into the NIC's record map, and given
to TCP. The file may change at once: what was read is what is sent, and sent again.

Zero-copy (``TLS_TX_ZEROCOPY_RO``, in mode NIC only, for files that nobody changes): TCP has the file's own
pages. If they change before all is acknowledged, what TCP sends again is not what it sent before, the NIC seals
that, and the receiver finds a record that does not authenticate. That is the hazard which Linux's manual warns of.
"""

from __future__ import annotations

import os
from typing import Final

from smtstack.errors import LocalError
from smtstack.ktls_io.socket import CHUNK, KtlsSocket

_RECORD: Final = 16_384


def sendfile(connection: KtlsSocket, descriptor: int, offset: int, count: int) -> int:
    """Send ``count`` bytes of a file from ``offset`` on as records of data; how many there were before its end.

    Zero-copy where the socket has ``TLS_TX_ZEROCOPY_RO`` and a NIC seals. The socket waits; LocalError for one
    that does not. ``connection.copies`` counts.
    """
    if connection.sock.gettimeout() == 0:
        raise LocalError("sendfile needs a socket that waits")
    sent = 0
    while sent < count:
        by_reference = connection.zerocopy_ro and connection.ready_for_files()
        data = os.pread(descriptor, min(count - sent, _RECORD if by_reference else CHUNK), offset + sent)
        if not data:
            break
        connection.copies["read"] += len(data)
        if by_reference:
            connection.send_file_part(data, descriptor, offset + sent)
        else:
            connection.send(data, more=sent + len(data) < count)
        sent += len(data)
    connection.flush()
    return sent
