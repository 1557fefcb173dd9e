"""The packets of a capture as lines for people: number, time, and what the header says."""

from __future__ import annotations

from smtstack.capture.captured import HOST_SIDE, NS, Captured
from smtstack.capture.sorting import Sorter, find_packet
from smtstack.wire.ipv4 import IDENTIFICATION_OFFSET, TOTAL_LENGTH_OFFSET
from smtstack.wire.show import packet_untrusted


class Lines:
    """Takes the frames of one capture in order. ``protocol`` as for :class:`~smtstack.capture.sorting.Sorter`."""

    def __init__(self, profile: str, protocol: int | None = None) -> None:
        self._sorter = Sorter(profile, protocol)
        self._number = 0
        self._first: int | None = None

    def line_untrusted(self, captured: Captured) -> str:
        """A line for one frame; "": it is no packet of the profile. Raises nothing.

        Numbers count all frames from 1, as Wireshark does, and times are seconds since the first frame.
        """
        self._number += 1
        if self._first is None:
            self._first = captured.timestamp_ns
        if captured.interface.endswith(HOST_SIDE):
            return ""
        packet = find_packet(captured.link_type, captured.frame, self._sorter.formats).packet
        fmt = None if packet is None else self._sorter.format_of(packet)
        if packet is None or fmt is None:
            return ""
        cut = ""
        if captured.missing:
            # What the snap length cut off is payload, nearly always: nothing of it would be shown.
            length = int.from_bytes(packet[TOTAL_LENGTH_OFFSET:IDENTIFICATION_OFFSET], "big")
            if length > len(packet):
                cut = f" [{length - len(packet)} B not captured]"
                packet += bytes(length - len(packet))
        elapsed = captured.timestamp_ns - self._first
        sign, elapsed = ("-", -elapsed) if elapsed < 0 else ("", elapsed)
        time = f"{sign}{elapsed // NS}.{elapsed % NS:09d}"
        said = packet_untrusted(packet, fmt)
        return f"{self._number:>6} {time:>14} {said}{cut}"
