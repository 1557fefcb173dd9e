"""Plaintext twins: that they are there, right, in their places, and nothing is claimed that was not opened."""

from __future__ import annotations

import argparse
import json
import random
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.capture import decrypt as module
from smtstack.capture import pcapng
from smtstack.capture.flows import of_handshake
from smtstack.capture.keylog import Keylog, LoggedSecret, SeenKeys
from smtstack.capture.pcapfile import LINK_ETHERNET, Captured, Reader
from smtstack.capture.twins import LINK_UPPER_PDU
from smtstack.crypto import keys
from smtstack.crypto.epochs import SessionParams
from smtstack.crypto.keys import PairKeys, demo_keys
from smtstack.crypto.padding import padding_named
from smtstack.errors import ConfigError
from smtstack.nic.device import NicConfig
from smtstack.session import keylog as writing
from smtstack.sim.pair import CLIENT_IP, SERVER_IP, SERVER_PORT
from smtstack.transport.params import TransportParams
from smtstack.wire import homa
from smtstack.wire.frame import PAYLOAD_AT, TYPE_AT
from tests.captures import START, captured, decrypt
from tests.certificates import A, Authority
from tests.handshakes import Hosts, SessionRig
from tests.unit.test_decode import (
    CLIENT_PORT,
    MODULE,
    Collector,
    flip,
    is_data,
    module_frames,
    other_keys,
    save,
    talk,
)
from workloads.commands import pcap

PROFILES = ("smt", "homa", "linux")
SIZES = (1, 64, 1404, 1426, 5000, 20_000, 70_000)
CANARY = b"never to be seen" * 10
MODES = ("tls", "mtls", "ticket", "ticket-fs", "psk", "psk-fs")


def logged(secret: bytes, at: int = 0) -> LoggedSecret:
    """A session under ``secret`` between the ends that ``talk`` has."""
    return LoggedSecret((CLIENT_IP, CLIENT_PORT), (SERVER_IP, SERVER_PORT), at, SessionParams(), secret, False)


class LoggedHosts(Hosts):
    """Whose server writes its secrets down."""

    def managers(self):
        self.lines: list[str] = []
        return self.client_manager(), self.server_manager(keylog=writing.Keylog(self.lines.append))

    def keylog(self) -> Keylog:
        keylog = Keylog()
        keylog.add_untrusted("".join(self.lines))
        return keylog


def conversation(mode: str) -> tuple[LoggedHosts, SessionRig]:
    """A session that began with data waiting, and some more afterwards."""
    hosts = LoggedHosts(mode)
    hosts.resumable()
    rig = hosts.rig()
    for sizes in ((10, 5000, 40_000), (11, 5001)):
        for size in sizes:
            rig.request(bytes([size & 0xFF]) * size)
        rig.run()
    assert rig.answered() == 5
    return hosts, rig


# -- twins -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("wire", ["clean", "lossy"])
def test_twins_say_what_was_said(profile, wire):
    some = 0.1 if wire == "lossy" else 0.0
    said = talk(profile, SIZES, seed=3, loss=some, twice=some, late=some)
    opened = decrypt(said.sent, profile, demo_keys(profile))
    assert opened.messages() == said.messages
    counts = opened.counts
    assert (counts.messages_complete, counts.messages_incomplete) == (2 * len(SIZES), 0)
    assert (counts.records_failed, counts.unknown, counts.bad_packets, counts.acks_unproven) == (0, 0, 0, 0)
    assert counts.bytes == sum(map(len, said.messages.values()))
    assert counts.packets == len(said.sent)
    assert (wire == "lossy") == bool(counts.repeated)
    # The packets themselves are all there, in order.
    assert [p.frame for p in opened.packets if p.link_type == LINK_ETHERNET] == said.sent


def test_what_arrived_late_and_in_disorder_is_opened_too():
    said = talk("smt", SIZES, seed=5, loss=0.1, twice=0.1, late=0.5)
    shuffled = list(said.arrived)
    random.Random(1).shuffle(shuffled)
    opened = decrypt(shuffled, "smt", demo_keys("smt"))
    assert opened.messages() == said.messages
    assert opened.counts.records_failed == 0


