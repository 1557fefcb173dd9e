"""Formulas with a name have one home: others call it, and the few that do not, for speed, agree with it."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from smtstack.crypto.composite import CompositeNumber
from smtstack.crypto.epochs import EPOCHS_AHEAD, SessionParams, SmtSession
from smtstack.crypto.keys import Endpoints, demo_keys
from smtstack.transport.endpoint import Endpoint
from smtstack.wire import homa
from smtstack.wire.naming import EPOCHS, peer_key, peer_of, rpc_key, wire_epoch
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, Pair

ROOT = Path(__file__).resolve().parents[2]
#: What the formulas look like, written as ast.unparse does.
FORMULAS = {
    "peer_key": re.compile(r"(\b(ip|src|dst|\w+_ip)|peer\[0\]) << 16 \|"),
    "rpc_key": re.compile(r"\| \(?[\w.]*epoch[\w.() &]* << 64"),
    "wire_epoch": re.compile(r"epoch[\w.)]* (&|%) (255|256|EPOCHS)|epoch\) (&|%) (255|256|EPOCHS)"),
    "CompositeNumber.first": re.compile(r"<< ([\w.]+\.)?index_bits"),
    "Data.index_in_segment": re.compile(r"(packet_)?index \+ ip_id|identification \+ [\w.]*index"),
}
#: Where each is at home, and where it stands without the call (a comment there names it).
HOMES = {"peer_key": "wire/naming.py", "rpc_key": "wire/naming.py", "wire_epoch": "wire/naming.py",
         "CompositeNumber.first": "crypto/composite.py", "Data.index_in_segment": "wire/homa.py"}
INLINE = {
    "peer_key": {"transport/endpoint.py": 2, "transport/upstream_endpoint.py": 1},
    "rpc_key": {"transport/endpoint.py": 1, "transport/table.py": 1},
    "wire_epoch": {"crypto/epochs.py": 1},
    "CompositeNumber.first": {"crypto/epochs.py": 1, "transport/profile.py": 1},
    "Data.index_in_segment": {"transport/endpoint.py": 1},
}
#: Bare numbers from here on are no "first bytes of something", but an offset that wants a name.
LEAST_OFFSET = 8
PACKETS = re.compile(r"(\w+\.)?(frame|header|transport|packet|datagram)$")


def formulas(source: str, name: str) -> int:
    """How often the formula of ``name`` is written out in a module."""
    return sum(len(FORMULAS[name].findall(line)) for line in _plain_lines(source))


@cache
def _plain_lines(source: str) -> list[str]:
    """The code alone, written in one way."""
    return ast.unparse(ast.parse(source)).splitlines()


def bare_offsets(source: str) -> list[int]:
    """Lines that index or cut a packet by a number."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Subscript) and PACKETS.match(ast.unparse(node.value)):
            bounds = [node.slice.lower, node.slice.upper] if isinstance(node.slice, ast.Slice) else [node.slice]
            found += [node.lineno for n in bounds if isinstance(n, ast.Constant) and isinstance(n.value, int)
                      and n.value >= LEAST_OFFSET]
    return found


def modules() -> dict[str, str]:
    folder = ROOT / "smtstack"
    paths = sorted(folder.rglob("*.py"))
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in paths}


@pytest.mark.parametrize("name", FORMULAS)
def test_a_formula_has_one_home(name):
    found = {path: count for path, source in modules().items() if (count := formulas(source, name))}
    assert found.pop(HOMES[name]) > 0
    assert found == INLINE[name]


@pytest.mark.parametrize(("name", "source"), [
    ("peer_key", "x = peers.get(ip << 16 | port)"), ("peer_key", "x = peer.host.ip << 16 | peer.port"),
    ("peer_key", "x = (peer[0] << 16 | peer[1]).to_bytes(6, 'big')"),
    ("rpc_key", "x = sender_id ^ 1 | epoch << 64"), ("rpc_key", "x = rpc.id | (rpc.keys.epoch & 0xFF) << 64"),
    ("wire_epoch", "f(rpc.keys.epoch & 0xFF)"), ("wire_epoch", "x = (current.epoch - wire_epoch) & 0xFF"),
    ("wire_epoch", "x = epoch % 256"), ("CompositeNumber.first", "x = sender_id << smt.numbers.index_bits"),
    ("Data.index_in_segment", "x = ip.identification + header.packet_index & 0xFFFF"),
])
def test_a_formula_is_seen(name, source):
    assert formulas(source, name) == 1


@pytest.mark.parametrize("source", ["x = high << 16 | low", "x = group | KIND << 16", "x = epoch + 1",
                                    "x = segment_offset << 16 | index"])
def test_other_shifts_are_not(source):
    assert not any(formulas(source, name) for name in FORMULAS)


def test_offsets_in_packets_have_names():
    assert [(path, lines) for path, source in modules().items() if (lines := bare_offsets(source))] == []


@pytest.mark.parametrize("source", ["x = frame[26:30]", "x = header[11]", "x = self.packet[9]", "x = frame[:12]"])
def test_a_bare_offset_is_seen(source):
    assert len(bare_offsets(source)) >= 1


def test_keys_and_what_they_stand_for():
    assert peer_of(peer_key(0xFFFFFFFF, 0xFFFF)) == (0xFFFFFFFF, 0xFFFF)
    assert peer_of(peer_key(1, 2)) == (1, 2)
    assert len({peer_key(ip, port) for ip in (1, 2, 1 << 31) for port in (1, 2, 0xFFFF)}) == 9
    assert len({rpc_key(i, e) for i in (0, 1, 2, (1 << 64) - 1) for e in (0, 1, 255)}) == 12
    assert [wire_epoch(e) for e in (0, 255, 256, 1000, -1)] == [0, 255, 0, 232, 255]


def test_what_stands_inline_agrees():
    """Both ends' tables after a request: what was computed inline is found under the named functions' keys."""
    pair = Pair()
    pair.request(b"x")
    client: Endpoint = pair.client.endpoint
    ours = client._table.peers[peer_key(SERVER, SERVER_PORT)]
    assert ours.key == peer_key(SERVER, SERVER_PORT)
    assert [rpc_key(rpc.id, rpc.keys.wire_epoch) for rpc in ours.rpcs.values()] == list(ours.rpcs)
    pair.run()
    pair.check()
    assert peer_key(CLIENT, CLIENT_PORT) in pair.server.endpoint._table.peers


def test_composite_numbers_and_epochs_inline_agree():
    store = demo_keys("smt", SessionParams(index_bits=20))
    session = store.session(Endpoints(CLIENT, CLIENT_PORT, SERVER, SERVER_PORT))
    assert isinstance(session, SmtSession)
    numbers: CompositeNumber = session.numbers
    for message in (0, 2, 12345, session.id_limit - 1):
        assert session.reserve(session.current, message, 1) == numbers.first(message)
    for ahead in range(1, EPOCHS_AHEAD + 1):
        keys = session.request_keys(wire_epoch(session.current.epoch + ahead))
        assert keys is not None
        assert keys.wire_epoch == wire_epoch(keys.epoch) == ahead % EPOCHS


def test_the_place_in_a_segment():
    data = homa.Data(1, 2, 2, 9000, 9000, segment_size=1000, packet_index=3)
    assert (data.index_in_segment(0xFFFF), data.offset_in_segment(0xFFFF)) == (2, 2000)
