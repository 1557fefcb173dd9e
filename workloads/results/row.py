"""What a result is: a row for each trial of each measured point, as run.json has it.

What only one experiment's rows have is a type beside that experiment, which extends :class:`Row`. Times are in
microseconds where a name ends in ``_us``, seconds in ``_s``; bytes and counts are whole numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias, TypedDict

#: Microseconds by name: ``min``, ``p50``, ``p90``, ``p99``, ``p999``, ``max``, ``mean`` of a trial's round trips;
#: None: nothing was answered.
Times: TypeAlias = Mapping[str, float | None]


class _Judged(TypedDict):
    ok: bool
    reasons: list[str]
    """Why not, a sentence each."""


class Verdict(_Judged, total=False):
    """Whether a trial, or a whole run, was faithful (:mod:`workloads.results.fidelity`); most numbers may be
    missing."""

    steal: float | None
    """Share of all processor time that the hypervisor took; None: not known, as is the next one."""
    idle: float | None
    run_delay: float | None
    """Share of the time in which the process that waited most had no processor; None: the kernel does not tell, as
    of the next one."""
    psi_cpu_some: float | None
    """Share of the time in which some task of the machine waited for a processor."""
    receive_drops: int
    """Frames lost for want of buffer in our sockets ..."""
    send_drops: int
    path_drops: int
    """... and in switches and cables that were too slow."""
    timer_late_us: float
    """Most that a timer of our transports was late."""
    tick_us: float
    """Of these timers."""
    waits: Mapping[str, int] | None
    """RPCs by the microseconds that their client waited for a processor meanwhile; None: not known."""
    figures: Mapping[str, bool]
    """Which figures of the row can stand: percentiles, ``mean``, ``rpc_per_s``."""
    figure_reasons: Mapping[str, str]
    """Why the others cannot."""
    trials: int
    """Of a whole run, ..."""
    unfaithful: int
    """... and how many of them were not faithful."""


class Cpu(TypedDict, total=False):
    """Processor time, in seconds, of all processes of a kind."""

    client_s: float
    server_s: float
    switch_s: float
    """What emulates the network: of others' work, but on this machine."""
    wall_s: float
    """How long the trial took."""
    us_per_rpc: float | None
    """Of clients and servers, for each RPC; None: there was none."""


class OpenLoop(TypedDict):
    """Of RPCs that begin at a rate, whatever became of those before; of the client that did worst."""

    rate: float
    """RPC/s that were asked for."""
    kept_up: bool
    drain_ms: float
    """From the last one's beginning until all were over."""
    late_us: Mapping[str, float]
    """How late RPCs began: p50, p99, max."""


class _Always(TypedDict):
    topo: str
    """As on the command line: ``star,4``."""
    transport: str
    nic: str | None
    """Who seals records: ``sw``, ``hw``; None: the NIC does nothing for this transport."""
    mode: str
    """What was measured, and so how it is judged (:mod:`workloads.results.kinds`): ``unloaded``, one RPC at a
    time; ``loaded``; or an experiment's own."""
    size: int | str
    """Request bytes; or the name of a distribution."""
    concurrency: int
    """RPCs under way in all."""
    rpcs: int
    """That were answered."""
    errors: int
    """RPCs without an answer."""
    content_ok: bool
    """Every answer was what it had to be."""
    rpc_per_s: float
    rtt_us: Times
    cpu: Cpu
    fidelity: Verdict


class Row(_Always, total=False):
    """One trial of one point; what is declared here is there only where it means something."""

    trial: int
    """From 1 on."""
    poll: str
    """How who waits for frames does it: ``interrupt``, ``polling``."""
    variant: str
    """What else makes it a point of its own: ``tso off``."""
    first_error: str
    """What the first client said that had one."""
    switch: str | None
    """Kind of switch; None: there is none."""
    pinned: bool
    """Every host had processors of its own."""
    bytes: int
    """Of all requests."""
    session: Mapping[str, Any]
    """How sessions of smt began: ``mode``, and counters since the clients were started."""
    dns: str
    """Which server had the tickets."""
    open_loop: OpenLoop
    drops: Mapping[str, int]
    """Frames lost in the network, by who lost them: ``queues``, ``impairments``, ``ovs``, ``wire``, ``cables``."""
    fabric: Mapping[str, int]
    """Bytes by way between switches: ``s1>s2``."""
    resent_packets: int
    """smt, homa, linux: packets sent again, and RESENDs that asked for them."""
    resends: int
    retransmits: int
    """tcp, tls, ktls: segments sent again, and retransmission time-outs."""
    timeouts: int
