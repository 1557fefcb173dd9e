"""A host's credentials on disk: the folder that ``smtnet ca`` makes for it, and key logs.

A folder holds ``ca.pem`` (authorities it believes), ``cert.pem`` (its certificate and those up to an authority's),
``key.pem`` (its private key, mode 600) and ``hosts`` (names of addresses, as /etc/hosts; may be missing).
"""

from __future__ import annotations

import contextlib
import os
import stat
import weakref
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from smtstack.errors import ConfigError
from smtstack.session.identity import Identity, PrivateKey
from smtstack.session.keylog import Keylog
from smtstack.wire.ipv4 import address, format_address

CA, CERTIFICATE, KEY, HOSTS = "ca.pem", "cert.pem", "key.pem", "hosts"
_MAX_FILE = 1 << 20


def load_identity(folder: Path) -> Identity:
    """The credentials in ``folder``; raises :class:`ConfigError` naming file and fix."""
    trust = load_certificates(folder / CA)
    chain = tuple(c.public_bytes(Encoding.DER) for c in load_certificates(folder / CERTIFICATE))
    key = load_key(folder / KEY)
    names = load_names(folder / HOSTS) if (folder / HOSTS).exists() else {}
    try:
        return Identity(chain, key, trust, names)
    except ConfigError as e:
        raise ConfigError(f"{folder}: {e}") from None


def load_certificates(path: Path) -> tuple[x509.Certificate, ...]:
    """The certificates in a file in PEM; raises :class:`ConfigError`."""
    try:
        return tuple(x509.load_pem_x509_certificates(_read(path)))
    except ValueError:
        raise ConfigError(f"{path} holds no certificates in PEM") from None


def load_key(path: Path) -> PrivateKey:
    """The private key in a file in PEM that only its owner may read; raises :class:`ConfigError`."""
    try:
        key = load_pem_private_key(_read(path, private=True), None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ConfigError(f"{path} is no private key in PEM, without a pass phrase") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise ConfigError(f"{path} is neither of P-256 nor Ed25519")
    return key


def load_names(path: Path) -> dict[str, str]:
    """Name by address, from lines of ``address name``; of several names in one the first counts.

    Raises :class:`ConfigError`.
    """
    names: dict[str, str] = {}
    for number, line in enumerate(_read(path).decode("utf-8", "replace").splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            ip = format_address(address(fields[0]))
            name = fields[1]
        except (ValueError, IndexError):
            raise ConfigError(f"{path}, line {number}: 'ADDRESS NAME', as in '10.0.0.2 b'") from None
        if names.setdefault(ip, name) != name:
            raise ConfigError(f"{path}, line {number}: {ip} has the name {names[ip]} already")
    return names


def open_keylog(path: Path | None, tls_path: Path | None = None, tls_name: str = "key log") -> Keylog:
    """A key log that appends to files (new or not) only their owner may read.

    ``path`` gets everything, ``tls_path`` what is of TLS. Several processes may write one file. Raises
    :class:`ConfigError`, which calls the latter ``tls_name``.
    """
    with contextlib.ExitStack() as opened:
        writers = []
        for file, name in ((path, "key log"), (tls_path, tls_name)):
            if file is None:
                writers.append(_no_line)
                continue
            fd = _open_log(file, name)
            opened.callback(os.close, fd)
            writers.append(partial(_write_line, fd))
        log = Keylog(*writers)
        weakref.finalize(log, opened.pop_all().close)
    return log


def keylog_wanted(path: Path | None) -> Keylog | None:
    """What was asked for: a file, or by the environment's SSLKEYLOGFILE the lines of TLS; None: neither."""
    tls_path = os.environ.get("SSLKEYLOGFILE")
    if path is None and not tls_path:
        return None
    return open_keylog(path, Path(tls_path) if tls_path else None, "key log of the environment (SSLKEYLOGFILE)")


def _open_log(path: Path, name: str) -> int:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as e:
        raise ConfigError(f"{name} {path}: {e.strerror}") from None
    try:
        _check_private(path, os.fstat(fd).st_mode)
    except ConfigError as e:
        os.close(fd)
        raise ConfigError(f"{name}: {e}") from None
    return fd


def _write_line(fd: int, line: str) -> None:
    # In append mode a line is one write, which no other process's line gets into. A disk that is full ends the
    # log, not the session.
    with contextlib.suppress(OSError):
        os.write(fd, line.encode())


def _no_line(_line: str) -> None:
    """Where a line goes that nobody asked for."""


def _read(path: Path, private: bool = False) -> bytes:
    try:
        with path.open("rb") as f:
            if private:
                _check_private(path, os.fstat(f.fileno()).st_mode)
            content = f.read(_MAX_FILE + 1)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}; 'smtnet ca' makes such folders") from None
    if len(content) > _MAX_FILE:
        raise ConfigError(f"{path} is longer than {_MAX_FILE} bytes")
    return content


def _check_private(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise ConfigError(f"{path} is no file")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"{path} can be read by others (mode {mode & 0o777:03o}); chmod 600 {path}")
