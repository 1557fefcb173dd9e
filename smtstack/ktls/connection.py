"""Kernel TLS of one connection: what its socket options and ``sendmsg`` do, without the socket.

Both directions are turned on by themselves. What is written becomes records at once (``ktls_frame``): each takes
the next number and holds the session that seals it, so a switch of modes changes only what is written after it.
Errors are OSError with the errno of the system whose ``rules`` are followed, ``freebsd`` or ``linux``.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import Final

from smtstack.crypto.stream_gcm import MAX_PLAINTEXT
from smtstack.ktls.backends import Registry
from smtstack.ktls.params import RULES, Asked, TlsParams, first_broken
from smtstack.ktls.receive import ReceiveMachine
from smtstack.ktls.records import DATA, Buffer, plain_parts
from smtstack.ktls.sendq import SendQueue
from smtstack.ktls.session import Backend, OutRecord, Refused, TlsSession
from smtstack.ktls.stats import NIC, NONE, RX, SW, TX, TlsStats

_MASK64: Final = (1 << 64) - 1


class KtlsConnection:
    """``nic_tx``, ``nic_rx``: whether a NIC may seal, or open (its backend is in ``backends``); then turning on
    takes it if it can."""

    def __init__(self, backends: Registry, stats: TlsStats, rules: str = "freebsd", nic_tx: bool = False,
                 nic_rx: bool = False, listening: bool = False) -> None:
        assert rules in RULES
        self.rules = rules
        self.stats = stats
        self.queue = SendQueue(stats)
        self.rx: ReceiveMachine | None = None
        self._backends = backends
        self._nic_tx = nic_tx
        self._nic_rx = nic_rx
        self._listening = listening
        self._tx: TlsSession | None = None
        self._tx_params: TlsParams | None = None
        self._rx_params: TlsParams | None = None
        #: Of the next record that is made (``sb_tls_seqno``), and its nonce.
        self.number = 0
        self.explicit_nonce = 0
        #: The NIC was given up for good (``t_nic_ktls_xmit_dis``).
        self.nic_disabled = False
        #: A record that MSG_MORE keeps open, and its type.
        self._open = bytearray()
        self._open_kind = DATA
        #: Why nothing can be written any more.
        self._aborted: OSError | None = None

    # -- options ---------------------------------------------------------------------------------------------

    def txtls_enable(self, params: TlsParams) -> None:
        """TCP_TXTLS_ENABLE, or TLS_TX. The second time it is new keys, by Linux's rules and in TLS 1.3 only."""
        self._judge(params, self._tx_params, self._rx_params, TX)
        if self._tx is not None:
            self._close_open()
            self._tx.free()
            self._tx = None
            self.stats.add("TlsTxRekeyOk")
        session = TlsSession(params, TX, self.stats)
        try:
            self._attach(session)
        except OSError:
            session.free()
            raise
        self._tx = session
        self._tx_params = _without_keys(params)
        self.number = params.number
        self.explicit_nonce = params.explicit_nonce

    def rxtls_enable(self, params: TlsParams) -> None:
        """TCP_RXTLS_ENABLE, or TLS_RX."""
        self._judge(params, self._rx_params, self._tx_params, RX)
        session = TlsSession(params, RX, self.stats)
        try:
            self._attach(session)
        except OSError:
            session.free()
            raise
        self._rx_params = _without_keys(params)
        if self.rx is None:
            self.rx = ReceiveMachine(session, params.number, self.rules == "linux", self.stats)
            return
        old = self.rx.session
        self.rx.rekey(session, params.number)
        old.free()
        self.stats.add("TlsRxRekeyOk")

    def open_in_software(self) -> None:
        """No NIC takes what :meth:`rxtls_enable` had for one."""
        rx = self.rx
        assert rx is not None
        old = rx.session
        new = old.clone()
        self._backends.attach(new, SW)
        rx.rekey(new, rx.number)
        old.free()

    @property
    def tx(self) -> TlsSession | None:
        """Whose keys seal what is written now."""
        return self._tx

    @property
    def txtls_mode(self) -> str:
        """TCP_TXTLS_MODE: ``none``, ``sw`` or ``nic``."""
        return self._tx.mode if self._tx is not None else NONE

    @property
    def rxtls_mode(self) -> str:
        """TCP_RXTLS_MODE: it can be read only."""
        return self.rx.session.mode if self.rx is not None else NONE

    def set_txtls_mode(self, mode: str) -> None:
        """TCP_TXTLS_MODE. What is queued already stays with the session that it has.

        EINVAL: no such mode; EALREADY: the NIC has it already; ENXIO: no NIC, or it was given up; EBUSY: somebody
        else switched meanwhile. Linux has no such option: ENOPROTOOPT.
        """
        if self.rules == "linux":
            raise OSError(errno.ENOPROTOOPT, "Linux has no socket option for the mode")
        self.switch(mode)

    def set_rxtls_mode(self, _mode: str) -> None:
        """TCP_RXTLS_MODE cannot be set: ENOPROTOOPT."""
        raise OSError(errno.ENOPROTOOPT, "the mode of receiving cannot be set")

    def switch(self, mode: str) -> None:
        """``ktls_set_tx_mode``, whatever the rules."""
        if mode not in {SW, NIC}:
            raise OSError(errno.EINVAL, f"there is no mode {mode!r} to switch to")
        old = self._tx
        if mode == NIC and old is not None and old.mode == NIC:
            raise OSError(errno.EALREADY, "the NIC seals already")
        if mode == NIC and self.nic_disabled:
            raise OSError(errno.ENXIO, "too much was sent again: the NIC was given up")
        if old is None or old.mode == mode:
            return
        new = old.clone()
        try:
            if mode == NIC and not self._nic_allowed(TX):
                raise OSError(errno.ENXIO, "there is no NIC that seals")
            self._backends.attach(new, mode)
            if self._tx is not old:
                raise OSError(errno.EBUSY, "the mode was switched meanwhile")
        except OSError:
            self.stats.add("stats.switch_failed")
            new.free()
            raise
        self._tx = new
        old.free()
        self.stats.add("stats.switch_to_ifnet" if mode == NIC else "stats.switch_to_sw")

    def account(self, sent: int, again: int) -> bool:
        """What TCP has sent so far, and of that again, in bytes: whether the NIC is given up for it, for good
        (``ktls_disable_ifnet``, at ``kern.ipc.tls.ifnet_max_rexmit_pct``)."""
        if self.nic_disabled or self.txtls_mode != NIC or not sent:
            return False
        if again * 100 <= (sent + again) * self.stats.knobs["ifnet_max_rexmit_pct"]:
            return False
        self.nic_disabled = True
        try:
            self.switch(SW)
        except OSError:
            self.stats.add("stats.ifnet_disable_failed")
            return False
        self.stats.add("stats.ifnet_disable_ok")
        return True

    # -- sending ---------------------------------------------------------------------------------------------

    def write(self, data: Buffer, kind: int = DATA, more: bool = False) -> None:
        """Records of this type at the end of the queue. ``more``: what does not fill a record waits for what
        follows (MSG_MORE); a record of another type closes it before.

        Any other type than data is one whole record (EMSGSIZE if it is longer), never with ``more`` (Linux:
        EINVAL). Nothing to write: EINVAL in FreeBSD, nothing in Linux.
        """
        if self._aborted is not None:
            raise OSError(*self._aborted.args)
        if self._tx is None:
            raise OSError(errno.ENOTCONN, "sending is not turned on")
        if not len(data):
            if self.rules == "freebsd":
                raise OSError(errno.EINVAL, "a record of no bytes")
            if not more:
                self._close_open()
            return
        most = min(MAX_PLAINTEXT, self.stats.knobs["maxlen"])
        if kind != DATA and (more or len(data) > most):
            raise OSError(errno.EINVAL if more else errno.EMSGSIZE, f"of type {kind} one record is sent, "
                          f"of at most {most} bytes, at once")
        if self._open and self._open_kind != kind:
            self._close_open()
        at = 0
        if self._open:
            at = min(most - len(self._open), len(data))
            self._open += data[:at]
            if more and len(self._open) < most:
                return
            self._close_open()
        end = len(data)
        if more:
            # Only whole records now; "at" is the end where all of it completed one.
            end -= (end - at) % most
        if at < end:
            self._seal([data] if end - at == len(data) <= most
                       else [data[n:min(n + most, end)] for n in range(at, end, most)], kind)
        if end < len(data):
            self._open += data[end:]
            self._open_kind = kind

    def next_plain(self, payload: Buffer) -> OutRecord:
        """A record of data that the caller sends itself, now, with nothing queued (``sendfile`` through a NIC)."""
        session = self._tx
        assert session is not None
        assert session.mode == NIC
        self._close_open()
        record = OutRecord(session, self.number, DATA, b"", self.explicit_nonce)
        record.done(plain_parts(session.shape, DATA, payload, self.explicit_nonce))
        record.size = sum(map(len, record.parts))
        self.number = self.number + 1 & _MASK64
        self.explicit_nonce = self.explicit_nonce + 1 & _MASK64
        return record

    def seal_in_software(self) -> None:
        """Records that wait for a NIC which does not take them: sealed by software, under the same numbers, before
        any byte of them has left."""
        sessions: dict[TlsSession, TlsSession] = {}
        again: list[OutRecord] = []
        for record in self.queue:
            old = record.session
            if old.mode != NIC:
                continue
            if old not in sessions:
                sessions[old] = new = old.clone()
                self._backends.attach(new, SW)
            record.session = sessions[old].hold()
            record.payload = record.parts[1]
            record.ready = False
            self.stats.add("stats.sw_tx_inqueue")
            old.free()
            again.append(record)
        for record in again:
            assert record.session.backend is not None
            record.session.backend.submit([record])
        for new in sessions.values():
            new.free()
        self._check_failed()

    def flush(self) -> None:
        """Close the record that MSG_MORE keeps open."""
        if self._aborted is None:
            self._close_open()

    @property
    def open_bytes(self) -> int:
        """Bytes that MSG_MORE holds back."""
        return len(self._open)

    def collect(self) -> None:
        """Look what asynchronous backends have sealed. EIO, for good, if one failed: no byte of that record goes
        out."""
        for backend in self.sealing():
            backend.collect()
        self._check_failed()

    def sealing(self) -> list[Backend]:
        """Asynchronous backends that have something of ours."""
        found = {session.backend for session in self.queue.sessions()}
        return [backend for backend in found if backend is not None and backend.asynchronous]

    def abort(self, error: OSError) -> None:
        """Nothing goes out any more; everything raises this."""
        self._aborted = error
        self.queue.clear()
        self._open.clear()

    def close(self) -> None:
        """Both directions end. Records that a NIC still has keep their session until they let it go."""
        self.queue.clear()
        self._open.clear()
        if self._tx is not None:
            if self._tx.references > 1:
                self.stats.add("stats.destroy_task")
            self._tx.free()
            self._tx = None
        if self.rx is not None:
            self.rx.close()
            self.rx.session.free()
            self.rx = None

    # -- inside ----------------------------------------------------------------------------------------------

    def _judge(self, params: TlsParams, installed: TlsParams | None, other: TlsParams | None,
               direction: str) -> None:
        """Raises OSError for what the rules refuse."""
        knobs = self.stats.knobs
        self.stats.add("stats.enable_calls")
        in_nic = (self.txtls_mode if direction == TX else self.rxtls_mode) == NIC
        broken = first_broken(self.rules, Asked(params, bool(knobs["enable"]), bool(knobs["cbc_enable"]), True,
                                                self._listening, installed, other, in_nic))
        if broken is None:
            return
        if installed is not None and self.rules == "linux":
            self.stats.add("TlsTxRekeyError" if direction == TX else "TlsRxRekeyError")
        raise OSError(broken.error, f"{self.rules} refuses this: not so: {broken.text}")

    def _attach(self, session: TlsSession) -> None:
        """The NIC if it may and takes it, else software."""
        if self._nic_allowed(session.direction):
            try:
                self._backends.attach(session, NIC)
            except OSError as e:
                if e.errno not in {errno.ENXIO, errno.EPROTONOSUPPORT}:
                    raise
            else:
                return
        self._backends.attach(session, SW)

    def _nic_allowed(self, direction: str) -> bool:
        has = self._nic_tx and not self.nic_disabled if direction == TX else self._nic_rx
        return has and bool(self.stats.knobs["ifnet.permitted"])

    def _close_open(self) -> None:
        if self._open:
            data = bytes(self._open)
            self._open.clear()
            self._seal([data], self._open_kind)

    def _seal(self, payloads: Sequence[Buffer], kind: int) -> None:
        session = self._tx
        assert session is not None
        backend = session.backend
        assert backend is not None
        records = []
        if backend.asynchronous:
            # What is sealed later must not change meanwhile.
            payloads = [bytes(payload) for payload in payloads]
        for payload in payloads:
            record = OutRecord(session, self.number, kind, payload, self.explicit_nonce)
            self.number = self.number + 1 & _MASK64
            self.explicit_nonce = self.explicit_nonce + 1 & _MASK64
            records.append(record)
            self.queue.append(record)
        try:
            backend.submit(records)
        except Refused as e:
            self._crypto_failed(str(e))
        if not backend.asynchronous:
            self._check_failed()

    def _check_failed(self) -> None:
        if self.queue.failed():
            self._crypto_failed("a record could not be sealed")

    def _crypto_failed(self, text: str) -> None:
        self.stats.add("stats.failed_crypto")
        error = OSError(errno.EIO, text)
        self.abort(error)
        raise error


def _without_keys(params: TlsParams) -> TlsParams:
    """What the rules compare."""
    return TlsParams(params.cipher, params.version, b"", b"")
