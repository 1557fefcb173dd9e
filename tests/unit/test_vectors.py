"""The vectors command: our engine against bytes made elsewhere, and proof that it can say no."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path
from typing import Any

import pytest

from smtstack.errors import ConfigError
from tests.golden import golden
from workloads import vectors
from workloads.vector_file import first_difference

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
    assert report["names"] | {"passed": []} == {"passed": [], "failed": [], "skipped": ["ng_req"]}
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
        (("inputs", "payload_rule"), "random"),
        (("inputs", "payload_len"), 65),
        (("inputs", "tos"), 0xE0),
        (("inputs", "cutoff_version"), 1),
        (("inputs", "registered_rec_seq_8"), "0000000000000001"),
        (("inputs", "key_role"), "server"),
        (("inputs", "key_role"), "nobody"),
        (("inputs", "piggybacked_ack"), 8),
        (("derived", "gso_pkt_data"), 94),
        (("derived", "novelty"), 1),
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


def test_unknown_kinds_of_branch_main_fail():
    kinds = [{**CONTROLS[0], "name": "main_novelty"},
             {"name": "main_nothing", "branch": "main", "inputs": {}, "packets": []},
             {"name": "main_based", "branch": "main", "inputs": {"based_on": "main_gone"}, "packets": []}]
    for kind in kinds:
        assert list(vectors.check_all(content(kind)).failed) == [kind["name"]]


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
