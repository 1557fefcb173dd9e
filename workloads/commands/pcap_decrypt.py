"""``smtnet pcap decrypt``: the capture again, with plaintext twins, for Wireshark."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import BinaryIO

from smtstack.capture.decrypt import Counts, Decrypter
from smtstack.capture.files import STANDARD, CaptureFile, naming, only_once, standard_output
from smtstack.capture.keylog import Keylog, SeenKeys
from smtstack.capture.long_term import KeptState, LongTermKeys
from smtstack.capture.pcapfile import Reader
from smtstack.capture.reading import MAX_NAMES, file_notes, load_keylog, reading, secrets_inside
from smtstack.crypto.keys import KeyStore
from smtstack.errors import BadPacket, ConfigError
from smtstack.io import key_file
from smtstack.session import tickets
from smtstack.session.state import SealingKey
from smtstack.wire import homa

EXAMPLES = """examples:
  smtnet pcap decrypt h1.pcap open.pcapng --keylog h1.keylog
  smtnet pcap decrypt module.pcap open.pcapng --profile linux --keys demo
  smtnet pcap decrypt plain.pcap open.pcapng --profile homa
  smtnet pcap decrypt h2.pcap open.pcapng --ticket-key h2.state
  wireshark -X lua_script:"$(smtnet pcap dissector)" open.pcapng
  tcpdump -i e0 -w - | smtnet pcap decrypt - - --keylog h1.keylog | wireshark -k -i -

OUT holds plaintext and, unless --no-secrets, secrets of TLS: only its owner may read it.

