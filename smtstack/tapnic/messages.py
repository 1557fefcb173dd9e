"""What applications and NICs of a host tell each other about flows: one JSON text a message, over SEQPACKET.

A connection is for one direction of one TCP connection at one NIC. The first message names it and has the shared
memory's descriptor with it; when the connection is closed, the application is done, or gone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from smtstack.crypto.stream_gcm import StreamKeys
from smtstack.errors import ConfigError

#: Bytes of the longest message.
LONGEST: Final = 4096
#: Words of requests.
TX: Final = "tx"
RX: Final = "rx"
TAKE: Final = "take"
GIVE: Final = "give"


def address(interface: str) -> str:
    """The abstract unix address of the NIC of an interface; only its own network namespace sees it."""
    return f"\0smtnet-nic-{interface}"


def tx_request(flow: bytes, keys: StreamKeys, policy: str, resync: str, context: bool) -> bytes:
    """Know a flow that leaves; with ``context``, encrypt it. The record map's descriptor goes with it."""
    return _pack(TX, {**_common(flow, keys, resync, context), "policy": policy})


def rx_request(flow: bytes, keys: StreamKeys, resync: str, context: bool, seq: int, number: int) -> bytes:
    """Decrypt a flow that arrives. The descriptor of the memory for marks goes with it."""
    return _pack(RX, {**_common(flow, keys, resync, context), "seq": seq, "number": number})


def context_request(take: bool) -> bytes:
    """Give the flow a context in the device, or take it back."""
    return _pack(TAKE if take else GIVE, {})


def answer(context: bool = False, number: int = 0, full: bool = False, busy: bool = False, hooked: bool = False,
           error: str = "") -> bytes:
    """What a NIC says to each request: its number, whether the flow has a context there, and if not, whether that
    is for want of room, or since the interface's packets may be mirrored (``hooked``); that the connection has
    records of an earlier offload under way; or what was wrong."""
    said: dict[str, Any] = {"context": context, "number": number, "full": full, "busy": busy, "hooked": hooked}
    return json.dumps({"error": error} if error else said).encode()


def read_untrusted(message: bytes) -> dict[str, Any]:
    """A message's fields; ``do`` is the request's word. Raises :class:`ConfigError` for what is none."""
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise ConfigError("this is no message to a NIC")
    return fields


def keys_untrusted(fields: Mapping[str, Any]) -> StreamKeys:
    """The keys in a request. Raises :class:`ConfigError`."""
    try:
        return StreamKeys(int(fields["version"]), str(fields["cipher"]), bytes.fromhex(fields["key"]),
                          bytes.fromhex(fields["iv"]))
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise ConfigError(f"a request to a NIC lacks something: {type(e).__name__}: {e}") from None


def _common(flow: bytes, keys: StreamKeys, resync: str, context: bool) -> dict[str, Any]:
    return {"flow": flow.hex(), "version": keys.version, "cipher": keys.cipher, "key": keys.key.hex(),
            "iv": keys.iv.hex(), "resync": resync, "context": context}


def _pack(word: str, fields: dict[str, Any]) -> bytes:
    return json.dumps({"do": word, **fields}).encode()
