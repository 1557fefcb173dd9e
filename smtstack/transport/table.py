"""Who we talk to and what about: hosts, peers and RPCs, within bounds of memory."""

from __future__ import annotations

from typing import Any, Final

from smtstack.crypto.epochs import NO_SESSION, EpochKeys, Session
from smtstack.crypto.keys import Endpoints, KeyStore
from smtstack.errors import ConfigError
from smtstack.transport.counters import Counters
from smtstack.transport.grants import GrantScheduler
from smtstack.transport.profile import Profile
from smtstack.transport.rpc import Host, Peer, PendingPeer, Rpc
from smtstack.transport.states import DEAD, INCOMING, SESSION, UNKNOWN, WAITING
from smtstack.transport.timers import KeyTimers, TimerTable
from smtstack.transport.trace import Trace
from smtstack.wire.homa import INCAST
from smtstack.wire.ipv4 import format_address
from smtstack.wire.naming import peer_key, rpc_key

#: Peers that never authenticated a message; more push out the oldest. A forger can make these.
MAX_UNPROVEN_PEERS: Final = 1024
_NEVER: Final = 1 << 60


class RpcTable:
    """All state that outlives a packet, except what waits to be sent."""

    __slots__ = ("_births", "_client_rpcs", "_counters", "_doubted", "_incast", "_ip", "_kept_bytes", "_keys",
                 "_overlay", "_params", "_port", "_rx_bytes", "_server_rpcs", "_unproven", "grants", "hosts",
                 "key_timers", "peers", "pending", "timers", "trace")

    def __init__(self, ip: int, port: int, profile: Profile[Any], keys: KeyStore, counters: Counters,
                 overlay: bool = False) -> None:
        params = profile.params
        self._ip = ip
        self._port = port
        if keys.makes is not profile.session_type:
            raise ConfigError(f"these keys make a {keys.makes.__name__}, profile {profile.fmt.name} needs a "
                              f"{profile.session_type.__name__}: load them for the same profile")
        self._keys = keys
        #: Peers whose session nobody negotiates are taken to have the overlay.
        self._overlay = overlay
        self._params = params
        self._counters = counters
        self._births = 0
        self._rx_bytes = 0
        self._kept_bytes = 0
        self._server_rpcs = 0
        self._client_rpcs = 0
        #: Our own RPCs under way above which new requests are marked.
        self._incast = params.incast_threshold or _NEVER
        self.hosts: dict[int, Host] = {}
        #: By ``Peer.key``.
        self.peers: dict[int, Peer] = {}
        #: Those that have no session yet, or one that only sends. By the same key; none is in both.
        self.pending: dict[int, PendingPeer] = {}
        self._unproven: dict[int, Peer] = {}
        #: RPCs with an incoming message of which nothing authenticated, oldest first.
        self._doubted: dict[Rpc, None] = {}
        self.timers = TimerTable()
        self.key_timers = KeyTimers()
        self.grants = GrantScheduler(params)
        #: Who is told what ends, and why.
        self.trace: Trace | None = None

    # -- peers -------------------------------------------------------------------------------------------

    def call(self, ip: int, port: int) -> Peer:
        """The peer an application wants to talk to; raises :class:`ConfigError` without a key for it."""
        peer = self.peers.get(peer_key(ip, port))
        if peer is None:
            peer = self._add_peer(ip, port)
            if peer is None:
                raise ConfigError(f"no key for {format_address(ip)}: there is no fall-back to plaintext; "
                                  "add the pair of hosts to the key file")
        self.prove(peer)
        return peer

    def heard(self, ip: int, port: int) -> Peer | None:
        """The peer a packet claims to be from; None without a key for it."""
        peer = self._add_peer(ip, port)
        if peer is None:
            return None
        self._unproven[peer.key] = peer
        if len(self._unproven) > MAX_UNPROVEN_PEERS:
            self._forget(next(iter(self._unproven.values())))
        return peer

    def _add_peer(self, ip: int, port: int) -> Peer | None:
        session = self._keys.session(Endpoints(self._ip, self._port, ip, port))
        if session is None:
            return None
        session.outlive(self._params.silence_ticks)
        peer = self._make_peer(ip, port, session)
        self.peers[peer.key] = peer
        return peer

    def _make_peer(self, ip: int, port: int, session: Session) -> Peer:
        host = self.hosts.get(ip)
        if host is None:
            host = self.hosts[ip] = Host(ip)
        host.peers += 1
        return Peer(host, port, self._port, session, self._params.max_message_length, self._params.mtu,
                    self._overlay)

    def await_session(self, ip: int, port: int) -> PendingPeer:
        """A peer with which there is to be a session."""
        peer = self._make_peer(ip, port, NO_SESSION)
        pending = self.pending[peer.key] = PendingPeer(peer)
        return pending

    def prove(self, peer: Peer) -> None:
        """``peer`` is genuine, or our own choice: it stays."""
        if not peer.proven:
            peer.proven = True
            self._unproven.pop(peer.key, None)

    def _forget(self, peer: Peer) -> None:
        for rpc in list(peer.rpcs.values()):
            self.free(rpc, "its session is over")
        del self.peers[peer.key]
        self._unproven.pop(peer.key, None)
        self._leave_host(peer)

    def _leave_host(self, peer: Peer) -> None:
        peer.host.peers -= 1
        if peer.host.peers == 0:
            del self.hosts[peer.host.ip]
        peer.session.end()

    def end(self, peer: Peer) -> list[Rpc]:
        """Forget a peer and its session with all RPCs; those of ours that had not ended."""
        ours = [rpc for rpc in peer.rpcs.values() if rpc.is_client]
        self._forget(peer)
        return ours

    def close(self, key: int) -> list[Rpc]:
        """There will be no session with this peer that is in ``pending``; RPCs that waited, or sent under an
        early one."""
        pending = self.pending[key]
        ours = [*pending.peer.rpcs.values(), *pending.waiting]
        for rpc in ours:
            self.free(rpc, "there is no session")
        del self.pending[key]
        self._leave_host(pending.peer)
        return ours

    # -- RPCs --------------------------------------------------------------------------------------------

    def client_rpc(self, peer: Peer, tick: int) -> Rpc:
        """A fresh RPC of ours. Raises :class:`LocalError` if the session has no id for it."""
        keys, rpc_id = peer.session.begin_rpc(tick)
        self._births += 1
        # rpc_key(), without the call.
        key = rpc_id | keys.wire_epoch << 64
        rpc = Rpc(peer, rpc_id, key, keys, True, self._births, tick)
        peer.rpcs[key] = rpc
        self._client_rpcs += 1
        if self._client_rpcs > self._incast:
            self._mark(rpc)
        return rpc

    def waiting_rpc(self, pending: PendingPeer, data: bytes) -> Rpc:
        """An RPC of ours that has to wait for a session."""
        self._births += 1
        rpc = Rpc(pending.peer, 0, 0, NO_SESSION.current, True, self._births, 0)
        rpc.state = WAITING
        pending.waiting[rpc] = data
        return rpc

    def begin(self, rpc: Rpc, tick: int) -> None:
        """The session that ``rpc`` waited for is there. Raises as :meth:`client_rpc`."""
        rpc.keys, rpc.id = rpc.peer.session.begin_rpc(tick)
        rpc.move(SESSION)
        rpc.key = rpc_key(rpc.id, rpc.keys.wire_epoch)
        rpc.heard_tick = tick
        rpc.peer.rpcs[rpc.key] = rpc
        self._client_rpcs += 1
        if self._client_rpcs > self._incast:
            self._mark(rpc)

    def _mark(self, rpc: Rpc) -> None:
        rpc.flags = INCAST
        self._counters.incast_marked += 1

    def server_rpc(self, peer: Peer, key: int, rpc_id: int, keys: EpochKeys, proven: bool,
                   tick: int) -> Rpc | None:
        """The RPC of a request that begins to arrive; None when a bound is reached.

        ``proven``: the request is whole and authentic.
        """
        host = peer.host
        p = self._params
        if (host.server_rpcs >= p.max_rpcs_per_host
                and not self._evict(host.doubted) and not self._drop_response(host)):
            self._counters.no_memory += 1
            return None
        if (self._server_rpcs >= p.max_server_rpcs
                and not self._evict(self._doubted) and not self._drop_response(host)):
            self._counters.no_memory += 1
            return None
        self._births += 1
        rpc = Rpc(peer, rpc_id, key, keys, False, self._births, tick)
        keys.active += 1
        host.server_rpcs += 1
        self._server_rpcs += 1
        peer.rpcs[key] = rpc
        if not proven:
            self.doubt(rpc)
        return rpc

    def free(self, rpc: Rpc, why: str) -> None:
        """``rpc`` is over: nothing of it stays. ``why`` is for a trace."""
        peer = rpc.peer
        if peer.rpcs.pop(rpc.key, None) is None:
            if rpc.state is WAITING:
                if self.trace is not None:
                    self.trace.freed(rpc, why)
                rpc.state = DEAD
                pending = self.pending.get(peer.key)
                if pending is not None:
                    pending.waiting.pop(rpc, None)
            return
        if self.trace is not None:
            self.trace.freed(rpc, why)
        rpc.state = DEAD
        # Its timer lets go, or whoever sleeps until the next one would be woken for nothing.
        rpc.armed_tick = -1
        if rpc in peer.host.kept:
            self._unkeep(rpc)
        rpc.out = None
        if rpc.inm is not None:
            self.drop_incoming(rpc)
        if self._doubted:
            self._trust(rpc)
        keys = rpc.keys
        keys.active -= 1
        if not keys.active and keys.tx.retired:
            keys.wipe()
        if rpc.is_client:
            self._client_rpcs -= 1
        else:
            peer.host.server_rpcs -= 1
            self._server_rpcs -= 1

    # -- memory of responses that nobody acknowledges ----------------------------------------------------

    def keep(self, rpc: Rpc) -> None:
        """The response of ``rpc`` is sent and stays until it is acknowledged; the oldest ones make room."""
        host = rpc.peer.host
        out = rpc.out
        assert out is not None
        if rpc in host.kept:
            return
        host.kept[rpc] = None
        host.kept_bytes += out.length
        self._kept_bytes += out.length
        p = self._params
        while host.kept_bytes > p.max_kept_bytes_per_host or self._kept_bytes > p.max_kept_bytes:
            self._drop_response(host)
            if rpc.state is DEAD:
                return

    def _drop_response(self, host: Host) -> bool:
        victim = next(iter(host.kept), None)
        if victim is None:
            return False
        self._counters.responses_dropped += 1
        self.free(victim, "its response makes room for others")
        return True

    def _unkeep(self, rpc: Rpc) -> None:
        host = rpc.peer.host
        assert rpc.out is not None
        del host.kept[rpc]
        host.kept_bytes -= rpc.out.length
        self._kept_bytes -= rpc.out.length

    # -- memory of unfinished messages -------------------------------------------------------------------

    def charge(self, rpc: Rpc) -> bool:
        """Count what ``rpc``'s unfinished message occupies now; False if that exceeds a bound."""
        inm = rpc.inm
        assert inm is not None
        size = inm.buffered()
        host = rpc.peer.host
        grown = size - inm.rx_bytes
        inm.rx_bytes = size
        host.rx_bytes += grown
        self._rx_bytes += grown
        if self._doubted and rpc in self._doubted and inm.authenticated():
            self._trust(rpc)
        return self._make_room(host, rpc)

    def doubt(self, rpc: Rpc) -> None:
        """Nothing of ``rpc``'s incoming message authenticated yet: the first to go when memory is short."""
        rpc.peer.host.doubted[rpc] = None
        self._doubted[rpc] = None

    def _trust(self, rpc: Rpc) -> None:
        self._doubted.pop(rpc, None)
        rpc.peer.host.doubted.pop(rpc, None)

    def _make_room(self, host: Host, rpc: Rpc) -> bool:
        p = self._params
        while host.rx_bytes > p.max_rx_bytes_per_host:
            if not self._evict(host.doubted, rpc):
                self._counters.no_memory += 1
                return False
        while self._rx_bytes > p.max_rx_bytes:
            if not self._evict(self._doubted, rpc):
                self._counters.no_memory += 1
                return False
        return True

    def _evict(self, doubted: dict[Rpc, None], keep: Rpc | None = None) -> bool:
        """Drop the oldest doubted message: a genuine sender will send it again, a flood displaces itself."""
        victim = next((r for r in doubted if r is not keep), None)
        if victim is None:
            return False
        self._counters.evicted += 1
        if not victim.is_client:
            self.free(victim, "it makes room for others")
            return True
        # Our own request is not at fault if somebody forges its response.
        if victim.inm is not None:
            self.drop_incoming(victim)
        self._trust(victim)
        victim.move(UNKNOWN)
        return True

    def drop_incoming(self, rpc: Rpc) -> None:
        """``rpc``'s incoming message is complete or given up."""
        inm = rpc.inm
        assert inm is not None
        host = rpc.peer.host
        host.rx_bytes -= inm.rx_bytes
        self._rx_bytes -= inm.rx_bytes
        self.grants.remove(rpc)
        rpc.inm = None
        self._trust(rpc)

    def snapshot(self) -> dict[str, int]:
        """How much there is of everything; all zero (but peers) when nothing is going on."""
        peers = [*self.peers.values(), *(o.peer for o in self.pending.values())]
        rpcs = [r for p in peers for r in p.rpcs.values()]
        waiting = sum(len(o.waiting) for o in self.pending.values())
        return {"peers": len(self.peers), "pending": len(self.pending), "waiting": waiting,
                "rpcs": len(rpcs) + waiting, "server_rpcs": self._server_rpcs,
                "incoming": sum(r.state is INCOMING for r in rpcs), "rx_bytes": self._rx_bytes,
                "kept_bytes": self._kept_bytes,
                "granted_bytes": self.grants.total_incoming, "grantable": len(self.grants)}
