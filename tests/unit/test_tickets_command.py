"""``smtnet tickets`` on a state file. (With DNS: tests/net/test_dns.py.)"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from smtstack.session import tickets
from smtstack.session.flights import Refusal
from smtstack.session.offer import Offer
from smtstack.session_io.state_file import SqliteState
from tests.certificates import IP_B
from tests.tickets import PORT_B, SERVER, make_client, make_server, make_ticket, refusal
from workloads.commands.main import main


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A state with an expired ticket and two good ones."""
    path, now = tmp_path / "state", int(time.time())
    state = SqliteState(path)
    for utc, fs_only in ((now - 4000, False), (now - 100, False), (now, True)):
        state.add_ticket(tickets.issue(SERVER, IP_B, PORT_B, Offer(), forward_secret_only=fs_only,
                                       client_auth=True, utc=utc))
    return path


def ids(path: Path) -> list[str]:
    return [s.ticket.ticket_id.hex() for s in SqliteState(path).tickets()]


def test_list(path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["tickets", "list", "--state", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ids(path)
    assert "  b  10.0.0.2:2000  expired  (AES-128-GCM, client certificates)" in lines[0]
    assert "  valid for 3" in lines[2]
    assert lines[2].endswith("(AES-128-GCM, forward secrecy, client certificates)")
    assert main(["tickets", "list", "--state", str(path), "--json"]) == 0
    text = capsys.readouterr().out
    rows = json.loads(text)["tickets"]
    assert [row["id"] for row in rows] == ids(path)
    assert [row["forward_secret_only"] for row in rows] == [False, False, True]
    # Nothing of the private halves.
    for secret in SqliteState(path).tickets():
        assert secret.private.hex() not in text


def test_an_empty_state(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    SqliteState(tmp_path / "state").close()
    assert main(["tickets", "list", "--state", str(tmp_path / "state")]) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'state'} has no tickets\n"


def test_revoke_by_id(path: Path, capsys: pytest.CaptureFixture[str]):
    wanted = ids(path)[2]
    assert main(["tickets", "revoke", "--state", str(path), wanted[:10].upper()]) == 0
    assert capsys.readouterr().err == "revoked 1 of 3 tickets\n"
    assert [s.revoked for s in SqliteState(path).tickets()] == [False, False, True]
    assert main(["tickets", "revoke", "--state", str(path), "all", "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out)["revoked"]) == sorted(ids(path))
    assert all(s.revoked for s in SqliteState(path).tickets())


def test_a_running_server_notices_at_once(tmp_path: Path):
    path = tmp_path / "state"
    server, state = make_server("ticket", SqliteState(path))
    ticket = make_ticket(state)
    assert refusal(server, make_client(ticket).hello) is None
    assert main(["tickets", "revoke", "--state", str(path), ticket.ticket_id.hex()]) == 0
    error = refusal(server, make_client(ticket).hello)
    assert error is not None
    assert error.code is Refusal.TICKET_REVOKED


def test_mistakes_are_one_line(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    absent = tmp_path / "absent"
    for arguments, text in (
        (["list", "--state", str(absent)], f"state file {absent}: No such file or directory"),
        (["revoke", "--state", str(path), "zz"],
         f"{path} has no ticket zz; 'smtnet tickets list' shows what it has"),
        (["revoke", "--state", str(path), ""], "3 tickets begin with ''; give more of it"),
        (["publish", "--state", str(path), "--certs", "x", "--addr", "10.0.0.9:2000", "--dns", "127.0.0.1"],
         f"{path} has no ticket of a server at 10.0.0.9:2000 to go by"),
    ):
        assert main(["tickets", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"smtnet: {text}")
        assert said.count("\n") == 1
    assert not absent.exists()
