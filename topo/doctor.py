"""Is everything there that smtnet needs? Judges :class:`topo.probes.Facts`; looks at nothing itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from topo.probes import PACKAGES, Facts

Status = Literal["ok", "warn", "fail"]

MIN_PYTHON = (3, 10)
#: Beyond this share of steal a run is not faithful (as in workloads.results.fidelity, which is above us).
MAX_STEAL = 0.02
#: Microseconds to seal 1 KB beyond which encryption, elsewhere 1, is no longer beside the point.
SLOW_SEAL_US = 5.0
#: Megabytes: a demo leaves about ten; below the second there is no room for it.
LOW_SPACE_MB, NO_SPACE_MB = 200, 30


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the doctor's."""

    name: str
    status: Status
    """``warn``: something is done another way, or not at all, and the detail says which."""
    detail: str
    fix: str = ""
    """A command, or what to do where no command helps; empty if ok."""


def checks(facts: Facts) -> list[Check]:
    """Every check, in the order in which somebody would mend things."""
    return [*_system(facts), *_programs(facts), *_switches(facts), *_network(facts), *_crypto(facts),
            *_python_side(facts), *_faithful(facts), *_results(facts)]


def install(*packages: str) -> str:
    """The command for Debian and Ubuntu."""
    return f"sudo apt-get install --no-install-recommends {' '.join(packages)}"


def _pip(*packages: str) -> str:
    return f"{sys.executable} -m pip install {' '.join(packages)}"


def _system(facts: Facts) -> Iterator[Check]:
    again = "sudo .venv/bin/smtnet doctor"
    yield Check("root", "ok", "yes") if facts.root else Check(
        "root", "fail", "no: namespaces and raw sockets need it, and what needs it was not tried", again)
    version = ".".join(map(str, facts.python))
    yield Check("python", "ok", version) if facts.python >= MIN_PYTHON else Check(
        "python", "fail", f"{version}, and smtnet needs {MIN_PYTHON[0]}.{MIN_PYTHON[1]}",
        "make venv PYTHON=python3.11")
    yield Check("kernel", "ok", f"{facts.kernel}, {facts.cores} cores") if facts.cores > 1 else Check(
        "kernel", "warn", f"{facts.kernel}, one core: client and server take turns, and no run will be faithful",
        "give the machine a second core")
    if not facts.namespaces:
        yield Check("namespaces", "ok", "net, mount, pid")
    elif facts.root:
        yield Check("namespaces", "fail", facts.namespaces,
                    "run it where root may make namespaces: not in a chroot or an unprivileged container")
    yield from _tried(facts, "raw", "raw sockets", "fail", "no AF_PACKET",
                      "run it where root has CAP_NET_RAW: not in an unprivileged container")
    if facts.root:
        yield Check("/run", "ok", "writable") if facts.run_writable else Check(
            "/run", "warn", "not writable: settings of NICs cannot be changed from outside",
            "sudo mount -t tmpfs tmpfs /run/smtnet")


def _tried(facts: Facts, key: str, name: str, status: Status, consequence: str, fix: str,
           good: str = "works") -> Iterator[Check]:
    """A check for what was tried in the namespaces; none if it could not be."""
    error = facts.tried.get(key)
    if error is not None:
        yield Check(name, status, f"{consequence} ({error})", fix) if error else Check(name, "ok", good)


def _programs(facts: Facts) -> Iterator[Check]:
    packages = [name for name in PACKAGES if name not in ("mininet", "openvswitch-switch")]
    missing = [program for name in packages for program in PACKAGES[name] if program in facts.missing]
    needed = [name for name in packages if set(PACKAGES[name]) & set(facts.missing)]
    yield Check("programs", "fail", f"missing: {', '.join(missing)}", install(*needed)) if missing else Check(
        "programs", "ok", ", ".join(program for name in packages for program in PACKAGES[name]))
    if "mnexec" in facts.missing or facts.mnexec:
        why = "not installed" if "mnexec" in facts.missing else facts.mnexec
        yield Check("mnexec", "fail", f"{why}: Mininet starts its hosts by it", install("mininet"))
    else:
        yield Check("mnexec", "ok", "works")
    yield Check("mininet", "ok", facts.mininet) if facts.mininet else Check(
        "mininet", "fail", "this Python has no Mininet", "make venv")


