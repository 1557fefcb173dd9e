"""Link rates and eight strict priorities by DSCP, with tc on the interface that sends.

HTB takes the rate; a class per priority, each with a buffer of its own, sits below it. A class is guaranteed next
to nothing and may borrow everything, and HTB lends to the highest priority first: that is strict priority. The
priority is the upper three bits of the DSCP, as the Homa module sets them; TCP sets none, so it is lowest.

Rates are those of the cable: each frame counts 24 bytes more than tc sees (FCS, preamble, gap), and at least 84.
With segmentation offload the kernel shapes frames of 64 KB before they are cut, and counts the 24 bytes once.

At a switch in user space the queues stand aside, on a cable of their own::

    Open vSwitch -> s1-eth1 -> q-s1-eth1 (HTB) ---- r-s1-eth1 -> s1-eth1 ---- h1-eth0

The kernel tells an AF_PACKET socket of a frame that a full queue has lost, and Open vSwitch then gives up the rest
of its batch, of whatever priority. And all its ports send by one socket, to which everything counts that waits
anywhere. Of a copy it hears nothing.
"""

from __future__ import annotations

import re
import socket
from contextlib import suppress
from dataclasses import dataclass

from smtstack.errors import SmtError, Unsupported
from topo.commands import batch, run
from topo.devices import Device, End, make_cable, short_name, silence

PRIORITIES = 8
#: Ethernet's FCS, preamble and gap; the shortest frame with them.
_OVERHEAD, _SHORTEST = 24, 84
#: Mbit/s. Below, one frame takes more than a second; above, no endpoint here fills the link.
LOWEST_MBPS, HIGHEST_MBPS = 0.01, 10_000.0
#: What a class has by right, however low: one frame a minute.
_BY_RIGHT = "rate 8bit burst 1"
#: What HTB may send at once: what the link carries in this many seconds, so that late timers cost no rate.
_BURST_S = 250e-6
_LLDP = 0x88CC
_CLASS = re.compile(r"^class htb 1:1(\d) .*\n Sent (\d+) bytes (\d+) pkts? \(dropped (\d+),.*\n"
                    r" backlog (\d+)([KM]?)b", re.MULTILINE)
#: Before the name of an interface: its queues, and where frames come back from them.
_ASIDE, _BACK = "q-", "r-"
#: Classic BPF: frames that have not been received by anybody (packet type 0, <linux/filter.h> SKF_AD_PKTTYPE).
_FIRST_TIME = "4,48 0 0 4294963204,21 0 1 0,6 0 0 4294967295,6 0 0 0"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


#: RED as Mininet sets it: from 30 to 35 KB in the queue on, packets are marked, or lost.
_RED = "red limit 1000000 min 30000 max 35000 avpkt 1500 burst 20 bandwidth {rate} probability 1{ecn}"


@dataclass(frozen=True, slots=True)
class Queue:
    """What each priority has of an interface with a rate."""

    octets: int
    """Bytes that it holds."""
    packets: int | None = None
    """Packets that it holds, instead of bytes."""
    red: bool = False
    """Random early detection, as Mininet sets it, before it is full."""
    ecn: bool = False
    """Random early detection (RED), but packets that can carry ECN are marked instead of lost."""

    def lines(self, interface: str, number: int, rate: str) -> list[str]:
        """``tc`` commands for the class of HTB with this number."""
        full = f"bfifo limit {self.octets}" if self.packets is None else f"pfifo limit {self.packets}"
        parent, handle = f"1:1{number}", f"2{number}:"
        if not (self.red or self.ecn):
            return [f"qdisc add dev {interface} parent {parent} handle {handle} {full}"]
        red = _RED.format(rate=rate, ecn=" ecn" if self.ecn else "")
        lines = [f"qdisc add dev {interface} parent {parent} handle {handle} {red}"]
        if self.packets is not None:
            lines.append(f"qdisc add dev {interface} parent {handle}1 handle 3{number}: {full}")
        return lines


@dataclass(frozen=True, slots=True)
class PriorityCounters:
    """What went through one priority of an interface, since the link was made."""

    packets: int
    octets: int
    """Frames from the Ethernet header on, without the 24 bytes."""
    dropped: int
    """The buffer was full."""
    waiting: int
    """Bytes in the buffer now; tc rounds from 10 KB on."""


