"""What kernel TLS counts, under the names of FreeBSD's ``kern.ipc.tls`` and of Linux's ``/proc/net/tls_stat``, and
its knobs. One object is one host's; gauges are 0 again when its last session has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from smtstack.errors import ConfigError

TX: Final = "tx"
RX: Final = "rx"
NONE: Final = "none"
SW: Final = "sw"
NIC: Final = "nic"
#: TCP_TLS_MODE_* of FreeBSD. NIC is what it calls IFNET; TOE (3) exists there, and in no stack here.
MODE_NUMBERS: Final = {NONE: 0, SW: 1, NIC: 2}
#: FreeBSD's words for modes and ciphers in the names of counters.
_MODE_NAMES: Final = {SW: "sw", NIC: "ifnet"}

#: What NICs count (``ifnet.reset`` ...) is in their own counters (:mod:`smtstack.nic.counters`); TOE, TLS 1.0's
#: CBC and tasks are none of ours: these stay 0.
FREEBSD_NAMES: Final = (
    *(f"stats.{name}" for name in (
        "threads", "offload_total", "enable_calls", "active", "corrupted_records", "failed_crypto",
        "sw_tx_inqueue", "sw_rx_inqueue", "sw_tx_pending", "switch_to_ifnet", "switch_to_sw", "switch_failed",
        "ifnet_disable_ok", "ifnet_disable_failed", "destroy_task")),
    *(f"{mode}.{cipher}" for mode in ("sw", "ifnet", "toe") for cipher in ("cbc", "gcm", "chacha20")),
    "tasks_active")
LINUX_NAMES: Final = (
    "TlsCurrTxSw", "TlsCurrRxSw", "TlsCurrTxDevice", "TlsCurrRxDevice", "TlsTxSw", "TlsRxSw", "TlsTxDevice",
    "TlsRxDevice", "TlsDecryptError", "TlsRxDeviceResync", "TlsDecryptRetry", "TlsRxNoPadViolation",
    "TlsTxRekeyOk", "TlsRxRekeyOk", "TlsTxRekeyError", "TlsRxRekeyError", "TlsRxRekeyReceived")
#: What must be 0 where no session is left.
GAUGES: Final = (
    "stats.active", "stats.sw_tx_inqueue", "stats.sw_rx_inqueue", "stats.sw_tx_pending", "tasks_active",
    *(name for name in FREEBSD_NAMES if name.startswith(("sw.", "ifnet.g", "ifnet.c"))),
    "TlsCurrTxSw", "TlsCurrRxSw", "TlsCurrTxDevice", "TlsCurrRxDevice")

#: ``kern.ipc.tls``: its knobs and what they are at first.
KNOBS: Final = {"enable": 1, "maxlen": 16_384, "cbc_enable": 1, "bind_threads": 0, "ifnet_max_rexmit_pct": 2,
                "ifnet.permitted": 1}
_LIMITS: Final = {"enable": (0, 1), "maxlen": (64, 16_384), "cbc_enable": (0, 1), "bind_threads": (0, 2),
                  "ifnet_max_rexmit_pct": (0, 100), "ifnet.permitted": (0, 1)}


def cipher_family(cipher: str) -> str:
    """``gcm``, ``cbc`` or ``chacha20``, as counters say it."""
    return "chacha20" if cipher.startswith("chacha20") else cipher.rpartition("-")[2]


class TlsStats:
    """Counters and knobs of one host."""

    __slots__ = ("counters", "knobs")

    def __init__(self, **knobs: int) -> None:
        self.counters: dict[str, int] = dict.fromkeys((*FREEBSD_NAMES, *LINUX_NAMES), 0)
        self.knobs: dict[str, int] = dict(KNOBS)
        for name, value in knobs.items():
            self.set_knob(name, value)

    def set_knob(self, name: str, value: int) -> None:
        """Set ``kern.ipc.tls.<name>``. Raises :class:`ConfigError` for a name or value that it does not take."""
        if name not in KNOBS:
            raise ConfigError(f"kern.ipc.tls has no knob {name!r}; there are {', '.join(KNOBS)}")
        low, high = _LIMITS[name]
        if not low <= value <= high:
            raise ConfigError(f"kern.ipc.tls.{name} is {low} to {high}, not {value}")
        self.knobs[name] = value

    def add(self, name: str, by: int = 1) -> None:
        """Count. KeyError for a name that is none."""
        self.counters[name] += by

    def opened(self, direction: str, mode: str, cipher: str, by: int = 1) -> None:
        """A session of this direction, mode and cipher began; ``by`` -1: ended."""
        counters = self.counters
        counters["stats.active"] += by
        counters[f"{_MODE_NAMES[mode]}.{cipher_family(cipher)}"] += by
        where = ("Tx" if direction == TX else "Rx") + ("Device" if mode == NIC else "Sw")
        counters[f"TlsCurr{where}"] += by
        if by > 0:
            counters["stats.offload_total"] += 1
            counters[f"Tls{where}"] += 1

    def gauges(self) -> dict[str, int]:
        """What counts things that exist now: all 0 where no session is left."""
        return {name: self.counters[name] for name in GAUGES}

    def sysctl(self) -> Iterator[str]:
        """Lines as ``sysctl kern.ipc.tls`` prints them."""
        for name in sorted(self.knobs):
            yield f"kern.ipc.tls.{name}: {self.knobs[name]}"
        for name in FREEBSD_NAMES:
            yield f"kern.ipc.tls.{name}: {self.counters[name]}"

    def tls_stat(self) -> Iterator[str]:
        """Lines as in ``/proc/net/tls_stat``."""
        for name in LINUX_NAMES:
            yield f"{name:<32}\t{self.counters[name]}"
