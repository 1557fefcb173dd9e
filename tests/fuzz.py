"""Fuzzing of everything that touches bytes off the wire: ``python -m tests.fuzz --inputs N --seed S --seconds T``.

Every function of smtstack and workloads.blocks whose name ends in ``_untrusted`` has targets here (a test finds
those that have none), and whole endpoints are attacked by :mod:`tests.fuzz_engine`. Seeded: the same arguments do
the same, unless the time runs out first. Before all else goes what is kept in tests/corpus, and what a run by
hand finds is put there.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import pkgutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random

import smtstack
from smtstack.capture import links, pcapfile, pcapng_reader, qlog
from smtstack.capture.captured import Captured, Remarks, skip_untrusted
from smtstack.capture.decode import Decoder
from smtstack.capture.lines import Lines
from smtstack.crypto import tls12, tls13
from smtstack.crypto.aead import AES_128_GCM, DirectionKeys
from smtstack.crypto.keys import demo_keys
from smtstack.errors import AuthError, BadPacket
from smtstack.transport.params import TransportParams
from smtstack.wire import ethernet, homa, ipv4, overlay, show, upstream
from smtstack.wire import frame as wire_frame
from tests import fuzz_blocks, fuzz_ktls, fuzz_rings, fuzz_sessions, fuzz_storage, fuzz_tls, fuzz_udp
from tests.fuzz_engine import IN_CLEAR, Findings, Round
from tests.pair import Pair, pattern
from tests.recorder import Recorder
from workloads import blocks

#: Share of the inputs that go to parsers; the rest goes to endpoints.
PARSER_SHARE = 0.6
#: Endpoint rounds: profile, whether the attacker has the keys, and inputs. The long one makes more peers than
#: an endpoint remembers.
ROUNDS = [("smt", False, 50_000), ("homa", False, 10_000), ("linux", False, 10_000), ("smt", False, 10_000),
          ("upstream", False, 10_000), ("smt", True, 10_000), ("linux", True, 10_000), ("upstream", False, 10_000),
          (IN_CLEAR, False, 10_000)]

#: Where what touches bytes off the wire is.
PACKAGES = (smtstack, blocks)
#: Inputs that are kept, in folders by function.
CORPUS = Path(__file__).resolve().parent / "corpus"
KEYS = DirectionKeys(AES_128_GCM, bytes(16), bytes(12))
_EXTREMES = [b"\0", b"\xff", b"\x7f", b"\x80", b"\0\0", b"\xff\xff", b"\0\1", b"\x80\0", b"\0\0\0\0",
             b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\1", bytes(8), b"\xff" * 8, b"\x17\x03\x03",
             b"\x10"]


class FuzzError(AssertionError):
    """A function let through what it must not, or raised what it must not, on ``buffer``."""

    buffer = b""


@dataclass
class Target:
    """One way into one ``_untrusted`` function. ``call`` gets a mutated buffer and may raise ``allowed``."""

    function: str
    call: Callable[[bytes], object]
    corpus: list[bytes]
    allowed: tuple[type[Exception], ...] = (BadPacket,)
    fix: Callable[[bytes], bytes] | None = None
    """Makes a checksum right, for three buffers of four."""
    reaches: tuple[str, ...] = ()
    """Other modules whose private functions this gets to."""
    share: float = 1.0
    """Of an even part of the inputs: less for the slow."""


def untrusted_functions() -> Iterator[str]:
    """``module.name`` or ``module.Class.name`` of all there are in :data:`PACKAGES`."""
    for info in (info for package in PACKAGES
                 for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")):
        module = importlib.import_module(info.name)
        for name, thing in vars(module).items():
            if getattr(thing, "__module__", None) != info.name:
                continue
            if isinstance(thing, type):
                yield from (f"{info.name}.{name}.{m}" for m in vars(thing) if m.endswith("_untrusted"))
            elif callable(thing) and name.endswith("_untrusted"):
                yield f"{info.name}.{name}"


def without_target(functions: list[str], known: list[Target]) -> list[str]:
    """Which functions no target calls. Private ones are reached through their module's public ones."""
    covered = {t.function for t in known}
    modules = {m for t in known for m in (*t.reaches, t.function)}

    def reached(name: str) -> bool:
        return name.rpartition(".")[2].startswith("_") and any(m.startswith(_module_of(name)) for m in modules)

    return sorted(n for n in functions if n not in covered and not reached(n))


