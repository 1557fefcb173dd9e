"""The capsules of the block store: one message carries a command or its completion, with all its data.

The shape is that of NVMe over Fabrics with data in the capsule; opcodes and status codes are NVMe's own (NVM
Express Base Specification 2.0, figures "Status Code" and "Opcodes for NVM Commands"; NVM Command Set 1.0). All
numbers are little-endian, as there.

Command, 32 bytes, then its data::

    offset  bytes
         0      1  opcode
         1      1  flags: FUA
         2      2  cid: command id, which is the slot it takes in the queue
         4      4  nsid: namespace
         8      8  association: the controller, from the completion of Connect; 0 in a Connect
        16      4  sequence: how many commands this slot has had, this one included
        20      2  nlb: blocks less one, as in NVMe
        22      2  0
        24      8  slba: the first block

Completion, 24 bytes, then the data of a read::

         0      2  cid
         2      2  status: status code type << 8 | status code
         4      4  sequence
         8      8  association
        16      8  result: of Connect the blocks of the namespace, else 0

A capsule has no length field: the transport delivers messages, so a capsule is there wholly or not at all, and
data is what follows the header. A Connect has 24 bytes of data: the host id (16 bytes), the wanted depth of the
queue (u32), 4 bytes 0; its completion has 12: depth (u32), most blocks of a command (u32), flags (u32,
:data:`CACHE`). NVMe asks for these by Identify and properties of an admin queue, which is left out here.
``association`` and ``sequence`` stand where NVMe has the metadata pointer: they let a command be sent again
(target.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct
from typing import Final

from smtstack.errors import BadPacket

#: Bytes of a logical block.
BLOCK: Final = 4096
#: Most blocks of a command (NVMe: MDTS), and commands of a queue.
MAX_BLOCKS: Final = 64
MAX_DEPTH: Final = 1024
#: The only namespace.
NSID: Final = 1
#: Flag of a write: be durable before it is completed.
FUA: Final = 1
#: Flag of Connect's completion: there is a volatile write cache, so what is to survive a power cut needs FUA or
#: Flush.
CACHE: Final = 1

_COMMAND: Final = Struct("<BBHIQIHHQ")
_COMPLETION: Final = Struct("<HHIQQ")
_WANTED: Final = Struct("<16sII")
_GRANTED: Final = Struct("<III")
COMMAND_LEN: Final = _COMMAND.size
COMPLETION_LEN: Final = _COMPLETION.size
HOST_ID_LEN: Final = 16


class Opcode(IntEnum):
    """What a command does. Connect and Disconnect are Fabrics commands in NVMe, opcode 7Fh with a type of their
    own; here the type is the low bits."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    CONNECT = 0x80
    DISCONNECT = 0x88


class Status(IntEnum):
    """What became of it, by NVMe's names: type << 8 | code (0: generic, 1: of the command, 2: media and data)."""

    SUCCESS = 0x000
    INVALID_COMMAND_OPCODE = 0x001
    INVALID_FIELD_IN_COMMAND = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    INVALID_NAMESPACE_OR_FORMAT = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    CONTROLLER_BUSY = 0x181
    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285

    @property
    def text(self) -> str:
        """NVMe's name of the status: ``LBA Out of Range``."""
        words = self.name.replace("_", " ").title().replace("Lba", "LBA")
        return words.replace(" Of ", " of ").replace(" Or ", " or ").replace(" In ", " in ")


#: Opcodes whose capsule carries as many blocks as it names.
WITH_DATA: Final = frozenset({Opcode.WRITE, Opcode.COMPARE})
#: Opcodes that name blocks.
WITH_BLOCKS: Final = WITH_DATA | {Opcode.READ, Opcode.WRITE_ZEROES}


@dataclass(frozen=True, slots=True)
class Command:
    """A command capsule."""

    opcode: int
    """One of :class:`Opcode`, or what an initiator made up."""
    cid: int = 0
    sequence: int = 1
    association: int = 0
    slba: int = 0
    blocks: int = 1
    """How many, from 1 on (on the wire: less one)."""
    data: bytes = b""
    fua: bool = False
    nsid: int = NSID

    def pack(self) -> bytes:
        """The capsule."""
        return _COMMAND.pack(self.opcode, FUA if self.fua else 0, self.cid, self.nsid, self.association,
                             self.sequence, self.blocks - 1, 0, self.slba) + self.data


