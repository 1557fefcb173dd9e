"""Our kernel TLS between two hosts whose interfaces are NICs' (hosting ``tap``): what tests/net/test_ktls_nic.py
runs in a sandbox: ``python -m tests.net.ktls_driver SCENARIO [JSON]``; JSON on stdout.

The ends of a connection are forks of this process in the hosts' namespaces. A packet socket on the cable behind
h1's NIC sees what leaves it; streams are put together again before they are searched.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from smtstack.crypto.stream_gcm import StreamKeys, seal_record
from smtstack.errors import BadPacket
from smtstack.io.namespaces import within
from smtstack.ktls.stats import TlsStats
from smtstack.ktls_io.backends import default_backends
from smtstack.ktls_io.files import sendfile
from smtstack.ktls_io.nic_mode import TapNics
from smtstack.ktls_io.socket import KtlsSocket
from smtstack.wire import tcp
from tests.ktls_peers import SUITES, pattern
from tests.net.inside import go_inside
from topo.host import SmtHost
from topo.link_options import LinkOptions
from topo.network import SmtNet, open_network
from workloads.fleet import credentials

CANARY = b"*plaintext-here*"
PORT = 4433
PATIENCE = 60.0
_SO_RCVBUFFORCE = 33


def marked_pattern(size: int, seed: int = 1) -> bytes:
    """Bytes with a canary in every 256 of them."""
    block = bytearray(pattern(size, seed))
    for at in range(0, size - 16, 256):
        block[at:at + 16] = CANARY
    return bytes(block)


class End:
    """A fork of this process on a host."""

    def __init__(self, host: SmtHost, work: Callable[[], Any]) -> None:
        ours, theirs = os.pipe()
        self._answer = ours
        self.pid = os.fork()
        if self.pid:
            os.close(theirs)
            return
        code = 1
        try:
            with os.fdopen(theirs, "w") as out:
                try:
                    json.dump(within(host.pid, work), out)
                    code = 0
                except BaseException:
                    json.dump({"error": traceback.format_exc()}, out)
        finally:
            os._exit(code)

    def result(self) -> Any:
        with os.fdopen(self._answer) as answer:
            said = answer.read()
        os.waitpid(self.pid, 0)
        found = json.loads(said)
        assert not (isinstance(found, dict) and "error" in found), found["error"]
        return found


def both_results(*ends: End) -> list[Any]:
    """Of all ends; where some failed, why each of them did."""
    found, failures = [], []
    for end in ends:
        try:
            found.append(end.result())
        except AssertionError as e:
            failures.append(str(e))
    assert not failures, "\n".join(failures)
    return found


class Wire:
    """Everything that passes the cable behind the NIC of one host."""

    def __init__(self, interface: str) -> None:
        self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 256 << 20)
        self._sock.bind((interface, 3))
        self._sock.settimeout(0.05)
        self.frames: list[bytes] = []
        self._stopping = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            try:
                self.frames.append(self._sock.recv(1 << 17))
            except TimeoutError:
                if self._stopping:
                    return

    def stop(self) -> None:
        self._stopping = True
        self._thread.join()
        missed = struct.unpack("II", self._sock.getsockopt(263, 6, 8))[1]
        self._sock.close()
        assert not missed, f"the capture missed {missed} frames"

    def streams(self) -> dict[tuple[int, int], bytes]:
        """By (source port, destination port): the bytes of the stream, the last copy of each."""
        starts: dict[tuple[int, int], int] = {}
        out: dict[tuple[int, int], bytearray] = {}
        for frame in self.frames:
            try:
                packet = tcp.parse_untrusted(frame)
            except BadPacket:
                continue
            key: tuple[int, int] = struct.unpack_from("!HH", packet.flow, 8)
            if packet.flags & 2:
                starts[key] = packet.seq + 1 & 0xFFFFFFFF
            if not packet.length or key not in starts:
                continue
            stream = out.setdefault(key, bytearray())
            at = tcp.distance(starts[key], packet.seq)
            if at + packet.length > len(stream):
                stream += bytes(at + packet.length - len(stream))
            stream[at:at + packet.length] = frame[packet.payload_at:packet.end]
        return {key: bytes(stream) for key, stream in out.items()}

    def canaries(self) -> int:
        """In frames as they are, and in the streams."""
        whole = sum(frame.count(CANARY) for frame in self.frames)
        return whole + sum(stream.count(CANARY) for stream in self.streams().values())


@contextmanager
def two_hosts(**options: Any) -> Iterator[tuple[SmtNet, SmtHost, SmtHost, dict[str, Path]]]:
    links = LinkOptions(hosting="tap", **options)
    with tempfile.TemporaryDirectory(dir="/run") as folder, open_network("star,2", links, "bridge") as net:
        one, other = net.hosts
        made = Path(folder, "certs")
        credentials.make(made, "tls", {host.name: host.IP() for host in net.hosts})
        yield net, one, other, {host.name: made / host.name for host in net.hosts}


def context_of(folder: Path, suite: tuple[int, str, str]) -> Any:
    from smtstack.ktls_io.handshake import make_context

    version, _cipher, name = suite
    suites, ciphers = (name, "") if version == 0x0304 else ("", name)
    cert, key, ca = (str(folder / f"{name}.pem") for name in ("cert", "key", "ca"))
    return make_context(cert, key, ca, (version, version), ciphers, suites)


def theirs(folder: Path, server: bool) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    context.load_verify_locations(folder / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def connected(ip: str) -> socket.socket:
    """To whoever listens there, sooner or later."""
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection((ip, PORT), PATIENCE)
        except ConnectionRefusedError:
            assert time.monotonic() < end
            time.sleep(0.01)


def accepted() -> socket.socket:
    with socket.create_server(("", PORT)) as listener:
        listener.settimeout(PATIENCE)
        sock, _address = listener.accept()
    sock.settimeout(PATIENCE)
    return sock


def digest_of(read: Callable[[int], bytes]) -> dict[str, Any]:
    digest, count = hashlib.sha256(), 0
    while data := read(1 << 18):
        digest.update(data)
        count += len(data)
    return {"bytes": count, "sha256": digest.hexdigest()}


def nic_port(asked: dict[str, Any]) -> TapNics:
    return TapNics(asked.get("policy", "linux"), asked.get("resync", "dump"), asked.get("receives", False),
                   asked.get("rx_resync", "scan"))


def told(end: KtlsSocket, **more: Any) -> dict[str, Any]:
    flow = end._sender.flow
    return {"txtls_mode": end.txtls_mode, "rxtls_mode": end.rxtls_mode, "copies": dict(end.copies),
            "counters": {name: value for name, value in end.stats.counters.items() if value},
            "flow": None if flow is None else flow.offload.device, **more}  # type: ignore[attr-defined]


# -- scenarios -----------------------------------------------------------------------------------------------

def transfers(asked: dict[str, Any]) -> list[dict[str, Any]]:
    """One after the other over a ``link``."""
    with two_hosts(**asked.get("link", {})) as (net, one, other, certs):
        return [transfer(run, net, one, other, certs) for run in asked["runs"]]


def transfer(asked: dict[str, Any], net: SmtNet, one: SmtHost, other: SmtHost,
             certs: dict[str, Path]) -> dict[str, Any]:
    """``size`` bytes from h1 to h2, ours at both ends: sealed by h1's NIC, with ``receives`` opened by h2's; with
    ``switches`` that many changes of mode under way. ``plain``: over TCP without TLS, the control."""
    suite = SUITES[asked.get("suite", 0)]
    size, switches = asked["size"], asked.get("switches", 0)
    data = marked_pattern(size)

    def serve() -> dict[str, Any]:
        sock = accepted()
        if asked.get("plain"):
            with sock:
                return digest_of(sock.recv)
        nic = nic_port({**asked, "receives": True}) if asked.get("receives") else None
        with KtlsSocket.server(sock, context_of(certs[other.name], suite), nic=nic) as end:
            got = digest_of(end.recv)
            return {**got, **told(end), "close_notify": end.close_notify}

    def send() -> dict[str, Any]:
        sock = connected(other.IP())
        if asked.get("plain"):
            with sock:
                sock.sendall(data)
            return {}
        stats = TlsStats(ifnet_max_rexmit_pct=asked.get("rexmit_pct", 100))
        context = context_of(certs[one.name], suite)
        with KtlsSocket.client(sock, context, nic=nic_port(asked), stats=stats) as end:
            tx = end.connection.tx
            assert tx is not None
            first = end.connection.number
            keys = {"key": tx.key.hex(), "iv": tx.iv.hex(), "number": first,
                    "explicit": end.connection.explicit_nonce}
            begin = time.perf_counter()
            rng = Random(1)
            places = sorted(rng.sample(range(1, size), switches))
            for at, to in zip([0, *places], [*places, size], strict=True):
                end.send(memoryview(data)[at:to])
                if to != size:
                    end.txtls_mode = "sw" if end.txtls_mode == "nic" else "nic"
            end.shutdown()
            end.recv()
            taken = time.perf_counter() - begin
            return told(end, keys=keys, seconds=taken, places=places, records=end.connection.number - first)

    interface = f"n-{one.defaultIntf().name}"
    wire = Wire(interface) if asked.get("capture", True) else None
    serving, sending = End(other, serve), End(one, send)
    sent, got = both_results(sending, serving)
    nics = nic_counters(net)
    out: dict[str, Any] = {"sent": sent, "got": got, "sha256": hashlib.sha256(data).hexdigest(), "nics": nics}
    if wire is not None:
        wire.stop()
        out["canaries"] = wire.canaries()
        if "keys" in sent:
            out["equal"] = equal_to_software(wire, data, sent, suite)
    return out


def equal_to_software(wire: Wire, data: bytes, sent: dict[str, Any], suite: tuple[int, str, str]) -> bool:
    """Whether h1's stream ends with what software would have made of the data."""
    keys = StreamKeys(suite[0], suite[1], bytes.fromhex(sent["keys"]["key"]), bytes.fromhex(sent["keys"]["iv"]))
    stream = next(stream for (_src, dst), stream in wire.streams().items() if dst == PORT)
    expected, number, nonce = [], sent["keys"]["number"], sent["keys"]["explicit"]
    for at, to in zip([0, *sent["places"]], [*sent["places"], len(data)], strict=True):
        for n in range(at, to, 16_384):
            expected.append(seal_record(keys, number, 23, data[n:min(n + 16_384, to)], nonce))
            number, nonce = number + 1, nonce + 1
    expected.append(seal_record(keys, number, 21, b"\1\0", nonce))
    whole = b"".join(expected)
    return stream[-len(whole):] == whole