def _module_of(function: str) -> str:
    parts = function.split(".")[:-1]
    return ".".join(p for p in parts if not p[:1].isupper())


# -- targets -----------------------------------------------------------------------------------------------


def genuine_frames(profile: str, shaped: bool = False) -> list[bytes]:
    """A conversation with losses, so that every packet type of the profile occurs; ``shaped``: as the overlay."""
    rng = Random(7)
    fmt = homa.FORMATS[profile]
    pair = Pair(profile, wire=lambda f: [f] if rng.random() > 0.15 else [], overlay=shaped)
    for number, size in enumerate((1, 60, 1400, 1430, 5000, 30_000) * 3):
        pair.request(pattern(size, number))
        pair.run()
    pair.run(settle=True)
    by_type: dict[int, list[bytes]] = {}
    for frame in pair.frames:
        by_type.setdefault(frame[wire_frame.TRANSPORT_OFFSET + fmt.type_offset], []).append(frame)
    others = (homa.Unknown(1, 2, 3), homa.Freeze(1, 2, 3), homa.Busy(1, 2, 3))
    spare = [ethernet.Ethernet(b"\2abcde", b"\2fghij").pack() + ipv4.IPv4(1, 2, 146, 20 + len(p)).pack() + p
             for p in (upstream.pack(o) if fmt is homa.UPSTREAM else o.pack() for o in others)]
    return [f for frames in by_type.values() for f in frames[:12]] + spare


def _fix_ip(packet: bytes, at: int = 0) -> bytes:
    if len(packet) < at + 20:
        return packet
    header = packet[at:at + 10] + b"\0\0" + packet[at + 12:at + 20]
    checksum = -int.from_bytes(header, "big") % 0xFFFF
    return packet[:at + 10] + checksum.to_bytes(2, "big") + packet[at + 12:]


def _fix_frame(frame: bytes) -> bytes:
    return _fix_ip(frame, wire_frame.IP_OFFSET)


def _packet(fmt: homa.WireFormat) -> Callable[[bytes], object]:
    def call(buf: bytes) -> None:
        packet = wire_frame.packet_untrusted(buf, fmt)
        if buf[-1] & 7 == 0:
            # What was accepted means something: packed and parsed again it is the same.
            again = upstream.pack(packet) if fmt is homa.UPSTREAM else packet.pack()
            if wire_frame.packet_untrusted(again + b"x" * isinstance(packet, homa.Data), fmt) != packet:
                raise FuzzError(f"{packet} does not survive packing")

    return call


def _cut(buf: bytes) -> None:
    packets = overlay.cut_untrusted(buf)
    if packets != [buf] and any(overlay.cut_untrusted(packet) != [packet] for packet in packets):
        raise FuzzError("a packet that is not cut is cut again")


def _tls13_length(buf: bytes) -> None:
    # Precondition: a whole header at ``start``.
    start = buf[0] & 7 if buf else 0
    size = tls13.record_length_untrusted(buf + bytes(start + 5), start)
    if not (size == 0 or tls13.OVERHEAD <= size <= tls13.HEADER_LEN + tls13.MAX_LENGTH_FIELD):
        raise FuzzError(f"a record of {size} bytes")


def _tls12_length(buf: bytes) -> None:
    size = tls12.record_length_untrusted(buf)
    if not (size == 0 or tls12.OVERHEAD < size <= 5 + 0xFFFF):
        raise FuzzError(f"a record of {size} bytes")


def _tls13_authentic(buf: bytes) -> None:
    # A peer with the key may put anything in, but for nothing at all: the length check refuses that.
    inner = buf or b"\0"
    aad = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
    last, data = tls13.open_untrusted(KEYS, 9, aad + KEYS.encrypt(9, inner, aad))
    if inner.rstrip(b"\0") != data + (b"\x17" if last else b"\x57"):
        raise FuzzError("opened to something else")


