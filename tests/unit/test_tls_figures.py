"""Figures of TLS offload: arithmetic over made-up rows, tables, pictures; copies counted where they happen."""

from __future__ import annotations

import dataclasses
import hashlib
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import ConfigError
from tests.rows import row
from workloads.experiments import files, tls_backends, tls_loss, tls_records, tls_route
from workloads.experiments.offload import figures, hazard, loss_report, route_report
from workloads.experiments.offload.senders import COPIES, KTLS_SW, PLAIN, TLS, How, Receiving, accepted
from workloads.fleet import credentials
from workloads.options import declare

MB = 1_000_000


def stream(system: str, *, mode: str = files.MODE, mbit: float = 800.0, host_s: float = 0.002,
           device_s: float = 0.001, copies: tuple[int, ...] = (MB, MB, 0, MB), resent: int = 0, counters: Any = (),
           **more: Any) -> Any:
    """One transfer of 1 MB."""
    return row(system, None, mode=mode, **{
        "size": MB, "concurrency": 1, "variant": "", "bytes": MB, "mbit_per_s": mbit, "counters": dict(counters),
        "sender": {"host_s": host_s, "device_s": device_s, "copies": dict(zip(COPIES, copies, strict=True)),
                   "sent": 2 * MB, "resent": resent, "disabled": 0}, **more})


ROWS = [
    stream("read", trial=1, mbit=800.0, host_s=0.004), stream("read", trial=2, mbit=400.0, host_s=0.002),
    stream("sendfile-nic", trial=1, mbit=1600.0, copies=(MB, 0, MB, MB)),
    stream("sendfile-nic", trial=2, mbit=600.0, copies=(MB, 0, MB, 0), reasons=("it waited",)),
]


# -- lines ----------------------------------------------------------------------------------------------------


def test_ratios_are_within_a_trial():
    read, nic = figures.lines(ROWS, "read")
    assert (read["ratio"], read["host_ratio"]) == (1.0, 1.0)
    # 1600/800 and 600/400; of times 2/4 and 2/2: the medians of ratios, not ratios of medians.
    assert (nic["ratio"], nic["host_ratio"]) == (1.75, 0.75)
    assert (nic["mbit_per_s"], nic["low"], nic["high"], nic["trials"]) == (1100.0, 600.0, 1600.0, 2)


def test_what_a_byte_costs():
    read, nic = figures.lines(ROWS, "read")
    assert (read["host_ns_per_byte"], read["device_ns_per_byte"]) == (3.0, 1.0)
    assert read["copies_per_byte"] == {"read": 1.0, "seal": 1.0, "map": 0.0, "send": 1.0}
    assert nic["copies_per_byte"] == {"read": 1.0, "seal": 0.0, "map": 1.0, "send": 0.5}
    assert (read["faithful"], nic["faithful"]) == (True, False)


def test_without_the_yardstick_there_is_no_ratio():
    (line,) = figures.lines(ROWS[2:], "read")
    assert line["ratio"] is line["host_ratio"] is None
    assert " - " in figures.as_text([line], "read", "file")


def test_what_a_nic_counted():
    (line,) = figures.lines([stream("ktls-nic", resent=100_000, counters={
        "tx_tls_dump_bytes": 250_000, "tx_tls_ooo": 40})], "ktls-sw")
    assert (line["dump_per_byte"], line["resyncs_per_mb"], line["resent_share"]) == (0.25, 40.0, 0.05)


def test_the_table_and_its_csv():
    table = figures.lines(ROWS, "read")
    text = figures.as_text(table, "read", "file", copies=True).splitlines()
    assert text[0].split()[-5:] == ["copies/B", *COPIES]
    assert text[2].split()[2:] == ["sendfile-nic", "1,100~", "600-1,600", "1.75", "2.00", "1.00", "3.00", "2.50",
                                   "1.00", "0.00", "1.00", "0.50"]
    flat = figures.as_csv_rows(table)[1]
    assert (flat["copies_per_byte"], flat["copies_send"], flat["system"]) == (2.5, 0.5, "sendfile-nic")


# -- each experiment ------------------------------------------------------------------------------------------


def test_losses_have_names_that_say_them():
    assert [loss_report.loss_of({"variant": loss_report.variant(loss)})  # type: ignore[typeddict-item]
            for loss in tls_loss.LOSSES] == list(tls_loss.LOSSES)


