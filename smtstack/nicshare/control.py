"""What an endpoint does about its NIC's settings and counters: takes the ones, publishes the others."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Protocol

from smtstack.errors import ConfigError, SmtError
from smtstack.nic.device import NicConfig
from smtstack.nic.impairments import Impairments
from smtstack.nicshare.settings import Faults, Settings, TapSetting
from smtstack.nicshare.state import Port
from smtstack.nicshare.tap import Tap


class Device(Protocol):
    """What settings are made on: a device, as :class:`~smtstack.nic.device.SmartNic` is one."""

    context_limit: int
    """TLS contexts it may have at once."""

    @property
    def config(self) -> NicConfig:
        """What the hardware is like."""

    def features(self) -> dict[str, bool]:
        """Every feature and whether it is on."""

    def set_feature(self, name: str, on: bool) -> None:
        """Switch one of these."""

    def watch(self, tap: Tap | None) -> None:
        """Record all that passes; None: no longer."""


class Driver(Protocol):
    """What is set on its driver, as :class:`~smtstack.nic.driver.NicDriver` is one."""

    @property
    def nic(self) -> Device:
        """The device it drives."""

    def trim_contexts(self) -> None:
        """Give contexts back that are more than the device's limit."""

    def set_paths(self, paths: int) -> None:
        """Spread messages over that many paths."""


class NicControl:
    """Applies settings to a device and its driver. Without a ``port`` there is never anything to do.

    The packet loop sends and receives through :attr:`tx` and :attr:`rx`, and looks for others after
    :meth:`sync`.
    """

    def __init__(self, port: Port | None, driver: Driver, seed: int, tx: Impairments | None,
                 rx: Impairments | None) -> None:
        self._port = port
        self._driver = driver
        self._nic = driver.nic
        #: Differs from those of other endpoints, so that not all of them lose the same frames.
        self._seed = seed
        #: The endpoint's own impairments, where none are set.
        self._own = {"tx": tx, "rx": rx}
        self._faults: dict[str, Faults | None] = {"tx": None, "rx": None}
        #: Faults of impairments that were replaced.
        self._past: Counter[str] = Counter()
        self._tap: Tap | None = None
        self._tap_setting: TapSetting | None = None
        self._tap_errors = 0
        self._refused = 0
        #: Settings are to be looked at when this word is not ``seen``.
        self.generation: memoryview | array[int] = array("Q", [0]) if port is None else port.generation
        self.seen = 0
        #: Impairments of what leaves and what arrives.
        self.tx = tx
        self.rx = rx

    def sync(self, counters: dict[str, int]) -> None:
        """Take new settings, if any, and publish ``counters``."""
        if self._port is None:
            return
        if self.generation[0] != self.seen:
            self._take(self._port)
        if self._tap is not None:
            self._tap.flush()
        self._port.publish({**counters, **self.counters()})

    def counters(self) -> dict[str, int]:
        """What happened to frames and settings here."""
        hit = Counter(self._past)
        for impairments in {self.tx, self.rx, *self._own.values()}:
            if impairments is not None:
                hit += _faults(impairments)
        return {**{name: hit[name] for name in _HITS}, "settings_refused": self._refused,
                "tap_errors": self._tap_errors + (self._tap.errors if self._tap is not None else 0)}

    def _take(self, port: Port) -> None:
        try:
            found = port.settings()
        except ConfigError:
            # Nobody can mend that but who wrote it: say so, keep what is in force.
            self._refused += 1
            self.seen = self.generation[0]
            return
        if found is not None:
            self.seen, settings = found
            self._apply(settings)
            port.applied(self.seen, self._nic.features())

    def _apply(self, settings: Settings) -> None:
        nic = self._nic
        for name in nic.features():
            own = bool(getattr(nic.config, name.replace("-", "_")))
            nic.set_feature(name, settings.features.get(name, own))
        hardware = nic.config.max_contexts
        nic.context_limit = hardware if settings.max_contexts is None else min(hardware, settings.max_contexts)
        self._driver.trim_contexts()
        self._driver.set_paths(settings.paths or 1)
        self.tx = self._impairments("tx", settings.tx, self.tx)
        self.rx = self._impairments("rx", settings.rx, self.rx)
        if settings.tap != self._tap_setting:
            self._tap_setting = settings.tap
            self._close_tap()
            if settings.tap is not None:
                self._open_tap(settings.tap)

    def _impairments(self, direction: str, faults: Faults | None, now: Impairments | None) -> Impairments | None:
        if faults == self._faults[direction]:
            return now
        if self._faults[direction] is not None and now is not None:
            self._past += _faults(now)
        self._faults[direction] = faults
        if faults is None:
            return self._own[direction]
        return Impairments(faults.rates, faults.seed << 64 | self._seed << 1 | (direction == "rx"))

    def _open_tap(self, setting: TapSetting) -> None:
        try:
            self._tap = Tap(setting.path, setting.host_side)
            self._nic.watch(self._tap)
        except (OSError, SmtError):
            self._tap_errors += 1

    def _close_tap(self) -> None:
        self._nic.watch(None)
        if self._tap is not None:
            self._tap.close()
            self._tap_errors += self._tap.errors
            self._tap = None

    def close(self, counters: dict[str, int]) -> None:
        """Publish the last ``counters`` and leave the interface's file."""
        self._close_tap()
        if self._port is not None:
            self.generation = array("Q", [self.seen])
            port, self._port = self._port, None
            port.detach({**counters, **self.counters()})


_HITS = ("impaired_dropped", "impaired_duplicated", "impaired_reordered", "impaired_corrupted")


def _faults(impairments: Impairments) -> Counter[str]:
    return Counter({name: int(getattr(impairments, name.removeprefix("impaired_"))) for name in _HITS})