@dataclass(frozen=True, slots=True)
class Completion:
    """A completion capsule."""

    cid: int
    status: int
    """One of :class:`Status`."""
    sequence: int = 0
    association: int = 0
    result: int = 0
    data: bytes = b""

    def pack(self) -> bytes:
        """The capsule."""
        return _COMPLETION.pack(self.cid, self.status, self.sequence, self.association, self.result) + self.data


@dataclass(frozen=True, slots=True)
class Wanted:
    """The data of a Connect."""

    host: bytes
    """Who asks: the association that it had before ends."""
    depth: int

    def pack(self) -> bytes:
        """The data."""
        return _WANTED.pack(self.host, self.depth, 0)


@dataclass(frozen=True, slots=True)
class Granted:
    """The data of a successful Connect's completion."""

    depth: int
    """Command ids are below."""
    max_blocks: int
    cache: bool
    """Whether there is a volatile write cache: see :data:`CACHE`."""

    def pack(self) -> bytes:
        """The data."""
        return _GRANTED.pack(self.depth, self.max_blocks, CACHE if self.cache else 0)


def command_untrusted(buf: bytes) -> Command:
    """A command capsule; raises :class:`BadPacket` for what is none. Of an unknown opcode everything is taken: the
    target answers by a status."""
    if len(buf) < COMMAND_LEN:
        raise BadPacket(f"{len(buf)} bytes are too few for a command capsule")
    opcode, flags, cid, nsid, association, sequence, less, zero, slba = _COMMAND.unpack_from(buf)
    if zero or flags & ~FUA:
        raise BadPacket("reserved bits of a command capsule are set")
    data = buf[COMMAND_LEN:]
    wanted = (less + 1) * BLOCK if opcode in WITH_DATA else _WANTED.size if opcode == Opcode.CONNECT else 0
    if len(data) != wanted and (wanted or opcode in _OPCODES):
        raise BadPacket(f"opcode {opcode:#04x} of {less + 1} blocks with {len(data)} bytes of data")
    return Command(opcode, cid, sequence, association, slba, less + 1, data, bool(flags), nsid)


def completion_untrusted(buf: bytes) -> Completion:
    """A completion capsule; raises :class:`BadPacket`. Whether the data fits the command is for who knows it."""
    if len(buf) < COMPLETION_LEN:
        raise BadPacket(f"{len(buf)} bytes are too few for a completion capsule")
    cid, status, sequence, association, result = _COMPLETION.unpack_from(buf)
    if status not in _STATUS:
        raise BadPacket(f"status {status:#05x} is none that a target gives")
    return Completion(cid, status, sequence, association, result, buf[COMPLETION_LEN:])


def wanted_untrusted(data: bytes) -> Wanted:
    """The data of a Connect; raises :class:`BadPacket`."""
    if len(data) != _WANTED.size:
        raise BadPacket(f"a Connect with {len(data)} bytes of data")
    host, depth, zero = _WANTED.unpack(data)
    if zero or not 0 < depth <= MAX_DEPTH:
        raise BadPacket(f"a Connect for a queue of {depth}")
    return Wanted(host, depth)


def granted_untrusted(data: bytes) -> Granted:
    """The data of a successful Connect's completion; raises :class:`BadPacket`."""
    if len(data) != _GRANTED.size:
        raise BadPacket(f"a Connect completed with {len(data)} bytes of data")
    depth, max_blocks, flags = _GRANTED.unpack(data)
    if flags & ~CACHE or not 0 < depth <= MAX_DEPTH or not 0 < max_blocks <= MAX_BLOCKS:
        raise BadPacket(f"a queue of {depth}, {max_blocks} blocks a command, flags {flags:#x}")
    return Granted(depth, max_blocks, bool(flags))


_OPCODES: Final = frozenset(map(int, Opcode))
_STATUS: Final = frozenset(map(int, Status))