def closing(asked: dict[str, Any]) -> dict[str, Any]:
    """Written and closed at once, over a slow link: all of it arrives, sealed, and the NIC forgets the flow."""
    with two_hosts(delay_us=20_000, **asked.get("link", {})) as (net, one, other, certs):
        data = marked_pattern(asked["size"])

        def serve() -> dict[str, Any]:
            with KtlsSocket.server(accepted(), context_of(certs[other.name], SUITES[0])) as end:
                return {**digest_of(end.recv), "close_notify": end.close_notify}

        def send() -> dict[str, Any]:
            with KtlsSocket.client(connected(other.IP()), context_of(certs[one.name], SUITES[0]),
                                   nic=nic_port(asked)) as end:
                assert end.txtls_mode == "nic"
                end.send(data)
                flow = end._sender.flow
                assert flow is not None
                return {"under way": len(flow.offload.records)}  # type: ignore[attr-defined]

        wire = Wire(f"n-{one.defaultIntf().name}")
        sending, serving = End(one, send), End(other, serve)
        sent, got = both_results(sending, serving)
        wire.stop()
        # Forgotten a moment after the last acknowledgement.
        end = time.monotonic() + PATIENCE
        while (nics := nic_counters(net))["h1"].get("tx_tls_del") != nics["h1"]["tx_tls_ctx"]:
            assert time.monotonic() < end, nics
        return {"sent": sent, "got": got, "sha256": hashlib.sha256(data).hexdigest(), "canaries": wire.canaries()}


