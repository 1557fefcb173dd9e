"""A DNS server on a host, Debian's knotd: servers publish their tickets there, clients look them up.

It serves one zone from memory. Whoever has the TSIG key may change TXT records; all else is fixed.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from smtstack.errors import ConfigError, SmtError
from smtstack.io.namespaces import within
from smtstack.session_io.tsig_file import ALGORITHM, DNS_PORT, NAME_CHARACTERS, ZONE, TsigKey
from topo import sandbox
from topo.commands import die_with_parent, program

#: Seconds knotd gets to start or stop on a loaded machine.
_PATIENCE_S = 20.0
#: Seconds for it to answer one question, and between looks for its start.
_ANSWER_S = 0.2
_LOOK_S = 0.02
_CONFIG = """server:
    rundir: "{folder}"
    listen: {ip}@{port}
    udp-workers: 1
    tcp-workers: 1
    background-workers: 1
log:
  - target: stderr
    any: warning
database:
    storage: "{folder}"
key:
  - id: {key_name}
    algorithm: {algorithm}
    secret: {secret}
acl:
  - id: publish
    key: {key_name}
    action: update
    update-type: TXT
zone:
  - domain: {zone}
    storage: "{folder}"
    file: zone
    acl: publish
    zonefile-sync: -1
    zonefile-load: whole
    journal-content: none
"""
# The name server's name is how we know our server from another at the same address.
_ZONE_FILE = """$ORIGIN {zone}.
$TTL 60
@ SOA {mark} admin 1 3600 600 86400 0
@ NS {mark}
{mark} A {ip}
"""
_SOA, _IN = 6, 1
_RECURSION_DESIRED = 0x0100


class LocalHost:
    """Stands for a host of Mininet where there is none: the namespace we are in."""

    name = "this host"

    def __init__(self, ip: str) -> None:
        self._ip = ip

    def IP(self) -> str:
        """The host's address."""
        return self._ip

    def popen(self, argv: list[str], **options: Any) -> subprocess.Popen[Any]:
        """A process on it."""
        return subprocess.Popen(argv, **options)


class DnsServer:
    """knotd on ``host`` (of Mininet, or :class:`LocalHost`), at its address; ends with the ``with`` block.

    ``key``: as given to the servers that publish. Raises :class:`Unsupported` where knot is not installed.
    """

    def __init__(self, host: Any, key: TsigKey, zone: str = ZONE, port: int = DNS_PORT) -> None:
        if not zone or not set(zone) <= NAME_CHARACTERS:
            raise ConfigError(f"{zone!r} is no name of a zone in DNS")
        self._host = host
        self._key = key
        self._zone = zone.rstrip(".")
        #: Address and port, for those who ask.
        self.address: tuple[str, int] = (host.IP(), port)
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[Any] | None = None
        self._mark = f"ns-{secrets.token_hex(8)}"

    @property
    def pid(self) -> int | None:
        """The process number of knotd; None: it does not run."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self) -> None:
        """Start it; returns when it answers. Raises :class:`SmtError`."""
        knotd = program("knotd")
        # A sandbox has a /run of its own, which goes with it even if it is killed.
        self._folder = tempfile.TemporaryDirectory(prefix="smtnet-dns-", dir="/run" if sandbox.inside() else None)
        folder = Path(self._folder.name)
        try:
            self._write(folder)
            with (folder / "log").open("wb") as log:
                self._process = self._host.popen([knotd, "-c", str(folder / "conf")], stdin=subprocess.DEVNULL,
                                                 stdout=log, stderr=log, preexec_fn=die_with_parent)
            self._await(folder)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it, and remove what it wrote."""
        process = self._process
        if process is not None:
            process.terminate()
            try:
                process.wait(_PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __enter__(self) -> DnsServer:
        self.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def _write(self, folder: Path) -> None:
        ip, port = self.address
        config = folder / "conf"
        config.touch(mode=0o600)
        config.write_text(_CONFIG.format(folder=folder, ip=ip, port=port, zone=self._zone, key_name=self._key.name,
                                         algorithm=ALGORITHM, secret=self._key.secret_text()))
        (folder / "zone").write_text(_ZONE_FILE.format(zone=self._zone, mark=self._mark, ip=ip))

    def _await(self, folder: Path) -> None:
        process = self._process
        assert process is not None
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            # Of an address that is not the host's it merely warns, and waits for it to come.
            if process.poll() is not None or "nonlocal bind" in _said(folder):
                raise SmtError(f"{self._host.name}: knotd cannot listen at {self.address[0]}:{self.address[1]}: "
                               f"{_said(folder)}")
            # Its control socket says that the process is on the host by now.
            if (folder / "knot.sock").exists() and within(process.pid, self._answers):
                return
            time.sleep(_LOOK_S)
        raise SmtError(f"{self._host.name}: knotd does not answer at {self.address[0]}:{self.address[1]} within "
                       f"{_PATIENCE_S:.0f} s: {_said(folder)}")

    def _answers(self) -> bool:
        """Whether our server, and not another at this address, says what the zone's name server is."""
        number = secrets.randbits(16)
        labels = b"".join(bytes((len(part),)) + part.encode() for part in self._zone.split("."))
        question = (struct.pack("!6H", number, _RECURSION_DESIRED, 1, 0, 0, 0) + labels
                    + struct.pack("!BHH", 0, _SOA, _IN))
        with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.settimeout(_ANSWER_S)
            s.connect(self.address)
            s.send(question)
            answer = s.recv(4096)
            return answer[:2] == question[:2] and self._mark.encode() in answer
        return False


def _said(folder: Path) -> str:
    lines = (folder / "log").read_text(errors="replace").splitlines()
    # Each begins with the time.
    return "; ".join(line.partition(" ")[2] for line in lines[-3:]) or "it said nothing"
