"""``smtnet pcap``: what a capture of SMT or Homa traffic holds, with every record verified."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from smtstack.capture.decode import Decoder, Result
from smtstack.capture.pcapfile import HOST_SIDE, Reader
from smtstack.errors import BadPacket, ConfigError
from workloads import pcap_decrypt, pcap_dissector
from workloads.pcap_decrypt import add_key_options, file_notes, key_store

_EXAMPLES = """examples:
  smtnet pcap decode capture.pcap --profile linux --keys demo
  smtnet pcap decode h1.pcapng --keylog h1.keylog --json
  smtnet pcap decode plain.pcap --profile homa

exit code: 0 if every record is authentic and no nonce was used twice, else 1
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``pcap`` and its subcommands."""
    pcap = commands.add_parser("pcap", help="look into captures", description="Look into captures.")
    actions = pcap.add_subparsers(dest="action", required=True, metavar="ACTION")
    decode = actions.add_parser(
        "decode", help="decrypt, verify and reassemble", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Decrypt and verify every record of a capture (pcap or pcapng), put messages together, "
                    "and look for nonces used twice.")
    decode.add_argument("file", type=Path, help="the capture")
    add_key_options(decode)
    decode.add_argument("--json", action="store_true", help="one JSON object on stdout")
    decode.set_defaults(run=run_decode)
    pcap_decrypt.add_parser(actions)
    pcap_dissector.add_parser(actions)


def run_decode(args: argparse.Namespace) -> int:
    """Decode ``args.file``; 1 if a record is bad or a nonce was used twice."""
    decoder = Decoder(args.profile, key_store(args), args.protocol)
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
    notes = file_notes(reader, path)
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
            ("packets of handshakes", str(result.handshake_packets)),
            ("other protocols' frames", str(result.ignored)),
            ("bad packets", str(result.bad_packets)),
            ("records authentic", str(result.records_ok)),
            ("records bad", str(result.records_bad)),
            ("nonces used twice", str(result.nonce_reuse)),
            ("messages", f"{result.messages}, {result.messages_complete} of them complete"),
            ("application bytes", str(result.bytes))]
    width = max(len(name) for name, _value in rows) + 2
    return "\n".join(f"{name:{width}}{value}" for name, value in rows)
