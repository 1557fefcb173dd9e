"""TLS 1.3 handshakes by OpenSSL, flight by flight over memory: authentication and a secret, no traffic of its own.

Client and server exchange four flights, which travel as two RPCs of the handshake plane::

    TlsClient.hello()   ->  TlsServer.answer()
    TlsClient.finish()  ->  TlsServer.finish()
    TlsClient.done()    <-  TlsServer.done()

A session's secret is exported (RFC 8446 §7.5) for the offer and choice of parameters that each side saw, and both
sides confirm these inside TLS. A flight that leaves OpenSSL waiting for more is an error: nothing hangs. Only
group P-256 is offered, so that a ClientHello fits into one packet and no server asks for another.
"""

from __future__ import annotations

from typing import NoReturn
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL, crypto

from smtstack.errors import HandshakeError, PeerError
from smtstack.session.flights import MAX_FLIGHT
from smtstack.session.identity import MAX_CHAIN, Identity, chain_error, check_time, parsed, trusting
from smtstack.session.keylog import Keylog
from smtstack.session.offer import Agreement, Offer, binding, check_choice

ALPN = b"smt/1"
SESSION_LABEL = b"EXPERIMENTAL-smt-session"
RESUMPTION_LABEL = b"EXPERIMENTAL-smt-resumption"
SECRET_LEN = 32
_SUITES = b"TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
#: OpenSSL's SSL_MODE_NO_AUTO_CHAIN: else it sends the authority's certificate along, which the peer has.
_NO_AUTO_CHAIN = 0x8
_CONFIRM_LEN = 32
#: The alerts that OpenSSL sends where not it, but its caller refused a certificate; pyOpenSSL leaves no choice.
_JUDGED = ("internal error", "certificate unknown")
#: Length of the blob that follows the server's confirmation.
_LENGTH_LEN = 2
#: The random of a ServerHello that asks for another ClientHello, and where it is in a flight (RFC 8446 §4.1.3).
_RETRY = bytes.fromhex("CF21AD74E59A6111BE1D8C021E65B891C2A211167ABB8C5E079E09E2C8A8339C")
_RANDOM_AT = 11


class _Peer:
    """What OpenSSL's callbacks need of one handshake. Refers to no connection, so that nothing keeps it alive."""

    __slots__ = ("error", "identity", "ip", "is_server", "keylog", "name", "utc")

    def __init__(self, identity: Identity, ip: int, utc: int, is_server: bool, keylog: Keylog | None) -> None:
        self.identity = identity
        self.ip = ip
        self.utc = utc
        self.is_server = is_server
        self.keylog = keylog
        self.name = ""
        #: Why the certificate was refused.
        self.error = ""

    def accepts(self, certificate: crypto.X509, code: int, depth: int, ok: bool) -> bool:
        """One certificate of the chain; OpenSSL shows each, the leaf last, with its own judgement."""
        if not ok:
            self.error = chain_error(code)
            return False
        try:
            own = parsed(certificate)
            check_time(own, self.utc)
            if depth == 0:
                self.name = self.identity.check_leaf(own, self.ip, server=self.is_server)
        except HandshakeError as e:
            self.error = str(e)
            return False
        return True


