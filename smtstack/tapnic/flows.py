"""The flows that a NIC was told of: from the request to when nothing of them can be sent any more.

A NIC knows more than the flows that it has contexts for: all of its host's. What is decided here is not in a
packet's way: when a flow ends, who has its context, what a change of routes means for it.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from typing import Any, Final

from smtstack.errors import ConfigError
from smtstack.io.tcp_queries import Connections, Routes
from smtstack.nic.plaintext import NIC_GROUP, PLAINTEXT_MARK
from smtstack.nic.record_map import FlowWords
from smtstack.nic.tls_flow import FREEBSD, RxFlow, TxFlow
from smtstack.nicshare.state import Port
from smtstack.tapnic import messages
from smtstack.tapnic.nic import TapNic

_IFF_UP: Final = 1
#: Flows whose application is gone that are asked after in one go.
_ASKED: Final = 64


class KnownFlow:
    """A flow with the memory that its application shares with us."""

    __slots__ = ("context", "flow", "giving", "memory", "view", "words")

    def __init__(self, flow: TxFlow | RxFlow, memory: mmap.mmap, view: memoryview,
                 words: FlowWords | None) -> None:
        self.flow = flow
        self.memory = memory
        self.view = view
        #: What is known of a flow that leaves.
        self.words = words
        #: It has a context here.
        self.context = False
        #: It is to lose that as soon as no plaintext is under way.
        self.giving = False


class Flows:
    """All flows of one NIC. ``index`` is its interface's, by which the NICs of a host are told apart, too."""

    def __init__(self, nic: TapNic, index: int, port: Port | None, connections: Connections,
                 routes: Routes) -> None:
        self._nic = nic
        self._index = index
        self._port = port
        self._connections = connections
        self._routes = routes
        self._tx: dict[bytes, KnownFlow] = {}
        self._rx: dict[bytes, KnownFlow] = {}
        #: Their application is gone; what it wrote may still have to be sent.
        self._ending: dict[bytes, KnownFlow] = {}
        self._up = False
        #: Filters of tc may send copies of the interface's packets elsewhere, with plaintext in them.
        self._hooked = False
        #: Packets dropped for want of a context, as far as that was looked into.
        self._dropped = 0

    def fileno(self) -> int:
        """Readable when routes or interfaces change."""
        assert self._routes.news is not None
        return self._routes.news.fileno()

    # -- what applications ask for -------------------------------------------------------------------------

    def begin(self, fields: dict[str, Any], memory: mmap.mmap) -> tuple[KnownFlow | None, bytes]:
        """A new flow, None: it is refused for now; the answer. Raises :class:`ConfigError`; the memory is the
        caller's then."""
        view = memoryview(memory)
        try:
            known = self._read(fields, memory, view)
            key = known.flow.flow
            same = self._tx if known.words is not None else self._rx
            ended = self._ending.get(key) if known.words is not None else None
            if key in same:
                raise ConfigError("this connection has offload in this direction already")
            if ended is not None and self._unacknowledged(key):
                # Its old records may be sent again, and would get the new keys.
                self._close(known)
                return None, messages.answer(number=self._index, busy=True)
        except BaseException:
            view.release()
            raise
        if ended is not None:
            self._forget(self._ending.pop(key))
        same[key] = known
        if not fields.get("context"):
            self._nic.tls.add_flow(known.flow, False)
            return known, self._answer(known)
        return known, self._give_context(known)

    def _read(self, fields: dict[str, Any], memory: mmap.mmap, view: memoryview) -> KnownFlow:
        keys = messages.keys_untrusted(fields)
        try:
            flow = bytes.fromhex(fields["flow"])
            resync = str(fields["resync"])
            if fields["do"] == messages.RX:
                rx = RxFlow(flow, keys, view, int(fields["seq"]) & 0xFFFFFFFF, int(fields["number"]), resync)
                return KnownFlow(rx, memory, view, None)
            tx = TxFlow(flow, keys, view, str(fields["policy"]), resync)
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise ConfigError(f"a request to a NIC lacks something: {type(e).__name__}: {e}") from None
        return KnownFlow(tx, memory, view, FlowWords(view))

    def context(self, known: KnownFlow, take: bool) -> bytes:
        """A context for a flow, or no longer one; the answer."""
        if take:
            known.giving = False
            return self._give_context(known)
        known.giving = True
        self._settle(known)
        return self._answer(known)

    def end(self, known: KnownFlow) -> None:
        """The application is done with a flow, or gone."""
        key = known.flow.flow
        if known.words is None:
            if self._rx.get(key) is known:
                del self._rx[key]
                self._forget(known)
        elif self._tx.get(key) is known:
            # What it wrote may be sent again, for as long as it is not acknowledged.
            del self._tx[key]
            self._ending[key] = known

    def _give_context(self, known: KnownFlow) -> bytes:
        tls = self._nic.tls
        if self._hooked:
            tls.add_flow(known.flow, False)
            return messages.answer(number=self._index, hooked=True)
        room = self._port is None or self._port.claim_context(tls.contexts(), tls.context_limit)
        tls.contexts_elsewhere = 0 if room else tls.context_limit
        known.context = tls.add_flow(known.flow, True)
        self._count_contexts()
        return self._answer(known, full=not room or tls.contexts() >= tls.context_limit)

    def _take_context(self, known: KnownFlow) -> None:
        self._nic.tls.add_flow(known.flow, False)
        known.context = known.giving = False
        self._count_contexts()

    def _answer(self, known: KnownFlow, full: bool = False) -> bytes:
        return messages.answer(known.context, self._index, full and not known.context)

    def _count_contexts(self) -> None:
        if self._port is not None:
            self._port.hold_contexts(self._nic.tls.contexts())

    # -- now and then --------------------------------------------------------------------------------------

    def tend(self) -> bool:
        """Forget flows of which nothing can be sent any more, and see to it that the right ones have contexts;
        whether there is more to forget soon."""
        before = len(self._ending)
        for key in [key for key, _known in zip(self._ending, range(_ASKED), strict=False)]:
            known = self._ending.pop(key)
            if self._unacknowledged(key):
                self._ending[key] = known  # behind the others
            else:
                self._forget(known)
        tls = self._nic.tls
        dropped = tls.counters.tx_tls_drop_bypass_req
        look, self._dropped = dropped != self._dropped, dropped
        for known in (*self._tx.values(), *self._ending.values()):
            words = known.words
            assert words is not None
            if known.context:
                self._settle(known)
                if words.owner != self._index:
                    self._take_context(known)
            elif look and words.reset_pending and known.flow.policy == FREEBSD:  # type: ignore[union-attr]
                self._tag_again(known, words)
        excess = tls.contexts() - tls.context_limit
        if excess > 0:
            held = [known for flows in (self._ending, self._tx, self._rx) for known in flows.values()
                    if known.context]
            for known in held[:excess]:
                self._take_context(known)
        return 0 < len(self._ending) < before

    def _settle(self, known: KnownFlow) -> None:
        """Take a context away that is not wanted any more, unless plaintext is under way that needs it."""
        words = known.words
        assert words is not None
        if known.giving and words.created - words.released <= words.sealed:
            self._take_context(known)

    def _tag_again(self, known: KnownFlow, words: FlowWords) -> None:
        """A packet of a flow came here whose context is elsewhere (FreeBSD's task after EAGAIN)."""
        if words.aborted:
            return
        # Whoever has the context drops from now on, too, and lets it go.
        words.owner = 0
        self._give_context(known)
        if known.context:
            words.reset_pending = False
            self._nic.counters.ifnet_reset += 1
        else:
            self._abort(known, words)

    def _abort(self, known: KnownFlow, words: FlowWords) -> None:
        """No NIC can go on with a flow: its connection ends, rather than to leak or to wait for ever."""
        words.aborted = True
        self._nic.counters.ifnet_reset_failed += 1
        self._nic.counters.ifnet_reset_dropped += 1
        self._connections.abort(*_addresses(known.flow.flow))

    def routes_changed(self) -> None:
        """Routes or interfaces are not what they were."""
        if not self._routes.take_news():
            return
        flags, _group = self._routes.link(self._index)
        if self._up and not flags & _IFF_UP:
            # The device is down: flows are software's from now on, also when it is up again.
            self._nic.tls.reset()
            for known in (*self._tx.values(), *self._rx.values(), *self._ending.values()):
                known.context = known.giving = False
            self._count_contexts()
        self._up = bool(flags & _IFF_UP)
        self._hooked = self._routes.has_hooks(self._index)
        if self._hooked:
            self._refuse_all()
        for known in (*self._tx.values(), *self._ending.values()):
            words = known.words
            assert words is not None
            if known.context and known.flow.policy == FREEBSD and not words.aborted:  # type: ignore[union-attr]
                own, _own_port, peer, _peer_port = _addresses(known.flow.flow)
                index = self._routes.way_out(own, peer, PLAINTEXT_MARK)
                if index not in (0, self._index) and self._routes.link(index)[1] != NIC_GROUP:
                    self._abort(known, words)

    def _refuse_all(self) -> None:
        """Who mirrors the interface's packets is to see none that the NIC has decrypted, or has yet to encrypt."""
        for known in self._rx.values():
            if known.context:
                self._take_context(known)
        for known in (*self._tx.values(), *self._ending.values()):
            words = known.words
            assert words is not None
            if not words.aborted and words.created - words.released > words.sealed:
                self._abort(known, words)

    # -- the end of a flow ---------------------------------------------------------------------------------

    def _unacknowledged(self, key: bytes) -> bool:
        with contextlib.suppress(OSError):  # no answer: it may be
            return bool(self._connections.unacknowledged(*_addresses(key)))
        return True

    def _forget(self, known: KnownFlow) -> None:
        self._nic.tls.remove_flow(known.flow)
        self._close(known)
        self._count_contexts()

    @staticmethod
    def _close(known: KnownFlow) -> None:
        if known.words is not None:
            known.words.close()
        known.view.release()
        known.memory.close()

    def close(self) -> None:
        """The NIC ends."""
        for known in (*self._tx.values(), *self._rx.values(), *self._ending.values()):
            self._forget(known)
        self._connections.close()
        self._routes.close()


def _addresses(flow: bytes) -> tuple[int, int, int, int]:
    """(source address, port, destination address, port) of a flow's name."""
    source, destination, sport, dport = struct.unpack("!IIHH", flow)
    return source, sport, destination, dport