def _tls13_at(buf: bytes) -> None:
    # Precondition: a whole record as its header says.
    stream = bytearray(buf + bytes(max(0, 3 + tls13.OVERHEAD - len(buf))))
    try:
        tls13.open_at_untrusted(KEYS, 5, stream, 3, len(stream) - 3)
    finally:
        # Whatever came of it, nobody looks into it any longer.
        stream += b"more"


def _capture(buf: bytes) -> None:
    for packet in pcapfile.Reader(io.BytesIO(buf)).frames_untrusted():
        links.find_untrusted(packet.link_type, packet.frame, range(256))


def _blocks(buf: bytes) -> None:
    for _packet in pcapng_reader.Blocks(io.BytesIO(buf), Remarks()).packets_untrusted():
        pass


_LINKS = (0, 1, 9, 51, 101, 104, 113, 228, 276, 7)


def _link(buf: bytes) -> None:
    links.find_untrusted(_LINKS[buf[-1] % len(_LINKS) if buf else 0], buf, (homa.PROTO_HOMA,))


def _line(buf: bytes) -> None:
    link, missing = (_LINKS[buf[-1] % len(_LINKS)], buf[-1]) if buf else (1, 0)
    for profile in homa.FORMATS:
        line = Lines(profile).line_untrusted(Captured(len(buf), link, buf, missing=missing))
        one_line(line)


def one_line(text: str) -> None:
    """What the printer says is one line, and nobody's terminal is in danger."""
    if not text.isprintable():
        raise FuzzError(f"a line with {text!r}")


def _shown(call: Callable[[bytes, homa.WireFormat | None], str],
           fmt: homa.WireFormat | None) -> Callable[[bytes], None]:
    return lambda buf: one_line(call(buf, fmt))


def shown_targets(frames: dict[str, list[bytes]]) -> list[Target]:
    """The printer, for each profile and for none."""
    out = []
    of = "smtstack.wire.show"
    every = [frame for some in frames.values() for frame in some]
    for fmt in (None, *homa.FORMATS.values()):
        some = every if fmt is None else frames[fmt.name]
        out += [Target(f"{of}.frame_untrusted", _shown(show.frame_untrusted, fmt), some, (), _fix_frame,
                       share=0.5),
                Target(f"{of}.packet_untrusted", _shown(show.packet_untrusted, fmt), [f[14:] for f in some], (),
                       _fix_ip, share=0.3),
                Target(f"{of}.transport_untrusted", _shown(show.transport_untrusted, fmt), [f[34:] for f in some],
                       (), share=0.3)]
    return [*out, Target("smtstack.capture.lines.Lines.line_untrusted", _line, [*every[::4], *tunnels(every[::8])],
                         (), share=0.1)]


def _trace(buf: bytes) -> None:
    for event in qlog.read_untrusted(io.BytesIO(buf).read).events:
        one_line(event.text + event.why + event.message)


_TRACE_HEAD = qlog.head(1, 1, "smt", "fuzz", "2026-01-01T00:00:00Z")


def _trace_event(buf: bytes) -> None:
    """The same behind a head that is right."""
    _trace(_TRACE_HEAD + buf)


def traces() -> list[bytes]:
    """Files as the engine's trace is written to, of either end, whole and cut off."""
    pair = Pair(params=TransportParams(unsched_bytes=9000))
    out = []
    for side in (pair.client, pair.server):
        where = side.endpoint.ip, side.endpoint.port
        recorder = Recorder()
        side.endpoint.trace_to(recorder)
        out.append((where, recorder))
    pair.request(pattern(30_000))
    pair.run()
    files = []
    for where, recorder in out:
        head = qlog.head(*where, "smt", "fuzz", "2026-01-01T00:00:00Z")
        events = [qlog.encode(*where, event) for event in recorder.events]
        # Mutations are made at the beginning of a file: so each event comes there once.
        files += [head + b"".join(events[n:]) for n in range(0, len(events), 5)] + [head]
        files += [b"".join(events[n:n + 1]) for n in range(0, len(events), 5)]
    return [*files, head + events[0] + qlog.encode_cut(7, "as long as it may become")]