@pytest.mark.parametrize("profile", ["smt", "linux"])
def test_a_twin_stands_right_behind_the_packet_that_completed_its_record(profile):
    said = talk(profile, (5000,), params=TransportParams(max_gso_size=3000))
    packets = decrypt(said.sent, profile, demo_keys(profile)).packets
    seen: list[bytes] = []
    twins = 0
    for n, packet in enumerate(packets):
        if packet.link_type != LINK_UPPER_PDU:
            seen.append(packet.frame)
            continue
        twins += 1
        # Without the last packet there is one twin less: it was that one that completed it.
        assert len(decrypt(seen, profile, demo_keys(profile)).twins()) == twins
        assert len(decrypt(seen[:-1], profile, demo_keys(profile)).twins()) < twins
        assert packet.timestamp_ns == packets[n - 1].timestamp_ns
    assert twins > 2


def test_comments_name_the_record():
    params = SessionParams(index_bits=20, key_update_records=4, late_ticks=0)
    store = PairKeys({}, params, default=keys.DEMO_SECRET)
    said = talk("smt", (20_000,) * 8, store=store)
    opened = decrypt(said.sent, "smt", store)
    assert opened.messages() == said.messages
    by_message: dict[tuple[int, int], list[dict]] = {}
    for twin in opened.twins():
        by_message.setdefault(twin.message, []).append(twin.said)
        sender_id = twin.message[0]
        assert int(twin.said["number"] or "", 16) == (sender_id << 20) + int(twin.said["nth"] or 0) - 1
        assert (twin.flow.src == SERVER_IP) == (twin.said["role"] == "response")
    assert {epoch for _id, epoch in by_message} >= {0, 1, 2}
    for records in by_message.values():
        assert {r["nth"] for r in records} == {str(n + 1) for n in range(len(records))}
        assert {r["of"] for r in records} == {str(len(records))}


@pytest.mark.parametrize("name", MODULE)
def test_captures_of_the_kernel_module(name):
    _data, _resent, _control, records = MODULE[name]
    for profile in ("linux", "homa") if "homa" in name else ("linux",):
        opened = decrypt(module_frames(name), profile, demo_keys(profile))
        messages = opened.messages()
        assert len(messages) == opened.counts.messages_complete == 20
        assert all(m == bytes(i % 256 for i in range(len(m))) for m in messages.values())
        assert opened.counts.bytes == 109_936
        assert (opened.counts.records_failed, opened.counts.bad_packets) == (0, 0)
        if records:
            assert opened.counts.records == records
            assert decrypt(module_frames(name), profile, other_keys(profile)).twins() == []


def test_padding_is_removed():
    store = PairKeys({}, SessionParams(padding=padding_named("buckets:4096,65536")), default=keys.DEMO_SECRET)
    said = talk("smt", (10, 5000), store=store)
    assert sum(len(f) for f in said.sent) > 2 * 65_536
    # Who opens records need not know how they were padded.
    assert decrypt(said.sent, "smt", demo_keys("smt")).messages() == said.messages


def test_who_sealed_is_told_where_the_capture_knows():
    said = talk("smt", (5000, 6000))
    frames = [f for f in said.sent if is_data(f)]
    comments = [f"offload: hw, context {n}" if n % 2 else "offload: sw" for n in range(len(frames))]
    texts = {t.said["offload"] for t in decrypt(captured(frames, comments), "smt", demo_keys("smt")).twins()}
    assert texts == {"hw+sw"}
    hardware = captured(frames, ["offload: hw, context 1"] * len(frames))
    opened = decrypt(hardware, "smt", demo_keys("smt"))
    assert {t.said["offload"] for t in opened.twins()} == {"hw"}
    # What was noted before stays.
    assert [p.comment for p in opened.packets if p.link_type == LINK_ETHERNET] == [c.comment for c in hardware]
    assert {t.said["offload"] for t in decrypt(frames, "smt", demo_keys("smt")).twins()} == {"unknown"}
    plain = decrypt(talk("homa", (100,)).sent, "homa", demo_keys("homa")).twins()
    assert {t.said["offload"] for t in plain} == {None}


