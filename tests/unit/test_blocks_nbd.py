"""The block store by NBD: a client by hand, one that speaks something else, and fio, if it is there."""

from __future__ import annotations

import json
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pytest

from smtstack.errors import BadPacket
from smtstack.storage.device import MemoryDevice
from tests.command_lines import ROOT
from workloads import transports
from workloads.blocks import nbd
from workloads.blocks.capsule import BLOCK
from workloads.blocks.initiator import open_caller
from workloads.blocks.target import Target
from workloads.transports import Settings

BLOCKS = 256
_ASK = struct.Struct(">IHHQQI")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def export() -> Iterator[tuple[socket.socket, list[BaseException], Target]]:
    """A client's end of an export of a target over tcp; what ended the export early."""
    address = "127.0.0.1", free_port()
    target = Target(MemoryDevice(BLOCKS))
    over = threading.Event()
    raised: list[BaseException] = []
    with transports.open_server(Settings("tcp", address), target.handle) as server:
        def serve() -> None:
            while not over.is_set():
                server.drive(0.02)
                target.settle()

        def carry() -> None:
            try:
                nbd.Export(caller, theirs).run(over.is_set, 0.02)
            except BaseException as e:
                raised.append(e)
            theirs.close()

        threads = [threading.Thread(target=serve)]
        threads[0].start()
        ours, theirs = socket.socketpair()
        ours.settimeout(30)
        try:
            with open_caller(Settings("tcp"), [address]) as caller, ours:
                caller.prepare(4)
                threads.append(threading.Thread(target=carry))
                threads[1].start()
                yield ours, raised, target
                ours.close()
                threads[1].join(30)
        finally:
            over.set()
            for thread in threads:
                thread.join(30)