def test_an_echo_of_smt_as_a_stream():
    counted = {"tx_bytes": 1_400_000, "tx_packets": 1000, "packets_resent": 10, "tx_tls_ooo": 7}
    of_smt = tls_loss.smt_row(row("smt", "hw", rpcs=10, rpc_per_s=100.0, cpu={"server_s": 0.5}), counted, 2.0)
    (line,) = figures.lines([of_smt], loss_report.YARDSTICK)
    assert (line["system"], line["mbit_per_s"], line["resent_share"]) == ("smt-hw", 80.0, 0.01)
    assert (line["host_ns_per_byte"], line["resyncs_per_mb"]) == (500.0, 7.0)


def test_the_loss_table_says_when_the_nic_was_given_up():
    rows = [stream(name, mode=loss_report.MODE, variant=loss_report.variant(5.0)) for name in tls_loss.SYSTEMS]
    rows[2]["sender"]["disabled"] = 1
    text = loss_report.as_text(figures.lines(rows, loss_report.YARDSTICK))
    (given_up,) = [line for line in text.splitlines() if loss_report.GIVEN_UP in line]
    assert given_up.endswith("1 of 1")


def test_backends_stand_beside_what_was_published():
    rows = [stream(name, mode=tls_backends.MODE, size=size, concurrency=4)
            for size, name in enumerate(("openssl", "nic", "purepy", "plain"))]
    table = tls_backends.lines(rows)
    assert [line["ratio"] for line in table] == [1.0] * 4, "files of any size are compared"
    assert [tls_backends.theirs(line) for line in table] == [(36.0, 1.0), (64.0, 1.78), (2.8, 0.08), None]
    assert "T6 (NIC)" in tls_backends.as_text(table)


def test_records_stand_beside_the_talk():
    rows = [stream(name, mode=tls_records.MODE, mbit=mbit, host_s=host_s)
            for name, mbit, host_s in (("ktls-sw", 400.0, 0.002), ("ktls-nic", 200.0, 0.001))]
    beside = {line["system"]: line for line in tls_records.talk(figures.lines(rows, KTLS_SW))}
    assert (beside["ktls-nic"]["published_ratio"], beside["plain"]["published_ratio"]) == (2.0, 5.75)
    assert (beside["ktls-nic"]["ratios"], beside["ktls-nic"]["host_ratios"]) == ({MB: 0.5}, {MB: 0.5})
    assert "kTLS, offload" in tls_records.talk_text(list(beside.values()))


TRACE = [(0.1, 10), (0.2, 20), (0.2625, 30), (0.45, 1_250_020), (0.5, 1_250_030), (0.9, 1_250_040)]


def test_gaps_after_a_change_of_route_and_at_other_times():
    # The gap under way when it changes counts, one that begins later than the window does not.
    assert route_report.gaps_ms(TRACE, [0.25, 0.46]) == ([187.5, 400.0], 100.0)
    assert route_report.gaps_ms(TRACE, []) == ([], 400.0)
    assert route_report.gaps_ms([], [0.1]) == ([0.0], 0.0)


def test_goodput_by_time():
    bins = route_report.goodput(TRACE)
    assert len(bins) == 91
    assert bins[45] == 1000.0
    assert sum(bins) * route_report.BIN_S / 8e-6 == pytest.approx(TRACE[-1][1], rel=0.001)


def test_a_route_that_changes_after_the_end_is_no_gap():
    late = tls_route.route_row(stream("plain", mode=route_report.MODE), TRACE, [0.25, 0.95], {})
    assert (late["flips_s"], late["gaps_ms"]) == ([0.25], [187.5])


def route_rows() -> list[Any]:
    return [tls_route.route_row(stream(name, mode=route_report.MODE), TRACE, [0.25, 0.46], {"ifnet_reset": 1})
            for name in tls_route.SYSTEMS]


def test_the_table_of_routes():
    table = route_report.lines(route_rows())
    assert [line["system"] for line in table] == list(tls_route.SYSTEMS)
    assert (table[3]["gap_ms"], table[3]["worst_gap_ms"], table[3]["retagged"]) == (293.75, 400.0, 1)
    assert "re-tagged" in route_report.as_text(table)


def played(mode: str, **more: Any) -> Any:
    return {"mode": mode, "delivered": 100, "of": 100, "old": 6, "new": 0, "mixed": 0, "first_ok": True,
            "error": "", "resent": 9, **more}


@pytest.mark.parametrize(("found", "right"), [
    (played("copy"), True), (played("copy", new=1, old=5), False), (played("copy", error="EBADMSG"), False),
    (played("copy", mixed=1), False), (played("zerocopy", error="EBADMSG", delivered=60, old=1, new=2), True),
    (played("zerocopy"), False), (played("zerocopy", error="EBADMSG", delivered=60, first_ok=False), False)])
