"""The program that gives a guarded process its share of UDP: a range of ports, and the fragments of what goes
there.

The first fragment says by its port where a packet goes; the others follow it, by (source, destination, protocol,
identification). RAKIS goes by the identification alone, so that two senders' fragments may be taken for each
other's. A fragment that overtakes the first one goes to the host's kernel, which cannot use it.
"""

from __future__ import annotations

import struct
from typing import Final

from smtstack.io import ebpf
from smtstack.udp.wire import PROTO_UDP
from smtstack.wire.ethernet import ETHERTYPE_IPV4
from smtstack.wire.frame import DST_AT, ETHERTYPE_AT, IP_OFFSET, PROTOCOL_AT, SRC_AT, TRANSPORT_OFFSET
from smtstack.wire.ipv4 import VERSION_IHL

#: Packets of which fragments are under way; the oldest is forgotten (RAKIS: 128, too).
FRAGMENTED: Final = 128
_MAP_CREATE, _LRU_HASH, _KEY_LEN = 0, 9, 12
_LOOKUP, _UPDATE, _DELETE, _REDIRECT_MAP = 1, 2, 3, 51
_PASS: Final = 2
_DATA, _DATA_END, _QUEUE = 0, 4, 16
_ID_AT, _PLACE_AT, _DPORT_AT = IP_OFFSET + 4, IP_OFFSET + 6, TRANSPORT_OFFSET + 2
# Where on the stack key and value are.
_KEY, _VALUE = -16, -4
_LOAD, _LOAD_HALF, _LOAD_BYTE, _STORE, _STORE_CONSTANT = 0x61, 0x69, 0x71, 0x63, 0x62
_MOVE_REG, _MOVE, _ADD, _AND, _OR, _SWAP = 0xBF, 0xB7, 0x07, 0x57, 0x47, 0xDC
_JUMP, _JUMP_EQUAL, _JUMP_UNEQUAL, _JUMP_UNEQUAL_WORD, _JUMP_AT_LEAST, _JUMP_ABOVE_REG = (
    0x05, 0x15, 0x55, 0x56, 0x35, 0x2D)
_CONSTANT64, _CALL, _EXIT = 0x18, 0x85, 0x95
#: The register by which the stack is found.
_STACK: Final = 10


def fragment_map() -> int:
    """A map of the packets of which fragments are to come; its descriptor. Raises OSError, NotImplementedError."""
    return ebpf.call(_MAP_CREATE, struct.pack("=IIII", _LRU_HASH, _KEY_LEN, 4, FRAGMENTED) + bytes(104))


class _Code:
    """Instructions, with jumps to names."""

    def __init__(self) -> None:
        self._steps: list[tuple[bytes, str]] = []
        self._places: dict[str, int] = {}

    def add(self, code: int, target: int = 0, source: int = 0, offset: int = 0, constant: int = 0,
            to: str = "") -> None:
        """An instruction; ``to``: where it jumps to."""
        self._steps.append((ebpf.instruction(code, target, source, offset, constant), to))

    def place(self, name: str) -> None:
        """What comes next has this name."""
        self._places[name] = len(self._steps)

    def map(self, descriptor: int) -> None:
        """Register 1 is this map: an instruction as long as two."""
        self.add(_CONSTANT64, 1, 1, constant=descriptor)
        self.add(0)

    def on_fragments(self, fragments: int, function: int) -> None:
        """Call ``function`` on the map, with our key."""
        self.map(fragments)
        self.add(_MOVE_REG, 2, _STACK)
        self.add(_ADD, 2, constant=_KEY)
        self.add(_CALL, constant=function)

    def made(self) -> bytes:
        """Instructions as the kernel takes them."""
        out = []
        for number, (step, to) in enumerate(self._steps):
            offset = struct.pack("=h", self._places[to] - number - 1) if to else step[2:4]
            out.append(step[:2] + offset + step[4:])
        return b"".join(out)


def udp_split_program(table: int, fragments: int, ip: int, first_port: int) -> bytes:
    """Instructions that give UDP to ``ip`` and ``first_port`` or above to the socket in ``table``, with the
    fragments that follow (``fragments``: :func:`fragment_map`), and all else to the host's kernel."""
    def swapped(value: int, size: int) -> int:
        return int.from_bytes(value.to_bytes(size, "big"), "little")

    code = _Code()
    add = code.add
    # Register 6: the context, 2: the packet, 3: its end, 7: flags and offset, 8: the port.
    add(_MOVE_REG, 6, 1)
    add(_LOAD, 2, 1, _DATA)
    add(_LOAD, 3, 1, _DATA_END)
    add(_MOVE_REG, 4, 2)
    add(_ADD, 4, constant=TRANSPORT_OFFSET)
    add(_JUMP_ABOVE_REG, 4, 3, to="pass")
    for load, at, value in ((_LOAD_HALF, ETHERTYPE_AT, swapped(ETHERTYPE_IPV4, 2)),
                            (_LOAD_BYTE, IP_OFFSET, VERSION_IHL), (_LOAD_BYTE, PROTOCOL_AT, PROTO_UDP),
                            (_LOAD, DST_AT, swapped(ip, 4))):
        add(load, 5, 2, at)
        add(_JUMP_UNEQUAL_WORD, 5, constant=value, to="pass")
    for number, at in enumerate((SRC_AT, DST_AT)):
        add(_LOAD, 5, 2, at)
        add(_STORE, _STACK, 5, _KEY + 4 * number)
    add(_LOAD_HALF, 5, 2, _ID_AT)
    add(_OR, 5, constant=PROTO_UDP << 16)
    add(_STORE, _STACK, 5, _KEY + 8)
    add(_LOAD_HALF, 7, 2, _PLACE_AT)
    add(_MOVE_REG, 5, 7)
    add(_AND, 5, constant=swapped(0x1FFF, 2))
    add(_JUMP_UNEQUAL, 5, to="later")
    add(_MOVE_REG, 4, 2)
    add(_ADD, 4, constant=_DPORT_AT + 2)
    add(_JUMP_ABOVE_REG, 4, 3, to="pass")
    add(_LOAD_HALF, 8, 2, _DPORT_AT)
    add(_SWAP, 8, constant=16)
    add(_AND, 7, constant=swapped(0x2000, 2))
    add(_JUMP_AT_LEAST, 8, constant=first_port, to="ours")
    # The host's. One of ours before it may have had the same identification.
    add(_JUMP_EQUAL, 7, to="pass")
    code.on_fragments(fragments, _DELETE)
    add(_JUMP, to="pass")
    code.place("ours")
    add(_JUMP_EQUAL, 7, to="take")
    add(_STORE_CONSTANT, _STACK, offset=_VALUE, constant=1)
    add(_MOVE_REG, 3, _STACK)
    add(_ADD, 3, constant=_VALUE)
    add(_MOVE, 4)
    code.on_fragments(fragments, _UPDATE)
    add(_JUMP, to="take")
    code.place("later")
    code.on_fragments(fragments, _LOOKUP)
    add(_JUMP_EQUAL, 0, to="pass")
    code.place("take")
    add(_LOAD, 2, 6, _QUEUE)
    code.map(table)
    add(_MOVE, 3, constant=_PASS)
    add(_CALL, constant=_REDIRECT_MAP)
    add(_EXIT)
    code.place("pass")
    add(_MOVE, 0, constant=_PASS)
    add(_EXIT)
    return code.made()