# -- sessions --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", MODES)
def test_sessions_by_handshake_open_with_their_keylog(mode):
    hosts, rig = conversation(mode)
    keylog = hosts.keylog()
    frames = [f for _from_client, f in rig.sent_frames]
    opened = decrypt(frames, "smt", keylog, keylog.tls)
    asked = sorted(rig.asked.values())
    assert sorted(d for (i, _e), d in opened.messages().items() if not i & 1) == asked
    assert sum(i & 1 for i, _epoch in opened.messages()) == len(asked)
    counts = opened.counts
    assert (counts.records_failed, counts.unknown, counts.acks_unproven, counts.bad_packets) == (0, 0, 0, 0)
    assert counts.handshakes == 1
    assert counts.handshake_packets >= 2
    comments = "\n".join(p.comment for p in opened.packets)
    if "tls" in mode:
        for what in ("client hello, offers AES-128-GCM", "server hello, chooses AES-128-GCM", "client finish",
                     "server done"):
            assert what in comments
        (secrets,) = opened.tls_secrets
        assert b"SERVER_HANDSHAKE_TRAFFIC_SECRET " in secrets
    else:
        what = "a ticket" if "ticket" in mode else "a PSK"
        assert f"0-RTT hello with {what}{', forward-secret' if mode.endswith('-fs') else ''}, " in comments
        assert "0-RTT answer" in comments
        assert opened.tls_secrets == []
    assert {e for _i, e in opened.messages()} == ({0, 1} if mode.endswith("-fs") else {0})
    nobody = decrypt(frames, "smt", SeenKeys())
    assert nobody.twins() == []
    assert nobody.counts.unknown > 20
    assert "no session of these ends is known: not decrypted" in [p.comment for p in nobody.packets]
    assert nobody.tls_secrets == []


def test_of_two_sessions_of_the_same_ends_each_is_opened():
    """A port is used again, ids and epochs begin anew: authentication tells which session a record is of."""
    secrets = [bytes([n]) * 32 for n in range(3)]
    said = [talk("smt", (64, 5000, 20_000), seed=n, store=PairKeys({}, default=s)) for n, s in enumerate(secrets)]
    frames = [f for t in said for f in t.sent]
    store = SeenKeys(logged(s, at) for at, s in enumerate(secrets))
    opened = decrypt(frames, "smt", store)
    whole: list[tuple[tuple[int, int], bytes]] = []
    under_way: dict[tuple[int, int], list[bytes]] = {}
    for twin in opened.twins():
        if twin.said["nth"] == "1":
            under_way[twin.message] = []
        under_way[twin.message].append(twin.data)
        if twin.said["nth"] == twin.said["of"]:
            whole.append((twin.message, b"".join(under_way[twin.message])))
    assert sorted(whole) == sorted(item for t in said for item in t.messages.items())
    assert opened.counts.messages_complete == 18
    assert (opened.counts.records_failed, opened.counts.acks_unproven) == (0, 0)
    # The second is not known: nothing of it is opened, all of the others is.
    opened = decrypt(frames, "smt", SeenKeys([logged(secrets[0]), logged(secrets[2])]))
    assert opened.counts.messages_complete == 12
    assert opened.counts.records_failed > 0
    assert any("not authentic under any session known" in p.comment for p in opened.packets)


def test_a_refused_handshake_says_why():
    hosts = LoggedHosts("mtls", client_id=Authority().identity("a", A))
    rig = hosts.rig()
    rig.request(CANARY)
    rig.run()
    assert rig.answered() == 0
    frames = [f for _c, f in rig.sent_frames]
    keylog = hosts.keylog()
    opened = decrypt(frames, "smt", keylog, keylog.tls)
    assert opened.twins() == []
    assert not any(CANARY in p.frame for p in opened.packets)
    assert (opened.counts.handshakes, opened.counts.bad_packets) == (1, 0)
    comments = "\n".join(p.comment for p in opened.packets)
    assert "client hello, offers" in comments
    assert ": refused: the server refuses (tls): the client refuses the handshake" in comments


