"""The vectors command: our engine against bytes made elsewhere, and proof that it can say no."""

from __future__ import annotations

import argparse
import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.errors import ConfigError
from smtstack.wire.ipv4 import IPv4
from tests.golden import golden
from workloads.commands import vectors
from workloads.vectors import state as vector_state
from workloads.vectors.file import first_difference

CLIENT = {"src_ip": "10.0.0.1", "src_port": 32768, "dst_ip": "10.0.0.2", "dst_port": 2000}
SERVER = {"src_ip": "10.0.0.2", "src_port": 2000, "dst_ip": "10.0.0.1", "dst_port": 32768}
ROLES = {"client": {"key": "8dd230a77a05eb71159129bcbcf64230", "salt": "87c635c8"},
         "server": {"key": "6ccf62ff4be61485d8ba29fe2e847a7f", "salt": "b9fa5583"}}


def packet(ip_header: str, transport: str) -> dict[str, Any]:
    raw = bytes.fromhex(ip_header)
    return {"ip_total_length": int.from_bytes(raw[2:4], "big"), "ip_id": int.from_bytes(raw[4:6], "big"),
            "ip_header": ip_header, "transport_and_payload": transport, "ip_packet": ip_header + transport}


def request() -> dict[str, Any]:
    """The 64-byte request of reference §13.1: id 2, first contact, every byte 0x3F."""
    ciphertext = ("48c1d6cdb6c7148b2ce3e905055a7bc758d8e114a46ff97bccaa74b38de2a57dce4277c41a6ddc5c"
                  "e34996a9c127d0b6bb14b04ee73d28d454bdf4c5255001e4b6e913302d986dc7364637871d15bdf9"
                  "5e069e6f")
    tag = "89568f6afb4661fb51ba2af4cd169a54"
    header = "800007d00000000000000000a0100000000000000000000000000002000000400000004000000000"
    return {
        "name": "main_req_64_qmark", "branch": "main",
        "inputs": {**CLIENT, "rpc_id": 2, "key_role": "client", **ROLES["client"], "registered_iv_8": "00" * 8,
                   "registered_rec_seq_8": "00" * 8, "payload_rule": "every byte 0x3F (ASCII ?)",
                   "payload_len": 64, "mtu": 1500, "max_gso_size": 10000, "unsched_bytes": 10000,
                   "cutoff_version": 0, "tos": 192},
        "derived": {"unscheduled_incoming_field": 64, "packets": 1, "records": 1, "gso_pkt_data": 93,
                    "max_pkt_data": 1420},
        "records": [{"index": 0, "gso_offset": 0, "rec_seq": "0000000000010000",
                     "nonce": "87c635c80000000000010000", "aad": "00000000000100001703030054",
                     "record_header": "170303006c0000000000010000", "plaintext_len": 84, "record_len_field": 108,
                     "plaintext": "0000000000000040000000000000000000000000" + 64 * "3f",
                     "ciphertext": ciphertext, "tag": tag, "packet_indexes": [0]}],
        "packets": [packet("45c000ad0000400040fd24920a0000010a000002",
                           header + "170303006c0000000000010000" + ciphertext + tag)],
        "dont_care_transport_bytes": [[4, 12], [16, 18]]}


def control(name: str, kind: int, sender_id: int, ip_header: str, body: str = "") -> dict[str, Any]:
    ends, ports = (SERVER, "07d08000") if sender_id & 1 else (CLIENT, "800007d0")
    transport = f"{ports}000000000000000000{kind:02x}000000000000{sender_id:016x}{body}"
    return {"name": name, "branch": "main", "inputs": {**ends, "sender_id": sender_id, "type": kind},
            "packets": [packet(ip_header, transport)], "dont_care_transport_bytes": [[4, 12], [12, 13], [14, 20]]}


