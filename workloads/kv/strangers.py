"""Clients of another protocol: who speaks HTTP to this port must not have its lines taken for commands.

A web page can make a browser send nearly anything to any port, one line of it being the page's own; so can whoever
has a mail server, a proxy or a monitor connect here. RESP begins with ``*``; anything else is a line of text, of
which these are refused, and with them everything behind them:

* a line with a control character, from that character on: TLS, SSH's and databases' binary greetings;
* a word in the place of a command that has other characters than names of commands have: ``Host:``, ``{``;
* ``POST``, and a line that ends like HTTP's first one, whatever its first word: methods can be made up;
* memcached's commands that another line follows as data;
* as the first thing that a client ever says, what is no command of ours, or has too few or too many arguments. As
  soon as it cannot become one: a scanner may never send the end of a line.

Redis itself knows ``POST`` and ``Host:``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from workloads.kv.resp import Command, RespError, printable, split_arguments

_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]")
_WORD = re.compile(rb"[ \t\r]*([^ \t\r]*)")
_NAME = re.compile(rb"[A-Za-z0-9_.-]*")
_QUOTES = (b'"', b"'")
_VERSION = re.compile(rb"(?:HTTP|RTSP|SIP|ICAP|ICE)/[0-9](?:\.[0-9]+)?", re.IGNORECASE)
_TARGET = re.compile(rb"/|\*|[A-Za-z][A-Za-z0-9+.-]*://|sips?:|tel:", re.IGNORECASE)
#: Of memcached: what follows is data.
_STORING = {b"SET", b"ADD", b"REPLACE", b"APPEND", b"PREPEND", b"CAS"}
_ALWAYS = {b"POST", b"PRI", b"PROXY"}

#: How some of them begin, for people.
_KINDS = (
    (re.compile(rb"\x16"), "TLS; here is no TLS: connect without, or serve with --transport tls"),
    (re.compile(rb"PRI \*"), "HTTP/2"), (re.compile(rb"\S+\s.*\bHTTP/[0-9]", re.DOTALL), "HTTP"),
    (re.compile(rb"\S+\s.*\b(?:RTSP|SIP)/[0-9]", re.DOTALL), "RTSP or SIP"), (re.compile(rb"SSH-"), "SSH"),
    (re.compile(rb"EHLO|HELO", re.IGNORECASE), "SMTP"), (re.compile(rb"PROXY |\0\r"), "the PROXY protocol"),
    (re.compile(rb"(?:(?:%b) \S+ \d+ -?\d+ \d+|ms )" % b"|".join(sorted(_STORING)), re.IGNORECASE), "memcached"),
)
_SHOWN = 40


class Stranger(RespError):
    """The client speaks another protocol. Its text repeats nothing that it said."""

    def __init__(self, line: bytes) -> None:
        super().__init__("neither RESP nor a command of this server; nothing of it was done")
        kind = next((f"like {name}" for pattern, name in _KINDS if pattern.match(line)), "like another protocol")
        #: For the log.
        self.seen = f"looks {kind} ('{printable(line[:_SHOWN])}')"


class InlineGuard:
    """Looks at lines of text. ``names`` of commands, in capitals; ``valid``: whether one can be done as it is."""

    def __init__(self, names: Collection[bytes], valid: Callable[[Command], bool]) -> None:
        self._names = frozenset(names)
        self._beginnings = frozenset(name[:n] for name in names for n in range(len(name) + 1))
        self._valid = valid

    def check(self, line: bytes, whole: bool, first: bool) -> None:
        """A line, or what has come of it; ``first``: nothing came before. Raises :class:`Stranger`."""
        if not self._is_ours(line, whole, first):
            raise Stranger(line)

    def _is_ours(self, line: bytes, whole: bool, first: bool) -> bool:
        if _CONTROL.search(line):
            return False
        found = _WORD.match(line)
        assert found is not None
        word = found[1].upper()
        if not word:
            return True
        if not word.startswith(_QUOTES):
            if not _NAME.fullmatch(word) or word in _ALWAYS:
                return False
            ended = whole or found.end() < len(line)
            if first and word not in (self._names if ended else self._beginnings):
                return False
        if not whole:
            return True
        words = line.split()
        # Method, target, version.
        if len(words) > 2 and _VERSION.fullmatch(words[-1]) and _TARGET.match(words[1]):
            return False
        if _is_memcached(words):
            return False
        return not first or self._valid(split_arguments(line))


def _is_memcached(words: list[bytes]) -> bool:
    name = words[0].upper()
    if name == b"MS":
        return len(words) > 2 and words[2].lstrip(b"Ss").isdigit()
    # Key, flags, time, length; then perhaps a number, a word.
    return name in _STORING and 5 <= len(words) <= 7 and all(w.lstrip(b"-").isdigit() for w in words[2:5])
