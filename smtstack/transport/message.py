"""Messages on their way out and in: what the engine needs of them, whatever the profile.

An outgoing message is a row of TSO segments; all its packets name the segment, and their index in it.
An incoming one takes packets in any order and gives the plaintext once it is whole and authentic.
Offsets are positions in the message as the wire counts them: sealed bytes in profile ``smt``, message
bytes in ``homa`` and (nominally) in ``linux``.
"""

from __future__ import annotations

from smtstack.crypto.aead import DirectionKeys


class OutMessage:
    """A message to send. Its segments are sealed when first needed, and then kept for retransmission."""

    __slots__ = ("_resent", "count", "granted", "length", "mss", "priority", "sent", "unscheduled")

    #: TLS version of the records, for the driver: 0x0304, 0x0303, or 0 for none.
    version = 0
    #: Headers of DATA say where its segment belongs, and of what is sent again which packet of it that is.
    placed = True

    def init(self, length: int, count: int, mss: int, unscheduled: int) -> None:
        """Set the fields of a message of ``count`` segments."""
        #: Bytes as the wire counts them.
        self.length = length
        #: Segments.
        self.count = count
        #: Payload bytes of every packet of a segment but its last.
        self.mss = mss
        #: Bytes sent without a grant.
        self.unscheduled = unscheduled
        #: Bytes that may be sent now.
        self.granted = unscheduled
        #: Priority of granted data.
        self.priority = 0
        #: Segments handed to the driver.
        self.sent = 0
        # Made when first needed: most messages are sent once.
        self._resent: dict[int, int] | None = None

    def init_packet(self, length: int, mss: int) -> None:
        """Set up a message of one packet, as most are, in place of ``__init__``."""
        self.length = self.unscheduled = self.granted = length
        self.mss = mss
        self.count = 1
        self.priority = self.sent = 0
        self._resent = None

    @property
    def resent(self) -> dict[int, int]:
        """Tick of the last retransmission by ``segment << 16 | packet``."""
        if self._resent is None:
            self._resent = {}
        return self._resent

    def start(self, index: int) -> int:
        """Offset of segment ``index``."""
        raise NotImplementedError

    def payload(self, index: int) -> bytes:
        """Segment ``index`` as it goes on the wire; the same bytes whenever it is asked for."""
        raise NotImplementedError

    def framed(self, index: int) -> bytes:
        """Segment ``index`` as a TLS-offloading NIC wants it: records in clear, room for the tags."""
        raise NotImplementedError

    def wire_size(self, index: int) -> int:
        """Payload bytes of segment ``index`` on the wire, without sealing it."""
        return (self.start(index + 1) if index + 1 < self.count else self.length) - self.start(index)

    def first_sequence(self, index: int) -> int:
        """Record number of the first record of segment ``index``."""
        raise NotImplementedError

    def records(self, index: int) -> int:
        """Records in segment ``index``."""
        raise NotImplementedError

    def keys(self) -> DirectionKeys | None:
        """What the records are sealed with; None: not sealed."""
        return None

    def packet_range(self, index: int, packet: int, size: int) -> tuple[int, int]:
        """Offsets [start, end) that ``packet`` (of ``size`` payload bytes) of segment ``index`` covers."""
        raise NotImplementedError

    def sendable(self) -> bool:
        """A whole segment goes as soon as its first byte is granted."""
        return self.sent < self.count and self.start(self.sent) < self.granted

    def remaining(self) -> int:
        """Bytes not handed to the driver yet."""
        return self.length - self.start(self.sent) if self.sent < self.count else 0

    def sent_end(self) -> int:
        """Offset up to which everything was handed to the driver."""
        return self.start(self.sent) if self.sent < self.count else self.length


class InMessage:
    """A message being received."""

    __slots__ = ("acks", "auth_failures", "best_received", "best_records", "busy_at", "discarded",
                 "failures_before", "grant_key", "granted", "length", "pending", "received", "rx_bytes",
                 "truncated")

    def __init__(self, length: int) -> None:
        #: Bytes, as the packets claim; the sealed profiles learn the truth when it authenticates.
        self.length = length
        #: Bytes that arrived, duplicates not counted.
        self.received = 0
        #: Most that ``received`` and ``authenticated()`` have been.
        self.best_received = 0
        self.best_records = 0
        #: Their sum when the peer was last told BUSY.
        self.busy_at = 0
        #: Bytes of the receive budget this message holds, as last counted.
        self.rx_bytes = 0
        #: Bytes granted and not yet received, as the grant scheduler last counted them.
        self.pending = 0
        #: Place in the grant list, or None.
        self.grant_key: tuple[int, int] | None = None
        #: Bytes the sender may send.
        self.granted = 0
        #: Records that failed to authenticate so far, and of these those before the last progress.
        self.auth_failures = self.failures_before = 0
        #: Ranges thrown away since last asked: ask for them again.
        self.discarded: list[tuple[int, int]] = []
        #: Acknowledgements found inside (profile ``linux``).
        self.acks: list[tuple[int, int, int]] = []
        #: All claimed bytes are here, and the last record says there are more.
        self.truncated = False

    def add(self, segment_offset: int, index: int, inside: int, payload: bytes) -> int:
        """Take packet ``index`` of a segment, ``inside`` bytes into it.

        Returns the number of new bytes, 0 for a duplicate, -1 if it lies outside the message.
        """
        raise NotImplementedError

    def finish(self) -> bytes | None:
        """Authenticate what can be; the whole plaintext once the last record is in, else None."""
        raise NotImplementedError

    def missing(self) -> list[tuple[int, int]]:
        """Ranges (offset, length) that were sent or granted and did not arrive."""
        raise NotImplementedError

    def buffered(self) -> int:
        """Bytes of memory this message occupies."""
        raise NotImplementedError

    def extend(self, length: int) -> None:
        """A packet claims a longer message; believe the longest until the last record tells."""
        self.length = max(self.length, length)

    def authenticated(self) -> int:
        """Records that authenticated so far."""
        return 0

    def doubt(self) -> list[tuple[int, int]]:
        """Throw away what has not authenticated, as nothing gets on; the ranges to ask for instead.

        A forged record header can claim more bytes than there are, which only their absence shows.
        """
        return []

    def progressed(self) -> bool:
        """Whether there is more of the message than ever before: more bytes, or more authentic records.

        Bytes discarded and received again are none; whoever changes a message on its way for ever must
        not keep it alive for ever.
        """
        if self.received > self.best_received:
            self.best_received = self.received
            self.failures_before = self.auth_failures
            return True
        records = self.authenticated()
        if records > self.best_records:
            self.best_records = records
            self.failures_before = self.auth_failures
            return True
        return False

    def forged(self) -> bool:
        """Whether records failed since there was progress: that the sender lives does not help this message."""
        return self.auth_failures > self.failures_before

    def news_for_busy(self) -> bool:
        """Whether there was progress since this was last asked."""
        best = self.best_received + self.best_records
        news = best > self.busy_at
        self.busy_at = best
        return news
