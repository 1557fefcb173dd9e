"""What zero-copy ``sendfile`` risks, played once: a file that changes between a packet's first transmission and
its retransmission.

The first part of the file goes over an undisturbed wire. Then no acknowledgement reaches the sender any more, half
of its packets are lost behind the NIC, and the next part is sent. Now the file changes, all is as before, and TCP
sends again what was lost. With zero-copy it takes that from the file as it is now.
"""

from __future__ import annotations

import errno
import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypedDict

from smtstack.errors import SmtError
from smtstack.nicshare.state import NicState
from workloads.experiments.offload.hosts import Pairs, Transfer
from workloads.experiments.offload.senders import KTLS_NIC, How

#: Bytes before the disturbance, and in it: the second is well within what TCP may send by then.
FIRST, SECOND = 256 * 1024 + 7, 5 * 16_384 + 11
#: Not a multiple of a page, nor of a record.
OFFSET = 5
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
    prefix_ok: bool
    """Whether they are the beginning of what the file was when it was first sent."""
    error: str
    """EBADMSG: a record did not authenticate. Empty: all came, and all was old."""
    resent: int
    """Bytes that TCP sent again."""


def play(pairs: Pairs, zerocopy: bool) -> Hazard:
    """Both ends are ours here, for the errno. The file has its content again afterwards."""
    file, content = pairs.file, pairs.content
    count = FIRST + SECOND
    how = How(KTLS_NIC, zerocopy=zerocopy, opened_by="ktls")
    transfer = Transfer("hazard", how, count, offset=OFFSET)
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
                changed.seek(OFFSET + FIRST)
                changed.write(bytes(byte ^ 0xFF for byte in content[OFFSET + FIRST:OFFSET + count]))
        came = receiver.answer()
    finally:
        file.write_bytes(content)
    sent = sender.answer()
    receiver.tell({"digest": True})
    got = receiver.answer()["digest"]
    prefix = hashlib.sha256(content[OFFSET:OFFSET + came["bytes"]]).hexdigest()
    return {"mode": "zerocopy" if zerocopy else "copy", "delivered": came["bytes"], "of": count,
            "prefix_ok": got == prefix,
            "error": errno.errorcode.get(came["errno"], came["error"]) if came["error"] else "",
            "resent": sent["resent"]}


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
    """Whether it ended as it must: copied, all is old; by zero-copy a record is refused, and what came before it
    is right."""
    if found["mode"] == "copy":
        return not found["error"] and found["delivered"] == found["of"] and found["prefix_ok"]
    return found["error"] == "EBADMSG" and found["delivered"] < found["of"] and found["prefix_ok"]


def as_text(found: list[Hazard]) -> str:
    """For people."""
    out = ["a file that changes before its bytes are sent again:"]
    for one in found:
        how = one["error"] or "all of it, as it was when it was first sent"
        right = "a right prefix" if one["prefix_ok"] else "WRONG bytes"
        out.append(f"  {one['mode']:<9} {one['delivered']:>8,} of {one['of']:,} B delivered, {right}: {how} "
                   f"({one['resent']:,} B sent again)")
    return "\n".join(out)
