"""Captures of a run: every host's interface, and what they prove: authentic records, no nonce twice, no canary."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from smtstack.capture.decode import Decoder
from smtstack.capture.files import CaptureFile
from smtstack.capture.pcapfile import Reader
from smtstack.capture.reading import load_keylog, read_into
from smtstack.crypto.keys import KeyStore
from smtstack.io import key_file
from topo.host import SmtHost
from topo.network import SmtNet
from topo.running import Program, finish, python_program
from workloads.fleet.fleet import Fleet
from workloads.transports.table import TABLE


class Captures:
    """Records all hosts' interfaces while it is entered, into ``folder/<host>.pcap`` (for root alone)."""

    def __init__(self, net: SmtNet, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._hosts: list[SmtHost] = net.hosts
        self._running: list[Program] = []
        self.frames = 0
        self.missed = 0

    def path(self, host: SmtHost) -> Path:
        """Where a host's frames are."""
        return self._folder / f"{host.name}.pcap"

    def __enter__(self) -> Captures:
        try:
            for host in self._hosts:
                interface = str(host.defaultIntf())
                self._running.append(Program(
                    host, f"recording of {interface}",
                    python_program("topo.sniffer", interface, str(self.path(host))),
                    self._folder / f"{host.name}.log"))
                self._running[-1].wait_for("sniffing")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the recording; ``frames`` and ``missed`` are known then."""
        for program in self._running:
            program.process.terminate()
        for program in self._running:
            said = finish(program.process)
            if program.process.returncode == 0:
                counts = json.loads(said)
                self.frames += counts["recorded"]
                self.missed += counts["missed"]
            program.log.unlink()
        self._running = []

    def judge(self, fleet: Fleet, canary: bytes) -> dict[str, Any]:
        """What the captures of a fleet that kept its keys hold. Each host's file is verified on its own."""
        transport = fleet.setup.transport
        total: dict[str, Any] = {"frames": self.frames, "missed": self.missed, "encrypted": fleet.setup.encrypted,
                                 "canary_frames": 0}
        for host in self._hosts:
            if TABLE[transport].packets:
                decoder = Decoder(transport, _keys_of(fleet, host))
                read_into(decoder, CaptureFile(self.path(host)))
                result = dataclasses.asdict(decoder.result())
                for field in ("records_ok", "records_bad", "nonce_reuse", "messages", "messages_complete",
                             "retransmitted", "bad_packets", "handshake_packets"):
                    total[field] = total.get(field, 0) + result[field]
            if canary:
                with self.path(host).open("rb") as f:
                    total["canary_frames"] += sum(canary in c.frame for c in Reader(f).frames_untrusted())
        return total


def _keys_of(fleet: Fleet, host: SmtHost) -> KeyStore:
    """What opens a host's capture."""
    transport = fleet.setup.transport
    if TABLE[transport].sessions:
        # A host that had no sessions wrote none down.
        return load_keylog(*(path for path in [fleet.keylog(host)] if path.exists()))
    return key_file.load(fleet.key_options(host.name)[1] if TABLE[transport].keyed else "demo", transport)