@pytest.mark.parametrize("mode", MODES)
def test_the_decoder_verifies_sessions_with_their_keylog(mode):
    hosts, rig = conversation(mode)
    frames = [f for _from_client, f in rig.sent_frames]
    decoder = Collector("smt", hosts.keylog())
    for frame in frames:
        decoder.add(LINK_ETHERNET, frame)
    result = decoder.result()
    assert (result.records_bad, result.nonce_reuse, result.bad_packets, decoder.hints()) == (0, 0, 0, [])
    assert (result.messages, result.messages_complete) == (10, 10)
    assert result.handshake_packets > 2
    assert result.handshake_packets + sum(result.packets.values()) == len(frames)
    # A changed packet is found, also where the first flight has a key of its own.
    changed = next(f for f in frames if is_data(f) and len(f) > 1000 and not of_handshake(f[34:]))
    decoder = Collector("smt", hosts.keylog())
    for frame in [*frames, flip(changed, 30)]:
        decoder.add(LINK_ETHERNET, frame)
    assert decoder.result().records_bad == 1


def test_the_decoder_keeps_sessions_of_the_same_ends_apart():
    secrets = [bytes([n]) * 32 for n in range(2)]
    said = [talk("smt", (64, 5000, 20_000), seed=n, store=PairKeys({}, default=s)) for n, s in enumerate(secrets)]
    decoder = Collector("smt", SeenKeys(logged(s, at) for at, s in enumerate(secrets)))
    for frame in [f for t in said for f in t.sent] + said[0].sent[:20] + said[1].sent[:20]:
        decoder.add(LINK_ETHERNET, frame)
    result = decoder.result()
    assert (result.records_bad, result.nonce_reuse, result.bad_packets) == (0, 0, 0)
    assert (result.messages, result.messages_complete) == (12, 12)
    got = [((m.sender_id, m.epoch), m.data) for m in decoder.messages()]
    assert sorted(got) == sorted(item for t in said for item in t.messages.items())
    # A nonce used twice under one of the keys is found all the same.
    twice = talk("smt", (64,), seed=9, store=PairKeys({}, default=secrets[0]))
    decoder = Collector("smt", SeenKeys(logged(s, at) for at, s in enumerate(secrets)))
    for frame in [f for t in (*said, twice) for f in t.sent]:
        decoder.add(LINK_ETHERNET, frame)
    assert decoder.result().nonce_reuse == 2


def test_a_changed_packet_is_no_twin_and_the_true_one_is():
    said = talk("smt", (64,))
    request = next(f for f in said.sent if is_data(f))
    opened = decrypt([flip(request, 8), *said.sent], "smt", demo_keys("smt"))
    assert opened.counts.records_failed == 1
    assert "message 2 request: not authentic under any session known" in opened.packets[0].comment
    assert opened.messages() == said.messages
    forged_ack = bytearray(next(f for f in talk("smt", (64,), seed=1).sent if f[TYPE_AT] == homa.ACK))
    forged_ack[-1] ^= 1
    opened = decrypt([bytes(forged_ack)], "smt", demo_keys("smt"))
    assert opened.counts.acks_unproven == 1
    assert opened.packets[0].comment == "the proof of this ACK is of no session known"


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_HELD", 30_000)
    said = talk("smt", (20_000,) * 6, params=TransportParams(max_gso_size=20_000))
    firsts = [f for f in said.sent if is_data(f)]
    random.Random(2).shuffle(firsts)
    decrypter = module.Decrypter("smt", demo_keys("smt"))
    for packet in captured(firsts):
        decrypter.add(packet)
        assert decrypter._held <= 30_000
        assert decrypter._held == sum(m.held for ms in decrypter._live.values() for m in ms)
    counts = decrypter.finish()
    assert counts.messages_incomplete > 0
    assert decrypter._held == 0
    monkeypatch.setattr(module, "MAX_HELD", 1 << 28)
    monkeypatch.setattr(module, "MAX_MESSAGES", 4)
    decrypter = module.Decrypter("smt", demo_keys("smt"))
    for packet in captured(talk("smt", (64,) * 50).sent):
        decrypter.add(packet)
        assert len(decrypter._live) <= 4
    assert decrypter.finish().messages_complete == 100
    monkeypatch.setattr(module, "MAX_MESSAGES", 1000)
    monkeypatch.setattr(module, "MAX_DIGESTS", 30)
    decrypter = module.Decrypter("smt", demo_keys("smt"))
    for packet in captured(talk("smt", (5000,) * 30).sent):
        decrypter.add(packet)
        assert decrypter._digests == sum(m.digests for ms in decrypter._live.values() for m in ms) <= 30
    assert decrypter.finish().messages_complete == 60
    assert decrypter._digests == 0


