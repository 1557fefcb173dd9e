"""What a link is like, by Mininet's names and by ours: one reading for ``addLink``, ``mn --link smartnic,...`` and
``smtnet run``.

Mininet's options (``TCIntf.config`` in its ``link.py``) have Mininet's meaning and units. What a smartnic link
does not do is refused, and so is every name that nobody knows.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from smtstack.errors import ConfigError
from smtstack.io.xdp import LARGEST_MTU
from smtstack.nic.impairments import ImpairmentRates
from smtstack.nicshare.settings import Settings
from smtstack.quantities import MICROSECONDS, PER_CENT, RATE, SIZE, Quantity
from topo.netem import words
from topo.shaping import HIGHEST_MBPS, LOWEST_MBPS, Queue

_CHOICES = {"impair": ("wire", "netem"),
            "wire": ("auto", "yes", "no"), "tso": ("auto", "on", "off"), "hosting": ("inline", "tap", "ring")}
#: Bytes. The least IPv4 may be given, and the largest frame Linux lets a veth have.
_LEAST_MTU, _MOST_MTU = 576, 9000
#: Mininet's bw.
_MBPS = Quantity(RATE, "Mbit", least=LOWEST_MBPS, most=HIGHEST_MBPS)
#: How options with a unit are read, under the names of the fields.
QUANTITIES = {
    "rate_mbps": _MBPS, "fabric_mbps": _MBPS, "delay_us": MICROSECONDS, "jitter_us": MICROSECONDS,
    "loss": PER_CENT, "duplicate": PER_CENT, "reorder": PER_CENT, "corrupt": PER_CENT,
    "mtu": Quantity(SIZE, "B", least=_LEAST_MTU, most=_MOST_MTU, whole=True),
    "buffer_bytes": Quantity(SIZE, "B", least=1, most=1 << 31, whole=True),
}


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """What a link is like, the same both ways. ``mn --link smartnic,bw=100,loss=1`` sets these too."""

    rate_mbps: float | None = None
    """``bw``: megabits per second on the cable, 24 bytes a frame included; None: as fast as the machine."""
    fabric_mbps: float | None = None
    """The rate of links between switches; None: as all others. A lower one moves the bottleneck there."""
    speedup: float = 0.0
    """Instead of ``bw`` at a switch's end of a link that has one; 0: no other."""
    buffer_bytes: int = 100_000
    """Bytes that each of the eight priorities may queue, at either end; only with a rate."""
    max_queue_size: int | None = None
    """Packets, instead of ``buffer_bytes``; as many may be in a delay."""
    enable_red: bool = False
    """Random early detection in the queues, with Mininet's parameters."""
    enable_ecn: bool = False
    """Random early detection (RED), but packets that can carry ECN are marked instead of lost."""
    mtu: int = 1500
    delay_us: float = 0.0
    """``delay``: of each frame that an end sends, so one way. A plain number is microseconds, as for tc."""
    jitter_us: float = 0.0
    """``jitter``: the delay is up to this longer or shorter, uniform: frames overtake each other."""
    loss: float = 0.0
    """Per cent of frames, as are the next three: 1 or "1%"."""
    duplicate: float = 0.0
    reorder: float = 0.0
    """Frames held back by 0.1 ms."""
    corrupt: float = 0.0
    """One bit is flipped."""
    seed: int = 1
    """Seed of the random numbers that impairments draw."""
    wire: str = "auto"
    """``yes``: a programmable wire on the path, ``auto``: if there are impairments."""
    impair: str = "wire"
    """Who impairs: the programmable wire, or in its place ``netem``, the kernel's (:mod:`topo.netem`)."""
    tso: str = "auto"
    """The kernel's checksum and segmentation offload, for TCP and TLS: ``on``, ``off``, or ``auto``: off as soon
    as there is a switch or a wire, since neither a wire nor a user-space switch can finish half-made frames."""
    hosting: str = "inline"
    """Where a host's smart NIC is: ``inline``, a part of each program that uses it, or ``tap``: a process of its
    own that owns the host's interface, through which all that the host's kernel sends and receives goes, too; or
    ``ring``: on an untrusted host, which shares memory with the guarded programs (docs/trust.md)."""
    nic: tuple[str, ...] = ()
    """Settings of the hosts' smart NICs, as ``smtnet nic --set`` takes them: ``("tso=off", "max-contexts=4")``."""

    def __post_init__(self) -> None:
        for name, quantity in QUANTITIES.items():
            if (value := getattr(self, name)) is not None:
                quantity.read(f"link option {name}", value)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"link option {name} is {getattr(self, name)!r}; one of {', '.join(choices)}")
        if self.speedup:
            _MBPS.read("link option speedup", self.speedup)
        if self.max_queue_size is not None and self.max_queue_size < 1:
            raise ConfigError(f"link option max_queue_size is {self.max_queue_size}; packets from 1")
        for name in ("enable_red", "enable_ecn"):
            if getattr(self, name) and self.rate_mbps is None:
                raise ConfigError(f"link option {name}: a link without a rate has no queue: give bw too")
        if self.buffer_bytes < self.mtu + 14:
            raise ConfigError(f"link option buffer_bytes is {self.buffer_bytes}; a frame of {self.mtu + 14} "
                              "must fit")
        if self.impaired and self.wire == "no":
            raise ConfigError("link option wire=no: delay, loss and the like need the wire; use wire=auto")
        if self.hosting == "ring" and self.mtu > LARGEST_MTU:
            raise ConfigError(f"link option hosting=ring: packets of {self.mtu} bytes do not fit a ring's frames: "
                              f"at most mtu={LARGEST_MTU}")
        if self.impair == "netem" and self.has_wire:
            words(self.rates(), self.max_queue_size)
        if self.tso == "on" and self.has_wire:
            raise ConfigError("link option tso=on: a wire cannot cut frames of 64 KB; use tso=off")
        self.settings()

    @property
    def impaired(self) -> bool:
        """Whether frames are delayed, lost or changed."""
        return self.rates() != ImpairmentRates()

    @property
    def has_wire(self) -> bool:
        """Whether a programmable wire is on the path."""
        return self.wire == "yes" or (self.impaired and self.wire == "auto")

    def rates(self) -> ImpairmentRates:
        """What the wire is to do to frames."""
        return ImpairmentRates(drop=self.loss / 100, duplicate=self.duplicate / 100, reorder=self.reorder / 100,
                               corrupt=self.corrupt / 100, delay_ns=round(self.delay_us * 1000),
                               spread_ns=round(self.jitter_us * 1000))

    def queue(self) -> Queue:
        """The queue of each priority, where there is a rate."""
        return Queue(self.buffer_bytes, self.max_queue_size, self.enable_red, self.enable_ecn)

    def settings(self) -> Settings:
        """What is set at the hosts' smart NICs."""
        settings = Settings()
        for text in self.nic:
            settings = settings.assign(text)
        return settings

    def changed(self, given: Mapping[str, Any]) -> LinkOptions:
        """Options with others in the place of some, under any of :data:`NAMES`, as :func:`read` takes them."""
        return replace(self, **read(given))


