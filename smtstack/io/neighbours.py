"""Next hops and their MAC addresses, from the kernel's routes and neighbour table."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable
from pathlib import Path

from smtstack.wire.ipv4 import format_address

#: How long to wait for the kernel to resolve an address, in seconds, and after a failure to try again.
PATIENCE = 1.0
#: A neighbour is looked up again after this long, in seconds: it may have moved.
LIFETIME = 30.0
LOOPBACK = "lo"
_NO_MAC = bytes(6)
_COMPLETE = 0x2
_RTF_UP, _RTF_GATEWAY = 1, 2
_DISCARD_PORT = 9


class Neighbours:
    """``neighbours(ip)`` is the MAC of the next hop towards ``ip`` on one interface, or None."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        #: ip -> (MAC or None, when to ask again)
        self._known: dict[int, tuple[bytes | None, float]] = {}

    def __call__(self, ip: int) -> bytes | None:
        mac, until = self._known.get(ip, (None, 0.0))
        now = time.monotonic()
        if now < until:
            return mac
        mac = self._resolve(next_hop(self._interface, ip))
        self._known[ip] = (mac, time.monotonic() + (LIFETIME if mac else PATIENCE))
        return mac

    def _resolve(self, hop: int) -> bytes | None:
        if self._interface == LOOPBACK:
            # It has no ARP, and whatever is sent there is for this host.
            return _NO_MAC
        mac = _look_up(self._interface, hop)
        if mac is not None:
            return mac
        # The kernel asks by ARP when it has something to send; an empty datagram to the discard port is.
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            try:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._interface.encode() + b"\0")
                s.sendto(b"", (socket.inet_ntoa(hop.to_bytes(4, "big")), _DISCARD_PORT))
            except OSError:
                return None
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            mac = _look_up(self._interface, hop)
            if mac is not None:
                return mac
            time.sleep(0.001)
        return None


def _look_up(interface: str, ip: int) -> bytes | None:
    """MAC of a directly connected address in /proc/net/arp."""
    text = socket.inet_ntoa(ip.to_bytes(4, "big"))
    for line in Path("/proc/net/arp").read_text().splitlines()[1:]:
        address, _type, flags, mac, _mask, device = line.split()
        if address == text and device == interface and int(flags, 16) & _COMPLETE:
            return bytes.fromhex(mac.replace(":", ""))
    return None


def next_hop(interface: str, ip: int) -> int:
    """Gateway towards ``ip``, or ``ip`` itself if it is on the link, or the interface has no route to it."""
    _device, hop = route(ip, interface)
    return hop or ip


def route(ip: int, interface: str | None = None) -> tuple[str, int]:
    """(interface, next hop) towards ``ip`` by the longest prefix in /proc/net/route, of all interfaces or one;
    ("", 0): there is none."""
    best, found = -1, ("", 0)
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        device, dst, gateway, flags, _ref, _use, _metric, mask, *_rest = line.split()
        # The file shows addresses as host-order words.
        net, via, bits = (struct.unpack("!I", struct.pack("=I", int(x, 16)))[0] for x in (dst, gateway, mask))
        if interface in (None, device) and int(flags, 16) & _RTF_UP and ip & bits == net and bits > best:
            best = bits
            found = device, via if int(flags, 16) & _RTF_GATEWAY else ip
    return found


def obstacle(ips: Iterable[int], interface: str | None = None) -> str:
    """Why nothing may come back from one of these peers, as far as this host sees: for an error text. Names the
    next hop that does not answer ARP, or the gateway that does, behind which the peer would be; empty: all of
    them are on our own links, and answer ARP."""
    behind = ""
    for ip in ips:
        peer = format_address(ip)
        device, hop = route(ip, interface)
        if not device:
            other = route(ip)[0] if interface else ""
            return (f"{interface or 'this host'} has no route to {peer}"
                    + (f", but {other} has: --iface {other}" if other else ""))
        if _look_up(device, hop) is None:
            if hop == ip:
                return f"nobody answers ARP for {peer} on {device}"
            return f"nobody answers ARP for {format_address(hop)}, the next hop to {peer}, on {device}"
        if hop != ip and not behind:
            behind = (f"nothing comes back from {format_address(hop)}, the next hop to {peer}, which answers ARP "
                      f"on {device}: does it forward, and is the server at the interface where that comes in?")
    return behind
