"""Hosts whose interfaces NICs own, for the drivers of test_tapnic*.py: in a sandbox, whose own namespace has the
cables. What is on a cable is recorded there, where only the NIC sends."""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar, cast

from smtstack.crypto.stream_gcm import AES_128_GCM, TLS13, StreamKeys, frame_record, open_record_untrusted
from smtstack.errors import AuthError, BadPacket
from smtstack.io.namespaces import within
from smtstack.tapnic import client
from smtstack.wire import tcp
from topo.commands import run
from topo.topologies import SmtTopo

T = TypeVar("T")
_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
#: Bytes of a recording; more would be lost, and is an error.
_MOST = 256 << 20
PATIENCE_S = 30.0
#: In every 256 bytes of what is sent in these tests.
CANARY = b"canary-in-clear!"
RECORD = 16_384
APPLICATION_DATA = 23


class TwoHosts(SmtTopo):
    """h1 and h2 with a cable for each of ``hostings``: h1-eth0 to h2-eth0, and so on."""

    def build(self, hostings: tuple[str, ...] = ("tap",), **_opts: Any) -> None:
        one, two = self.new_host(1), self.new_host(2)
        for number, hosting in enumerate(hostings):
            self.addLink(one, two, hosting=hosting, intfName1=f"h1-eth{number}", intfName2=f"h2-eth{number}")
        self.flows = [(one, two)]


def on(host: Any, work: Callable[[], T]) -> T:
    """What ``work`` gives in a host's network, or raises."""
    errors: list[OSError] = []

    def careful() -> T | None:
        try:
            return work()
        except OSError as e:
            errors.append(e)
            return None

    value = within(host.pid, careful)
    if errors:
        raise errors[0]
    return cast("T", value)


def connect(one: Any, two: Any) -> tuple[socket.socket, socket.socket]:
    """A TCP connection from one host to another: both ends."""
    with on(two, lambda: socket.create_server((two.IP(), 0))) as listener:
        ours = on(one, lambda: socket.create_connection(listener.getsockname(), PATIENCE_S))
        theirs, _address = listener.accept()
    for end in (ours, theirs):
        end.settimeout(PATIENCE_S)
    return ours, theirs


class Recording:
    """All frames that pass an interface, of our namespace or of a host's."""

    def __init__(self, interface: str, host: Any = None) -> None:
        self._sock = within(None if host is None else host.pid, lambda: _sniffer(interface))

    def frames(self) -> list[bytes]:
        """Those since the start, as far as they were not asked for."""
        out = []
        self._sock.setblocking(False)
        try:
            while True:
                out.append(self._sock.recv(1 << 17))
        except BlockingIOError:
            pass
        dropped = struct.unpack("II", self._sock.getsockopt(263, 6, 8))[1]
        assert not dropped, f"{dropped} frames are missing in a recording"
        return out

    def payloads(self) -> list[tuple[int, bytes]]:
        """(TCP sequence number, payload) of each packet from h1 with any."""
        out = []
        for frame in self.frames():
            try:
                packet = tcp.parse_untrusted(frame)
            except BadPacket:
                continue
            if packet.length and frame[26:30] == bytes((10, 0, 0, 1)):
                out.append((packet.seq, frame[packet.payload_at:packet.end]))
        return out

    def close(self) -> None:
        self._sock.close()


def _sniffer(interface: str) -> socket.socket:
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _MOST)
    sock.bind((interface, _ETH_P_ALL))
    return sock


def leaked(payloads: list[tuple[int, bytes]]) -> int:
    """Bytes of canaries in the streams that these packets are pieces of, put together."""
    found, stretch = 0, bytearray()
    behind = -1
    for seq, data in sorted(set(payloads)):
        if not stretch or seq > behind:
            found += stretch.count(CANARY)
            stretch = bytearray(data)
        else:
            # Sent again, perhaps cut elsewhere, perhaps once sealed and once not: neither hides the other.
            known = behind - seq
            if data[:known] != stretch[len(stretch) - known:][:len(data)]:
                found += data.count(CANARY)
            stretch += data[known:]
        behind = max(behind, seq + len(data))
    return (found + stretch.count(CANARY)) * len(CANARY)