def _switches(facts: Facts) -> Iterator[Check]:
    bridge = facts.tried.get("bridge")
    missing = [program for program in PACKAGES["openvswitch-switch"] if program in facts.missing]
    if missing or facts.ovs is None:
        instead = "a Linux bridge is used" if not bridge else "and there is no Linux bridge either"
        yield Check("open vswitch", "fail" if bridge else "warn",
                    f"missing ({', '.join(missing) or 'ovs-vswitchd does not run'}): {instead}",
                    install("openvswitch-switch"))
        if facts.firewalled and not bridge:
            # Runs have namespaces of their own.
            settings = " ".join(f"{name}=0" for name in facts.firewalled)
            yield Check("bridge firewall", "warn", "the machine's firewall judges what bridges of mn sessions "
                        "switch: it may drop frames between hosts, and a NAT does not work",
                        f"sudo sysctl -w {settings}")
    else:
        yield Check("open vswitch", "ok", facts.ovs)
        # Not a shortcoming: the user-space datapath does the same.
        yield Check("kernel_ovs", "ok", "works" if facts.ovs_kernel else
                    "the kernel has no openvswitch: Open vSwitch's user-space datapath is used")
    yield from _tried(facts, "bridge", "linux bridge", "warn", "missing: only Open vSwitch can be the switch",
                      _modprobe(facts, "bridge"))
    if not facts.ovs_kernel:
        yield from _tried(facts, "tun", "tun", "warn", "Open vSwitch in user space needs /dev/net/tun",
                          _modprobe(facts, "tun"))
    if facts.root:
        yield Check("pidfd_getfd", "ok", "works") if not facts.pidfd_getfd else Check(
            "pidfd_getfd", "warn", f"missing ({facts.pidfd_getfd}): the switch drops bursts",
            "sudo sysctl -w net.core.rmem_default=8388608")


def _modprobe(facts: Facts, *modules: str) -> str:
    return f"sudo modprobe -a {' '.join(modules)}" if facts.modules else (
        "another kernel: this one was built without, and has no modules")


def _network(facts: Facts) -> Iterator[Check]:
    for kind, what in (("htb", "links with a rate and priorities are refused"), ("tbf", "no token bucket"),
                       ("u32", "links with priorities are refused")):
        yield from _tried(facts, kind, f"tc {kind}", "warn", f"missing: {what}",
                          _modprobe(facts, f"{'cls' if kind == 'u32' else 'sch'}_{kind}"))
    netem = facts.tried.get("netem")
    if netem is not None:
        # Not a shortcoming: the wire does all of it, and more.
        yield Check("netem", "ok", "missing: the programmable wire is used" if netem else "works")
    yield from _tried(facts, "overlay", "overlay tcp", "warn", "missing: --overlay tcp is refused",
                      _modprobe(facts, "nf_tables"), "super-frames pass, and the host's TCP can be kept from them")
    yield from _tried(facts, "nic_tap", "nic hosting", "warn", "missing: --nic-hosting tap is refused",
                      _modprobe(facts, "tun", "nf_tables"), "inline, tap: a NIC can own an interface")
    yield from _tried(facts, "xdp", "af_xdp", "warn", "missing: --nic-hosting ring has its rings in memory",
                      "another kernel: with CONFIG_XDP_SOCKETS and CONFIG_BPF_SYSCALL",
                      "packets can be split off into rings")
    yield from _tried(facts, "uring", "io_uring", "warn", "missing: serve kv --nic-hosting ring has the host's "
                      "process make system calls instead", "another kernel: 6.5 or later, with "
                      "CONFIG_IO_URING, and sysctl kernel.io_uring_disabled=0",
                      "rings can be in memory that others share")
    yield from _tried(facts, "buffer", "receive buffers", "warn", "8 MB are not to be had: bursts may be lost",
                      "sudo sysctl -w net.core.rmem_max=16777216", "8 MB")


