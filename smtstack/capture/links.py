"""From a captured frame to the packet of ours in it: link types, tags, tunnels.

Numbers: the registries at tcpdump.org/linktypes.html and of IANA. What leads to IPv4 in a simple way is
followed: Ethernet (VLAN tags, 802.2 SNAP), Linux cooked, raw IP, BSD loopback, PPP, Cisco HDLC, PPPoE, MPLS, and
over IPv4 or IPv6: IP in IP, GRE (ERSPAN of types I and II), VXLAN, Geneve. Everything else has a name, by which
it is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import NamedTuple

LINK_ETHERNET = 1
LINK_RAW = 101
LINK_SLL = 113
LINK_SLL2 = 276
_LINK_NULL, _LINK_PPP, _LINK_PPP_HDLC, _LINK_PPP_ETHER, _LINK_CHDLC, _LINK_LOOP = 0, 9, 50, 51, 104, 108
_LINK_IPV4, _LINK_IPV6 = 228, 229
#: Raw IP under its registered number, and as written by some BSDs.
_RAW_LINKS = (LINK_RAW, 12, 14, _LINK_IPV4, _LINK_IPV6)
#: Those that are not followed, by what they begin with.
_LINK_NAMES = {
    3: "AX.25", 6: "Token Ring", 8: "SLIP", 10: "FDDI", 100: "RFC 1483 ATM", 105: "802.11", 107: "Frame Relay",
    109: "OpenBSD enc", 114: "LocalTalk", 117: "OpenBSD pflog", 119: "802.11 with a Prism header",
    127: "802.11 with radiotap", 129: "ARCNET", 138: "IP over FireWire", 143: "DOCSIS",
    163: "802.11 with an AVS header", 187: "Bluetooth HCI", 189: "Linux USB", 192: "PPI",
    195: "802.15.4", 197: "ERF", 201: "Bluetooth HCI", 220: "Linux USB", 227: "CAN", 239: "NFLOG",
    247: "InfiniBand", 249: "USBPcap", 252: "Wireshark's exported PDUs", 253: "netlink", 266: "USB of macOS",
    274: "802.3br", 278: "Open vSwitch's memory"}

_IPV4, _IPV6, _TRANSPARENT, _PPPOE, _MACSEC = 0x0800, 0x86DD, 0x6558, 0x8864, 0x88E5
_ERSPAN_2 = 0x88BE
#: 802.1Q, 802.1ad, and the numbers that switches used before that one was.
_VLAN_TAGS = (0x8100, 0x88A8, 0x9100, 0x9200, 0x9300)
_MPLS = (0x8847, 0x8848)
_ETHERTYPES = {0x0806: "ARP", 0x8035: "RARP", 0x8808: "Ethernet flow control", 0x8809: "slow protocols (LACP)",
               0x8863: "PPPoE discovery", _MACSEC: "MACsec, encrypted", 0x88CC: "LLDP", 0x88F7: "PTP",
               0x888E: "802.1X", 0x8906: "FCoE", 0x8915: "RoCE", 0x22EB: "ERSPAN of type III", 0x880B: "PPP"}
_PPP_IPV4, _PPP_IPV6 = 0x0021, 0x0057
_BSD_IPV4, _BSD_IPV6 = 2, (10, 24, 28, 30)

_ICMP, _IPIP, _TCP, _UDP, _IN6, _FRAGMENT, _GRE, _ICMPV6 = 1, 4, 6, 17, 41, 44, 47, 58
_PROTOCOLS = {_ICMP: "ICMP", 2: "IGMP", _TCP: "TCP", _UDP: "UDP", 50: "ESP", 51: "AH", _ICMPV6: "ICMPv6",
              89: "OSPF", 103: "PIM", 112: "VRRP", 132: "SCTP"}
_EXTENSIONS = (0, 43, 60)
_VXLAN_PORTS, _GENEVE_PORT = (4789, 8472), 6081
#: Headers one in another that are followed.
_MAX_DEPTH = 32


class Frame(NamedTuple):
    """What a frame is."""

    #: From the IPv4 header of the protocol looked for to the end, padding included; None: there is none.
    packet: bytes | None
    #: Its name; of what is looked for "".
    name: str
    #: It ends, by the capture's or its own fault, inside the headers that lead there.
    cut: bool = False


class _CutError(Exception):
    """The frame ends inside a header."""


def find_untrusted(link_type: int, frame: bytes, wanted: Container[int]) -> Frame:
    """The IPv4 packet of a protocol in ``wanted``, or what else the frame is. Raises nothing.

    The first one, from the outside: what tunnels carry is looked into only where the tunnel is not wanted itself.
    """
    try:
        return _Walk(frame, wanted).link(link_type)
    except _CutError:
        return Frame(None, "cut off in their headers", cut=True)


class _Walk:
    """One frame, from header to header."""

    __slots__ = ("_depth", "_frame", "_wanted")

    def __init__(self, frame: bytes, wanted: Container[int]) -> None:
        self._frame = frame
        self._wanted = wanted
        self._depth = 0

    def _u16(self, at: int) -> int:
        if at + 2 > len(self._frame):
            raise _CutError
        return self._frame[at] << 8 | self._frame[at + 1]

    def _u8(self, at: int) -> int:
        if at >= len(self._frame):
            raise _CutError
        return self._frame[at]

    def link(self, link_type: int) -> Frame:
        if link_type == LINK_ETHERNET:
            return self._ethernet(0)
        if link_type == LINK_SLL:
            return self._ethertype(self._u16(14), 16)
        if link_type == LINK_SLL2:
            self._u16(18)
            return self._ethertype(self._u16(0), 20)
        if link_type in _RAW_LINKS:
            return self._ip(0)
        if link_type in (_LINK_NULL, _LINK_LOOP):
            return self._loopback()
        if link_type in (_LINK_PPP, _LINK_PPP_HDLC):
            # With or without address and control bytes.
            return self._ppp(2 if self._u16(0) == 0xFF03 else 0)
        if link_type == _LINK_PPP_ETHER:
            return self._ppp(6)
        if link_type == _LINK_CHDLC:
            return self._ethertype(self._u16(2), 4)
        named = _LINK_NAMES.get(link_type)
        return Frame(None, f"link type {link_type}" + (f" ({named})" if named else ""))

    def _ethernet(self, at: int) -> Frame:
        return self._ethertype(self._u16(at + 12), at + 14)

    def _ethertype(self, kind: int, at: int) -> Frame:
        while kind in _VLAN_TAGS:
            kind, at = self._u16(at + 2), at + 4
        if kind < 0x0600:
            # A length: 802.2 follows, with SNAP or without.
            if self._u16(at) != 0xAAAA:
                return Frame(None, "802.2 LLC")
            self._u8(at + 2)
            kind, at = self._u16(at + 6), at + 8
        if kind == _IPV4:
            return self._ipv4(at)
        if kind == _IPV6:
            return self._ipv6(at)
        if kind in _MPLS:
            return self._mpls(at)
        if kind == _PPPOE:
            return self._ppp(at + 6)
        if kind == _TRANSPARENT:
            return self._deeper(self._ethernet, at)
        return Frame(None, _ETHERTYPES.get(kind, f"ethertype {kind:#06x}"))

    def _loopback(self) -> Frame:
        # In the byte order of the machine that captured, or (loop) of the network.
        head = (self._u16(0), self._u16(2))
        family = head[1] if not head[0] else (head[0] >> 8 | (head[0] & 0xFF) << 8)
        if family == _BSD_IPV4:
            return self._ipv4(4)
        return self._ipv6(4) if family in _BSD_IPV6 else Frame(None, f"address family {family}")

    def _ppp(self, at: int) -> Frame:
        protocol = self._u8(at)
        # Compressed to one byte where that is odd.
        if protocol & 1:
            at += 1
        else:
            protocol, at = self._u16(at), at + 2
        if protocol == _PPP_IPV4:
            return self._ipv4(at)
        if protocol == _PPP_IPV6:
            return self._ipv6(at)
        return Frame(None, f"PPP protocol {protocol:#06x}")

    def _mpls(self, at: int) -> Frame:
        while not self._u8(at + 2) & 1:
            at += 4
        self._u8(at + 3)
        at += 4
        version = self._u8(at) >> 4
        if version in (4, 6):
            return self._ip(at)
        # A control word, or the frame itself: by nothing in the packet to be told apart.
        return Frame(None, "MPLS of another protocol than IP")

    def _ip(self, at: int) -> Frame:
        version = self._u8(at) >> 4
        if version == 4:
            return self._ipv4(at)
        return self._ipv6(at) if version == 6 else Frame(None, f"IP version {version}")

    def _deeper(self, step: Callable[[int], Frame], at: int) -> Frame:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            return Frame(None, f"more than {_MAX_DEPTH} headers one in another")
        return step(at)

    def _ipv4(self, at: int) -> Frame:
        self._u16(at + 18)
        protocol = self._frame[at + 9]
        if protocol in self._wanted:
            return Frame(self._frame[at:], "")
        if self._u16(at + 6) & 0x1FFF:
            return Frame(None, "IPv4 fragments")
        return self._upper(protocol, at + 4 * (self._frame[at] & 15), "")

    def _ipv6(self, at: int) -> Frame:
        self._u16(at + 38)
        protocol, at = self._frame[at + 6], at + 40
        while protocol in _EXTENSIONS:
            protocol, at = self._u8(at), at + 8 + 8 * self._u8(at + 1)
        if protocol == _FRAGMENT:
            return Frame(None, "IPv6 fragments")
        if protocol in self._wanted and protocol != _TCP:
            # It would be of ours, but all profiles are for IPv4.
            return Frame(None, f"IPv6 with protocol {protocol} of ours, which is read over IPv4 only")
        return self._upper(protocol, at, "IPv6 ")

    def _upper(self, protocol: int, at: int, version: str) -> Frame:
        if protocol == _IPIP:
            return self._deeper(self._ipv4, at)
        if protocol == _IN6:
            return self._deeper(self._ipv6, at)
        if protocol == _GRE:
            return self._gre(at)
        if protocol == _UDP:
            port = self._u16(at + 2)
            if port in _VXLAN_PORTS and self._u8(at + 8) & 0x08:
                return self._deeper(self._ethernet, at + 16)
            if port == _GENEVE_PORT:
                kind = self._u16(at + 10)
                at += 16 + 4 * (self._u8(at + 8) & 0x3F)
                return self._deeper(lambda start: self._ethertype(kind, start), at)
        return Frame(None, version + _PROTOCOLS.get(protocol, f"IP protocol {protocol}"))

    def _gre(self, at: int) -> Frame:
        flags, kind = self._u16(at), self._u16(at + 2)
        if flags & 7:
            return Frame(None, f"GRE of version {flags & 7}")
        if kind < 0x0600:
            return Frame(None, f"GRE of protocol {kind:#06x}")
        at += 4 + 4 * sum(bool(flags & bit) for bit in (0x8000, 0x2000, 0x1000))
        if kind == _ERSPAN_2:
            # Type I has neither sequence number nor a header of its own.
            return self._deeper(self._ethernet, at + 8 if flags & 0x1000 else at)
        return self._deeper(lambda start: self._ethertype(kind, start), at)
