"""What an endpoint counted. Plain integers; :meth:`Counters.snapshot` gives a dict."""

from __future__ import annotations


class Counters:
    """Packets, recoveries and refusals of one endpoint since its start."""

    __slots__ = (
        "acks_forged", "bad_packets", "beyond_message", "busy_sent", "cutoffs_sent", "data_received",
        "data_redundant", "evicted", "failed", "freezes", "grants_sent", "key_unknown",
        "length_conflicts", "need_acks_sent", "no_memory", "no_session", "packets_received",
        "packets_resent", "records_failed", "replays", "requests_delivered", "requests_sent",
        "resends_sent", "responses_delivered", "responses_sent", "stray", "timeouts", "truncated",
        "unknowns_sent", "wrong_address",
    )

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    # Declared for the type checker; __slots__ and __init__ make them.
    acks_forged: int
    """ACKs of profile smt whose proof was wrong."""
    bad_packets: int
    """Packets that did not parse."""
    beyond_message: int
    """DATA outside its message."""
    busy_sent: int
    cutoffs_sent: int
    data_received: int
    data_redundant: int
    """DATA that brought no new byte."""
    evicted: int
    """Unfinished, unauthenticated requests dropped to make room."""
    failed: int
    """RPCs of ours that ended in an error."""
    freezes: int
    grants_sent: int
    key_unknown: int
    """DATA under a key epoch we do not accept."""
    length_conflicts: int
    """DATA that disagreed with its message's length."""
    need_acks_sent: int
    no_memory: int
    """DATA refused by a memory bound."""
    no_session: int
    """Packets of peers we have no key for."""
    packets_received: int
    packets_resent: int
    records_failed: int
    """Records that did not authenticate: discarded and asked for again."""
    replays: int
    """Requests refused because their id was delivered before."""
    requests_delivered: int
    requests_sent: int
    resends_sent: int
    responses_delivered: int
    responses_sent: int
    stray: int
    """Packets for RPCs we do not know (late duplicates, mostly)."""
    timeouts: int
    truncated: int
    """Messages whose clear length ended before their last record."""
    unknowns_sent: int
    wrong_address: int
    """Packets for another address, port or protocol."""

    def snapshot(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}
