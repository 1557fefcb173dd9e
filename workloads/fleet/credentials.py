"""Throw-away credentials of one run: an authority with a certificate for every host, or a key file.

Each host gets a folder of its own with what is its own only. The authority's private key is never written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from smtstack.errors import ConfigError
from smtstack.io import key_file
from workloads.fleet import authority as ca
from workloads.transports.table import TABLE
from workloads.transports.tls import OPENSSL_CONF

_KEYS = "run.keys"


@dataclass(frozen=True, slots=True)
class Credentials:
    """Where each host's credentials are, and the options that name them."""

    folder: Path
    transport: str

    def args(self, host: str) -> list[str]:
        """Options of ``smtnet serve`` and ``call`` on that host: the same, both ends prove who they are."""
        if TABLE[self.transport].certified:
            return ["--certs", str(self.folder / host)]
        if TABLE[self.transport].keyed:
            return ["--keys", str(self.folder / host / _KEYS)]
        return []

    def environment(self, host: str) -> dict[str, str]:
        """What that host's processes need in their environment beyond what they have."""
        if TABLE[self.transport].certified:
            return {"OPENSSL_CONF": str(self.folder / host / OPENSSL_CONF)}
        return {}


def make(folder: Path, transport: str, hosts: dict[str, str]) -> Credentials:
    """Fresh credentials for ``hosts`` (name: address) in ``folder``, which is made, readable by its owner only.

    Raises :class:`ConfigError` if the folder is there already or cannot be made.
    """
    folder = folder.absolute()
    if TABLE[transport].certified:
        ca.make_folder(folder, hosts)
        return Credentials(folder, transport)
    try:
        folder.mkdir(mode=0o700, parents=True)
        if TABLE[transport].keyed:
            _make_keys(folder, hosts)
    except FileExistsError:
        raise ConfigError(f"{folder} is there already; keys are never overwritten: "
                          "remove it or name another folder") from None
    except OSError as e:
        raise ConfigError(f"{folder}: {e.strerror}") from None
    return Credentials(folder, transport)


def _make_keys(folder: Path, hosts: dict[str, str]) -> None:
    """The kernel module's keys are the same for everybody."""
    content = key_file.generate([])
    del content["pairs"]
    for name in hosts:
        (folder / name).mkdir(mode=0o700)
        key_file.write_key_file(folder / name / _KEYS, content)
