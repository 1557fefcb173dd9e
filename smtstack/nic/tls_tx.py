"""The device half of TLS transmit offload: contexts that encrypt a TCP stream as it passes, and their queues.

A context finds records by their own headers, which may lie across packets, keeps what a half-done record needs,
and counts records by itself. It never asks anybody. Where it is given other bytes than those that follow, it has
no way to send them right: they are dropped.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from smtstack.crypto.stream_gcm import TAG_LEN, TLS13, RecordCrypto, StreamKeys, record_len_untrusted
from smtstack.nic.counters import NicCounters
from smtstack.nic.tls_descriptors import (
    Completion,
    Dump,
    DumpDone,
    Failed,
    Fence,
    GetProgress,
    Progress,
    SetProgress,
    SetStatic,
    TcpSend,
    TlsDescriptor,
)
from smtstack.wire import tcp

START: Final = "start"
TRACKING: Final = "tracking"
#: Objects of the host that describe contexts are made so many at a time, and kept up to a number: mlx5's TIS pool.
POOL_BULK: Final = 16
POOL_HIGH: Final = 4096
POOL_LOW: Final = 1024
_MASK64: Final = (1 << 64) - 1


class TlsTxContext:
    """What the device keeps of one stream: keys, record number, and where in a record it is."""

    __slots__ = ("_body", "_crypto", "_first", "_header", "_tag", "keys", "number", "seq")

    def __init__(self) -> None:
        self.keys: StreamKeys | None = None
        #: Number of the record under way, or of the next.
        self.number = 0
        self._first = 0
        #: TCP sequence number of the byte that must come next; -1: it does not know.
        self.seq = -1
        self._restart()

    def _restart(self) -> None:
        self._header = b""
        self._crypto: RecordCrypto | None = None
        #: Body bytes still to come.
        self._body = 0
        #: What is left of the tag, once the body is done.
        self._tag = b""

    def set_static(self, keys: StreamKeys, number: int) -> None:
        """Keys, and the number of the record with which :meth:`set_progress` begins."""
        self.keys = keys
        self._first = self.number = number

    def set_progress(self, seq: int) -> None:
        """The record of the static parameters begins at ``seq``, which is what comes next."""
        self.seq = seq
        self.number = self._first
        self._restart()

    def send(self, seq: int, payload: bytes) -> bytes | None:
        """The payload encrypted; None: it is not what follows, and must not leave.

        A gap that the driver did not tell of is noticed by TLS 1.3 contexts, whose nonces are their own count: one
        would be used twice. A TLS 1.2 record brings its nonce: at a record's beginning the device goes on, and the
        tag is wrong (the "corrupted" record of the SMT paper's Fig. 2). Inside of a record both refuse.
        """
        if seq != self.seq and (self.seq < 0 or self.keys is None or self.keys.version == TLS13 or self._header):
            return None
        self.seq = seq
        return self.feed(payload)

    def feed(self, data: bytes) -> bytes | None:
        """The next bytes of the stream, encrypted; None where a header is none. Then it waits for a new start."""
        keys = self.keys
        if keys is None or self.seq < 0:
            return None
        self.seq = tcp.advance(self.seq, len(data))
        out = []
        header_len = keys.header_len
        at, size = 0, len(data)
        view = memoryview(data)
        while at < size:
            crypto = self._crypto
            if self._tag:
                tag = self._tag
                piece = tag[:size - at]
                out.append(piece)
                at += len(piece)
                self._tag = tag[len(piece):]
                if not self._tag:
                    self.number = self.number + 1 & _MASK64
                    self._restart()
            elif crypto is None:
                had = len(self._header)
                header = self._header = self._header + data[at:at + header_len - had]
                out.append(header[had:])
                at += len(header) - had
                if len(header) < header_len:
                    break
                length = record_len_untrusted(keys, header, any_kind=True)
                if not length:
                    self.seq = -1
                    self._restart()
                    return None
                self._body = length - header_len - TAG_LEN
                crypto = self._crypto = RecordCrypto(keys, self.number, header)
                if not self._body:
                    self._tag = crypto.tag()
            else:
                end = min(at + self._body, size)
                out.append(crypto.update(view[at:end]))
                self._body -= end - at
                at = end
                if not self._body:
                    self._tag = crypto.tag()
        return b"".join(out)


class TlsTxDevice:
    """Transmit queues of descriptors in, frames and completions out. Order holds within a queue, never between."""

    def __init__(self, counters: NicCounters, queues: int, ring_size: int) -> None:
        self.counters = counters
        self._ring_size = ring_size
        self._rings: list[deque[TlsDescriptor]] = [deque() for _ in range(queues)]
        #: Of each queue: what was set since the last fence.
        self._staged: list[list[SetStatic | SetProgress]] = [[] for _ in range(queues)]
        self._contexts: dict[int, TlsTxContext] = {}
        self._ids = 0
        self._pool = 0
        #: The port behind the device cuts super-frames and completes checksums: they leave it as they came.
        self.whole = False
        #: What the driver has not looked at yet.
        self.completions: list[Completion] = []

    def __len__(self) -> int:
        """Contexts in use."""
        return len(self._contexts)

    def create_context(self) -> int:
        """Number of a fresh context, never 0. Whether there is memory for it the caller has looked."""
        if not self._pool:
            self._pool = POOL_BULK
            self.counters.tx_tls_pool_alloc += POOL_BULK
        self._pool -= 1
        self._ids += 1
        self._contexts[self._ids] = TlsTxContext()
        self.counters.tx_tls_ctx += 1
        return self._ids

    def destroy_context(self, context: int) -> None:
        """Forget a context and its keys. What is still posted for it is dropped, not sent in clear."""
        if self._contexts.pop(context, None) is None:
            return
        self.counters.tx_tls_del += 1
        self._pool += 1
        if self._pool > POOL_HIGH:
            self.counters.tx_tls_pool_free += self._pool - POOL_LOW
            self._pool = POOL_LOW

    def space(self, queue: int) -> int:
        """Descriptors that still fit the ring of ``queue``."""
        return self._ring_size - len(self._rings[queue])

    def post(self, queue: int, descriptor: TlsDescriptor) -> None:
        """Queue a descriptor; the caller has looked for :meth:`space`."""
        self._rings[queue].append(descriptor)

    def process(self, queue: int) -> list[bytes]:
        """Work off a queue; the frames that leave."""
        ring = self._rings[queue]
        out: list[bytes] = []
        while ring:
            d = ring.popleft()
            if isinstance(d, TcpSend):
                self._send(d, out)
            elif isinstance(d, Dump):
                context = self._contexts.get(d.context)
                if context is not None:
                    context.feed(d.data)
                self.completions.append(DumpDone(len(d.data)))
            elif isinstance(d, Fence):
                self._take_effect(queue)
            elif isinstance(d, GetProgress):
                self._tell_progress(d.context)
            else:
                self._staged[queue].append(d)
        counters = self.counters
        counters.tx_packets += len(out)
        counters.tx_bytes += sum(map(len, out))
        return out

    def _take_effect(self, queue: int) -> None:
        for d in self._staged[queue]:
            context = self._contexts.get(d.context)
            if context is None:
                continue
            if isinstance(d, SetStatic):
                context.set_static(d.keys, d.number)
            else:
                context.set_progress(d.seq)
        self._staged[queue].clear()

    def _tell_progress(self, number: int) -> None:
        context = self._contexts.get(number)
        if context is not None:
            known = context.seq >= 0
            self.completions.append(Progress(number, max(context.seq, 0), context.number,
                                             TRACKING if known else START, known))

    def _send_whole(self, d: TcpSend, payload: bytes, out: list[bytes]) -> None:
        """The super-frame with another payload, counted as the packets that it becomes."""
        frame, packet, size = d.frame, d.packet, d.gso_size
        # Always: what the frame has may be plaintext, also where software has sealed it and there is no context.
        out.append(b"".join((frame[:packet.payload_at], payload, frame[packet.end:])))
        if size and len(payload) > size:
            counters = self.counters
            more = -(-len(payload) // size) - 1
            counters.tx_tso_packets += 1
            counters.tx_tso_bytes += len(payload)
            counters.tx_packets += more
            counters.tx_bytes += more * packet.payload_at

    def _send(self, d: TcpSend, out: list[bytes]) -> None:
        counters = self.counters
        payload = d.payload
        packet = d.packet
        size = d.gso_size
        if d.context:
            context = self._contexts.get(d.context)
            sealed = context.send(packet.seq, payload) if context is not None else None
            if sealed is None:
                counters.tx_dropped += 1
                counters.tx_tls_drop_bypass_req += 1
                self.completions.append(Failed(d.context))
                return
            counters.tx_tls_encrypted_packets += -(-len(payload) // size) if size else 1
            counters.tx_tls_encrypted_bytes += len(payload)
            payload = sealed
        if self.whole:
            self._send_whole(d, payload, out)
        elif size and len(payload) > size:
            counters.tx_tso_packets += 1
            counters.tx_tso_bytes += len(payload)
            out += tcp.cut(d.frame, packet, payload, size)
        else:
            out.append(tcp.replace_payload(d.frame, packet, payload))
