"""What servers remember: in memory, and in a file that processes share and that outlives them."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from smtstack.errors import ConfigError
from smtstack.session import state as state_module
from smtstack.session import tickets
from smtstack.session.flights import Refusal
from smtstack.session.offer import Offer
from smtstack.session.state import SEALING_S, MemoryState, ServerState, StateError
from smtstack.session.tickets import SKEW_S, TicketSecret
from smtstack.session_io import state_file as session_state
from smtstack.session_io.state_file import SqliteState
from tests.certificates import IP_B, UTC
from tests.tickets import PORT_B, SERVER, make_client, make_psk, make_server, make_ticket, refusal

ROOT = Path(__file__).resolve().parents[2]
ONE, TWO = b"1" * 32, b"2" * 32


@pytest.fixture(params=["memory", "file"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> ServerState:
    return MemoryState() if request.param == "memory" else SqliteState(tmp_path / "state")


def issue(utc: int = UTC) -> TicketSecret:
    return tickets.issue(SERVER, IP_B, PORT_B, Offer(), forward_secret_only=False, client_auth=True, utc=utc)


def test_what_was_remembered_is_known(state: ServerState):
    assert state.remember(ONE, UTC + 10, UTC)
    assert not state.remember(ONE, UTC + 10, UTC)
    assert state.remember(TWO, UTC + 10, UTC)


def test_what_expired_is_forgotten(state: ServerState):
    state.remember(ONE, UTC, UTC)
    state.remember(TWO, UTC + 1, UTC)
    assert state.purge(UTC + SKEW_S) == 0
    assert state.purge(UTC + SKEW_S + 1) == 1
    assert state.remember(b"3" * 32, UTC + 1, UTC)
    assert not state.remember(TWO, UTC + 1, UTC)
    # The clock is set back: what was forgotten is not new for that.
    assert not state.remember(ONE, UTC, UTC)
    state.purge(UTC)
    assert not state.remember(ONE, UTC, UTC)


def test_what_expired_is_forgotten_by_itself(state: ServerState, monkeypatch: pytest.MonkeyPatch):
    for module in (session_state, state_module):
        monkeypatch.setattr(module, "LOOK_EVERY", 10)
    for n in range(100):
        state.remember(n.to_bytes(32, "big"), UTC + n, UTC + SKEW_S + n)
    # Of a hundred that ended one after the other, those since the last look.
    assert 1 <= state.purge(UTC + 1000) <= 11


def test_tickets_are_kept_to_their_end(state: ServerState):
    old, new = issue(UTC - 100), issue()
    state.add_ticket(new)
    state.add_ticket(old)
    assert state.tickets() == [old, new]
    assert state.ticket(new.ticket.ticket_id) == new
    assert state.ticket(bytes(16)) is None
    state.purge(UTC + 3500)
    assert state.tickets() == [old, new]
    state.purge(UTC + 3501)
    assert state.tickets() == [new]


def test_revoking(state: ServerState):
    one, two = issue(), issue()
    state.add_ticket(one)
    state.add_ticket(two)
    assert state.ticket(one.ticket.ticket_id) == one
    assert state.revoke(one.ticket.ticket_id)
    assert not state.revoke(bytes(16))
    found = state.ticket(one.ticket.ticket_id)
    assert found is not None
    assert found.revoked
    assert [s.revoked for s in state.tickets()].count(True) == 1


def test_sealing_keys_change_every_hour(state: ServerState):
    first = state.sealing_key(UTC)
    assert state.sealing_key(UTC + SEALING_S - 1) == first
    second = state.sealing_key(UTC + SEALING_S)
    assert second.key != first.key
    # What it sealed in its last second lives an hour more.
    assert state.opening_key(first.number, UTC + 2 * SEALING_S - 1) == first
    assert state.opening_key(first.number, UTC + 2 * SEALING_S) is None
    assert state.opening_key(second.number, UTC + SEALING_S) == second
    assert state.opening_key(second.number ^ 1, UTC + SEALING_S) is None
    # The clock is set back: no key of the future seals.
    assert state.sealing_key(UTC - 1).key not in (first.key, second.key)


# -- the file ---------------------------------------------------------------------------------------------------


def test_a_file_outlives_its_process(tmp_path: Path):
    path = tmp_path / "state"
    state = SqliteState(path)
    secret = issue()
    state.add_ticket(secret)
    state.remember(ONE, UTC + 10, UTC)
    key = state.sealing_key(UTC)
    # Another process that has it open at the same time, and one after all are gone.
    other = SqliteState(path)
    for _ in range(2):
        assert other.tickets() == [secret]
        assert not other.remember(ONE, UTC + 10, UTC)
        assert other.opening_key(key.number, UTC) == key
        assert other.sealing_key(UTC) == key
        state.close()
        other.close()
        other = SqliteState(path)


def test_a_ticket_that_another_process_forgets_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "state"
    secret = issue()
    SqliteState(path).add_ticket(secret)
    state = SqliteState(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:

        class Slow:
            def execute(self, sql: str, parameters: tuple[bytes]) -> sqlite3.Cursor:
                """Somebody purges before the private half is read."""
                if sql.startswith("SELECT ticket"):
                    db.execute("DELETE FROM tickets")
                return db.execute(sql, parameters)

        monkeypatch.setattr(state, "_connection", Slow)
        assert state.ticket(secret.ticket.ticket_id) is None


def test_only_its_owner_can_read_it(tmp_path: Path):
    path = tmp_path / "state"
    old = os.umask(0)
    try:
        state = SqliteState(path)
        state.remember(ONE, UTC, UTC)
    finally:
        os.umask(old)
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["state", "state-shm", "state-wal"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    state.close()
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"can be read by others \(mode 640\); chmod 600"):
        SqliteState(path)


def test_files_that_are_none_of_ours(tmp_path: Path):
    text = tmp_path / "text"
    text.write_text("no database " * 100)
    text.chmod(0o600)
    with pytest.raises(ConfigError, match="no state file of smtnet"):
        SqliteState(text)
    with pytest.raises(ConfigError, match="No such file"):
        SqliteState(tmp_path / "nowhere" / "state")
    with pytest.raises(ConfigError, match="No such file"):
        SqliteState(tmp_path / "absent", create=False)
    assert not (tmp_path / "absent").exists()
    folder = tmp_path / "folder"
    folder.mkdir(0o700)
    with pytest.raises(ConfigError, match="is no file"):
        SqliteState(folder)


def test_a_later_version_is_refused(tmp_path: Path):
    path = tmp_path / "state"
    SqliteState(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE about SET version = 99")
    with pytest.raises(ConfigError, match="version 99"):
        SqliteState(path)


def test_a_file_that_breaks_later_lets_nobody_in(tmp_path: Path):
    path = tmp_path / "state"
    server, state = make_server("ticket", SqliteState(path))
    ticket = make_ticket(state)
    assert refusal(server, make_client(ticket).hello) is None
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("ALTER TABLE hellos RENAME TO gone")
        error = refusal(server, make_client(ticket).hello)
        assert error is not None
        assert error.code is Refusal.BUSY
        assert "no such table" in error.text
        db.execute("ALTER TABLE gone RENAME TO hellos")
    assert refusal(server, make_client(ticket).hello) is None


def test_a_file_that_is_full_lets_nobody_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_state, "MAX_HELLOS", 5)
    monkeypatch.setattr(session_state, "LOOK_EVERY", 2)
    state = SqliteState(tmp_path / "state")
    known = 0
    with contextlib.suppress(StateError):
        for n in range(20):
            known += state.remember(n.to_bytes(32, "big"), UTC + 10, UTC)
    assert 5 <= known <= 7
    for _ in range(3):
        with pytest.raises(StateError, match="it is full"):
            state.remember(ONE, UTC + 10, UTC)
    # Room again, when the time has come.
    assert state.remember(ONE, UTC + 500, UTC + 11 + SKEW_S)


def test_after_a_restart_of_the_machine_tickets_and_keys_are_given_up(tmp_path: Path,
                                                                      monkeypatch: pytest.MonkeyPatch):
    boot = tmp_path / "boot_id"
    boot.write_text("first\n")
    monkeypatch.setattr(session_state, "_BOOT_ID", boot)
    path = tmp_path / "state"
    state = SqliteState(path)
    ticket_server, _state = make_server("ticket", state)
    psk_server, _state = make_server("psk", state)
    ticket, psk = make_ticket(state), make_psk(psk_server)
    for starts, accepted in (("first", True), ("second", False)):
        boot.write_text(starts)
        state.close()
        for server, credential, mode in ((ticket_server, ticket, "ticket"), (psk_server, psk, "psk")):
            error = refusal(server, make_client(credential, mode).hello)
            assert (error is None) is accepted
            if error is not None:
                assert error.code is Refusal.TICKET_UNKNOWN


# -- replays across processes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ticket", "ticket-fs", "psk", "psk-fs"])
def test_a_hello_counts_once_after_a_restart_too(mode: str, tmp_path: Path):
    path = tmp_path / "state"
    server, state = make_server(mode, SqliteState(path))
    credential = make_ticket(state) if mode.startswith("ticket") else make_psk(server)
    client = make_client(credential, mode)
    assert refusal(server, client.hello) is None
    for restarted in (SqliteState(path), SqliteState(path)):
        server, _state = make_server(mode, restarted)
        error = refusal(server, client.hello)
        assert error is not None
        assert error.code is Refusal.REPLAYED
        assert refusal(server, make_client(credential, mode).hello) is None
    # The control: without its memory the server would take it.
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("DELETE FROM hellos")
    assert refusal(server, client.hello) is None


def in_child(work: Callable[[], int]) -> int:
    """The exit code of a forked process that does this."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_hello_counts_once_among_forked_workers(tmp_path: Path):
    server, state = make_server("ticket", SqliteState(tmp_path / "state"))
    ticket = make_ticket(state)
    first, second = make_client(ticket), make_client(ticket)
    assert refusal(server, first.hello) is None

    def work() -> int:
        # The parent's object, in a child: it opens the file for itself.
        replayed, fresh = refusal(server, first.hello), refusal(server, second.hello)
        assert replayed is not None
        return int(replayed.code) if fresh is None else 98

    assert in_child(work) == Refusal.REPLAYED
    error = refusal(server, second.hello)
    assert error is not None
    assert error.code is Refusal.REPLAYED
    assert refusal(server, make_client(ticket).hello) is None


