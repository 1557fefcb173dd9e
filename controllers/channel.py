"""The connection to one switch: what was sent, what it answered, and what it refused.

Every message has a number, and an error names it: so each is told by what caused it, and none is lost.
"""

from __future__ import annotations

from typing import Any

from ryu.lib import hub

from smtstack.errors import SmtError

#: Seconds for an answer, on a loaded machine.
ANSWER_S = 10.0
#: Messages without an answer that are remembered when no barrier says that they were accepted.
_MOST_POSTED = 50_000


class Refused(SmtError):
    """The switch refused a message, gave no answer, or is gone; the text says which, and what was refused."""


class Answer:
    """What is to come from a switch; see :meth:`wait`."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.parts: list[Any] = []
        self.error = ""
        self._done = hub.Event()

    def finish(self, error: str = "") -> None:
        """All is there, or never will be."""
        self.error = self.error or error
        self._done.set()

    def wait(self, timeout_s: float = ANSWER_S) -> list[Any]:
        """The parts of the answer; raises :class:`Refused`."""
        if not self._done.wait(timeout_s):
            raise Refused(f"{self.what}: no answer within {timeout_s:g} s")
        if self.error:
            raise Refused(self.error)
        return self.parts


class Channel:
    """One connection; another one of the same switch is another channel."""

    def __init__(self, datapath: Any, name: str) -> None:
        self.datapath = datapath
        self.name = name
        self.alive = True
        self.refusals = 0
        """Errors that came."""
        self._posted: dict[int, str] = {}
        self._asked: dict[int, Answer] = {}

    @property
    def live_ports(self) -> list[int]:
        """Numbers of the ports that are up and have a signal."""
        ofp = self.datapath.ofproto
        return [number for number, port in self.datapath.ports.items() if number < ofp.OFPP_MAX
                and not port.config & ofp.OFPPC_PORT_DOWN and not port.state & ofp.OFPPS_LINK_DOWN]

    def post(self, message: Any, what: str) -> None:
        """Send what has no answer; ``what`` is for the error text, should it be refused."""
        self._posted[self._send(message)] = what
        if len(self._posted) > _MOST_POSTED:
            del self._posted[next(iter(self._posted))]

    def ask(self, message: Any, what: str) -> Answer:
        """Send what has an answer."""
        answer = Answer(f"{self.name}: {what}")
        self._asked[self._send(message)] = answer
        if not self.alive:
            answer.finish(f"{self.name}: it is gone")
        return answer

    def barrier(self) -> Answer:
        """Done when the switch has done all that was posted before."""
        return self.ask(self.datapath.ofproto_parser.OFPBarrierRequest(self.datapath), "barrier")

    def _send(self, message: Any) -> int:
        number: int = self.datapath.set_xid(message)
        self.datapath.send_msg(message)
        return number

    def barrier_reached(self, number: int) -> None:
        """The answer to a barrier came: what was posted before was not refused."""
        answer = self._asked.pop(number, None)
        if answer is not None:
            self._posted = {n: what for n, what in self._posted.items() if (n - number) % 2**32 < 2**31}
            answer.finish()

    def part(self, number: int, body: list[Any], more: bool) -> None:
        """A part of an answer came."""
        answer = self._asked.get(number)
        if answer is not None:
            answer.parts += body
            if not more:
                del self._asked[number]
                answer.finish()

    def refused(self, number: int, why: str) -> str:
        """An error came; the text of what it was about."""
        self.refusals += 1
        answer = self._asked.pop(number, None)
        if answer is not None:
            text = f"{answer.what}: {why}"
            answer.finish(text)
            return text
        return f"{self.name}: {self._posted.pop(number, 'a message it was not sent')}: {why}"

    def gone(self) -> None:
        """The connection is closed."""
        self.alive = False
        for answer in self._asked.values():
            answer.finish(f"{self.name}: it is gone")
        self._asked.clear()
