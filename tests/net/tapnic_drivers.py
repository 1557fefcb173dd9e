"""What test_tapnic*.py do inside a sandbox: ``python -m tests.net.tapnic_drivers NAME ...``. JSON on stdout."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from smtstack.crypto.stream_gcm import AES_128_GCM, TLS12, StreamKeys, open_record_untrusted, seal_record
from smtstack.io import ethtool, plaintext_guard, tcp_queries
from smtstack.io.namespaces import interface_exists
from smtstack.nic.marks import DECRYPTED, ENCRYPTED
from smtstack.nic.plaintext import PLAINTEXT_MARK
from smtstack.nicshare.state import NicState
from smtstack.tapnic import client
from smtstack.wire import tcp
from tests.net.inside import go_inside
from tests.net.tapnic_rig import (
    APPLICATION_DATA,
    CANARY,
    PATIENCE_S,
    RECORD,
    Recording,
    Transfer,
    TwoHosts,
    canaries,
    connect,
    leaked,
    on,
    static_neighbours,
    take_cable,
)
from topo.commands import run
from topo.link_options import LinkOptions
from topo.network import open_network

MB = 1 << 20
TAP = LinkOptions(hosting="tap")


def counters(host: Any, interface: str = "") -> dict[str, int]:
    """What a host's NIC has counted, when that is told."""
    state = NicState.open(interface or f"{host.name}-eth0", pid=host.pid)
    before = state.counters()
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        time.sleep(0.05)
        now = state.counters()
        if now == before:
            break
        before = now
    return before


def plain_transfer(one: Any, two: Any, size: int) -> bool:
    """Whether bytes of ordinary TCP arrive as they were."""
    ours, theirs = connect(one, two)
    data = canaries(size)
    got = hashlib.sha256()

    def receive() -> None:
        while piece := theirs.recv(MB):
            got.update(piece)

    thread = threading.Thread(target=receive)
    thread.start()
    with ours, theirs:
        ours.sendall(data)
        ours.shutdown(socket.SHUT_WR)
        thread.join(PATIENCE_S)
    return got.hexdigest() == hashlib.sha256(data).hexdigest()


def openssl_transfer(one: Any, two: Any, size: int) -> bool:
    """Whether bytes pass between two ends of Python's ssl."""
    ours, theirs = connect(one, two)
    with tempfile.TemporaryDirectory() as folder:
        cert, key = f"{folder}/cert.pem", f"{folder}/key.pem"
        run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
             "-keyout", key, "-out", cert, "-subj", "/CN=h2", "-days", "2"])
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(cert, key)
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.load_verify_locations(cert)
        data, got = canaries(size), hashlib.sha256()

        def receive() -> None:
            with server.wrap_socket(theirs, server_side=True) as end:
                while len_left[0] > 0 and (piece := end.recv(MB)):
                    got.update(piece)
                    len_left[0] -= len(piece)
                end.sendall(b"done")

        len_left = [len(data)]
        thread = threading.Thread(target=receive)
        thread.start()
        with trusting.wrap_socket(ours, server_hostname="h2") as end:
            end.sendall(data)
            said = end.recv(4)
        thread.join(PATIENCE_S)
    return said == b"done" and got.hexdigest() == hashlib.sha256(data).hexdigest()


