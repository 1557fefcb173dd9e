"""Transactions of four clients over smt, 2 % of all frames lost: done in some order, as Redis does them."""

from __future__ import annotations

from random import Random

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.host import SimEndpoint
from smtstack.sim.network import Network
from smtstack.transport.events import Event, Request, Response
from smtstack.transport.params import TransportParams
from tests.kv_commands import comparable
from tests.redis_server import RawClient, redis_server
from workloads.kv import resp
from workloads.kv.backend import EmbeddedStore
from workloads.kv.resp import ReplyCutter, parse_message
from workloads.kv.server import RespMessages
from workloads.kv.store import Keyspace

PORT = 6001
LIMIT = 1_000_000
CLIENTS = 4
ROUNDS = 100
PATIENT = TransportParams(timeout_resends=1000)
Command = list[bytes]


class Server:
    """The store behind an endpoint, and what it was asked, in order: from whom, what, and the reply."""

    def __init__(self) -> None:
        self._front = RespMessages(EmbeddedStore(Keyspace()), LIMIT)
        self.log: list[tuple[int, bytes, bytes]] = []

    def event(self, here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            self._front.handle(Incoming(here, event, self.log))


class Incoming:
    """A request, as the front end wants it."""

    longest = LIMIT

    def __init__(self, here: SimEndpoint, event: Request, log: list[tuple[int, bytes, bytes]]) -> None:
        self._here = here
        self._event = event
        self._log = log
        self.data = event.data
        self.longest = LIMIT

    def reply(self, data: bytes) -> bool:
        self._log.append((self._event.rpc.peer.host.ip, self.data, data))
        return self._here.send_reply(self._event.rpc, data)


class Client:
    """Watches keys and looks at some, then changes some if nobody else has changed the watched ones meanwhile."""

    def __init__(self, number: int, server: int) -> None:
        self._random = Random(number)
        self._number = number
        self._server = server
        self._left = ROUNDS
        self._watched: list[bytes] = []
        self._demand: Command | None = None
        #: Replies as they came, in order.
        self.replies: list[bytes] = []

    def begin(self, here: SimEndpoint) -> None:
        self._left -= 1
        self._demand = None
        self._watched = self._random.sample([b"a", b"l", b"s", b"z"], self._random.randint(1, 2))
        self._ask(here, [[b"SMT.VERSIONS", *self._watched], [b"GET", b"a"], [b"LRANGE", b"l", b"0", b"-1"]])

    def event(self, here: SimEndpoint, event: Event) -> None:
        assert isinstance(event, Response), event
        self.replies.append(event.data)
        if self._demand is None:
            versions = event.data.split(b"\r\n")[1:1 + len(self._watched)]
            pairs = zip(self._watched, versions, strict=True)
            self._demand = [b"SMT.WATCH", *[word for key, version in pairs for word in (key, version[1:])]]
            changes = [self._change() for _ in range(self._random.randint(1, 4))]
            if self._random.random() < 0.05:
                changes.append([b"nonsense"])
            self._ask(here, [self._demand, [b"MULTI"], *changes, [b"EXEC"]])
        elif self._left:
            self.begin(here)

    def _ask(self, here: SimEndpoint, commands: list[Command]) -> None:
        here.send_request(self._server, PORT, b"".join(map(resp.command, commands)))

    def _change(self) -> Command:
        value = b"%d.%d" % (self._number, self._left)
        # Large ones take several packets.
        return self._random.choice([
            [b"INCR", b"a"], [b"APPEND", b"a", b"1"], [b"RPUSH", b"l", value], [b"LPOP", b"l"],
            [b"SADD", b"s", value], [b"SREM", b"s", value], [b"ZADD", b"z", b"%d" % self._left, value],
            [b"ZPOPMIN", b"z"], [b"LLEN", b"a"], [b"DEL", b"a", b"l"], [b"SCARD", b"s"],
            [b"RPUSH", b"l", value * 1000], [b"ZRANGE", b"z", b"0", b"-1", b"WITHSCORES"]])


@pytest.mark.parametrize("seed", range(3))
def test_transactions_over_smt_with_losses_are_as_redis_does_them(seed):
    net = Network(seed)
    switch = net.add_switch()
    rates = ImpairmentRates(drop=0.02, reorder=0.02)
    server_host = net.add_host(tx_rates=rates, rx_rates=rates)
    net.connect(server_host, switch)
    server = Server()
    keys = demo_keys("smt")
    server_host.listen(PORT, "smt", keys, server.event, PATIENT)
    clients: dict[int, Client] = {}
    for number in range(CLIENTS):
        host = net.add_host(tx_rates=rates, rx_rates=rates)
        net.connect(host, switch)
        client = clients[host.ip] = Client(number, server_host.ip)
        client.begin(host.listen(40_000, "smt", keys, client.event, PATIENT))
    net.run()
    assert server_host.tx_faults is not None
    assert server_host.tx_faults.dropped > 10
    # Everything was asked once and answered once, whatever was lost.
    assert len(server.log) == 2 * ROUNDS * CLIENTS
    for ip, client in clients.items():
        assert client.replies == [reply for who, _request, reply in server.log if who == ip]
    done, refused = replay(server.log, list(clients))
    assert done > ROUNDS
    assert refused > ROUNDS // 5


def replay(log: list[tuple[int, bytes, bytes]], clients: list[int]) -> tuple[int, int]:
    """The same to Redis, in the same order; how many transactions were done, and how many were not."""
    done = refused = 0
    with redis_server() as (path, _pid):
        theirs = {ip: RawClient(str(path)) for ip in clients}
        for ip, request, answer in log:
            commands, _wrong = parse_message(request, LIMIT)
            replies = ReplyCutter().take(answer)
            for args, reply in zip(commands, replies, strict=True):
                if args[0] == b"SMT.VERSIONS":
                    assert theirs[ip].send([b"WATCH", *args[1:]]) == [b"+OK\r\n"]
                elif args[0] != b"SMT.WATCH":
                    assert comparable(args, theirs[ip].send(args)[0]) == comparable(args, reply), (args, answer)
            done += replies[-1][:1] == b"*" and commands[-1] == [b"EXEC"] and replies[-1] != b"*-1\r\n"
            refused += replies[-1] == b"*-1\r\n"
        for client in theirs.values():
            client.close()
    return done, refused