def set_aside(interface: str, mtu: int) -> Device:
    """Have all that ``interface``, of our namespace, sends make a detour; the interface to :func:`shape` for it.

    It has to be removed with ``interface``. Raises :class:`Unsupported` where the kernel cannot do it."""
    queues, back = _aside(interface), short_name(_BACK, interface)
    made, _back = make_cable(End(queues), End(back), mtu, interface)
    for name in (queues, back):
        silence(name)
    batch("ip", [f"link set dev {name} up" for name in (queues, back)], where=interface)
    try:
        batch("tc", [f"qdisc add dev {interface} clsact",
                     f"filter add dev {interface} egress protocol all prio 1 bpf bytecode \"{_FIRST_TIME}\" "
                     # The copy goes on; "trap" ends the frame itself as if it had been sent.
                     f"action mirred egress mirror dev {queues} trap",
                     f"qdisc add dev {back} clsact",
                     f"filter add dev {back} ingress protocol all prio 1 u32 match u32 0 0 "
                     f"action mirred egress redirect dev {interface}"], where=interface)
    except SmtError as e:
        made.remove()
        raise Unsupported(f"links of a switch in user space have no rate with this kernel, which needs cls_bpf, "
                          f"act_mirred and clsact: use --switch bridge, or leave the rate out ({e})") from None
    return made


def _aside(interface: str) -> str:
    return short_name(_ASIDE, interface)


def queues_of(interface: str, pid: int | None = None) -> str:
    """The interface that has its queues: itself, or one aside."""
    if pid is None:
        with suppress(OSError):
            socket.if_nametoindex(_aside(interface))
            return _aside(interface)
    return interface


def shape(interface: str, mbps: float, queue: Queue, mtu: int, pid: int | None = None) -> None:
    """Limit what ``interface`` sends; ``pid`` names a process of its namespace (None: ours).

    ``queue`` is that of each priority. Raises :class:`Unsupported` where the kernel has no HTB, or no RED.
    """
    frame = mtu + 14 + _OVERHEAD
    burst = max(2 * frame, round(mbps * 1e6 / 8 * _BURST_S))
    size = f"overhead {_OVERHEAD} mpu {_SHORTEST} cburst {burst}"
    rate = f"{round(mbps * 1e6)}bit"
    lines = [f"qdisc replace dev {interface} root handle 1: htb default 17",
             f"class add dev {interface} parent 1: classid 1:1 htb rate {rate} ceil {rate} burst {burst} {size}"]
    for n in range(PRIORITIES):  # 0 is the highest for HTB, 7 for DSCP
        tos = (PRIORITIES - 1 - n) << 5
        lines += [f"class add dev {interface} parent 1:1 classid 1:1{n} htb {_BY_RIGHT} ceil {rate} prio {n} "
                  f"quantum {frame} {size}",
                  *queue.lines(interface, n, rate),
                  f"filter add dev {interface} parent 1: protocol ip prio 1 u32 match ip dsfield {tos} 0xe0 "
                  f"flowid 1:1{n}"]
    # A link that carries nothing but high priorities would lose the probes by which a controller finds it.
    lines.append(f"filter add dev {interface} parent 1: protocol {_LLDP:#x} prio 2 u32 match u32 0 0 flowid 1:10")
    try:
        batch("tc", lines, where=interface, pid=pid)
    except SmtError as e:
        if "qdisc kind is unknown" in str(e) or "Failed to load TC" in str(e):
            if queue.red or queue.ecn:
                raise Unsupported(f"{interface}: this kernel has no HTB, u32 or RED (sch_htb, cls_u32, sch_red): "
                                  "leave enable_red and enable_ecn out") from None
            raise Unsupported(f"{interface}: this kernel has no HTB or u32 (sch_htb, cls_u32), so links have no "
                              "rate: leave bw (rate_mbps) out") from None
        raise


def priority_counters(interface: str, pid: int | None = None) -> dict[int, PriorityCounters]:
    """By Homa priority, 7 the highest; empty for an interface without a rate."""
    # tc's JSON is broken for HTB in the versions of Debian 12 and Ubuntu 22.04.
    text = run(["tc", "-s", "class", "show", "dev", queues_of(interface, pid)], where=interface, pid=pid)
    found = {}
    for match in _CLASS.finditer(text):
        index, octets, packets, dropped, waiting, unit = match.groups()
        found[PRIORITIES - 1 - int(index)] = PriorityCounters(
            int(packets), int(octets), int(dropped), int(waiting) * _UNITS[unit])
    return found
