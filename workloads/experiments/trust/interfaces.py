"""Ways to the wire that are compared."""

from __future__ import annotations

from typing import Final

NATIVE: Final = "native"
EXIT: Final = "exit"
MODELLED: Final = "exit-modelled"
QUEUE: Final = "queue"
RING: Final = "ring"
UNCHECKED: Final = "ring-unchecked"
ZERO_COPY: Final = "ring-zero-copy"

#: What each is, as tables say it.
ABOUT: Final = {
    NATIVE: "system calls of its own; the host is trusted",
    EXIT: "each call is done by a process of the host, through a pipe",
    MODELLED: "the same, and leaving an enclave is said to cost so much more: a model",
    QUEUE: "a queue of calls, which a process of the host works off",
    RING: "no call: AF_XDP rings that are checked, the stack in the guarded process",
    UNCHECKED: "the same rings, and whatever the host says is believed",
    ZERO_COPY: "the same rings, checked; packets are parsed where they lie, in the host's memory",
}
#: RAKIS' settings: native, Gramine-SGX's exits (real hop; with a modelled cost), RAKIS, RAKIS without its checks.
SETTINGS: Final = (NATIVE, EXIT, MODELLED, RING, UNCHECKED)
#: rkt-io's: native, sync, async, direct.
RKT_IO: Final = {NATIVE: "native", EXIT: "sync (SGX exits)", QUEUE: "async (SCONE)", RING: "direct (rkt-io)"}
#: By each, the words of ``smtnet serve`` and ``call`` for transport smt, and of ``serve kv`` for tcp.
HOSTINGS: Final = {NATIVE: "inline", EXIT: "exit", MODELLED: "exit", QUEUE: "queue", RING: "ring",
                   UNCHECKED: "ring-unchecked"}
#: Microseconds of an exit and the way back, where nobody says: 8,200 cycles at 2.4 GHz, the least that was
#: measured of SGX calls out of enclaves (Weisse et al., HotCalls, ISCA 2017: 8,200 to 17,000 cycles).
EXIT_US: Final = 3.4


def smt_words(interface: str, exit_us: float) -> tuple[str, ...]:
    """Options of both ends of transport smt, and of a server of the KV store over tcp."""
    words = ("--nic-hosting", HOSTINGS[interface])
    return (*words, "--exit-us", f"{exit_us:g}") if interface == MODELLED else words
