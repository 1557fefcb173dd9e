"""The smart NIC of an interface as seen from outside its endpoints: settings, counters, who uses it.

Every endpoint has a device of its own (a virtual function, inside its process). What they count and what is
set on them meets in a file in memory (:mod:`smtstack.nicshare.file`), so both can be seen and changed while
traffic runs, also from outside the network namespace. It is there as long as endpoints are, something is
set, or a link keeps it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smtstack.errors import ConfigError, SmtError
from smtstack.io.namespaces import Namespace, locate
from smtstack.nic.device import ALL_FEATURES, FEATURES, TAP_FEATURES, NicConfig
from smtstack.nic.impairments import ImpairmentRates
from smtstack.nicshare import file as nic_file
from smtstack.nicshare.file import COUNTERS, GENERATION, SLOT_WORDS, SLOTS, StateFile, open_file, sweep
from smtstack.nicshare.settings import DIRECTIONS, Faults, Settings, TapSetting
from smtstack.nicshare.tap import create_tap
from smtstack.wire import homa
from smtstack.wire.ipv4 import format_address

#: Of the NIC that owns its interface, which serves whatever the kernel sends.
TAP = "tap"
#: What stands for the address of such a NIC, which has none of its own.
EVERY_ADDRESS = 0xFFFFFFFF
_PROFILES = (*homa.FORMATS, TAP)
#: Endpoints look at the settings at least this often, even if nothing happens.
APPLY_S = 1.5


@dataclass(frozen=True, slots=True)
class EndpointInfo:
    """An endpoint that is running."""

    pid: int
    """Process id, as its own pid namespace counts."""
    address: str
    """IP:PORT of its side; ``kernel`` for a NIC that owns the interface (profile ``tap``)."""
    profile: str
    protocol: int
    """IP protocol number."""
    features: dict[str, bool]
    """What its device has switched on now."""
    up_to_date: bool
    """Whether it has taken the newest settings."""
    counters: dict[str, int]


class NicState:
    """The NIC of one interface, for whoever watches or changes it. Holds nothing open."""

    def __init__(self, interface: str, namespace: Namespace, folder: Path | None = None) -> None:
        self.interface = interface
        self._namespace = namespace
        self._folder = folder

    @classmethod
    def open(cls, interface: str, pid: int | None = None, persistent: bool = False,
             folder: Path | None = None) -> NicState:
        """The NIC of ``interface`` on the host of process ``pid`` (None: ours).

        ``persistent``: counters and settings stay until :meth:`remove`, also when no endpoint runs.
        Raises :class:`ConfigError` if there is no such interface, :class:`Unsupported` without root.
        """
        state = cls(interface, locate(interface, pid), folder)
        sweep(folder)
        if persistent:
            with state._changing() as file:
                file.keep(True)
        return state

    # -- looking -----------------------------------------------------------------------------------------

    def settings(self) -> Settings:
        """What is set now."""
        with self._file() as file:
            return file.read_settings() if file is not None else Settings()

    def endpoints(self) -> list[EndpointInfo]:
        """Endpoints that are running, in the order of their slots."""
        with self._file() as file:
            if file is None:
                return []
            return [_info(file.slot(n), file.words[GENERATION]) for n in range(1, SLOTS + 1) if file.alive(n)]

    def counters(self) -> dict[str, int]:
        """The sum over all endpoints there are, and were since the file was made."""
        with self._file() as file:
            values = file.totals() if file is not None else [0] * len(COUNTERS)
        return dict(zip(COUNTERS, values, strict=True))

    def wait_applied(self, timeout: float = APPLY_S) -> bool:
        """Until every endpoint has taken the newest settings; False after ``timeout`` seconds."""
        end = time.monotonic() + timeout
        while not all(e.up_to_date for e in self.endpoints()):
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        return True

    # -- changing ----------------------------------------------------------------------------------------

    def assign(self, *texts: str) -> Settings:
        """Set all of ``tso=off``, ``loss=1%``, ``rx.delay=2ms`` ... or, if one is wrong, none."""
        with self._changing() as file:
            settings = file.read_settings()
            for text in texts:
                settings = settings.assign(text)
            file.write_settings(settings)
        return settings

    def set_feature(self, name: str, on: bool | None) -> None:
        """Force a feature on or off for all endpoints; None: as each was configured."""
        with self._changing() as file:
            file.write_settings(file.read_settings().with_feature(name, on))

    def set_impairments(self, direction: str, rates: ImpairmentRates | None, seed: int = 1) -> None:
        """Impair what leaves (``tx``) or arrives (``rx``); None: as the endpoints do by themselves."""
        if direction not in DIRECTIONS:
            raise ConfigError(f"direction is {direction!r}; there are tx (what leaves) and rx (what arrives)")
        self._replace(**{direction: None if rates is None else Faults(rates, seed)})

    def set_max_contexts(self, limit: int | None) -> None:
        """At most so many TLS contexts for every endpoint; None: what the hardware has."""
        self._replace(max_contexts=limit)

    def set_queues(self, queues: int | None) -> None:
        """TX queues of sockets opened from now on; None: as they are configured."""
        self._replace(queues=queues)

    def set_paths(self, paths: int | None) -> None:
        """Paths messages are spread over, also of endpoints that run; None: one."""
        self._replace(paths=paths)

    def start_tap(self, path: str | Path, host_side: bool = False) -> None:
        """Record the device's packets into a new pcapng file, of all endpoints there are and will be.

        ``host_side``: what drivers post as well; with TLS offload that is plaintext. Raises
        :class:`ConfigError` if a tap is running or the file exists.
        """
        with self._changing() as file:
            settings = file.read_settings()
            if settings.tap is not None:
                raise ConfigError(f"{self.interface} is being recorded already, to {settings.tap.path}; "
                                  "stop that first")
            target = Path(path).absolute()
            changed = dataclasses.replace(settings, tap=TapSetting(str(target), host_side))
            create_tap(target, self.interface, host_side)
            file.write_settings(changed)

    def stop_tap(self) -> str:
        """End the recording, wait until the endpoints have written theirs; the file's path."""
        with self._changing() as file:
            settings = file.read_settings()
            if settings.tap is None:
                raise ConfigError(f"{self.interface} is not being recorded")
            file.write_settings(dataclasses.replace(settings, tap=None))
        self.wait_applied()
        return settings.tap.path

    def reset(self) -> None:
        """All settings as the endpoints were configured."""
        with self._changing() as file:
            file.write_settings(Settings())

    def restore(self, settings: Settings) -> None:
        """All settings as they were before, by :meth:`settings`."""
        with self._changing() as file:
            file.write_settings(settings)

    def remove(self) -> None:
        """The link goes away: settings too, and counters with the last endpoint."""
        with self._file() as file:
            if file is not None:
                file.keep(False)
                file.write_settings(Settings())
                file.unlink_unless_needed()

    def _replace(self, **fields: object) -> None:
        with self._changing() as file:
            file.write_settings(dataclasses.replace(file.read_settings(), **fields))  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _file(self) -> Iterator[StateFile | None]:
        """The file if there is one, locked."""
        file = open_file(self.interface, self._namespace, False, self._folder)
        if file is None:
            yield None
            return
        try:
            with file.locked():
                yield file
        finally:
            file.close()

    @contextlib.contextmanager
    def _changing(self) -> Iterator[StateFile]:
        """The file, made if need be, locked; removed again if nothing needs it afterwards."""
        file = open_file(self.interface, self._namespace, True, self._folder)
        assert file is not None
        try:
            with file.locked():
                try:
                    yield file
                finally:
                    file.unlink_unless_needed()
        finally:
            file.close()


