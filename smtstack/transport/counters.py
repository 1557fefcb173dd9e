"""What an endpoint counted. Plain integers; :meth:`Counters.snapshot` gives a dict."""

from __future__ import annotations

from typing import Final

#: All of them; a compiled class has no ``__slots__`` to ask.
NAMES: Final = (
    "acks_forged", "bad_packets", "beyond_message", "busy_sent", "cutoffs_sent", "data_merged", "data_received",
    "data_redundant", "evicted", "failed", "frames_held", "frames_held_dropped", "freezes", "grants_sent",
    "handshakes_unexpected", "incast_marked", "key_unknown",
    "length_conflicts", "need_acks_sent", "no_memory", "no_session", "overlay_received", "overlay_unexpected",
    "packets_received",
    "packets_resent", "records_failed", "replays", "requests_delivered", "requests_sent",
    "resends_sent", "responses_delivered", "responses_dropped", "responses_sent", "stray", "timeouts",
    "too_long", "truncated", "unknowns_sent", "wrong_address",
)


class Counters:
    """Packets, recoveries and refusals of one endpoint since its start."""

    __slots__ = NAMES

    def __init__(self) -> None:
        #: ACKs of profile smt whose proof was wrong.
        self.acks_forged = 0
        #: Packets that did not parse.
        self.bad_packets = 0
        #: DATA outside its message.
        self.beyond_message = 0
        self.busy_sent = 0
        self.cutoffs_sent = 0
        #: Frames of overlay_received that held several packets: nobody cut them, or GRO merged them.
        self.data_merged = 0
        self.data_received = 0
        #: DATA that brought no new byte.
        self.data_redundant = 0
        #: Unfinished, unauthenticated requests dropped to make room.
        self.evicted = 0
        #: RPCs of ours that ended in an error.
        self.failed = 0
        #: Frames of peers without a session, kept for when there is one.
        self.frames_held = 0
        #: Of these, those forgotten again.
        self.frames_held_dropped = 0
        self.freezes = 0
        self.grants_sent = 0
        #: Packets of the handshake plane, where nobody makes sessions by handshakes.
        self.handshakes_unexpected = 0
        #: Requests of ours whose responses are to come by grant.
        self.incast_marked = 0
        #: DATA under a key epoch we do not accept.
        self.key_unknown = 0
        #: DATA that disagreed with its message's length.
        self.length_conflicts = 0
        self.need_acks_sent = 0
        #: DATA refused by a memory bound.
        self.no_memory = 0
        #: Packets of peers we have no key for.
        self.no_session = 0
        #: DATA in the shape of TCP; and where we did not agree to that.
        self.overlay_received = 0
        self.overlay_unexpected = 0
        self.packets_received = 0
        self.packets_resent = 0
        #: Records that did not authenticate: discarded and asked for again.
        self.records_failed = 0
        #: Requests refused because their id was delivered before.
        self.replays = 0
        self.requests_delivered = 0
        self.requests_sent = 0
        self.resends_sent = 0
        self.responses_delivered = 0
        #: Responses that were sent whole, not acknowledged, and forgotten to make room.
        self.responses_dropped = 0
        self.responses_sent = 0
        #: Packets for RPCs we do not know (late duplicates, mostly).
        self.stray = 0
        self.timeouts = 0
        #: Messages (or DATA of such) longer than was agreed on.
        self.too_long = 0
        #: Messages whose clear length ended before their last record.
        self.truncated = 0
        self.unknowns_sent = 0
        #: Packets for another address, port or protocol.
        self.wrong_address = 0

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in NAMES}
