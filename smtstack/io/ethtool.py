"""What a network interface of the kernel's does for its users (``ethtool -K``), switched on and off; and its link.

Linux ``<linux/ethtool.h>``; always in the network namespace of the thread that calls. Needs CAP_NET_ADMIN, but for
:func:`has_link`.
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
_GLINK = 0x0A


def switch(interface: str, commands: tuple[int, ...], on: bool) -> None:
    """Switch offloads, as :data:`TSO`, of an interface. Raises :class:`Unsupported` if the kernel refuses."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        for command in commands:
            try:
                _ask(s, interface, command, int(on))
            except OSError as e:
                raise Unsupported(f"{interface}: the kernel refuses to switch offload {command:#x} "
                                  f"{'on' if on else 'off'}: {e.strerror}") from None


def has_link(interface: str) -> bool:
    """Whether it has a carrier: of a veth, whether both its ends are up. False where the driver does not say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        try:
            return bool(_ask(s, interface, _GLINK, 0))
        except OSError:
            return False


def _ask(s: socket.socket, interface: str, command: int, value: int) -> int:
    """One number to the driver, and the one it leaves in its place. Raises OSError."""
    asked = ctypes.create_string_buffer(struct.pack("II", command, value), 8)
    fcntl.ioctl(s, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), ctypes.addressof(asked)))
    return int(struct.unpack("II", asked.raw)[1])