CUTOFFS = "000000000000000000000000000f424000003a9800000af0000000c8"
CONTROLS = [
    control("main_grant", 0x11, 9, "45e000350000400040fd24ea0a0000020a000001", "0000271003"),
    control("main_resend_first", 0x12, 3, "45e000390000400040fd24e60a0000020a000001", "000000000000006407"),
    control("main_resend_range", 0x12, 3, "45e000390000400040fd24e60a0000020a000001", "00000afb0000058c07"),
    control("main_unknown", 0x13, 3, "45e000300000400040fd24ef0a0000020a000001"),
    control("main_busy", 0x14, 3, "45e000300000400040fd24ef0a0000020a000001"),
    control("main_cutoffs_default", 0x15, 3, "45e000520000400040fd24cd0a0000020a000001", f"00000000{CUTOFFS}0001"),
    control("main_cutoffs_after_sysctl", 0x15, 3, "45e000520000400040fd24cd0a0000020a000001",
            f"7fffffff{CUTOFFS}0002"),
    control("main_need_ack", 0x17, 3, "45e000300000400040fd24ef0a0000020a000001"),
    control("main_ack_one", 0x18, 2, "45e0006e0000400040fd24b10a0000010a000002", "00" * 62),
]
FOREIGN = {"name": "ng_req", "branch": "smt-ng", "inputs": {}, "packets": []}


def content(*entries: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({"keys": ROLES, "vectors": list(entries)})


def run(path: Path, *flags: str) -> int:
    parser = argparse.ArgumentParser()
    vectors.add_parser(parser.add_subparsers())
    args = parser.parse_args(["vectors", str(path), *flags])
    code: int = args.run(args)
    return code


def save(path: Path, what: Any) -> Path:
    path.write_text(json.dumps(what))
    return path


def test_our_engine_makes_and_understands_the_embedded_vectors(tmp_path, capsys):
    file = save(tmp_path / "v.json", content(request(), *CONTROLS, FOREIGN))
    assert run(file, "--json") == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["passed"], report["failed"], report["skipped"]) == (10, 0, 1)
    assert report["names"]["passed"] == ["main_req_64_qmark", *(c["name"] for c in CONTROLS)]
    assert report["names"] | {"passed": []} == {"passed": [], "failed": [], "skipped": ["ng_req"],
                                                "not_applicable": []}
    assert report["failures"] == []
    assert err == ""
    assert run(file) == 0
    assert "10 passed, 0 failed, 1 skipped" in capsys.readouterr().out


def change(entry: dict[str, Any], at: int) -> dict[str, Any]:
    """The vector with one byte of its packet changed, everything else in agreement with that."""
    out = copy.deepcopy(entry)
    raw = bytearray.fromhex(out["packets"][0]["ip_packet"])
    raw[at] ^= 0x10
    out["packets"][0] = packet(raw[:20].hex(), raw[20:].hex())
    return out


def cares(entry: dict[str, Any]) -> list[int]:
    size = len(entry["packets"][0]["ip_packet"]) // 2
    return [at for at in range(size)
            if not any(a <= at - 20 < b for a, b in entry["dont_care_transport_bytes"])]


@pytest.mark.parametrize("entry", [request(), *CONTROLS], ids=lambda e: e["name"])
def test_any_changed_byte_fails(entry):
    for at in cares(entry):
        report = vectors.check_all(content(change(entry, at)))
        assert list(report.failed) == [entry["name"]], f"byte {at}"
        assert any(p.offset == at for p in report.failed[entry["name"]]), f"byte {at}"


@pytest.mark.parametrize("entry", [request(), *CONTROLS], ids=lambda e: e["name"])
def test_bytes_nobody_cares_about_do_not_fail(entry):
    for start, stop in entry["dont_care_transport_bytes"]:
        for at in range(start + 20, stop + 20):
            assert not vectors.check_all(content(change(entry, at))).failed


def test_a_mismatch_is_exit_code_1(tmp_path, capsys):
    file = save(tmp_path / "v.json", content(change(request(), 100), *CONTROLS))
    assert run(file, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["failed"]) == (9, 1)
    assert {"name": "main_req_64_qmark", "problem": "sealed by software: differs", "packet": 0,
            "offset": 100} in report["failures"]
    assert run(file) == 1
    line = "FAIL  main_req_64_qmark: sealed by software: differs, packet 0, first at byte 100 of the IP packet"
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("inputs", "rpc_id"), 4),
        (("inputs", "payload_rule"), "byte i = i mod 256"),
        (("inputs", "payload_len"), 65),
        (("inputs", "tos"), 0xE0),
        (("inputs", "cutoff_version"), 1),
        (("inputs", "key_role"), "server"),
        (("inputs", "piggybacked_ack"), 8),
        (("derived", "gso_pkt_data"), 94),
        (("records", 0, "tag"), "00" * 16),
        (("records", 0, "nonce"), "87c635c80000000000010001"),
        (("records", 0, "packet_indexes"), [1]),
        (("records",), []),
        (("packets",), []),
        (("packets", 0, "ip_id"), 1),
        (("packets", 0, "ip_header"), "45c000ad0000400040fd24920a0000010a000003"),
        (("branch",), "mian"),
    ],
)
def test_any_other_disagreement_fails(path, value):
    changed = content(request())
    place = changed["vectors"][0]
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert list(vectors.check_all(changed).failed) == ["main_req_64_qmark"]


