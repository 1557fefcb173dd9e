"""Commands as people type them, and replies as ``redis-cli`` prints them."""

from __future__ import annotations

import json
from typing import Any

from workloads.kv.client import KvError, is_error

_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\a": "\\a", "\b": "\\b", '"': '\\"', "\\": "\\\\"}


def quoted(data: bytes) -> str:
    """``"a\\x00b"``: printable, whatever it holds."""
    return '"' + "".join(_ESCAPES.get(char) or (char if " " <= char <= "~" else f"\\x{ord(char):02x}")
                         for char in data.decode("latin-1")) + '"'


def formatted(reply: Any, status: bool = False, indent: str = "") -> str:
    """For a terminal. ``status``: bytes are a status (``OK``), not a value: the parser does not tell."""
    if is_error(reply) or isinstance(reply, KvError):
        return f"(error) {reply}"
    if reply is None:
        return "(nil)"
    if isinstance(reply, bool | int):
        return f"(integer) {int(reply)}"
    if isinstance(reply, bytes):
        return reply.decode("latin-1") if status else quoted(reply)
    if isinstance(reply, list):
        if not reply:
            return "(empty array)"
        width = len(str(len(reply)))
        inner = indent + " " * (width + 2)
        lines = [f"{n:>{width}}) {formatted(item, False, inner)}" for n, item in enumerate(reply, 1)]
        return f"\n{indent}".join(lines)
    return str(reply)


def raw(reply: Any) -> bytes:
    """For pipes: values as they are, a line each."""
    if is_error(reply) or isinstance(reply, KvError):
        return str(reply).encode()
    if isinstance(reply, list):
        return b"\n".join(map(raw, reply))
    return b"" if reply is None else reply if isinstance(reply, bytes) else str(reply).encode()


def as_json(reply: Any) -> str:
    """One line. Bytes are text; those that are no UTF-8 appear as surrogates (``\\udcff``)."""
    return json.dumps(_plain(reply))


def _plain(reply: Any) -> Any:
    if is_error(reply) or isinstance(reply, KvError):
        return {"error": str(reply)}
    if isinstance(reply, bytes):
        return reply.decode(errors="surrogateescape")
    return [_plain(item) for item in reply] if isinstance(reply, list) else reply
