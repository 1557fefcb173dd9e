"""TCP and files of a host's process, on loopback: by the kernel's io_uring where there is one, by rings in memory,
and by exits. In a process without a filter; tests/unit/test_kv_ring.py has one with it."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from smtstack.errors import ConfigError, Unsupported
from smtstack.ringio import queue
from smtstack.ringio.calls import Calls
from smtstack.ringio.client import Proxies
from smtstack.ringio.files import ProxyFile
from smtstack.ringio.host import HostRing
from smtstack.ringio.queue import IoRing
from smtstack.ringio.sockets import Poller, ProxyListener, ProxySocket, connect
from smtstack.rings.hostile_uring import KINDS, HostileUring
from smtstack.rings.memory import SharedMemory
from smtstack.rings.uring_layout import ENTRIES, SUBMISSION_LEN, SUBMISSIONS, UringConfig, submission
from workloads.transports import Settings, stream_maker
from workloads.transports.framing import frame
from workloads.transports.stream_server import StreamServer

#: Small ones are full now and then.
CONFIG = UringConfig(entries=4, buffers=6, buffer_size=4096)
WAYS = ("kernel", "memory", "exits")
MUTATIONS = int(os.environ.get("SMTNET_MUTATIONS", "2000"))


@pytest.fixture(scope="module", params=WAYS)
def proxies(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxies]:
    folder = tmp_path_factory.mktemp("allowed")
    try:
        made = Proxies([folder], 2, backing="" if request.param == "exits" else request.param,
                       exits=request.param == "exits", config=CONFIG)
    except Unsupported as e:
        pytest.skip(str(e))
    yield made
    assert made.refused() == 0
    counters = made.counters()
    assert (counters["iouring_submitted"] > 0) != (request.param == "exits")
    assert counters["iouring_in_memory"] == (made.backing == "memory")
    made.close()
    made.close()


@pytest.fixture
def ring(proxies: Proxies) -> IoRing:
    return proxies.rings[0]


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return max(tmp_path_factory.getbasetemp().glob("allowed*"), key=lambda path: path.stat().st_mtime_ns)


def test_a_file(ring: IoRing, proxies: Proxies, folder: Path):
    path = folder / "file"
    data = os.urandom(3 * CONFIG.buffer_size + 17)
    with ProxyFile(ring, path) as file:
        assert file.pwrite(data, 5) == len(data)
        file.fsync()
        file.fdatasync(proxies.rings[1])
        assert file.size() == len(data) + 5 == path.stat().st_size
        assert path.read_bytes() == bytes(5) + data
        assert file.pread(len(data), 5) == data
        assert file.pread(1 << 20, 7) == data[2:]
        assert file.pread(9, 1 << 20) == b""
        file.truncate(3)
        assert file.pread(9, 0) == bytes(3)
        file.lock()
        with ProxyFile(ring, path) as other, pytest.raises(BlockingIOError):
            other.lock()
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        ProxyFile(ring, path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    with ProxyFile(ring, path, os.O_RDONLY) as file, pytest.raises(OSError, match="Bad file") as caught:
        file.pwrite(b"x", 0)
    assert caught.value.errno == errno.EBADF
    path.unlink()


def test_what_the_host_was_not_told_to_open_it_does_not(ring: IoRing, folder: Path, tmp_path: Path):
    outside = tmp_path / "outside"
    outside.write_text("secret")
    (folder / "link").symlink_to(outside)
    (folder / "within").symlink_to(folder / "file2")
    for path in (outside, folder / "link", folder / ".." / "outside", Path("file"), folder / "within"):
        with pytest.raises(OSError, match=r"denied|Too many levels"):
            ProxyFile(ring, path, os.O_RDONLY)
    assert outside.read_text() == "secret"


def echo(listener: socket.socket, chunks: int) -> None:
    sock, _peer = listener.accept()
    with sock:
        for _number in range(chunks):
            sock.sendall(sock.recv(100_000))


def test_a_connection_of_ours(ring: IoRing):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = listener.getsockname()
        thread = threading.Thread(target=echo, args=(listener, 3))
        thread.start()
        with connect(ring, peer, timeout_s=20) as sock:
            assert isinstance(sock, ProxySocket)
            sock.settimeout(20)
            assert sock.getpeername() == peer
            assert sock.getsockname()[0] == "127.0.0.1"
            for number in range(3):
                sock.sendall(b"%d" % number * 1000)
                got = b""
                while len(got) < 1000:
                    got += sock.recv(300)
                assert got == b"%d" % number * 1000
            assert sock.recv(9) == b""
        thread.join()
    with pytest.raises(ConnectionRefusedError):
        connect(ring, peer, timeout_s=20)


def test_a_listener_of_ours(ring: IoRing):
    data = os.urandom(50_000)
    with ProxyListener(ring, ("127.0.0.1", 0)) as listener:
        assert isinstance(listener, ProxyListener)
        listener.settimeout(20)
        with pytest.raises(OSError, match="in use"):
            ProxyListener(ring, listener.getsockname())
        client = socket.create_connection(listener.getsockname())
        sender = threading.Thread(target=client.sendall, args=(data,))
        sender.start()
        sock, peer = listener.accept()
        assert peer == client.getsockname()
        got = b""
        while len(got) < len(data):
            got += sock.recv(1 << 20)
        assert got == data
        sender.join()
        # What was sent arrives, though it is closed at once.
        reader = threading.Thread(target=sock.sendall, args=(data,))
        reader.start()
        back = b""
        while len(back) < len(data):
            back += client.recv(1 << 20)
        reader.join()
        sock.send(b"the end")
        sock.close()
        assert client.recv(100) == b"the end"
        assert client.recv(100) == b""
        client.close()
        assert back == data


def test_many_clients_by_a_poller(ring: IoRing):
    """More than the ring has places and buffers for at once."""
    listener = ProxyListener(ring, ("127.0.0.1", 0))
    listener.setblocking(False)
    poller = Poller(ring)
    poller.register(listener, select.EPOLLIN)
    clients = 12
    answers: list[bytes] = []

    def ask(number: int) -> None:
        with socket.create_connection(listener_at, 20) as sock:
            for _time in range(5):
                sock.sendall(b"%02d" % number * 500)
                got = b""
                while len(got) < 1000 and (more := sock.recv(5000)):
                    got += more
                answers.append(got if got == b"%02d" % number * 500 else b"wrong")

    listener_at = listener.getsockname()
    threads = [threading.Thread(target=ask, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    served: dict[int, ProxySocket] = {}
    ended = 0
    while ended < clients:
        for descriptor, mask in poller.poll(20):
            if descriptor == listener.fileno():
                sock, _peer = listener.accept()
                sock.setblocking(False)
                served[sock.fileno()] = sock
                poller.register(sock, select.EPOLLIN)
                continue
            assert mask & select.EPOLLIN
            sock = served[descriptor]
            data = sock.recv(5000)
            if data:
                assert sock.send(data) == len(data)
            else:
                poller.unregister(descriptor)
                served.pop(descriptor).close()
                ended += 1
    for thread in threads:
        thread.join()
    assert len(answers) == 5 * clients
    assert b"wrong" not in answers
    poller.unregister(listener)
    listener.close()
    assert poller.poll(0) == []
    poller.close()


def test_what_is_not_to_wait_does_not(ring: IoRing):
    listener = ProxyListener(ring, ("127.0.0.1", 0))
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.accept()
    poller = Poller(ring)
    poller.register(listener, select.EPOLLIN)
    assert poller.poll(0) == []
    assert poller.poll(0.01) == []
    with socket.create_connection(listener.getsockname(), 20) as client:
        assert poller.poll(20) == [(listener.fileno(), select.EPOLLIN)]
        sock, _peer = listener.accept()
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(10)
        poller.register(sock, select.EPOLLIN | select.EPOLLOUT)
        assert (sock.fileno(), select.EPOLLOUT) in poller.poll(20)
        poller.modify(sock, select.EPOLLIN)
        client.sendall(b"come")
        assert poller.poll(20) == [(sock.fileno(), select.EPOLLIN)]
        assert sock.recv(10) == b"come"
        sent = 0
        with contextlib.suppress(BlockingIOError):
            # Until nobody takes any more.
            while sent < 1 << 30:
                sent += sock.send(bytes(4096))
        assert 4096 <= sent < 1 << 30
    for each in (sock, listener):
        # As one that waits until it is closed.
        each.settimeout(20)
        each.close()
    poller.close()


def test_leaving_is_said_to_cost_what_one_says(tmp_path: Path):
    with Proxies([tmp_path], exits=True, exit_ns=20_000_000) as proxies:
        begun = time.perf_counter_ns()
        ProxyFile(proxies.rings[0], tmp_path / "file").close()
        assert time.perf_counter_ns() - begun >= 2 * 20_000_000
        assert proxies.counters()["iouring_exits"] == 2


def test_a_full_ring_is_gone_around_by_exits(ring: IoRing, folder: Path):
    if ring.exits:
        pytest.skip("all are exits")
    listener = ProxyListener(ring, ("127.0.0.1", 0))
    before = ring.counters()["ocall_fallbacks"]
    # These wait, and hold all buffers.
    waiting = []
    for _number in range(CONFIG.buffers):
        waiting.append(connect(ring, listener.getsockname()))
        waiting[-1].arm()
    with ProxyFile(ring, folder / "full") as file:
        assert file.pwrite(b"by an exit", 0) == 10
        assert file.pread(20, 0) == b"by an exit"
    assert ring.counters()["ocall_fallbacks"] > before
    for sock in waiting:
        sock.close()
    listener.close()


def test_a_peer_that_resets(ring: IoRing):
    listener = ProxyListener(ring, ("127.0.0.1", 0))
    listener.settimeout(20)
    client = socket.create_connection(listener.getsockname())
    sock, _peer = listener.accept()
    sock.settimeout(20)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    client.close()
    with pytest.raises(ConnectionResetError):
        sock.recv(10)
    sock.close()
    listener.close()


@pytest.mark.parametrize("backing", ["", "memory"])
def test_a_host_that_stops_goes_on_and_one_that_ends_is_said(tmp_path: Path, backing: str):
    with Proxies([tmp_path], backing=backing) as proxies:
        ring = proxies.rings[0]
        file = ProxyFile(ring, tmp_path / "file")
        os.kill(proxies.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (proxies.pid, signal.SIGCONT)).start()
        assert file.pwrite(b"stopped", 0) == 7
        assert file.pread(7, 0) == b"stopped"
        os.kill(proxies.pid, signal.SIGKILL)
        with pytest.raises(Unsupported, match="ended"):
            file.pwrite(b"killed", 0)
        with pytest.raises(Unsupported, match="ended"):
            file.size()


def test_without_checks_and_errors_at_the_start(tmp_path: Path):
    with Proxies([tmp_path], certified=False) as proxies, ProxyFile(proxies.rings[0], tmp_path / "f") as file:
        assert file.pwrite(b"believed", 0) == 8
        assert file.pread(8, 0) == b"believed"
    with pytest.raises(ConfigError, match="at most 16"):
        Proxies([tmp_path], rings=17)


def test_the_kernel_is_not_told_of_more_than_there_can_be(tmp_path: Path):
    """It would take what was there before, again and again, and who serves its ring would do nothing else."""
    bell = os.eventfd(0)
    with select.epoll() as epoll:
        try:
            made = HostRing(CONFIG, "kernel", Calls(epoll, [tmp_path]), bell)
        except Unsupported as e:
            pytest.skip(str(e))
        assert made.kernel is not None
        producer, consumer = SUBMISSIONS.producer >> 2, SUBMISSIONS.consumer >> 2
        # Indices that cannot be, whichever of them was overwritten, and such as can.
        for tail, head, taken in ((1 << 20, 0, 0), (0, 1, 1), (CONFIG.entries, 0, CONFIG.entries)):
            made._words[producer], made._words[consumer] = tail, head
            assert made.pending() == (taken == tail)
            made.serve()
            assert made._words[consumer] == taken
        made.kernel.close()
    for descriptor in (bell, *made.given, made.ask, made.answer, made._alive):
        os.close(descriptor)


def _attack(proxies: Proxies, stop: int, mutations: int) -> None:
    """In a process of its own: change what the ring's memory has, as fast as it goes, until told to end."""
    memories = {memory.name: SharedMemory(memory.name, mapping)
                for memory, mapping in zip(proxies._memories, proxies._mappings, strict=True)}
    host = HostileUring(memories, CONFIG, seed=11)
    # What is submitted it leaves alone: the kernel would do it, with the rights of the host's process. Our own
    # indices, too: the kernel goes by them, and where it took what never was there, it does not go back.
    host.kinds = tuple(kind for kind in KINDS
                       if kind not in ("guests_index", "submission_changed", "never_complete"))
    while not select.select([stop], [], [], 0)[0]:
        for _time in range(20):
            host._taken = [submission(memories[ENTRIES].copy(SUBMISSION_LEN * slot, SUBMISSION_LEN))
                           for slot in range(CONFIG.entries)]
            if host.mutated < mutations:
                host.mutate()
        time.sleep(0.0005)


