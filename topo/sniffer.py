"""Records what passes an interface, either way: ``python -m topo.sniffer IFACE FILE`` in the host's namespace.

Says "sniffing" on stderr when it is ready, ends on SIGTERM, and then prints as JSON how many frames it
recorded and how many it missed: a capture that misses frames proves nothing.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import struct
import sys
import time

from smtstack.capture.pcapfile import Writer

_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SOL_PACKET, _PACKET_STATISTICS = 263, 6
_BUFFER = 64 << 20
_LONGEST = 65_600
#: Seconds between looks at the stop flag.
_LOOK_S = 0.05


def sniff(interface: str, path: str) -> tuple[int, int]:
    """Record until SIGTERM; (frames recorded, frames missed). The file is for root alone: it may hold secrets."""
    stopped = False

    def stop(*_args: object) -> None:
        nonlocal stopped
        stopped = True

    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock, \
            open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
        sock.bind((interface, _ETH_P_ALL))
        writer = Writer(file)
        signal.signal(signal.SIGTERM, stop)
        print("sniffing", file=sys.stderr, flush=True)
        count = missed = 0
        while True:
            # What was on the wire before SIGTERM is in the socket already: empty it, then end.
            sock.settimeout(0 if stopped else _LOOK_S)
            try:
                frame = sock.recv(_LONGEST)
            except (BlockingIOError, TimeoutError):
                missed += struct.unpack("II", sock.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))[1]
                if stopped:
                    return count, missed
                continue
            writer.write(time.time_ns(), frame)
            count += 1


if __name__ == "__main__":
    recorded, lost = sniff(sys.argv[1], sys.argv[2])
    print(json.dumps({"recorded": recorded, "missed": lost}))
