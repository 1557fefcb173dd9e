"""The composite 64-bit record sequence number: message id and record index (paper §4.4, Figs. 4 and 5)."""

from __future__ import annotations

from typing import Final

from smtstack.errors import ConfigError, LocalError

#: The two highest indices of every message number no record: they make the proofs of its ACK.
RESERVED_INDICES: Final = 2


class CompositeNumber:
    """How 64 bits are split: ``message_id << index_bits | record_index``.

    The index is in the low bits, so that a NIC's self-incrementing counter walks through the records of
    a message. Many index bits allow long messages, few allow many messages under one key.
    """

    __slots__ = ("id_limit", "index_bits", "max_records")

    def __init__(self, index_bits: int = 16) -> None:
        if not 4 <= index_bits <= 48:
            raise ConfigError(f"index_bits is {index_bits}; 4 to 48 leave room for ids and records")
        self.index_bits = index_bits
        #: Message ids must stay below this.
        self.id_limit = 1 << (64 - index_bits)
        #: Records one message may have.
        self.max_records = (1 << index_bits) - RESERVED_INDICES

    def first(self, message_id: int, records: int = 1) -> int:
        """Number of record 0 of a message; raises :class:`LocalError` if id or record count do not fit.

        ``epochs.Session.reserve`` and ``profile`` form it without the call; profile linux in ``tls12``.
        Checked before anything is sealed: an index that overflowed into the id would repeat a nonce.
        """
        if not 0 <= message_id < self.id_limit:
            raise LocalError(f"message id {message_id} does not fit {64 - self.index_bits} bits")
        if records > self.max_records:
            raise LocalError(f"a message of {records} records exceeds the {self.max_records} that "
                             f"{self.index_bits} index bits allow")
        return message_id << self.index_bits

    def ack_single(self, message_id: int) -> int:
        """Number that proves the acknowledgement of this one RPC."""
        return (message_id << self.index_bits) + self.max_records

    def ack_batch(self, message_id: int) -> int:
        """Number that proves the one batch of acknowledgements this RPC heads."""
        return (message_id << self.index_bits) + self.max_records + 1

    def split(self, sequence: int) -> tuple[int, int]:
        """(message id, record index) of a record number."""
        return sequence >> self.index_bits, sequence & ((1 << self.index_bits) - 1)
