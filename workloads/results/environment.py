"""What a measurement was made on: software versions, processor, kernel settings. Everything is optional:
what cannot be found out is None, and a run never fails for it."""

from __future__ import annotations

import json
import os
import platform
import ssl
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from smtstack import __version__, compiled
from topo.interpreter import ROOT

#: Kernel settings that change what is measured here. Private to a namespace are those of ipv4.
SYSCTLS = (
    "net.core.rmem_default", "net.core.rmem_max", "net.core.wmem_default", "net.core.wmem_max",
    "net.core.netdev_max_backlog", "net.core.default_qdisc", "net.core.busy_read", "net.core.busy_poll",
    "net.ipv4.tcp_congestion_control", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem", "net.ipv4.tcp_autocorking",
)


def environment() -> dict[str, Any]:
    """All of it, ready for JSON. Takes some 20 ms; call it where the interfaces are, for their qdiscs."""
    memory = psutil.virtual_memory()
    return {
        "smtnet": __version__,
        **git_state(ROOT),
        "protocol_code": compiled.description(),
        "python": platform.python_version(),
        "os": os_name(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cores": psutil.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)),
        "memory_mb": memory.total // 1_000_000,
        "load_1min": round(os.getloadavg()[0], 2),
        "hypervisor": hypervisor(),
        "ovs": ovs_version(),
        "openssl": ssl.OPENSSL_VERSION,
        **{name: package_version(name) for name in ("mininet", "cryptography", "psutil")},
        "sysctl": {name: value for name in SYSCTLS if (value := sysctl(name)) is not None},
        "qdiscs": qdiscs(),
    }


def git_state(root: Path) -> dict[str, Any]:
    """``commit`` and whether tracked files differ from it (``changed``); None without git or a checkout."""
    # Root looks at somebody's checkout: git would refuse it, and must not take over the index by refreshing it.
    git = ("git", "-c", f"safe.directory={root}", "--no-optional-locks", "-C", str(root))
    commit = output(*git, "rev-parse", "HEAD") if (root / ".git").exists() else None
    if commit is None:
        return {"commit": None, "changed": None}
    status = output(*git, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "changed": None if status is None else bool(status)}


def os_name() -> str | None:
    """``Debian GNU/Linux 12 (bookworm)``."""
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def cpu_model() -> str | None:
    """The processor as the kernel names it; virtual machines often have a made-up one, Arm has none."""
    return _cpuinfo("model name")


def hypervisor() -> bool | None:
    """Whether the processor says that it is a virtual one; None where it has no flags (Arm)."""
    flags = _cpuinfo("flags")
    return None if flags is None else "hypervisor" in flags.split()


def _cpuinfo(field: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return None
    parts = (line.partition(":") for line in lines)
    return next((value.strip() for name, _colon, value in parts if name.strip() == field), None)


def ovs_version() -> str | None:
    """``3.1.0``; None without Open vSwitch."""
    text = output("ovs-vswitchd", "--version")
    return text.splitlines()[0].rpartition(" ")[2] if text else None


def package_version(name: str) -> str | None:
    """The version of an installed Python package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def sysctl(name: str) -> str | None:
    """Value of a kernel setting in this network namespace; None where there is no such setting."""
    try:
        return " ".join(Path("/proc/sys", *name.split(".")).read_text().split())
    except OSError:
        return None


def qdiscs() -> dict[str, list[str]]:
    """Kinds of queueing disciplines by interface of this namespace, root first."""
    text = output("tc", "-j", "qdisc", "show")
    try:
        found: dict[str, list[str]] = {}
        for entry in json.loads(text or "[]"):
            found.setdefault(entry["dev"], []).append(entry["kind"])
        return found
    except (ValueError, KeyError, TypeError):
        return {}


def output(*argv: str, timeout_s: float = 5.0) -> str | None:
    """What a command printed, stripped; None if it is not there, failed or took too long."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False,
                              stdin=subprocess.DEVNULL, env={**os.environ, "PATH": path, "LC_ALL": "C"})
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
