"""Capture files and keylogs read whole: what a person names on a command line, and remarks on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from smtstack.capture.captured import HOST_SEGMENTS, HOST_SIDE, MAX_PACKET, Captured
from smtstack.capture.decode import Decoder
from smtstack.capture.files import CaptureFile, name_of
from smtstack.capture.keylog import Keylog
from smtstack.capture.pcapfile import Reader
from smtstack.errors import BadPacket, ConfigError

#: Largest keylog read.
_MAX_KEYLOG = 1 << 30
#: Kinds of frames and blocks named for people.
MAX_NAMES = 12


def read_into(decoder: Decoder, file: CaptureFile,
              on_frame: Callable[[Captured], None] | None = None) -> list[str]:
    """Feed a capture to a decoder; remarks on the file itself. Raises :class:`ConfigError`.

    ``on_frame`` gets every frame before the decoder does, those of the host side, too.
    """
    with file.open() as stream, reading(file):
        reader = Reader(stream)
        host_side = 0
        for captured in reader.frames_untrusted():
            if on_frame is not None:
                on_frame(captured)
            if captured.interface.endswith(HOST_SIDE):
                host_side += 1
            else:
                decoder.add(captured.link_type, captured.frame, captured.missing)
    notes = file_notes(reader, file)
    if host_side:
        notes.append(f"{host_side} {HOST_SEGMENTS}, are left out")
    return notes


def load_keylog(*paths: Path) -> Keylog:
    """What these files say together, one of them stdin perhaps; raises :class:`ConfigError`."""
    keylog = Keylog()
    for path in paths:
        with CaptureFile(path).open() as stream:
            data = stream.read(_MAX_KEYLOG + 1)
        if len(data) > _MAX_KEYLOG:
            raise ConfigError(f"{name_of(path)}: too large: of a keylog {_MAX_KEYLOG} bytes are read")
        _read_keylog(keylog, data, name_of(path))
    return keylog


def _read_keylog(keylog: Keylog, data: bytes, name: str) -> None:
    try:
        keylog.add_untrusted(data.decode("ascii"))
    except UnicodeDecodeError:
        raise ConfigError(f"{name} is no keylog: it holds more than ASCII") from None
    except BadPacket as e:
        raise ConfigError(f"{name}: {e}") from None


def secrets_inside(file: CaptureFile) -> Keylog:
    """The secrets that a capture holds, wherever in it they stand."""
    keylog = Keylog()
    with file.open() as stream, reading(file):
        reader = Reader(stream)
        for _captured in reader.frames_untrusted():
            pass
    for data in reader.tls_secrets:
        _read_keylog(keylog, data, f"the secrets in {file}")
    return keylog


@contextmanager
def reading(file: CaptureFile) -> Iterator[None]:
    """What is wrong with a capture as :class:`ConfigError` with its name."""
    try:
        yield
    except BadPacket as e:
        raise ConfigError(f"{file}: {e}") from None


def file_notes(reader: Reader, file: CaptureFile) -> list[str]:
    """What a person should know about the file itself."""
    notes = []
    if reader.truncated or file.cut_off:
        notes.append(f"{file} ends in the middle of a packet, which is left out" if reader.truncated else
                     f"{file} ends in the middle of its compressed data; what follows is missing")
    if reader.oversized:
        notes.append(f"{reader.oversized} packets are too large to be of a network and are left out (more than "
                     f"{MAX_PACKET} bytes)")
    notes += [f"{count} {name} are passed over" for name, count in reader.passed_over.most_common(MAX_NAMES)]
    return notes
