"""What the host says about the memory it shares, checked before any of it is used.

The rules are those of RAKIS' initialisation checker, with two that it lacks: a region that encloses another one
overlaps it, too; and every socket's regions are looked at, not the first one's again and again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from smtstack.errors import ConfigError
from smtstack.rings.layout import CONSUMER_AT, ENTRIES_AT, FLAGS_AT, PRODUCER_AT, RINGS, RingConfig

_POINTER: Final = 1 << 64
#: Indices and entries are read whole only where they are aligned.
ALIGNED: Final = 8


@dataclass(frozen=True, slots=True)
class Range:
    """Addresses [``start``, ``start + length``), and what is there."""

    name: str
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class SharedRing:
    """A ring where the host says that it is: addresses, and sizes in bytes and entries."""

    name: str
    base: int
    length: int
    entries: int
    producer: int
    consumer: int
    flags: int
    descriptors: int


@dataclass(frozen=True, slots=True)
class SharedSocket:
    """All that the host says about one socket."""

    descriptor: int
    """The socket's, as long as it is open to map the rings by."""
    umem: Range
    frame_size: int
    rings: Sequence[SharedRing]


def check_sockets(sockets: Sequence[SharedSocket], config: RingConfig, trusted: Sequence[Range]) -> None:
    """Raises :class:`ConfigError`, with the rule that was broken, unless all of it may be used.

    ``trusted``: memory of our own, which must not be where the host's is.
    """
    taken = list(trusted)
    for range_ in trusted:
        check_range(range_)
    for number, socket in enumerate(sockets):
        _check_socket(socket, number, config)
        for range_ in (socket.umem, *(Range(ring.name, ring.base, ring.length) for ring in socket.rings)):
            for other in taken:
                if overlap(range_, other):
                    raise ConfigError(said(number, range_.name, f"overlaps {other.name}"))
            taken.append(range_)


def overlap(one: Range, other: Range) -> bool:
    """Whether they have a byte in common, also where one encloses the other."""
    return one.start < other.start + other.length and other.start < one.start + one.length


def said(socket: int, name: str, what: str) -> str:
    """Why memory is refused."""
    return f"the host's memory is refused: socket {socket}: {name} {what}"


def check_range(range_: Range, socket: int = 0) -> None:
    """Raises :class:`ConfigError` for what cannot be a range of addresses."""
    if range_.start == 0:
        raise ConfigError(said(socket, range_.name, "is at address 0"))
    if range_.length <= 0:
        raise ConfigError(said(socket, range_.name, "has no byte"))
    if range_.start < 0 or range_.start + range_.length > _POINTER:
        raise ConfigError(said(socket, range_.name, "goes past the end of all addresses"))


def _check_socket(socket: SharedSocket, number: int, config: RingConfig) -> None:
    # RAKIS: descriptors are positive; 0 is the standard input of who shares.
    if socket.descriptor <= 0:
        raise ConfigError(said(number, "the descriptor", f"is {socket.descriptor}"))
    check_range(socket.umem, number)
    if socket.frame_size <= 0 or socket.frame_size & (socket.frame_size - 1):
        raise ConfigError(said(number, "the size of a frame", f"is {socket.frame_size}, no power of two"))
    if socket.frame_size != config.frame_size:
        raise ConfigError(said(number, "the size of a frame", f"is {socket.frame_size}, not {config.frame_size}"))
    if socket.umem.length != config.umem_bytes:
        raise ConfigError(said(number, socket.umem.name, f"has {socket.umem.length} bytes, not "
                                                         f"{config.umem_bytes}"))
    if socket.umem.start % ALIGNED:
        raise ConfigError(said(number, socket.umem.name, "is not aligned"))
    if [ring.name for ring in socket.rings] != list(RINGS):
        raise ConfigError(said(number, "the rings", f"are not {', '.join(RINGS)}"))
    for ring in socket.rings:
        _check_ring(ring, number, config)


def _check_ring(ring: SharedRing, number: int, config: RingConfig) -> None:
    check_range(Range(ring.name, ring.base, ring.length), number)
    if ring.base % ALIGNED:
        raise ConfigError(said(number, ring.name, "is not aligned"))
    if ring.entries <= 0 or ring.entries & (ring.entries - 1):
        raise ConfigError(said(number, ring.name, f"has {ring.entries} entries, no power of two"))
    if ring.entries != config.ring_entries(ring.name):
        raise ConfigError(said(number, ring.name, f"has {ring.entries} entries, not "
                                                  f"{config.ring_entries(ring.name)}"))
    length = config.ring_bytes(ring.name)
    if ring.length != length:
        raise ConfigError(said(number, ring.name, f"has {ring.length} bytes, not {length}"))
    for what, pointer, offset in (
            ("producer", ring.producer, PRODUCER_AT), ("consumer", ring.consumer, CONSUMER_AT),
            ("flags", ring.flags, FLAGS_AT), ("entries", ring.descriptors, ENTRIES_AT)):
        if pointer == 0:
            raise ConfigError(said(number, ring.name, f"has its {what} at address 0"))
        if pointer != ring.base + offset:
            raise ConfigError(said(number, ring.name, f"has its {what} {pointer - ring.base} bytes behind its "
                                                      f"beginning, not {offset}"))