_RACER = """
import sys
from pathlib import Path
from smtstack.session_io.state_file import SqliteState
state = SqliteState(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
print(sum(state.remember(n.to_bytes(32, "big"), 10, 5) for n in range(300)))
"""


def test_of_several_processes_one_is_told_that_a_hello_is_new(tmp_path: Path):
    path = tmp_path / "state"
    SqliteState(path).close()
    racers = [subprocess.Popen([sys.executable, "-c", _RACER, str(path)], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(3)]
    counts = []
    try:
        for racer in racers:
            assert racer.stdout is not None
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        counts = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert sum(counts) == 300


_VICTIM = """
import sys
from pathlib import Path
from smtstack.session_io.state_file import SqliteState
state = SqliteState(Path(sys.argv[1]))
n = 0
while True:
    assert state.remember(n.to_bytes(32, "big"), 10**10, 5)
    print(n, flush=True)
    n += 1
"""


def test_what_was_remembered_survives_kill_9(tmp_path: Path):
    path = tmp_path / "state"
    with subprocess.Popen([sys.executable, "-c", _VICTIM, str(path)], stdout=subprocess.PIPE, text=True,
                          cwd=ROOT) as victim:
        assert victim.stdout is not None
        lines = [victim.stdout.readline() for _ in range(50)]
        victim.send_signal(signal.SIGKILL)
        lines += victim.stdout.readlines()
    said = max(int(line) for line in lines if line.endswith("\n"))
    state = SqliteState(path)
    assert not any(state.remember(n.to_bytes(32, "big"), 10**10, 5) for n in range(said + 1))
    assert state.remember((said + 2).to_bytes(32, "big"), 10**10, 5)
