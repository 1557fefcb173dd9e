"""Fields and rules of profile ``linux``, each changed by a few characters, and our engine made of that.

A mutation that the replayed conversations do not notice is a hole in them. Those that may pass say why.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import smtstack
from tests.performing import Performance, Plan

_ROOT: Final = Path(smtstack.__file__).resolve().parent
#: Seconds after which an engine is taken to hang, which is a way to be noticed.
_PATIENCE_S: Final = 60


@dataclass(frozen=True, slots=True)
class Mutation:
    """One change of the source."""

    name: str
    file: str
    """Below smtstack/."""
    old: str
    new: str
    times: int = 1
    """How often ``old`` is there; all are changed."""
    passes: str = ""
    """Why the replay need not notice; empty: it must."""

    def __str__(self) -> str:
        return self.name


_M = Mutation
HOMA, IP, CUT = "wire/homa.py", "wire/ipv4.py", "nic/descriptors.py"
MESSAGE, RECORD, PROFILE = "transport/linux_message.py", "crypto/tls12.py", "transport/profile.py"
OUTBOX, CONTROL, RECOVERY = "transport/outbox.py", "transport/control.py", "transport/recovery.py"
GRANTS, PARAMS, KEYS = "transport/grants.py", "transport/params.py", "crypto/keys.py"
ENDPOINT, RPC, PLAIN = "transport/endpoint.py", "transport/rpc.py", "transport/linux_plain.py"

MUTATIONS: Final = (
    # IP
    _M("protocol number", HOMA, "PROTO_LINUX: Final = 253", "PROTO_LINUX: Final = 254"),
    _M("DF not set", IP, "FLAG_DF: Final = 0x4000", "FLAG_DF: Final = 0"),
    _M("TTL", IP, "DEFAULT_TTL: Final = 64", "DEFAULT_TTL: Final = 63"),
    _M("packets of a segment numbered by twos", "nic/device.py", "            ip_id += 1",
       "            ip_id += 2"),
    _M("priority one bit lower in TOS", OUTBOX, "priority << 5", "priority << 4", 2),
    _M("control packets not at the highest priority", OUTBOX, "(params.num_priorities - 1)",
       "(params.num_priorities - 2)"),
    # Types and headers
    _M("type of DATA", HOMA, "DATA: Final = 0x10", "DATA: Final = 0x1A"),
    _M("type of GRANT", HOMA, "GRANT: Final = 0x11", "GRANT: Final = 0x1A"),
    _M("type of RESEND", HOMA, "RESEND: Final = 0x12", "RESEND: Final = 0x1A"),
    _M("type of UNKNOWN", HOMA, "UNKNOWN: Final = 0x13", "UNKNOWN: Final = 0x1A"),
    _M("type of BUSY", HOMA, "BUSY: Final = 0x14", "BUSY: Final = 0x1A"),
    _M("type of CUTOFFS", HOMA, "CUTOFFS: Final = 0x15", "CUTOFFS: Final = 0x1A"),
    _M("type of FREEZE", HOMA, "FREEZE: Final = 0x16", "FREEZE: Final = 0x1A",
       passes="no end of any capture says FREEZE, and ours never do: it stops a trace of the module"),
    _M("type of NEED_ACK", HOMA, "NEED_ACK: Final = 0x17", "NEED_ACK: Final = 0x1A"),
    _M("type of ACK", HOMA, "\nACK: Final = 0x18", "\nACK: Final = 0x1A"),
    _M("length of TCP's header", HOMA, "TCP_HEADER_LENGTH: Final = 0xA0", "TCP_HEADER_LENGTH: Final = 0xB0"),
    _M("bytes 8..11 carry what they do in smt", HOMA, '"linux", PROTO_LINUX, extended=False',
       '"linux", PROTO_LINUX, extended=True'),
    _M("ports of DATA swapped", OUTBOX, "self._port, peer.port, 0, size", "peer.port, self._port, 0, size", 2),
    _M("sender_id is the receiver's", OUTBOX, "& 0xFFFF, rpc.id,", "& 0xFFFF, rpc.id ^ 1,", 2),
    _M("halves of the record's offset swapped", OUTBOX, "at >> 16, 0, at & 0xFFFF", "at & 0xFFFF, 0, at >> 16"),
    _M("message_length and incoming swapped", OUTBOX, "rpc.id, out.length, out.unscheduled",
       "rpc.id, out.unscheduled, out.length", 2),
    _M("incoming is everything", OUTBOX, "out.length, out.unscheduled", "out.length, out.length", 2),
    _M("what is sent again says it is new", OUTBOX, "peer.host.cutoff_version, 1, named)",
       "peer.host.cutoff_version, 0, named)"),
    _M("what is sent again has no index", OUTBOX, "peer.host.cutoff_version, 1, named)",
       "peer.host.cutoff_version, 1, 0)"),
    _M("incoming of what is sent again", OUTBOX, "incoming = min(out.length, max(out.granted, b))",
       "incoming = b"),
    _M("GRANT: another priority", HOMA, "_GRANT.pack(self.offset, self.priority)",
       "_GRANT.pack(self.offset, self.priority + 1)"),
    _M("GRANT: a byte more", HOMA, "_GRANT.pack(self.offset, self.priority)",
       "_GRANT.pack(self.offset, self.priority) + bytes(1)"),
    _M("RESEND: offset and length swapped", HOMA, "_RESEND.pack(self.offset, self.length,",
       "_RESEND.pack(self.length, self.offset,"),
    _M("CUTOFFS the other way round", HOMA, "_CUTOFFS.pack(*self.cutoffs,",
       "_CUTOFFS.pack(*reversed(self.cutoffs),"),
    _M("ACK counts the one in its header", HOMA, "_ACK_BODY.pack(count, *chain",
       "_ACK_BODY.pack(count + 1, *chain"),
    # Records
    _M("record type", RECORD, 'b"\\x17\\x03\\x03"', 'b"\\x16\\x03\\x03"'),
    _M("record version", RECORD, 'b"\\x17\\x03\\x03"', 'b"\\x17\\x03\\x04"'),
    _M("record number: bits of the index", RECORD, "(rpc_id % ID_LIMIT >> 1) << 16",
       "(rpc_id % ID_LIMIT >> 1) << 15"),
    _M("record number: the role bit stays", RECORD, "(rpc_id % ID_LIMIT >> 1) << 16", "(rpc_id % ID_LIMIT) << 16"),
    _M("record number: bits of the id", RECORD, "ID_LIMIT: Final = 1 << 49", "ID_LIMIT: Final = 1 << 40"),
    _M("record length without the explicit nonce", RECORD, "length = EXPLICIT_NONCE_LEN + plain_len + TAG_LEN",
       "length = plain_len + TAG_LEN"),
    _M("explicit nonce is 0", RECORD, '_PREFIX + length.to_bytes(2, "big") + sequence.to_bytes(8, "big")',
       '_PREFIX + length.to_bytes(2, "big") + bytes(8)'),
    _M("AAD has the record's length", RECORD, '_PREFIX + plain_len.to_bytes(2, "big")',
       '_PREFIX + (plain_len + 24).to_bytes(2, "big")'),
    _M("AAD without the number", RECORD, 'return sequence.to_bytes(8, "big") + _PREFIX', "return _PREFIX"),
    _M("records of a message have one number", MESSAGE, "tls12.seal(self._keys, self._first + index,",
       "tls12.seal(self._keys, self._first,"),
    _M("records received have one number", MESSAGE, 'self._first + self._index, b"".join',
       'self._first, b"".join'),
    _M("a client's key seals responses", PROFILE, "LinuxOut(session.client if rpc.is_client else session.server",
       "LinuxOut(session.server if rpc.is_client else session.client"),
    _M("a client's key opens responses", PROFILE, "LinuxIn(session.server if rpc.is_client else session.client",
       "LinuxIn(session.client if rpc.is_client else session.server"),
    _M("salt behind the number", KEYS, "salt + bytes(8)", "bytes(8) + salt"),
    _M("a bit of the demo key", KEYS, "8DD230A77A05EB71159129BCBCF64230", "8DD230A77A05EB71159129BCBCF64231"),
    # Segments
    _M("segment header: offset and length swapped", MESSAGE, "SEGMENT_HEADER.pack(at, size, *ack)",
       "SEGMENT_HEADER.pack(size, at, *ack)"),
    _M("segment header: place in the record", MESSAGE, "SEGMENT_HEADER.pack(at, size, *ack)",
       "SEGMENT_HEADER.pack(at - self.start(index), size, *ack)"),
    _M("segment header: offset as wide as an id", MESSAGE, '"!IIQHH"', '"!QIIHH"'),
    _M("a packet holds a byte less", MESSAGE, "self.packet_data = self.mss - SEGMENT_HEADER_LEN",
       "self.packet_data = self.mss - SEGMENT_HEADER_LEN - 1"),
    _M("records hold more: tag not reckoned", MESSAGE, "* self.packet_data - RECORD_OVERHEAD",
       "* self.packet_data - tls12.HEADER_LEN"),
    _M("one packet more in a segment", PARAMS,
       "max(1, (self.max_gso_size - PACKET_HEADERS) // self.segment_payload)",
       "max(1, (self.max_gso_size - PACKET_HEADERS) // self.segment_payload + 1)"),
    _M("record header not reckoned in the first packet", MESSAGE,
       "room = self._geo.packet_data - tls12.HEADER_LEN\n            while",
       "room = self._geo.packet_data\n            while"),
    _M("unscheduled bytes rounded down", MESSAGE, "-(-self.unsched_bytes // whole)",
       "(self.unsched_bytes // whole)"),
    _M("unscheduled bytes by data, not by packets", MESSAGE, "whole = self.record_data + RECORD_OVERHEAD",
       "whole = self.record_data",
       passes="it counts where unsched_bytes exceed whole records by less than 29 bytes for each: nobody's did"),
    _M("at most 4 packets in a record", MESSAGE, "MAX_RECORD_PACKETS: Final = 60",
       "MAX_RECORD_PACKETS: Final = 4"),
    _M("at most 50 packets in a record", MESSAGE, "MAX_RECORD_PACKETS: Final = 60",
       "MAX_RECORD_PACKETS: Final = 50",
       passes="max_gso_size was 10000 at most, so records have 6 packets; the limit is for larger ones"),
    _M("nominal place of the first packet", MESSAGE, "        size -= RECORD_OVERHEAD\n        start",
       "        size -= 0\n        start"),
    _M("nominal place of other packets", MESSAGE, "start = record_offset + index * packet_data - RECORD_OVERHEAD",
       "start = record_offset + index * packet_data"),
    _M("index of arriving packets without the header's", ENDPOINT, "index = (index + ip_id) & 0xFFFF",
       "index = ip_id"),
    _M("index of arriving packets without the IP ID", ENDPOINT, "index = (index + ip_id) & 0xFFFF",
       "index = index"),
    _M("high half of arriving offsets not read", ENDPOINT, "self._receive(rpc, high << 16 | low,",
       "self._receive(rpc, low,",
       passes="no message of the captures has 65536 bytes; sent, its place is checked by 'halves swapped'"),
    # Ids, acknowledgements
    _M("ids go up by 4", KEYS,
       "self._next_id += 2\n        return rpc_id\n\n    def session(self, ends: Endpoints) -> Session | "
       'None:\n        """A session with the shared keys',
       "self._next_id += 4\n        return rpc_id\n\n    def session(self, ends: Endpoints) -> Session | "
       'None:\n        """A session with the shared keys'),
    _M("ids go down", KEYS,
       "self._next_id += 2\n        return rpc_id\n\n    def session(self, ends: Endpoints) -> Session | "
       'None:\n        """A session with the shared keys',
       "self._next_id -= 2\n        return rpc_id\n\n    def session(self, ends: Endpoints) -> Session | "
       'None:\n        """A session with the shared keys'),
    _M("acknowledgements: none rides", PROFILE, "for acked in peer.acks[:packets]]",
       "for acked in peer.acks[:0]]"),
    _M("acknowledgements: they ride and stay", PROFILE, "del peer.acks[:packets]", "del peer.acks[:0]"),
    _M("acknowledgements: ports swapped", PROFILE, "(acked, peer.local_port, peer.port)",
       "(acked, peer.port, peer.local_port)"),
    _M("acknowledgements inside of records not read", ENDPOINT,
       "for client_id, client_port, server_port in inm.acks:", "for client_id, client_port, server_port in []:"),
    _M("acknowledgements of other ports not read", CONTROL,
       "peer = self._table.peers.get(peer_key(host.ip, client_port))", "peer = None"),
    _M("ACK does not end an RPC", CONTROL, "self._acked(rpc)\n        for entry", "for entry"),
    _M("NEED_ACK is not answered", CONTROL, "self._send_ack(peer, keys, client_id, ())", "pass"),
    _M("NEED_ACK is answered while the response is on its way", CONTROL,
       "            # It may have overtaken what it is about: what is lost the timer asks "
       "for.\n            return",
      "            self._send_ack(peer, rpc.keys, client_id := packet.sender_id ^ 1, ())\n            return"),
    _M("NEED_ACK at once", PARAMS, "max_incoming=1_000_000, request_ack_ticks=20",
       "max_incoming=1_000_000, request_ack_ticks=1"),
    _M("NEED_ACK never", RECOVERY, "self._outbox.control(peer, homa.NeedAck(",
       "(lambda *_: None)(peer, homa.NeedAck("),
    # Loss
    _M("RESEND later", PARAMS, "resend_ticks: int = 15", "resend_ticks: int = 25"),
    _M("RESEND earlier", PARAMS, "resend_ticks: int = 15", "resend_ticks: int = 5"),
    _M("RESENDs farther apart", PARAMS, "resend_interval: int = 10", "resend_interval: int = 20"),
    _M("RESENDs closer together", PARAMS, "resend_interval: int = 10", "resend_interval: int = 5"),
    _M("RESENDs do not become rarer", PARAMS, "resend_doublings: int = 4", "resend_doublings: int = 0"),
    _M("RESEND of a response of which nothing is here", RECOVERY, "PROBE_LENGTH: Final = 100",
       "PROBE_LENGTH: Final = 1000"),
    _M("RESEND wants a low priority", RECOVERY, "priority = self._p.num_priorities - 1", "priority = 0"),
    _M("RESEND is answered at the lowest priority", CONTROL,
       "self._outbox.retransmit(rpc, packet.offset, stop, packet.priority, tick)",
       "self._outbox.retransmit(rpc, packet.offset, stop, 0, tick)"),
    _M("RESEND is answered by the whole message", CONTROL,
       "self._outbox.retransmit(rpc, packet.offset, stop, packet.priority, tick)",
       "self._outbox.retransmit(rpc, 0, out.length, packet.priority, tick)"),
    _M("RESEND of an unknown RPC is not answered", CONTROL, "self._outbox.control(peer, homa.Unknown(",
       "(lambda *_: None)(peer, homa.Unknown("),
    _M("BUSY never", CONTROL, "self._outbox.control(peer, homa.Busy(", "(lambda *_: None)(peer, homa.Busy("),
    _M("BUSY resets nothing", CONTROL, "elif isinstance(packet, homa.Busy):\n            rpc.alive(tick)",
       "elif isinstance(packet, homa.Busy):\n            pass"),
    _M("UNKNOWN is not heeded", CONTROL, "if rpc.is_client and out is not None and tick - rpc.resent_tick",
       "if False and rpc.is_client and out is not None and tick - rpc.resent_tick"),
    _M("what an UNKNOWN wants goes at another priority", CONTROL,
       "rpc.peer.host.unscheduled_priority(out.length), tick)", "0, tick)"),
    _M("a host is given up soon", PARAMS, "timeout_resends=600", "timeout_resends=5"),
    # Grants, priorities
    _M("no GRANT", ENDPOINT, "        for grant in self._grants.decide():",
       "        for grant in self._grants.decide()[:0]:"),
    _M("GRANT of less", GRANTS, "offset = min(inm.length, inm.received + self._window, inm.granted + budget)",
       "offset = min(inm.length, inm.received + self._window, inm.granted + budget) - 1"),
    _M("window of the commands", PARAMS, "unsched_bytes=60_000, window=200_000",
       "unsched_bytes=60_000, window=10_000"),
    _M("unscheduled bytes of the commands", PARAMS, "unsched_bytes=60_000, window=200_000",
       "unsched_bytes=6_000, window=200_000"),
    _M("unscheduled bytes of the module", PARAMS, "unsched_bytes: int = 10_000", "unsched_bytes: int = 20_000"),
    _M("incoming of the other end not believed", ENDPOINT, "        if incoming > inm.granted:",
       "        if False and incoming > inm.granted:"),
    _M("GRANT at another priority", GRANTS, "shift = max(0, p.max_sched_prio + 1 - len(chosen))", "shift = 0"),
    _M("GRANT is not heeded", CONTROL, "        if offset <= out.granted:\n            return False",
       "        if True:\n            return False"),
    _M("priority of a GRANT not heeded", CONTROL, "        out.priority = packet.priority",
       "        out.priority = 5"),
    _M("cutoffs that we tell", PARAMS, "(INT_MAX, 0, 0, 0, 1_000_000, 15_000, 2_800, 200)\n",
       "(INT_MAX, 0, 0, 0, 1_000_000, 15_000, 2_801, 200)\n"),
    _M("version that we tell", PARAMS, "cutoff_version: int = 1", "cutoff_version: int = 2"),
    _M("CUTOFFS never", ENDPOINT, "if version != self._cutoff_version:",
       "if False and version != self._cutoff_version:"),
    _M("version of the other end not kept", CONTROL, "        host.cutoff_version = packet.cutoff_version",
       "        host.cutoff_version = 0"),
    _M("cutoffs of the other end not kept", CONTROL, "host.cutoffs = (INT_MAX, *packet.cutoffs[1:])", "pass"),
    # In clear
    _M("in clear: segment header swapped", PLAIN, "SEGMENT_HEADER.pack(at, size, *ack)",
       "SEGMENT_HEADER.pack(size, at, *ack)"),
    _M("in clear: a packet holds a byte less", PLAIN, "self.packet_data = self.mss - SEGMENT_HEADER_LEN",
       "self.packet_data = self.mss - SEGMENT_HEADER_LEN - 1"),
    _M("in clear: segments as long as records", PLAIN, "MAX_RECORD_PACKETS) * self.packet_data",
       "MAX_RECORD_PACKETS) * self.packet_data - 29"),
    _M("in clear: unscheduled bytes not rounded", PLAIN,
       "-(-self.unsched_bytes // self.segment_data) * self.segment_data", "self.unsched_bytes"),
    _M("in clear: DATA says its place", PLAIN, "placed = False", "placed = True"),
    _M("in clear: what a RESEND asks for", PLAIN, "packet * self._geo.packet_data", "packet * self._geo.mss"),
    _M("in clear: where arriving data belongs", PLAIN, "super().add(at, 0, 0,",
       "super().add(segment_offset, 0, 0,"),
    _M("in clear: acknowledgements not read", PLAIN, "if client_id and new >= 0:", "if client_id and new < 0:"),
    _M("priority before CUTOFFS", RPC, "FIRST_CUTOFFS: Final = (0, 0, 0, 0, 0, 0, INT_MAX, 0)",
       "FIRST_CUTOFFS: Final = (0, 0, 0, 0, 0, INT_MAX, 0, 0)"),
)


