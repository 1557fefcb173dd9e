"""The life of an RPC: states, inputs, and the one table that says what follows what.

======== ========== ======================== ==========
role     state      input                    next state
======== ========== ======================== ==========
client   WAITING    session is there         OUTGOING
client   OUTGOING   response data arrives    INCOMING
client   OUTGOING   response complete        DEAD
client   INCOMING   response complete        DEAD
server   INCOMING   request complete         IN_SERVICE
server   IN_SERVICE application replies      OUTGOING
server   OUTGOING   acknowledged             DEAD
client   INCOMING   server does not know it  OUTGOING
server   INCOMING   client does not know it  DEAD
server   INCOMING   acknowledged             DEAD
server   IN_SERVICE acknowledged             DEAD
any      any        abort, timeout, eviction DEAD (``RpcTable.free``)
======== ========== ======================== ==========

What else may happen leaves an RPC where it is. docs/img/rpc.svg is drawn from :data:`CLIENT` and :data:`SERVER`.

A WAITING RPC has no id, no keys and no timer; nothing of it was sealed or sent, so no packet can concern it.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from smtstack.errors import LocalError

if TYPE_CHECKING:
    from smtstack.crypto.epochs import EpochKeys
    from smtstack.transport.message import InMessage, OutMessage
    from smtstack.transport.peers import Peer


class State(IntEnum):
    """States of Homa's ``homa_rpc.state``."""

    OUTGOING = 0
    INCOMING = 1
    IN_SERVICE = 2
    DEAD = 3
    WAITING = 4


class Input(IntEnum):
    """What can happen to an RPC."""

    DATA = 0
    COMPLETE = 1
    REPLY = 2
    ACK = 3
    UNKNOWN = 4
    SESSION = 5


# Bare names: looking up a member on an Enum class costs more than the table does.
OUTGOING, INCOMING, IN_SERVICE, DEAD, WAITING = State
DATA, COMPLETE, REPLY, ACK, UNKNOWN, SESSION = Input

#: ``CLIENT[state][input]``; None: cannot happen, or must not.
_Row = tuple["State | None", ...]
#: Longer ago than any interval.
_NEVER = -(1 << 40)
CLIENT: tuple[_Row, ...] = (
    # DATA     COMPLETE  REPLY  ACK   UNKNOWN   SESSION
    (INCOMING, DEAD,     None,  None, OUTGOING, None),      # OUTGOING
    (INCOMING, DEAD,     None,  None, OUTGOING, None),      # INCOMING: it was forged, or the server restarted
    (None,     None,     None,  None, None,     None),      # IN_SERVICE: servers only
    (None,     None,     None,  None, None,     None),      # DEAD
    (None,     None,     None,  None, None,     OUTGOING),  # WAITING
)
SERVER: tuple[_Row, ...] = (
    # DATA       COMPLETE    REPLY     ACK   UNKNOWN     SESSION
    (OUTGOING,   None,       None,     DEAD, OUTGOING,   None),     # OUTGOING: late request data is redundant
    (INCOMING,   IN_SERVICE, None,     DEAD, DEAD,       None),     # INCOMING
    # A forged UNKNOWN must not cost a request that was delivered: only ACK and time-outs end it.
    (IN_SERVICE, None,       OUTGOING, DEAD, IN_SERVICE, None),     # IN_SERVICE
    (None,       None,       None,     None, None,       None),     # DEAD
    (None,       None,       None,     None, None,       None),     # WAITING: clients only
)


class Rpc:
    """One RPC at one side. Also the handle applications hold; ``cookie`` is theirs."""

    __slots__ = (
        "armed_tick", "birth", "cookie", "flags", "heard_tick", "id", "inm", "is_client", "key", "keys", "out",
        "peer", "queued", "resend_tick", "resends", "resent_tick", "state",
    )

    def __init__(self, peer: Peer, rpc_id: int, key: int, keys: EpochKeys, is_client: bool, birth: int,
                 tick: int) -> None:
        #: As this side sees it: even at the client, odd at the server. 0: WAITING for a session.
        self.id = rpc_id
        #: Place in ``peer.rpcs``: id and key epoch.
        self.key = key
        self.peer = peer
        self.keys = keys
        self.is_client = is_client
        self.state: State = OUTGOING if is_client else INCOMING
        self.out: OutMessage | None = None
        self.inm: InMessage | None = None
        self.cookie: object = None
        #: Of our DATA packets: INCAST if the client marked the request, or nothing.
        self.flags = 0
        #: Age among all RPCs of the endpoint, for the FIFO shares.
        self.birth = birth
        #: Last tick at which the peer made progress or said BUSY.
        self.heard_tick = tick
        #: RESENDs or NEED_ACKs since then.
        self.resends = 0
        #: Tick of the last RESEND or NEED_ACK we sent, and of the last time we sent all again for an UNKNOWN.
        self.resend_tick = self.resent_tick = _NEVER
        #: Tick at which the timer looks at this RPC; -1: not.
        self.armed_tick = -1
        #: In the sender's SRPT heap.
        self.queued = False

    def move(self, what: Input) -> State:
        """Apply ``what`` by the table; raises :class:`LocalError` for what cannot happen."""
        state = (CLIENT if self.is_client else SERVER)[self.state][what]
        if state is None:
            side = "client" if self.is_client else "server"
            raise LocalError(f"{side} RPC {self.id} is {self.state.name}: {what.name} is impossible")
        self.state = state
        return state

    def __repr__(self) -> str:
        return f"<Rpc {self.id} {'client' if self.is_client else 'server'} {self.state.name} {self.peer}>"