def _info(slot: memoryview, generation: int) -> EndpointInfo:
    number = slot[nic_file.PROFILE]
    profile = _PROFILES[number] if number < len(_PROFILES) else "?"
    on = slot[nic_file.ON]
    names = TAP_FEATURES if profile == TAP else FEATURES
    address = "kernel" if profile == TAP else f"{format_address(slot[nic_file.ADDRESS])}:{slot[nic_file.PORT]}"
    return EndpointInfo(
        pid=slot[nic_file.PID], address=address, profile=profile, protocol=slot[nic_file.PROTOCOL],
        features={name: bool(on >> n & 1) for n, name in enumerate(ALL_FEATURES) if name in names},
        up_to_date=slot[nic_file.APPLIED] == generation,
        counters=dict(zip(COUNTERS, slot[SLOT_WORDS - len(COUNTERS):], strict=True)))


class Port:
    """An endpoint's own place in the file of its interface. Made by :meth:`attach`."""

    def __init__(self, file: StateFile, number: int) -> None:
        self._file = file
        self._number = number
        self._slot = file.slot(number) if number else None
        #: One word: it differs from what was applied when there is something to apply.
        self.generation: memoryview = file.words[GENERATION:GENERATION + 1]

    @classmethod
    def attach(cls, interface: str, address: int, port: int, protocol: int, profile: str,
               folder: Path | None = None, pid: int | None = None) -> Port | None:
        """Take a place; None where that is impossible (no such folder, not root): then one runs without.

        ``pid``: a process in whose namespace the interface is; None: ours.
        """
        try:
            namespace = locate(interface, pid)
            sweep(folder, networks=False)
            file = open_file(interface, namespace, True, folder)
        except (SmtError, OSError):
            return None
        assert file is not None
        with file.locked():
            made = cls(file, file.claim())
            if made._slot is not None:
                words = (os.getpid(), address, port, protocol, _PROFILES.index(profile), 0, 0, 0)
                made._slot[:len(words)] = array("Q", words)
        return made

    def configure(self, config: NicConfig) -> NicConfig:
        """The device to make now, where settings say more than ``config``; queues cannot be changed later."""
        try:
            with self._file.locked():
                return self._file.read_settings().configure(config)
        except ConfigError:
            return config

    def settings(self) -> tuple[int, Settings] | None:
        """(generation, settings), or None while they are being changed. Raises :class:`ConfigError`."""
        return self._file.try_settings()

    def claim_context(self, own: int, limit: int) -> bool:
        """Whether there is room for one more TLS context than the ``own`` ones, of ``limit`` that may be there.

        On an interface with a NIC of its own (hosting tap) all share that NIC's memory, else each endpoint has
        one. What is claimed is to be used, or given back by :meth:`hold_contexts`.
        """
        if self._slot is None:
            return own < limit
        with self._file.locked():
            # Not those who were killed, whom nobody has removed yet.
            slots = [slot for number in range(1, SLOTS + 1) if number != self._number
                     and (slot := self._file.slot(number))[nic_file.ADDRESS] and self._file.alive(number)]
            shared = any(slot[nic_file.PROFILE] == _PROFILES.index(TAP) for slot in (*slots, self._slot))
            if own + (sum(slot[nic_file.CONTEXTS] for slot in slots) if shared else 0) >= limit:
                return False
            self._slot[nic_file.CONTEXTS] = own + 1
            return True

    def hold_contexts(self, own: int) -> None:
        """Say how many TLS contexts we have now."""
        if self._slot is not None:
            self._slot[nic_file.CONTEXTS] = own

    def applied(self, generation: int, features: dict[str, bool]) -> None:
        """Say which settings were taken, and what is switched on now."""
        if self._slot is not None:
            self._slot[nic_file.ON] = sum(features.get(name, False) << n for n, name in enumerate(ALL_FEATURES))
            self._slot[nic_file.APPLIED] = generation

    def publish(self, counters: dict[str, int]) -> None:
        """Let others see all of :data:`~smtstack.nicshare.file.COUNTERS`, since the endpoint began; what it
        does not count is 0."""
        if self._slot is not None:
            self._slot[SLOT_WORDS - len(COUNTERS):] = array("Q", [counters.get(name, 0) for name in COUNTERS])

    def detach(self, counters: dict[str, int] | None = None) -> None:
        """Leave, with the last counters; None: nothing was counted."""
        counters = counters or dict.fromkeys(COUNTERS, 0)
        self.publish(counters)
        with self._file.locked():
            if self._slot is not None:
                self._slot.release()
                self._file.release(self._number)
            else:
                self._file.add_gone(array("Q", [counters.get(name, 0) for name in COUNTERS]))
            self._file.unlink_unless_needed()
        self.generation.release()
        self._file.close()
