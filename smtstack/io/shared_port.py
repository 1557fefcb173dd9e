"""One port, several worker processes: the kernel says whose a frame is (packet(7), PACKET_FANOUT)."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from smtstack.errors import Unsupported
from smtstack.io import bpf
from smtstack.io.ring import SOL_PACKET
from smtstack.wire import homa, ipv4

# Linux <linux/if_packet.h>; Python has no names for these.
PACKET_FANOUT = 18
PACKET_FANOUT_DATA = 22
FANOUT_CBPF = 6

#: How long workers of one port wait for each other, in seconds: to take a message, to start.
SHARE_PATIENCE_S = 1
JOIN_PATIENCE_S = 10
_JOINED = b"joined"

#: Flags and low word of sender_id, counted from the IP header: where the kernel's program starts to read.
_FLAGS_AT = ipv4.HEADER_LEN + homa.FLAGS_OFFSET
_SENDER_ID_LOW_AT = ipv4.HEADER_LEN + homa.SENDER_ID_OFFSET + 4


@dataclass(frozen=True, slots=True)
class SharedPort:
    """Several processes share one port: the kernel spreads *messages* over them by RPC id.

    Handshakes are the first worker's. What it tells the others goes over sockets made before they were forked.
    """

    group: int
    """Any 16-bit number, the same in all workers."""
    workers: int
    index: int = 0
    """Which of them this is."""
    inbox: socket.socket | None = None
    """What the first tells this one; None: it is the first."""
    outboxes: tuple[socket.socket, ...] = ()
    """The first's, one for each other."""

    @classmethod
    def among(cls, group: int, workers: int) -> list[SharedPort]:
        """One for each worker. Make them before the workers are forked."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(workers - 1)]
        for ours, theirs in pairs:
            # A worker that is stopped for longer holds up all handshakes: they are refused.
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SHARE_PATIENCE_S, 0))
            theirs.settimeout(JOIN_PATIENCE_S)
        first = cls(group, workers, 0, None, tuple(ours for ours, _theirs in pairs))
        return [first, *(cls(group, workers, n, theirs) for n, (_ours, theirs) in enumerate(pairs, 1))]

    def share(self, message: bytes) -> bool:
        """Tell the others; False if one of them does not take it."""
        try:
            for box in self.outboxes:
                box.send(message)
        except OSError:
            return False
        return True

    def await_turn(self) -> None:
        """Workers are numbered in the order they join, and the first must be the first."""
        if self.inbox is not None:
            try:
                said = self.inbox.recv(len(_JOINED))
            except OSError:
                said = b""
            if said != _JOINED:
                raise Unsupported("the first worker of this port did not start")
            self.inbox.setblocking(False)

    def joined(self) -> None:
        """Let the others join."""
        self.share(_JOINED)

    def attach(self, sock: socket.socket, handshakes: bool) -> None:
        """Make a bound packet socket this worker's; ``handshakes``: the packets' headers have flags."""
        sock.setsockopt(SOL_PACKET, PACKET_FANOUT, self.group | FANOUT_CBPF << 16)
        bpf.attach(sock, worker_program(self.workers, handshakes), SOL_PACKET, PACKET_FANOUT_DATA)

    def close(self) -> None:
        """For who made the workers, when all of them are forked."""
        for box in (self.inbox, *self.outboxes):
            if box is not None:
                box.close()


def worker_program(workers: int, handshakes: bool) -> list[bpf.Instruction]:
    """Number of the worker a frame is for. It sees the frame from the IP header on.

    ``handshakes``: the header has flags, and packets of the handshake plane are for worker 0.
    """
    first = [(bpf.LD_BYTE, 0, 0, _FLAGS_AT), (bpf.JUMP_SET, 0, 1, homa.HANDSHAKE), (bpf.RETURN, 0, 0, 0)]
    by_id = [(bpf.LD_WORD, 0, 0, _SENDER_ID_LOW_AT), (bpf.RSH, 0, 0, 1), (bpf.MOD, 0, 0, workers),
             (bpf.RETURN_A, 0, 0, 0)]
    return first + by_id if handshakes else by_id
