"""Runs one script of Lua 5.1, as Redis has it, by lupa: nothing but commands gets out of it, and it ends.

Each script has a runtime of its own: what one leaves behind no other finds. lupa must never have to give Lua what
it has no memory for, so only strings pass, each after a look at what is left (:mod:`workloads.kv.lua_prelude`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

from workloads.kv.lua_prelude import PRELUDE
from workloads.kv.resp import Command, array, bulk, error
from workloads.kv.store import CommandError

try:
    from lupa import lua51
except ImportError:
    lua51 = None

#: Bytes that a script may have.
MEMORY = 128 << 20
_RESERVE = 1 << 20
#: Seconds of processor time: as long as it has written nothing, and in all.
FIRST_S, ALL_S = 2, 5

#: Does a command for a script, in a version of RESP: its reply, and whether it may have written.
Perform = Callable[[Command, int], tuple[bytes, bool]]


def run(script: bytes, keys: list[bytes], argv: list[bytes], version: int, perform: Perform) -> bytes:
    """The reply to a script, encoded. Raises :class:`CommandError` where there is no Lua.

    ``version``: of RESP, which the client speaks.
    """
    if lua51 is None:
        raise CommandError("ERR this server cannot run Lua scripts, as the Python package lupa is not there: pip "
                           "install lupa, and start it again")
    if sum(map(len, keys)) + sum(map(len, argv)) + 128 * (len(keys) + len(argv)) + len(script) > MEMORY // 4:
        raise CommandError(f"ERR a script and its arguments are at most {MEMORY // 4} bytes")
    lua = lua51.LuaRuntime(encoding=None, register_eval=False, register_builtins=False, attribute_filter=_refuse,
                           max_memory=MEMORY)
    # What Lua holds of Python holds no Lua once it is over: nobody would find that circle.
    memory = [lua.get_memory_used]
    given = {b"version": b"%d" % version, b"sha": sha1(script), b"script": script,
             b"keys": array(list(map(bulk, keys))), b"argv": array(list(map(bulk, argv)))}

    def bridge(what: bytes, *args: bytes) -> bytes | None:
        # Nothing must be raised in here.
        if what == b"call":
            reply, wrote = perform(list(args[1:]), int(args[0]))
            reply = (b"w" if wrote else b"r") + reply
        elif what == b"sha1":
            reply = sha1(args[0])
        else:
            reply = given[what]
        return reply if memory[0]() + len(reply) + _RESERVE // 2 < MEMORY else None

    try:
        done: bytes = lua.execute(PRELUDE, bridge, MEMORY, _RESERVE, FIRST_S, ALL_S)()
    except (lua51.LuaError, MemoryError) as e:
        return error(f"ERR the script failed: {str(e) or 'not enough memory'}")
    finally:
        memory.clear()
    return done


def sha1(text: bytes) -> bytes:
    """By which a script is called."""
    return hashlib.sha1(text, usedforsecurity=False).hexdigest().encode()


def _refuse(_thing: object, name: object, _setting: bool) -> object:
    raise AttributeError(name)
