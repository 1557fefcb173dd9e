"""Captures of a run: every host's interface, and what they prove: authentic records, no nonce twice, no canary."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from smtstack.capture.decode import Decoder
from smtstack.capture.files import CaptureFile
from smtstack.capture.pcapfile import Reader
from smtstack.capture.reading import load_keylog, read_into
from smtstack.crypto.keys import KeyStore
from smtstack.errors import PeerError
from smtstack.io import key_file
from topo.host import SmtHost
from topo.network import SmtNet
from workloads.fleet.fleet import Fleet
from workloads.transports import PACKET_TRANSPORTS

_PATIENCE_S = 60.0


class Captures:
    """Records all hosts' interfaces while it is entered, into ``folder/<host>.pcap`` (for root alone)."""

    def __init__(self, net: SmtNet, folder: Path) -> None:
        self._folder = folder
        folder.mkdir()
        self._hosts: list[SmtHost] = net.hosts
        self._running: list[tuple[SmtHost, subprocess.Popen[str]]] = []
        self._stack = ExitStack()
        self.frames = 0
        self.missed = 0

    def path(self, host: SmtHost) -> Path:
        """Where a host's frames are."""
        return self._folder / f"{host.name}.pcap"

    def __enter__(self) -> Captures:
        try:
            for host in self._hosts:
                log = self._folder / f"{host.name}.log"
                errors = self._stack.enter_context(log.open("w"))
                process = host.python("topo.sniffer", str(host.defaultIntf()), str(self.path(host)), text=True,
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
                self._running.append((host, process))
                end = time.monotonic() + _PATIENCE_S
                while "sniffing" not in log.read_text():
                    if process.poll() is not None or time.monotonic() > end:
                        said = log.read_text()[-200:]
                        raise PeerError(f"{host.name}: cannot record {host.defaultIntf()}: {said}")
                    time.sleep(0.005)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End the recording; ``frames`` and ``missed`` are known then."""
        for _host, process in self._running:
            process.terminate()
        for host, process in self._running:
            said, _errors = process.communicate(timeout=_PATIENCE_S)
            if process.returncode == 0:
                counts = json.loads(said)
                self.frames += counts["recorded"]
                self.missed += counts["missed"]
            (self._folder / f"{host.name}.log").unlink()
        self._running = []
        self._stack.close()

    def judge(self, fleet: Fleet, canary: bytes) -> dict[str, Any]:
        """What the captures of a fleet that kept its keys hold. Each host's file is verified on its own."""
        transport = fleet.setup.transport
        total: dict[str, Any] = {"frames": self.frames, "missed": self.missed, "canary_frames": 0}
        for host in self._hosts:
            if transport in PACKET_TRANSPORTS:
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
    if transport == "smt":
        # A host that had no sessions wrote none down.
        return load_keylog(*(path for path in [fleet.keylog(host)] if path.exists()))
    return key_file.load(fleet.key_options(host.name)[1] if transport == "linux" else "demo", transport)
