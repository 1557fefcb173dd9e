"""Host calls, whose host lies (an Iago attack): what cannot be is refused, what can be is not."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smtstack.errors import Unsupported
from smtstack.hostcalls.channel import _DATA_AT, _FROM, _FROM_PORT, _RESULT, ROOM, SIZE, HostCalls, HostProcess
from smtstack.hostcalls.ports import CalledUdp, QueuedUdp
from smtstack.hostcalls.results import (
    ERRNOS,
    MAX_INTERRUPTED,
    NEIGHBOUR,
    RECEIVE,
    SEND,
    WAIT,
    Answer,
    HostLie,
    check,
)
from smtstack.rings.memory import SharedMemory
from smtstack.wire.ipv4 import address

LOCAL = address("127.0.0.1")


def lying(result: int, source: tuple[int, int] = (LOCAL, 9), data: bytes = b"") -> HostCalls:
    """Calls whose host says this, whatever it is asked."""
    memory = SharedMemory("calls", bytearray(SIZE))

    def leave() -> None:
        memory.store(_RESULT, result & 0xFFFFFFFF)
        memory.store(_FROM, source[0])
        memory.store(_FROM_PORT, source[1])
        memory.write(_DATA_AT, data)

    return HostCalls(memory, leave, True)


ASK: dict[int, Callable[[HostCalls], object]] = {
    SEND: lambda calls: calls.send(b"four", LOCAL, 7), RECEIVE: HostCalls.receive,
    WAIT: lambda calls: calls.wait(1000), NEIGHBOUR: lambda calls: calls.neighbour(LOCAL)}

LIES = [
    *((call, -number) for call in ASK for number in range(1, 140) if number not in ERRNOS[call]),
    *((call, lie) for call in ASK for lie in (-4095, -4096, -(1 << 31), (1 << 31) - 1)),
    *((NEIGHBOUR, lie) for lie in (0, 1, 5, 7)), (SEND, 0), (SEND, 3), (SEND, 5), (RECEIVE, ROOM + 1), (WAIT, 2)]


def test_every_lie_of_a_length_or_an_errno_is_refused():
    for call, result in LIES:
        calls = lying(result)
        with pytest.raises(HostLie):
            ASK[call](calls)
        assert calls.counters() == {"ocalls": 1, "ocall_refused": 1}, (call, result)


@pytest.mark.parametrize("source", [(0, 9), (LOCAL, 0), (LOCAL, 1 << 16), (0xE0000001, 9), (0xFFFFFFFF, 9)])
def test_an_address_that_cannot_be_is_refused(source):
    with pytest.raises(HostLie, match="that it is from"):
        lying(3, source).receive()


def test_what_can_be_is_believed():
    assert lying(4).send(b"four", LOCAL, 7) == 4
    assert lying(3, data=b"abcdef").receive() == (b"abc", LOCAL, 9)
    assert lying(ROOM).receive() == (bytes(ROOM), LOCAL, 9)
    for call, numbers in ERRNOS.items():
        for number in numbers:
            if call != SEND:
                assert ASK[call](lying(-number)) is None
                continue
            with pytest.raises(OSError, match="says the host") as found:
                ASK[call](lying(-number))
            assert found.value.errno == number


def test_interruptions_without_end_are_no_answer():
    calls = lying(-errno.EINTR)
    for _time in range(MAX_INTERRUPTED):
        assert calls.receive() is None
    with pytest.raises(HostLie, match="interrupted"):
        calls.receive()


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([SEND, RECEIVE, WAIT]), st.integers(-1 << 31, (1 << 31) - 1), st.integers(0, 1 << 17),
       st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_no_answer_gets_more_than_was_asked(call, result, asked, source, port):
    try:
        got = check(call, asked, Answer(result, source, port), True)
    except HostLie:
        return
    except OSError:
        assert -result in ERRNOS[call]
        return
    assert 0 <= got <= max(asked, 1)
    if call == RECEIVE:
        assert 0 < source < 0xE0000000
        assert 0 < port < 1 << 16


@pytest.mark.parametrize("kind", [CalledUdp, QueuedUdp])
def test_datagrams_go_by_a_process_of_the_host(kind):
    one, two = kind(LOCAL, 40_511), kind(LOCAL, 40_512)
    try:
        wanted = {bytes([n]) * 50 for n in range(20)}
        got: set[bytes] = set()
        # The other host's process may not have its socket yet: what it missed is sent again. It may also only
        # have been late: then one datagram comes several times, even in one batch.
        for _time in range(60):
            missing = [(LOCAL, 40_512, data) for data in sorted(wanted - got)]
            assert one.send(missing) == len(missing)
            two.wait(1_000_000_000)
            while came := two.receive(64):
                got.update(data for source, port, data in came if (source, port) == (LOCAL, 40_511))
            if len(got) >= len(wanted):
                break
        assert got == wanted
    finally:
        one.close()
        two.close()


def test_a_host_that_did_not_start_or_ended_is_said():
    taken = CalledUdp(LOCAL, 40_513)
    with pytest.raises(Unsupported, match="has ended"):
        CalledUdp(LOCAL, 40_513)
    taken.close()

    class Dies:
        def send(self, _data: bytes, _address: int, _port: int) -> int:
            raise SystemExit

        def receive(self, _room: int) -> tuple[bytes, int, int]:
            raise BlockingIOError(errno.EAGAIN, "")

        def wait(self, _timeout_s: float) -> bool:
            return False

        def neighbour(self, _address: int) -> bytes | None:
            return None

    host = HostProcess(Dies, False)
    assert host.calls.receive() is None
    with pytest.raises(Unsupported, match="has ended"):
        host.calls.send(b"!")
    host.close()
