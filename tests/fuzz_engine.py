"""Fuzzing of whole endpoints: forged and mutated frames between those of a genuine conversation.

A client and an echoing server talk over a slightly lossy path while an attacker who sees every frame sends
his own. Once he stops, the conversation must come to its end: every RPC of profile ``smt`` answered, nothing
delivered that nobody sent, no state left beyond its bounds.
"""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field, replace
from random import Random

from smtstack.crypto import tls12, tls13
from smtstack.crypto.epochs import LinuxSession, Session, SessionParams, SmtSession
from smtstack.crypto.keys import Endpoints, LinuxNoKeys, demo_keys
from smtstack.nic.device import NicConfig
from smtstack.transport.endpoint import Endpoint
from smtstack.transport.events import Failed, Request, Response
from smtstack.transport.linux_message import SEGMENT_HEADER
from smtstack.transport.params import TransportParams
from smtstack.transport.rpc import Rpc
from smtstack.wire import homa, upstream
from smtstack.wire.ipv4 import PROTO_TCP
from tests.fake_negotiator import Fake
from tests.pair import CLIENT, CLIENT_PORT, SERVER, SERVER_PORT, Pair

PARAMS = TransportParams(max_message_length=60_000, max_rpcs_per_host=300, max_server_rpcs=400,
                         max_rx_bytes_per_host=6 << 20, max_rx_bytes=8 << 20, max_held_bytes=1 << 20)
#: Peers that may exist: those a forger made, and the genuine one.
MAX_PEERS = 1024 + 1
#: Genuine frames kept for mutation, of each direction.
CORPUS = 400
TICK_NS = 1_000_000
#: Forged frames of one attack, and between two steps of the genuine conversation.
BURST = 1008
VOLLEY = 12
#: A round of profile linux without keys.
IN_CLEAR = "linux in clear"
CLIENT_IP = CLIENT.to_bytes(4, "big")
FORWARD = Endpoints(CLIENT, CLIENT_PORT, SERVER, SERVER_PORT)
BACK = Endpoints(SERVER, SERVER_PORT, CLIENT, CLIENT_PORT)

#: Offset and size of every header field of a frame that an endpoint reads.
FIELDS = [(12, 2), (14, 1), (15, 1), (16, 2), (18, 2), (20, 2), (22, 1), (23, 1), (24, 2), (26, 4), (30, 4),
          (34, 2), (36, 2), (38, 4), (42, 2), (44, 1), (45, 1), (46, 1), (47, 1), (48, 2), (50, 2), (52, 2),
          (54, 8), (62, 4), (66, 4), (70, 2), (72, 1), (73, 1), (74, 1), (75, 2), (77, 2), (79, 8)]
#: Those of upstream Homa's format.
UPSTREAM_FIELDS = [*(f for f in FIELDS if f[0] < 38), (38, 4), (45, 1), (46, 1), (47, 1), (52, 2), (54, 8),
                   (62, 4), (66, 4), (70, 8), (78, 2), (80, 2), (82, 1), (86, 4)]
SENDER_ID = (54, 8)


@dataclass
class Findings:
    """What went wrong in a round."""

    escaped: list[str] = field(default_factory=list)
    """Exceptions out of the engine, with the frame that brought them about."""
    killed: list[str] = field(default_factory=list)
    """Genuine RPCs that failed, or never ended."""
    forged: list[str] = field(default_factory=list)
    """Contents delivered that nobody sent, or twice."""
    unbounded: list[str] = field(default_factory=list)
    """State beyond its bounds."""


