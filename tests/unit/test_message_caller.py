"""What a caller of smt does before its first call: sessions with all peers, resumed ones in modes psk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from smtstack.errors import PeerError
from workloads.transports import messages
from workloads.transports.messages import SESSIONS_AT_ONCE, MessageCaller

PEERS = [(f"10.0.0.{n}", 2000) for n in range(2, 22)]


class FakeSocket:
    """Its handshakes take a step each. ``refuse``: why there is no session; ``resumes``: the server allows it."""

    def __init__(self, mode: str, *, resumes: bool = True, refuse: str = "",
                 counters: dict[str, int] | None = None, handshakes: bool = True) -> None:
        self.context = SimpleNamespace(session=mode, interface="e0")
        self.sessions = SimpleNamespace(manager=SimpleNamespace(closing=lambda: 0)) if handshakes else None
        self.loop = SimpleNamespace(step=self._step, flush=lambda: self.log.append("flush"))
        self.endpoint = SimpleNamespace(next_event=lambda: None)
        self.log: list[Any] = []
        self._resumes = resumes
        self._refuse = refuse
        self._counters = {"unresolved": 0, "tx_packets": 5, "socket_received": 5} | (counters or {})
        self._under_way: list[Any] = []
        self._ready: dict[Any, str] = {}
        self._seen: set[Any] = set()

    def _step(self, _deadline: int) -> None:
        peer = self._under_way.pop()
        if not self._refuse:
            early = self.context.session not in ("tls", "mtls") and peer in self._seen and self._resumes
            self._ready[peer] = self.context.session if early else "mtls"
            self._seen.add(peer)

    def begin_sessions(self, peers: list[Any]) -> None:
        self._under_way = [peer for peer in peers if peer not in self._ready]
        self.log.append(("begin", len(self._under_way)))

    def beginning(self, _peers: list[Any]) -> bool:
        return bool(self._under_way)

    def check_sessions(self, peers: list[Any], _timeout: float) -> None:
        for peer in peers:
            if peer not in self._ready:
                raise PeerError(f"no session with {peer[0]}: {self._refuse}")

    def session_of(self, peer: Any) -> Any:
        return SimpleNamespace(mode=self._ready[peer])

    def end_session(self, peer: Any) -> None:
        del self._ready[peer]
        self.log.append(("end", peer))

    def counters(self) -> dict[str, int]:
        return self._counters

    def begun(self) -> list[int]:
        """How many sessions at a time."""
        return [entry[1] for entry in self.log if entry[0] == "begin" and entry[1]]


def caller(socket: FakeSocket, peers: int = len(PEERS)) -> MessageCaller:
    return MessageCaller(socket, PEERS[:peers])  # type: ignore[arg-type]


def test_sessions_are_there_before_the_first_call_and_not_all_at_once():
    socket = FakeSocket("mtls")
    caller(socket).prepare(1)
    assert socket.begun() == [SESSIONS_AT_ONCE, SESSIONS_AT_ONCE, len(PEERS) - 2 * SESSIONS_AT_ONCE]
    caller(socket).prepare(1)
    assert sum(socket.begun()) == len(PEERS), "what is there is not made again"


def test_what_is_resumed_is_resumed_once():
    socket = FakeSocket("psk-fs")
    one = caller(socket, 3)
    for _load in range(3):
        one.prepare(1)
    assert [entry[0] for entry in socket.log if entry not in ("flush", ("begin", 0))] == [
        "begin", "end", "end", "end", "begin"]
    assert all(socket.session_of(peer).mode == "psk-fs" for peer in PEERS[:3])


def test_a_full_handshake_is_not_taken_for_a_resumed_session():
    with pytest.raises(PeerError, match=r"10\.0\.0\.2:2000 is resumed: .* started with --session psk, too"):
        caller(FakeSocket("psk", resumes=False), 2).prepare(1)


def test_keys_from_a_file_need_no_handshake():
    socket = FakeSocket("mtls", handshakes=False)
    caller(socket).prepare(1)
    assert socket.log == []


@pytest.mark.parametrize(("counters", "hint"), [
    ({}, ""),
    ({"socket_received": 0, "seen": "a wall"}, "; a wall"),
    ({"socket_received": 0}, "; is the server running?"),
    ({"socket_received": 0, "tx_packets": 0}, ""),
    ({"unresolved": 3, "seen": "a wall"}, "; a wall"),
    ({"unresolved": 3, "tx_packets": 0, "socket_received": 0, "seen": "a wall"}, "; a wall"),
])
def test_why_there_is_no_session(counters, hint, monkeypatch):
    """``seen``: what is in the way, as far as the kernel's tables tell."""
    monkeypatch.setattr(messages, "obstacle", lambda _ips, _interface: counters.get("seen", ""))
    socket = FakeSocket("mtls", refuse="too long", counters=counters)
    with pytest.raises(PeerError) as e:
        caller(socket, 1).prepare(1)
    assert str(e.value) == f"no session with 10.0.0.2: too long{hint}"
    assert socket.log[-1] == "flush", "the server was told"
