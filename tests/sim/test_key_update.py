"""Keys change under load and loss: no RPC fails, and a capture shows that no (key, nonce) serves twice.

``SMTNET_RECORDS=1000000 make test`` does it at the size the number says; some minutes.
"""

from __future__ import annotations

import hashlib
import heapq
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random

import pytest

from smtstack.capture.decode import Decoder, Result
from smtstack.capture.pcapfile import Reader, Writer
from smtstack.crypto import tls13
from smtstack.crypto.epochs import EPOCHS_AHEAD, SessionParams, SmtSession
from smtstack.crypto.keys import DEMO_SECRET, Endpoints, TrafficSecrets, demo_keys
from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.stack import Stack
from smtstack.transport.events import Request, Response
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.wire import homa
from smtstack.wire.frame import PAYLOAD_AT, TYPE_AT
from tests.fake_negotiator import Fake
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, make_side

RECORDS = int(os.environ.get("SMTNET_RECORDS", "60000"))
UPDATES = 20
#: RPCs under way from the client, and from the server.
WINDOWS = {True: 24, False: 8}
RATES = ImpairmentRates(drop=0.005, duplicate=0.005, reorder=0.03, reorder_ns=400_000, jitter_ns=20_000)
DELAY_NS = 20_000
#: Small packets of one record each, so that many records are few bytes. A slow link gives them time: keys are
#: forgotten by the clock.
PARAMS = TransportParams(mtu=296, max_gso_size=296, link_mbps=40, unsched_bytes=4_000, grant_increment=1_000)
EPOCH_AT, RETRANSMIT_AT = 44, 72
ENDS = Endpoints(CLIENT, CLIENT_PORT, SERVER, SERVER_PORT)

_NOISE = Random(1).randbytes(1 << 16)


def content(number: int, size: int) -> bytes:
    """A request: its number, and bytes that are its own."""
    at = number * 7919 % (len(_NOISE) - size)
    return number.to_bytes(8, "big") + _NOISE[at:at + size]


def answer(request: bytes) -> bytes:
    """The response to it: of another length, and dependent on all of it."""
    digest = hashlib.blake2b(request).digest()
    return digest * (1 + digest[0] % 40)


class Load:
    """Two ends that both ask, in closed loops, over a path that loses and reorders; all is captured."""

    def __init__(self, capture: Writer, update_records: int, offload: bool) -> None:
        params = SessionParams(key_update_records=update_records)
        config = NicConfig(tls_hw_tx_offload=offload)
        ends = {True: (CLIENT, CLIENT_PORT), False: (SERVER, SERVER_PORT)}
        self.sides = {end: make_side(*who, "smt", demo_keys("smt", params), PARAMS, config)
                      for end, who in ends.items()}
        self.paths = {True: Impairments(RATES, 1), False: Impairments(RATES, 2)}
        self.capture = capture
        self.random = Random(3)
        self.now = 0
        self.flying: list[tuple[int, int, bool, bytes]] = []
        self.frames = 0
        self.asked: dict[Rpc, bytes] = {}
        self.requests = 0
        self.delivered = 0
        self.responses = 0
        self.records = 0

    def ask(self, from_client: bool) -> None:
        """One more RPC."""
        data = content(self.requests, int(self.random.expovariate(1 / 500)) % 5000)
        self.requests += 1
        peer = (SERVER, SERVER_PORT) if from_client else (CLIENT, CLIENT_PORT)
        rpc = self.sides[from_client].endpoint.send_request(*peer, data, self.now)
        self.asked[rpc] = data

    def flush(self, end: bool) -> None:
        """Everything this side may send."""
        side = self.sides[end]
        while frames := side.transmit(self.now):
            for frame in frames:
                self.frames += 1
                self.records += frame[TYPE_AT] == homa.DATA and not frame[RETRANSMIT_AT]
                self.capture.write(self.now, frame)
                for at, arrived in self.paths[end].apply(frame, self.now):
                    heapq.heappush(self.flying, (at + DELAY_NS, self.frames, not end, arrived))

    def serve(self, end: bool, go_on: bool) -> None:
        """The application of this side; it asks again for every response while ``go_on``."""
        endpoint = self.sides[end].endpoint
        while (event := endpoint.next_event()) is not None:
            if isinstance(event, Request):
                self.delivered += 1
                endpoint.send_reply(event.rpc, answer(event.data), self.now)
                continue
            assert isinstance(event, Response), event
            assert event.data == answer(self.asked.pop(event.rpc))
            self.responses += 1
            if go_on:
                self.ask(end)

    def run(self, records: int) -> None:
        """So many records, and those of what is under way then."""
        for end, window in WINDOWS.items():
            for _ in range(window):
                self.ask(end)
        while True:
            for end in (True, False):
                self.flush(end)
            endpoints = [side.endpoint for side in self.sides.values()]
            due = [t for e in endpoints if (t := e.next_timeout()) is not None]
            if self.flying:
                due.append(self.flying[0][0])
            if not due:
                return
            self.now = max(self.now, min(due))
            while self.flying and self.flying[0][0] <= self.now:
                _at, _number, to, frame = heapq.heappop(self.flying)
                self.sides[to].endpoint.handle_packet(frame, self.now)
            for endpoint in endpoints:
                if (at := endpoint.next_timeout()) is not None and at <= self.now:
                    endpoint.handle_timeout(self.now)
            for end in (True, False):
                self.serve(end, self.records < records)

    def session(self, end: bool) -> SmtSession:
        """What this side has with the other."""
        peer, = self.sides[end].endpoint._table.peers.values()
        assert isinstance(peer.session, SmtSession)
        return peer.session