class _Decode:
    """Feeds a decoder, and asks for its judgement from time to time."""

    def __init__(self, profile: str) -> None:
        self._profile = profile
        self._fed = 0
        self._decoder = Decoder(profile, demo_keys(profile))

    def __call__(self, frame: bytes) -> None:
        self._decoder.add(1, frame)
        self._fed += 1
        if self._fed % 250 == 0:
            self._decoder.result()
            self._decoder.hints()
            self._decoder = Decoder(self._profile, demo_keys(self._profile))


def captures(frames: list[bytes]) -> list[bytes]:
    """Both capture formats, both byte orders."""
    stream = io.BytesIO()
    writer = pcapfile.Writer(stream)
    for n, frame in enumerate(frames[:3]):
        writer.write(n, frame[:80])
    out = [stream.getvalue()]
    for order in "<>":
        blocks = [(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1)),
                  (1, struct.pack(order + "HHIHHB3xHHqHH", 1, 0, 96, 9, 1, 0x8A, 14, 8, 5, 0, 0)),
                  (6, struct.pack(order + "IIIII", 0, 1, 2, 60, 90) + frames[0][:60]),
                  (3, struct.pack(order + "I", 60) + frames[0][:60]), (0x0BAD, b"unknown.")]
        out.append(b"".join(struct.pack(order + "II", kind, len(body) + 12) + body
                            + struct.pack(order + "I", len(body) + 12) for kind, body in blocks))
    return out


def tunnels(frames: list[bytes]) -> list[bytes]:
    """Frames in tags, in GRE, in VXLAN and in MPLS."""
    def ip(protocol: int, inside: bytes) -> bytes:
        return bytes(12) + b"\x08\x00" + ipv4.IPv4(1, 2, protocol, 20 + len(inside)).pack() + inside

    out = []
    for frame in frames:
        out += [frame[:12] + b"\x91\x00\0\5\x81\x00\0\6" + frame[12:],
                ip(47, b"\x30\0\x65\x58" + bytes(8) + frame),
                ip(17, struct.pack("!HHHHQ", 9, 4789, 0, 0, 8 << 56) + frame),
                bytes(12) + b"\x88\x47" + bytes(4) + b"\0\0\1\7" + frame[14:]]
    return out