def take(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        assert more, "the export has ended"
        data += more
    return data


def option(client: socket.socket, number: int, data: bytes = b"") -> list[tuple[int, bytes]]:
    """(kind, data) of all answers to an option."""
    client.sendall(b"IHAVEOPT" + struct.pack(">II", number, len(data)) + data)
    answers: list[tuple[int, bytes]] = []
    while not answers or answers[-1][0] in (2, 3):
        magic, of, kind, size = struct.unpack(">QIII", take(client, 20))
        assert (magic, of) == (0x3E889045565A9, number)
        answers.append((kind, take(client, size)))
    return answers


def go(client: socket.socket) -> None:
    """The handshake."""
    assert take(client, 18) == b"NBDMAGICIHAVEOPT\0\3"
    client.sendall(struct.pack(">I", 3))
    answers = option(client, 7, struct.pack(">IH", 0, 0))
    assert answers == [(3, b"\0\0" + struct.pack(">QH", BLOCKS * BLOCK, 77)),
                       (3, b"\0\3" + struct.pack(">III", BLOCK, BLOCK, nbd.MOST)), (1, b"")]


def ask(client: socket.socket, kind: int, offset: int = 0, length: int = 0, data: bytes = b"",
        flags: int = 0) -> tuple[int, bytes]:
    """(error, data) of a request."""
    client.sendall(_ASK.pack(0x25609513, flags, kind, 7, offset, length) + data)
    magic, error, cookie = struct.unpack(">IIQ", take(client, 16))
    assert (magic, cookie) == (0x67446698, 7)
    return error, take(client, length) if kind == nbd.READ and not error else b""


def test_a_client_by_hand():
    with export() as (client, raised, target):
        assert take(client, 18) == b"NBDMAGICIHAVEOPT\0\3"
        client.sendall(struct.pack(">I", 3))
        assert option(client, 3) == [(2, bytes(4)), (1, b"")]
        assert option(client, 8) == [(1 << 31 | 1, b"")], "structured replies are not for us"
        assert option(client, 6, struct.pack(">IH", 0, 0))[-1] == (1, b"")
        assert option(client, 7, struct.pack(">IH", 0, 0))[-1] == (1, b"")
        data = Random(1).randbytes(150 * BLOCK)
        assert ask(client, nbd.WRITE, 16 * BLOCK, len(data), data, nbd.FUA) == (0, b"")
        assert ask(client, nbd.FLUSH) == (0, b"")
        assert ask(client, nbd.READ, 16 * BLOCK, len(data)) == (0, data)
        assert ask(client, nbd.WRITE_ZEROES, 20 * BLOCK, BLOCK) == (0, b"")
        assert ask(client, nbd.READ, 19 * BLOCK, 3 * BLOCK) == (
            0, data[3 * BLOCK:4 * BLOCK] + bytes(BLOCK) + data[5 * BLOCK:6 * BLOCK])
        for kind, offset, length in ((nbd.READ, 1, BLOCK), (nbd.READ, 0, 512), (4, 0, BLOCK),
                                     (nbd.READ, BLOCKS * BLOCK, BLOCK)):
            assert ask(client, kind, offset, length) == (22, b"")
        # Many at once, answered in any order.
        for number in range(20):
            client.sendall(_ASK.pack(0x25609513, 0, nbd.READ, number, (16 + number) * BLOCK, BLOCK))
        seen = set()
        for _ in range(20):
            _magic, error, cookie = struct.unpack(">IIQ", take(client, 16))
            part = take(client, BLOCK)
            assert error == 0
            assert cookie == 4 or part == data[cookie * BLOCK:(cookie + 1) * BLOCK]
            seen.add(cookie)
        assert seen == set(range(20))
        client.sendall(_ASK.pack(0x25609513, 0, nbd.DISCONNECT, 0, 0, 0))
        assert client.recv(1) == b"", "it goes when it is told to"
    assert raised == []
    assert target.counters()["device_flushes"] >= 2


@pytest.mark.parametrize("said", [
    struct.pack(">I", 1 << 9), struct.pack(">I", 3) + b"GET / HTTP/1.1\r\n\r\n",
    struct.pack(">I", 3) + b"IHAVEOPT" + struct.pack(">II", 7, 1 << 30)])
def test_who_speaks_something_else_is_cut_off(said):
    with export() as (client, raised, _target):
        take(client, 18)
        client.sendall(said)
        assert client.recv(1) == b""
    (error,) = raised
    assert isinstance(error, BadPacket)


def test_a_request_that_is_none_ends_the_connection():
    with export() as (client, raised, _target):
        go(client)
        client.sendall(bytes(28))
        assert client.recv(1) == b""
    assert isinstance(raised[0], BadPacket)


@contextmanager
def running(*words: str) -> Iterator[subprocess.Popen[str]]:
    """A program of ours, that serves already."""
    process = subprocess.Popen([sys.executable, "-m", "workloads", *words], cwd=ROOT, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        assert process.stderr is not None
        said = process.stderr.readline()
        assert said.startswith("serving"), said
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.skipif(shutil.which("fio") is None, reason="no fio (apt-get install fio)")
def test_fio_verifies_what_it_wrote(tmp_path: Path):
    peer, path = f"127.0.0.1:{free_port()}", tmp_path / "nbd"
    with running("serve", "blocks", "--transport", "tcp", "--addr", peer, "--blocks", "1024"), \
            running("serve", "nbd", "--transport", "tcp", "--peer", peer, "--socket", str(path), "--iodepth", "8"):
        done = subprocess.run(
            ["fio", "--name=t", "--ioengine=nbd", f"--uri=nbd+unix:///?socket={path}", "--rw=randwrite", "--bs=4k",
             "--iodepth=8", "--size=4m", "--verify=crc32c", "--do_verify=1", "--verify_fatal=1", "--randseed=7",
             "--output-format=json"], capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
        if "engine nbd not loadable" in done.stderr + done.stdout:
            pytest.skip("this fio has no nbd")
        assert done.returncode == 0, done.stderr + done.stdout
        (job,) = json.loads(done.stdout[done.stdout.index("{"):])["jobs"]
        assert (job["error"], job["write"]["total_ios"], job["read"]["total_ios"]) == (0, 1024, 1024)
    assert not path.exists()
