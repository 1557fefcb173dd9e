"""Targets of :mod:`tests.fuzz` in TLS offload for TCP: packets, records, and the devices that follow a stream.

A device gets anything, in any order, and may raise nothing. What it passes up decrypted, or sends encrypted, is as
long as what came; what it sends holds no plaintext.
"""

from __future__ import annotations

import fcntl
import os
from functools import partial
from typing import TYPE_CHECKING

from smtstack.crypto.stream_gcm import (
    TLS12,
    TLS13,
    inner_untrusted,
    open_record_untrusted,
    record_len_untrusted,
)
from smtstack.errors import AuthError, BadPacket, ConfigError
from smtstack.io.memory import map_untrusted
from smtstack.nic.counters import NicCounters
from smtstack.nic.marks import mark_bytes
from smtstack.nic.tls_flow import ASYNC, HINT, SCAN, RxFlow
from smtstack.nic.tls_rx import TlsRxContext
from smtstack.nic.tls_rx_driver import TlsRxDriver
from smtstack.nic.tls_tx import TlsTxContext
from smtstack.tapnic import messages
from smtstack.wire import tcp
from tests.tls_rig import CANARY, FLOW, Stream, make_keys, tcp_frame, text

if TYPE_CHECKING:
    from tests.fuzz import Target

_SIZES = (1, 30, 5, 200, 60, 9, 400)
#: A device is made anew after so many inputs.
_LIFE = 60


def _stream(version: int) -> Stream:
    stream = Stream(make_keys(version), start=0)
    for n, size in enumerate(_SIZES * 3):
        stream.push(text(size, n))
    return stream


def _packet(frame: bytes) -> None:
    packet = tcp.parse_untrusted(frame)
    payload = frame[packet.payload_at:packet.end]
    assert len(payload) == packet.length
    pieces = [tcp.parse_untrusted(cut) for cut in tcp.cut(frame, packet, payload, 100)]
    assert sum(piece.length for piece in pieces) == packet.length
    same = tcp.replace_payload(frame, packet, payload)
    assert tcp.checksum_ok(same, tcp.parse_untrusted(same))
    assert len(same) == len(frame)


def _placed(buf: bytes) -> tuple[int, bytes]:
    """Where in the stream, and what: the place is in the first two bytes."""
    return int.from_bytes(buf[:2], "big"), buf[2:] or b"\0"


class _Receive:
    """A receiving device under changed packets among genuine ones, that is told nonsense from time to time."""

    def __init__(self, stream: Stream, searches: bool) -> None:
        self._stream = stream
        self._searches = searches
        self._fed = self._at = 0
        self._context = TlsRxContext(stream.keys, 0, 0, searches)

    def __call__(self, buf: bytes) -> None:
        self._fed += 1
        if self._fed % _LIFE == 0:
            self._at = 0
            self._context = TlsRxContext(self._stream.keys, 0, 0, self._searches)
        at, payload = _placed(buf)
        context = self._context
        genuine = bytes(self._stream.sealed[self._at:self._at + 60])
        for seq, data in ((self._at, genuine), (self._at + 60 if self._fed % 3 else at, payload)):
            out = context.receive_untrusted(seq, data)
            assert out is None or len(out) == len(data)
        # It was there, or it is late: the changed one may be in its place.
        self._at = (self._at + 60) % len(self._stream.plain)
        if self._fed % 7 == 0:
            context.answer(context.base if self._fed % 2 else at, self._fed)


class _Arrive:
    """The driver over it, under changed frames."""

    def __init__(self, version: int, resync: str) -> None:
        self._keys = make_keys(version)
        self._resync = resync
        self._fed = 0
        self._renew()

    def _renew(self) -> None:
        self._driver = TlsRxDriver(NicCounters())
        self._driver.add(RxFlow(FLOW, self._keys, bytearray(mark_bytes(8)), 0, 0, self._resync), True)

    def __call__(self, frame: bytes) -> None:
        self._fed += 1
        if self._fed % _LIFE == 0:
            self._renew()
        assert len(self._driver.receive_untrusted(frame)) == len(frame)