def test_kinds_that_are_unknown_are_not_applicable_and_no_success(tmp_path, capsys):
    kinds = [{**CONTROLS[0], "name": "main_novelty", "inputs": {**CONTROLS[0]["inputs"], "type": 0x10}},
             {"name": "main_nothing", "branch": "main", "inputs": {}, "packets": []},
             {"name": "main_based", "branch": "main", "inputs": {"based_on": "main_gone"}, "packets": []}]
    for kind in kinds:
        report = vectors.check_all(content(kind))
        assert (report.failed, list(report.not_applicable)) == ({}, [kind["name"]])
    assert run(save(tmp_path / "v.json", content(*kinds))) == 1
    out, err = capsys.readouterr()
    assert "n/a   main_based: not applicable: based_on: names no message" in out
    assert "0 passed, 0 failed, 0 skipped, 3 not applicable" in out
    assert "not one vector could be checked" in err
    assert run(save(tmp_path / "v.json", content(*kinds, request()))) == 0


# -- every input field -------------------------------------------------------------------------------------

#: Another value for every input of a message that decides something: the packets are others then.
OTHERWISE = {
    "src_ip": "10.0.0.7", "src_port": 33_000, "dst_ip": "10.0.0.8", "dst_port": 2001, "rpc_id": 4,
    "key": "00" * 16, "salt": "00" * 4, "payload_rule": "byte i = i mod 256", "payload_len": 65,
    "cutoff_version": 1, "tos": 0xE0, "key_role": "server", "payload": "00" * 64, "payload_hex": "00" * 64,
    **dict.fromkeys(("ack", "piggyback_ack", "piggybacked_ack", "pending_ack", "ack_client_id", "client_id"), 8),
    **{name: [8] for name in ("acks", "piggyback_acks", "piggybacked_acks", "pending_acks", "waiting_acks",
                              "ack_entries", "ack_list")},
}
#: And for those of which we can only say that we cannot.
IMPOSSIBLE = {"key_role": "nobody", "payload_rule": "random", "registered_rec_seq_8": "0000000000000001",
              "ack_client_port": 5, "ack_server_port": 5, "client_port": 5, "server_port": 5, "num_acks": 1,
              "acks": "many", "piggybacked_ack": {"client_id": 8, "colour": 1}, "cutoffs": [1, 2],
              "unsched_cutoffs": "all", "grant": 5, "grants": [{"offset": "x"}], "grant_priority": 3,
              "priority": 3, "novelty": 1, "retransmit": 1, "tso": True}
#: Without effect here: on a message of one record that needs no grant, or anywhere (the module ignores it, too).
WITHOUT_EFFECT = {"mtu": 9000, "max_gso_size": 1500, "unsched_bytes": 20_000, "registered_iv_8": "11" * 8,
                  "registered_rec_seq_8": "0000000000010000", "cutoffs": [0] * 8, "unsched_cutoffs": [0] * 8,
                  "grant": {"offset": 64, "priority": 3}, "grants": [{"offset": 64}], "grant_offset": 64,
                  "granted": 64, "granted_offset": 64, "offset": 64, "length": 64, "resend_offset": 1,
                  "resend_length": 1, "note": "prose", "priority_note": "prose"}


