"""A NIC's state for people, as ``smtnet nic`` and the Mininet CLI show it."""

from __future__ import annotations

from smtstack.nic.device import ALL_FEATURES
from smtstack.nicshare.settings import DIRECTIONS, Faults, Settings
from smtstack.nicshare.state import NicState

_UNITS = (("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1))


def describe(state: NicState) -> str:
    """Settings, endpoints, and all counters that are not zero, as a table of several lines."""
    endpoints = state.endpoints()
    lines = [f"{state.interface}: smart NIC of {len(endpoints)} endpoint{'' if len(endpoints) == 1 else 's'}"]
    lines += [f"  {name:24}{value}" for name, value in _settings(state.settings())]
    for e in endpoints:
        on = ", ".join(name for name, value in e.features.items() if value) or "nothing"
        late = "" if e.up_to_date else "; has not taken the newest settings yet"
        lines.append(f"  {f'{e.address} {e.profile}':24}process {e.pid}, on: {on}{late}")
    counted = [(name, value) for name, value in state.counters().items() if value]
    lines += [f"  {name:24}{value:>14,}" for name, value in counted]
    return "\n".join(lines)


def _settings(settings: Settings) -> list[tuple[str, str]]:
    """What is set; one line says so if nothing is."""
    switches = [(name, "on" if settings.features[name] else "off") for name in ALL_FEATURES
                if name in settings.features]
    numbers = [(name, str(value)) for name, value in (("max-contexts", settings.max_contexts),
                                                      ("queues", settings.queues),
                                                      ("paths", settings.paths)) if value is not None]
    faults = [(f"{direction} impairments", _faults(getattr(settings, direction))) for direction in DIRECTIONS
              if getattr(settings, direction) is not None]
    tap = []
    if settings.tap is not None:
        tap = [("tap", settings.tap.path + (" (with the host side)" if settings.tap.host_side else ""))]
    return switches + numbers + faults + tap or [("settings", "none; all as the endpoints were configured")]


def _faults(faults: Faults) -> str:
    rates = faults.rates
    shares = [f"{name} {share:.4g} %" for name, share in
              (("loss", 100 * rates.drop), ("duplicate", 100 * rates.duplicate),
               ("reorder", 100 * rates.reorder), ("corrupt", 100 * rates.corrupt)) if share]
    if rates.reorder:
        shares.append(f"reorder-delay {_time(rates.reorder_ns)}")
    times = [f"{name} {_time(ns)}" for name, ns in (("delay", rates.delay_ns), ("jitter", rates.jitter_ns)) if ns]
    return ", ".join([*shares, *times, f"seed {faults.seed}"] if shares or times else ["none at all"])


def _time(ns: int) -> str:
    unit, size = next((u for u in _UNITS if ns >= u[1]), _UNITS[-1])
    return f"{ns / size:.6g} {unit}"
