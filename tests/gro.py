"""What a receiving kernel's GRO does to DATA in the shape of TCP: contiguous packets become one frame."""

from __future__ import annotations

from collections.abc import Iterable

from smtstack.wire import ipv4
from smtstack.wire.frame import (
    DPORT_AT,
    DST_AT,
    IP_OFFSET,
    PAYLOAD_AT,
    PLACE_AT,
    SIZE_AT,
    SPORT_AT,
    SRC_AT,
    TRANSPORT_OFFSET,
    TYPE_AT,
)
from smtstack.wire.overlay import MAX_IP, is_overlay


def _flow(frame: bytes) -> bytes:
    return frame[SRC_AT:DST_AT + 4] + frame[SPORT_AT:DPORT_AT + 2]


def _same(frame: bytes) -> bytes:
    """What GRO compares: "acknowledgement", header length and flags, "window", "options", and of IP the TOS."""
    ip = frame[IP_OFFSET + 1:IP_OFFSET + 2]
    return ip + frame[SIZE_AT:TYPE_AT + 3] + frame[TRANSPORT_OFFSET + 20:PAYLOAD_AT]


def _place(frame: bytes) -> int:
    return int.from_bytes(frame[PLACE_AT:PLACE_AT + 4], "big")


def merge(frames: Iterable[bytes], most: int = MAX_IP) -> list[bytes]:
    """Frames as the socket gets them; one of ours holds at most ``most`` bytes of IP."""
    out: list[bytes] = []
    #: By flow, the frame in ``out`` that may grow.
    growing: dict[bytes, int] = {}
    for frame in frames:
        if not is_overlay(frame):
            out.append(frame)
            continue
        flow = _flow(frame)
        at = growing.get(flow)
        size = int.from_bytes(frame[SIZE_AT:SIZE_AT + 2], "big")
        if at is not None:
            head, payload = out[at], frame[PAYLOAD_AT:]
            if (_same(head) == _same(frame) and _place(head) + len(head) - PAYLOAD_AT == _place(frame)
                    and len(head) - IP_OFFSET + len(payload) <= most):
                out[at] = _grown(head, payload)
            else:
                at = None
        if at is None:
            out.append(frame)
            at = growing[flow] = len(out) - 1
        if len(frame) - PAYLOAD_AT < size:
            # A shorter packet is the last.
            del growing[flow]
    return out


def _grown(frame: bytes, payload: bytes) -> bytes:
    old = ipv4.parse_untrusted(frame[IP_OFFSET:])
    new = ipv4.IPv4(old.src, old.dst, old.protocol, old.total_length + len(payload), old.identification, old.tos,
                    old.ttl, old.flags_fragment)
    return frame[:IP_OFFSET] + new.pack() + frame[TRANSPORT_OFFSET:] + payload