class _Handshake:
    """What both sides have in common."""

    def __init__(self, identity: Identity, server: bool, peer_ip: int, utc: int, mutual: bool,
                 keylog: Keylog | None) -> None:
        self._other = "client" if server else "server"
        self._peer = _Peer(identity, peer_ip, utc, not server, keylog)
        self._tls = SSL.Connection(_context(identity, server, mutual, keylog is not None), None)
        self._tls.set_app_data(self._peer)
        self._confirm = b""
        self._shaken = False
        #: 32 bytes each, once ``finish`` returned: from which the session's keys come, and those of later ones.
        self.secret = b""
        self.resumption = b""
        #: Whom the peer's certificate names, once ``finish`` returned; "": it showed none.
        self.peer_name = ""

    @property
    def judged(self) -> bool:
        """Whether it failed, or may fail now, by what the peer showed: its certificate, or what TLS protects."""
        return self._peer.error != "" or self._shaken

    def _take(self, flight: bytes) -> None:
        if not 0 < len(flight) <= MAX_FLIGHT:
            raise HandshakeError(f"the {self._other}'s TLS flight has {len(flight)} bytes; 1 to {MAX_FLIGHT} are "
                                 "possible")
        self._tls.bio_write(flight)

    def _shake(self) -> bool:
        """Let OpenSSL act on what it has; whether the handshake is complete."""
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            return False
        except HandshakeError as e:
            raise HandshakeError(str(e), self._output()) from None
        except SSL.Error as e:
            self._fail(e)
        self._shaken = True
        return True

    def _fail(self, error: SSL.Error) -> NoReturn:
        raise HandshakeError(self._peer.error or _words(error, self._other), self._output()) from None

    def _output(self) -> bytes:
        """All that OpenSSL wants to send."""
        parts = []
        try:
            while True:
                parts.append(self._tls.bio_read(MAX_FLIGHT))
        except SSL.WantReadError:
            return b"".join(parts)

    def _data(self) -> bytes:
        """All application data of the flight."""
        parts = []
        try:
            while True:
                parts.append(self._tls.recv(MAX_FLIGHT))
        except SSL.WantReadError:
            return b"".join(parts)
        except SSL.Error as e:
            self._fail(e)

    def _cut_short(self) -> NoReturn:
        raise HandshakeError(f"the {self._other}'s TLS flight is cut short")

    def _check_alpn(self) -> None:
        if self._tls.get_alpn_proto_negotiated() != ALPN:
            raise HandshakeError(f"the {self._other} does not speak {ALPN.decode()}")

    def _export(self, offer: Offer, choice: Agreement) -> None:
        self._confirm = binding(offer, choice)
        self.secret = self._tls.export_keying_material(SESSION_LABEL, SECRET_LEN, self._confirm)
        self.resumption = self._tls.export_keying_material(RESUMPTION_LABEL, SECRET_LEN, self._confirm)
        self.peer_name = self._peer.name


class TlsClient(_Handshake):
    """The client's side of one handshake with the host at ``peer_ip``.

    ``utc``: now, in seconds of Unix time. ``mutual``: show our certificate if the server wants one. Every method
    raises :class:`HandshakeError`, after which the object is of no more use. ``finish`` and ``done`` take an alert
    in place of a flight as well, and then say what it means.
    """

    def __init__(self, identity: Identity, offer: Offer, peer_ip: int, utc: int, mutual: bool,
                 keylog: Keylog | None = None) -> None:
        super().__init__(identity, False, peer_ip, utc, mutual, keylog)
        self._offer = offer
        self._tls.set_connect_state()

    def hello(self) -> bytes:
        """The first flight."""
        self._shake()
        return self._output()

    def finish(self, tls: bytes, choice: Agreement) -> bytes:
        """Verify the server and its ``choice``; the second flight. From here on ``secret`` is there."""
        try:
            check_choice(self._offer, choice)
        except PeerError as e:
            raise HandshakeError(str(e)) from None
        self._take(tls)
        if not self._shake():
            self._cut_short()
        self._check_alpn()
        self._export(self._offer, choice)
        self._tls.sendall(self._confirm)
        return self._output()

    def done(self, tls: bytes) -> bytes:
        """Verify the server's last flight; what it gave :meth:`TlsServer.done`."""
        self._take(tls)
        data = self._data()
        if len(data) < _CONFIRM_LEN + _LENGTH_LEN:
            self._cut_short()
        _check_confirmed(data[:_CONFIRM_LEN], self._confirm)
        blob = data[_CONFIRM_LEN + _LENGTH_LEN:]
        if len(blob) != int.from_bytes(data[_CONFIRM_LEN:_CONFIRM_LEN + _LENGTH_LEN], "big"):
            self._cut_short()
        return blob


