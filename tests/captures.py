"""Captures that tests make, what ``smtnet pcap decrypt`` makes of them, and what tshark reads in them."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from smtstack.capture.captured import Captured
from smtstack.capture.decrypt import Counts, Decrypter
from smtstack.capture.flows import Flow
from smtstack.capture.links import LINK_ETHERNET
from smtstack.capture.pcapfile import Reader
from smtstack.capture.twins import LINK_UPPER_PDU
from smtstack.crypto.keys import KeyStore
from workloads.commands.pcap_dissector import script

#: When the first frame of a capture was seen, nanoseconds since 1970.
START = 1_800_000_000_000_000_000
_COMMENT = re.compile(r"message (?P<id>\d+) (?P<role>request|response) (?P<what>record|piece) (?P<nth>\d+)"
                      r"(?: of (?P<of>\d+))?(?:, epoch (?P<epoch>\d+))?(?:, number (?P<number>0x[0-9a-f]+))?, "
                      r"(?P<size>\d+) bytes(?:, offload: (?P<offload>\S+))?")


class Twin(NamedTuple):
    """One upper PDU."""

    flow: Flow
    data: bytes
    #: The parts of its comment, by name.
    said: dict[str, str | None]

    @property
    def message(self) -> tuple[int, int]:
        """Id with role bit, and epoch byte, as tests keep what was said."""
        return int(self.said["id"] or 0) | (self.said["role"] == "response"), int(self.said["epoch"] or 0) & 0xFF


class Opened(NamedTuple):
    """A decrypted capture."""

    counts: Counts
    packets: list[Captured]
    tls_secrets: list[bytes]

    def twins(self) -> list[Twin]:
        """The upper PDUs, in order."""
        return [twin_of(p) for p in self.packets if p.link_type == LINK_UPPER_PDU]

    def messages(self) -> dict[tuple[int, int], bytes]:
        """What the twins say, put together."""
        out: dict[tuple[int, int], list[tuple[int, bytes]]] = {}
        for twin in self.twins():
            out.setdefault(twin.message, []).append((int(twin.said["nth"] or 0), twin.data))
        return {key: b"".join(data for _nth, data in sorted(parts)) for key, parts in out.items()}


def twin_of(packet: Captured) -> Twin:
    """Parse an upper PDU, strictly."""
    frame = packet.frame
    tags: dict[int, bytes] = {}
    at = 0
    while True:
        code, size = int.from_bytes(frame[at:at + 2], "big"), int.from_bytes(frame[at + 2:at + 4], "big")
        at += 4 + size
        if code == 0:
            break
        assert code not in tags
        assert size % 4 == 0
        tags[code] = frame[at - size:at]
    assert tags[12].rstrip(b"\0") == b"smt.plaintext"
    match = _COMMENT.fullmatch(packet.comment)
    assert match is not None, packet.comment
    numbers = [int.from_bytes(tags[code], "big") for code in (20, 25, 21, 26)]
    assert int(match["size"]) == len(frame) - at
    return Twin(Flow(*numbers), frame[at:], match.groupdict())


def captured(frames: Iterable[bytes], comments: Iterable[str] = ()) -> list[Captured]:
    """Frames as a capture has them, a microsecond apart."""
    texts = iter(comments)
    return [Captured(START + 1000 * n, LINK_ETHERNET, frame, "e0", next(texts, ""))
            for n, frame in enumerate(frames)]


def decrypt(frames: Iterable[bytes | Captured], profile: str, keys: KeyStore,
            tls_lines: Callable[[bytes], list[str]] | None = None) -> Opened:
    """What ``Decrypter`` makes of these frames, read back."""
    decrypter = Decrypter(profile, keys, tls_lines=tls_lines)
    whole = decrypter.begin()
    for n, frame in enumerate(frames):
        packet = frame if isinstance(frame, Captured) else Captured(START + 1000 * n, LINK_ETHERNET, frame, "e0")
        whole += decrypter.add(packet)
    reader = Reader(io.BytesIO(whole))
    packets = list(reader.frames_untrusted())
    assert (reader.truncated, reader.shortened) == (0, 0)
    return Opened(decrypter.finish(), packets, reader.tls_secrets)


def read_opened(path: Path, counts: Counts) -> Opened:
    """What stands in a file that ``smtnet pcap decrypt`` wrote."""
    with path.open("rb") as stream:
        reader = Reader(stream)
        return Opened(counts, list(reader.frames_untrusted()), reader.tls_secrets)


def tshark(path: Path, *fields: str, only: str = "", options: Iterable[str] = ()) -> list[list[str]]:
    """These fields of every packet, by tshark with our dissector; fails the test if the script has an error."""
    done = _tshark(path, "-T", "fields", "-E", "occurrence=a", "-e", "_ws.lua.error",
                   *(a for f in fields for a in ("-e", f)), *(("-Y", only) if only else ()), *options)
    rows = [line.split("\t") for line in done.splitlines()]
    assert all(row[0] == "" for row in rows), [row for row in rows if row[0]][:3]
    # What is true or not, tshark 4.2 and later write as a word.
    return [[{"True": "1", "False": "0"}.get(cell, cell) for cell in row[1:]] for row in rows]


def nobody() -> Sequence[str]:
    """What goes before a command that root runs: it is nobody, who can read everything. For root, tshark 4.4 and
    later load no script, and say nothing of it."""
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        return ()
    return ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=+dac_read_search",
            "--ambient-caps=+dac_read_search")


def tshark_text(path: Path, *options: str) -> str:
    """What tshark prints."""
    return _tshark(path, *options)


def _tshark(path: Path, *options: str) -> str:
    if shutil.which("tshark") is None:
        pytest.skip("tshark is not installed (Debian: tshark)")
    done = subprocess.run([*nobody(), "tshark", "-n", "-X", f"lua_script:{script()}", "-r", str(path), *options],
                          capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "Lua" not in done.stderr, done.stderr
    return done.stdout
