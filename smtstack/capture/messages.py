"""Messages of a capture, put together after the last packet: in any order, with holes, with repetitions.

The transport's own receivers (``SealedIn``, ``LinuxIn``) throw a record away when it fails and wait for
it to be sent again. A capture must rather say what every record was, so here nothing is thrown away;
the rules of the formats are still those of ``tls13``, ``tls12`` and ``linux_message``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter

from smtstack.capture.copies import Copies, Opened
from smtstack.capture.nonces import NonceLedger
from smtstack.transport.linux_message import SEGMENT_HEADER, SEGMENT_HEADER_LEN
from smtstack.wire import homa


class Tally:
    """What all messages together add up to."""

    __slots__ = ("bad_packets", "fresh", "late", "ledger", "records_bad", "records_ok")

    def __init__(self) -> None:
        self.ledger = NonceLedger()
        self.records_ok = 0
        self.records_bad = 0
        #: Packets that contradict others and belong to no record that could show it.
        self.bad_packets = 0
        #: The message that is being judged comes late: an earlier part of it, or all, was judged before. What
        #: authenticated then is not counted again.
        self.late = False
        #: Records under numbers that nothing had authenticated under before.
        self.fresh = 0

    def opened(self, record: Opened) -> None:
        """A record authenticated."""
        self.fresh += record.fresh
        self.records_ok += record.fresh or not self.late


class SeenMessage(ABC):
    """One message and all its packets."""

    __slots__ = ("_claims", "held")

    def __init__(self) -> None:
        #: Bytes of payload kept.
        self.held = 0
        #: message_length of its packets, first come first, with how many packets said so.
        self._claims: Counter[int] = Counter()

    @abstractmethod
    def add(self, header: homa.Data, index: int, payload: bytes) -> None:
        """One packet: the number in its segment (IP ID + packet_index), and what follows the header."""

    def takes(self, _header: homa.Data, _index: int, _payload: bytes) -> bool:
        """Whether the packet may be of this message; if not, these ends had another session with this id."""
        return True

    @property
    def seems_whole(self) -> bool:
        """Whether as many bytes are there as the first packet claimed."""
        return self.held >= self._first_claim()

    @abstractmethod
    def evaluate(self, tally: Tally) -> bytes | None:
        """Count all records; the plaintext if the message is complete, else None. Call once, last."""

    def _first_claim(self) -> int:
        return next(iter(self._claims))

    def _lies(self, length: int) -> int:
        """Packets that claim another length."""
        return self._claims.total() - self._claims[length]


def clear_segments(payload: bytes, length: int) -> list[tuple[int, bytes]] | None:
    """(offset, data) of a plain Homa packet of the kernel module; None: it cannot be one.

    A 20-byte header stands in clear before the data (reference §1.5). A TLS record in its place would
    claim offset 0x170303xx, far beyond any message, so the two cannot be mistaken for each other. A
    frame captured before TSO cut it holds several of them.
    """
    out: list[tuple[int, bytes]] = []
    at = 0
    while at < len(payload):
        data_at = at + SEGMENT_HEADER_LEN
        if data_at > len(payload):
            return None
        offset, size, _client_id, _client_port, _server_port = SEGMENT_HEADER.unpack_from(payload, at)
        if not size or data_at + size > len(payload) or offset + size > length:
            return None
        out.append((offset, payload[data_at:data_at + size]))
        at = data_at + size
    return out


class PlainMessage(SeenMessage):
    """Nothing sealed: profile ``homa``, or (``module``) Homa as the kernel module speaks it."""

    __slots__ = ("_copies", "_module", "_strange")

    def __init__(self, module: bool) -> None:
        super().__init__()
        self._module = module
        self._copies = Copies(counted=False)
        self._strange = 0

    def add(self, header: homa.Data, index: int, payload: bytes) -> None:
        self._claims[header.message_length] += 1
        if self._module:
            segments = clear_segments(payload, header.message_length)
            if segments is None:
                self._strange += 1
                return
        else:
            place = header.packet_offset if header.placed else index * header.segment_size
            segments = [(header.segment_offset + place, payload)]
        for offset, data in segments:
            self.held += self._copies.add(offset, data)

    def evaluate(self, tally: Tally) -> bytes | None:
        length = self._first_claim()
        tally.bad_packets += self._strange + self._lies(length) + self._copies.crowded
        whole = bytearray()
        for place in self._copies.places():
            first, *others = self._copies.of(place)
            # No record can tell which copy is right: the later ones are the odd ones.
            tally.bad_packets += len(others)
            if place + len(first) > length:
                tally.bad_packets += 1
            elif place <= len(whole):
                overlap = len(whole) - place
                if whole[place:place + len(first)] != first[:overlap]:
                    tally.bad_packets += 1
                whole += first[overlap:]
        return bytes(whole) if len(whole) == length else None
