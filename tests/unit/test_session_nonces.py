"""No nonce twice under one key, whatever becomes of sessions: every call of an AEAD is looked at."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.crypto.aead import CIPHERS, Aead
from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import ImpairmentRates
from smtstack.session.established import MODES
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT, make_side
from smtstack.transport.params import TransportParams
from tests.handshakes import Hosts, SessionRig, to_client, to_server
from tests.rig import Rig

LOSSY = ImpairmentRates(drop=0.05, duplicate=0.1, reorder=0.1)
PATIENT = TransportParams(timeout_resends=1000)


class Ledger:
    """What was sealed, by key and nonce."""

    def __init__(self) -> None:
        self.sealed: dict[tuple[bytes, bytes], tuple[bytes, bytes]] = {}
        #: Something else under a nonce that was used.
        self.twice = 0
        #: The same again, as a retransmission is.
        self.again = 0

    def note(self, key: bytes, nonce: bytes, plain: bytes, aad: bytes | None) -> None:
        before = self.sealed.setdefault((key, nonce), (plain, aad or b""))
        if before == (plain, aad or b""):
            self.again += 1
        else:
            self.twice += 1


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    ledger = Ledger()
    made = {cipher.name: cipher.make for cipher in CIPHERS.values()}

    class Noted:
        """In place of an AEAD."""

        def __init__(self, key: bytes, make: Callable[[bytes], Aead] = AESGCM) -> None:
            self._key, self._aead = key, make(key)
            self.decrypt = self._aead.decrypt

        def encrypt(self, nonce: bytes, plain: bytes, aad: bytes | None) -> bytes:
            ledger.note(self._key, nonce, plain, aad)
            return self._aead.encrypt(nonce, plain, aad)

    def make_by(make: Callable[[bytes], Aead]) -> Any:
        return lambda key: Noted(key, make)

    # Ciphers are frozen. What they make is an attribute's, which compiled code looks up, too.
    for cipher in CIPHERS.values():
        object.__setattr__(cipher, "make", make_by(made[cipher.name]))
    for module in ("smtstack.nic.context", "smtstack.session.hello", "smtstack.session.resumption"):
        monkeypatch.setattr(f"{module}.AESGCM", Noted)
    yield ledger
    for cipher in CIPHERS.values():
        object.__setattr__(cipher, "make", made[cipher.name])


def talk(rig: Rig, name: str, both: bool = True) -> None:
    """Requests of all sizes; their content differs from all others."""
    for number in range(4):
        rig.request(b"%s %d " % (name.encode(), number) + name.encode() * (900 * number))
    if both:
        rig.request(b"back " + name.encode(), from_client=False)


def restart(rig: SessionRig, hosts: Hosts, server: bool, nic: NicConfig) -> None:
    """One end forgets everything but what is on its disk."""
    managers = list(rig.managers)
    managers[server] = hosts.server_manager() if server else hosts.client_manager()
    rig.managers = managers[0], managers[1]
    ip, port = (SERVER_IP, SERVER_PORT) if server else to_client(rig)
    side = make_side(ip, port, "smt", managers[server], PATIENT, nic)
    if server:
        rig.server = side
    else:
        rig.client = side


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_sessions_come_and_go(ledger, mode, offload):
    hosts = Hosts(mode, client={"key_update_records": 12}, server={"key_update_records": 9}).resumable()
    # One that is used again and again, as RFC 8446 lets a client do.
    kept = copy.deepcopy(hosts.psks)
    nic = NicConfig(tls_hw_tx_offload=offload)
    rig = hosts.rig(params=PATIENT, nic=nic, rates=LOSSY)
    sessions = 0
    for turn in range(36):
        # Sent while another session of the two is still there, ends, or begins.
        talk(rig, f"turn {turn} ", both=mode != "tls" and turn % 3 == 0)
        for _step in range(7 * turn % 31):
            rig.step()
        what = turn % 6
        if what == 0:
            rig.run()
        elif what == 1:
            rig.managers[0].close(*to_server(), rig.now)
        elif what == 2:
            rig.managers[1].close(*to_client(rig), rig.now)
        elif what == 3:
            rig.managers[0].lost(*to_server(), rig.now)
        else:
            sessions += rig.managers[1].counters()["sessions_begun"] if what == 4 else 0
            restart(rig, hosts, what == 4, nic)
            if mode.startswith("psk"):
                psk = kept.get(*to_server(), hosts.clock.utc)
                assert psk is not None
                hosts.psks.put(*to_server(), psk)
    rig.run()
    sessions += rig.managers[1].counters()["sessions_begun"]
    assert sessions > 10
    assert rig.client.endpoint.ip == CLIENT_IP
    assert len(rig.delivered) > 40
    assert len({key for key, _nonce in ledger.sealed}) > 2 * sessions
    assert ledger.again > 20
    assert ledger.twice == 0


def test_ids_that_start_over_under_the_same_keys_are_noticed(ledger):
    """The control: two programs, one after the other, that seal with one key file as if each were the first."""
    for name in ("one", "two"):
        rig = Rig("smt")
        talk(rig, name)
        rig.run()
        assert rig.answered() == 5
    assert ledger.twice > 5


def _three_sessions(hosts: Hosts) -> None:
    """Both ends begin anew each time."""
    hosts.resumable()
    for name in ("one", "two", "three"):
        rig = hosts.rig(params=PATIENT)
        talk(rig, name, both=False)
        rig.run()
        assert rig.answered() == 4


@pytest.mark.parametrize("mode", MODES)
def test_what_is_read_of_the_kernel_may_be_constant(ledger, monkeypatch, mode):
    """Nonces are counted, or made of what is sealed; keys come of OpenSSL's key exchange, or of a secret that is
    used once."""
    monkeypatch.setattr("secrets.token_bytes", bytes)
    monkeypatch.setattr("secrets.randbits", lambda _bits: 5)
    _three_sessions(Hosts(mode))
    assert ledger.twice == 0


def test_where_openssls_keys_are_constant_too_nonces_come_again(ledger, monkeypatch):
    """The control: nothing but that is between a host's randomness and the same keys again."""
    monkeypatch.setattr("secrets.token_bytes", bytes)
    monkeypatch.setattr("secrets.randbits", lambda _bits: 5)
    fixed = X25519PrivateKey.from_private_bytes(bytes(range(32)))
    monkeypatch.setattr("smtstack.session.pool.X25519PrivateKey.generate", lambda: fixed, raising=True)
    _three_sessions(Hosts("ticket-fs"))
    assert ledger.twice > 0