def peers(asked: dict[str, Any]) -> dict[str, Any]:
    """Ours on h1, its NIC sealing and opening; at the other host Python's ssl, openssl and curl."""
    data, said = marked_pattern(asked["size"]), {}
    how = {**asked, "receives": True}
    with two_hosts() as (_net, one, other, certs):
        wire = Wire(f"n-{one.defaultIntf().name}")

        def ours(role: str, suite: tuple[int, str, str]) -> Any:
            context, nic = context_of(certs[one.name], suite), nic_port(how)
            end = (KtlsSocket.server(accepted(), context, nic=nic) if role == "server"
                   else KtlsSocket.client(connected(other.IP()), context, nic=nic))
            with end:
                modes = [end.txtls_mode, end.rxtls_mode]
                end.send(data)
                got = bytearray()
                while len(got) < len(data):
                    got += end.recv()
                end.shutdown()
                end.recv()
                return [*modes, bytes(got) == data, sum(end.stats.counters[name] for name in (
                    "TlsDecryptError", "stats.switch_failed"))]

        def python_ssl(role: str) -> Any:
            sock = connected(one.IP()) if role == "client" else accepted()
            server = role == "server"
            with theirs(certs[other.name], server).wrap_socket(sock, server_side=server) as end:
                got = bytearray()
                while len(got) < len(data):
                    got += end.recv(1 << 16)
                end.sendall(got)
                end.recv(1)
                return bytes(got) == data

        for suite in (SUITES[0], SUITES[3]):
            for role, opposite in (("client", "server"), ("server", "client")):
                here, there = End(one, partial(ours, role, suite)), End(other, partial(python_ssl, opposite))
                said[f"{suite[2]}, we are the {role}"] = both_results(here, there)

        def https() -> Any:
            with KtlsSocket.server(accepted(), context_of(certs[one.name], SUITES[0]), nic=nic_port(how)) as end:
                asked_for = bytearray()
                while b"\r\n\r\n" not in asked_for:
                    asked_for += end.recv()
                end.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(data))
                end.send(data)
                return end.txtls_mode

        def curl() -> Any:
            folder = certs[other.name]
            command = ["curl", "-sS", "--retry", "20", "--retry-connrefused", "--retry-delay", "1", "--cacert",
                       str(folder / "ca.pem"), "--cert", str(folder / "cert.pem"), "--key",
                       str(folder / "key.pem"), f"https://{one.IP()}:{PORT}/"]
            return subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE).stdout == data

        here = End(one, https)
        time.sleep(0.3)  # curl tries again a second later at the earliest
        said["curl"] = both_results(here, End(other, curl))

        def s_server() -> Any:
            folder = certs[other.name]
            with subprocess.Popen(["openssl", "s_server", "-accept", str(PORT), "-cert", str(folder / "cert.pem"),
                                   "-key", str(folder / "key.pem"), "-rev"], stdin=subprocess.PIPE,
                                  stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
                assert server.stdout is not None
                while b"CONNECTION CLOSED" not in server.stdout.readline():
                    pass
                server.kill()
                return True

        def to_openssl() -> Any:
            with KtlsSocket.client(connected(other.IP()), context_of(certs[one.name], SUITES[1]),
                                   nic=nic_port(how)) as end:
                end.send(b"reverse this\n")
                return [end.txtls_mode, end.recv().decode()]

        there = End(other, s_server)
        said["openssl s_server"] = both_results(End(one, to_openssl), there)
        wire.stop()
        return {"said": said, "canaries": wire.canaries()}


def churn(asked: dict[str, Any]) -> dict[str, Any]:
    """Connections one after the other, each with a record each way: what is left of them, here and in the NICs."""
    count = asked["count"]
    with two_hosts() as (net, one, other, certs):
        pids = net.nic_pids(one)

        def descriptors(pid: int) -> int:
            return len(os.listdir(f"/proc/{pid}/fd"))

        def serve() -> int:
            context, stats = context_of(certs[other.name], SUITES[0]), TlsStats()
            backends = default_backends()
            with socket.create_server(("", PORT), backlog=64) as listener:
                for _ in range(count):
                    sock, _address = listener.accept()
                    sock.settimeout(PATIENCE)
                    with KtlsSocket.server(sock, context, stats=stats, backends=backends) as end:
                        end.send(end.recv()[::-1])
            return sum(stats.gauges().values())

        def call() -> dict[str, Any]:
            context, stats = context_of(certs[one.name], SUITES[0]), TlsStats()
            backends, nic = default_backends(nic=True), nic_port({**asked, "receives": True})
            before, modes, left = descriptors(os.getpid()), set(), 0
            for _ in range(count):
                with KtlsSocket.client(connected(other.IP()), context, stats=stats, backends=backends,
                                       nic=nic) as end:
                    modes.add((end.txtls_mode, end.rxtls_mode))
                    end.send(b"there and back")
                    assert end.recv() == b"kcab dna ereht"
                left += any(stats.gauges().values())
            return {"modes": sorted(modes), "left": left, "descriptors": descriptors(os.getpid()) - before,
                    "sessions": stats.counters["stats.offload_total"]}

        before = [descriptors(pid) for pid in pids]
        sent, left = both_results(End(one, call), End(other, serve))
        end = time.monotonic() + PATIENCE
        while ((nics := nic_counters(net))["h1"].get("tx_tls_del") != count
               or [descriptors(pid) for pid in pids] != before):
            assert time.monotonic() < end, (nics, before, [descriptors(pid) for pid in pids])
        return {**sent, "server left": left, "nic": nics["h1"]}


def hazard(asked: dict[str, Any]) -> dict[str, Any]:
    """A file changes while it is under way, over a link that loses: what the receiver finds, with copies and with
    zero-copy. A file of one record after the other, each of one letter."""
    size, out = asked["size"], {}
    for zerocopy in (False, True):
        with two_hosts(delay_us=5_000, loss=2) as (_net, one, other, certs), \
                tempfile.NamedTemporaryFile(dir="/run") as file:
            file.write(b"old." * (size // 4))
            file.flush()

            def serve(certs: dict[str, Path] = certs, other: SmtHost = other) -> dict[str, Any]:
                count, bad, old = 0, 0, True
                with KtlsSocket.server(accepted(), context_of(certs[other.name], SUITES[0]), rules="linux") as end:
                    try:
                        while data := end.recv():
                            count += len(data)
                            old = old and data == (b"old." * (len(data) // 4 + 1))[:len(data)]
                    except OSError as e:
                        bad = e.errno or -1
                return {"bytes": count, "errno": bad, "only old": old}

            def send(certs: dict[str, Path] = certs, one: SmtHost = one, zerocopy: bool = zerocopy,
                     file: Any = file, ip: str = other.IP()) -> dict[str, Any]:
                with KtlsSocket.client(connected(ip), context_of(certs[one.name], SUITES[0]),
                                       nic=nic_port(asked)) as end:
                    end.stats.set_knob("ifnet_max_rexmit_pct", 100)
                    end.setsockopt(282, 3, int(zerocopy))
                    with contextlib.suppress(OSError):
                        for at in range(0, size, 16_384):
                            sendfile(end, file.fileno(), at, 16_384)
                            # What was sent just now: somebody writes there.
                            os.pwrite(file.fileno(), b"NEW!" * 4_096, at)
                        end.shutdown()
                        end.recv()
                    return told(end)

            there = End(other, serve)
            sent, got = both_results(End(one, send), there)
            out["zerocopy" if zerocopy else "copies"] = {**got, "copied": sent["copies"]}
    return out


def nic_counters(net: SmtNet) -> dict[str, dict[str, int]]:
    """What the hosts' NICs counted, of TLS and what was lost."""
    time.sleep(0.1)
    out = {}
    for host in net.hosts:
        said = subprocess.run([sys.executable, "-m", "workloads", "nic", host.defaultIntf().name, "--pid",
                               str(host.pid), "--json"], capture_output=True, text=True, check=False)
        assert said.returncode == 0, said.stderr
        out[host.name] = {name: value for name, value in json.loads(said.stdout)["counters"].items() if value}
    return out


def main() -> None:
    go_inside()
    scenario = {"transfers": transfers, "closing": closing, "peers": peers, "hazard": hazard,
                "churn": churn}[sys.argv[1]]
    print(json.dumps(scenario(json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})))


if __name__ == "__main__":
    main()
