"""What can be set on a smart NIC from outside, as values, as text (``loss=1%``) and as bytes."""

from __future__ import annotations

import dataclasses
import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from smtstack.errors import ConfigError
from smtstack.nic.device import ALL_FEATURES, NicConfig
from smtstack.nic.impairments import ImpairmentRates
from smtstack.quantities import FRACTION, MICROSECONDS
from smtstack.wire.ethernet import MAX_PATHS

#: Names people use, and what they mean.
_ALIASES = {"offload": "tls-hw-tx-offload", "drop": "loss", "duplication": "duplicate", "corruption": "corrupt"}
#: Impairment words and the fields of ImpairmentRates.
_SHARES = {"loss": "drop", "duplicate": "duplicate", "reorder": "reorder", "corrupt": "corrupt"}
_TIMES = {"delay": "delay_ns", "jitter": "jitter_ns", "reorder-delay": "reorder_ns"}
_NUMBERS = ("max-contexts", "queues", "paths")
#: Everything :meth:`Settings.assign` knows, for error texts.
NAMES = (*ALL_FEATURES, *_NUMBERS, *_SHARES, *_TIMES, "seed", "tx", "rx")
MAX_QUEUES = 64
DIRECTIONS = ("tx", "rx")
_DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Faults:
    """Impairments of one direction. ``seed`` and the endpoint's address make the sequence of faults."""

    rates: ImpairmentRates = field(default_factory=ImpairmentRates)
    seed: int = 1


@dataclass(frozen=True, slots=True)
class TapSetting:
    """Where the device's packets are recorded."""

    path: str
    host_side: bool = False
    """What the driver posts is captured, too: with TLS offload that is plaintext."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What overrides the endpoints' own configuration; an empty one overrides nothing."""

    features: Mapping[str, bool] = field(default_factory=dict)
    """Features forced on or off, by ethtool name."""
    max_contexts: int | None = None
    """Limit on TLS contexts of each endpoint, at most what the hardware has."""
    queues: int | None = None
    """TX queues, of sockets opened from now on."""
    paths: int | None = None
    """Paths that the messages to one host are spread over, each with a destination MAC of its own; None: one,
    under the host's plain MAC. Taken while traffic runs: messages under way may then change their path."""
    tx: Faults | None = None
    """Impairments of what leaves; None: the endpoint's own."""
    rx: Faults | None = None
    """What happens to frames that arrive."""
    tap: TapSetting | None = None

    def __post_init__(self) -> None:
        for name, on in self.features.items():
            if name not in ALL_FEATURES:
                raise _unknown(name)
            if not isinstance(on, bool):
                raise ConfigError(f"{name} is on or off, not {on!r}")
        if self.max_contexts is not None and not 0 <= self.max_contexts < 1 << 32:
            raise ConfigError(f"max-contexts is {self.max_contexts}; a number from 0")
        if self.queues is not None and not 1 <= self.queues <= MAX_QUEUES:
            raise ConfigError(f"queues is {self.queues}; 1 to {MAX_QUEUES}")
        if self.paths is not None and not 1 <= self.paths <= MAX_PATHS:
            raise ConfigError(f"paths is {self.paths}; 1 to {MAX_PATHS}")

    def assign(self, text: str) -> Settings:
        """``settings`` with one more, as ``tso=off``, ``loss=1%`` (what leaves), ``rx.loss=1%``.

        The value ``default`` gives a setting back to the endpoints. Raises :class:`ConfigError`.
        """
        name, equals, value = text.partition("=")
        name, value = name.strip().lower(), value.strip()
        if not equals or not value:
            raise ConfigError(f"{text!r} is no NAME=VALUE, as tso=off or loss=1%")
        direction, dot, rest = name.partition(".")
        if not dot:
            direction, rest = "tx", name
        elif direction not in DIRECTIONS:
            raise ConfigError(f"{name!r}: before the dot stands tx (what leaves) or rx (what arrives)")
        rest = _ALIASES.get(rest, rest)
        if rest in _SHARES or rest in _TIMES or rest == "seed":
            return self._assign_fault(direction, rest, value)
        if dot or rest not in NAMES:
            raise _unknown(name)
        if rest in DIRECTIONS:
            if value.lower() != _DEFAULT:
                raise ConfigError(f"{rest}=default removes its impairments; set one as {rest}.loss=1%")
            return self._with(rest, None)
        if rest in _NUMBERS:
            number = None if value.lower() == _DEFAULT else _whole(rest, value)
            return self._with(rest.replace("-", "_"), number)
        return self.with_feature(rest, parse_switch(rest, value))

    def with_feature(self, name: str, on: bool | None) -> Settings:
        """With a feature forced on or off; None: as the endpoints configured it."""
        features = {n: v for n, v in self.features.items() if n != name}
        if name not in ALL_FEATURES:
            raise _unknown(name)
        return dataclasses.replace(self, features=features if on is None else {**features, name: on})

    def _assign_fault(self, direction: str, name: str, value: str) -> Settings:
        before: Faults | None = getattr(self, direction)
        faults = before or Faults()
        if name == "seed":
            faults = dataclasses.replace(faults, seed=_whole(name, value))
        else:
            fresh = ImpairmentRates()
            target = _SHARES.get(name) or _TIMES[name]
            amount: Any
            if value.lower() == _DEFAULT:
                amount = getattr(fresh, target)
            else:
                amount = (FRACTION.read(name, value) if name in _SHARES
                          else round(MICROSECONDS.read(name, value) * 1000))
            faults = dataclasses.replace(faults, rates=dataclasses.replace(faults.rates, **{target: amount}))
        return self._with(direction, faults)

    def _with(self, field_name: str, value: Any) -> Settings:
        return dataclasses.replace(self, **{field_name: value})

    def configure(self, config: NicConfig) -> NicConfig:
        """What a NIC made now is like: queues cannot be changed later."""
        return config if self.queues is None else dataclasses.replace(config, queues=self.queues)

    def pack(self) -> bytes:
        """For :meth:`unpack`."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def unpack(cls, data: bytes) -> Settings:
        """What :meth:`pack` made; raises :class:`ConfigError` for anything else."""
        try:
            fields: dict[str, Any] = json.loads(data)
            for direction in DIRECTIONS:
                faults = fields[direction]
                if faults is not None:
                    fields[direction] = Faults(ImpairmentRates(**faults["rates"]), int(faults["seed"]))
            if fields["tap"] is not None:
                fields["tap"] = TapSetting(str(fields["tap"]["path"]), bool(fields["tap"]["host_side"]))
            return cls(**fields)
        except (ValueError, TypeError, KeyError, AttributeError) as e:
            raise ConfigError(f"the NIC's settings are damaged ({e}); 'smtnet nic' with --reset clears "
                              "them") from None


def parse_switch(name: str, text: str) -> bool | None:
    """``on``, ``off`` or ``default`` (None)."""
    try:
        return {"on": True, "off": False, _DEFAULT: None}[text.lower()]
    except KeyError:
        raise ConfigError(f"{name} is on, off or default, not {text!r}") from None


def _whole(name: str, text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = -1
    if not 0 <= number < 1 << 32:
        raise ConfigError(f"{name}={text}: a whole number from 0")
    return number


def _unknown(name: str) -> ConfigError:
    near = difflib.get_close_matches(name, NAMES, 1)
    hint = f"did you mean {near[0]}? " if near else ""
    return ConfigError(f"a NIC has no setting {name!r}; {hint}there are {', '.join(NAMES)}")
