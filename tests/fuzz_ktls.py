"""What the fuzzer gives our kernel TLS: records, handshake messages and alerts that a peer sends."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from smtstack.crypto.stream_gcm import StreamKeys, seal_record
from smtstack.errors import AuthError, BadPacket
from smtstack.ktls import control_records as control
from smtstack.ktls.backends import InNic, OpenSsl, PurePython
from smtstack.ktls.params import TlsParams
from smtstack.ktls.records import RecordAead, record_size_untrusted, shape
from smtstack.ktls.session import TlsSession
from smtstack.ktls.stats import TlsStats

#: (function, what calls it, corpus, what it may raise): a Target of tests/fuzz.py.
Target = tuple[str, Callable[[bytes], object], list[bytes], tuple[type[Exception], ...]]
_KINDS = [(0x0303, "aes-128-gcm"), (0x0304, "aes-256-gcm"), (0x0303, "chacha20-poly1305")]


def _size(buffer: bytes) -> None:
    """With the 5 bytes that it is promised, by both systems' rules."""
    header = (buffer + bytes(5))[:5]
    for version, cipher in _KINDS:
        for linux in (False, True):
            size = record_size_untrusted(shape(version, cipher), header, linux)
            assert 5 <= size <= 16_384 + 29


def _padded(open_it: Callable[[bytes], object], buffer: bytes) -> object:
    """Never shorter than the shortest record, which the length of its header has promised."""
    return open_it(buffer + bytes(max(0, 29 - len(buffer))))


def _messages(buffer: bytes) -> None:
    made = control.HandshakeMessages()
    for at in range(0, len(buffer), 7):
        list(made.take_untrusted(buffer[at:at + 7]))


def targets() -> list[Target]:
    """All of them."""
    out: list[Target] = []
    corpus: list[bytes] = []
    of = "smtstack.ktls"
    for version, cipher in _KINDS:
        key, iv = bytes(16 if "128" in cipher else 32), bytes(4 if version == 0x0303 and "gcm" in cipher else 12)
        records = [seal_record(StreamKeys(version, cipher, key, iv), 3, 23, bytes(n)) for n in (0, 1, 100, 2000)]
        corpus += records
        aead = RecordAead(version, cipher, key, iv)
        out.append((f"{of}.records.RecordAead.open_untrusted", partial(_padded, partial(aead.open_untrusted, 3)),
                    records, (AuthError,)))
        for backend in (OpenSsl(), InNic(), PurePython()):
            session = TlsSession(TlsParams(cipher, version, key, iv), "rx", TlsStats())
            session.attach(backend, backend.attach(session))
            if backend.name != "purepy":
                name = "InNic" if backend.mode == "nic" else "InProcess"
                out.append((f"{of}.backends.{name}.open_untrusted",
                            partial(_padded, partial(backend.open_untrusted, session, 3)), records, (AuthError,)))
    return [
        *out,
        # What they only promise, and what sends it to another process.
        (f"{of}.session.Backend.open_untrusted", out[0][1], corpus[:4], (AuthError,)),
        ("smtstack.ktls_io.coproc.ProcessBackend.open_untrusted", out[0][1], corpus[:4], (AuthError,)),
        (f"{of}.records.record_size_untrusted", _size, corpus, (BadPacket,)),
        (f"{of}.control_records.HandshakeMessages.take_untrusted", _messages,
         [b"\x18\0\0\1\1", b"\4\0\0\5hello\x18\0\0\1\0", b"\0\0\0\0" * 3], (BadPacket,)),
        (f"{of}.control_records.wants_update_untrusted", control.wants_update_untrusted, [b"\0", b"\1"],
         (BadPacket,)),
        (f"{of}.control_records.alert_untrusted", control.alert_untrusted, [b"\1\0", b"\2\x50"], (BadPacket,)),
    ]