def targets() -> list[Target]:
    """All of them."""
    out = []
    every: list[bytes] = []
    by_profile: dict[str, list[bytes]] = {}
    wire, capture = "smtstack.wire", "smtstack.capture"
    for fmt in homa.FORMATS.values():
        frames = genuine_frames(fmt.name)
        every += frames
        by_profile[fmt.name] = frames
        out += [Target(f"{wire}.{'upstream' if fmt is homa.UPSTREAM else 'homa'}.parse_untrusted", _packet(fmt),
                       [f[34:] for f in frames]),
                Target(f"{wire}.frame.packet_untrusted", _packet(fmt), [f[34:] for f in frames], share=0.1),
                Target(f"{wire}.frame.parse_untrusted", partial(wire_frame.parse_untrusted, fmt=fmt), frames,
                       fix=_fix_frame),
                Target(f"{capture}.decode.Decoder._packet_untrusted", _Decode(fmt.name), frames, (), _fix_frame,
                       (f"{capture}.smt.", f"{capture}.linux."), 0.1)]
    inners = [b"some data\x17", b"some data\x57\0\0\0", bytes(20), b"\x17"]
    sealed13 = [tls13.seal(KEYS, 5, pattern(n), last=True) for n in (1, 20, 1400, 9000)]
    sealed12 = [tls12.seal(KEYS, 5, pattern(n)) for n in (1, 20, 1400, 9000)]
    t12, t13, forged = "smtstack.crypto.tls12", "smtstack.crypto.tls13", (AuthError,)
    supers = genuine_frames("smt", shaped=True)
    return [
        *out,
        *shown_targets(by_profile),
        Target(f"{wire}.overlay.cut_untrusted", _cut, supers, (), _fix_frame),
        Target(f"{capture}.decode.Decoder._packet_untrusted", _Decode("smt"), supers, (), _fix_frame, share=0.1),
        Target(f"{capture}.qlog.read_untrusted", _trace, traces(), share=0.1),
        Target(f"{capture}.qlog.read_untrusted", _trace_event, traces(), share=0.3),
        Target(f"{wire}.ethernet.parse_untrusted", ethernet.parse_untrusted, every),
        Target(f"{wire}.ipv4.parse_untrusted", ipv4.parse_untrusted, [f[14:] for f in every], fix=_fix_ip),
        Target(f"{t13}.record_length_untrusted", _tls13_length, sealed13),
        Target(f"{t13}.open_single_untrusted", lambda b: tls13.open_single_untrusted(KEYS, 5, b), sealed13,
               forged),
        Target(f"{t13}.open_untrusted", lambda b: tls13.open_untrusted(KEYS, 5, b), sealed13, forged),
        Target(f"{t13}.open_untrusted", _tls13_authentic, inners, forged),
        Target(f"{t13}.open_at_untrusted", _tls13_at, [bytes(3) + record for record in sealed13], forged),
        Target(f"{t12}.record_length_untrusted", _tls12_length, sealed12),
        # Precondition: as long as a record of no bytes (see test_crypto: shorter ones should be AuthErrors too).
        Target(f"{t12}.open_untrusted", lambda b: tls12.open_untrusted(KEYS, 5, b + bytes(max(0, 29 - len(b)))),
               sealed12, forged),
        Target(f"{capture}.pcapfile.Reader.frames_untrusted", _capture, captures(every),
               reaches=(f"{capture}.pcapng_reader.",)),
        Target(f"{capture}.pcapng_reader.Blocks.packets_untrusted", _blocks, [c[4:] for c in captures(every)[1:]]),
        Target(f"{capture}.captured.skip_untrusted",
               lambda b: skip_untrusted(io.BytesIO(b), int.from_bytes(b[:2], "big")), captures(every)),
        Target(f"{capture}.links.find_untrusted", _link, [*every[::4], *tunnels(every[::8])], ()),
        *(Target(function, call, corpus, share=share) for function, call, corpus, share in fuzz_storage.targets()),
        *fuzz_sessions.targets(genuine_frames("smt")),
        *fuzz_rings.targets(),
        *fuzz_udp.targets(),
        *fuzz_tls.targets(),
        *(Target(*one) for one in fuzz_ktls.targets()),
        *fuzz_blocks.targets(Target),
    ]


def mutate(base: bytes, other: bytes, rng: Random) -> bytes:
    """``base`` with something done to it, noise, or a mixture of two."""
    r = rng.getrandbits(40)
    kind = r & 7
    r >>= 3
    size = len(base)
    if kind == 0:
        return rng.randbytes(r & 127)
    at = (r >> 7) % (min(size, 128) + 1)  # headers come first
    if kind == 1:
        return base[:at] + bytes(((r & 0xFF),)) + base[at + 1:]
    if kind < 5:
        field_ = _EXTREMES[r & 15]
        return base[:at] + field_ + base[at + len(field_):]
    if kind == 5:
        return base[:(r >> 7) % (size + 1)]
    if kind == 6:
        return base + rng.randbytes(r & 15)
    return base[:at] + other[at:]


def fuzz_target(target: Target, inputs: int, rng: Random) -> int:
    """So many buffers into one target; raises :class:`FuzzError` with the buffer that brought it down."""
    corpus, fix = target.corpus, target.fix
    count = len(corpus)
    refused = 0
    for n in range(inputs):
        buf = mutate(corpus[n % count], corpus[n * 7 % count], rng)
        if fix is not None and n & 3:
            buf = fix(buf)
        refused += feed(target, buf)
    return refused


def feed(target: Target, buf: bytes) -> bool:
    """One buffer into one target; whether it was refused. Raises :class:`FuzzError`."""
    try:
        target.call(buf)
    except target.allowed:
        return True
    except Exception as e:
        error = FuzzError(f"{target.function} raised {type(e).__name__}: {e}\non {buf.hex()}")
        error.buffer = buf
        raise error from e
    return False


