"""Trace files: what qlog asks of them, bounds, what a crash leaves behind; and the command that reads them."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from smtstack.capture import qlog
from smtstack.errors import BadPacket, ConfigError
from smtstack.exit_codes import EXIT_OK, EXIT_USAGE
from smtstack.io.trace_file import TraceFile, is_folder
from smtstack.socket import SmtContext
from smtstack.transport import trace
from smtstack.transport.trace import TraceEvent
from smtstack.wire import homa
from smtstack.wire.frame import TYPE_AT
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, pattern
from tests.rig import Rig
from workloads.commands import main as cli
from workloads.options import common as options

ROOT = Path(__file__).resolve().parents[2]


def some(number: int = 0, **more: Any) -> TraceEvent:
    return TraceEvent(number * 1_000_001, trace.QUEUED, SERVER, SERVER_PORT, 2, 0, True, birth=1, **more)


def records(path: Path) -> list[Any]:
    parts = path.read_bytes().split(b"\x1e")
    assert parts[0] == b""
    assert all(part.endswith(b"\n") for part in parts[1:])
    return [json.loads(part) for part in parts[1:]]


def read(path: Path) -> qlog.TraceRecord:
    with path.open("rb") as stream:
        return qlog.read_untrusted(stream.read)


@pytest.fixture
def talk(tmp_path: Path) -> tuple[Path, Path]:
    """Traces of both ends of a conversation in which a packet is lost."""
    lost = False

    def tamper(_from_client: bool, frame: bytes) -> list[bytes]:
        nonlocal lost
        if frame[TYPE_AT] == homa.DATA and len(frame) > 1000 and not lost:
            lost = True
            return []
        return [frame]

    rig = Rig(tamper=tamper)
    files = [TraceFile(str(tmp_path / name), side.endpoint.ip, side.endpoint.port, "smt")
             for name, side in (("client.sqlog", rig.client), ("server.sqlog", rig.server))]
    for side, file in zip((rig.client, rig.server), files, strict=True):
        side.endpoint.trace_to(file)
    rig.request(pattern(5000))
    rig.request(pattern(10))
    rig.run()
    for file in files:
        file.close()
    return files[0].path, files[1].path


# -- the format ------------------------------------------------------------------------------------------------


def test_what_the_main_schema_asks_for(talk):
    """draft-ietf-quic-qlog-main-schema-13, sections 3, 5, 6 and 7, member by member."""
    head, *events = records(talk[0])
    assert head["file_schema"] == "urn:ietf:params:qlog:file:sequential"
    assert head["serialization_format"] == "application/qlog+json-seq"
    assert isinstance(head["title"], str)
    where = head["trace"]["vantage_point"]
    assert where["type"] in ("client", "server", "network", "unknown")
    assert where["name"] == f"10.0.0.1:{CLIENT_PORT}"
    assert all(schema.startswith("urn:") for schema in head["trace"]["event_schemas"])
    common = head["trace"]["common_fields"]
    assert common["time_format"] == "relative_to_epoch"
    # A clock of the kind monotonic has no epoch that anybody knows.
    assert (common["reference_time"]["clock_type"], common["reference_time"]["epoch"]) == ("monotonic", "unknown")
    assert common["reference_time"]["wall_clock_time"].endswith("Z")
    assert len(events) > 10
    for event in events:
        assert isinstance(event["time"], (int, float))
        space, _, name = event["name"].partition(":")
        assert (space, name in trace.EVENTS) == ("smt", True)
        assert isinstance(event["data"], dict)
        assert isinstance(event["data"].get("trigger", ""), str)
        assert isinstance(event["group_id"], str)
    assert {event["group_id"] for event in events} == {
        f"10.0.0.1:{CLIENT_PORT}>10.0.0.2:{SERVER_PORT} 0 {rpc}" for rpc in (2, 4)}
    theirs = {event["group_id"] for event in records(talk[1])[1:]}
    assert theirs == {event["group_id"] for event in events}


def test_large_numbers_are_exact(tmp_path):
    file = TraceFile(str(tmp_path / "t"), CLIENT, CLIENT_PORT, "smt")
    event = TraceEvent((1 << 62) + 1, trace.SENT, SERVER, SERVER_PORT, (1 << 62) + 2, 255, True)
    file.event(event)
    file.close()
    assert records(file.path)[1]["data"]["rpc"] == str((1 << 62) + 2)
    (again,) = read(file.path).events
    assert (again.time, again.rpc, again.epoch) == (event.time, event.rpc, 255)


# -- bounds ----------------------------------------------------------------------------------------------------


def test_a_file_has_an_end_and_says_so(tmp_path, capsys):
    file = TraceFile(str(tmp_path / "t"), CLIENT, CLIENT_PORT, "smt", max_bytes=3000)
    for number in range(1000):
        file.event(some(number, why="x" * 100))
    file.close()
    assert 2500 < file.path.stat().st_size < 3300
    record = read(file.path)
    assert 5 < len(record.events) < 20
    assert record.cut == "the file is as long as it may become"
    assert cli.main(["trace", str(file.path)]) == EXIT_OK
    assert "was cut: the file is as long as it may become" in capsys.readouterr().err


def test_a_disk_that_is_full_ends_the_trace_not_the_program(tmp_path):
    file = TraceFile(str(tmp_path / "t"), CLIENT, CLIENT_PORT, "smt")
    os.dup2(os.open("/dev/full", os.O_WRONLY), file._fd)
    for number in range(1000):
        file.event(some(number))
    assert "No space left" in file.cut
    file.close()


def test_a_killed_process_leaves_a_file_that_can_be_read(tmp_path):
    code = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
from smtstack.io.trace_file import TraceFile
from tests.unit.test_trace_files import some
file = TraceFile({str(tmp_path / "t")!r}, 1, 2, "smt")
for number in range(5000):
    file.event(some(number))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode < 0
    record = read(tmp_path / "t")
    # All but what was less than a tenth of a second old.
    assert len(record.events) > 4800
    assert not record.broken


@pytest.mark.parametrize("keep", [0.3, 0.7, 0.99])
def test_a_file_that_ends_anywhere_is_read_up_to_there(talk, tmp_path, capsys, keep):
    whole = talk[0].read_bytes()
    cut = tmp_path / "cut"
    cut.write_bytes(whole[:int(len(whole) * keep)])
    record = read(cut)
    assert record.broken
    assert 0 < len(record.events) < len(read(talk[0]).events)
    assert cli.main(["trace", str(cut)]) == EXIT_OK
    assert "ends in the middle of a record" in capsys.readouterr().err


# -- where -----------------------------------------------------------------------------------------------------


def test_files_and_folders(tmp_path):
    assert is_folder(str(tmp_path))
    assert is_folder("new/")
    assert not is_folder("new")
    folder = f"{tmp_path}/a/b/"
    first, second = (TraceFile(folder, CLIENT, CLIENT_PORT, "smt") for _ in range(2))
    assert first.path != second.path
    assert first.path.name == f"10.0.0.1-{CLIENT_PORT}-{os.getpid()}.sqlog"
    for file in (first, second):
        file.close()
    with pytest.raises(ConfigError, match="exists; traces are not overwritten"):
        TraceFile(str(first.path), CLIENT, CLIENT_PORT, "smt")
    with pytest.raises(ConfigError, match="No such file"):
        TraceFile(str(tmp_path / "none" / "t"), CLIENT, CLIENT_PORT, "smt")


def test_options_that_cannot_be():
    parser = argparse.ArgumentParser()
    options.add_transport_options(parser)
    args = parser.parse_args(["--transport", "tcp", "--trace", "t"])
    with pytest.raises(ConfigError, match="--trace is for smt, homa, linux"):
        options.settings(args)
    # Of several listeners those that have packets of their own are traced.
    assert options.settings(args, ("tcp", "homa")).trace is None
    options.check_trace(args, 1)
    with pytest.raises(ConfigError, match="2 sockets need a folder, as t/"):
        options.check_trace(args, 2)
    assert SmtContext("e0").trace is None


# -- what is refused -------------------------------------------------------------------------------------------


HEAD = qlog.head(CLIENT, CLIENT_PORT, "smt", "x", "now")


@pytest.mark.parametrize(("data", "why"), [
    (b"", "no qlog file"),
    (b"{}", "begins with the byte 0x1E"),
    (b"\x1e{}\n", "head of qlog's main schema"),
    (HEAD.replace(b"smt-1", b"quic-12"), "not of events of schema"),
    (HEAD.replace(b"relative_to_epoch", b"absolute"), "not relative"),
    (HEAD.replace(b'"10.0.0.1:32768","type"', b'"here","type"'), "'here' is no address"),
    (HEAD + b'\x1e{"time":1.5,"na\n' + qlog.encode(CLIENT, CLIENT_PORT, some()), "in the middle"),
    (HEAD + b"\x1e[]\n", "no object"),
    (HEAD + b'\x1e{"time":"soon","name":"smt:sent","data":{"peer":"1.2.3.4:5"}}\n', "whose time is none"),
    (HEAD + b'\x1e{"time":1.5,"name":"smt:sent","data":{"peer":"1.2.3.4:99999"}}\n', "no address"),
    (HEAD + b"\x1e" + b"x" * 200_000, "record of more than"),
])
def test_what_is_no_trace_is_refused(tmp_path, capsys, data, why):
    path = tmp_path / "t"
    path.write_bytes(data)
    with pytest.raises(BadPacket, match=why):
        read(path)
    assert cli.main(["trace", str(path)]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert said.startswith(f"smtnet: {path}: ")
    assert said.count("\n") == 1


def test_a_terminal_is_safe(tmp_path):
    path = tmp_path / "t"
    path.write_bytes(HEAD + qlog.encode(CLIENT, CLIENT_PORT, some(why="\x1b[2J\nboo", text="\x07")))
    (event,) = read(path).events
    assert (event.why, event.text) == ("?[2J?boo", "?")


def test_events_of_others_are_passed_over(tmp_path, capsys):
    path = tmp_path / "t"
    path.write_bytes(HEAD + b'\x1e{"time":1.5,"name":"loglevel:info","data":{"message":"hi"}}\n'
                     + qlog.encode(CLIENT, CLIENT_PORT, some()))
    assert (read(path).unknown, len(read(path).events)) == (1, 1)
    assert cli.main(["trace", str(path)]) == EXIT_OK
    assert "1 records of other schemas" in capsys.readouterr().err


# -- the command -----------------------------------------------------------------------------------------------


def test_the_list(talk, capsys):
    assert cli.main(["trace", *map(str, talk)]) == EXIT_OK
    said = capsys.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines] == ["rpc", "2", "4"]
    assert lines[1].split()[1:5] == [f"10.0.0.1:{CLIENT_PORT}", f"10.0.0.2:{SERVER_PORT}", "5000", "5001"]
    assert lines[1].endswith("answered")


def test_json(talk, capsys):
    assert cli.main(["trace", *map(str, talk), "--json"]) == EXIT_OK
    rpcs = json.loads(capsys.readouterr().out)["rpcs"]
    assert [(rpc["rpc"], rpc["request_bytes"], rpc["outcome"]) for rpc in rpcs] == [
        (2, 5000, "answered"), (4, 10, "answered")]
    assert rpcs[0]["traced"] == ["client", "server"]
    assert rpcs[0]["packets_resent"] == 1
    assert rpcs[0]["doubts"] >= 1
    assert sum(rpcs[0]["waited_ns"].values()) == rpcs[0]["total_ns"]
    assert rpcs[0]["waited_ns"]["doubt"] > 10_000_000 > rpcs[0]["total_ns"] - rpcs[0]["waited_ns"]["doubt"]


def test_a_ladder(talk, capsys):
    assert cli.main(["trace", *map(str, talk), "--rpc", "2"]) == EXIT_OK
    said = capsys.readouterr().out
    assert said.startswith(f"rpc 2, 10.0.0.1:{CLIENT_PORT} > 10.0.0.2:{SERVER_PORT}, epoch 0: answered after ")
    where = [said.index(text) for text in (
        "| queued request 5022 B", "DATA, 0+5022 of 5022", "doubted request 1440 B: silence |",
        "RESEND, 0+1440, wants prio 7", "| resent request 1440 B (1 packets): RESEND", "DATA, 0+1440 of 5022",
        "delivered request 5000 B |", "| delivered response 5001 B", "| freed: its response is here")]
    assert where == sorted(where)
    line = next(text for text in said.splitlines() if "DATA, 0+5022 of 5022" in text)
    assert line.endswith("+5.0, 3582 of 5022 B")
    widths = {len(text.rpartition("|")[0]) for text in said.splitlines() if text.endswith("|")}
    assert len(widths) == 1


def test_one_end_alone_does_not_know_what_arrived(talk, capsys):
    assert cli.main(["trace", str(talk[0]), "--rpc", "2", "--json"]) == EXIT_OK
    one = json.loads(capsys.readouterr().out)
    assert one["traced"] == ["client"]
    packets = [rung for rung in one["ladder"] if rung["packet"]]
    assert {rung["fate"] for rung in packets if rung["by"] == "client"} == {"not known"}
    assert any(rung["what"].startswith("RESEND") and rung["by"] == "server" for rung in packets)


def test_a_picture(talk, tmp_path, capsys, monkeypatch):
    pytest.importorskip("matplotlib.figure")
    from matplotlib.figure import Figure

    path = tmp_path / "rpc.svg"
    assert cli.main(["trace", *map(str, talk), "--rpc", "2", "--png", str(path)]) == EXIT_OK
    assert "<svg" in path.read_text()
    drawn: list[Figure] = []
    with monkeypatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, *_args, **_kw: drawn.append(self))
        assert cli.main(["trace", *map(str, talk), "--rpc", "2", "--png", str(path)]) == EXIT_OK
    arrows = [text for text in drawn[0].axes[0].texts if getattr(text, "arrow_patch", None)]
    received = sum(e.name == trace.RECEIVED and e.rpc == 2 for file in talk for e in read(file).events)
    assert len(arrows) == received > 10
    capsys.readouterr()
    assert cli.main(["trace", *map(str, talk), "--rpc", "2", "--png", str(tmp_path / "rpc.nothing")]) == EXIT_USAGE
    assert "rpc.nothing: Format" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "why"), [
    (["--rpc", "6"], "there is no such RPC"),
    (["--rpc", "two"], "an RPC's id is a number"),
    (["--rpc", "10.0.0.9:1/2"], "there is no such RPC"),
    (["--png", "x.png"], "--rpc says which"),
])
def test_what_cannot_be_shown(talk, capsys, words, why):
    assert cli.main(["trace", str(talk[0]), *words]) == EXIT_USAGE
    assert why in capsys.readouterr().err


def test_ids_that_several_clients_have(talk, tmp_path, capsys):
    other = tmp_path / "other"
    other.write_bytes(qlog.head(CLIENT, 9, "smt", "x", "now") + qlog.encode(CLIENT, 9, some()))
    assert cli.main(["trace", str(talk[0]), str(other), "--rpc", "2"]) == EXIT_USAGE
    assert "2 clients have it; say which, as 10.0.0.1:32768/2" in capsys.readouterr().err
    assert cli.main(["trace", str(talk[0]), str(other), "--rpc", "10.0.0.1:9/2"]) == EXIT_OK
    assert capsys.readouterr().out.startswith("rpc 2, 10.0.0.1:9 > 10.0.0.2:2000, epoch 0: not over")


def test_compressed(talk, tmp_path, capsys):
    path = tmp_path / "t.sqlog.gz"
    path.write_bytes(gzip.compress(talk[0].read_bytes()))
    assert cli.main(["trace", str(path)]) == EXIT_OK
    assert capsys.readouterr().out.count("answered") == 2