def canaries(size: int) -> bytes:
    """So many bytes of payload with a canary in every 256."""
    return (CANARY + os.urandom(240)) * (size // 256)


def sealed_stream(connection: socket.socket, keys: StreamKeys, size: int) -> tuple[str, str]:
    """(SHA-256 of the plaintext of the records that arrive, until there were ``size`` bytes or no more come; why
    not all of them came)."""
    digest = hashlib.sha256()
    number = got = 0
    data = bytearray()
    try:
        while got < size:
            more = connection.recv(1 << 18)
            if not more:
                return digest.hexdigest(), f"end after {got} bytes"
            data += more
            at = 0
            while len(data) - at >= 5 and len(data) - at >= (length := 5 + (data[at + 3] << 8 | data[at + 4])):
                _kind, plain = open_record_untrusted(keys, number, bytes(data[at:at + length]))
                digest.update(plain)
                number, got, at = number + 1, got + len(plain), at + length
            del data[:at]
    except (AuthError, BadPacket, OSError) as e:
        return digest.hexdigest(), f"{type(e).__name__} after {got} bytes: {e}"
    return digest.hexdigest(), ""


class Transfer:
    """``size`` bytes as records from ``ours`` to ``theirs``, which NICs encrypt on the way; they are opened there.

    ``how``: as for :func:`~smtstack.tapnic.client.install_tx`, which raises.
    """

    def __init__(self, one: Any, ours: socket.socket, theirs: socket.socket, size: int, **how: Any) -> None:
        self.keys = StreamKeys(TLS13, AES_128_GCM, os.urandom(16), os.urandom(12))
        self.error = ""
        self.sent = ""
        self.received: tuple[str, str] = ("", "")
        self.created = self.released = 0
        self.offload = on(one, lambda: client.install_tx(ours, self.keys, 0, **how))
        self._size = size
        self._ours = ours
        self._theirs = theirs
        self._one = one
        self._threads = [threading.Thread(target=self._receive), threading.Thread(target=self._send)]
        for thread in self._threads:
            thread.start()

    def _receive(self) -> None:
        self.received = sealed_stream(self._theirs, self.keys, self._size)
        if self.received[1]:
            # Nobody reads any more: the sender is to hear that.
            self._theirs.close()

    def _send(self) -> None:
        data, digest = canaries(RECORD), hashlib.sha256()
        framed = frame_record(self.keys, APPLICATION_DATA, data)
        offload = self.offload
        end = time.monotonic() + PATIENCE_S
        try:
            for _record in range(self._size // RECORD):
                while (view := offload.append(framed)) is None:
                    if offload.aborted or self.received[1]:
                        raise ConnectionAbortedError("nobody takes the rest")
                    if not offload.release():
                        time.sleep(0.001)
                    assert time.monotonic() < end, "nothing is acknowledged any more"
                self._ours.sendall(view)
                digest.update(data)
        except OSError as e:
            self.error = type(e).__name__
            # The guard lets nothing of it out, so the other end would not hear of that.
            with contextlib.suppress(OSError):
                self._theirs.shutdown(socket.SHUT_RDWR)
        self.sent = digest.hexdigest()

    def running(self) -> bool:
        """Whether records are still to come."""
        return self._threads[0].is_alive()

    def finish(self) -> bool:
        """Wait for its end; whether all came as it was."""
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
        end = time.monotonic() + PATIENCE_S
        while not self.error and len(self.offload.records) and time.monotonic() < end:
            if not self.offload.release():
                time.sleep(0.001)
        self.created, self.released = self.offload.records.created, self.offload.records.released
        return not self.error and self.received == (self.sent, "")

    def close(self) -> None:
        """Both ends, and the offload."""
        self.offload.close()
        self._ours.close()
        self._theirs.close()


def static_neighbours(one: Any, two: Any, cables: int) -> None:
    """Let packets to the other host's address, which the first cable has, take any cable: nobody asks by ARP, and
    who comes by another interface is not refused."""
    for here, there in ((one, two), (two, one)):
        lines = [f"neigh replace {there.IP()} lladdr {there.intf(f'{there.name}-eth{n}').MAC()} "
                 f"dev {here.name}-eth{n} nud permanent" for n in range(cables)]
        for line in [f"link set dev {here.name}-eth{n} up" for n in range(cables)] + lines:
            run(["ip", *line.split()], pid=here.pid)


def take_cable(one: Any, two: Any, number: int) -> None:
    """From now on the first host's packets to the second leave by this cable."""
    run(["ip", "route", "replace", f"{two.IP()}/32", "dev", f"{one.name}-eth{number}", "src", one.IP()],
        pid=one.pid)
