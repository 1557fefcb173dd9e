"""Who seals records: backends by priority, the first that takes a session has it (FreeBSD's
``ktls_crypto_backend``).

``openssl`` (FreeBSD's ``aesni``) seals one record a call, ``batched`` (Intel's ISA-L) many into one buffer,
``purepy`` (``cryptosoft``) without any library, ``nic`` leaves it to the NIC. Processes that seal are
:mod:`smtstack.ktls_io.coproc`: ``coproc`` (Chelsio's ``ccr``) and ``openssl-noaesni``. All make the same bytes.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.ktls import purepy
from smtstack.ktls.records import OPENSSL, AeadMakers, Buffer, RecordAead, plain_parts
from smtstack.ktls.session import Backend, OutRecord, Refused, TlsSession
from smtstack.ktls.stats import NIC, SW, TX


class InProcess(Backend):
    """Seals each record in one call."""

    makers: AeadMakers = OPENSSL

    def attach(self, session: TlsSession) -> RecordAead:
        return RecordAead(session.version, session.cipher, session.key, session.iv, self.makers)

    def submit(self, records: Sequence[OutRecord]) -> None:
        for record in records:
            aead = record.session.handle
            assert isinstance(aead, RecordAead)
            record.done([*aead.seal(record.number, record.kind, record.payload, record.explicit_nonce)])

    def open_untrusted(self, session: TlsSession, number: int, record: Buffer) -> tuple[int, bytes]:
        assert isinstance(session.handle, RecordAead)
        return session.handle.open_untrusted(number, record)


class OpenSsl(InProcess):
    """One call a record, by OpenSSL's fastest code for this processor."""

    name = "openssl"
    priority = 20


class PurePython(InProcess):
    """Nothing but Python."""

    name = "purepy"
    priority = 5
    makers = purepy.MAKERS


class Batched(InProcess):
    """All records of a write into one buffer, so that TCP takes them as one piece."""

    name = "batched"
    priority = 10

    def submit(self, records: Sequence[OutRecord]) -> None:
        buffer = memoryview(bytearray(sum(record.size for record in records)))
        at = 0
        for record in records:
            aead = record.session.handle
            assert isinstance(aead, RecordAead)
            end = at + record.size
            aead.seal_into(record.number, record.kind, record.payload, record.explicit_nonce, buffer[at:end])
            record.done([buffer[at:end]])
            at = end


class InNic(Backend):
    """Leaves records in clear: the NIC seals them on their way. Whoever sends them sees to it that no other way is
    open to them (:mod:`smtstack.ktls_io.nic_mode`)."""

    name = "nic"
    mode = NIC
    priority = 0

    def attach(self, session: TlsSession) -> RecordAead | None:
        """Any session of its ciphers; its NIC may refuse it later. What the NIC did not open on its way up, we
        do."""
        if session.direction == TX:
            return None
        return RecordAead(session.version, session.cipher, session.key, session.iv)

    def submit(self, records: Sequence[OutRecord]) -> None:
        for record in records:
            payload = record.payload
            # What is sent later must not change meanwhile.
            if not isinstance(payload, bytes):
                payload = bytes(payload)
            record.done(plain_parts(record.session.shape, record.kind, payload, record.explicit_nonce))

    def open_untrusted(self, session: TlsSession, number: int, record: Buffer) -> tuple[int, bytes]:
        assert isinstance(session.handle, RecordAead)
        return session.handle.open_untrusted(number, record)


#: Without a NIC or another process.
IN_PROCESS: Final = {"openssl": OpenSsl, "purepy": PurePython, "batched": Batched}


class Registry:
    """The backends of one host."""

    def __init__(self, backends: Sequence[Backend] = ()) -> None:
        self._backends: dict[str, Backend] = {}
        for backend in backends:
            self.register(backend)

    def register(self, backend: Backend) -> None:
        """Raises OSError(EEXIST) if there is one of that name; :class:`Refused` for one that cannot work here."""
        if backend.name in self._backends:
            raise OSError(errno.EEXIST, f"there is a backend {backend.name} already")
        if isinstance(backend, Batched) and not hasattr(AESGCM, "encrypt_into"):
            raise Refused("batched needs cryptography 47 or newer: it writes into one buffer")
        self._backends[backend.name] = backend

    def deregister(self, name: str) -> None:
        """Raises OSError: ENOENT, or EBUSY while a session has it."""
        backend = self._backends.get(name)
        if backend is None:
            raise OSError(errno.ENOENT, f"there is no backend {name}")
        if backend.users:
            raise OSError(errno.EBUSY, f"backend {name} has {backend.users} sessions")
        del self._backends[name]

    def names(self) -> list[str]:
        """By priority."""
        return [backend.name for backend in self._sorted()]

    def get(self, name: str) -> Backend | None:
        """By name."""
        return self._backends.get(name)

    def attach(self, session: TlsSession, mode: str = SW) -> Backend:
        """Give the session to the first backend of this mode that takes it. Raises OSError(EPROTONOSUPPORT) where
        none does, ENXIO where there is none of this mode."""
        of_mode = [backend for backend in self._sorted() if backend.mode == mode]
        if not of_mode:
            raise OSError(errno.ENXIO, f"there is no backend of mode {mode}")
        for backend in of_mode:
            if session.cipher not in backend.ciphers:
                continue
            try:
                handle = backend.attach(session)
            except Refused:
                continue
            session.attach(backend, handle)
            return backend
        raise OSError(errno.EPROTONOSUPPORT, f"no backend of mode {mode} has {session.cipher}")

    def _sorted(self) -> list[Backend]:
        return sorted(self._backends.values(), key=lambda backend: -backend.priority)
