"""What a host returns for each operation of files and TCP, if it is of a kind that cannot be, is refused: the
table of results by enumeration, then proxies whose host, a thread here, answers so."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from itertools import product

import pytest

from smtstack.io.memory import sealed_memory
from smtstack.ringio.calls import pack_address
from smtstack.ringio.files import ProxyFile
from smtstack.ringio.host import ANSWER
from smtstack.ringio.queue import HostRefused, IoRing
from smtstack.ringio.sockets import Poller, ProxyListener, ProxySocket, connect
from smtstack.ringnic.bell import GUARDED_SLEEPS, MONITOR_SLEEPS, SIZE, Bell
from smtstack.rings.host import share
from smtstack.rings.results import ERRORS, NAMING, is_believable
from smtstack.rings.uring import CertifiedUring
from smtstack.rings.uring_host import MemoryUring, uring_memory
from smtstack.rings.uring_layout import (
    ACCEPT,
    CLOSE,
    CONNECT,
    FSYNC,
    LISTEN,
    LOCK,
    NAME,
    NAMES,
    OPENAT,
    POLL,
    READ,
    READY,
    RECV,
    SEND,
    SHUTDOWN,
    SOCKET,
    SUBMISSION_LEN,
    TRUNCATE,
    WRITE,
    Submission,
    UringConfig,
    submission,
)
from smtstack.rings.uring_layout import (
    SIZE as FILE_SIZE,
)

ASKED = 16
#: By kind: results of an operation over so many bytes that cannot be, whatever the operation.
NEVER = {
    "beyond errno": (-134, -4095, -4096, -(1 << 31)),
    "an errno of no list": tuple(-number for number in (errno.EPERM, errno.ENOSYS, errno.EFAULT, errno.EPROTO,
                                                        errno.ENOEXEC))}
MOVING = {"more than asked": (ASKED + 1, 2 * ASKED, 1 << 20, (1 << 31) - 1)}
NOTHING = {"something where nothing can be": (1, ASKED, (1 << 31) - 1)}


def kinds(code: int) -> dict[str, tuple[int, ...]]:
    """What cannot be, for an operation."""
    wrong = {kind: tuple(n for n in numbers if -n not in ERRORS[code]) for kind, numbers in NEVER.items()}
    if code in (READ, RECV, WRITE, SEND):
        wrong |= MOVING
        if code in (WRITE, SEND):
            wrong["nothing of something"] = (0,)
    elif code == POLL:
        wrong |= MOVING | {"half a socket": (1, 7, 9)}
    elif code in NAMING:
        wrong["no descriptor"] = (1 << 30, (1 << 31) - 1)
    elif code != FILE_SIZE:
        wrong |= NOTHING
    return wrong


def test_the_table_has_each_operation():
    assert set(ERRORS) == set(NAMES)
    for code in NAMES:
        for kind, numbers in kinds(code).items():
            assert numbers, (NAMES[code], kind)
            assert not any(is_believable(code, ASKED, number) for number in numbers), (NAMES[code], kind)
        # Of all errors those of its list, and no other.
        assert {n for n in range(1, 5000) if is_believable(code, ASKED, -n)} == ERRORS[code]
        assert {-errno.EPERM, -errno.EFAULT, -errno.ENOSYS} & {-n for n in ERRORS[code]} <= {-errno.EPERM}
    assert is_believable(READ, ASKED, 0)
    assert is_believable(WRITE, 0, 0)
    assert not is_believable(FILE_SIZE, 0, 1 << 63)


class Host:
    """Answers, in a thread: each operation so that it comes off, but those of ``wrong``."""

    def __init__(self) -> None:
        config = UringConfig(8, 8, 4096)
        buffers = uring_memory(config)
        self.uring = CertifiedUring(share(buffers), config)
        self._memory = MemoryUring(share(buffers), config)
        page, mapping = sealed_memory("page", SIZE)
        os.close(page)
        self._page = Bell(mapping)
        self._page.words[MONITOR_SLEEPS] = 1
        self._bell = os.eventfd(0, os.EFD_NONBLOCK)
        self._asked, ask = os.pipe()
        answer, self._answer = os.pipe()
        life, self._alive = os.pipe2(os.O_NONBLOCK)
        self._open = [self._bell, self._asked, ask, answer, self._answer, life, self._alive]
        self.ring = IoRing(self.uring, self._page, self._bell, ask, answer, life)
        self._next = 100
        #: By operation, what it comes to.
        self.wrong: dict[int, int] = {}
        #: Before an answer that is right: one with this many added to its tag.
        self.foreign = 0
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        poll = select.poll()
        for descriptor in (self._bell, self._asked):
            poll.register(descriptor, select.POLLIN)
        while not self._over:
            for descriptor, _mask in poll.poll():
                if descriptor == self._bell:
                    os.read(self._bell, 8)
                    for entry in self._memory.take():
                        self._ring_answer(entry)
                    if self._page.words[GUARDED_SLEEPS]:
                        self._page.wake()
                else:
                    entry = submission(os.read(self._asked, SUBMISSION_LEN))
                    if self.foreign:
                        os.write(self._answer, ANSWER.pack(entry.tag + self.foreign, 0))
                    os.write(self._answer, ANSWER.pack(entry.tag, self._result(entry)))

    def _ring_answer(self, entry: Submission) -> None:
        # Who accepts or receives before there is something goes on waiting.
        if entry.code in (RECV, ACCEPT) and entry.code not in self.wrong:
            return
        if self.foreign:
            self._memory.complete(entry.tag + self.foreign, entry.length)
        self._memory.complete(entry.tag, self._result(entry))

    def _result(self, entry: Submission) -> int:
        if entry.code in self.wrong:
            return self.wrong[entry.code]
        if entry.code in (NAME, ACCEPT):
            self._memory.write(entry.address, pack_address("127.0.0.1", 7))
        if entry.code in NAMING:
            self._next += 1
            return self._next
        return entry.length if entry.code in (READ, WRITE, SEND) else 0

    def close(self) -> None:
        self._over = True
        os.write(self._bell, (1).to_bytes(8, "little"))
        self._thread.join()
        self._page.close()
        for descriptor in self._open:
            os.close(descriptor)


@pytest.fixture
def host() -> Iterator[Host]:
    made = Host()
    yield made
    made.close()


def a_file(host: Host) -> ProxyFile:
    return ProxyFile(host.ring, "/f")


def a_connection(host: Host) -> ProxySocket:
    made = connect(host.ring, ("127.0.0.1", 7))
    made.settimeout(20)
    return made


def accepting(host: Host) -> object:
    listener = ProxyListener(host.ring, ("127.0.0.1", 7))
    listener.settimeout(20)
    return listener.accept()


def sending(host: Host) -> object:
    connection = a_connection(host)
    connection.send(b"s" * ASKED)
    # It leaves while we go on: what became of it, the next one says.
    return connection.send(b"again")


def polling(host: Host) -> object:
    host.ring.exits = True
    poller = Poller(host.ring)
    for number in (201, 202):
        poller.register(number, select.EPOLLIN)
    try:
        return poller.poll(0)
    finally:
        host.ring.exits = False


#: What a program does that comes to each operation, over ASKED bytes where that has any.
USES: dict[int, Callable[[Host], object]] = {
    OPENAT: a_file, READ: lambda host: a_file(host).pread(ASKED, 0),
    WRITE: lambda host: a_file(host).pwrite(b"w" * ASKED, 0), FSYNC: lambda host: a_file(host).fsync(),
    FILE_SIZE: lambda host: a_file(host).size(), TRUNCATE: lambda host: a_file(host).truncate(3),
    LOCK: lambda host: a_file(host).lock(), CLOSE: lambda host: a_file(host).close(),
    SOCKET: a_connection, CONNECT: a_connection, RECV: lambda host: a_connection(host).recv(ASKED),
    SEND: sending, LISTEN: accepting, ACCEPT: accepting,
    NAME: lambda host: a_connection(host).getsockname(), POLL: polling}


def test_each_operation_is_used():
    # What SHUTDOWN comes to, nobody waits for: who reads will know.
    assert set(USES) | {SHUTDOWN} == set(NAMES)


@pytest.mark.parametrize("code", USES, ids=NAMES.get)
def test_whatever_a_host_returns_that_cannot_be_is_refused(host: Host, code: int):
    refused = 0
    for kind, numbers in kinds(code).items():
        for number in numbers:
            if code == RECV and kind == "more than asked" and number <= host.ring.buffer_size:
                continue  # a connection asks for a buffer full
            host.wrong = {code: number}
            with pytest.raises(HostRefused) as caught:
                USES[code](host)
            assert caught.value.errno == errno.EIO, kind
            host.wrong = {}
            refused += 1
            assert host.uring.results_refused >= refused
    assert refused > 5
    # And it goes on, where it answers what can be.
    if code not in (RECV, ACCEPT, LISTEN):
        USES[code](host)


@pytest.mark.parametrize("code", [code for code in USES if code != FILE_SIZE], ids=NAMES.get)
def test_errors_of_the_list_are_what_the_program_gets(host: Host, code: int):
    again = {errno.EINTR, errno.EAGAIN, *((errno.ECONNABORTED, errno.ECANCELED) if code == ACCEPT else ())}
    for number in sorted(ERRORS[code] - again):
        host.wrong = {code: -number}
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            USES[code](host)
        assert caught.value.errno == number
        assert not isinstance(caught.value, HostRefused)
    assert host.uring.results_refused == 0


@pytest.mark.parametrize("code", [READ, WRITE, FSYNC, CLOSE, OPENAT, RECV, SEND], ids=NAMES.get)
def test_a_storm_of_interruptions_ends(host: Host, code: int):
    host.wrong = {code: -errno.EINTR}
    with pytest.raises(OSError, match="interrupted"):
        USES[code](host)


@pytest.mark.parametrize("code", [OPENAT, SOCKET, LISTEN, ACCEPT], ids=NAMES.get)
def test_a_number_that_something_has_is_no_new_one(host: Host, code: int):
    """Else what is for one file would go to another."""
    first = a_file(host)
    host.wrong = {code: first.descriptor}
    with pytest.raises(HostRefused):
        USES[code](host)
    host.wrong = {}
    assert first.pwrite(b"x", 0) == 1
    first.close()
    # Once it is closed, it may be.
    host.wrong = {OPENAT: first.descriptor}
    assert a_file(host).descriptor == first.descriptor


@pytest.mark.parametrize("added", [-1, 1, 1 << 40])
def test_answers_to_other_questions_are_counted_and_skipped(host: Host, added: int):
    host.foreign = added
    with a_file(host) as file:
        assert file.pwrite(b"w" * ASKED, 0) == ASKED
        file.fsync()
    assert host.uring.foreign + host.uring.stale > 3
    assert host.uring.results_refused == 0


def test_short_answers_are_gone_on_from(host: Host):
    host.wrong = {WRITE: 3}
    with a_file(host) as file:
        assert file.pwrite(b"w" * 9, 0) == 9
        host.wrong = {READ: 0}
        assert file.pread(ASKED, 0) == b""


def test_what_a_connection_brings_is_no_longer_than_a_buffer(host: Host):
    for number, wanted in product((1, 7, host.ring.buffer_size), (1, 5)):
        host.wrong = {RECV: number}
        connection = a_connection(host)
        assert len(connection.recv(wanted)) == min(number, wanted)
    host.wrong = {RECV: 0}
    assert a_connection(host).recv(9) == b""
    with pytest.raises(Exception, match="no option"):
        a_connection(host).setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)


def test_of_others_than_it_was_asked_about_a_host_is_not_believed(host: Host, monkeypatch: pytest.MonkeyPatch):
    """Nor of what it was not asked."""
    said = [(201, select.EPOLLIN | select.EPOLLOUT), (7, select.EPOLLIN)]
    answer = host._result

    def lie(entry: Submission) -> int:
        if entry.code != POLL:
            return answer(entry)
        host._memory.write(entry.address, b"".join(READY.pack(*each) for each in said))
        return len(said) * READY.size

    monkeypatch.setattr(host, "_result", lie)
    assert polling(host) == [(201, select.EPOLLIN)]
    assert host.uring.results_refused == 1
    said[0] = (202, select.EPOLLOUT)
    assert polling(host) == []
    assert host.uring.results_refused == 3
    said[0] = (202, select.EPOLLOUT | select.EPOLLHUP)
    assert polling(host) == [(202, select.EPOLLHUP)]
