"""The block store over the engine in virtual time: any loss, reordering and duplication of frames, and a target
that is another one all of a sudden."""

from __future__ import annotations

import os

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smtstack.crypto.keys import demo_keys
from smtstack.nic.impairments import ImpairmentRates
from smtstack.sim.host import SimEndpoint
from smtstack.sim.network import Network
from smtstack.socket import RpcError
from smtstack.storage.device import MemoryDevice
from smtstack.transport.events import Event, Failed, Request, Response
from smtstack.transport.params import TransportParams
from tests.blocks import LONGEST, run_load
from workloads.blocks.target import Target
from workloads.transports.contract import Call, Caller

PORT, CLIENT_PORT = 4420, 40_000
#: Of the namespace, so that blocks are written again and again.
SECTORS = 64
COMMANDS = int(os.environ.get("SMTNET_COMMANDS", "1500"))


class Incoming:
    """A request of the engine, as a target wants it."""

    longest = LONGEST

    def __init__(self, here: SimEndpoint, event: Request) -> None:
        self._here, self._event = here, event
        self.data = event.data

    def reply(self, data: bytes) -> bool:
        return self._here.send_reply(self._event.rpc, data)


class Served:
    """A target behind an endpoint."""

    def __init__(self, device: MemoryDevice) -> None:
        self._device = device
        self.targets = [Target(device)]

    def event(self, here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Request):
            self.targets[-1].handle(Incoming(here, event))
            self.targets[-1].settle()

    def restart(self) -> None:
        """Another one with the same device, which knows nothing of the first one's initiators."""
        self.targets.append(Target(self._device))


class SimCaller(Caller):
    """An endpoint under the contract; to drive it is to let virtual time pass."""

    def __init__(self, net: Network, server_ip: int) -> None:
        super().__init__([("10.0.0.1", PORT)])
        self._net = net
        self._server_ip = server_ip
        self.here: SimEndpoint | None = None

    def clock(self) -> int:
        return self._net.clock.now

    def event(self, _here: SimEndpoint, event: Event) -> None:
        if isinstance(event, Response | Failed):
            call = event.rpc.cookie
            assert isinstance(call, Call)
            call.ended = self.clock() + 1
            if isinstance(event, Response):
                call.response = event.data
            else:
                call.error = RpcError(event.reason.value)
            self.finished.append(call)

    def begin(self, call: Call) -> None:
        assert self.here is not None
        call.handle = self.here.send_request(self._server_ip, PORT, call.data, call)

    def abort(self, call: Call) -> None:
        raise NotImplementedError

    def drive(self, timeout_s: float) -> None:
        clock = self._net.clock
        until = clock.now + int(timeout_s * 1e9)
        step = 20_000
        while not self.finished and clock.now < until:
            self._net.run(min(until, clock.now + step))

    def poll(self) -> None:
        pass

    def fileno(self) -> int:
        raise NotImplementedError

    def next_wake(self) -> int | None:
        return None

    def linger(self, timeout_s: float) -> None:
        pass

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


def run(profile: str, rates: ImpairmentRates, seed: int, count: int, depth: int,
        restart_ms: tuple[int, ...] = ()) -> tuple[Served, Network]:
    """A load over the engine; every command has to succeed, every block to be right."""
    net = Network(seed)
    hosts = net.add_host(tx_rates=rates, rx_rates=rates), net.add_host(tx_rates=rates, rx_rates=rates)
    net.connect(hosts[0], hosts[1])
    keys = demo_keys(profile)
    served = Served(MemoryDevice(SECTORS))
    # Over so bad a wire silence means little.
    params = TransportParams(timeout_resends=1000)
    hosts[0].listen(PORT, profile, keys, served.event, params)
    caller = SimCaller(net, hosts[0].ip)
    caller.here = hosts[1].listen(CLIENT_PORT, profile, keys, caller.event, params)
    for at in restart_ms:
        net.clock.schedule(at * 1_000_000, served.restart)
    tally, _initiator, _model = run_load(caller, caller.clock, count, depth, seed=seed)
    assert (tally.errors, tally.wrong) == (0, 0), tally.first_error
    assert len(tally.rtt_ns) == count + SECTORS // 8
    return served, net


shares = st.floats(0, 0.25, allow_nan=False)


@given(profile=st.sampled_from(["smt", "homa"]), drop=shares, duplicate=shares, reorder=shares,
       seed=st.integers(0, 2**32), depth=st.sampled_from([1, 6, 32]), restarts=st.integers(0, 2))
@example(profile="smt", drop=0.25, duplicate=0.25, reorder=0.25, seed=1, depth=32, restarts=2)
@example(profile="homa", drop=0.25, duplicate=0.25, reorder=0.25, seed=1, depth=32, restarts=2)
@settings(max_examples=max(4, settings().max_examples // 20))
def test_any_loss_reordering_and_duplication(profile, drop, duplicate, reorder, seed, depth, restarts):
    rates = ImpairmentRates(drop=drop, duplicate=duplicate, reorder=reorder, reorder_ns=400_000, jitter_ns=3_000)
    run(profile, rates, seed, 40, depth, tuple(20 * n for n in range(1, 1 + restarts)))


@pytest.mark.parametrize("profile", ["smt", "homa"])
def test_depth_32_over_1_percent_loss(profile):
    """``SMTNET_COMMANDS=1000000``: all of them."""
    served, net = run(profile, ImpairmentRates(drop=0.005), 3, COMMANDS, 32)
    (target,) = served.targets
    counters = target.counters()
    faults = [host.tx_faults for host in net.hosts.values()]
    lost = sum(one.dropped for one in faults if one is not None)
    assert lost > COMMANDS / 100
    assert {"read", "write", "write_zeroes", "compare", "flush"} <= counters.keys()


def test_a_target_that_was_started_again_is_noticed_by_the_next_command():
    served, _net = run("smt", ImpairmentRates(drop=0.01), 5, 400, 8, (20, 100))
    assert len(served.targets) == 3
    first, second, third = (target.counters() for target in served.targets)
    assert first["connects"] == second["connects"] == third["connects"] == 1
    assert second["out_of_sequence"] > 0
