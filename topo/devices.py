"""Cables and bridges that this process makes in the kernel: made where nothing is, removed by nobody else.

A name is no proof: another Mininet on the machine calls its own ``s1-eth1`` as we do. So the kernel is asked to
make, and refuses what is there already; and what is removed is named by its index in its namespace, which are not
given a second time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import socket
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from smtstack.errors import ConfigError, SmtError
from smtstack.io.namespaces import IFNAMSIZ, Namespace, interface_exists, locate, within
from topo.commands import batch, run

# Linux <linux/sockios.h>, <linux/if.h>, <linux/rtnetlink.h>, <linux/netlink.h>.
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_NOARP = 0x8913, 0x8914, 0x80
_RTM_DELLINK, _REQUEST_ACK, _NLMSG_ERROR = 17, 5, 2
_HEADER, _IFINFO = struct.Struct("=IHHII"), struct.Struct("=BxHiII")
#: Bytes of the longest name Linux takes.
MAX_NAME = IFNAMSIZ - 1
#: Characters of a name that Linux refuses, and those that "ip -batch" would take for something else.
_FORBIDDEN = frozenset("/:\"'\\#")
#: How Mininet marks its hosts' shells among the processes.
_SHELL_MARK = "mininet:"
#: Linux net/bridge/br_netfilter_hooks.c: each 1 in a new namespace, where the module is.
_FIREWALL = ("bridge-nf-call-iptables", "bridge-nf-call-ip6tables", "bridge-nf-call-arptables")
_LONGEST_COMMAND = 60

#: Names we have in our own namespace.
_names: set[str] = set()


@dataclass(frozen=True, slots=True)
class End:
    """What one end of a cable is to be."""

    name: str
    pid: int | None = None
    """A process of its namespace; None: ours."""
    address: str | None = None
    """The interface's MAC address; None: the kernel's choice."""


@dataclass(frozen=True, slots=True)
class Device:
    """An interface that we have made. It may be gone meanwhile."""

    name: str
    pid: int | None
    index: int
    namespace: Namespace

    def remove(self) -> None:
        """Remove it, and its peer if it is an end of a cable; nothing happens if it is not there any more."""
        if self.pid is None:
            _names.discard(self.name)
        # A process that is gone took its namespace along, and another may have its number by now.
        with contextlib.suppress(ConfigError):
            if locate(self.name, self.pid) == self.namespace:
                within(self.pid, lambda: _delete(self.index, self.name))


def make_cable(one: End, two: End, mtu: int, where: str) -> tuple[Device, Device]:
    """A veth pair. Raises :class:`SmtError` that names the end whose name is taken, and whose it may be."""
    ends = (one, two)
    for end in ends:
        check_name(end.name, where)
    words = [f"name {end.name} mtu {mtu}" + (f" address {end.address}" if end.address else "")
             + (f" netns {end.pid}" if end.pid else "") for end in ends]
    with _refusals(where, ends):
        batch("ip", [f"link add {words[0]} type veth peer {words[1]}"], where=where)
    return _made(one), _made(two)


def make_bridge(name: str, options: str, where: str) -> Device:
    """A Linux bridge in our namespace, down. Raises as :func:`make_cable` does."""
    check_name(name, where)
    bridge = End(name)
    with _refusals(where, (bridge,)):
        batch("ip", [f"link add name {name} type bridge {options}"], where=where)
    return _made(bridge)


def firewalled() -> list[str]:
    """The settings (sysctl) by which our namespace's firewall judges what bridges in it switch, from br_netfilter.

    By them it drops what it would not route (Docker's), drops what is no correct IP packet, and rewrites addresses
    before a packet that a NAT is to forward has come to it.
    """
    return [f"net.bridge.{name}" for name in _FIREWALL
            if (path := Path("/proc/sys/net/bridge", name)).exists() and path.read_text().strip() != "0"]


def keep_firewall_out() -> None:
    """Have bridges of our namespace, which must be ours alone, switch whatever comes."""
    for name in firewalled():
        # Where /proc/sys is read-only, nobody has rules in a namespace of ours, but for a NAT.
        with contextlib.suppress(OSError):
            Path("/proc/sys", *name.split(".")).write_text("0")


def check_name(name: str, where: str) -> None:
    """Raises :class:`ConfigError` for one that no interface can have."""
    length = len(name.encode())
    if not 0 < length <= MAX_NAME:
        raise ConfigError(f"{where}: {name!r} has {length} characters, and a name of an interface at most "
                          f"{MAX_NAME}: take a shorter name for the node, or addLink's intfName1 and intfName2")
    if name in (".", "..") or name.startswith("-") or _FORBIDDEN & set(name) or any(c.isspace() for c in name):
        raise ConfigError(f"{where}: no interface can be called {name!r}: take letters and digits")


def check_free(name: str, where: str) -> None:
    """Raises :class:`SmtError` if our namespace has an interface of that name."""
    if interface_exists(name):
        raise SmtError(taken(name, None, where))


def taken(name: str, pid: int | None, where: str) -> str:
    """What to say of an interface that is in the way."""
    return (f"{where}: {name} is there already, {_kind(name, pid)}that this network did not make: {whose()}; end "
            "that first, or choose other names")


def whose() -> str:
    """Who may have made what is in the way here: another Mininet that runs, if one is to be seen."""
    others = sorted(_other_networks().items())
    if others:
        return "perhaps of the Mininet that runs as " + ", ".join(
            f"process {pid} ({command})" for pid, command in others)
    return ("no other Mininet is to be seen here, so perhaps of one that was killed (mn -c removes what those "
            "left), or of another program")


def short_name(prefix: str, name: str) -> str:
    """The name of something of ours that belongs to interface ``name``: with ``prefix``, and one that fits."""
    if len((prefix + name).encode()) <= MAX_NAME:
        return prefix + name
    digest = f"_{zlib.crc32(name.encode()):08x}"
    head = prefix + name
    while len((head + digest).encode()) > MAX_NAME:
        head = head[:-1]
    return head + digest


def unused_name(prefix: str, name: str) -> str:
    """A name like :func:`short_name`'s that this process has not in use: hosts may call their interfaces alike."""
    candidates = itertools.chain([name], (f"{name}_{n}" for n in itertools.count(2)))
    return next(found for found in (short_name(prefix, c) for c in candidates) if found not in _names)


def silence(interface: str) -> None:
    """The kernel is to take no part in an emulated network on an interface of a switch or a wire, which is in our
    namespace: it answers no ARP, takes no IP packet, says nothing by itself.

    Whatever addresses the machine has, those of the emulated hosts are theirs. Where /proc/sys is read-only, only
    ARP is off, without which nobody finds us. Nothing happens if the interface is gone.
    """
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        name = interface.encode()
        flags = struct.unpack_from("16sH", fcntl.ioctl(s, _SIOCGIFFLAGS, struct.pack("16s24x", name)))[1]
        fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sH22x", name, flags | _IFF_NOARP))
    # It has no address and no routes: so no source is one that could come from there.
    for setting, value in (("rp_filter", 1), ("arp_ignore", 8), ("forwarding", 0)):
        _set("ipv4", interface, setting, value)
    _set("ipv6", interface, "disable_ipv6", 1)


def answer_for_itself(interface: str) -> None:
    """A host that is in our namespace, as ``--nat``'s, is to answer ARP for the address of this interface, and not
    for the machine's others; also to an emulated host that has the same address as the machine."""
    for setting, value in (("arp_ignore", 1), ("arp_announce", 2), ("accept_local", 1)):
        _set("ipv4", interface, setting, value)


def _set(version: str, interface: str, setting: str, value: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/sys/net/{version}/conf/{interface}/{setting}").write_text(str(value))


def _made(end: End) -> Device:
    index = within(end.pid, lambda: socket.if_nametoindex(end.name))
    if end.pid is None:
        _names.add(end.name)
    return Device(end.name, end.pid, index, locate(end.name, end.pid))


@contextlib.contextmanager
def _refusals(where: str, ends: tuple[End, ...]) -> Iterator[None]:
    """Says of a refusal which name was taken."""
    try:
        yield
    except SmtError:
        for end in ends:
            if within(end.pid, lambda end=end: interface_exists(end.name)):  # type: ignore[misc]
                raise SmtError(taken(end.name, end.pid, where)) from None
        raise


def _delete(index: int, name: str) -> None:
    """By rtnetlink in this thread's namespace: ``ip`` takes names only."""
    request = _IFINFO.pack(socket.AF_UNSPEC, 0, index, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as s:
        s.send(_HEADER.pack(_HEADER.size + len(request), _RTM_DELLINK, _REQUEST_ACK, 1, 0) + request)
        answer = s.recv(4096)
    kind = _HEADER.unpack_from(answer)[1]
    code = -struct.unpack_from("=i", answer, _HEADER.size)[0] if kind == _NLMSG_ERROR else 0
    if code not in (0, errno.ENODEV):
        raise SmtError(f"{name}: it cannot be removed: {os.strerror(code)}")


def _kind(name: str, pid: int | None) -> str:
    """The kind of an interface, as ``a veth in bridge s1 ``, as far as ip knows."""
    with contextlib.suppress(SmtError, ValueError):
        (entry,) = json.loads(run(["ip", "-j", "-d", "link", "show", "dev", name], pid=pid))
        kind = entry.get("linkinfo", {}).get("info_kind", "interface")
        master = f" in {entry['master']}" if "master" in entry else ""
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}{master} "
    return ""


def _other_networks() -> dict[int, str]:
    """Processes that have Mininet hosts or switches and our network namespace, with their commands."""
    found: dict[int, str] = {}
    ours = os.stat("/proc/self/ns/net").st_ino
    for entry in os.scandir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = Path(entry.path, "cmdline").read_bytes().split(b"\0") if entry.name.isdigit() else []
            if not any(word.startswith(_SHELL_MARK.encode()) for word in words):
                continue
            parent = int(Path(entry.path, "stat").read_text().rpartition(")")[2].split()[1])
            if parent not in (0, 1, os.getpid()) and os.stat(f"/proc/{parent}/ns/net").st_ino == ours:
                command = Path(f"/proc/{parent}/cmdline").read_bytes().replace(b"\0", b" ")
                found[parent] = command.decode(errors="replace").strip()[:_LONGEST_COMMAND]
    return found