def shape(frames: list[bytes]) -> list[str]:
    """What is wrong with the headers of the packets that h1 has sent as parts of a stream. Nothing, where
    checksums are right, no byte is missing, and all have the same header but for what TCP and IP count."""
    wrong: set[str] = set()
    heads = set()
    spans = []
    for frame in frames:
        packet = tcp.parse_untrusted(frame)
        if frame[26:30] != bytes((10, 0, 0, 1)):
            continue
        if int.from_bytes(frame[14:34], "big") % 0xFFFF:
            wrong.add("IP checksum")
        if not tcp.checksum_ok(frame, packet):
            wrong.add("TCP checksum")
        if len(frame) > 1514:
            wrong.add("longer than the MTU")
        if packet.length:
            heads.add((frame[:16], frame[20:24], frame[26:38], frame[46:47], frame[54:58],
                       packet.flags & ~(tcp.PSH | tcp.FIN)))
            spans.append((packet.seq, packet.length))
    if len(heads) != 1:
        wrong.add(f"{len(heads)} different headers")
    behind = spans[0][0] if spans else 0
    for seq, length in sorted(set(spans)):
        if seq > behind:
            wrong.add("missing bytes")
        behind = max(behind, seq + length)
    return sorted(wrong)


def basics() -> dict[str, Any]:
    """Ordinary traffic of two hosts, their settings, and what is left of them."""
    out: dict[str, Any] = {}
    with open_network("star,2", TAP, "bridge") as net:
        one, two = net.hosts
        out["ping"] = "1 received" in run(["ping", "-c1", "-W5", two.IP()], pid=one.pid)
        recording = Recording("n-h1-eth0")
        out["tcp"] = [plain_transfer(one, two, 5 * MB), plain_transfer(two, one, MB)]
        out["whole_headers"] = shape([f for f in recording.frames() if tcp.is_tcp(f)])
        out["openssl"] = openssl_transfer(one, two, 2 * MB)
        recording.frames()
        NicState.open("h1-eth0", pid=one.pid).assign("tso=off")
        out["applied"] = NicState.open("h1-eth0", pid=one.pid).wait_applied()
        before = counters(one)["tx_tso_packets"]
        out["tcp_without_tso"] = plain_transfer(one, two, MB)
        out["tso_packets"] = [before, counters(one)["tx_tso_packets"] - before]
        out["cut_headers"] = shape([f for f in recording.frames() if tcp.is_tcp(f)])
        recording.close()
        out["settings"] = settings(one, two)
        nics = [nic for link in net.links for nic in link.nics.values()]
        port, pids = nics[0].port, [nic.pid for nic in nics]
        out["pids"] = [len(pids), sorted(net.nic_pids(one) + net.nic_pids(two)) == sorted(pids)]
    out["left"] = [name for name in (port,) if interface_exists(name)] + [
        pid for pid in pids if Path(f"/proc/{pid}").exists()] + [str(p) for p in Path("/run/smtnet").iterdir()]
    return out