class _Send:
    """A transmitting device that is given other bytes than it should: it sends no plaintext."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._fed = 0
        self._context = TlsTxContext()

    def __call__(self, buf: bytes) -> None:
        at, payload = _placed(buf)
        context = self._context
        if self._fed % 5 == 0:
            context.set_static(self._stream.keys, 0)
            context.set_progress(0)
        self._fed += 1
        begun = bytes(self._stream.plain[:self._fed % 100 + 1])
        for seq, data in ((0, begun), (len(begun) if self._fed % 3 else at, payload)):
            out = context.send(seq, data)
            assert out is None or (len(out) == len(data) and CANARY not in out)


def _memory(buf: bytes) -> None:
    """What another process gives: memory of any size, sealed or not, or something else."""
    first = buf[0] if buf else 0
    descriptor = os.memfd_create("fuzz", os.MFD_ALLOW_SEALING) if first & 1 else os.open(os.devnull, os.O_RDONLY)
    try:
        if first & 1:
            os.ftruncate(descriptor, int.from_bytes(buf[1:3], "big"))
        if first & 3 == 3:
            fcntl.fcntl(descriptor, 1033, buf[3] & 7 if len(buf) > 3 else 2)  # F_ADD_SEALS
        map_untrusted(descriptor, 8192).close()
    finally:
        os.close(descriptor)


def _keys(buf: bytes) -> None:
    messages.keys_untrusted(messages.read_untrusted(buf))


_REQUESTS = [messages.tx_request(FLOW, make_keys(), "linux", "dump", True),
             messages.rx_request(FLOW, make_keys(TLS12), "scan", False, 5, 6), messages.context_request(True),
             messages.answer(True, 3), messages.answer(error="no"), b"[" * 4096,
             b'{"version": Infinity, "cipher": "", "key": "", "iv": ""}']


def targets() -> list[Target]:
    """All of them."""
    from tests.fuzz import Target, _fix_frame

    streams = {version: _stream(version) for version in (TLS12, TLS13)}
    gcm, nic = "smtstack.crypto.stream_gcm", "smtstack.nic"
    frames: list[bytes] = []
    out = []
    for version, stream in streams.items():
        keys = stream.keys
        ends = [*stream.starts[1:], len(stream.plain)]
        sealed = [bytes(stream.sealed[a:b]) for a, b in zip(stream.starts, ends, strict=True)]
        cuts = [(at, min(at + size, len(stream.plain)))
                for at, size in zip(range(0, len(stream.plain), 70), (70, 70, 10, 200, 70) * 99, strict=False)]
        pieces = [at.to_bytes(2, "big") + bytes(stream.sealed[at:end]) for at, end in cuts]
        plain = [at.to_bytes(2, "big") + bytes(stream.plain[at:end]) for at, end in cuts]
        own = [tcp_frame(at, bytes(stream.sealed[at:end])) for at, end in cuts]
        frames += own[:10]
        out += [
            Target(f"{gcm}.record_len_untrusted", partial(record_len_untrusted, keys), sealed, (), share=0.3),
            Target(f"{gcm}.open_record_untrusted", partial(open_record_untrusted, keys, 0), sealed[:1],
                   (AuthError,), share=0.3),
            *[Target(f"{nic}.tls_rx.TlsRxContext.receive_untrusted", _Receive(stream, searches), pieces, (),
                     share=0.3) for searches in (True, False)],
            *[Target(f"{nic}.tls_rx_driver.TlsRxDriver.receive_untrusted", _Arrive(version, resync), own, (),
                     _fix_tcp, share=0.2) for resync in (SCAN, ASYNC, HINT)],
            Target(f"{nic}.tls_tx.TlsTxContext.send", _Send(stream), plain, (), share=0.3),
        ]
    return [*out,
            Target("smtstack.wire.tcp.parse_untrusted", _packet, [*frames, tcp_frame(7, b"", tcp.FIN)],
                   fix=_fix_frame),
            Target("smtstack.tapnic.messages.read_untrusted", messages.read_untrusted, _REQUESTS, (ConfigError,),
                   share=0.1),
            Target("smtstack.tapnic.messages.keys_untrusted", _keys, _REQUESTS, (ConfigError,), share=0.1),
            Target("smtstack.io.memory.map_untrusted", _memory,
                   [b"\3\x10\0\2", b"\3\x40\0\2", b"\1\x10\0", b"\3\x10\0\7", b"\0"], (ConfigError,), share=0.1),
            Target(f"{gcm}.inner_untrusted", inner_untrusted, [b"data\x17", b"data\x16\0\0\0", bytes(30), b"\x17"],
                   (AuthError,), share=0.2)]


def _fix_tcp(frame: bytes) -> bytes:
    """With the right checksum, so that a device looks at what is in it."""
    try:
        packet = tcp.parse_untrusted(frame)
    except BadPacket:
        return frame
    return tcp.replace_payload(frame, packet, frame[packet.payload_at:packet.end])
