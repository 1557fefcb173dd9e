"""Whole handshakes between a client and a server in one process, without a network: what each side computes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.serialization import Encoding

from smtstack.crypto.keys import Endpoints
from smtstack.errors import SmtError
from smtstack.session import resumption, tickets
from smtstack.session.config import SessionConfig
from smtstack.session.hello import EarlyClient, EarlyServer
from smtstack.session.identity import Identity
from smtstack.session.offer import Offer, choose
from smtstack.session.pool import POOL_SIZE, KeyPool
from smtstack.session.state import MemoryState
from smtstack.session.tls import TlsClient, TlsServer
from smtstack.wire.ipv4 import address
from workloads.fleet.authority import Authority, make_key

CLIENT, SERVER = ("h1", "10.0.0.1"), ("h2", "10.0.0.2")
CLIENT_PORT, SERVER_PORT = 40_000, 2000


class Stopwatch:
    """Time of each side, in turns."""

    def __init__(self) -> None:
        self.client_ns = 0
        self.server_ns = 0
        self._at = time.perf_counter_ns()

    def start(self) -> None:
        """From here on."""
        self._lap()

    def client(self) -> None:
        """What has passed was the client's."""
        self.client_ns += self._lap()

    def server(self) -> None:
        """What has passed was the server's."""
        self.server_ns += self._lap()

    def _lap(self) -> int:
        before, self._at = self._at, time.perf_counter_ns()
        return self._at - before


#: Makes one session under the watch. Raises SmtError if it cannot be.
Shake = Callable[[Stopwatch], None]


@dataclass(frozen=True, slots=True)
class Flow:
    """One way to begin a session."""

    name: str
    shake: Shake
    #: Done between two of them, unwatched.
    prepare: Callable[[], None] = field(default=lambda: None)


class Ends:
    """A client's and a server's credentials of one kind of keys."""

    def __init__(self, kind: str = "p256") -> None:
        authority = Authority.make(kind)
        names = {ip: name for name, ip in (CLIENT, SERVER)}
        self.client, self.server = (_identity(authority, kind, name, ip, names) for name, ip in (CLIENT, SERVER))
        self.client_ip, self.server_ip = address(CLIENT[1]), address(SERVER[1])
        self.at_client = Endpoints(self.client_ip, CLIENT_PORT, self.server_ip, SERVER_PORT)
        self.at_server = Endpoints(self.server_ip, SERVER_PORT, self.client_ip, CLIENT_PORT)
        self.utc = int(time.time())


def _identity(authority: Authority, kind: str, name: str, ip: str, names: dict[str, str]) -> Identity:
    key = make_key(kind)
    certificate = authority.issue(name, ip, key.public_key())
    return Identity((certificate.public_bytes(Encoding.DER),), key, (authority.certificate,), names)


def flows() -> list[Flow]:
    """TLS by kind of key, with and without a client's certificate; tickets and PSKs, with the key pairs of both
    sides made in advance or when they are needed."""
    found: list[Flow] = []
    for kind, name in (("p256", "ECDSA P-256"), ("ed25519", "Ed25519")):
        ends = Ends(kind)
        found += [Flow(f"{mode}, {name}", _tls(ends, mode == "mtls")) for mode in ("tls", "mtls")]
    ends = Ends()
    for mode in ("ticket", "ticket-fs", "psk", "psk-fs"):
        # A PSK alone needs no key pair.
        found += [_early(ends, mode, ahead) for ahead in ((False,) if mode == "psk" else (False, True))]
    return found


def _tls(ends: Ends, mutual: bool) -> Shake:
    offer = Offer()

    def shake(watch: Stopwatch) -> None:
        watch.start()
        client = TlsClient(ends.client, offer, ends.server_ip, ends.utc, mutual)
        hello = client.hello()
        watch.client()
        choice = choose(offer, offer)
        server = TlsServer(ends.server, ends.client_ip, ends.utc, mutual)
        answer = server.answer(hello, offer, choice)
        watch.server()
        finish = client.finish(answer, choice)
        watch.client()
        server.finish(finish)
        done = server.done(b"")
        watch.server()
        client.done(done)
        watch.client()
        if client.secret != server.secret:
            raise SmtError("client and server have different secrets")

    return shake


def _early(ends: Ends, mode: str, ahead: bool) -> Flow:
    """A session from a ticket; as in the paper, the client shows no certificate."""
    offer, forward_secret = Offer(), mode.endswith("-fs")
    pools = [KeyPool(POOL_SIZE if ahead else 0) for _side in ("client", "server")]
    state = MemoryState()
    server = EarlyServer(SessionConfig(ends.server, mode, offer, client_auth=False), state, pools[1])
    credential = _ticket(ends, state, offer) if mode.startswith("ticket") else _psk(state, offer, ends)

    def shake(watch: Stopwatch) -> None:
        watch.start()
        client = EarlyClient(ends.client, credential, offer, ends.at_client, forward_secret=forward_secret,
                             pool=pools[0])
        watch.client()
        accepted = server.hello_untrusted(client.hello, ends.at_server, ends.utc)
        watch.server()
        client.answer_untrusted(accepted.answer)
        established = client.established()
        watch.client()
        if established.secret != accepted.session.secret:
            raise SmtError("client and server have different secrets")

    def prepare() -> None:
        for pool in pools:
            pool.refill(POOL_SIZE)

    return Flow(mode + (", keys made ahead" if ahead else ""), shake, prepare)


def _ticket(ends: Ends, state: MemoryState, offer: Offer) -> tickets.Ticket:
    secret = tickets.issue(ends.server, ends.server_ip, SERVER_PORT, offer, forward_secret_only=False,
                           client_auth=False, utc=ends.utc)
    state.add_ticket(secret)
    return secret.ticket


def _psk(state: MemoryState, offer: Offer, ends: Ends) -> resumption.Psk:
    resume = bytes(range(32))
    given = resumption.grant(state, resume, ends.client_ip, "", offer, forward_secret_only=False, utc=ends.utc)
    return resumption.psk_untrusted(given, resume, SERVER[0])


def ticket_check() -> Flow:
    """What a client does with a ticket beforehand: parse it, check certificate and signature."""
    ends = Ends()
    packed = _ticket(ends, MemoryState(), Offer()).pack()

    def check(watch: Stopwatch) -> None:
        watch.start()
        tickets.parse_untrusted(packed).verify(ends.client, ends.server_ip, SERVER_PORT, ends.utc)
        watch.client()

    return Flow("ticket, parse and verify", check)


def measure(found: Sequence[Flow], calls: int) -> dict[str, list[tuple[float, float, float]]]:
    """(client, server, processor time of both) in microseconds of every session, by name."""
    times: dict[str, list[tuple[float, float, float]]] = {flow.name: [] for flow in found}
    for flow in found:
        flow.prepare()
        flow.shake(Stopwatch())
    for flow in found:
        for _call in range(calls):
            flow.prepare()
            watch, cpu = Stopwatch(), time.process_time_ns()
            flow.shake(watch)
            cpu = time.process_time_ns() - cpu
            times[flow.name].append((watch.client_ns / 1000, watch.server_ns / 1000, cpu / 1000))
    return times