def test_a_hostile_process_beside_the_kernels_own_ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It maps the same memory. What comes is an error or what can be; and when it stops, all is well again."""
    monkeypatch.setattr(queue, "PATIENCE_S", 0.3)
    data = bytes(range(256)) * 4
    try:
        proxies = Proxies([tmp_path], backing="kernel", config=CONFIG)
    except Unsupported as e:
        pytest.skip(str(e))
    with proxies:
        ring = proxies.rings[0]
        file = ProxyFile(ring, tmp_path / "file")
        assert file.pwrite(data, 0) == len(data)
        stop, stopping = os.pipe()
        child = os.fork()
        if not child:
            try:
                _attack(proxies, stop, MUTATIONS)
            finally:
                os._exit(0)
        answered = failed = 0
        end = time.monotonic() + max(1.5, min(60.0, MUTATIONS / 2000))
        limit = end + 60.0
        # On a busy machine it takes longer until all has been tried.
        while time.monotonic() < end or (not (answered and failed and proxies.refused())
                                         and time.monotonic() < limit):
            try:
                answered += len(file.pread(len(data), 0)) <= len(data)
                answered += file.pwrite(data, 0) == len(data)
            except OSError:
                failed += 1
        os.write(stopping, b"x")
        assert os.waitpid(child, 0)[1] == 0
        assert answered > 0 < failed
        assert proxies.refused() > 0
        right, limit = 0, time.monotonic() + 20
        while right < 100:
            assert time.monotonic() < limit
            try:
                right = right + 1 if file.pwrite(data, 0) == len(data) and file.pread(2000, 0) == data else 0
            except OSError:
                right = 0
        before = proxies.refused()
        assert file.pread(2000, 0) == data
        assert proxies.refused() == before
    for descriptor in (stop, stopping):
        os.close(descriptor)


def test_a_server_has_no_more_connections_than_can_be_answered(tmp_path: Path):
    """Else all buffers would be waiting for clients who wait for answers."""
    with Proxies([], config=UringConfig(entries=8, buffers=12, buffer_size=4096)) as proxies:
        ring = proxies.rings[0]
        assert ring.connections == 2
        settings = Settings("tcp", ("127.0.0.1", 0))
        server = StreamServer(stream_maker(settings, server=True), ("127.0.0.1", 0), 100_000,
                              lambda request: request.reply(request.data), ring=ring)
        clients = [socket.create_connection(server.address) for _number in range(3)]
        clients[2].settimeout(0.001)
        gone = False
        while not gone:
            server.drive(0.01)
            with contextlib.suppress(TimeoutError):
                gone = clients[2].recv(10) == b""
        message = frame(7, b"m" * 50_000)
        for client in clients[:2]:
            threading.Thread(target=client.sendall, args=(message,)).start()
        for client in clients[:2]:
            got = b""
            client.settimeout(0.001)
            while len(got) < len(message):
                server.drive(0.01)
                with contextlib.suppress(TimeoutError):
                    got += client.recv(100_000)
            assert got == message
        counters = server.counters()
        assert (counters["connections_refused"], counters["connections"]) == (1, 2)
        server.close()
        for client in clients:
            client.close()
