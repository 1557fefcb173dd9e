"""Who records everything and later gets the server's long-term keys: what our own tools show him, and what not.

He has the state file: the private halves of tickets, the keys of resumption blobs. He may have the key of the
certificate, too: it signs, nothing was ever sealed with it, so there is no tool to give it to.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from smtstack.capture.keylog import SeenKeys
from smtstack.session.flights import Kind
from smtstack.session_io.state_file import SqliteState
from tests.captures import Opened, captured, decrypt
from tests.handshakes import SessionRig
from tests.rig import answer
from tests.unit.test_decode import save
from tests.unit.test_decrypt import LoggedHosts
from workloads.commands import pcap
from workloads.commands.pcap_decrypt import read_state

#: Waiting when the session begins, so that they are its first flight; and asked when it is there.
FIRST = (b"first flight, short", b"first flight, long; " * 2000)
LATER = (b"after the answer, short", b"after the answer, long; " * 2000)
EARLY_MODES = ("ticket", "ticket-fs", "psk", "psk-fs")


class Recorded:
    """A session of a mode, recorded from its first packet on; what the server keeps, and its keylog."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.state = folder / "server.state"
        self.hosts = LoggedHosts(mode, state=SqliteState(self.state))  # type: ignore[arg-type]
        self.hosts.resumable()
        rig: SessionRig = self.hosts.rig()
        for requests in (FIRST, LATER):
            for request in requests:
                rig.request(request)
            rig.run()
        assert rig.answered() == len(FIRST + LATER)
        self.frames = [f for _from_client, f in rig.sent_frames]
        self.capture = save(folder / "all.pcap", self.frames)
        self.keylog = folder / "keylog"
        self.keylog.write_text("".join(self.hosts.lines))


@pytest.fixture(params=EARLY_MODES)
def recorded(request, tmp_path) -> Recorded:
    return Recorded(request.param, tmp_path)


def command(recorded: Recorded, out: Path, *options: str | Path) -> tuple[int, bytes]:
    """``smtnet pcap decrypt``: its exit code, and the file it wrote."""
    parser = argparse.ArgumentParser()
    pcap.add_parser(parser.add_subparsers())
    args = parser.parse_args(["pcap", "decrypt", str(recorded.capture), str(out), "--json", *map(str, options)])
    return args.run(args), out.read_bytes()


def said(opened: Opened) -> set[bytes]:
    """All messages, whole or in part."""
    return set(opened.messages().values())


def test_long_term_keys_open_all_that_stays_under_them_and_no_more(recorded, tmp_path, capsys):
    forward_secret = recorded.hosts.mode.endswith("-fs")
    everything = {*FIRST, *LATER, *map(answer, FIRST + LATER)}
    # The control: with the secrets of the session all of it opens.
    code, opened = command(recorded, tmp_path / "control.pcapng", "--keylog", recorded.keylog)
    assert (code, json.loads(capsys.readouterr().out)["messages_complete"]) == (0, len(everything))
    assert all(m[:20] in opened for m in everything)
    code, opened = command(recorded, tmp_path / "opened.pcapng", "--ticket-key", recorded.state)
    out, err = capsys.readouterr()
    assert "1 of 1 0-RTT hellos are for the keys of" in err
    counts = json.loads(out)
    assert all(m[:20] in opened for m in FIRST)
    if not forward_secret:
        assert (code, counts["messages_complete"], counts["bytes"]) == (0, 8, sum(map(len, everything)))
        assert all(m[:20] in opened for m in everything)
        return
    # What the client sent before it had the server's share, and nothing else: no answer, nothing later.
    assert (counts["messages_complete"], counts["bytes"]) == (len(FIRST), sum(map(len, FIRST)))
    assert not any(m[:20] in opened for m in everything - set(FIRST))
    assert code == 1
    assert counts["unknown"] > 20


def test_the_early_secret_taken_for_the_whole_sessions_opens_no_more(recorded):
    """The tool does not hold back: forced on all epochs and both directions the early secret fits none of them."""
    keylog = recorded.hosts.keylog()
    secrets = [s for known in keylog._by_ends.values() for s in known.values()]
    forced = SeenKeys([replace(s, early=False) for s in secrets if s.early])
    opened = decrypt(recorded.frames, "smt", forced)
    if recorded.hosts.mode.endswith("-fs"):
        assert said(opened) == set(FIRST)
    else:
        assert said(opened) == set()
    assert len(said(decrypt(recorded.frames, "smt", keylog))) == 8


def test_keys_of_another_server_open_nothing(recorded, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    other = Recorded(recorded.hosts.mode, tmp_path / "other")
    code, opened = command(recorded, tmp_path / "opened.pcapng", "--ticket-key", other.state)
    assert code == 1
    assert "0 of 1 0-RTT hellos" in capsys.readouterr().err
    assert not any(m[:20] in opened for m in FIRST + LATER)


def test_handshakes_of_tls_open_to_nothing_that_is_kept(tmp_path, capsys):
    recorded = Recorded("mtls", tmp_path)
    code, opened = command(recorded, tmp_path / "opened.pcapng", "--ticket-key", recorded.state)
    assert code == 1
    assert "0 of 0 0-RTT hellos" in capsys.readouterr().err
    assert not any(m[:20] in opened for m in FIRST + LATER)
    code, opened = command(recorded, tmp_path / "control.pcapng", "--keylog", recorded.keylog)
    assert code == 0
    assert all(m[:20] in opened for m in FIRST + LATER)


def test_a_state_file_is_read_and_left_as_it_is(recorded, tmp_path, capsys):
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    state = read_state(recorded.state)
    assert state.tickets() or state.keys
    command(recorded, tmp_path / "opened.pcapng", "--ticket-key", recorded.state)
    capsys.readouterr()
    after = {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.name != "opened.pcapng"}
    assert {n: b for n, b in after.items() if not n.endswith(("-shm", "-wal"))} == {
        n: b for n, b in before.items() if not n.endswith(("-shm", "-wal"))}


def test_data_that_overtook_its_hello_is_opened(tmp_path, capsys):
    recorded = Recorded("ticket", tmp_path)
    parts = captured(recorded.frames)
    hello = next(n for n, p in enumerate(parts) if p.frame[34 + 11] & 4)
    assert hello == 0, f"the first packet is of the {Kind.EARLY_HELLO.name}"
    save(recorded.capture, [*recorded.frames[1:4], recorded.frames[0], *recorded.frames[4:]])
    code, opened = command(recorded, tmp_path / "opened.pcapng", "--ticket-key", recorded.state)
    assert (code, json.loads(capsys.readouterr().out)["messages_complete"]) == (0, 8)
    assert FIRST[0] in opened