_DEFAULTS = {f.name: f.default for f in fields(LinkOptions)}
#: Mininet's names of what has one here.
ALIASES = {"bw": "rate_mbps", "delay": "delay_us", "jitter": "jitter_us"}
#: Options of Mininet with one value that a smartnic link has anyway, and why it has no other.
_FIXED = {
    "use_hfsc": (False, "a smartnic link has one shaper, HTB, which limits to bw as HFSC does"),
    "use_tbf": (False, "a smartnic link has one shaper, HTB, which limits to bw as TBF does; its queue is "
                       "max_queue_size or buffer_bytes"),
    "gro": (False, "neither a wire nor a switch in user space takes frames that GRO has put together"),
    "disable_gro": (True, "neither a wire nor a switch in user space takes frames that GRO has put together"),
    "rxo": (True, "an end checks what it receives whenever it has to"),
}
#: Everything that :func:`read` knows.
NAMES = (*_DEFAULTS, *ALIASES, *_FIXED, "use_htb", "txo", "latency_ms")
#: Those that have no sense at one end only.
OF_THE_LINK = ("fabric_mbps", "impair", "mtu", "seed", "wire", "tso", "txo", "hosting", "nic")
#: What people call them.
_SYNONYMS = {"bandwidth": "bw", "rate": "bw", "latency": "delay", "packet_loss": "loss",
             "queue_size": "max_queue_size"}
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`LinkOptions`, from options by any name: numbers, or text as a command line has it
    (``"5ms"``, ``"1%"``, ``nic`` as ``tso:off+max-contexts:4``). None (or "none") is the default. Of two that mean
    the same, the last one counts. Raises :class:`ConfigError`, which names what was given."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in NAMES:
            raise unknown(name)
        if value is None or str(value).lower() == "none":
            field = ALIASES.get(name, name)
            if field in _DEFAULTS:
                found[field] = _DEFAULTS[field]
        elif name in _FIXED:
            only, why = _FIXED[name]
            if _truth(name, value) is not only:
                raise ConfigError(f"link option {name}={value}: {why}; leave it out")
        elif name == "latency_ms":
            raise ConfigError("link option latency_ms is one of use_tbf, which a smartnic link has not: give "
                              "max_queue_size or buffer_bytes")
        elif name == "use_htb":
            _truth(name, value)  # it is what shapes, asked for or not
        elif name == "txo":
            if not _truth(name, value):
                found["tso"] = "off"
        else:
            found[ALIASES.get(name, name)] = _value(name, value)
    return found


def unknown(name: str, others: Collection[str] = ()) -> ConfigError:
    """The error for an option that nobody knows. ``others`` are those that are possible there as well."""
    near = difflib.get_close_matches(name, (*NAMES, *_SYNONYMS, *others), 1)
    hint = f"did you mean {_SYNONYMS.get(near[0], near[0])}? " if near else ""
    return ConfigError(f"a link has no option {name!r}; {hint}there are {', '.join(NAMES)}")


def _value(name: str, value: Any) -> Any:
    field = ALIASES.get(name, name)
    said = f"link option {name}"
    if field in QUANTITIES:
        return QUANTITIES[field].read(said, value)
    if name == "nic":
        return tuple(text.replace(":", "=", 1) for text in value.split("+")) if isinstance(value, str) else value
    if name in _CHOICES:
        return value
    if name in ("enable_red", "enable_ecn"):
        return _truth(name, value)
    if name == "speedup":
        return 0.0 if str(value) in ("0", "0.0") else _MBPS.read(said, value)
    try:
        if isinstance(value, bool) or int(value) != float(value):
            raise ValueError(value)
        return int(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{said} is {value!r}; a whole number") from None


def _truth(name: str, value: Any) -> bool:
    truth = _TRUTHS.get(str(value).lower())
    if truth is None:
        raise ConfigError(f"link option {name} is {value!r}; True or False")
    return truth
