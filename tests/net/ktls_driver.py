"""Our kernel TLS between two hosts whose interfaces are NICs' (hosting ``tap``): what tests/net/test_ktls_nic.py runs
in a sandbox: ``python -m tests.net.ktls_driver SCENARIO [JSON]``; JSON on stdout.

The ends of a connection are forks of this process in the hosts' namespaces. A packet socket on the cable behind h1's
NIC sees what leaves it; streams are put together again before they are searched.
"""

from __future__ import annotations

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
from pathlib import Path
from random import Random
from typing import Any

from smtstack.crypto.stream_gcm import StreamKeys, seal_record
from smtstack.errors import BadPacket
from smtstack.io.namespaces import within
from smtstack.ktls.stats import TlsStats
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


def both_results(one: End, other: End) -> tuple[Any, Any]:
    """Of two ends; where both failed, of the second one first: it is the receiver who knows why."""
    try:
        first = one.result()
    except AssertionError as e:
        other.result()
        raise AssertionError(f"only one end failed: {e}") from None
    return first, other.result()


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
            key = packet.sport, packet.dport
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
    with tempfile.TemporaryDirectory(dir="/run") as folder:
        with open_network("star,2", LinkOptions(hosting="tap", **options), "bridge") as net:
            one, other = net.hosts
            made = Path(folder, "certs")
            credentials.make(made, "tls", {host.name: host.IP() for host in net.hosts})
            yield net, one, other, {host.name: made / host.name for host in net.hosts}


def context_of(folder: Path, suite: tuple[int, str, str]) -> Any:
    from smtstack.ktls_io.handshake import make_context

    version, _cipher, name = suite
    suites, ciphers = (name, "") if version == 0x0304 else ("", name)
    return make_context(str(folder / "cert.pem"), str(folder / "key.pem"), str(folder / "ca.pem"), (version, version),
                        ciphers, suites)


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

def transfer(asked: dict[str, Any]) -> dict[str, Any]:
    """``size`` bytes from h1 to h2, ours at both ends: sealed by h1's NIC, with ``receives`` opened by h2's; with
    ``switches`` that many changes of mode under way. ``plain``: over TCP without TLS, the control."""
    suite = SUITES[asked.get("suite", 0)]
    size, switches = asked["size"], asked.get("switches", 0)
    with two_hosts(**asked.get("link", {})) as (net, one, other, certs):
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
            with KtlsSocket.client(sock, context_of(certs[one.name], suite), nic=nic_port(asked), stats=stats) as end:
                assert end.txtls_mode == "nic", end.stats.counters
                tx = end.connection.tx
                assert tx is not None
                keys = {"key": tx.key.hex(), "iv": tx.iv.hex(), "number": end.connection.number,
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
                cut = end.connection.number
                return told(end, keys=keys, seconds=taken, places=places, records=cut - keys["number"])

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
    scenario = {"transfer": transfer}[sys.argv[1]]
    print(json.dumps(scenario(json.loads(sys.argv[2]) if len(sys.argv) > 2 else {})))


_ = (sendfile, PATIENCE)
if __name__ == "__main__":
    main()
