"""What zero-copy ``sendfile`` risks, played once: a file that changes between a packet's first transmission and
its retransmission.

The first part of the file goes over an undisturbed wire. Then no acknowledgement reaches the sender any more, half
of its packets are lost behind the NIC, and the next part is sent. Now the file changes, all is as before, and TCP
sends again what was lost. With zero-copy it takes that from the file as it is now: a record of which the receiver
has some packets already does not authenticate.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from operator import eq
from typing import TypedDict

from smtstack.errors import SmtError
from smtstack.nicshare.state import NicState
from workloads.experiments.offload.hosts import Pairs, Transfer
from workloads.experiments.offload.senders import KTLS_NIC, How

#: Bytes before the disturbance, and in it: the second is well within what TCP may send by then.
FIRST, SECOND = 256 * 1024 + 7, 5 * 16_384 + 11
#: Not a multiple of a page, nor of a record.
OFFSET = 5
_RECORD, _ATTEMPTS = 16_384, 3
_FAULTS = ("tx.loss=50%", "rx.loss=100%")
#: Seconds in which a NIC that is busy tells its counters.
_PUBLISH_S = 0.1
#: Packets that leave before the file changes, and seconds for that.
_PACKETS, _PATIENCE_S = 8, 10.0


class Hazard(TypedDict):
    """How one of them ended."""

    mode: str
    """``copy`` or ``zerocopy``."""
    delivered: int
    """Bytes that the receiver's application got before the end or the error."""
    of: int
    old: int
    """Records of the second part that came as the file was when it was first sent."""
    new: int
    """Records of it that came as the file was afterwards: TCP happened to send all of such a one again, and its
    tag is right."""
    mixed: int
    """Records of it that are neither, and have a right tag for all that: the receiver had their beginning, TCP
    sent all the rest again, and the device had the beginning as it was from the record map."""
    first_ok: bool
    """Whether the first part, which nothing disturbed, is right."""
    error: str
    """EBADMSG: a record did not authenticate. Empty: all came."""
    resent: int
    """Bytes that TCP sent again."""


def play(pairs: Pairs, zerocopy: bool) -> Hazard:
    """Play it; again, at most twice, if no record was refused, as TCP happened to send all of each again. Both
    ends are ours here, for the errno. The file has its content again afterwards."""
    for _attempt in range(_ATTEMPTS):
        found = _play(pairs, zerocopy)
        if as_expected(found):
            break
    return found


def _play(pairs: Pairs, zerocopy: bool) -> Hazard:
    file, content = pairs.file, pairs.content
    count, second = FIRST + SECOND, OFFSET + FIRST
    new = content[:second] + bytes(byte ^ 0xFF for byte in content[second:OFFSET + count])
    transfer = Transfer("hazard", How(KTLS_NIC, zerocopy=zerocopy, opened_by="ktls"), count, offset=OFFSET)
    begun = pairs.prepare(transfer, pause=FIRST)
    (sender,), (receiver,) = begun.senders, begun.receivers
    receiver.tell({})
    sender.answer()
    try:
        with _faults(pairs.nic):
            # What has left before is counted by then.
            time.sleep(_PUBLISH_S)
            before = pairs.nic.counters()["tx_packets"]
            sender.tell({})
            sender.answer()
            _until(pairs.nic, before + _PACKETS)
            with file.open("r+b") as changed:
                changed.seek(second)
                changed.write(new[second:])
        came = receiver.answer()
    finally:
        file.write_bytes(content)
    sent = sender.answer()
    receiver.tell({"digest": _RECORD})
    first, *got = receiver.answer()["digests"]
    as_old, as_new = (_digests(version, second, got, came["bytes"] - FIRST) for version in (content, new))
    old, fresh = sum(map(eq, got, as_old)), sum(map(eq, got, as_new))
    whole = first == hashlib.sha256(content[OFFSET:second]).hexdigest()
    return {"mode": "zerocopy" if zerocopy else "copy", "delivered": came["bytes"], "of": count, "old": old,
            "new": fresh, "mixed": len(got) - old - fresh, "first_ok": whole,
            "error": errno.errorcode.get(came["errno"], came["error"]) if came["error"] else "",
            "resent": sent["resent"]}


def _digests(version: bytes, start: int, got: list[str], size: int) -> list[str]:
    """What the pieces of the second part are, if all of them are of one version of the file."""
    part = memoryview(version)[start:start + size]
    return [hashlib.sha256(part[n * _RECORD:(n + 1) * _RECORD]).hexdigest() for n in range(len(got))]


@contextmanager
def _faults(nic: NicState) -> Iterator[None]:
    settings = before = nic.settings()
    for text in _FAULTS:
        settings = settings.assign(text)
    nic.restore(settings)
    nic.wait_applied()
    try:
        yield
    finally:
        nic.restore(before)
        nic.wait_applied()


def _until(nic: NicState, packets: int) -> None:
    """Until the NIC has sent so many."""
    end = time.monotonic() + _PATIENCE_S
    while nic.counters()["tx_packets"] < packets:
        if time.monotonic() > end:
            raise SmtError(f"the sender's NIC has not sent {packets} packets within {_PATIENCE_S:.0f} s")
        time.sleep(0.002)


def as_expected(found: Hazard) -> bool:
    """Whether it ended as it must: copied, all is old; by zero-copy a record is refused."""
    if found["mode"] == "copy":
        return (found["first_ok"] and found["delivered"] == found["of"]
                and not (found["error"] or found["new"] or found["mixed"]))
    return found["first_ok"] and found["error"] == "EBADMSG" and found["delivered"] < found["of"]


def as_text(found: list[Hazard]) -> str:
    """For people."""
    out = ["a file that changes before its bytes are sent again:"]
    for one in found:
        how = one["error"] or "all of it"
        out.append(f"  {one['mode']:<9} {one['delivered']:>8,} of {one['of']:,} B delivered, then {how}; records "
                   f"old {one['old']}, new {one['new']}, mixed {one['mixed']}; {one['resent']:,} B sent again")
    return "\n".join(out)
