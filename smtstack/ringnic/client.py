"""A guarded process asks the control process of its interface for a ring, and checks what it gets."""

from __future__ import annotations

import mmap
import os
import socket
import struct
from typing import Any

from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.io import xdp
from smtstack.io.memory import address_of, map_untrusted, other_ranges
from smtstack.ringnic import messages
from smtstack.ringnic.bell import SIZE, Bell
from smtstack.ringnic.socket import RingSocket
from smtstack.rings.checker import Range, SharedRing, SharedSocket, check_sockets
from smtstack.rings.layout import RINGS, UMEM, RingConfig
from smtstack.rings.memory import SharedMemory
from smtstack.rings.xsk import CertifiedXsk

#: Seconds that the control process gets to answer.
_PATIENCE_S = 10.0


def has_ring(interface: str) -> bool:
    """Whether the interface, in our network namespace, has a control process: its link has hosting ``ring``.

    Only root's counts, or our own: nobody else decides for us how our packets go.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(messages.address(interface))
            uid = struct.unpack("3i", probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[1]
        except OSError:
            return False
    return uid in (0, os.geteuid())


def open_ring(interface: str, ip: int, port: int, protocol: int, certified: bool = True) -> RingSocket:
    """A ring for the packets of (address, port, protocol). Sizes are ours, whatever the host says.

    Raises :class:`ConfigError` if the host's memory may not be used or the ring is taken, :class:`Unsupported`
    if there is none.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    descriptors: dict[str, int] = {}
    try:
        fields, descriptors = _ask(connection, interface, messages.Opening(ip, port, protocol))
        return _made(interface, RingConfig(), fields, descriptors, connection, certified)
    except BaseException:
        connection.close()
        for descriptor in descriptors.values():
            os.close(descriptor)
        raise


def _ask(connection: socket.socket, interface: str,
         opening: messages.Opening) -> tuple[dict[str, Any], dict[str, int]]:
    connection.settimeout(_PATIENCE_S)
    try:
        connection.connect(messages.address(interface))
        connection.send(opening.pack())
        answer, descriptors, _flags, _address = socket.recv_fds(connection, messages.LONGEST,
                                                                len(messages.DESCRIPTORS))
    except OSError as e:
        raise Unsupported(f"{interface} has no ring: {e.strerror or e}; give its link hosting=ring, or "
                          "--nic-hosting ring") from None
    try:
        fields = messages.read_untrusted(answer)
        messages.check(fields)
        if len(descriptors) != len(messages.DESCRIPTORS):
            raise ConfigError("the host sent too few descriptors")
    except SmtError:
        for descriptor in descriptors:
            os.close(descriptor)
        raise
    return fields, dict(zip(messages.DESCRIPTORS, descriptors, strict=True))


def _made(interface: str, config: RingConfig, fields: dict[str, Any], descriptors: dict[str, int],
          connection: socket.socket, certified: bool) -> RingSocket:
    mappings: dict[str, mmap.mmap] = {}
    try:
        mappings[UMEM] = map_untrusted(descriptors["umem"], config.umem_bytes)
        in_memory = fields.get("backing") != messages.KERNEL
        where, size = messages.places(config)
        for ring in RINGS:
            length = config.ring_bytes(ring)
            mappings[ring] = (map_untrusted(descriptors["rings"], size, where[ring], length) if in_memory
                              else xdp.map_ring(descriptors["rings"], ring, length))
        starts = {name: address_of(mapping) for name, mapping in mappings.items()}
        shared = said_untrusted(fields, descriptors["rings"], starts, len(mappings[UMEM]))
        ours = [Range("memory of ours", start, length) for start, length in other_ranges(starts.values())]
        check_sockets([shared], config, ours)
        mac = bytes.fromhex(str(fields.get("mac")))
        if len(mac) != 6:
            raise ValueError
        page = Bell(map_untrusted(descriptors["page"], SIZE))
    except OSError as e:
        _close(mappings)
        raise ConfigError(f"the host's memory is refused: {e.strerror}") from None
    except (TypeError, ValueError, AttributeError, KeyError, OverflowError):
        _close(mappings)
        raise ConfigError("the host's memory is refused: it does not say where what is") from None
    except SmtError:
        _close(mappings)
        raise
    memories = {name: SharedMemory(name, mapping) for name, mapping in mappings.items()}
    # The kernel has used this socket for nobody before: its indices are 0.
    xsk = CertifiedXsk(memories, config, certified)
    # No use any more, and nothing by which one could do more than by the memory.
    os.close(descriptors.pop("rings"))
    return RingSocket(interface, mac, memories, list(mappings.values()), xsk, page, descriptors, connection,
                      in_memory)


def said_untrusted(fields: dict[str, Any], descriptor: int, starts: dict[str, int], umem: int) -> SharedSocket:
    """What the host says of a socket, whose memory we have mapped at ``starts``, for the checker. Raises
    TypeError, ValueError, KeyError for what is not there."""
    rings = []
    for ring in fields["rings"]:
        name = str(ring["name"])
        base = starts[name]
        entries, length, producer, consumer, flags, behind = (
            int(ring[key]) for key in ("entries", "length", "producer", "consumer", "flags", "descriptors"))
        rings.append(SharedRing(name, base, length, entries, base + producer, base + consumer, base + flags,
                                base + behind))
    return SharedSocket(descriptor, Range(UMEM, starts[UMEM], umem), int(fields["frame_size"]), rings)


def _close(mappings: dict[str, mmap.mmap]) -> None:
    for mapping in mappings.values():
        mapping.close()