def test_how_a_file_that_changes_must_end(found, right):
    assert hazard.as_expected(found) is right


@pytest.mark.parametrize("draw", [
    lambda path: files.picture(ROWS, path),
    lambda path: tls_records.picture([stream(name, mode=tls_records.MODE, size=size) for size in (256, 1024)
                                      for name in ("tls", "ktls-nic")], path),
    lambda path: tls_loss.picture([stream(name, mode=loss_report.MODE, variant=loss_report.variant(loss))
                                   for name in (*tls_loss.SYSTEMS, loss_report.SMT) for loss in (0.0, 2.0)], path),
    lambda path: tls_backends.picture([stream("openssl", mode=tls_backends.MODE, concurrency=n) for n in (1, 4)],
                                      path),
    lambda path: tls_route.picture(route_rows(), path)], ids=["files", "records", "loss", "backends", "route"])
def test_pictures(draw, tmp_path: Path):
    pytest.importorskip("matplotlib")
    assert draw(tmp_path / "drawn.png")
    assert (tmp_path / "drawn.png").stat().st_size > 5000


def test_no_picture_of_other_rows(tmp_path: Path):
    assert not any(module.picture([row("tls", None)], tmp_path / "x.png")
                   for module in (files, tls_records, tls_loss, tls_backends, tls_route))


# -- options --------------------------------------------------------------------------------------------------


def asked(**more: Any) -> files.Options:
    """``run files --quick`` with other options."""
    options = declare._build(files.Options, {"quick": True, "hosting": "tap", **more}, {})
    assert isinstance(options, files.Options)
    return options


def test_what_run_files_measures():
    assert list(files.check(asked()).paths) == list(files.PATHS)
    inline = files.check(asked(hosting="inline"))
    assert list(inline.paths) == ["plain", "read", "sendfile-sw"], "no NIC owns the interface"
    assert list(files.check(asked(zerocopy="ro")).paths)[-1] == files.ZEROCOPY


@pytest.mark.parametrize(("more", "says"), [
    ({"path": ["sendfile-nic"], "hosting": "inline"}, "--nic-hosting tap"),
    ({"zerocopy": "ro", "path": ["read"]}, "sendfile-nic"), ({"zerocopy": "ro", "size": 1000}, "too small")])
def test_what_run_files_refuses(more, says):
    with pytest.raises(ConfigError, match=says):
        files.check(asked(**more))


def test_what_is_too_short_for_a_rate():
    options = declare._build(tls_loss.Options, {"bytes": 1_000_000}, {})
    assert isinstance(options, tls_loss.Options)
    assert tls_loss.check(options).bytes == 1_000_000
    with pytest.raises(ConfigError, match="less than 1MB"):
        tls_loss.check(dataclasses.replace(options, bytes=999_999))


# -- copies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("system", "copies"), [
    (PLAIN, {}), (TLS, {"read": 100_000, "seal": 100_000, "send": 100_000 + 7 * 22}),
    (KTLS_SW, {"read": 100_000, "seal": 100_000, "send": 100_000 + 7 * 22})])
def test_copies_are_counted_where_they_happen(system, copies, tmp_path: Path, monkeypatch):
    """A file of six full records and a part of one, from the middle of a page, over loopback."""
    certs = tmp_path / "certs"
    credentials.make(certs, "tls", {"h1": "127.0.0.1"})
    monkeypatch.setenv("OPENSSL_CONF", str(certs / "h1" / "openssl.cnf"))
    content = bytes(range(256)) * 400
    file = tmp_path / "file"
    file.write_bytes(content)
    how = How(system)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        received = bytearray(100_000)

        def receive() -> None:
            with socket.create_connection(listener.getsockname(), 10.0) as sock:
                receiving = Receiving(sock, how, certs / "h1", "127.0.0.1")
                receiving.ask()
                at = 0
                while at < len(received) and (got := receiving.take(memoryview(received)[at:])):
                    at += got
                receiving.close()

        thread = threading.Thread(target=receive)
        thread.start()
        sock, _peer = listener.accept()
        sending = accepted(sock, how, certs / "h1")
        sending.request()
        with file.open("rb") as opened:
            sending.file(opened.fileno(), 1001, 100_000)
        thread.join(10.0)
        assert dict(sending.copies) == copies
        assert sending.sent()[0] >= 100_000
        sending.close()
    assert hashlib.sha256(received).digest() == hashlib.sha256(content[1001:101_001]).digest()
