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
from typing import Final


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


# Bare names: looking up a member on an Enum class costs more than the table does. Final, as everything in the hot
# modules that stays as it is: compiled, it is a constant and no look-up in the module.
OUTGOING: Final = State.OUTGOING
INCOMING: Final = State.INCOMING
IN_SERVICE: Final = State.IN_SERVICE
DEAD: Final = State.DEAD
WAITING: Final = State.WAITING
DATA: Final = Input.DATA
COMPLETE: Final = Input.COMPLETE
REPLY: Final = Input.REPLY
ACK: Final = Input.ACK
UNKNOWN: Final = Input.UNKNOWN
SESSION: Final = Input.SESSION

#: ``CLIENT[state][input]``; None: cannot happen, or must not.
_Row = tuple["State | None", ...]
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
