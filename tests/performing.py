"""Our engine in the place of one end of a recorded conversation, in virtual time.

It gets the recorded packets of the other end at their recorded times, and its application does what the recorded
one did when that did it. What the engine sends, and when, is all that comes back. Nothing here knows what is
right, and nothing but the engine is needed: ``tests/mutant.py`` does it with an engine that was changed.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any, Final

from smtstack.crypto.keys import KeyStore, LinuxNoKeys, demo_keys
from smtstack.nic.device import NicConfig
from smtstack.stack import Stack, make_stack
from smtstack.transport.events import Failed, Request, Response
from smtstack.transport.params import SOFTWARE, TransportParams

#: Virtual time begins here, in ns: clocks of engines do not begin at 0.
BEGIN: Final = 1_000_000_000
_MAC: Final = b"\x02\x00\x0a\x00\x00\x01"
_OTHER_MAC: Final = b"\x02\x00\x0a\x00\x00\x02"
_NEVER: Final = 1 << 62
#: Something to do at a time: the number keeps what is due together in order.
Deed = tuple[int, int, Callable[[int], object]]


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do when. Times in ns from the beginning, addresses as 32 bits."""

    ip: int
    peer_ip: int
    frames: list[tuple[int, int, bytes]]
    """(time, our port, frame) of what the other end sent."""
    requests: list[tuple[int, int, int, bytes]] = field(default_factory=list)
    """(time, our port, its port, message) of what we ask, in order."""
    first_ids: dict[int, int] = field(default_factory=dict)
    """The first id of ours at each port of ours."""
    replies: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    """(time, message) of what we answer, by the client's id. What comes again is answered alike, what is not here
    by the same bytes at once."""
    ports: tuple[int, ...] = ()
    """Ports of ours."""
    until: int = 0
    """When to stop."""
    sealed: bool = True
    """With the demo keys; else in clear."""
    software: bool = False
    """The parameters of the commands are meant, not the module's."""
    params: dict[str, Any] = field(default_factory=dict)
    """What differs from these."""


@dataclass(slots=True)
class Performance:
    """What became of a plan."""

    sent: list[tuple[int, bytes]] = field(default_factory=list)
    """(time, frame) of what the engine sent."""
    delivered: list[tuple[int, int, bytes]] = field(default_factory=list)
    """(time, client's id, message) of requests that the application got."""
    answered: list[tuple[int, int, bytes]] = field(default_factory=list)
    """The same of responses."""
    failed: list[tuple[int, int, str]] = field(default_factory=list)
    """(time, id, reason) of requests that ended without."""
    left: dict[str, int] = field(default_factory=dict)
    """Sizes of all state in the end, and counters that are not 0."""


def perform(plan: Plan) -> Performance:
    """Do it."""
    done = Performance()
    params = replace(SOFTWARE if plan.software else TransportParams(), **plan.params)

    def keys(port: int) -> KeyStore:
        first_id = plan.first_ids.get(port, 2)
        return demo_keys("linux", first_id=first_id) if plan.sealed else LinuxNoKeys(first_id)

    stacks = {port: make_stack(plan.ip, port, "linux", keys(port), params, NicConfig(), _MAC,
                               lambda _ip: _OTHER_MAC) for port in plan.ports}
    order = count()
    todo: list[Deed] = []
    for at, port, frame in plan.frames:
        todo.append((at + BEGIN, next(order), partial(stacks[port].receive, [frame])))
    for at, port, peer_port, data in plan.requests:
        ask = partial(stacks[port].endpoint.send_request, plan.peer_ip, peer_port, data)
        todo.append((at + BEGIN, next(order), ask))
    heapq.heapify(todo)
    now = 0
    while True:
        for stack in stacks.values():
            for at, deed in _take(stack, now, plan, done):
                heapq.heappush(todo, (at, next(order), deed))
            done.sent += [(now - BEGIN, frame) for frame in stack.transmit(now)]
        due = [t for stack in stacks.values() if (t := stack.next_timeout()) is not None]
        now = max(now, min([*due, *(entry[0] for entry in todo[:1])], default=_NEVER))
        if now > plan.until + BEGIN:
            break
        for stack in stacks.values():
            stack.handle_timeout(now)
        while todo and todo[0][0] <= now:
            heapq.heappop(todo)[2](now)
    for stack in stacks.values():
        for name, value in {**stack.endpoint.snapshot(), **stack.endpoint.counters.snapshot()}.items():
            done.left[name] = done.left.get(name, 0) + value
    return done


def _take(stack: Stack, now: int, plan: Plan, done: Performance) -> Iterator[tuple[int, Callable[[int], object]]]:
    """Events of the application; what it does for them, and when."""
    while (event := stack.endpoint.next_event()) is not None:
        rpc_id = event.rpc.id & ~1
        if isinstance(event, Request):
            done.delivered.append((now - BEGIN, rpc_id, event.data))
            at, data = plan.replies.get(rpc_id, (0, event.data))
            yield max(now, at + BEGIN), partial(stack.endpoint.send_reply, event.rpc, data)
        elif isinstance(event, Response):
            done.answered.append((now - BEGIN, rpc_id, event.data))
        elif isinstance(event, Failed):
            done.failed.append((now - BEGIN, rpc_id, event.reason.value))