SAID = {p: talk(p, (1, 5000), seed=1) for p in PROFILES}
LONGER = {p: talk(p, (1, 1404, 5000, 30_000), seed=1, loss=0.05) for p in PROFILES}
RIG = conversation("mtls")


@settings(max_examples=200)
@given(st.sampled_from(PROFILES), st.data())
def test_any_bytes_are_taken(profile, data):
    frames = SAID[profile].sent if data.draw(st.booleans()) else [f for _c, f in RIG[1].sent_frames]
    out = []
    for frame in data.draw(st.lists(st.sampled_from(frames), max_size=12)):
        changed = bytearray(frame)
        places = st.tuples(st.integers(34, len(frame) - 1), st.integers(0, 255))
        for at, value in data.draw(st.lists(places, max_size=3)):
            changed[at] = value
        out.append(bytes(changed)[:data.draw(st.integers(0, len(frame)))])
    opened = decrypt(out, profile, demo_keys(profile))
    assert [p.frame for p in opened.packets if p.link_type == LINK_ETHERNET and p.interface == "e0"] == out


@settings(max_examples=60)
@given(st.sampled_from(PROFILES), st.integers(0, 1 << 30), st.floats(0, 0.3), st.floats(0, 0.2), st.booleans())
def test_reading_along_finds_what_judging_at_the_end_finds(profile, seed, loss, noise, shuffle):
    """The decoder keeps everything and looks afterwards; no order of packets may make a difference."""
    rng = random.Random(seed)
    frames = []
    for frame in LONGER[profile].sent:
        for copy in (frame,) * (1 + (rng.random() < noise)):
            if rng.random() >= loss:
                # Payload only: of a header that was changed nobody knows what it would have said.
                spoil = is_data(frame) and rng.random() < noise
                frames.append(flip(copy, rng.randrange(len(copy) - PAYLOAD_AT)) if spoil else copy)
    if shuffle:
        rng.shuffle(frames)
    decoder = Collector(profile, demo_keys(profile))
    for frame in frames:
        decoder.add(LINK_ETHERNET, frame)
    result = decoder.result()
    opened = decrypt(frames, profile, demo_keys(profile))
    if profile == "homa":
        # Nothing tells a true copy from a changed one there; without changed ones all is alike.
        assert noise > 0 or opened.counts.messages_complete == result.messages_complete
        return
    assert opened.counts.records == result.records_ok
    assert opened.counts.messages_complete == result.messages_complete
    whole = {(m.sender_id, m.epoch): m.data for m in decoder.messages() if m.data is not None}
    assert {k: v for k, v in opened.messages().items() if k in whole} == whole


# -- files and the command -------------------------------------------------------------------------------

def command(*argv: str | Path) -> int:
    parser = argparse.ArgumentParser()
    pcap.add_parser(parser.add_subparsers())
    args = parser.parse_args(["pcap", *map(str, argv)])
    code: int = args.run(args)
    return code


def read(path: Path) -> tuple[list[Captured], list[bytes]]:
    with path.open("rb") as stream:
        reader = Reader(stream)
        return list(reader.frames_untrusted()), reader.tls_secrets