def with_input(entry: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    return {**entry, "inputs": {**entry["inputs"], name: value}}


@pytest.mark.parametrize("name", OTHERWISE)
def test_every_input_is_applied(name):
    report = vectors.check_all(content(with_input(request(), name, OTHERWISE[name])))
    assert list(report.failed) == ["main_req_64_qmark"]


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_be_applied_is_not_applicable_by_name(name):
    report = vectors.check_all(content(with_input(request(), name, IMPOSSIBLE[name])))
    assert report.failed == {}
    assert report.not_applicable["main_req_64_qmark"].startswith(name)


def test_every_field_of_the_format_was_tried():
    fields = {*request()["inputs"], *(name for names in vector_state._NAMES.values() for name in names)}
    assert fields - {"resend_priority", "granted_priority"} <= {*OTHERWISE, *IMPOSSIBLE, *WITHOUT_EFFECT}


@pytest.mark.parametrize("entry", [request(), *CONTROLS], ids=lambda e: e["name"])
def test_no_unknown_input_is_passed_over(entry):
    report = vectors.check_all(content(with_input(entry, "novelty", 1)))
    assert (report.passed, report.failed) == ([], {})
    assert report.not_applicable[entry["name"]].startswith("novelty: ")
    report = vectors.check_all(content({**request(), "derived": {"novelty": 1}}))
    assert report.not_applicable == {"main_req_64_qmark": "derived.novelty: a field that is unknown here"}


#: Inputs of the bodies of control packets, right and wrong; CONTROLS have them in their descriptions only.
BODIES: dict[str, list[tuple[str, Any, Any]]] = {
    "main_grant": [("grant_offset", 10_000, 10_001), ("offset", 10_000, 0), ("grant_priority", 3, 4),
                   ("granted", 10_000, 1), ("priority", 3, 0)],
    "main_resend_range": [("resend_offset", 2811, 2812), ("resend_length", 1420, 1), ("length", 1420, 0),
                          ("resend_priority", 7, 6)],
    "main_cutoffs_default": [("cutoffs", [0, 0, 0, 0, 1_000_000, 15_000, 2_800, 200], [0] * 8),
                             ("cutoff_version", 1, 2)],
    "main_ack_one": [("acks", [], [4]), ("num_acks", 0, None)],
}


@pytest.mark.parametrize("entry", [c for c in CONTROLS if c["name"] in BODIES], ids=lambda e: e["name"])
def test_bodies_of_control_packets_follow_the_inputs(entry):
    for name, right, wrong in BODIES[entry["name"]]:
        assert vectors.check_all(content(with_input(entry, name, right))).passed == [entry["name"]]
        if wrong is not None:
            assert list(vectors.check_all(content(with_input(entry, name, wrong))).failed) == [entry["name"]]
    # And where neither knows it, the packet is taken apart and put together again.
    unnamed = {**entry, "name": "main_other"}
    assert vectors.check_all(content(unnamed)).passed == ["main_other"]


@pytest.mark.parametrize("acks", [
    [[4, 32_768, 2000]], [{"client_id": 4, "client_port": 32_768, "server_port": 2000}], [4], [4, 6, 8, 10, 12],
    [{"client_id": 4, "client_port": 32_768, "server_port": 2000}, [6, 40_000, 2001]]])
def test_an_ack_with_a_list(acks):
    rows = [(a["client_id"], a["client_port"], a["server_port"]) if isinstance(a, dict) else
            a if isinstance(a, list) else (a, 32_768, 2000) for a in acks]
    body = struct.pack("!H", len(rows)) + b"".join(struct.pack("!QHH", *row) for row in rows)
    entry = control("main_acks", 0x18, 2, "45e0006e0000400040fd24b10a0000010a000002", body.ljust(62, b"\0").hex())
    for inputs in ({"acks": acks}, {"ack_list": acks, "num_acks": len(acks)}, {}):
        named = {**entry, "inputs": {**entry["inputs"], **inputs}}
        assert vectors.check_all(content(named)).passed == ["main_acks"]
    wrong = {**entry, "inputs": {**entry["inputs"], "acks": [*acks[:-1], 99]}}
    assert list(vectors.check_all(content(wrong)).failed) == ["main_acks"]
    short = {**entry, "inputs": {**entry["inputs"], "acks": acks, "num_acks": len(acks) + 1}}
    assert list(vectors.check_all(content(short)).not_applicable) == ["main_acks"]


def made(length: int, tos: tuple[int, int], version: int, riders: list[tuple[int, int, int]],
         **inputs: Any) -> dict[str, Any]:
    """A vector of a message in a state, put together here from the reference's description of the format.

    ``tos`` of what is sent unasked, and of what is granted.
    """
    base = request()
    key, salt = bytes.fromhex(ROLES["client"]["key"]), bytes.fromhex(ROLES["client"]["salt"])
    data = bytes(i % 256 for i in range(length))
    single = length + 29 <= 1420
    records: list[dict[str, Any]] = []
    packets: list[dict[str, Any]] = []
    unscheduled = length if single else min(length, 2 * 8491)
    waiting = list(riders)
    for number, at in enumerate(range(0, length, 8491)):
        end = min(length, at + 8491)
        plain, cuts, where, room = b"", [], at, 1407
        while where < end:
            size = min(room, end - where)
            plain += struct.pack("!IIQHH", where, size, *(waiting.pop(0) if waiting else (0, 0, 0)))
            plain += data[where:where + size]
            where, room = where + size, 1420
        sequence = (1 << 16 | number).to_bytes(8, "big")
        aad = sequence + b"\x17\x03\x03" + len(plain).to_bytes(2, "big")
        sealed = AESGCM(key).encrypt(salt + sequence, plain, aad)
        header = b"\x17\x03\x03" + (len(sealed) + 8).to_bytes(2, "big") + sequence
        wire = header + sealed
        cuts = [wire[i:i + 1440] for i in range(0, len(wire), 1440)]
        first = len(packets)
        for index, piece in enumerate(cuts):
            transport = struct.pack("!HHQBBHHHQIIHBB", 32_768, 2000, 0, 0xA0, 0x10, at >> 16, 0, at & 0xFFFF, 2,
                                    length, unscheduled, version, 0, 0) + piece
            ip = IPv4(0x0A000001, 0x0A000002, 253, 20 + len(transport), index, tos[at >= unscheduled]).pack()
            packets.append(packet(ip.hex(), transport.hex()))
        records.append({
            "index": number, "gso_offset": at, "rec_seq": sequence.hex(), "nonce": (salt + sequence).hex(),
            "aad": aad.hex(), "record_header": header.hex(), "plaintext_len": len(plain),
            "record_len_field": len(sealed) + 8, "plaintext": plain.hex(), "ciphertext": sealed[:-16].hex(),
            "tag": sealed[-16:].hex(), "packet_indexes": list(range(first, len(packets)))})
    return {**base, "name": "main_state", "derived": {}, "records": records, "packets": packets,
            "inputs": {**base["inputs"], "payload_rule": "byte i = i mod 256", "payload_len": length,
                       "tos": tos[0], "cutoff_version": version, **inputs}}


RIDERS = [(8, 32_768, 2000), (6, 40_000, 2001), (4, 32_768, 2000)]
GRANT = {"grant_offset": 20_000, "grant_priority": 1}
#: A message, and the names its state may have.
STATES = {
    "cutoffs learnt": made(64, (0xE0, 0), 1, []),
    "cutoffs learnt, another table": made(64, (0x40, 0), 7, []),
    "cutoffs learnt, table given": made(1000, (0xC0, 0), 1, [],
                                        cutoffs=[0, 0, 0, 0, 1_000_000, 15_000, 2_800, 200]),
    "a rider": made(64, (0xC0, 0), 0, RIDERS[:1], piggybacked_ack=8),
    "a rider with ports": made(64, (0xC0, 0), 0, RIDERS[1:2], ack_client_id=6, ack_client_port=40_000,
                               ack_server_port=2001),
    "riders": made(5000, (0xC0, 0), 0, RIDERS, pending_acks=[list(r) for r in RIDERS]),
    "riders that only the plaintext names": made(5000, (0xC0, 0), 0, RIDERS),
    "a GRANT": made(20_000, (0xC0, 0x20), 0, [], **GRANT),
    "a GRANT as an object": made(20_000, (0xC0, 0x20), 0, [], grant={"offset": 20_000, "priority": 1}),
    "a GRANT that only the packets show": made(20_000, (0xC0, 0x60), 0, []),
    "all of them": made(20_000, (0x80, 0x20), 3, RIDERS, acks=[list(r) for r in RIDERS], **GRANT),
}


@pytest.mark.parametrize("name", STATES)
def test_states_are_brought_about(name):
    report = vectors.check_all(content(STATES[name]))
    assert (report.passed, report.failed, report.not_applicable) == (["main_state"], {}, {})


@pytest.mark.parametrize(("name", "field", "value"), [
    ("cutoffs learnt", "cutoff_version", 2), ("cutoffs learnt", "tos", 0xC0),
    ("cutoffs learnt, table given", "cutoffs", [0, 0, 0, 0, 1_000_000, 15_000, 2_800, 1000]),
    ("a rider", "piggybacked_ack", 10), ("riders", "pending_acks", [8]), ("a GRANT", "grant_offset", 16_982),
    ("a GRANT", "grant_priority", 2)])
def test_another_state_fails(name, field, value):
    assert list(vectors.check_all(content(with_input(STATES[name], field, value))).failed) == ["main_state"]


@pytest.mark.parametrize("name", STATES)
def test_any_changed_byte_of_a_state_fails(name):
    entry = STATES[name]
    for number in (0, len(entry["packets"]) - 1):
        for at in (1, 5, 34, 38, 56, 57, 60, 80, -1):
            changed = copy.deepcopy(entry)
            raw = bytearray.fromhex(changed["packets"][number]["ip_packet"])
            if at == 1 and number and "GRANT that only" in name:
                continue
            raw[at] ^= 1
            changed["packets"][number] = packet(raw[:20].hex(), raw[20:].hex())
            assert vectors.check_all(content(changed)).failed, (number, at)


def without(entry: dict[str, Any], *path: str | int) -> dict[str, Any]:
    out = copy.deepcopy(entry)
    place: Any = out
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return out


@pytest.mark.parametrize(
    "what",
    [
        [], {}, {"vectors": []}, {"vectors": 1}, {"vectors": [1], "keys": ROLES},
        {"vectors": [request()]},
        {"vectors": [request()], "keys": {"client": {"key": "zz", "salt": ""}}},
        {"keys": ROLES, "vectors": [request(), request()]},
        content(without(request(), "branch")),
        content(without(request(), "packets")),
        content(without(request(), "inputs", "mtu")),
        content(without(request(), "packets", 0, "ip_packet")),
        content(without(request(), "derived")),
        content({**request(), "packets": [{"ip_packet": "no hex"}]}),
        content({**request(), "dont_care_transport_bytes": [[1, 2, 3]]}),
        content({**request(), "inputs": {**request()["inputs"], "src_ip": "10.0.0"}}),
        content({**request(), "inputs": {**request()["inputs"], "payload_len": 1 << 40}}),
        content({**request(), "inputs": {**request()["inputs"], "mtu": 10}}),
    ],
)
def test_a_malformed_file_is_a_config_error(tmp_path, what):
    with pytest.raises(ConfigError):
        run(save(tmp_path / "v.json", what))


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        run(tmp_path / "none.json")
    (tmp_path / "v.json").write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        run(tmp_path / "v.json")
    with pytest.raises(ConfigError, match="directory"):
        run(tmp_path)


def test_first_difference():
    assert first_difference(b"abc", b"abc", []) is None
    assert first_difference(b"abc", b"axc", []) == 1
    assert first_difference(b"abc", b"axc", [(1, 2)]) is None
    assert first_difference(b"abc", b"ab", []) == 2
    assert first_difference(b"ab", b"abc", [(0, 9)]) == 2


# -- the whole file --------------------------------------------------------------------------------------


def test_all_vectors(capsys):
    assert run(golden("vectors", "smt-vectors.json"), "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["passed"], report["failed"], report["skipped"]) == (16, 0, 4)
    assert all(name.startswith("main_") for name in report["names"]["passed"])
    assert report["names"]["skipped"] == ["ng_req_64_qmark", "ng_req_64_mod", "ng_req_5000", "bsd_req_64_qmark"]


def test_embedded_vectors_are_those_of_the_file():
    theirs = {v["name"]: v for v in vectors.load(golden("vectors", "smt-vectors.json"))["vectors"]}
    for ours in (request(), *CONTROLS):
        assert ours["packets"] == theirs[ours["name"]]["packets"]


@pytest.mark.parametrize("name", ["main_req_5000_onerecord", "main_req_5000_fourrecords", "main_resp_64",
                                  "main_req_2827_trailer_spill", "main_req_5000_resend_pkt2"])
def test_changed_vectors_of_the_file_fail(name):
    whole = vectors.load(golden("vectors", "smt-vectors.json"))
    wanted = {name, "main_req_5000_onerecord"}
    base = {"keys": whole["keys"], "vectors": [v for v in whole["vectors"] if v["name"] in wanted]}
    number = next(n for n, v in enumerate(base["vectors"]) if v["name"] == name)
    for at in (1, 5, 59, 60, 72, 75, -1):
        changed = copy.deepcopy(base)
        entry = changed["vectors"][number]
        raw = bytearray.fromhex(entry["packets"][0]["ip_packet"])
        raw[at] ^= 1
        entry["packets"][0] = packet(raw[:20].hex(), raw[20:].hex())
        assert name in vectors.check_all(changed).failed, at