def content(number: int, size: int) -> bytes:
    """Request ``number``, recognizable."""
    return (b"%08d" % number * (size // 8 + 1))[:max(size, 8)]


class Round:
    """One conversation under attack. ``insider``: the attacker has the keys, and only must not crash us."""

    def __init__(self, profile: str, seed: int, insider: bool = False) -> None:
        #: Profile linux without keys.
        self.clear = profile == IN_CLEAR
        self.profile = profile = "linux" if self.clear else profile
        self.random = Random(seed)
        self.insider = insider
        self.findings = Findings()
        self.inputs = 0
        params = SessionParams(key_update_records=60 if seed & 1 else 0, index_bits=16 if seed & 2 else 40)
        self.begun: Session | None = None
        store = (LinuxNoKeys() if self.clear else demo_keys("smt", params) if profile == "smt"
                 else demo_keys(profile))
        #: Sessions come by handshakes, in half of these rounds after 0-RTT data.
        self.negotiated = profile == "smt" and bool(seed & 8)
        self.early = bool(seed & 16)
        self.handshaken = False
        self.store = store
        self.fields = UPSTREAM_FIELDS if profile == "upstream" else FIELDS
        #: Those after the addresses: the packet still reaches an RPC, most of the time.
        self.inner = [f for f in self.fields if f[0] >= 38]
        #: Longer messages have the shape of TCP, and nobody cuts them.
        self.overlay = profile in ("smt", "homa") and bool(seed & 32)
        make = Fake if self.negotiated else lambda: demo_keys("smt", params) if profile == "smt" else store
        self.pair = Pair(profile, keys=make, params=replace(PARAMS, hijack_tcp=seed & 1),
                         config=NicConfig(tls_hw_tx_offload=bool(seed & 4)), overlay=self.overlay)
        negotiator = self.pair.client.endpoint._negotiator
        if self.early and isinstance(negotiator, Fake):
            negotiator.on_want = self.begin_early
        self.sessions = {True: store.session(FORWARD), False: store.session(BACK)}
        self.corpus: dict[int, list[bytes]] = {CLIENT: [], SERVER: []}
        self.asked: dict[Rpc, bytes] = {}
        #: Not over yet, in order: a set's order would change from run to run.
        self.open: dict[Rpc, None] = {}
        self.delivered: dict[bytes, int] = {}
        self.loss = 0.03
        self.last_tick = 0
        #: What is being handled, for the report of an exception.
        self.frame = b""

    @property
    def sealing(self) -> bool:
        """Whether nobody can forge what is delivered."""
        return self.profile not in ("homa", "upstream") and not self.clear

    # -- the genuine conversation --------------------------------------------------------------------------

    def ask(self) -> None:
        """One more request, of any number of packets."""
        size = self.random.choice((8, 60, 1000, 1418, 1419, 3000, 9000, 20_000, 40_000))
        data = content(len(self.asked), size)
        rpc = self.pair.client.endpoint.send_request(SERVER, SERVER_PORT, data, self.pair.now)
        self.asked[rpc] = data
        self.open[rpc] = None

    def handshake(self) -> None:
        """Make the sessions; requests and some of the attacker's frames wait for that."""
        pair = self.pair
        if self.negotiated and self.asked and not self.handshaken:
            self.handshaken = True
            client = self.begun or self.store.session(FORWARD)
            server = self.store.session(BACK)
            assert client is not None
            assert server is not None
            pair.server.endpoint.install(CLIENT, CLIENT_PORT, server, pair.now, max_message=60_000,
                                         overlay=self.overlay)
            pair.client.endpoint.install(SERVER, SERVER_PORT, client, pair.now, max_message=60_000,
                                         overlay=self.overlay)
            self.serve()

    def begin_early(self) -> None:
        """The client's session, before the server has heard of it."""
        pair = self.pair
        self.begun = self.store.session(FORWARD)
        assert self.begun is not None
        pair.client.endpoint.install(SERVER, SERVER_PORT, self.begun, pair.now, max_message=60_000,
                                     overlay=self.overlay, early=True)

    def serve(self) -> None:
        """Both applications' work."""
        pair = self.pair
        while (event := pair.server.endpoint.next_event()) is not None:
            assert isinstance(event, Request)
            self.judge_request(event)
            pair.server.endpoint.send_reply(event.rpc, (event.data or b"?")[::-1], pair.now)
        while (event := pair.client.endpoint.next_event()) is not None:
            if isinstance(event, Response):
                self.open.pop(event.rpc, None)
                if event.data != self.asked[event.rpc][::-1] and self.sealing and not self.insider:
                    self.findings.forged.append(f"response of {event.rpc}: {event.data[:16]!r}...")
            elif isinstance(event, Failed):
                self.open.pop(event.rpc, None)
                self.findings.killed.append(f"{event.rpc} at {pair.now} ns: {event.reason.name}")

    def judge_request(self, event: Request) -> None:
        """Each genuine request once, and nothing else."""
        peer = event.rpc.peer
        if self.profile == "linux" and (peer.host.ip, peer.port) != (CLIENT, CLIENT_PORT):
            # All clients of the kernel module share one key (reference §3.5): a replay in the name of another
            # client authenticates, and only there.
            return
        count = self.delivered[event.data] = self.delivered.get(event.data, 0) + 1
        if self.sealing and not self.insider and (count > 1 or event.data not in self.asked.values()):
            self.findings.forged.append(f"request {event.data[:16]!r}..., {count} times")

    def carry(self) -> bool:
        """Genuine frames on their way; the attacker keeps copies."""
        moved = False
        pair = self.pair
        for side, other, ip in ((pair.client, pair.server, CLIENT), (pair.server, pair.client, SERVER)):
            corpus = self.corpus[ip]
            for frame in side.transmit(pair.now):
                moved = True
                if len(corpus) < CORPUS:
                    corpus.append(frame)
                else:
                    corpus[self.random.randrange(CORPUS)] = frame
                if self.random.random() >= self.loss:
                    other.endpoint.handle_packet(frame, pair.now)
        self.serve()
        return moved

    def tick(self) -> None:
        """Let time pass to the next tick."""
        pair = self.pair
        self.last_tick += 1
        pair.now = max(pair.now, self.last_tick * TICK_NS)
        for side in (pair.client, pair.server):
            side.endpoint.handle_timeout(pair.now)
            self.check_bounds(side.endpoint)
        self.handshake()

    def check_bounds(self, endpoint: Endpoint) -> None:
        """The promises of TransportParams."""
        state = endpoint.snapshot()
        for name, bound in (("peers", MAX_PEERS), ("server_rpcs", PARAMS.max_server_rpcs),
                            ("rx_bytes", PARAMS.max_rx_bytes), ("held", PARAMS.max_held_bytes // 256)):
            if not 0 <= state[name] <= bound:
                self.findings.unbounded.append(f"{name} is {state[name]}, bound {bound}")

    # -- the attacker --------------------------------------------------------------------------------------

    def forge(self, source: int) -> bytes:
        """A frame that claims to come from ``source``."""
        rng = self.random
        corpus = self.corpus[source]
        kind = rng.getrandbits(4)
        if kind == 0 or not corpus:
            return rng.randbytes(rng.getrandbits(7))
        base = corpus[int(len(corpus) * rng.random())]
        if kind < 3:
            if kind == 2:  # in the name of somebody else
                base = base[:27] + rng.randbytes(3) + base[30:34] + rng.randbytes(2) + base[36:]
            return self.envelope(base, self.any_packet(base))
        if kind < 6:
            if self.overlay and rng.getrandbits(1):
                base = base[:23] + bytes((PROTO_TCP,)) + base[24:]
            return self.envelope(base, self.plausible_data(base))
        if kind == 6:  # the genuine frame once more, or the wrong way round
            return base if rng.getrandbits(1) else base[:26] + base[30:34] + base[26:30] + base[34:]
        if kind == 7:
            cut = int(len(base) * rng.random())
            return self.envelope(base, base[34:cut] + rng.randbytes(rng.getrandbits(6)))
        changed = bytearray(base)
        for _ in range(1 + (kind & 3)):
            at, size = rng.choice(self.fields if kind > 13 else self.inner)
            if at + size <= len(changed):
                changed[at:at + size] = self.value(changed, at, size)
        if kind == 15:
            bit = int(len(changed) * 8 * rng.random())
            changed[bit >> 3] ^= 1 << (bit & 7)
        return self.checksummed(changed)

    def value(self, frame: bytearray, at: int, size: int) -> bytes:
        """Something else for a field: near what is there, an extreme, a live id, or noise."""
        rng = self.random
        how = rng.getrandbits(3)
        limit = 1 << 8 * size
        old = int.from_bytes(frame[at:at + size], "big")
        if at == SENDER_ID[0] and how < 6:
            new = self.live_id() ^ (how == 0)
        elif how < 3:
            new = old + (-1440, -1, 1, 2, 20, 1440, 8640, 16)[rng.getrandbits(3)]
        elif how == 3:
            new = 0
        elif how == 4:
            new = limit - 1 - rng.getrandbits(1)
        elif how == 5:
            new = rng.getrandbits(8 * size // 2)
        else:
            new = rng.getrandbits(8 * size)
        return (new % limit).to_bytes(size, "big")

    def live_id(self) -> int:
        """The id of an RPC that matters now, or of the next."""
        rng = self.random
        if self.open and rng.getrandbits(2):
            ids = [rpc.id for rpc in self.open]
            return ids[int(len(ids) * rng.random())] ^ rng.getrandbits(1)
        if not self.asked:
            return 2
        return next(reversed(self.asked)).id + rng.getrandbits(3)

    def any_packet(self, base: bytes) -> bytes:
        """A packet of any type with a header that fits and a body of noise."""
        rng = self.random
        body = rng.randbytes((5, 9, 34, 78, 62, 0, 12, 90)[rng.getrandbits(3)])
        if rng.getrandbits(1):
            body = bytes(2) + body[2:]
        kind = 0x0F + int(11 * rng.random())
        sender = self.live_id() if rng.getrandbits(3) else rng.getrandbits(64)
        if self.profile == "upstream":
            return (base[34:38] + bytes(7) + bytes((kind,)) + base[46:54] + sender.to_bytes(8, "big") + body)
        epoch = bytes((base[44] - (not rng.getrandbits(2)) & 0xFF,))
        return (base[34:38] + bytes(6) + epoch + bytes((0, 0, kind)) + bytes(6) + sender.to_bytes(8, "big") + body)

    def plausible_data(self, base: bytes) -> bytes:
        """DATA that would pass for genuine until a record is opened."""
        rng = self.random
        length = (1, 30, 100, 1440, 3000, 9000, 20_000, 60_000, 185_000)[int(9 * rng.random())]
        offset = min(length - 1, (0, 0, 0, 1440, 8640, rng.getrandbits(16))[int(6 * rng.random())])
        shaped = base[23] == PROTO_TCP
        # Super-frames of any length, also beyond the message, and of segment size 0.
        size = min(1440, length - offset) if not shaped else rng.getrandbits(rng.getrandbits(4)) + 1
        sender = self.live_id()
        payload = rng.randbytes(size)
        if rng.getrandbits(1):
            claimed = (17, size - 5, size, 16401, 8635, rng.getrandbits(15))[int(6 * rng.random())]
            payload = b"\x17\x03\x03" + max(0, claimed).to_bytes(2, "big") + payload[5:]
        if self.clear and rng.getrandbits(3):
            acked = self.live_id() if rng.getrandbits(1) else 0
            payload = SEGMENT_HEADER.pack(offset, size, acked, CLIENT_PORT, SERVER_PORT) + payload
        if self.profile == "upstream":
            place = (offset, offset, rng.getrandbits(32))[int(3 * rng.random())]
            ends = int.from_bytes(base[34:36], "big"), int.from_bytes(base[36:38], "big")
            of_data = homa.Data(*ends, sender, length, rng.getrandbits(15), offset,
                                cutoff_version=rng.getrandbits(1), placed=rng.getrandbits(1) == 1,
                                packet_offset=place - offset,
                                acked_id=0 if rng.getrandbits(2) else self.live_id(), acked_port=SERVER_PORT)
            return upstream.pack(of_data) + payload
        if self.insider and rng.getrandbits(1):
            payload = self.sealed(base[26:30] == CLIENT_IP, sender, rng.randbytes(rng.getrandbits(7) + 1))
            if rng.getrandbits(1):
                offset, length = 0, len(payload)
        epoch = base[44] if rng.getrandbits(2) else base[44] + 1 & 0xFF
        if shaped:
            place = offset if rng.getrandbits(3) else rng.getrandbits(32)
            ports = int.from_bytes(base[34:36], "big"), int.from_bytes(base[36:38], "big")
            return homa.Data(*ports, sender, length, rng.getrandbits(15), packet_offset=place, placed=True,
                             segment_size=(0, 1, 1440, 1440)[rng.getrandbits(2)], epoch=epoch,
                             overlay=True).pack() + payload
        data = homa.Data(int.from_bytes(base[34:36], "big"), int.from_bytes(base[36:38], "big"), sender, length,
                         rng.getrandbits(15), offset, 1440 if rng.getrandbits(3) else 0, rng.getrandbits(1),
                         rng.getrandbits(1), 0 if rng.getrandbits(2) else rng.getrandbits(4), 0, epoch)
        return data.pack() + payload

    def sealed(self, from_client: bool, sender: int, plain: bytes) -> bytes:
        """An authentic record of whatever, as only the peer itself could make it."""
        session = self.sessions[from_client]
        if isinstance(session, SmtSession):
            keys = session.current.tx
            assert keys is not None
            number = (sender << session.numbers.index_bits) % (1 << 96)
            if self.random.getrandbits(1):
                return tls13.seal(keys, number, plain, self.random.getrandbits(1) == 1, self.random.getrandbits(4))
            aad = b"\x17\x03\x03" + (len(plain) + 16).to_bytes(2, "big")
            return aad + keys.encrypt(number, plain, aad)
        assert isinstance(session, LinuxSession)
        if self.random.getrandbits(1):
            plain = bytes(4) + (len(plain) % 60).to_bytes(4, "big") + bytes(12) + plain
        keys = session.client if from_client else session.server
        return tls12.seal(keys, tls12.first_sequence(sender), plain)

    def envelope(self, base: bytes, packet: bytes) -> bytes:
        """Ethernet and IP header around a packet."""
        total = min(20 + len(packet), 0xFFFF)
        return self.checksummed(bytearray(base[:16] + total.to_bytes(2, "big") + base[18:34] + packet))

    @staticmethod
    def checksummed(frame: bytearray) -> bytes:
        """With the IP checksum made right, as any attacker would."""
        if len(frame) >= 34:
            frame[24:26] = b"\0\0"
            frame[24:26] = (-int.from_bytes(frame[14:34], "big") % 0xFFFF).to_bytes(2, "big")
        return bytes(frame)

    # -- a round -------------------------------------------------------------------------------------------

    def run(self, inputs: int) -> Findings:
        """Attacks of so many frames in all; after each the conversation must come to its end in peace."""
        try:
            while self.inputs < inputs:
                self.loss = 0.03
                for _ in range(5):
                    self.ask()
                self.carry()
                self.attack(BURST)
                self.peace()
        except Exception:
            trace = traceback.format_exc(limit=-4)
            self.findings.escaped.append(f"{trace}on frame {self.frame.hex()}, input {self.inputs}")
        return self.findings

    def attack(self, inputs: int) -> None:
        """Forged frames, a few between any two steps of the conversation."""
        pair = self.pair
        rng = self.random
        for _ in range(inputs // VOLLEY):
            for _ in range(VOLLEY):
                to_server = rng.random() < 0.6
                victim = pair.server if to_server else pair.client
                self.frame = self.forge(CLIENT if to_server else SERVER)
                if rng.getrandbits(2):
                    victim.endpoint.handle_packet(self.frame, pair.now)
                else:
                    pair.deliver(self.frame, victim)
                self.inputs += 1
            self.frame = b""
            pair.now += 50_000
            if len(self.open) < 5:
                self.ask()
            self.carry()
            if pair.now >= (self.last_tick + 1) * TICK_NS:
                self.tick()

    def peace(self) -> None:
        """No more forgery or loss; time passes until every RPC of the client has ended."""
        self.loss = 0.0
        for _ in range(1000):
            quiet = not self.carry()
            if quiet and not self.open:
                return
            if quiet:
                self.tick()
            self.pair.now += 10_000
        self.findings.killed += [f"{rpc} never ended" for rpc in self.open]
        self.open.clear()