def test_command(tmp_path, capsys):
    hosts, rig = conversation("mtls")
    source = save(tmp_path / "in.pcap", [f for _c, f in rig.sent_frames])
    log = tmp_path / "log"
    log.write_text("".join(hosts.lines))
    out = tmp_path / "out.pcapng"
    assert command("decrypt", source, out, "--keylog", log, "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert (counts["messages_complete"], counts["handshakes"], counts["records_failed"]) == (10, 1, 0)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    packets, secrets = read(out)
    assert {p.interface for p in packets} == {"capture", "plaintext", "handshakes"}
    assert len(secrets) == 1
    assert all(line.split()[0] in "".join(hosts.lines) for line in secrets[0].decode().splitlines())
    assert b"SMT_SECRET" not in secrets[0]
    with pytest.raises(ConfigError, match="not overwritten"):
        command("decrypt", source, out, "--keylog", log)
    out.unlink()
    assert command("decrypt", source, out, "--keylog", log, "--no-secrets") == 0
    assert "records decrypted" in capsys.readouterr().out
    assert read(out)[1] == []
    # The capture may hold its secrets itself, as editcap puts them there.
    whole = pcapng.section("test") + pcapng.tls_secrets("".join(hosts.lines)) + pcapng.interface("e9")
    for n, frame in enumerate(f for _c, f in rig.sent_frames):
        whole += pcapng.packet(0, START + n, frame, None)
    inside = tmp_path / "inside.pcapng"
    inside.write_bytes(whole)
    assert command("decrypt", inside, tmp_path / "2.pcapng", "--json") == 0
    assert json.loads(capsys.readouterr().out)["messages_complete"] == 10
    assert command("decode", inside, "--json") == 0
    assert json.loads(capsys.readouterr().out)["messages_complete"] == 10
    assert "e9" in {p.interface for p in read(tmp_path / "2.pcapng")[0]}


def test_command_complains(tmp_path, capsys):
    source = save(tmp_path / "in.pcap", talk("smt", (64,)).sent)
    out = tmp_path / "out.pcapng"
    empty = tmp_path / "empty"
    empty.touch()
    assert command("decrypt", source, out, "--keylog", empty) == 1
    assert "that the keys given do not name" in capsys.readouterr().err
    out.unlink()
    assert command("decrypt", source, out, "--keys", "demo") == 0
    out.unlink()
    assert command("decrypt", source, out, "--profile", "linux", "--keys", "demo") == 1
    assert "packets look like profile smt (IP protocol 146), not linux" in capsys.readouterr().err
    out.unlink()
    for argv, why in ((("--profile", "linux"), "--keys"), ((), "no keys: give --keylog"),
                      (("--profile", "homa", "--keylog", empty), "for profile smt"),
                      (("--ticket-key", empty), "no state file"),
                      (("--ticket-key", tmp_path / "none"), "no state file"),
                      (("--profile", "linux", "--ticket-key", empty), "for profile smt")):
        with pytest.raises(ConfigError, match=why):
            command("decrypt", source, out, *argv)
        assert not out.exists()
    damaged = tmp_path / "damaged"
    damaged.write_bytes(source.read_bytes()[:24] + b"\xff" * 16)
    with pytest.raises(ConfigError, match="damaged"):
        command("decrypt", damaged, out, "--keys", "demo")
    assert not out.exists()
    with pytest.raises(ConfigError, match="No such file"):
        command("decrypt", tmp_path / "none", out, "--keys", "demo")
    with pytest.raises(ConfigError, match="No such file"):
        command("decrypt", source, tmp_path / "none" / "out", "--keys", "demo")


def test_the_host_side_of_a_nic_is_passed_on_and_not_looked_into():
    said = talk("smt", (5000,), nic=NicConfig(tls_hw_tx_offload=True))
    host = [Captured(START, LINK_ETHERNET, f, "e0" + pcapng.HOST_SIDE, "queue 0", True) for f in said.sent[:2]]
    opened = decrypt([*host, *captured(said.sent)], "smt", demo_keys("smt"))
    assert opened.packets[:2] == host
    assert opened.counts.ignored == 2
    assert opened.messages() == said.messages