class Dead(Exception):
    """An engine that fails, or does not end."""


class Mutants:
    """A copy of smtstack to be changed, interpreted."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        shutil.copytree(_ROOT, folder / "smtstack", ignore=shutil.ignore_patterns("*.so", "__pycache__"))

    def perform(self, mutation: Mutation | None, plans: list[Plan]) -> list[Performance]:
        """What engines with this change do, or with none. Raises :class:`Dead`."""
        path, kept = None, ""
        if mutation is not None:
            path = self._folder / "smtstack" / mutation.file
            kept = path.read_text()
            assert kept.count(mutation.old) == mutation.times, f"{mutation.file} has no {mutation.old}"
            changed = kept.replace(mutation.old, mutation.new)
            # One that is no program would be noticed by anything.
            compile(changed, mutation.file, "exec")
            path.write_text(changed)
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(self._folder), str(_ROOT.parent)]),
               "SMTNET_COMPILED": "no", "PYTHONDONTWRITEBYTECODE": "1"}
        try:
            done = subprocess.run([sys.executable, "-m", "tests.mutant"], input=pickle.dumps(plans), env=env,
                                  cwd=self._folder, capture_output=True, timeout=_PATIENCE_S, check=False)
        except subprocess.TimeoutExpired:
            raise Dead("it does not end") from None
        finally:
            if path is not None:
                path.write_text(kept)
        if done.returncode:
            raise Dead(done.stderr.decode().strip().splitlines()[-1])
        performances: list[Performance] = pickle.loads(done.stdout)  # noqa: S301 - of our own process
        return performances
