"""Clients of key-value servers inside a namespace: ``python -m tests.net.kv_driver NAME ...``. JSON on stdout."""

from __future__ import annotations

import json
import select
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.socket import RpcFuture, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from tests.kv_commands import COMMAND, in_order
from tests.kv_history import Asked, Histories, parsed
from tests.net.netns import IFACE, PATIENCE, A, B
from tests.redis_server import RawClient
from workloads import transports
from workloads.kv import resp
from workloads.kv.commands import COMMANDS
from workloads.kv.resp import ReplyCutter
from workloads.transports import Settings
from workloads.transports.contract import Call, Caller

LOCAL = {name for name, entry in COMMANDS.items() if entry.local}
PATIENT = TransportParams(timeout_resends=1000)
#: Operations under way at a time.
IN_FLIGHT = 6


def lossy_clients(stack: ExitStack, keys: str, first_port: int, count: int) -> list[SmtSocket]:
    """Clients on host a that lose 2 % of all frames, both ways."""
    rates = ImpairmentRates(drop=0.02, reorder=0.02)
    found = []
    for i in range(count):
        context = SmtContext(IFACE, "smt", keys, PATIENT, tx_impairments=Impairments(rates, seed=2 * i),
                             rx_impairments=Impairments(rates, seed=2 * i + 1))
        found.append(stack.enter_context(SmtSocket((A, first_port + i), context)))
    return found


def lost(clients: list[SmtSocket]) -> int:
    """Frames that were."""
    return sum(way.dropped for c in clients for way in (c.context.tx_impairments, c.context.rx_impairments)
               if way is not None)


def model(keys: str, ours: str, theirs: str, examples: str) -> None:
    """The same commands of several clients to two servers; the replies are the same."""
    compared = transactions = 0
    with ExitStack() as stack:
        clients = lossy_clients(stack, keys, 45_000, 4)

        @settings(max_examples=int(examples), deadline=None, derandomize=True, database=None)
        @given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.lists(COMMAND, min_size=1, max_size=3)),
                        max_size=12))
        def compare(turns: list[tuple[int, bool, list[list[bytes]]]]) -> None:
            nonlocal compared, transactions
            for who, together, asked in [(0, False, [[b"FLUSHALL"]]), *turns]:
                commands = asked
                if together:
                    # In front of Redis what is about the client cannot be done there.
                    commands = [[b"MULTI"], *[c for c in asked if c[0].lower().decode("latin-1") not in LOCAL],
                                [b"EXEC"]]
                transactions += together
                data = b"".join(map(resp.command, commands))
                replies = []
                for port in (ours, theirs):
                    message = clients[who].request((B, int(port)), data, PATIENCE)
                    replies.append(ReplyCutter().take(message))
                assert in_order(commands, replies[0]) == in_order(commands, replies[1]), commands
                compared += len(commands)

        compare()
    print(json.dumps({"compared": compared, "transactions": transactions, "lost": lost(clients)}))


def counting(keys: str, port: str, each: str) -> None:
    """Several clients count up one number, many RPCs under way at a time: every reply is another number."""
    peer = (B, int(port))
    with ExitStack() as stack:
        clients = lossy_clients(stack, keys, 46_000, 3)
        futures = [(c, c.send_request(peer, resp.command(["INCR", "n"]) + resp.command(["APPEND", "s", "x"])))
                   for _ in range(int(each)) for c in clients]
        numbers, lengths = [], []
        while any(not f.done() for _c, f in futures):
            for client in clients:
                client.poll()
                client.drive(lambda: True, 0.001)
        for _client, future in futures:
            number, length = ReplyCutter().take(future.result(0))
            numbers.append(int(number[1:-2]))
            lengths.append(int(length[1:-2]))
        last = ReplyCutter().take(clients[0].request(peer, resp.command(["GET", "n"]), PATIENCE))[0]
    total = int(each) * 3
    print(json.dumps({"once": sorted(numbers) == sorted(lengths) == list(range(1, total + 1)),
                      "last": last.decode(), "lost": lost(clients)}))


def mixed(keys: str, smt: str, homa: str, tcp: str) -> None:
    """One keyspace, whatever it is reached by."""
    said = {}
    with RawClient((B, int(tcp))) as stream:
        assert stream.one("SET from tcp") == b"+OK\r\n"
        for name, port in (("smt", smt), ("homa", homa)):
            own = Settings(name, (A, 47_000), IFACE, keys, params=PATIENT)
            with transports.open_caller(own, [(B, int(port))]) as caller:
                def ask(data: bytes, caller: Caller = caller) -> str:
                    call = Call(data)
                    caller.begin(call)
                    while not caller.finished:
                        caller.drive(PATIENCE)
                    assert caller.finished.popleft().error is None
                    assert call.response is not None
                    return call.response.decode("latin-1")

                said[name] = [ask(resp.command(["GET", "from"])), ask(resp.command(["SET", "from", name])),
                              ask(b"*1000000000\r\n"), ask(resp.command(["SET", "big", b"\0" * 500_000])),
                              ask(resp.command(["STRLEN", "big"]))]
                assert ask(resp.command(["GET", "big"])) == resp.bulk(b"\0" * 500_000).decode("latin-1")
        said["tcp"] = [stream.one("GET from").decode(), stream.one("STRLEN big").decode()]
    print(json.dumps(said))


def killed(keys: str, port: str) -> None:
    """YCSB A against a server that is killed now and then, 1 % of all frames lost. Lines on stdin say what to do:
    ``go`` (the server is up), ``stop`` (it was killed); at their end it says what was seen."""
    histories, rates = Histories(1), ImpairmentRates(drop=0.01)
    peer = (B, int(port))
    ports = count(40_000)
    dropped = 0
    for number, line in enumerate(sys.stdin):
        assert line == "go\n"
        context = SmtContext(IFACE, "smt", keys, PATIENT, tx_impairments=Impairments(rates, seed=2 * number),
                             rx_impairments=Impairments(rates, seed=2 * number + 1))
        with SmtSocket((A, next(ports)), context) as client:
            if not number:
                client.request(peer, b"".join(map(resp.command, histories.load())), PATIENCE)
            asked: dict[RpcFuture, Asked] = {}
            print("going", flush=True)
            while not select.select([sys.stdin], [], [], 0)[0]:
                while len(asked) < IN_FLIGHT:
                    one = histories.next(time.monotonic_ns())
                    asked[client.send_request(peer, b"".join(map(resp.command, one.commands)))] = one
                client.drive(lambda asked=asked: any(f.done() for f in asked), 0.005)  # type: ignore[misc]
                for future in [f for f in asked if f.done()]:
                    asked.pop(future).answer(parsed(future.result(0)), time.monotonic_ns())
            for one in asked.values():
                one.lost()
            dropped += sum(way.dropped for way in (context.tx_impairments, context.rx_impairments)
                           if way is not None)
        assert sys.stdin.readline() == "stop\n"
        print("stopped", flush=True)
    print(json.dumps({"violations": histories.violations(), "acknowledged": histories.acknowledged,
                      "unanswered": histories.unanswered, "read": histories.read, "dropped": dropped}))


if __name__ == "__main__":
    programs: dict[str, Callable[..., None]] = {"model": model, "counting": counting, "mixed": mixed,
                                                "killed": killed}
    programs[sys.argv[1]](*sys.argv[2:])
