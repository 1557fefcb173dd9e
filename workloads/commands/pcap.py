"""``smtnet pcap``: what a capture of SMT or Homa traffic holds, with every record verified."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from smtstack.capture.captured import Captured
from smtstack.capture.decode import Decoder, Result
from smtstack.capture.lines import Lines
from smtstack.capture.reading import read_into
from smtstack.wire.homa import UPSTREAM
from workloads.commands import pcap_decrypt, pcap_dissector

_EXAMPLES = """examples:
  smtnet pcap decode capture.pcap --profile linux --keys demo
  smtnet pcap decode h1.pcapng --keylog h1.keylog --json
  smtnet pcap decode plain.pcap --profile homa
  smtnet pcap decode plain.pcap --profile homa --verbose
  smtnet pcap decode module.pcap --profile upstream
  ssh h1 tcpdump -i e0 -w - | smtnet pcap decode - --keylog h1.keylog

exit code: 0 if every record is authentic and no nonce was used twice, else 1; also 1 if nothing could be verified
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``pcap`` and its subcommands."""
    pcap = commands.add_parser("pcap", help="look into captures", description="Look into captures.")
    actions = pcap.add_subparsers(dest="action", required=True, metavar="ACTION")
    decode = actions.add_parser(
        "decode", help="decrypt, verify and reassemble", epilog=_EXAMPLES,
        description="Decrypt and verify every record of a capture (pcap or pcapng), put messages together, "
                    "and look for nonces used twice.")
    decode.add_argument("file", type=Path, help="the capture, compressed perhaps; - is stdin")
    pcap_decrypt.add_key_options(decode)
    decode.add_argument("-v", "--verbose", action="store_true",
                        help="first a line for each packet: its number in the capture, seconds since the first, "
                             "what its header says (with --json on stderr)")
    decode.add_argument("--json", action="store_true", help="one JSON object on stdout")
    decode.set_defaults(run=run_decode)
    pcap_decrypt.add_parser(actions)
    pcap_dissector.add_parser(actions)


def run_decode(args: argparse.Namespace) -> int:
    """Decode ``args.file``; 1 if a record is bad or a nonce was used twice, or if nothing was verified."""
    file = pcap_decrypt.capture_file(args)
    decoder = Decoder(args.profile, pcap_decrypt.key_store(args, file), args.protocol)
    lines = Lines(args.profile, args.protocol)

    def say(captured: Captured) -> None:
        if line := lines.line_untrusted(captured):
            print(line, file=sys.stderr if args.json else sys.stdout)

    notes = read_into(decoder, file, say if args.verbose else None)
    result = decoder.result()
    shaped = {"tcp_shaped": decoder.tcp_shaped} if args.profile == UPSTREAM.name else {}
    print(json.dumps(dataclasses.asdict(result) | shaped) if args.json else table(result, decoder.tcp_shaped))
    why = decoder.why_nothing()
    if not why:
        notes += pcap_decrypt.snapped(result.truncated)
    for note in notes + decoder.hints():
        print(f"smtnet: {note}", file=sys.stderr)
    return 1 if result.records_bad or result.nonce_reuse or why else 0


def table(result: Result, tcp_shaped: int = 0) -> str:
    """The result for people; ``tcp_shaped``: so many packets have the shape of TCP."""
    control = sum(n for name, n in result.packets.items() if name != "DATA")
    rows = [("packets", f"{sum(result.packets.values())}"),
            *((f"  {name}", str(count)) for name, count in result.packets.items()),
            ("  of DATA, retransmitted", str(result.retransmitted)),
            ("control packets", str(control)),
            *([("in the shape of TCP", str(tcp_shaped))] if tcp_shaped else []),
            ("packets of handshakes", str(result.handshake_packets)),
            ("other frames", str(result.ignored)), *pcap_decrypt.other_rows(result.others),
            *pcap_decrypt.truncated_rows(result.truncated),
            ("bad packets", str(result.bad_packets)),
            ("records authentic", str(result.records_ok)),
            ("records bad", str(result.records_bad)),
            ("nonces used twice", str(result.nonce_reuse)),
            ("messages", f"{result.messages}, {result.messages_complete} of them complete"),
            ("application bytes", str(result.bytes))]
    return pcap_decrypt.aligned(rows)
