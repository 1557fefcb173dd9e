"""What a network interface of the kernel's does for its users (``ethtool -K``), switched on and off.

Linux ``<linux/ethtool.h>``; always in the network namespace of the thread that calls. Needs CAP_NET_ADMIN.
"""

from __future__ import annotations

import ctypes
import fcntl
import socket
import struct
from typing import Final

from smtstack.errors import Unsupported

_SIOCETHTOOL = 0x8946
#: Transmit checksums, segmentation by the device, segmentation on the way to it; and segments put together again
#: from packets that arrive.
TX_CSUM: Final = 0x17
TSO: Final = 0x1F
GSO: Final = 0x24
GRO: Final = 0x2C


def switch(interface: str, commands: tuple[int, ...], on: bool) -> None:
    """Switch offloads, as :data:`TSO`, of an interface. Raises :class:`Unsupported` if the kernel refuses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for command in commands:
            value = ctypes.create_string_buffer(struct.pack("II", command, on))
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(s, _SIOCETHTOOL, request)
            except OSError as e:
                raise Unsupported(f"{interface}: the kernel refuses to switch offload {command:#x} "
                                  f"{'on' if on else 'off'}: {e.strerror}") from None
