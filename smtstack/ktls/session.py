"""A TLS session of one direction, a record of it, and who seals that; counted references decide when a session
ends.

A record holds its session from when it is made until it is sealed (by a NIC: until it is acknowledged), so a
switch of modes never changes records that wait already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from smtstack.crypto.stream_gcm import StreamKeys
from smtstack.errors import LocalError
from smtstack.ktls.params import LINUX_CIPHERS, TlsParams
from smtstack.ktls.records import Buffer, Shape, shape
from smtstack.ktls.stats import NIC, SW, TlsStats


class Refused(LocalError):
    """A backend does not take a session: another may."""


class Backend(ABC):
    """``ciphers`` are those it declares; ``priority``: the higher one is asked first."""

    name = ""
    mode = SW
    priority = 0
    ciphers: frozenset[str] = frozenset(LINUX_CIPHERS)
    #: Whether records may be sealed after :meth:`submit` returns: :meth:`collect` says when.
    asynchronous = False

    def __init__(self) -> None:
        #: Sessions that have it.
        self.users = 0

    @abstractmethod
    def attach(self, session: TlsSession) -> object:
        """Take a session; what :meth:`submit` finds as ``session.handle``. Raises :class:`Refused`."""

    def detach(self, handle: object) -> None:  # noqa: B027
        """The session is over."""

    @abstractmethod
    def submit(self, records: Sequence[OutRecord]) -> None:
        """Seal them, now or later: each is then ``done``, or failed."""

    @abstractmethod
    def open_untrusted(self, session: TlsSession, number: int, record: Buffer) -> tuple[int, bytes]:
        """(kind, payload) of a whole record; raises :class:`~smtstack.errors.AuthError`."""

    def collect(self) -> None:  # noqa: B027
        """Asynchronous: look what is done."""

    def fileno(self) -> int | None:
        """Asynchronous: readable when something is done."""
        return None


class OutRecord:
    """One record. ``parts`` is what TCP carries, once ``ready``."""

    __slots__ = ("announced", "explicit_nonce", "failed", "kind", "number", "parts", "payload", "ready",
    "session", "size")

    def __init__(self, session: TlsSession, number: int, kind: int, payload: Buffer, explicit_nonce: int) -> None:
        self.session: TlsSession = session.hold()
        self.number = number
        self.kind = kind
        self.payload = payload
        self.explicit_nonce = explicit_nonce
        #: Bytes on the wire.
        self.size = session.shape.header + len(payload) + session.shape.trailer
        self.parts: list[Buffer] = []
        self.ready = False
        self.failed = False
        #: Sealed, and in the record map of a NIC.
        self.announced = False

    def done(self, parts: list[Buffer]) -> None:
        """The record is sealed: ``parts`` make ``size`` bytes."""
        self.parts = parts
        self.ready = True
        self.payload = b""

    def fail(self) -> None:
        """The record cannot be sealed: its connection is to be aborted."""
        self.failed = True


class TlsSession:
    """``direction``: ``tx`` or ``rx``. Whoever makes it holds it."""

    __slots__ = ("_iv", "_key", "_stats", "backend", "cipher", "direction", "handle", "references", "shape",
                 "version")

    def __init__(self, params: TlsParams, direction: str, stats: TlsStats) -> None:
        self.direction = direction
        self.version = params.version
        self.cipher = params.cipher
        self.shape: Shape = shape(params.version, params.cipher)
        # Bytes that can be overwritten.
        self._key = bytearray(params.key)
        self._iv = bytearray(params.iv)
        self._stats = stats
        self.references = 1
        #: Who seals, and what it gave us for that; None: nobody yet.
        self.backend: Backend | None = None
        self.handle: object = None

    def __repr__(self) -> str:
        return f"<TlsSession {self.direction} {self.version:#06x} {self.cipher} {self.mode}>"

    @property
    def mode(self) -> str:
        """``none``, ``sw`` or ``nic``."""
        return self.backend.mode if self.backend is not None else "none"

    @property
    def key(self) -> bytes:
        """A copy: for who sets up an AEAD. Raises :class:`LocalError` after the end."""
        if not self.references:
            raise LocalError("this session has ended: its key is gone")
        return bytes(self._key)

    @property
    def iv(self) -> bytes:
        """A copy."""
        return bytes(self._iv)

    def keys(self) -> StreamKeys:
        """For a NIC, and for what is opened in part."""
        return StreamKeys(self.version, self.cipher, self.key, self.iv)

    def clone(self) -> TlsSession:
        """A session with the same keys, for another backend (``ktls_clone_session``)."""
        params = TlsParams(self.cipher, self.version, self.key, self.iv)
        return TlsSession(params, self.direction, self._stats)

    def attach(self, backend: Backend, handle: object) -> None:
        """This backend seals from now on."""
        assert self.backend is None
        self.backend, self.handle = backend, handle
        backend.users += 1
        self._stats.opened(self.direction, NIC if backend.mode == NIC else SW, self.cipher)

    def hold(self) -> TlsSession:
        """One reference more."""
        assert self.references > 0
        self.references += 1
        return self

    def free(self) -> None:
        """One reference less; the last one ends it and overwrites its keys."""
        assert self.references > 0
        self.references -= 1
        if self.references:
            return
        self._key[:] = bytes(len(self._key))
        self._iv[:] = bytes(len(self._iv))
        if self.backend is not None:
            self._stats.opened(self.direction, NIC if self.backend.mode == NIC else SW, self.cipher, -1)
            self.backend.users -= 1
            self.backend.detach(self.handle)
            self.backend = self.handle = None
