"""The SMT paper's figures of echo, as records: what they compare, at which points, and what they show there.

Values are read off the figures of the paper (IEEE S&P 2026), at the points that are measured here.
"""

from __future__ import annotations

from dataclasses import dataclass

from workloads.results.published import Published

#: What a figure's vertical axis is.
RTT, RATE = "round trip (us)", "RPC/s"
_SETUP = ("two hosts on a cable: network namespaces on one machine, where the paper has two servers and 100 Gb/s "
          "NICs")
_ABSOLUTE = ("absolute values: here protocols of ours are Python, TCP is the kernel's and TLS is OpenSSL's C, on "
             "few cores and no real NIC; ratios and the order of systems are what to look at")
_OFFLOAD = ("the NIC is smtnet's emulated one: what it seals and cuts takes the host's processor time, as "
            "software does")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure."""

    paper: str
    """What the paper calls it."""
    systems: tuple[tuple[str, str], ...]
    """(transport, nic) of what may be it here; the first that this machine has."""
    values: dict[int, tuple[float, ...]]
    """What the paper shows, by RPCs under way, in the order of the figure's sizes; empty: not shown there."""
    note: str = ""
    """Why it may be another system than the paper's."""
    tso: str = ""
    """``on`` or ``off``: the NIC's segmentation offload; empty: as it is."""

    @property
    def variant(self) -> str:
        """What tells its rows from those of the same system."""
        return f"nic tso {self.tso}" if self.tso else ""


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    number: int
    title: str
    axis: str
    """:data:`RTT` or :data:`RATE`."""
    sizes: tuple[int, ...]
    """Request bytes; answers are as long."""
    under_way: tuple[int, ...]
    """RPCs at a time."""
    lines: tuple[Line, ...]
    ratios: tuple[tuple[str, str], ...]
    """Whose values are divided by whose, by the names of the paper."""
    published: Published
    place: int
    quick_sizes: tuple[int, ...]
    """The sizes of ``--quick``."""

    @property
    def name(self) -> str:
        """``fig6``."""
        return f"fig{self.number}"


_KTLS = "the paper has kernel TLS; where this kernel has none, smtnet's own, on the kernel's TCP, stands in"
_KTLS_NIC = ("the paper has kernel TLS and a ConnectX-7; here smtnet's own, sealed by a NIC that is a process and "
             "owns the interface")
#: Of figures 6 and 7.
_RATIOS = (("SMT-sw", "kTLS-sw"), ("SMT-hw", "kTLS-hw"), ("Homa", "TCP"), ("SMT-sw", "Homa"), ("SMT-hw", "SMT-sw"))
_TCP, _HOMA = (("tcp", "sw"),), (("homa", "sw"),)
_SMT_SW, _SMT_HW = (("smt", "sw"),), (("smt", "hw"),)
_KTLS_SW, _KTLS_HW = (("ktls", "sw"), ("ktls-sw", "sw")), (("ktls-nic", "sw"),)

FIG6 = Figure(
    6, "unloaded round trip by message size", RTT, (64, 1024, 8192, 65_536), (1,), (
        Line("TCP", _TCP, {1: (25.5, 29.1, 61.7, 251.1)}),
        Line("kTLS-sw", _KTLS_SW, {1: (30.0, 33.8, 72.0, 304.5)}, _KTLS),
        Line("kTLS-hw", _KTLS_HW, {1: (28.6, 32.7, 71.7, 314.9)}, _KTLS_NIC),
        Line("Homa", _HOMA, {1: (16.7, 19.9, 50.0, 237.5)}),
        Line("SMT-sw", _SMT_SW, {1: (19.6, 23.6, 58.8, 272.8)}),
        Line("SMT-hw", _SMT_HW, {1: (19.6, 23.3, 55.5, 271.7)})),
    _RATIOS,
    Published("SMT paper (IEEE S&P 2026), Fig. 6", f"{_SETUP}. {_OFFLOAD}", not_comparable=_ABSOLUTE),
    2, (64, 1024, 65_536))
FIG7 = Figure(
    7, "RPCs per second by how many are under way", RATE, (64, 1024, 8192), (50, 150), (
        Line("TCP", _TCP, {50: (1122e3, 1072e3, 742e3), 150: (1904e3, 1767e3, 812e3)}),
        Line("kTLS-sw", _KTLS_SW, {50: (963e3, 890e3, 548e3), 150: (1448e3, 1318e3, 700e3)}, _KTLS),
        Line("kTLS-hw", _KTLS_HW, {50: (980e3, 901e3, 586e3), 150: (1574e3, 1427e3, 771e3)},
             _KTLS_NIC),
        Line("Homa", _HOMA, {50: (1929e3, 1869e3, 607e3), 150: (2248e3, 2182e3, 794e3)}),
        Line("SMT-sw", _SMT_SW, {50: (1597e3, 1458e3, 530e3), 150: (1729e3, 1580e3, 609e3)}),
        Line("SMT-hw", _SMT_HW, {50: (1645e3, 1538e3, 551e3), 150: (1878e3, 1771e3, 652e3)})),
    _RATIOS,
    Published("SMT paper (IEEE S&P 2026), Fig. 7", f"{_SETUP}. {_OFFLOAD}", not_comparable=(
        f"{_ABSOLUTE}. The paper has twelve application threads and four of the stack on each side, here a "
        "client and a server process share what processors there are; its 9 KB MTU and its figures of "
        "processor use are not here")),
    3, (64, 8192))
FIG10 = Figure(
    10, "SMT beside what stands in for TCPLS", RTT, (64, 256, 1024, 4096, 16_384), (1,), (
        Line("TCPLS", (("quic", "sw"),), {1: (27.1, 28.1, 31.6, 49.4, 98.8)},
             "QUIC by aioquic stands in for TCPLS: encrypted streams in user space, Python as ours"),
        Line("TCPLS", (("tls", "sw"),), {1: (27.1, 28.1, 31.6, 49.4, 98.8)},
             "TLS 1.3 of OpenSSL over the kernel's TCP stands in for TCPLS"),
        Line("SMT-sw", _SMT_SW, {1: (19.6, 20.6, 23.6, 42.1, 93.8)}),
        Line("SMT-hw", _SMT_HW, {1: (19.5, 20.5, 23.3, 40.3, 87.1)})),
    (("SMT-sw", "TCPLS"), ("SMT-hw", "TCPLS")),
    Published("SMT paper (IEEE S&P 2026), Fig. 10", f"{_SETUP}. {_OFFLOAD}", not_comparable=(
        "TCPLS itself: there is no TCPLS here. QUIC (aioquic) and TLS over TCP stand in, one on either "
        f"side of it: the first costs Python for each packet, the second is C. And {_ABSOLUTE}")),
    11, (64, 1024, 16_384))
FIG11 = Figure(
    11, "round trip with and without segmentation offload", RTT, (512, 1024, 2048, 4096, 8192), (1,), (
        Line("SMT-hw, TSO", _SMT_HW, {1: (21.4, 23.3, 31.9, 40.3, 55.5)}, tso="on"),
        Line("SMT-hw, no TSO", _SMT_HW, {1: (21.7, 23.5, 32.1, 43.1, 62.6)}, tso="off")),
    (("SMT-hw, no TSO", "SMT-hw, TSO"),),
    Published("SMT paper (IEEE S&P 2026), Fig. 11", f"{_SETUP}. {_OFFLOAD}", not_comparable=(
        "what TSO saves: the emulated NIC cuts segments on the host's processor, so the gain here is that "
        f"of fewer descriptors and records alone. And {_ABSOLUTE}")),
    12, (512, 2048, 8192))
