"""The messages of a capture that are not judged yet, within a bound of memory, and traces of those that are.

Whatever belongs to one message is looked at together if it stands within so many bytes of others' traffic; so
every capture smaller than :data:`MAX_KEPT` is judged after its last packet. Beyond, what was heard of least lately
goes first: messages that seem whole, then others. A trace says that a message was judged, and whether it was
complete; repetitions of it make no message more.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Callable, Iterator

from smtstack.capture.flows import Flow
from smtstack.capture.messages import SeenMessage
from smtstack.capture.nonces import Pairs, fingerprint

#: Bytes that messages not judged yet may take, roughly.
MAX_KEPT = 64 << 20
#: What a message and a packet take beside the payload.
_MESSAGE_COST, _PACKET_COST = 3000, 200

#: Flow, sender_id, epoch byte, and which round of the 256 epoch bytes it is.
Key = tuple[Flow, int, int, int]
_KEY = struct.Struct("!IHIHQBq")


class Waiting:
    """What was seen under one key: a message, or several of sessions one after the other."""

    __slots__ = ("complete", "cost", "late", "messages", "number")

    def __init__(self, number: int, traces: list[int]) -> None:
        #: In order of appearance.
        self.number = number
        self.messages: list[SeenMessage] = []
        self.cost = _MESSAGE_COST
        #: A part of it was judged before; and if it was complete then.
        self.late = bool(traces)
        self.complete = 1 in traces


class Window:
    """Gives messages to ``judge`` when there is no room for more."""

    def __init__(self, judge: Callable[[Key, Waiting], bool]) -> None:
        #: Returns whether the message is complete.
        self._judge = judge
        self._waiting: OrderedDict[Key, Waiting] = OrderedDict()
        #: Of these, what seems whole.
        self._whole: OrderedDict[Key, None] = OrderedDict()
        self._kept = 0
        self._traces = Pairs()
        self._number = 0

    def entry(self, key: Key) -> Waiting:
        """What was seen under ``key``; new if nothing was."""
        entry = self._waiting.get(key)
        if entry is None:
            traces = self._traces.values(_fingerprint(key)) if len(self._traces) else []
            entry = self._waiting[key] = Waiting(self._number, traces)
            self._number += 1
            self._kept += entry.cost
        self._waiting.move_to_end(key)
        return entry

    def grown(self, key: Key, entry: Waiting, size: int) -> None:
        """One packet more, of which ``size`` bytes are kept."""
        cost = size + _PACKET_COST
        entry.cost += cost
        self._kept += cost
        if entry.messages[-1].seems_whole:
            self._whole[key] = None
            self._whole.move_to_end(key)
        else:
            self._whole.pop(key, None)
        while self._kept > MAX_KEPT:
            self._close(next(iter(self._whole or self._waiting)))

    def _close(self, key: Key) -> None:
        entry = self._waiting.pop(key)
        self._whole.pop(key, None)
        self._kept -= entry.cost
        complete = self._judge(key, entry)
        if not entry.late or (complete and not entry.complete):
            self._traces.add(_fingerprint(key), int(complete))

    def rest(self) -> Iterator[tuple[Key, Waiting]]:
        """What is left, in order of appearance."""
        yield from sorted(self._waiting.items(), key=lambda item: item[1].number)


def _fingerprint(key: Key) -> int:
    flow, sender_id, epoch, turn = key
    return fingerprint(_KEY.pack(*flow, sender_id, epoch, turn))
