"""The power of a key-value server is cut again and again, under YCSB A over smt with 1 % loss.

Its log is on protected storage whose disks tear writes and lose what was not flushed. After each cut it starts
anew. No acknowledged write is ever missing, and what clients have seen of each field is linearizable, over all
cuts. ``SMTNET_POWER_CUTS=1000`` cuts so often.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.host import SimEndpoint
from smtstack.sim.network import Network
from smtstack.storage.faults import PowerCutError
from smtstack.storage.files import Protected, Protection
from smtstack.storage.keys import Secret
from smtstack.transport.events import Event, Failed, Request, Response
from smtstack.transport.params import TransportParams
from tests.disks import KEY, Disk
from tests.kv_history import Asked, Histories, parsed
from workloads.kv import resp
from workloads.kv.aof import Aof
from workloads.kv.aof_protected import ProtectedLog
from workloads.kv.backend import EmbeddedStore
from workloads.kv.server import RespMessages
from workloads.kv.store import Keyspace

CUTS = int(os.environ.get("SMTNET_POWER_CUTS", "12"))
PORT, LIMIT, CLIENTS = 6001, 1_000_000, 6
PATIENT = TransportParams(timeout_resends=1000)
LOSS = ImpairmentRates(drop=0.01)
#: Virtual time that a sync takes, during which more requests come.
SYNC_NS = 40_000
MODES = [("aead", "sealed"), ("xts+hmac", "counter"), ("xts", "none")]


class ForgetfulLog(ProtectedLog):
    """The control: it says that it has synced, and has not."""

    def sync(self) -> None:
        self.put()


class Incoming:
    """A request, as the front end wants it."""

    longest = LIMIT

    def __init__(self, here: SimEndpoint, event: Request) -> None:
        self._here = here
        self._event = event
        self.data = event.data

    def reply(self, data: bytes) -> bool:
        return self._here.send_reply(self._event.rpc, data)


class Server:
    """One life of the server, from recovery to the cut."""

    def __init__(self, disk: Disk, folder: Path, log: type[ProtectedLog]) -> None:
        device = disk.open()
        how = Protection(Secret(key=KEY), disk.mode, folder / "none" if disk.freshness != "none" else None)
        # Only a log that is written anew looks for a file, and this one is not.
        made = Protected(folder / "log", disk.disk, device, KEY, None)
        self.aof = Aof(folder / "log", "always", Keyspace(), growth=0, log=lambda _path: log(made, how))
        self.store = EmbeddedStore(self.aof._keys, self.aof)
        self.front = RespMessages(self.store, LIMIT)
        self.net: Any = None
        self._turning = False

    def event(self, here: SimEndpoint, event: Event) -> None:
        if not isinstance(event, Request):
            return
        self.front.handle(Incoming(here, event))
        if not self._turning:
            self._turning = True
            self.net.clock.schedule(self.net.now + SYNC_NS, self._turn, here)

    def _turn(self, here: SimEndpoint) -> None:
        self._turning = False
        self.store.turn()
        here.work()


class Client:
    """A closed loop."""

    def __init__(self, histories: Histories, server: int, start: int) -> None:
        self._histories = histories
        self._server = server
        self._start = start
        self.asked: Asked | None = None

    def ask(self, here: SimEndpoint) -> None:
        self.asked = self._histories.next(self._start + here.host.clock.now)
        here.send_request(self._server, PORT, b"".join(map(resp.command, self.asked.commands)))

    def event(self, here: SimEndpoint, event: Event) -> None:
        assert not isinstance(event, Failed), event
        if isinstance(event, Response):
            assert self.asked is not None
            self.asked.answer(parsed(event.data), self._start + here.host.clock.now)
            self.ask(here)


def cut_again_and_again(disk: Disk, folder: Path, cuts: int, log: type[ProtectedLog]) -> tuple[Histories, int]:
    """The histories of all clients, and how many frames were lost."""
    random = Random(1)
    histories = Histories(1)
    lost = 0
    server = Server(disk, folder, log)
    for command in histories.load():
        server.aof._keys.databases.journal.append(list(command))  # type: ignore[union-attr]
    server.aof.write(server.aof._keys.databases.journal.take(), 0)  # type: ignore[union-attr]
    start = 1
    for cut in range(cuts):
        disk.supply.cut_after(random.randrange(1, 400_000))
        net = Network(cut)
        clients: list[Client] = []
        try:
            server = Server(disk, folder, log)
            switch = net.add_switch()
            host = net.add_host(tx_rates=LOSS, rx_rates=LOSS)
            net.connect(host, switch)
            server.net = net
            host.listen(PORT, "smt", demo_keys("smt"), server.event, PATIENT)
            other = net.add_host()
            net.connect(other, switch)
            for number in range(CLIENTS):
                client = Client(histories, host.ip, start)
                clients.append(client)
                client.ask(other.listen(40_000 + number, "smt", demo_keys("smt"), client.event, PATIENT))
            net.run()
        except PowerCutError:
            pass
        for client in clients:
            if client.asked is not None:
                client.asked.lost()
        start += net.now + 1
        if clients:
            assert host.tx_faults is not None
            assert host.rx_faults is not None
            lost += host.tx_faults.dropped + host.rx_faults.dropped
        disk.disk.lose(random)
        disk.trusted_disk.lose(random)
        disk.supply.restore()
    return histories, lost


@pytest.mark.parametrize(("mode", "freshness"), MODES)
def test_no_acknowledged_write_is_lost_in_any_power_cut(tmp_path, mode, freshness):
    disk = Disk(mode, freshness, sectors=2000, journal=24)
    histories, lost = cut_again_and_again(disk, tmp_path, CUTS, ProtectedLog)
    assert not histories.violations()
    print(f"{mode} {freshness}: {CUTS} cuts, {histories.acknowledged} writes acknowledged, "
          f"{histories.unanswered} without an answer, {histories.read} reads, {lost} frames lost")
    assert histories.acknowledged > 5 * CUTS
    assert histories.read > 5 * CUTS
    assert lost > 0
    assert histories.unanswered > 0


def test_a_server_that_only_says_that_it_synced_is_found_out(tmp_path):
    disk = Disk("aead", "none", sectors=2000, journal=24)
    histories, _lost = cut_again_and_again(disk, tmp_path, 12, ForgetfulLog)
    assert histories.violations()