class TlsServer(_Handshake):
    """The server's side of one handshake with a client at ``peer_ip``.

    ``utc``: now, in seconds of Unix time. ``mutual``: demand a certificate of the client. Every method raises
    :class:`HandshakeError`, after which the object is of no more use.
    """

    def __init__(self, identity: Identity, peer_ip: int, utc: int, mutual: bool,
                 keylog: Keylog | None = None) -> None:
        super().__init__(identity, True, peer_ip, utc, mutual, keylog)
        self._offer: Offer | None = None
        self._choice: Agreement | None = None
        self._tls.set_accept_state()

    def answer(self, tls: bytes, offer: Offer, choice: Agreement) -> bytes:
        """Our flight to the client's first; ``offer``: what came beside it, ``choice``: what goes beside ours."""
        self._offer, self._choice = offer, choice
        self._take(tls)
        self._shake()
        answer = self._output()
        if not answer:
            self._cut_short()
        if answer[_RANDOM_AT:_RANDOM_AT + len(_RETRY)] == _RETRY:
            raise HandshakeError("the client offers no key share of group P-256")
        self._check_alpn()
        return answer

    def finish(self, tls: bytes) -> None:
        """Verify the client and that it saw the same parameters. From here on ``secret`` is there."""
        if self._offer is None or self._choice is None:
            raise HandshakeError("the client finishes a handshake that did not begin")
        self._take(tls)
        if not self._shake():
            self._cut_short()
        confirmed = self._data()
        if len(confirmed) < _CONFIRM_LEN:
            self._cut_short()
        _check_confirmed(confirmed, binding(self._offer, self._choice))
        self._export(self._offer, self._choice)

    def done(self, blob: bytes) -> bytes:
        """Our last flight, with ``blob`` inside for the client."""
        self._tls.sendall(self._confirm + len(blob).to_bytes(_LENGTH_LEN, "big") + blob)
        return self._output()


#: Made once for each identity, as it takes long. A context refers to no identity, and so goes with its own.
_CONTEXTS: WeakKeyDictionary[Identity, dict[tuple[bool, bool, bool], SSL.Context]] = WeakKeyDictionary()


def _context(identity: Identity, server: bool, mutual: bool, logged: bool) -> SSL.Context:
    made = _CONTEXTS.setdefault(identity, {})
    key = server, mutual, logged
    if key not in made:
        made[key] = _make_context(identity, server, mutual, logged)
    return made[key]


def _make_context(identity: Identity, server: bool, mutual: bool, logged: bool) -> SSL.Context:
    context = SSL.Context(SSL.TLS_SERVER_METHOD if server else SSL.TLS_CLIENT_METHOD)
    context.set_min_proto_version(SSL.TLS1_3_VERSION)
    context.set_tls13_ciphersuites(_SUITES)
    # By its manual for one curve of old; since TLS 1.3 it sets the list of groups.
    context.set_tmp_ecdh(ec.SECP256R1())
    # Resumption is the session's own, not that of TLS.
    context.set_options(SSL.OP_NO_TICKET)
    context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
    if server:
        context.set_alpn_select_callback(_select)
    else:
        context.set_alpn_protos([ALPN])
    context.set_mode(_NO_AUTO_CHAIN | SSL.MODE_RELEASE_BUFFERS)
    if server or mutual:
        context.use_certificate(identity.leaf)
        for other in identity.chain[1:]:
            context.add_extra_chain_cert(x509.load_der_x509_certificate(other))
        context.use_privatekey(identity.private_key)
    if not server or mutual:
        store = context.get_cert_store()
        assert store is not None
        trusting(store, identity.trust)
        context.set_verify(SSL.VERIFY_PEER | SSL.VERIFY_FAIL_IF_NO_PEER_CERT, _verify)
        context.set_verify_depth(MAX_CHAIN)
    if logged:
        context.set_keylog_callback(_log)
    return context


def _verify(connection: SSL.Connection, certificate: crypto.X509, code: int, depth: int, ok: int) -> bool:
    peer: _Peer = connection.get_app_data()
    return peer.accepts(certificate, code, depth, bool(ok))


def _select(_connection: SSL.Connection, offered: list[bytes]) -> bytes:
    if ALPN in offered:
        return ALPN
    raise HandshakeError(f"the client does not speak {ALPN.decode()}")


def _log(connection: SSL.Connection, line: bytes) -> None:
    peer: _Peer = connection.get_app_data()
    if peer.keylog is not None:
        peer.keylog.tls(line.decode("ascii"))


def _check_confirmed(confirmed: bytes, own: bytes) -> None:
    if confirmed != own:
        raise HandshakeError("the session's parameters were changed on the way")


def _words(error: SSL.Error, other: str) -> str:
    """OpenSSL's reason, for people; alerts of the other side are told from what we saw ourselves."""
    stack = error.args[0] if error.args else None
    if not isinstance(stack, list) or not stack:
        return f"the {other} ended the handshake"
    reason = str(stack[0][-1])
    _version, alert, meaning = reason.partition(" alert ")
    if meaning in _JUDGED:
        return (f"the {other} refuses the handshake: for our certificate's time, name or use, or an error of its "
                "own; its own message says which")
    if alert:
        return f"the {other} refuses the handshake: {meaning}"
    return f"TLS: {reason}"
