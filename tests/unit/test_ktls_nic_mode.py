"""Our kernel TLS with a NIC that seals, a pretended one: what TCP carries is plaintext records, and this reads the
record map and makes of them what a NIC makes. The real one is in tests/net/test_ktls_nic.py."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
from random import Random

import pytest

from smtstack.crypto.stream_gcm import StreamKeys, open_record_untrusted, seal_framed, seal_record
from smtstack.errors import Unsupported
from smtstack.ktls.params import LINUX_CIPHERS, TLS_TX_ZEROCOPY_RO, TlsParams
from smtstack.ktls.stats import TlsStats
from smtstack.ktls_io.files import sendfile
from smtstack.ktls_io.socket import KtlsSocket
from smtstack.nic.record_map import RecordMapReader, RecordMapWriter, map_bytes
from smtstack.wire.tcp import advance
from tests.ktls_peers import pair, pattern

KINDS = [(version, cipher) for version in (0x0303, 0x0304) for cipher in LINUX_CIPHERS]
#: Where a connection's sequence numbers begin: they wrap.
START = (1 << 32) - 100_000


class Flow:
    """A record map in this process."""

    def __init__(self, keys: StreamKeys, number: int, at: int, acknowledged: list[int]) -> None:
        self.buffer = bytearray(map_bytes(600_000, 64))
        self.map = RecordMapWriter(self.buffer, advance(START, at), number, 64)
        self.keys = keys
        self.at = at
        self.aborted = False
        self.sync_wanted = False
        self.context = True
        self.closed = False
        self._acknowledged = acknowledged

    def append(self, *parts):
        view = self.map.append(advance(START, self.at), *parts)
        if view is not None:
            self.at += len(view)
        return view

    def append_sealed(self, length):
        if not self.map.append_sealed(advance(START, self.at), length):
            return False
        self.at += length
        return True

    def release(self):
        return self.map.release(advance(START, self._acknowledged[0]))

    def take_context(self):
        if PretendedNic.full:
            raise OSError(errno.ENOSPC, "no context is left")
        self.context = True

    def give_context(self):
        self.context = False

    def close(self):
        self.closed = True


class PretendedNic:
    """A NicPort, and the wire behind it: a thread that reads what TCP carries, and seals what is plaintext."""

    receives = False
    rx_resync = "scan"
    full = False

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self.flow: Flow | None = None
        #: What TCP carried, and what the wire would.
        self.carried = bytearray()
        self.wire = bytearray()
        self.acknowledged = [0]
        self.refusal: Exception | None = None
        self.written = 0
        self.paused = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def install_tx(self, sock, keys, number):
        if self.refusal is not None:
            raise self.refusal
        assert self.flow is None, "installed twice"
        self.flow = Flow(keys, number, self.written, self.acknowledged)
        return self.flow

    def install_rx(self, sock, keys, number):
        raise Unsupported("it only sends")

    def _run(self) -> None:
        while True:
            if self.paused.is_set():
                select.select([], [], [], 0.001)
                continue
            try:
                data = self._sock.recv(60_000)
            except ConnectionResetError:
                data = b""
            if not data:
                break
            self.carried += data
            self._seal()
        self._sock.close()

    def _seal(self) -> None:
        """Whole records that have come leave sealed."""
        carried, wire = self.carried, self.wire
        while len(carried) - len(wire) >= 5:
            at = len(wire)
            size = 5 + int.from_bytes(carried[at + 3:at + 5], "big")
            if len(carried) - at < size:
                return
            record = bytes(carried[at:at + size])
            flow = self.flow
            if flow is not None:
                reader = RecordMapReader(flow.buffer)
                if not reader.before_records(advance(START, at), size):
                    found = reader.lookup(advance(START, at))
                    assert found is not None, "a record that the map has not"
                    assert (found.start, found.length) == (advance(START, at), size)
                    if not found.sealed:
                        assert reader.read(found, size) == record
                        record = seal_framed(flow.keys, found.number, record)
            wire += record
            self.acknowledged[0] = len(wire)

    def join(self) -> bytes:
        self._thread.join(20)
        assert not self._thread.is_alive()
        return bytes(self.wire)


class Counting(socket.socket):
    """A socket that tells the pretended NIC how much was written to it."""

    nic: PretendedNic

    def send(self, data, flags=0):
        count = super().send(data, flags)
        self.nic.written += count
        return count

    def sendmsg(self, buffers, ancillary=(), flags=0, address=None):
        count = super().sendmsg(buffers, ancillary, flags, address)
        self.nic.written += count
        return count


def connected(of: TlsParams, rules: str = "freebsd", nic_first: bool = False) -> tuple[KtlsSocket, PretendedNic]:
    one, other = pair()
    counting = Counting(fileno=one.detach())
    counting.settimeout(20)
    nic = PretendedNic(other)
    counting.nic = nic
    end = KtlsSocket(counting, rules, nic=nic)
    end.stats.set_knob("ifnet.permitted", int(nic_first))
    # The loopback, too, sends again where the receiver is slow.
    end.stats.set_knob("ifnet_max_rexmit_pct", 100)
    end.txtls_enable(of)
    end.stats.set_knob("ifnet.permitted", 1)
    return end, nic


def stall(end: KtlsSocket, nic: PretendedNic) -> None:
    """TCP takes little, and nothing comes out of it, until ``nic.paused`` is cleared."""
    nic.paused.set()
    end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 50_000)
    end.sock.setblocking(False)


def params(version: int, cipher: str, number: int = 0) -> TlsParams:
    iv_len = 4 if version == 0x0303 and cipher.endswith("gcm") else 12
    return TlsParams(cipher, version, bytes(range(LINUX_CIPHERS[cipher].key)), bytes(iv_len), number, 77)


def expected(of: TlsParams, data: bytes, sizes: list[int]) -> bytes:
    """The wire as if nobody had switched."""
    keys = StreamKeys(of.version, of.cipher, of.key, of.iv)
    out, at = [], 0
    for n, size in enumerate(sizes):
        out.append(seal_record(keys, of.number + n, 23, data[at:at + size], of.explicit_nonce + n))
        at += size
    close = seal_record(keys, of.number + len(sizes), 21, b"\1\0", of.explicit_nonce + len(sizes))
    return b"".join(out) + close


@pytest.mark.parametrize(("version", "cipher"), KINDS)
@pytest.mark.parametrize("nic_first", [False, True])
def test_a_hundred_switches_in_a_transfer_leave_the_bytes_of_none(version, cipher, nic_first):
    megabytes = float(os.environ.get("SMTNET_KTLS_MB", "2"))
    of = params(version, cipher, 5)
    end, nic = connected(of, nic_first=nic_first)
    assert end.txtls_mode == ("nic" if nic_first else "sw")
    data = pattern(int(megabytes * 1_000_000))
    rng = Random(version)
    places = sorted(rng.sample(range(1, len(data)), 100))
    sizes: list[int] = []
    for at, to in zip([0, *places], [*places, len(data)], strict=True):
        end.send(data[at:to])
        sizes += [min(16_384, to - n) for n in range(at, to, 16_384)]
        if to != len(data):
            end.txtls_mode = "sw" if end.txtls_mode == "nic" else "nic"
    end.shutdown()
    wire = nic.join()
    assert wire == expected(of, data, sizes)
    counters = end.stats.counters
    assert counters["stats.switch_to_ifnet"] == counters["stats.switch_to_sw"] == 50
    assert counters["stats.switch_failed"] == 0
    # The control: a part of it did go in clear as far as the NIC.
    assert data[places[40]:places[40] + 30] in nic.carried or data[places[41]:places[41] + 30] in nic.carried
    flow = nic.flow
    assert flow is not None
    end._sender._release(now=True)
    assert flow.map.created == flow.map.released
    end.close()
    assert flow.closed
    assert not any(end.stats.gauges().values())


def test_what_waits_in_the_queue_keeps_its_mode():
    """TCP takes nothing for a while; modes are switched meanwhile, and every record goes as it was made."""
    of = params(0x0304, "aes-128-gcm")
    end, nic = connected(of)
    stall(end, nic)
    data = pattern(3_000_000)
    sizes = []
    for at in range(0, len(data), 50_000):
        end.connection.write(data[at:at + 50_000])
        end.push(wait=False)
        end.txtls_mode = "sw" if end.txtls_mode == "nic" else "nic"
        sizes += [16_384] * 3 + [50_000 - 3 * 16_384]
    assert end.connection.queue.backlog > 500_000
    modes = [record.session.mode for record in end.connection.queue]
    assert {"sw", "nic"} == set(modes)
    nic.paused.clear()
    end.sock.settimeout(20)
    end.shutdown()
    assert nic.join() == expected(of, data, sizes)
    end.close()
    assert not any(end.stats.gauges().values())


@pytest.mark.parametrize("refusal", [OSError(errno.ENOSPC, "no context is left"), Unsupported("no NIC")])
def test_a_nic_that_refuses(refusal):
    """When TLS begins nobody is told, and software seals; who switches later is told why."""
    of = params(0x0304, "aes-128-gcm")
    one, other = pair()
    nic = PretendedNic(other)
    nic.refusal = refusal
    end = KtlsSocket(one, nic=nic)
    end.txtls_enable(of)
    assert end.txtls_mode == "sw"
    end.send(b"by software")
    with pytest.raises(OSError) as refused:
        end.txtls_mode = "nic"
    assert refused.value.errno == (refusal.errno if isinstance(refusal, OSError) else errno.ENXIO)
    assert end.txtls_mode == "sw"
    end.send(b"still")
    end.shutdown()
    assert nic.join() == expected(of, b"by softwarestill", [11, 5])
    end.close()
    assert not any(end.stats.gauges().values())


def test_a_nic_that_refuses_what_waited_for_it():
    of = params(0x0303, "aes-128-gcm")
    end, nic = connected(of)
    stall(end, nic)
    first = pattern(4_000_000)
    end.connection.write(first)
    end.push(wait=False)
    assert end.connection.queue.backlog > 0
    end.txtls_mode = "nic"
    end.connection.write(b"for the NIC")
    nic.refusal = OSError(errno.ENOSPC, "no context is left")
    nic.paused.clear()
    end.sock.settimeout(20)
    end.send(b"and more")
    assert end.txtls_mode == "sw"
    end.shutdown()
    sizes = [min(16_384, len(first) - n) for n in range(0, len(first), 16_384)] + [11, 8]
    assert nic.join() == expected(of, first + b"for the NICand more", sizes)
    assert b"for the NIC" not in nic.carried
    end.close()
    assert not any(end.stats.gauges().values())


def test_a_nic_that_gives_up_resets_the_connection():
    end, nic = connected(params(0x0304, "aes-128-gcm"), nic_first=True)
    end.send(b"first")
    assert nic.flow is not None
    nic.flow.aborted = True
    with pytest.raises(OSError) as aborted:
        end.send(bytes(10_000_000))
    assert aborted.value.errno == errno.ECONNABORTED
    assert end.sock.fileno() == -1
    nic.join()
    assert not any(end.stats.gauges().values())


def test_too_much_sent_again_ends_the_nic_while_data_flows(monkeypatch):
    of = params(0x0304, "aes-128-gcm")
    end, nic = connected(of, nic_first=True)
    end.stats.set_knob("ifnet_max_rexmit_pct", 2)
    data = pattern(3_000_000)
    info = bytearray(216)

    class Lossy(Counting):
        def getsockopt(self, level, option, length=0):
            return bytes(info) if option == socket.TCP_INFO else super().getsockopt(level, option, length)

    lossy = Lossy(fileno=end.sock.detach())
    lossy.nic = nic
    lossy.settimeout(20)
    end.sock = end._sender._sock = lossy
    end.send(data[:1_500_000])
    assert end.txtls_mode == "nic"
    info[200:216] = (1_500_000).to_bytes(8, "little") + (60_000).to_bytes(8, "little")
    end.send(data[1_500_000:])
    assert end.txtls_mode == "sw"
    assert end.stats.counters["stats.ifnet_disable_ok"] == 1
    with pytest.raises(OSError) as refused:
        end.txtls_mode = "nic"
    assert refused.value.errno == errno.ENXIO
    end.shutdown()
    sizes = [min(16_384, n - at) for begin, n in ((0, 1_500_000), (1_500_000, 3_000_000))
             for at in range(begin, n, 16_384)]
    assert nic.join() == expected(of, data, sizes)
    end.close()


@pytest.mark.parametrize("zerocopy", [False, True])
def test_files_through_the_nic(tmp_path, zerocopy):
    """From an odd offset, over many records; zero-copy: TCP takes the file's own pages."""
    of = params(0x0304, "aes-128-gcm")
    content = pattern(700_000)
    (tmp_path / "file").write_bytes(content)
    end, nic = connected(of, nic_first=True)
    if zerocopy:
        end.setsockopt(282, TLS_TX_ZEROCOPY_RO, 1)
    with (tmp_path / "file").open("rb") as file:
        assert sendfile(end, file.fileno(), 4_099, 600_000) == 600_000
        assert nic.flow is not None
        end.shutdown()
    wire = nic.join()
    opened, at, number = b"", 0, 0
    while at < len(wire):
        size = 5 + int.from_bytes(wire[at + 3:at + 5], "big")
        kind, data = open_record_untrusted(nic.flow.keys, number, wire[at:at + size])
        opened += data if kind == 23 else b""
        at, number = at + size, number + 1
    assert opened == content[4_099:604_099]
    assert end.copies["read"] == 600_000
    assert end.copies["map"] > 600_000
    # The payload itself did not go through us.
    assert (end.copies["send"] < 10_000) is zerocopy
    end.close()


def test_counters_of_a_connection_through_the_nic():
    stats = TlsStats()
    one, other = pair()
    nic = PretendedNic(other)
    end = KtlsSocket(one, stats=stats, nic=nic)
    end.txtls_enable(params(0x0304, "chacha20-poly1305"))
    assert (stats.counters["TlsTxDevice"], stats.counters["TlsCurrTxDevice"]) == (1, 1)
    assert stats.counters["ifnet.chacha20"] == 1
    end.close()
    nic.join()
    assert (stats.counters["TlsTxDevice"], stats.counters["TlsCurrTxDevice"]) == (1, 0)
