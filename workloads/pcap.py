"""``smtnet pcap decode``: what a capture of SMT or Homa traffic holds, with every record verified."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from smtstack.capture.decode import Decoder, Result
from smtstack.capture.pcapfile import HOST_SIDE, Reader
from smtstack.crypto import keys
from smtstack.errors import BadPacket, ConfigError
from smtstack.wire import homa

_EXAMPLES = """examples:
  smtnet pcap decode capture.pcap --profile linux --keys demo
  smtnet pcap decode h1.pcapng --profile smt --keys run.keys --json
  smtnet pcap decode plain.pcap --profile homa

exit code: 0 if every record is authentic and no nonce was used twice, else 1
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``pcap`` and its subcommand ``decode``."""
    pcap = commands.add_parser("pcap", help="look into captures", description="Look into captures.")
    actions = pcap.add_subparsers(dest="action", required=True, metavar="ACTION")
    decode = actions.add_parser(
        "decode", help="decrypt, verify and reassemble", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Decrypt and verify every record of a capture (pcap or pcapng), put messages together, "
                    "and look for nonces used twice.")
    decode.add_argument("file", type=Path, help="the capture")
    decode.add_argument("--profile", choices=tuple(homa.FORMATS), default="smt",
                        help="wire profile; linux is the SMT kernel module's, plain Homa of it included; homa "
                             "reads our own and the module's plain Homa, by IP protocol (default: %(default)s)")
    decode.add_argument("--keys", default="demo", metavar="demo|FILE",
                        help="the public demo keys, or a key file (default: %(default)s)")
    decode.add_argument("--protocol", type=_protocol, metavar="N",
                        help="IP protocol number, if not the profile's own")
    decode.add_argument("--json", action="store_true", help="one JSON object on stdout")
    decode.set_defaults(run=run_decode)


def _protocol(text: str) -> int:
    number = int(text)
    if not 0 < number < 256:
        raise ValueError(text)
    return number


def run_decode(args: argparse.Namespace) -> int:
    """Decode ``args.file``; 1 if a record is bad or a nonce was used twice."""
    decoder = Decoder(args.profile, keys.load(args.keys, args.profile), args.protocol)
    notes = read_into(decoder, args.file)
    result = decoder.result()
    if args.json:
        print(json.dumps(dataclasses.asdict(result)))
    else:
        print(table(result))
    for note in notes + decoder.hints():
        print(f"smtnet: {note}", file=sys.stderr)
    return 1 if result.records_bad or result.nonce_reuse else 0


def read_into(decoder: Decoder, path: Path) -> list[str]:
    """Feed a capture file to a decoder; remarks on the file itself. Raises :class:`ConfigError`."""
    count = host_side = 0
    try:
        with path.open("rb") as stream:
            reader = Reader(stream)
            for captured in reader.frames_untrusted():
                count += 1
                if captured.interface.endswith(HOST_SIDE):
                    host_side += 1
                else:
                    decoder.add(captured.link_type, captured.frame)
    except OSError as e:
        raise ConfigError(f"{path}: {e.strerror}") from None
    except BadPacket as e:
        where = f" (after {count} packets)" if count else ""
        raise ConfigError(f"{path}: {e}{where}") from None
    notes = []
    if reader.truncated:
        notes.append(f"{path} ends in the middle of a packet, which is left out")
    if reader.shortened:
        notes.append(f"{reader.shortened} packets were captured in part only (snap length); capture whole packets")
    if host_side:
        notes.append(f"{host_side} segments of the host side, before the NIC, are left out")
    return notes


def table(result: Result) -> str:
    """The result for people."""
    control = sum(n for name, n in result.packets.items() if name != "DATA")
    rows = [("packets", f"{sum(result.packets.values())}"),
            *((f"  {name}", str(count)) for name, count in result.packets.items()),
            ("  of DATA, retransmitted", str(result.retransmitted)),
            ("control packets", str(control)),
            ("other protocols' frames", str(result.ignored)),
            ("bad packets", str(result.bad_packets)),
            ("records authentic", str(result.records_ok)),
            ("records bad", str(result.records_bad)),
            ("nonces used twice", str(result.nonce_reuse)),
            ("messages", f"{result.messages}, {result.messages_complete} of them complete"),
            ("application bytes", str(result.bytes))]
    width = max(len(name) for name, _value in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)
