"""What a bridge does with a damaged IPv4 header: ``python -m tests.net.firewall_driver``. JSON on stdout.

br_netfilter drops it, whatever rules there are, so that no rules (nor programs that set them) are needed to see
whether a firewall judges what a bridge switches.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

from smtstack.io.namespaces import within
from tests.net.inside import go_inside
from tests.net.isolation_driver import datagram, network
from topo import devices, switches
from topo.reach import echo

_SETTING = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
_ETH_P_IP = 0x0800
#: Where the checksum of the IPv4 header is in a frame.
_CHECKSUM_AT = 24


def arrived(net: Any) -> list[str]:
    """Of a packet as it should be and one whose header checksum is wrong, those that come from h1 to h2."""
    one, two = net["h1"], net["h2"]
    mac = bytes.fromhex(two.MAC().replace(":", ""))
    damaged = bytearray(datagram(one, mac, two.IP(), b"damaged"))
    damaged[_CHECKSUM_AT] ^= 0xFF

    def listen() -> socket.socket:
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        s.bind(("h2-eth0", _ETH_P_IP))
        return s

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as s:
            s.bind(("h1-eth0", 0))
            s.send(damaged)
            s.send(datagram(one, mac, two.IP(), b"whole"))

    with within(two.pid, listen) as s:
        within(one.pid, send)
        # What came before an echo came back is there.
        assert echo(one.pid, two.IP(), 100, 20.0)
        s.setblocking(False)
        found = []
        with suppress(BlockingIOError):
            while True:
                frame = s.recv(100)
                found += [word for word in ("damaged", "whole") if frame[42:].rstrip(b"\0") == word.encode()]
        return sorted(found)


def main() -> dict[str, Any]:
    """As a sandbox is, and with the setting as a new namespace has it."""
    said: list[str] = []
    switches.output = said.append  # type: ignore[attr-defined]
    results: dict[str, Any] = {"settings": devices.firewalled()}
    with network("bridge", {}) as net:
        results["kept out"] = {"arrived": arrived(net), "said": "".join(said)}
    _SETTING.write_text("1")
    switches._say_firewall.cache_clear()  # it is said once a process
    with network("bridge", {}) as net:
        results["let in"] = {"arrived": arrived(net), "said": "".join(said)}
    return results


if __name__ == "__main__":
    go_inside()
    print(json.dumps(main()))