def settings(one: Any, two: Any) -> dict[str, Any]:
    """Impairments and recordings, set while traffic runs."""
    state = NicState.open("h1-eth0", pid=one.pid)
    out: dict[str, Any] = {}
    state.assign("tso=default", "loss=2%", "rx.loss=2%", "duplicate=1%", "reorder=1%")
    assert state.wait_applied()
    before = counters(one)
    out["tcp"] = plain_transfer(one, two, MB)
    after = counters(one)
    out["hit"] = {name: after[name] - before[name] > 0 for name in ("impaired_dropped", "impaired_duplicated",
                                                                   "impaired_reordered")}
    state.reset()
    state.assign("delay=30ms")
    assert state.wait_applied()
    began = time.monotonic()
    run(["ping", "-c1", "-W5", two.IP()], pid=one.pid)
    out["delay"] = time.monotonic() - began >= 0.03
    state.reset()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "h1.pcapng")
        state.start_tap(path, host_side=True)
        assert state.wait_applied()
        out["recorded_tcp"] = plain_transfer(one, two, MB // 4)
        state.stop_tap()
        out["recorded"] = path.stat().st_size > MB // 4
    return out


def guard() -> dict[str, Any]:
    """Marked sockets on the plain interface of a host that has a NIC, too; with the guard and without."""
    out: dict[str, Any] = {}
    with open_network(TwoHosts(("tap", "inline")), LinkOptions()) as net:
        one, two = net.hosts
        static_neighbours(one, two, 2)
        recordings = [Recording("h1-eth1", one), Recording("lo", one), Recording("n-h1-eth0")]
        for case in ("guarded", "open"):
            if case == "open":
                on(one, plaintext_guard.remove)
            for name, peer, recording in (("plain", two, recordings[0]), ("lo", one, recordings[1])):
                take_cable(one, two, 1)
                ours, theirs = connect(one, peer)
                recording.frames()
                with ours, theirs:
                    tcp_queries.set_mark(ours, PLAINTEXT_MARK)
                    ours.setblocking(False)
                    ours.send(canaries(8192))
                    # As long as TCP takes to send it a second time; what is to be found is waited for.
                    found, end = 0, time.monotonic() + (0.3 if case == "guarded" else PATIENCE_S)
                    while not found and time.monotonic() < end:
                        time.sleep(0.02)
                        found = leaked(recording.payloads())
                    out[f"{name}_{case}"] = found
        on(one, plaintext_guard.install)
        # The NIC does not know the flow: it drops what has payload, and counts that.
        take_cable(one, two, 0)
        ours, theirs = connect(one, two)
        recordings[2].frames()
        with ours, theirs:
            tcp_queries.set_mark(ours, PLAINTEXT_MARK)
            ours.send(canaries(8192))
            state, end = NicState.open("h1-eth0", pid=one.pid), time.monotonic() + PATIENCE_S
            while not (dropped := state.counters()["tx_tls_drop_bypass_req"]) and time.monotonic() < end:
                time.sleep(0.02)
            out["unknown_counted"] = dropped > 0
            out["unknown"] = leaked(recordings[2].payloads())
            tcp_queries.set_mark(ours, 0)
            out["after_unmarking"] = theirs.recv(1 << 16)[:16] == CANARY
    return out


def offload() -> dict[str, Any]:
    """Records encrypted by the NIC; with loss, too. Headers as without, nothing in clear, contexts, ends."""
    out: dict[str, Any] = {}
    size = int(os.environ.get("SMTNET_TAP_MB", "5")) * MB
    with open_network("star,2", TAP, "bridge") as net:
        one, two = net.hosts
        state = NicState.open("h1-eth0", pid=one.pid)
        recording = Recording("n-h1-eth0")
        for case in ("lossless", "loss=1%", "loss=5%"):
            if case != "lossless":
                state.reset()
                state.assign(case, "reorder=1%", "duplicate=1%")
                assert state.wait_applied()
            before = counters(one)
            transfer = Transfer(one, *connect(one, two), size=size if case == "lossless" else size // 4)
            ok = transfer.finish()
            frames = [f for f in recording.frames() if tcp.is_tcp(f)]
            after = counters(one)
            transfer.close()
            out[case] = {"ok": ok, "created": transfer.created, "released": transfer.released,
                         "error": transfer.error or transfer.received[1], "leaked": leaked(_payloads(frames)),
                         **{name: after[name] - before[name] for name in (
                             "tx_tls_encrypted_bytes", "tx_tls_ooo", "tx_tls_dump_bytes", "tx_tls_ctx")}}
            if case == "lossless":
                out["headers"] = shape(frames)
        state.reset()
        state.assign("max-contexts=1")
        assert state.wait_applied()
        ours, theirs = connect(one, two)
        # What is over goes when nothing of it can be sent any more.
        end = time.monotonic() + PATIENCE_S
        while counters(one)["tx_tls_ctx"] - counters(one)["tx_tls_del"] and time.monotonic() < end:
            time.sleep(0.02)
        first = Transfer(one, ours, theirs, RECORD)
        second = connect(one, two)
        try:
            Transfer(one, *second, size=RECORD)
            out["full"] = 0
        except OSError as e:
            out["full"] = e.errno
        first.finish()
        first.close()
        state.reset()
        state.assign("offload=off")
        assert state.wait_applied()
        try:
            Transfer(one, *second, size=RECORD)
            out["off"] = 0
        except OSError as e:
            out["off"] = e.errno
        state.reset()
        assert state.wait_applied()
        # It was not marked by what failed, and goes on as an ordinary connection.
        second[0].send(CANARY)
        out["as_before"] = second[1].recv(64) == CANARY
        on(one, lambda: ethtool.switch("h1-eth0", (ethtool.TX_CSUM,), False))
        transfer = Transfer(one, *connect(one, two), size=MB)
        out["own_checksums"] = transfer.finish()
        transfer.close()
        on(one, lambda: ethtool.switch("h1-eth0", (ethtool.TX_CSUM,), True))
        out["device_down"] = _device_down(one, two)
        out["exit"] = _program_exits(one, two, state)
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            last = counters(one)
            if last["tx_tls_ctx"] == last["tx_tls_del"]:
                break
        out["contexts_left"] = last["tx_tls_ctx"] - last["tx_tls_del"]
    return out


def receive() -> dict[str, Any]:
    """Sealed records from a sender without a NIC's help, decrypted by the receiver's NIC: with nothing wrong on
    the way, and with changed bits."""
    out: dict[str, Any] = {}
    with open_network("star,2", TAP, "bridge") as net:
        one, two = net.hosts
        state = NicState.open("h2-eth0", pid=two.pid)
        # On a busy machine 2 MB may all have passed before the NIC is in step again.
        for case, size in (("clean", 2 * MB), ("rx.corrupt=1%", 6 * MB)):
            if case != "clean":
                state.assign(case)
                assert state.wait_applied()
            keys = StreamKeys(TLS12, AES_128_GCM, os.urandom(16), os.urandom(4))
            ours, theirs = connect(one, two)
            offload = on(two, partial(client.install_rx, theirs, keys, 0))
            before = counters(two)
            data = canaries(RECORD)
            records = [seal_record(keys, n, APPLICATION_DATA, data, n) for n in range(size // RECORD)]
            sender = threading.Thread(target=ours.sendall, args=(b"".join(records),))
            sender.start()
            plain = sealed = wrong = at = 0
            for number, record in enumerate(records):
                got = bytearray()
                while len(got) < len(record):
                    got += theirs.recv(len(record) - len(got))
                seq = tcp.advance(offload.seq, at)
                forms = {r.form for r in offload.marks.forms(seq, len(record))}
                offload.marks.release(seq)
                at += len(record)
                if forms == {DECRYPTED}:
                    plain += got[13:-16] == data
                    wrong += got[13:-16] != data
                elif forms == {ENCRYPTED}:
                    sealed += open_record_untrusted(keys, number, bytes(got)) == (APPLICATION_DATA, data)
                    wrong += bytes(got) != record
            sender.join(PATIENCE_S)
            after = counters(two)
            out[case] = {"records": len(records), "plain": plain, "sealed": sealed, "wrong": wrong,
                         "decrypted": after["rx_tls_decrypted_bytes"] - before["rx_tls_decrypted_bytes"],
                         "bytes": at, "errors": after["rx_tls_err"] - before["rx_tls_err"]}
            offload.close()
            ours.close()
            theirs.close()
        out["contexts_left"] = counters(two)["rx_tls_ctx"] - counters(two)["rx_tls_del"]
    return out


def mirrored() -> dict[str, Any]:
    """Packets that the receiver's NIC has decrypted are seen on its interface, by who records there and by who
    mirrors it: while tc may do that, nothing is decrypted, and nothing written that is to be encrypted."""
    out: dict[str, Any] = {}
    with open_network("star,2", TAP, "bridge") as net:
        one, two = net.hosts
        run(["ip", "link", "add", "m0", "type", "veth", "peer", "name", "m1"], pid=two.pid)
        for name in ("m0", "m1"):
            run(["ip", "link", "set", name, "up"], pid=two.pid)
        recordings = {"interface": Recording("h2-eth0", two), "mirror": Recording("m1", two)}
        keys = StreamKeys(TLS12, AES_128_GCM, os.urandom(16), os.urandom(4))
        ours, theirs = connect(one, two)
        offload = on(two, partial(client.install_rx, theirs, keys, 0))
        data = canaries(RECORD)
        records = [seal_record(keys, n, APPLICATION_DATA, data, n) for n in range(20)]

        def pass_records(some: list[bytes]) -> None:
            ours.sendall(b"".join(some))
            left = sum(map(len, some))
            while left:
                left -= len(theirs.recv(left))

        pass_records(records[:10])
        out["before"] = {name: leaked(r.payloads()) for name, r in recordings.items()}
        back = Transfer(two, *connect(two, one), size=64 * MB)
        run(["tc", "qdisc", "add", "dev", "h2-eth0", "clsact"], pid=two.pid)
        end = time.monotonic() + PATIENCE_S
        while not back.offload.aborted and time.monotonic() < end:
            time.sleep(0.005)
        out["aborted"] = back.offload.aborted
        for way in ("ingress", "egress"):
            run(["tc", "filter", "add", "dev", "h2-eth0", way, "protocol", "all", "prio", "1", "u32", "match",
                 "u32", "0", "0", "action", "mirred", "egress", "mirror", "dev", "m0"], pid=two.pid)
        for recording in recordings.values():
            recording.frames()
        pass_records(records[10:])
        frames = recordings["mirror"].frames()
        out["mirrored"] = sum(1 for f in frames if tcp.is_tcp(f)) > 0
        out["after"] = sum(f.count(CANARY) for f in frames)
        for name, install in (("rx", client.install_rx), ("tx", client.install_tx)):
            again = connect(two, one)
            try:
                on(two, partial(install, again[0], keys, 0))
                out[name] = 0
            except OSError as e:
                out[name] = e.errno
        back.finish()
        back.close()
        offload.close()
    return out


def _payloads(frames: list[bytes]) -> list[tuple[int, bytes]]:
    out = []
    for frame in frames:
        packet = tcp.parse_untrusted(frame)
        if packet.length and frame[26:30] == bytes((10, 0, 0, 1)):
            out.append((packet.seq, frame[packet.payload_at:packet.end]))
    return out


def _device_down(one: Any, two: Any) -> list[Any]:
    """The interface goes down and up again in a transfer: software goes on."""
    transfer = Transfer(one, *connect(one, two), size=4 * MB)
    device = transfer.offload.device
    for state in ("down", "up"):
        run(["ip", "link", "set", "dev", "h1-eth0", state], pid=one.pid)
    ok = transfer.finish()
    after = transfer.offload.device
    transfer.close()
    return [ok, device, after, counters(one)["tx_tls_fallback"] > 0]


def _program_exits(one: Any, two: Any, state: NicState) -> bool:
    """Whether all comes that a program has written that ends at once, before it is sent."""
    ours, theirs = connect(one, two)
    state.assign("delay=20ms")
    assert state.wait_applied()
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            transfer = Transfer(one, ours, theirs, 64 * RECORD)
            transfer._threads[1].join()
            os.write(writer, f"{transfer.sent} {transfer.keys.key.hex()} {transfer.keys.iv.hex()}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    ours.close()
    sent = os.read(reader, 1000).decode().split()
    os.waitpid(pid, 0)
    got = bytearray()
    with contextlib.suppress(OSError):
        while data := theirs.recv(MB):
            got += data
    theirs.close()
    state.reset()
    state.wait_applied()
    # What its thread had read before it ended is gone with it; the rest is no plaintext, and whole.
    return len(sent) == 3 and CANARY not in got


def killed() -> dict[str, Any]:
    """The NIC's process is killed in a transfer."""
    out: dict[str, Any] = {}
    with open_network(TwoHosts(("tap", "inline")), LinkOptions()) as net:
        one, two = net.hosts
        static_neighbours(one, two, 2)
        recordings = [Recording("h1-eth1", one), Recording("n-h1-eth0")]
        transfer = Transfer(one, *connect(one, two), size=64 * MB)
        state = NicState.open("h1-eth0", pid=one.pid)
        while state.counters()["tx_tls_encrypted_bytes"] < MB:
            time.sleep(0.001)
        os.kill(net.nic_pids(one)[0], signal.SIGKILL)
        end = time.monotonic() + PATIENCE_S
        while on(one, lambda: interface_exists("h1-eth0")) and time.monotonic() < end:
            time.sleep(0.005)
        out["interface"] = on(one, lambda: interface_exists("h1-eth0"))
        run(["ip", "addr", "add", f"{one.IP()}/24", "dev", "h1-eth1"], pid=one.pid)
        take_cable(one, two, 1)
        time.sleep(0.7)
        out["leaked"] = [leaked(r.payloads()) for r in recordings]
        with contextlib.suppress(OSError):
            transfer._ours.shutdown(socket.SHUT_RDWR)
            transfer._theirs.shutdown(socket.SHUT_RDWR)
        transfer.finish()
        out["ended"] = transfer.received[1].split(" ")[0]
        transfer.close()
    return out


def routes(policy: str, way: str, flips: str, seed: str) -> dict[str, Any]:
    """``flips`` changes of route at random instants of a transfer, between two NICs (``way`` nic) or to a plain
    interface (``plain``); ``open``: to that with the guard removed."""
    generator = random.Random(int(seed))
    out: dict[str, Any] = {}
    with open_network(TwoHosts(("tap", "tap", "inline")), LinkOptions()) as net:
        one, two = net.hosts
        static_neighbours(one, two, 3)
        other = 1 if way == "nic" else 2
        recordings = {"n-h1-eth0": Recording("n-h1-eth0"), "n-h1-eth1": Recording("n-h1-eth1"),
                      "h1-eth2": Recording("h1-eth2", one)}
        lost = dict.fromkeys(recordings, 0)
        bad = []
        count = int(flips)
        done = 0
        while done < count:
            take_cable(one, two, 0)
            # One that the first change ends is not to be over before.
            size = (48 if policy == "freebsd" and way == "plain" else 12) * MB
            transfer = Transfer(one, *connect(one, two), size=size, policy=policy)
            if way == "open":
                on(one, plaintext_guard.remove)
            number = 0
            while transfer.running() and done < count and number < 8 and not transfer.error:
                time.sleep(generator.uniform(0.002, 0.04))
                number += 1
                done += 1
                take_cable(one, two, other if number % 2 else 0)
            if not (policy == "freebsd" and way != "nic"):
                take_cable(one, two, 0)
            ok = transfer.finish()
            for name, recording in recordings.items():
                lost[name] += leaked(recording.payloads())
            if not ok:
                bad.append(transfer.error or transfer.received[1])
            with contextlib.suppress(OSError):
                transfer._ours.shutdown(socket.SHUT_RDWR)
            transfer.close()
        counted = [counters(one, f"h1-eth{n}") for n in (0, 1)]
        out.update(leaked=lost, bad=bad, flips=done)
        for key, name in (("dropped", "tx_tls_drop_bypass_req"), ("fallback", "tx_tls_fallback"),
                          ("resets", "ifnet_reset"), ("failed", "ifnet_reset_failed")):
            out[key] = sum(each[name] for each in counted)
    return out


PROGRAMS: dict[str, Callable[..., dict[str, Any]]] = {
    "receive": receive, "mirrored": mirrored,
    "basics": basics, "guard": guard, "offload": offload, "killed": killed, "routes": routes}


def main() -> None:
    go_inside()
    print(json.dumps(PROGRAMS[sys.argv[1]](*sys.argv[2:])))


if __name__ == "__main__":
    main()
