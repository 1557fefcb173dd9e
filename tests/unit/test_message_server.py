"""A server of smt on a socket, and clients that agreed on less than what they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest

from smtstack.session.offer import Offer
from smtstack.socket import RpcFuture, SmtContext, SmtSocket
from smtstack.transport.params import TransportParams
from tests.cable import CLIENT, SERVER, connect
from workloads.fleet.authority import make_folder
from workloads.transports.contract import Incoming
from workloads.transports.messages import MessageServer

#: A peer is given up only after seconds: others use this machine, too.
PATIENT = TransportParams(timeout_resends=1000)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certs") / "all"
    make_folder(folder, {"a": CLIENT[0], "b": SERVER[0]})
    return folder


@pytest.mark.parametrize(("offer", "why"), [
    (Offer(max_message=100), "a message of 5000 bytes; 1 to 100 are possible with 10.0.0.1:40000"),
    (Offer(padding="buckets:100,1000000000"), "exceeds the 65534 that 16 index bits allow"),
    (Offer(padding="buckets:100,2500000"), "by padding; the peer would refuse more"),
])
def test_a_client_that_wants_more_than_it_takes_does_not_end_the_server(monkeypatch, certs, offer, why):
    def handle(request: Incoming) -> None:
        request.reply(b"x" * int(request.data))

    def finish(future: RpcFuture) -> None:
        for _turn in range(2000):
            server.poll()
            client.poll()
            if future.done() or (server.failure() and future is large):
                return

    connect(monkeypatch)
    with (SmtSocket(CLIENT, SmtContext("e0", params=PATIENT, certs=certs / "a", offer=offer)) as client,
          SmtSocket(SERVER, SmtContext("e0", params=PATIENT, certs=certs / "b")) as far):
        server = MessageServer(far, handle)
        large = client.send_request(SERVER, b"5000")
        finish(large)
        assert not large.done()
        assert server.failure().startswith("10.0.0.1:40000: no answer: ")
        assert why in server.failure()
        # Nothing of it stays, and the next request is served.
        assert far.endpoint.snapshot()["server_rpcs"] == 0
        small = client.send_request(SERVER, b"50")
        finish(small)
        assert small.result(0) == b"x" * 50