exit code: 0 if all that is whole was decrypted, 1 if a record was not authentic or a session not known, or if
there was nothing to decrypt
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``decrypt``."""
    decrypt = actions.add_parser(
        "decrypt", help="write it again with plaintext twins, for Wireshark", epilog=EXAMPLES,
        description="Write a capture (pcap or pcapng) again as pcapng, with comments, the plaintext of each "
                    "record right behind the packet that completed it, and handshakes as TCP streams, in which "
                    "Wireshark knows TLS.")
    decrypt.add_argument("file", type=Path, metavar="IN", help="the capture, compressed perhaps; - is stdin")
    decrypt.add_argument("out", type=Path, metavar="OUT",
                         help="the pcapng file to write, which must not exist; - is stdout (counts go to stderr)")
    source = add_key_options(decrypt)
    source.add_argument("--ticket-key", type=Path, metavar="STATE",
                        help="a server's state file: opens what its long-term keys can, which of forward-secret "
                             "sessions is the first flight")
    decrypt.add_argument("--no-secrets", action="store_true",
                         help="put no secrets of TLS into OUT; its handshakes stay closed then")
    decrypt.add_argument("--json", action="store_true", help="one JSON object on stdout")
    decrypt.set_defaults(run=run_decrypt)


def add_key_options(parser: argparse.ArgumentParser) -> argparse._MutuallyExclusiveGroup:
    """Options that say what kind of capture it is, and where its keys are: of these, one."""
    parser.add_argument("--profile", choices=tuple(homa.FORMATS), default="smt",
                        help="wire profile; linux is the SMT kernel module's, plain Homa of it included; homa "
                             "reads our own and the module's plain Homa, by IP protocol; upstream is that of "
                             "Homa's own module, also in the shape of TCP (default: %(default)s)")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--keylog", type=Path, action="append", default=[], metavar="FILE",
                        help="secrets of the sessions, as --keylog of the endpoints wrote them (repeatable); - is "
                             "stdin")
    source.add_argument("--keys", metavar="FILE|demo", help="a key file, or the public demo keys")
    parser.add_argument("--protocol", type=_protocol, metavar="N",
                        help="IP protocol number, if not the profile's own")
    return source


def _protocol(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if not 0 < number < 256:
        raise argparse.ArgumentTypeError(f"{text!r}: 1 to 255")
    return number


def capture_file(args: argparse.Namespace) -> CaptureFile:
    """The capture that the options name. Raises :class:`ConfigError`."""
    only_once(args.file, *args.keylog)
    inside = not args.keylog and args.keys is None and args.profile == "smt"
    return CaptureFile(args.file, passes=2 if inside else 1)


def key_store(args: argparse.Namespace, file: CaptureFile) -> KeyStore:
    """The keys of a capture, from the options or, without any, from secrets in the capture itself.

    Raises :class:`ConfigError`.
    """
    if args.keylog and args.profile != "smt":
        raise ConfigError(f"--keylog is for profile smt; profile {args.profile} has no sessions that log secrets")
    if args.keylog:
        return load_keylog(*args.keylog)
    if args.keys is not None or args.profile in ("homa", "upstream"):
        return key_file.load(args.keys or "demo", args.profile)
    if args.profile == "linux":
        raise ConfigError("profile linux needs --keys: a key file, or demo for the public keys of the kernel "
                          "module's programs")
    keylog = secrets_inside(file)
    if not keylog.secrets:
        raise ConfigError(f"no keys: give --keylog FILE or --keys FILE|demo ({file} holds no secrets itself)")
    return keylog


def run_decrypt(args: argparse.Namespace) -> int:
    """Decrypt ``args.file`` into ``args.out``; 1 if something did not authenticate or had no known session, or if
    there was nothing to decrypt."""
    notes: list[str] = []
    file = capture_file(args)
    if args.ticket_key is not None:
        store, notes = _long_term(args, file)
    else:
        store = key_store(args, file)
    tls = store.tls if isinstance(store, Keylog) and not args.no_secrets else None
    decrypter = Decrypter(args.profile, store, args.protocol, tls_lines=tls)
    counts, more = write_decrypted(decrypter, file, args.out)
    said = json.dumps(dataclasses.asdict(counts)) if args.json else table(counts)
    # stdout may be the capture's.
    print(said, file=sys.stderr if args.out == STANDARD else sys.stdout)
    why = decrypter.why_nothing()
    last = [f"nothing was decrypted: {why}"] if why else hints(counts)
    for note in notes + more + last:
        print(f"smtnet: {note}", file=sys.stderr)
    return 1 if counts.records_failed or counts.unknown or why else 0


def _long_term(args: argparse.Namespace, file: CaptureFile) -> tuple[KeyStore, list[str]]:
    """What a server's long-term keys make of the hellos in the capture; and a remark.

    A pass of its own, as data may overtake its hello.
    """
    if args.profile != "smt":
        raise ConfigError(f"--ticket-key is for profile smt; profile {args.profile} has no tickets")
    keys_kept = LongTermKeys(read_state(args.ticket_key))
    scan = Decrypter(args.profile, SeenKeys(), args.protocol, on_flight=keys_kept.flight)
    with file.open() as stream, reading(file):
        for captured in Reader(stream).frames_untrusted():
            scan.add(captured)
    return keys_kept.found, [f"{keys_kept.opened} of {keys_kept.hellos} 0-RTT hellos are for the keys of "
                             f"{args.ticket_key}"]


def read_state(path: Path) -> KeptState:
    """The tickets and keys of a server's state file, which is only read, whichever machine it is from.

    Raises :class:`ConfigError`.
    """
    state = KeptState()
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db:
            for packed, private in db.execute("SELECT ticket, private FROM tickets"):
                state.add_ticket(tickets.TicketSecret(tickets.parse_untrusted(packed), private))
            for row in db.execute("SELECT number, key, since FROM keys"):
                state.keys[row[0]] = SealingKey(*row)
    except (sqlite3.Error, BadPacket) as e:
        raise ConfigError(f"{path} is no state file of a server: {e}") from None
    return state


def write_decrypted(decrypter: Decrypter, file: CaptureFile, target: Path) -> tuple[Counts, list[str]]:
    """Run a capture through ``decrypter``; its counts, and remarks on the file.

    Raises :class:`ConfigError`, and leaves no file behind then.
    """
    with file.open() as stream, _output(target) as out, reading(file):
        reader = Reader(stream)
        out.write(decrypter.begin())
        for captured in reader.frames_untrusted():
            out.write(decrypter.add(captured))
    return decrypter.finish(), file_notes(reader, file)


@contextmanager
def _output(target: Path) -> Iterator[BinaryIO]:
    """A new file for its owner alone, which is gone if what follows fails; or stdout."""
    if target == STANDARD:
        out = standard_output()
        with naming(Path("stdout")):
            yield out
            out.flush()
        return
    try:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise ConfigError(f"{target} exists; captures are not overwritten: take another name") from None
    except OSError as e:
        raise ConfigError(f"{target}: {e.strerror}") from None
    try:
        with naming(target), os.fdopen(fd, "wb") as opened:
            yield opened
    except BaseException:
        target.unlink()
        raise


def snapped(truncated: Mapping[str, int]) -> list[str]:
    """A remark on packets that a snap length cut."""
    kinds = ", ".join(f"{count} {name}" for name, count in truncated.items())
    return [f"{sum(truncated.values())} packets were captured in part only and are left out ({kinds}): capture "
            "whole packets, without a snap length"] if truncated else []


def hints(counts: Counts) -> list[str]:
    """Probable causes, one sentence each."""
    out = snapped(counts.truncated)
    if counts.unknown:
        out.append(f"{counts.unknown} packets are of sessions that the keys given do not name")
    if counts.records_failed:
        out.append(f"{counts.records_failed} records are not authentic: changed on the way, or of another session "
                   "of these ends, which the keys given do not name")
    return out


def table(counts: Counts) -> str:
    """The counts for people."""
    rows = [("packets", f"{counts.packets}"),
            ("  of the handshake plane", f"{counts.handshake_packets}"),
            ("handshakes", f"{counts.handshakes}"),
            ("records decrypted", f"{counts.records}, {counts.bytes} bytes"),
            ("records not authentic", f"{counts.records_failed}"),
            ("packets of unknown sessions", f"{counts.unknown}"),
            ("packets there before", f"{counts.repeated}"),
            ("messages", f"{counts.messages_complete} complete, {counts.messages_incomplete} not"),
            ("ACKs without valid proof", f"{counts.acks_unproven}"),
            ("bad packets", f"{counts.bad_packets}"),
            *truncated_rows(counts.truncated),
            ("other frames", f"{counts.ignored}"), *other_rows(counts.others)]
    return aligned(rows)


def aligned(rows: Sequence[tuple[str, str]]) -> str:
    """A table of names and values."""
    width = max(len(name) for name, _value in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)


def truncated_rows(truncated: Mapping[str, int]) -> list[tuple[str, str]]:
    """Rows of a table about packets of which the capture kept the beginning only."""
    return [("packets captured in part", f"{sum(truncated.values())}"),
            *((f"  {name}", f"{count}") for name, count in truncated.items())]


def other_rows(others: Mapping[str, int]) -> list[tuple[str, str]]:
    """Rows of a table about frames that are none of ours: the most frequent kinds."""
    shown = list(others.items())[:MAX_NAMES]
    return [(f"  {name}", f"{count}") for name, count in shown]
