"""Settings and counters of an interface's NIC in shared memory: who may change what, and who cleans up.

On the loopback interface's name and with a folder of the test's own; nothing is sent anywhere.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtstack.errors import ConfigError, Unsupported
from smtstack.io.namespaces import Namespace, locate
from smtstack.io.packet_socket import interface_mtu
from smtstack.nic.descriptors import Resync, Send
from smtstack.nic.device import FEATURES, TAP_FEATURES, NicConfig, SmartNic
from smtstack.nic.driver import NicDriver
from smtstack.nic.impairments import ImpairmentRates, Impairments
from smtstack.nicshare import file as nic_file
from smtstack.nicshare.control import NicControl
from smtstack.nicshare.file import COUNTERS, SLOTS, sweep
from smtstack.nicshare.settings import Faults, Settings, TapSetting
from smtstack.nicshare.state import EVERY_ADDRESS, TAP, NicState, Port
from smtstack.nicshare.text import describe
from smtstack.rings import counters as ring_counters
from smtstack.socket import SmtContext, SmtSocket
from smtstack.wire.ipv4 import address
from tests.cable import exchange, joined

IFACE = "lo"
HOST = address("10.0.0.1")
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(nic_file, "FOLDER", tmp_path / "run")
    return tmp_path / "run"


def attach(port: int = 2000) -> Port:
    made = Port.attach(IFACE, HOST, port, 146, "smt")
    assert made is not None
    return made


def counted(**values: int) -> dict[str, int]:
    return {**dict.fromkeys(COUNTERS, 0), **values}


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir()) if folder.exists() else []


# -- life of the file ------------------------------------------------------------------------------------

def test_the_last_endpoint_removes_what_an_endpoint_made(folder):
    first, second = attach(), attach(2001)
    assert len(files(folder)) == 1
    assert (folder.stat().st_mode & 0o777, (folder / files(folder)[0]).stat().st_mode & 0o777) == (0o700, 0o600)
    first.detach(counted())
    assert [e.address for e in NicState.open(IFACE).endpoints()] == ["10.0.0.1:2001"]
    second.detach(counted())
    assert files(folder) == []


def test_looking_leaves_nothing(folder):
    state = NicState.open(IFACE)
    assert state.settings() == Settings()
    assert state.endpoints() == []
    assert set(state.counters().values()) == {0}
    assert state.wait_applied(0)
    state.remove()
    assert files(folder) == []


def test_what_is_set_stays_until_reset(folder):
    state = NicState.open(IFACE)
    state.set_feature("tso", False)
    port = attach()
    port.detach(counted(tx_packets=3))
    assert state.settings().features == {"tso": False}
    assert state.counters()["tx_packets"] == 3
    state.reset()
    assert files(folder) == []


def test_what_a_link_keeps_stays_until_it_is_removed(folder):
    state = NicState.open(IFACE, persistent=True)
    state.set_feature("tso", False)
    state.reset()
    port = attach()
    state.remove()
    assert len(files(folder)) == 1
    assert [e.pid for e in state.endpoints()] == [os.getpid()]
    port.detach(counted())
    assert files(folder) == []


def die_attached(ready: object) -> None:
    port = attach(3000)
    port.publish(counted(tx_packets=7, rx_bytes=1))
    ready.set()  # type: ignore[attr-defined]
    signal.pause()


def killed_endpoint() -> None:
    """One that was killed in the middle of its work."""
    ready = FORK.Event()
    child = FORK.Process(target=die_attached, args=(ready,))
    child.start()
    assert ready.wait(20)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()


def test_a_killed_endpoint_is_not_running_and_its_counters_count(folder):
    port = attach()
    port.publish(counted(tx_packets=1))
    state = NicState.open(IFACE)
    killed_endpoint()
    assert [e.address for e in state.endpoints()] == ["10.0.0.1:2000"]
    assert state.counters()["tx_packets"] == 8
    for n in range(2 * SLOTS):  # its slot is used again, too
        other = attach(4000 + n)
        other.detach(counted(tx_packets=1))
        assert state.counters()["tx_packets"] == 9 + n
    assert state.counters()["rx_bytes"] == 1
    port.detach(counted(tx_packets=2))
    assert files(folder) == []


def test_what_killed_endpoints_left_is_removed_by_whoever_comes_next(folder):
    killed_endpoint()
    assert len(files(folder)) == 1
    NicState.open(IFACE)
    assert files(folder) == []


def test_endpoints_beyond_the_slots_work_and_count(folder):
    ports = [attach(5000 + n) for n in range(SLOTS + 3)]
    state = NicState.open(IFACE)
    assert len(state.endpoints()) == SLOTS
    state.set_feature("tso", True)
    for port in ports:
        found = port.settings()
        assert found is not None
        port.applied(found[0], dict.fromkeys(FEATURES, True))
        port.publish(counted(tx_packets=1))
    assert state.wait_applied(0)
    for port in ports:
        port.detach(counted(tx_packets=2))
    assert state.counters()["tx_packets"] == 2 * len(ports)
    state.reset()
    assert files(folder) == []


def come_and_go(number: int) -> None:
    for turn in range(20):
        port = attach(6000 + number)
        port.publish(counted(tx_packets=turn))
        port.detach(counted(tx_packets=turn + 1))


def test_many_processes_come_and_go_at_once(folder):
    state = NicState.open(IFACE, persistent=True)
    workers = [FORK.Process(target=come_and_go, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    seen = 0
    while any(worker.is_alive() for worker in workers):
        now = state.counters()["tx_packets"]
        assert now >= seen
        seen = now
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert state.counters()["tx_packets"] == 6 * sum(range(1, 21))
    assert state.endpoints() == []
    state.remove()
    assert files(folder) == []


def test_the_same_without_anything_that_keeps_the_file(folder):
    workers = [FORK.Process(target=come_and_go, args=(n,)) for n in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 6
    assert files(folder) == []


def test_files_of_networks_that_are_gone_are_removed(folder):
    """Their number is never used again, so nobody would."""
    state = NicState("e0", Namespace(cookie=1 << 60, inode=1))
    state.set_feature("tso", False)
    live = NicState("e0", Namespace(cookie=(1 << 60) + 1, inode=locate(IFACE).inode))
    live.set_feature("tso", False)
    sweep(folder)
    assert files(folder) == [f"{(1 << 60) + 1}-e0"]


def test_sweeping_leaves_foreign_files(folder):
    folder.mkdir(mode=0o700)
    (folder / "notes").write_text("mine")
    (folder / "7-e0").touch()  # a process was killed when it had just made it
    sweep(folder)
    assert files(folder) == ["notes"]


def test_a_file_of_another_version_is_replaced_unless_in_use(folder):
    port = attach()
    path = folder / files(folder)[0]
    with path.open("r+b") as f:
        f.seek(8)
        f.write(b"another layout".ljust(16))
    with pytest.raises(ConfigError, match="another version"):
        NicState.open(IFACE).settings()
    assert Port.attach(IFACE, HOST, 2001, 146, "smt") is None
    port.detach(counted())
    path.write_bytes(b"damaged")
    assert NicState.open(IFACE).settings() == Settings()
    attach().detach(counted())
    assert files(folder) == []


def test_a_folder_others_can_write_is_refused(folder):
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(Unsupported, match="not ours alone"):
        NicState.open(IFACE).set_feature("tso", False)
    assert Port.attach(IFACE, HOST, 2000, 146, "smt") is None


def test_without_a_place_to_write_there_is_an_error_for_people_and_none_for_endpoints(folder):
    folder.write_text("a file where the folder should be")
    with pytest.raises(Unsupported, match="run"):
        NicState.open(IFACE).set_feature("tso", False)
    assert Port.attach(IFACE, HOST, 2000, 146, "smt") is None


@pytest.mark.parametrize("name", ["nix0", "", "a-name-too-long-to-be-one"])
def test_an_interface_that_is_none(folder, name):
    for look in (NicState.open, interface_mtu):
        with pytest.raises(ConfigError, match="no interface"):
            look(name)
    assert Port.attach(name, HOST, 2000, 146, "smt") is None
    assert files(folder) == []


def test_a_process_that_is_none():
    with pytest.raises(ConfigError, match="no process 999999999"):
        NicState.open(IFACE, pid=999_999_999)


# -- settings --------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("texts", "wanted"), [
    (["tso=off"], Settings(features={"tso": False})),
    (["offload=on", "RX-Checksum=OFF"], Settings(features={"tls-hw-tx-offload": True, "rx-checksum": False})),
    (["tso=off", "tso=default"], Settings()),
    (["max-contexts=0"], Settings(max_contexts=0)),
    (["max-contexts=7", "max-contexts=default"], Settings()),
    (["queues=4"], Settings(queues=4)),
    (["paths=4"], Settings(paths=4)),
    (["paths=255", "paths=default"], Settings()),
    (["loss=1%"], Settings(tx=Faults(ImpairmentRates(drop=0.01)))),
    (["tx.drop=0.5", "tx.seed=9"], Settings(tx=Faults(ImpairmentRates(drop=0.5), 9))),
    (["rx.corrupt=100%"], Settings(rx=Faults(ImpairmentRates(corrupt=1.0)))),
    (["delay=2ms", "jitter=0.5us", "reorder=1", "reorder-delay=3 s", "duplicate=0"],
     Settings(tx=Faults(ImpairmentRates(reorder=1.0, delay_ns=2_000_000, jitter_ns=500, reorder_ns=3 * 10**9)))),
    (["loss=1%", "delay=1ms", "loss=default"], Settings(tx=Faults(ImpairmentRates(delay_ns=1_000_000)))),
    (["loss=1%", "tx=default"], Settings()),
])
def test_settings_from_text(texts, wanted):
    settings = Settings()
    for text in texts:
        settings = settings.assign(text)
    assert settings == wanted
    assert Settings.unpack(settings.pack()) == settings


@pytest.mark.parametrize(("text", "complaint"), [
    ("tso", "no NAME=VALUE"), ("tso=", "no NAME=VALUE"), ("tso=maybe", "on, off or default"),
    ("tos=off", "did you mean tso"), ("xyzzy=1", "there are tso, tls-hw-tx-offload"),
    ("loss=1.5", "a share such as 0.01 or 1%"), ("loss=-1%", "a share"), ("loss=nan", "a share"),
    ("rx.reorder=x", "a share"), ("delay=x", "a time such as 2ms"), ("delay=-1ms", "a time"),
    ("max-contexts=-1", "whole number"), ("max-contexts=x", "whole number"), ("queues=0", "1 to 64"),
    ("queues=65", "1 to 64"), ("paths=0", "1 to 255"), ("paths=256", "1 to 255"), ("paths=x", "whole number"),
    ("up.loss=1%", "tx .what leaves. or rx"), ("rx.tso=off", "no setting 'rx.tso'"),
    ("seed=x", "whole number"), ("tx=1%", "tx.loss=1%"),
])
def test_settings_that_are_none(text, complaint):
    with pytest.raises(ConfigError, match=complaint):
        Settings().assign(text)


def test_all_assignments_or_none():
    state = NicState.open(IFACE)
    with pytest.raises(ConfigError):
        state.assign("tso=off", "loss=lots")
    assert state.settings() == Settings()
    state.assign("tso=off", "loss=10%")
    assert state.settings() == Settings(features={"tso": False}, tx=Faults(ImpairmentRates(drop=0.1)))


def test_setters():
    state = NicState.open(IFACE)
    rates = ImpairmentRates(drop=0.25)
    state.set_feature("tso-seq", True)
    state.set_impairments("rx", rates, 5)
    state.set_max_contexts(3)
    state.set_queues(2)
    state.set_paths(4)
    assert state.settings() == Settings({"tso-seq": True}, 3, 2, 4, None, Faults(rates, 5))
    for change in (lambda: state.set_feature("gro", True), lambda: state.set_impairments("up", rates),
                   lambda: state.set_max_contexts(-1), lambda: state.set_queues(0), lambda: state.set_paths(256)):
        with pytest.raises(ConfigError):
            change()
    state.set_feature("tso-seq", None)
    state.set_impairments("rx", None)
    state.set_max_contexts(None)
    state.set_queues(None)
    state.set_paths(None)
    assert state.settings() == Settings()


@pytest.mark.parametrize("data", [
    b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"features": 1}',
    Settings().pack().replace(b'"features": {}', b'"features": {"x": true}'),
    Settings().pack().replace(b'"features": {}', b'"features": {"tso": 1}'),
    Settings(tx=Faults()).pack().replace(b'"drop": 0.0', b'"drop": 2'),
    Settings(tx=Faults()).pack().replace(b'"drop": 0.0', b'"drop": "0"'),
    Settings(tap=TapSetting("x")).pack().replace(b'"path"', b'"p"'),
    Settings().pack().replace(b'"queues": null', b'"queues": "4"'),
])
def test_damaged_settings_are_an_error_not_a_crash(data):
    with pytest.raises(ConfigError):
        Settings.unpack(data)


def test_settings_that_do_not_fit_change_nothing():
    state = NicState.open(IFACE)
    state.set_feature("tso", False)
    with state._changing() as file, pytest.raises(ConfigError, match="too many"):
        file.write_settings(Settings(tap=TapSetting("x" * 10_000)))
    assert state.settings().features == {"tso": False}


# -- what an endpoint makes of them ------------------------------------------------------------------------

@pytest.fixture
def control() -> Iterator[NicControl]:
    nic = SmartNic(NicConfig(tls_hw_tx_offload=True, max_contexts=5))
    made = NicControl(attach(), NicDriver(nic, bytes(6), HOST, 146, lambda _ip: None), 1,
                      Impairments(ImpairmentRates(drop=0.5)), None)
    yield made
    made.close(EMPTY)


#: What the loop counts; the control adds its own.
EMPTY = dict.fromkeys(COUNTERS, 0)


def test_features_are_forced_and_given_back(control):
    state = NicState.open(IFACE)
    nic = control._nic
    assert not state.wait_applied(0)
    control.sync(EMPTY)
    assert state.wait_applied(0)
    for name in FEATURES:
        before = nic.features()
        for on in (True, False):
            state.set_feature(name, on)
            assert not state.wait_applied(0)
            control.sync(EMPTY)
            assert nic.features() == {**before, name: on} == state.endpoints()[0].features
        state.set_feature(name, None)
        control.sync(EMPTY)
        assert nic.features() == before


def test_a_limit_on_contexts_destroys_what_is_beyond_and_never_exceeds_the_hardware(control):
    state = NicState.open(IFACE)
    for limit, wanted in ((3, 3), (0, 0), (100, 5), (None, 5)):
        state.set_max_contexts(limit)
        control.sync(EMPTY)
        assert control._nic.context_limit == wanted


def test_with_a_nic_that_owns_the_interface_all_share_its_memory_for_contexts():
    inline, other = attach(2000), attach(2001)
    device = SmartNic(NicConfig(max_contexts=3))
    device.memory = inline
    assert other.claim_context(0, 3)
    other.hold_contexts(2)
    # Each has its own, as virtual functions do.
    made = [device.create_context(0x303, bytes(16), bytes(4), 0) for _ in range(3)]
    assert all(made)
    assert not device.create_context(0x303, bytes(16), bytes(4), 0)
    for context in made:
        device.destroy_context(context)
    owner = Port.attach(IFACE, EVERY_ADDRESS, 0, 0, TAP)
    assert owner is not None
    assert device.create_context(0x303, bytes(16), bytes(4), 0)
    assert not device.create_context(0x303, bytes(16), bytes(4), 0)
    assert not owner.claim_context(0, 3)
    other.detach(EMPTY)
    assert owner.claim_context(0, 3)
    assert owner.claim_context(1, 3)
    assert not device.create_context(0x303, bytes(16), bytes(4), 0)
    info = {e.address: e for e in NicState.open(IFACE).endpoints()}["kernel"]
    assert (info.profile, sorted(info.features)) == (TAP, sorted(TAP_FEATURES))
    owner.detach(EMPTY)
    inline.detach(EMPTY)


@pytest.mark.interpreted("a method of a compiled object cannot be replaced")
def test_paths_are_taken_while_traffic_runs(ends):
    client, _server = ends
    post, macs = client.loop.nic.post, []

    def keep(queue: int, descriptor: Send | Resync) -> bool:
        if isinstance(descriptor, Send):
            macs.append(descriptor.route.ethernet[:6])
        return post(queue, descriptor)

    client.loop.nic.post = keep
    state = NicState.open(IFACE)
    for paths, wanted in ((None, 1), (3, 3), (1, 1), (2, 2), (None, 1)):
        state.set_paths(paths)
        macs.clear()
        for _n in range(6):
            exchange(ends, b"?" * 5000)
        assert state.wait_applied(0)
        assert len(set(macs)) == wanted


def test_impairments_replace_the_endpoints_own_and_give_them_back(control):
    state = NicState.open(IFACE)
    own = control.tx
    state.assign("loss=100%", "rx.duplicate=100%")
    control.sync(EMPTY)
    assert control.tx.rates.drop == control.rx.rates.duplicate == 1
    assert control.tx.apply(b"frame", 0) == []
    assert len(control.rx.apply(b"frame", 0)) == 2
    before = control.tx
    state.set_feature("tso", False)
    control.sync(EMPTY)
    assert control.tx is before  # another setting does not begin its faults anew
    state.assign("loss=50%")
    control.sync(EMPTY)
    faults = [bool(control.tx.apply(b"frame", 0)) for _n in range(200)]
    assert 50 < sum(faults) < 150
    state.reset()
    control.sync(EMPTY)
    assert (control.tx, control.rx) == (own, None)
    counters = state.counters()
    assert counters["impaired_dropped"] == 1 + 200 - sum(faults)
    assert counters["impaired_duplicated"] == 1
    # The same seed does the same again, to this endpoint.
    state.assign("loss=50%")
    control.sync(EMPTY)
    assert [bool(control.tx.apply(b"frame", 0)) for _n in range(200)] == faults


def test_settings_being_changed_are_taken_later(control):
    state = NicState.open(IFACE)
    control.sync(EMPTY)
    with state._changing() as file:
        file.write_settings(Settings(features={"tso": False}))
        control.sync(EMPTY)
        assert control._nic.tso
        assert control.generation[0] != control.seen
    control.sync(EMPTY)
    assert not control._nic.tso
    assert control.generation[0] == control.seen


def test_damaged_settings_change_nothing_and_are_counted(control):
    state = NicState.open(IFACE)
    state.set_feature("tso", False)
    control.sync(EMPTY)
    with state._changing() as file:
        file.write_settings(Settings(features={"tso": True}))
        file._map[64] = 0
    control.sync(EMPTY)
    assert not control._nic.tso
    assert control.generation[0] == control.seen
    assert state.counters()["settings_refused"] == 1
    with pytest.raises(ConfigError, match="damaged"):
        state.settings()
    state.reset()
    control.sync(EMPTY)
    assert control._nic.tso


# -- sockets ---------------------------------------------------------------------------------------------

@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[SmtSocket, SmtSocket]]:
    context = SmtContext(IFACE, "linux", "demo", nic=NicConfig(tls_hw_tx_offload=True))
    with joined(monkeypatch, context) as (client, server):
        yield client, server


def test_sockets_follow_at_their_next_step(ends):
    client, server = ends
    state = NicState.open(IFACE)
    assert [e.address for e in state.endpoints()] == ["10.0.0.1:40000", "10.0.0.2:2000"]
    exchange(ends, b"?" * 5000)
    assert client.loop.nic.counters.tx_tls_encrypted_packets > 0
    state.set_feature("tls-hw-tx-offload", False)
    before = client.loop.nic.counters.tx_tls_encrypted_packets
    exchange(ends, b"!" * 5000)  # the very first request already
    assert client.loop.nic.counters.tx_tls_encrypted_packets == before
    assert state.wait_applied(0)
    resyncs = client.loop.nic.counters.tx_tls_ooo
    state.set_feature("tls-hw-tx-offload", True)
    exchange(ends, b"." * 5000)
    assert client.loop.nic.counters.tx_tls_encrypted_packets > before
    assert client.loop.nic.counters.tx_tls_ooo > resyncs
    assert server.endpoint.counters.records_failed == client.endpoint.counters.records_failed == 0


def test_counters_are_published_when_work_is_done_and_at_the_end(ends):
    state = NicState.open(IFACE, persistent=True)
    exchange(ends, b"?")
    for end, name in zip(ends, ("responses_delivered", "requests_delivered"), strict=True):
        # Nothing more comes in: it is the deadline set by the last work that makes them known.
        assert end.loop.next_wake() is not None
        end.drive(lambda name=name: state.counters()[name] == 1, 10.0)
        assert state.counters()[name] == 1
    exchange(ends, b"?")
    for end in ends:
        end.close()
    assert state.counters()["requests_sent"] == 2
    assert state.endpoints() == []
    # What only rings count is 0.
    assert set(ends[0].counters()) == set(COUNTERS) - set(ring_counters.NAMES)


def test_queues_are_those_of_sockets_opened_later(monkeypatch):
    NicState.open(IFACE).set_queues(3)
    with joined(monkeypatch, SmtContext(IFACE, "linux", "demo")) as ends:
        assert {end.loop.nic.config.queues for end in ends} == {3}


def test_description(ends):
    state = NicState.open(IFACE)
    assert "none; all as the endpoints were configured" in describe(state)
    state.assign("tso=off", "loss=1%", "reorder=2%", "rx.delay=1.5ms", "max-contexts=3", "queues=2", "seed=4",
                 "paths=5")
    exchange(ends, b"?" * 3000)
    text = describe(state)
    for wanted in ("lo: smart NIC of 2 endpoints", "loss 1 %, reorder 2 %, reorder-delay 100 us, seed 4",
                   "rx impairments          delay 1.5 ms, seed 1", "max-contexts            3",
                   "paths                   5",
                   "10.0.0.2:2000 linux     process", "on: tls-hw-tx-offload, rx-checksum"):
        assert wanted in text
    assert json.dumps(dataclasses.asdict(state.settings()))


# -- contexts -------------------------------------------------------------------------------------------------


def test_who_claims_a_context_keeps_its_place():
    """Its own slot looks free to it: it must not take itself for one of those that are gone."""
    port = attach()
    port.publish(counted(tx_packets=5))
    assert port.claim_context(0, 1)
    assert not port.claim_context(1, 1)
    state = NicState.open(IFACE)
    assert [endpoint.address for endpoint in state.endpoints()] == ["10.0.0.1:2000"]
    port.publish(counted(tx_packets=7))
    assert state.counters()["tx_packets"] == 7
    port.detach()
