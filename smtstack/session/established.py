"""A session both sides agreed on: all that an endpoint needs to carry it, and that workers share."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from smtstack.crypto.epochs import KeySchedule, SessionParams, SmtSession
from smtstack.crypto.keys import EarlySecrets, Endpoints, TrafficSecrets
from smtstack.crypto.padding import padding_named
from smtstack.session.offer import Agreement, cipher_of

#: Ways a session begins. ``-fs``: with a forward-secret key after the first flight.
MODES = ("tls", "mtls", "ticket", "ticket-fs", "psk", "psk-fs")


@dataclass(frozen=True, slots=True)
class Established:
    """One session, from one side."""

    #: The peer.
    ip: int
    port: int
    is_client: bool
    mode: str
    #: 32 bytes from which all keys come; empty at a client that awaits the answer to a forward-secret hello.
    secret: bytes = field(repr=False)
    agreement: Agreement
    #: Of a forward-secret 0-RTT session: seals the client's first flight (epoch 0 towards the server). Else empty.
    early: bytes = field(default=b"", repr=False)
    #: Whom the peer's certificate names; "": it showed none.
    peer_name: str = ""

    def session(self, local_ip: int, local_port: int, key_update_records: int = 0,
                may_ask: bool = True) -> SmtSession:
        """The session for an endpoint at this address. ``may_ask``: it may send requests of its own."""
        agreed = self.agreement
        params = SessionParams(cipher=cipher_of(agreed), index_bits=agreed.index_bits,
                               padding=padding_named(agreed.padding), key_update_records=key_update_records)
        session = SmtSession(self.schedule(local_ip, local_port), params)
        session.may_ask = may_ask
        if self.early and not self.is_client:
            # What a server asks itself is forward-secret from its first request on.
            session.update_keys()
        return session

    def schedule(self, local_ip: int, local_port: int) -> KeySchedule:
        """Where the session's keys come from."""
        ends = Endpoints(local_ip, local_port, self.ip, self.port)
        cipher = cipher_of(self.agreement)
        if self.early:
            return EarlySecrets(self.early, self.secret, ends, cipher, self.is_client).keys
        return TrafficSecrets(self.secret, ends, cipher).keys

    def pack(self) -> bytes:
        """For another worker, over a socket of our own."""
        return json.dumps(asdict(self) | {"secret": self.secret.hex(), "early": self.early.hex()}).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Established:
        """The inverse; trusted."""
        fields = json.loads(data)
        return cls(**fields | {"secret": bytes.fromhex(fields["secret"]), "early": bytes.fromhex(fields["early"]),
                               "agreement": Agreement(**fields["agreement"])})
