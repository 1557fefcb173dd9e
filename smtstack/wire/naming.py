"""Numbers that stand for something: an epoch on the wire, a peer and an RPC in tables.

Tables have integers for keys: hashing one costs a fraction of hashing a tuple.
"""

from __future__ import annotations

from typing import Final

#: Key epochs that the byte in the header tells apart.
EPOCHS: Final = 256


def wire_epoch(epoch: int) -> int:
    """What the header says of a key epoch. Of a difference of two: how many epochs one is ahead, 0 to 255."""
    return epoch % EPOCHS


def peer_key(ip: int, port: int) -> int:
    """One port of one host, in 48 bits."""
    return ip << 16 | port


def peer_of(key: int) -> tuple[int, int]:
    """The (ip, port) of a :func:`peer_key`."""
    return key >> 16, key & 0xFFFF


def rpc_key(rpc_id: int, epoch: int) -> int:
    """An RPC among those with one peer: its id at this side, and the epoch that the header says."""
    return rpc_id | epoch << 64
