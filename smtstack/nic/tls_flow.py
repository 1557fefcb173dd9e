"""What a NIC is told of a TLS stream over TCP, each direction by itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from smtstack.crypto.stream_gcm import StreamKeys
from smtstack.errors import ConfigError
from smtstack.nic.record_map import Buffer

#: What is done with a packet that this NIC has no context for: sealed by software (Linux), dropped until the flow
#: has a context here (FreeBSD), or sent as it is: that leaks, and is here to show that leaks are found.
LINUX: Final = "linux"
FREEBSD: Final = "freebsd"
NO_POLICY: Final = "none"
POLICIES: Final = (LINUX, FREEBSD, NO_POLICY)
#: How a device gets its state back for a packet out of order: the record's bytes before it are sent to it (mlx5),
#: or software seals until the application says where the next record begins (nfp).
DUMP: Final = "dump"
NEXT_RECORD: Final = "next_record"
TX_RESYNCS: Final = (DUMP, NEXT_RECORD)
#: How a device that lost the records finds them: it searches headers in the stream and asks, at once or with the
#: application remembering where records began meanwhile; or the application tells it unasked, more and more seldom
#: (Linux) or after every record that came encrypted (FreeBSD).
SCAN: Final = "scan"
ASYNC: Final = "async"
HINT: Final = "hint"
EVERY: Final = "every"
RX_RESYNCS: Final = (SCAN, ASYNC, HINT, EVERY)


@dataclass(frozen=True, slots=True)
class TxFlow:
    """A connection whose sender writes framed records. Raises :class:`ConfigError` for what cannot be."""

    flow: bytes
    """:func:`~smtstack.wire.tcp.flow_key` of the packets that leave."""
    keys: StreamKeys
    records: Buffer
    """The record map, made by :class:`~smtstack.nic.record_map.RecordMapWriter`."""
    policy: str = LINUX
    resync: str = DUMP

    def __post_init__(self) -> None:
        _check_flow(self.flow)
        _one_of("policy", self.policy, POLICIES)
        _one_of("resync", self.resync, TX_RESYNCS)


@dataclass(frozen=True, slots=True)
class RxFlow:
    """A connection whose receiver takes marks. Raises :class:`ConfigError` for what cannot be."""

    flow: bytes
    """:func:`~smtstack.wire.tcp.flow_key` of the packets that arrive."""
    keys: StreamKeys
    marks: Buffer
    """Where marks go: :func:`~smtstack.nic.marks.mark_bytes` long, made new by the NIC."""
    seq: int
    """TCP sequence number at which a record begins: before it nothing is decrypted."""
    number: int = 0
    """Record number of that record."""
    resync: str = SCAN

    def __post_init__(self) -> None:
        _check_flow(self.flow)
        _one_of("resync", self.resync, RX_RESYNCS)
        if not 0 <= self.seq < 1 << 32 or not 0 <= self.number < 1 << 64:
            raise ConfigError("a TCP sequence number has 32 bits, a record number 64")


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; there are {', '.join(known)}")


def _check_flow(flow: bytes) -> None:
    if len(flow) != 12:
        raise ConfigError(f"a flow has 12 bytes, addresses and ports, not {len(flow)}")
