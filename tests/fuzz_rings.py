"""Targets of the fuzzer: what a host that is not trusted says of a ring, and what is asked of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from smtstack.errors import ConfigError
from smtstack.ringio import client as io_client
from smtstack.ringnic import messages
from smtstack.ringnic.client import said_untrusted
from smtstack.rings.layout import RINGS
from smtstack.rings.uring_layout import MEMORIES

if TYPE_CHECKING:
    from tests.fuzz import Target

_STARTS = {name: 4096 * number for number, name in enumerate((*RINGS, "umem"), 1)}
_SAID: dict[str, Any] = {
    "rings": [{"name": name, "entries": 64, "length": 4096, "producer": 0, "consumer": 64, "flags": 128,
               "descriptors": 192} for name in RINGS],
    "frame_size": 2048, "mac": "020000000001", "backing": messages.MEMORY}
_ANSWERS = [json.dumps(_SAID).encode(), messages.refusal(ConfigError("no")), b"[" * 4096,
            json.dumps({**_SAID, "frame_size": float("inf")}).encode(), json.dumps({"rings": 3}).encode()]


_SAID_OF_OPERATIONS: dict[str, Any] = {"entries": 256, "completions": 512, "buffer_size": 65536, "base": 4096,
                                       "pointers": [0, 4, 8, 12, 64, 0], "backing": messages.KERNEL}
_OF_OPERATIONS = [json.dumps({**_SAID_OF_OPERATIONS, **change}).encode() for change in (
    {}, {"pointers": 3}, {"pointers": ["x"] * 6}, {"entries": float("inf")})]


def _said_of_operations(buf: bytes) -> None:
    places = dict.fromkeys(MEMORIES, 1 << 20)
    io_client.said_untrusted(messages.read_untrusted(buf), 3, places, places)


def _said(buf: bytes) -> None:
    said_untrusted(messages.read_untrusted(buf), 3, _STARTS, 1 << 20)


def targets() -> list[Target]:
    """All of them."""
    from tests.fuzz import Target

    of = "smtstack.ringnic"
    opening = messages.Opening(0x0A000001, 2000, 146).pack()
    return [
        Target(f"{of}.messages.read_untrusted", messages.read_untrusted, _ANSWERS, (ConfigError,), share=0.1),
        Target(f"{of}.messages.Opening.read_untrusted", messages.Opening.read_untrusted,
               [opening, b"{}", b"[" * 4096], (ConfigError,), share=0.1),
        Target("smtstack.ringio.client.said_untrusted", _said_of_operations, _OF_OPERATIONS,
               (ConfigError, TypeError, ValueError, KeyError, OverflowError), share=0.2),
        # What its caller takes for a refusal.
        Target(f"{of}.client.said_untrusted", _said, _ANSWERS,
               (ConfigError, TypeError, ValueError, KeyError, OverflowError, AttributeError), share=0.2)]