def by_epoch(capture: Path, late: int = 3) -> Iterator[tuple[int, Result]]:
    """Every epoch of a capture, decoded by itself: ids begin anew, and memory is that of a few epochs.

    ``late``: no packet comes more epochs after those of its own.
    """
    open_: dict[int, Decoder] = {}
    done = -1
    with capture.open("rb") as stream:
        for captured in Reader(stream).frames_untrusted():
            epoch = captured.frame[EPOCH_AT]
            assert epoch > done, f"a packet of epoch {epoch} comes after all of epoch {done}"
            if epoch not in open_:
                open_[epoch] = Decoder("smt", demo_keys("smt"))
                for old in [e for e in open_ if e < epoch - late]:
                    done = old
                    yield old, open_.pop(old).result()
            open_[epoch].add(captured.link_type, captured.frame)
    for epoch in sorted(open_):
        yield epoch, open_[epoch].result()


@pytest.mark.timeout(3600 if RECORDS > 100_000 else 300)
@pytest.mark.parametrize("offload", [False, True], ids=["software", "offload"])
def test_no_rpc_fails_and_no_nonce_serves_twice(tmp_path, offload):
    # A device that seals is slower here, and does not care how many.
    wanted = RECORDS // 2 if offload else RECORDS
    capture = tmp_path / "capture.pcap"
    with capture.open("wb") as stream:
        load = Load(Writer(stream), wanted // (UPDATES + 2), offload)
        load.run(wanted)
    assert load.responses == load.delivered == load.requests
    for side in load.sides.values():
        state = side.endpoint.snapshot()
        assert not {name: size for name, size in state.items() if size and name != "peers"}, state
        assert side.endpoint.counters.records_failed == 0
        assert side.endpoint.counters.timeouts == 0
    last = load.session(True).current.epoch
    assert load.session(False).current.epoch == last >= UPDATES
    for end in load.sides:
        assert not load.session(end)._late  # all others are forgotten
    epochs = []
    ok = messages = 0
    # SRPT lets a long message wait while many short ones pass, and short epochs with them.
    for epoch, result in by_epoch(capture, max(3, 300_000 // wanted)):
        assert (result.records_bad, result.bad_packets, result.nonce_reuse) == (0, 0, 0)
        assert result.messages_complete == result.messages
        epochs.append(epoch)
        ok += result.records_ok
        messages += result.messages
    assert epochs == list(range(last + 1))
    assert messages == 2 * load.requests
    assert ok == load.records >= wanted
    schedule = TrafficSecrets(DEMO_SECRET, ENDS, SessionParams().cipher)
    assert len({keys.key for epoch in epochs for keys in schedule.keys(epoch)}) == 2 * len(epochs)
    dropped = sum(path.dropped for path in load.paths.values())
    print(f"{load.requests} RPCs, {ok} records in {load.frames} frames, {len(epochs)} key epochs, "
          f"{dropped} frames lost, {load.now / 1e9:.1f} s of virtual time")


def test_what_that_looks_for_would_be_found(tmp_path):
    capture = tmp_path / "capture.pcap"
    with capture.open("wb") as stream:
        load = Load(Writer(stream), 0, False)
        load.run(100)
    with capture.open("rb") as stream:
        genuine = next(f for c in Reader(stream).frames_untrusted() if (f := c.frame)[TYPE_AT] == homa.DATA
                       and f[26:30] == CLIENT.to_bytes(4, "big"))
    # The first record of the message once more: another text under the same number.
    keys = TrafficSecrets(DEMO_SECRET, ENDS, SessionParams().cipher).keys(0)[0]
    number = int.from_bytes(genuine[54:62], "big") << SessionParams().index_bits
    text = bytes(len(genuine) - PAYLOAD_AT - tls13.OVERHEAD)
    with capture.open("ab") as stream:
        # A writer begins with a file header of 24 bytes, which is there.
        copy = BytesIO()
        Writer(copy).write(load.now, genuine[:PAYLOAD_AT] + tls13.seal(keys, number, text, False))
        stream.write(copy.getvalue()[24:])
    (_epoch, result), = by_epoch(capture)
    assert result.nonce_reuse == 1


@pytest.mark.parametrize(("workers", "update_records"), [(2, 4), (3, 8), (7, 20)])
def test_workers_of_one_port_follow(workers, update_records):
    """Each sees the requests of its ids only, and of some epochs none."""
    rng = Random(5)
    back = Endpoints(SERVER, SERVER_PORT, CLIENT, CLIENT_PORT)
    params = SessionParams(key_update_records=update_records, late_ticks=100)

    def side(who: tuple[int, int], ends: Endpoints) -> Stack:
        # Nothing waits for the pacer: time goes in steps here.
        unpaced = TransportParams(max_nic_queue_ns=10**12)
        made = make_side(*who, "smt", Fake(), unpaced)
        session = SmtSession(TrafficSecrets(DEMO_SECRET, ends, params.cipher).keys, params)
        session.may_ask = made_by_client = ends is ENDS
        peer = (SERVER, SERVER_PORT) if made_by_client else (CLIENT, CLIENT_PORT)
        made.endpoint.install(*peer, session, 0, max_message=100_000)
        return made

    client = side((CLIENT, CLIENT_PORT), ENDS)
    servers = [side((SERVER, SERVER_PORT), back) for _ in range(workers)]
    asked: dict[Rpc, bytes] = {}
    answered = failed = now = 0
    while answered + failed < 3000:
        while len(asked) - answered - failed < 12 and len(asked) < 3000:
            data = content(len(asked), len(asked) % 40)
            asked[client.endpoint.send_request(SERVER, SERVER_PORT, data, now)] = data
        for frame in client.transmit(now):
            if rng.random() > 0.02:
                servers[int.from_bytes(frame[54:62], "big") // 2 % workers].endpoint.handle_packet(frame, now)
        for server in servers:
            while (event := server.endpoint.next_event()) is not None:
                assert isinstance(event, Request)
                server.endpoint.send_reply(event.rpc, answer(event.data), now)
            for frame in server.transmit(now):
                if rng.random() > 0.02:
                    client.endpoint.handle_packet(frame, now)
        while (event := client.endpoint.next_event()) is not None:
            failed += not isinstance(event, Response)
            if isinstance(event, Response):
                assert event.data == answer(asked[event.rpc])
                answered += 1
        now += 2_000_000
        for end in (client, *servers):
            end.endpoint.handle_timeout(now)
    assert failed == 0
    peer, = client.endpoint._table.peers.values()
    assert isinstance(peer.session, SmtSession)
    assert peer.session.current.epoch > 40
    # What a worker lags behind is no more than it takes on trial.
    newest = [next(iter(s.endpoint._table.peers.values())).session.current.epoch for s in servers]
    assert min(newest) >= peer.session.current.epoch - EPOCHS_AHEAD
