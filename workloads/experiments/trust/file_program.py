"""Encrypts a file in blocks, as MCrypt does for RAKIS, reading and writing by some interface::

    python -m workloads.experiments.trust.file_program INTERFACE FOLDER BLOCK COUNT EXIT_NS

``FOLDER/plain`` becomes ``FOLDER/sealed``, each block sealed on its own with AES-256-GCM, its number being the
nonce; what is in there is read back and opened afterwards. Says on stdout, in JSON, how long it took. Who is not
native is under a filter meanwhile that ends it with its first network system call.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from smtstack.io import seccomp
from smtstack.ringio.client import Proxies
from smtstack.ringio.files import ProxyFile
from workloads.experiments.trust.interfaces import EXIT, MODELLED, NATIVE, UNCHECKED
from workloads.fleet.programs import run_on_host

_TAG: int = 16


class _File(Protocol):
    def pread(self, size: int, offset: int) -> bytes:
        """Bytes from an offset on."""

    def pwrite(self, data: bytes, offset: int) -> int:
        """Bytes that were written."""

    def close(self) -> None:
        """Close it."""


class _Native:
    """A file by system calls of our own."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)

    def pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._fd, size, offset)

    def pwrite(self, data: bytes, offset: int) -> int:
        return os.pwrite(self._fd, data, offset)

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def _files(interface: str, folder: Path, exit_ns: int) -> Iterator[tuple[_File, _File, Proxies | None]]:
    names = folder / "plain", folder / "sealed"
    if interface == NATIVE:
        plain, sealed = map(_Native, names)
        yield plain, sealed, None
        return
    with Proxies([folder], certified=interface != UNCHECKED, exits=interface in (EXIT, MODELLED),
                 exit_ns=exit_ns) as proxies:
        one, two = (ProxyFile(proxies.rings[0], name) for name in names)
        seccomp.guard(kill=True)
        yield one, two, proxies


def _read() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="file")
    parser.add_argument("interface")
    parser.add_argument("folder", type=Path)
    parser.add_argument("block", type=int)
    parser.add_argument("count", type=int)
    parser.add_argument("exit_ns", type=int)
    return parser.parse_args()


def _work(args: argparse.Namespace) -> None:
    key = AESGCM(os.urandom(32))
    block, count = args.block, args.count
    with _files(args.interface, args.folder, args.exit_ns) as (plain, sealed, proxies):
        start, busy = time.perf_counter_ns(), time.process_time()
        for number in range(count):
            data = plain.pread(block, number * block)
            out = key.encrypt(number.to_bytes(12, "big"), data, None)
            sealed.pwrite(out, number * (block + _TAG))
        took, busy = time.perf_counter_ns() - start, time.process_time() - busy
        wrong = 0
        for number in range(count):
            out = sealed.pread(block + _TAG, number * (block + _TAG))
            data = plain.pread(block, number * block)
            wrong += len(data) != block or key.decrypt(number.to_bytes(12, "big"), out, None) != data
        told = {"s": took / 1e9, "cpu_s": busy, "wrong": wrong, "guarded": seccomp.guarded(),
                "refused": 0 if proxies is None else proxies.refused(),
                "backing": "" if proxies is None else proxies.backing}
        os.write(1, json.dumps(told).encode() + b"\n")


if __name__ == "__main__":
    run_on_host(_read, _work)
