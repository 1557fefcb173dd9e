"""Records of which a NIC opened a part: what it opened is encrypted again, then software opens the whole, whose
tag decides. A range of which nobody knows in which form it came (it came in both) is tried in both."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Final

from smtstack.crypto.stream_gcm import TAG_LEN, apply_keystream
from smtstack.ktls.records import Buffer
from smtstack.ktls.session import TlsSession
from smtstack.nic.marks import AMBIGUOUS, DECRYPTED, Range

#: Ranges that are tried in both forms, at most: 2 to this many openings.
MOST_AMBIGUOUS: Final = 5


def opened_whole(forms: Sequence[Range]) -> bool:
    """Whether the NIC has opened all of a record, and so verified it (:mod:`smtstack.nic.marks`)."""
    return len(forms) == 1 and forms[0].form == DECRYPTED


def came_sealed(forms: Sequence[Range]) -> bool:
    """Whether no NIC has touched it."""
    return not any(one.form & DECRYPTED for one in forms)


def candidates(session: TlsSession, number: int, record: Buffer, forms: Sequence[Range]) -> Iterator[bytearray]:
    """The record as it may have been on the wire: one form if nothing is ambiguous, else all there are; first with
    all that is doubtful taken as it was on the wire."""
    doubtful = [one for one in forms if one.form == AMBIGUOUS][:MOST_AMBIGUOUS]
    opened = [one for one in forms if one.form == DECRYPTED]
    for chosen in product((False, True), repeat=len(doubtful)):
        yield encrypt_again(session, number, record,
                            [*opened, *(one for one, was in zip(doubtful, chosen, strict=True) if was)])


def encrypt_again(session: TlsSession, number: int, record: Buffer, ranges: Sequence[Range]) -> bytearray:
    """The record with these ranges of it encrypted; header, explicit nonce and tag stay as they are."""
    out = bytearray(record)
    header_len = session.shape.header
    header = bytes(record[:header_len])
    for one in ranges:
        low, high = max(one.start, header_len), min(one.end, len(out) - TAG_LEN)
        if low < high:
            out[low:high] = apply_keystream(session.keys(), number, header, low - header_len, bytes(out[low:high]))
    return out
