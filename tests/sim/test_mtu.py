"""Two ends with different MTUs: sessions agree on the smaller one, and all that is sent fits it."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from smtstack.crypto.keys import demo_keys
from smtstack.nic.device import NicConfig
from smtstack.session.established import MODES
from smtstack.session.offer import Offer
from smtstack.sim.host import SimEndpoint
from smtstack.sim.network import Network
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT
from smtstack.transport.endpoint import FIRST_CLIENT_PORT
from smtstack.transport.events import Event, Failed, Reason, Request, Response
from smtstack.transport.params import SOFTWARE
from smtstack.wire.ethernet import HEADER_LEN
from smtstack.wire.frame import TRANSPORT_OFFSET
from tests.handshakes import Hosts, known

#: Of client and server.
MTUS = [(1500, 9000), (9000, 1500), (576, 9000), (9000, 296), (1500, 1500)]
SIZES = (1, 200, 1400, 20_000, 300_000)
PARAMS = replace(SOFTWARE, max_gso_size=20_000)


class Wire:
    """A client and a server at the ends of one cable, by a handshake or under given keys."""

    def __init__(self, mtus: tuple[int, int], profile: str, keys: tuple, nic: NicConfig | None = None) -> None:
        self.net = Network()
        hosts = [self.net.add_host(ip=ip, mtu=mtu, nic=nic)
                 for ip, mtu in zip((CLIENT_IP, SERVER_IP), mtus, strict=True)]
        self.net.connect(hosts[0], hosts[1])
        self.longest = 0
        self.net.tap(self._see)
        self.hosts = hosts
        params = [replace(PARAMS, mtu=mtu) for mtu in mtus]
        self.client = hosts[0].listen(FIRST_CLIENT_PORT, profile, keys[0], self.on_event, params[0])
        self.server = hosts[1].listen(SERVER_PORT, profile, keys[1], self.on_event, params[1])
        self.responses: list[bytes] = []
        self.failed: list[Failed] = []

    def _see(self, _now: int, _place: str, frame: bytes) -> None:
        self.longest = max(self.longest, len(frame) - HEADER_LEN)

    def on_event(self, at: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            at.send_reply(event.rpc, event.data[::-1])
        elif isinstance(event, Response):
            self.responses.append(event.data[::-1])
        else:
            self.failed.append(event)

    def ask(self, *requests: bytes, from_client: bool = True) -> None:
        for data in requests:
            if from_client:
                self.client.send_request(SERVER_IP, SERVER_PORT, data)
            else:
                self.server.send_request(CLIENT_IP, FIRST_CLIENT_PORT, data)
        self.net.run()


def hosts_of(mode: str, mtus: tuple[int, int]) -> Hosts:
    """What they keep; where the mode needs one, from a first session over the same cable."""
    hosts = Hosts(mode, server={"offer": Offer(mtu=mtus[1])})
    if mode.startswith("psk"):
        first = Wire(mtus, "smt", hosts.managers())
        first.ask(b"the first session")
        assert first.responses == [b"the first session"]
        assert len(hosts.psks) == 1
    return hosts


def messages() -> list[bytes]:
    return [(b"%d " % size * size)[:size] for size in SIZES]


@pytest.mark.parametrize("nic", [None, NicConfig(tls_hw_tx_offload=True), NicConfig(tso=False)])
@pytest.mark.parametrize("mtus", MTUS)
@pytest.mark.parametrize("mode", MODES)
def test_the_smaller_mtu_counts_in_both_directions(mode, mtus, nic):
    managers = hosts_of(mode, mtus).managers()
    wire = Wire(mtus, "smt", managers, nic)
    wire.ask(*messages())
    assert sorted(wire.responses) == sorted(messages())
    if mode != "tls":
        wire.ask(*messages(), from_client=False)
        assert len(wire.responses) == 2 * len(SIZES)
    assert [h.too_long for h in wire.hosts] == [0, 0]
    # And it is used: what is long goes in packets as long as they may be.
    assert wire.longest == min(mtus)
    for manager, place in zip(managers, ((SERVER_IP, SERVER_PORT), (CLIENT_IP, FIRST_CLIENT_PORT)),
                              strict=True):
        assert known(manager.info(*place)).agreement.mtu == min(mtus)
    assert wire.client.endpoint.counters.packets_resent == wire.server.endpoint.counters.packets_resent == 0


def test_one_socket_has_peers_of_many_mtus():
    """Each gets packets of its own size, in turns."""
    hosts = Hosts("mtls")
    wire = Wire((9000, 9000), "smt", hosts.managers())
    small = Hosts("mtls", server={"offer": Offer(mtu=576)}).server_manager()
    wire.hosts[1].listen(SERVER_PORT + 1, "smt", small, wire.on_event, replace(PARAMS, mtu=9000))
    longest = {SERVER_PORT: 0, SERVER_PORT + 1: 0}

    def see(_now: int, _place: str, frame: bytes) -> None:
        ports = struct.unpack_from("!HH", frame, TRANSPORT_OFFSET)
        port = min(ports)
        longest[port] = max(longest[port], len(frame) - HEADER_LEN)

    wire.net.tap(see)
    for n in range(20):
        wire.client.send_request(SERVER_IP, SERVER_PORT + n % 2, b"%d" % n * 20_000)
    wire.net.run()
    assert len(wire.responses) == 20
    assert longest == {SERVER_PORT: 9000, SERVER_PORT + 1: 576}


@pytest.mark.parametrize("mode", [m for m in MODES if m.startswith(("ticket", "psk"))])
def test_a_server_whose_mtu_shrank_refuses_what_it_offered_before(mode):
    """At once, in words; and the next session begins with what is true now."""
    hosts = hosts_of(mode, (9000, 9000))
    now = Wire((9000, 1500), "smt", hosts.managers())
    now.ask(*messages())
    assert now.responses == []
    assert {f.reason for f in now.failed} == {Reason.NO_SESSION}
    assert all("packets of 9000 bytes were offered, and the MTU is 1500 by now" in f.detail for f in now.failed)
    assert all("nothing proves" not in f.detail for f in now.failed)
    if mode.startswith("ticket"):
        hosts.server["offer"] = Offer(mtu=1500)
        hosts.publish()
    now.ask(*messages())
    assert sorted(now.responses) == sorted(messages())


@pytest.mark.parametrize("mode", ["tls", "mtls"])
def test_an_mtu_that_is_changed_on_the_way_makes_no_session(mode):
    hosts = Hosts(mode, client={"offer": Offer(mtu=1400), "handshake_ns": 500_000_000})
    said = Offer(mtu=1400).pack()

    def raised(_from_client: bool, frame: bytes) -> list[bytes]:
        return [frame.replace(said, Offer(mtu=1500).pack())]

    rig = hosts.rig(tamper=raised)
    rpc = rig.request(b"something")
    rig.run()
    assert "the session's parameters were changed on the way" in rig.failure(rpc).detail \
        or "the server chose packets of 1500 bytes; our MTU is 1400" in rig.failure(rpc).detail
    assert rig.delivered == []


def test_without_sessions_different_mtus_fail():
    """The control, and why errors of such profiles name the MTU."""
    wire = Wire((1500, 9000), "homa", (demo_keys("homa"), demo_keys("homa")))
    wire.ask(b"short", bytes(20_000))
    assert wire.responses == [b"short"]
    assert [f.reason for f in wire.failed] == [Reason.TIMEOUT]
    assert wire.hosts[0].too_long > 0