# -- what is kept ------------------------------------------------------------------------------------------


def kept(folder: Path, target: Target) -> list[Path]:
    """The files for a target: those in the folder named after its function."""
    return sorted((folder / target.function.removeprefix("smtstack.")).glob("*.bin"))


def keep(folder: Path, target: Target, buf: bytes) -> Path:
    """Put a buffer among them, named after its content."""
    path = folder / target.function.removeprefix("smtstack.") / f"{hashlib.sha256(buf).hexdigest()[:16]}.bin"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(buf)
    return path


def feed_kept(folder: Path, all_targets: list[Target]) -> tuple[int, list[str]]:
    """Every file through its targets: how often, and what came of it that must not."""
    fed, crashes = 0, []
    for target in all_targets:
        for path in kept(folder, target):
            fed += 1
            try:
                feed(target, path.read_bytes())
            except FuzzError as e:
                crashes.append(f"{path.parent.name}/{path.name}: {e}")
    return fed, crashes


# -- everything --------------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run did and found."""

    kept: int = 0
    """Inputs out of the corpus."""
    parser_inputs: int = 0
    engine_inputs: int = 0
    seconds: float = 0.0
    targets: list[tuple[str, int, int]] = field(default_factory=list)
    """Function, inputs, and how many of these it refused."""
    crashes: list[str] = field(default_factory=list)
    rounds: list[tuple[str, bool, int, Findings]] = field(default_factory=list)

    @property
    def inputs(self) -> int:
        """All of them."""
        return self.parser_inputs + self.engine_inputs

    def of_rounds(self, kind: str, profiles: tuple[str, ...] = ("smt", "homa", "linux", "upstream", IN_CLEAR),
                  insider: bool = True) -> list[str]:
        """Findings of one kind, with the round that repeats them."""
        return [f"Round({profile!r}, {seed}, {inside}).run(): {what}"
                for profile, inside, seed, findings in self.rounds for what in getattr(findings, kind)
                if profile in profiles and insider >= inside]


def run(inputs: int, seed: int, seconds: float, folder: Path = CORPUS, keeping: bool = False) -> Report:
    """Fuzz everything with so many inputs, or until the time is up; with ``keeping`` findings go to ``folder``."""
    began = time.monotonic()
    report = Report()
    rng = Random(seed)
    all_targets = targets()
    report.kept, report.crashes = feed_kept(folder, all_targets)
    even = inputs * PARSER_SHARE / sum(t.share for t in all_targets)
    for target in all_targets:
        if time.monotonic() - began > seconds:
            break
        count = int(even * target.share)
        try:
            refused = fuzz_target(target, count, rng)
        except FuzzError as e:
            report.crashes.append(str(e))
            if keeping:
                keep(folder, target, e.buffer)
            continue
        report.parser_inputs += count
        report.targets.append((target.function, count, refused))
    number = 0
    while report.inputs < inputs and time.monotonic() - began < seconds:
        profile, insider, size = ROUNDS[number % len(ROUNDS)]
        a_round = Round(profile, seed + number, insider)
        findings = a_round.run(min(size, inputs - report.inputs))
        report.rounds.append((profile, insider, seed + number, findings))
        report.engine_inputs += a_round.inputs
        number += 1
    report.seconds = time.monotonic() - began
    return report


def main() -> int:
    """Command line; exit code 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_100_000, help="how many (default 1100000)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=600, help="stop after this long (default 600)")
    args = parser.parse_args()
    report = run(args.inputs, args.seed, args.seconds, keeping=True)
    found = report.crashes + report.of_rounds("escaped") + report.of_rounds("forged", insider=False)
    found += report.of_rounds("unbounded") + report.of_rounds("killed", ("smt",), insider=False)
    for text in found:
        print(text)
    print(f"{report.kept} inputs kept in tests/corpus")
    print(f"{report.inputs} inputs ({report.parser_inputs} to parsers, {report.engine_inputs} to endpoints in "
          f"{len(report.rounds)} rounds) in {report.seconds:.1f} s, seed {args.seed}: {len(found)} findings")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
