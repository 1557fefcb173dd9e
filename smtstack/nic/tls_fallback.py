"""Software in place of the device, for any cut of a stream: the bytes that the device would have sent.

A packet may begin inside of a record, end inside of another, and hold several between. What stands before it in
its first record comes from the record map.
"""

from __future__ import annotations

from smtstack.crypto.stream_gcm import (
    TAG_LEN,
    RecordCrypto,
    StreamKeys,
    apply_keystream,
    record_len_untrusted,
)
from smtstack.nic.record_map import Record, RecordMapReader
from smtstack.wire.tcp import advance, distance


def seal(records: RecordMapReader, keys: StreamKeys, seq: int, payload: bytes) -> bytes | None:
    """A packet's payload at ``seq`` as it belongs on the wire; None: a record of it is no longer in the map.

    What lies before the start marker, or in records that are sealed already, stays as it is.
    """
    size = len(payload)
    at = records.straddles_start(seq, size)
    out = [payload[:at]]
    while at < size:
        here = advance(seq, at)
        record = records.lookup(here)
        if record is None:
            return None
        offset = distance(record.start, here)
        end = min(at + record.length - offset, size)
        piece = payload[at:end]
        if not record.sealed:
            sealed = _part(records, record, keys, offset, piece)
            if sealed is None:
                return None
            piece = sealed
        out.append(piece)
        at = end
    return b"".join(out)


def _part(records: RecordMapReader, record: Record, keys: StreamKeys, offset: int, piece: bytes) -> bytes | None:
    """Part of one record from ``offset`` on; None: what is needed of it is gone, or it is no record."""
    body_at = keys.header_len
    tag_at = record.length - TAG_LEN
    end = offset + len(piece)
    if end <= body_at:
        return piece
    # The tag covers the whole body; a part of that needs nothing but the header.
    needed = offset if end > tag_at else min(offset, body_at)
    before = records.read(record, needed)
    if before is None:
        return None
    header = (before + piece[:body_at] if offset < body_at else before)[:body_at]
    if record_len_untrusted(keys, header, any_kind=True) != record.length:
        return None
    out = [piece[:max(body_at - offset, 0)]]
    start = max(offset, body_at)
    body = piece[start - offset:max(tag_at - offset, 0)]
    if end <= tag_at:
        out.append(apply_keystream(keys, record.number, header, start - body_at, body))
        return b"".join(out)
    crypto = RecordCrypto(keys, record.number, header)
    if start > body_at:
        crypto.update(before[body_at:tag_at])
    out.append(crypto.update(body))
    out.append(crypto.tag()[max(offset - tag_at, 0):end - tag_at])
    return b"".join(out)