def _crypto(facts: Facts) -> Iterator[Check]:
    yield Check("tls 1.3", "ok", f"{facts.openssl}, AES-128-GCM") if facts.tls13 else Check(
        "tls 1.3", "fail", f"{facts.openssl} lacks it, or AES-128-GCM: nothing to compare with",
        install("openssl", "libssl3"))
    yield from _tried(facts, "ktls", "ktls", "warn", "the kernel makes no TLS records: transport ktls is skipped",
                      _modprobe(facts, "tls"))
    if not facts.openssl_binding:
        yield Check("pyopenssl", "fail", "missing: transport smt cannot shake hands, "
                    "transport ktls-sw is skipped, transport ktls-nic is skipped",
                    _pip("pyOpenSSL"))
    yield from _tickets(facts)
    speed = f"{facts.seal_us:g} us to seal 1 KB"
    if facts.seal_us > SLOW_SEAL_US:
        yield Check("aes-gcm", "warn", f"{speed}: encryption will show in every figure",
                    "a processor, or a virtual one, with AES instructions")
    elif not facts.encrypt_into:
        yield Check("aes-gcm", "warn", f"{speed}, by way of a copy", _pip("-U", "cryptography"))
    else:
        yield Check("aes-gcm", "ok", speed)


def _tickets(facts: Facts) -> Iterator[Check]:
    without = "missing: no sessions by ticket"
    if not facts.dnspython:
        yield Check("tickets", "warn", f"dnspython is {without}", _pip("dnspython"))
    elif not facts.knot:
        yield Check("tickets", "warn", f"knotd, the DNS server, is {without}", install("knot"))
    else:
        yield Check("tickets", "ok", "dnspython, knotd")


def _python_side(facts: Facts) -> Iterator[Check]:
    why, _, fix = facts.interpreted.partition("; run: ")
    yield Check("protocol code", "warn", f"interpreted, half as fast: {why}", fix) if fix else Check(
        "protocol code", "ok", f"interpreted: {why}" if why else "compiled")
    yield Check("ryu", "ok", "a controller starts and listens") if not facts.ryu else Check(
        "ryu", "warn", f"no OpenFlow controller ({facts.ryu})", "make venv")
    for name, there, without in (("matplotlib", facts.matplotlib, "no pictures"),
                                 ("rich", facts.rich, "plain tables")):
        yield Check(name, "ok", "yes") if there else Check(name, "warn", f"missing: {without}", _pip(name))
    yield Check("tshark", "ok", "yes" if facts.tshark else "no (optional: for looking at captures)")


def _faithful(facts: Facts) -> Iterator[Check]:
    yield Check("pressure", "ok", "/proc/pressure/cpu") if facts.psi else Check(
        "pressure", "warn", "no /proc/pressure: nobody can say whether others wanted the processor",
        "boot with psi=1 on the kernel's command line")
    yield Check("steal", "ok", f"{facts.steal:.1%} just now") if facts.steal <= MAX_STEAL else Check(
        "steal", "warn", f"the hypervisor took {facts.steal:.0%} of the processor time just now: what is measured "
        "meanwhile is not faithful", "smtnet doctor, again in a while")


def _results(facts: Facts) -> Iterator[Check]:
    free = f"{facts.free_mb:,} MB free"
    if not facts.results_writable:
        yield Check("results", "fail", "this folder is not writable", "cd to one that is")
    elif facts.free_mb < LOW_SPACE_MB:
        yield Check("results", "fail" if facts.free_mb < NO_SPACE_MB else "warn", free,
                    "rm -r results/ of old runs, or free some space")
    else:
        yield Check("results", "ok", free)
