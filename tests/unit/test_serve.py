"""The echo server's loop: when it ends."""

from __future__ import annotations

import os

import pytest

from workloads.commands.serve import EchoServer


class Idle:
    """A server that nobody asks anything; ``turns`` at most."""

    def __init__(self, turns: int = 100) -> None:
        self.left = turns
        self.lingered = False
        self.failures: list[str] = []

    def failure(self) -> str:
        return self.failures[min(100 - self.left, len(self.failures)) - 1] if self.failures else ""

    def drive(self, _timeout_s: float) -> None:
        self.left -= 1
        assert self.left, "it never ends"

    def linger(self, _timeout_s: float) -> None:
        self.lingered = True


def test_a_signal_at_any_moment_ends_it(monkeypatch):
    """Also while it looks whether its parent still lives."""
    echo = EchoServer()
    parent = os.getppid()

    def interrupted() -> int:
        echo.stop()
        return parent

    monkeypatch.setattr(os, "getppid", interrupted)
    server = Idle()
    echo.run(server)  # type: ignore[arg-type]
    assert server.lingered


def test_an_orphan_ends(monkeypatch):
    echo = EchoServer()
    monkeypatch.setattr(os, "getppid", lambda: -1)
    server = Idle()
    echo.run(server)  # type: ignore[arg-type]
    assert server.left == 99


def test_why_clients_fail_is_said_when_it_happens_and_once(capsys):
    echo = EchoServer()
    server = Idle()
    server.failures = ["one", "one", "", "two"]
    with pytest.raises(AssertionError, match="never ends"):
        echo.run(server)  # type: ignore[arg-type]
    assert capsys.readouterr().err == "smtnet: failure: one\nsmtnet: failure: two\n"


def test_it_goes_on_as_long_as_nobody_stops_it():
    with pytest.raises(AssertionError, match="never ends"):
        EchoServer().run(Idle())  # type: ignore[arg-type]
