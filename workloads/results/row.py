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


#: Nobody said how to wait: each transport does as it does by default.
BY_DEFAULT = "by default"
#: What rows say of the ways to wait (:mod:`smtstack.waiting`).
HOW = {"hybrid": "hybrid", "interrupt": "interrupt", "poll": "polling"}


class _Judged(TypedDict):
    ok: bool
    reasons: list[str]
    """Why not, a sentence each."""


class Verdict(_Judged, total=False):
    """Whether a trial, or a whole run, was faithful (:mod:`workloads.results.fidelity`); most numbers may be
    missing."""

    steal: float | None
    """Share of all processor time that the hypervisor took; None: not known."""
    idle: float | None
    """Share of all processor time in which there was nothing to do; None: not known."""
    run_delay: float | None
    """Share of the time in which the process that waited most had no processor; None: the kernel does not tell."""
    psi_cpu_some: float | None
    """Share of the time in which some task of the machine waited for a processor; None: not told by the kernel."""
    receive_drops: int
    """Frames lost for want of buffer in our sockets."""
    send_drops: int
    """Frames given up because the transmit queue stayed full."""
    path_drops: int
    """Frames lost in switches and cables that were too slow."""
    timer_late_us: float
    """Most that a timer of our transports was late."""
    tick_us: float
    """Period of the timers of our transports."""
    waits: Mapping[str, int] | None
    """RPCs by the microseconds that their client waited for a processor meanwhile; None: not known."""
    figures: Mapping[str, bool]
    """Which figures of the row can stand: percentiles, ``mean``, ``rpc_per_s``."""
    figure_reasons: Mapping[str, str]
    """Why the other figures of the row cannot stand."""
    trials: int
    """Trials of a whole run."""
    unfaithful: int
    """How many trials of a whole run were not faithful."""


class Cpu(TypedDict, total=False):
    """Processor time, in seconds, of all processes of a kind."""

    client_s: float
    server_s: float
    switch_s: float
    """What emulates the network: of others' work, but on this machine."""
    wall_s: float
    """How long the trial took."""
    us_per_rpc: float | None
    """Processor time of clients and servers for each RPC; None: there was none."""
    nic_s: float
    """Processor time of the hosts' NICs, where these own the interfaces (``--nic-hosting tap``)."""
    nic_us_per_rpc: float | None
    """Processor time of those NICs for each RPC."""


class OpenLoopFigures(TypedDict):
    """How RPCs went that begin at a rate, whatever became of those before; of the client that did worst."""

    rate: float
    """RPC/s that were asked for."""
    kept_up: bool
    drain_ms: float
    """From the last one's beginning until all were over."""
    late_us: Mapping[str, float]
    """How late RPCs began: p50, p99, max."""


class _Always(TypedDict):
    topo: str
    """The topology as on the command line: ``star,4``."""
    transport: str
    nic: str | None
    """Who seals records: ``sw``, ``hw``; None: the NIC does nothing for this transport."""
    mode: str
    """What was measured, and so how it is judged (:mod:`workloads.results.kinds`): ``unloaded``, one RPC at a
    time; ``loaded``, also of every open loop; or an experiment's own."""
    size: int | str
    """Request bytes; or the name of a distribution."""
    concurrency: int
    """RPCs under way in all."""
    rpcs: int
    """RPCs that were answered."""
    errors: int
    """RPCs without an answer."""
    content_ok: bool
    """Every answer was what it had to be."""
    rpc_per_s: float
    rtt_us: Times


class Answered(_Always, total=False):
    """What clients tell of one trial of one point; what is declared here is there where it means something."""

    trial: int
    """From 1 on."""
    poll: str
    """How who waits for frames was told to do it: :data:`BY_DEFAULT`, ``hybrid``, ``interrupt``, ``polling``. Only
    those told the same are compared."""
    wait: str
    """How they did: the default of a transport has a name, and where processes outnumber processors, those that
    are hybrid sleep."""
    variant: str
    """What else makes it a point of its own: ``tso off``, ``not encrypted``."""
    first_error: str
    """What the first client said that had one."""
    switch: str | None
    """Kind of switch; None: there is none."""
    pinned: bool
    """Every host had processors of its own."""
    bytes: int
    """Bytes of all requests."""
    session: Mapping[str, Any]
    """How sessions of smt began: ``mode``, and counters since the clients were started."""
    dns: str
    """Which server had the tickets."""
    open_loop: OpenLoopFigures


class RingCounts(TypedDict):
    """What guarded processes and their host did (``--nic-hosting ring``), over all hosts; counts are of this
    trial, and of what was between the one before and it."""

    rejected_indices: int
    """Indices of the host that could not be."""
    invalid_frames: int
    """Descriptors of the host that named no frame which it had."""
    sleeps: int
    """Times that a guarded process slept until the monitor woke it."""
    bells: int
    """Times that it woke the monitor."""
    in_memory: int
    """Endpoints whose rings are not the kernel's."""


class Lost(TypedDict, total=False):
    """What a network lost in a trial and what was sent again, each where it means something."""

    drops: Mapping[str, int]
    """Frames lost in the network, by who lost them: ``queues``, ``impairments``, ``ovs``, ``wire``, ``cables``."""
    fabric: Mapping[str, int]
    """Bytes by way between switches: ``s1>s2``."""
    resent_packets: int
    """smt, homa, linux, upstream: packets sent again."""
    resends: int
    """smt, homa, linux, upstream: RESENDs, which ask for packets again."""
    retransmits: int
    """tcp, tls, ktls: segments sent again."""
    timeouts: int
    """tcp, tls, ktls: retransmission time-outs."""
    ring: RingCounts
    """Where guarded processes are."""


class Row(Answered, Lost):
    """One trial of one point."""

    cpu: Cpu
    fidelity: Verdict
