"""``smtnet trace``: where the time of RPCs went, from what ``--trace`` wrote."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from smtstack.capture import ladder
from smtstack.capture.files import CaptureFile
from smtstack.capture.qlog import TraceRecord, read_untrusted
from smtstack.capture.reading import reading
from smtstack.capture.traces import PHASES, RpcTrace, by_rpc, handshakes, table
from smtstack.errors import ConfigError
from workloads.results.plots import require_matplotlib

_EXAMPLES = """examples:
  smtnet trace client.sqlog
  smtnet trace client.sqlog server.sqlog
  smtnet trace client.sqlog server.sqlog --rpc 42
  smtnet trace client.sqlog server.sqlog --rpc 10.9.0.1:40000/42 --png rpc.png
  smtnet trace client.sqlog --json

Columns: what an RPC waited for, in microseconds; they add up to its time.
""" + "".join(f"  {name:9}{meaning}\n" for name, meaning in PHASES.items()) + """
exit code: 0 ok, 2 no trace, or no such RPC in it, 3 no matplotlib for --png

docs/trace.md is the how-to.
"""


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``trace``."""
    parser = commands.add_parser(
        "trace", help="where the time of RPCs went", epilog=_EXAMPLES,
        description="Read what 'smtnet serve' and 'smtnet call' wrote with --trace: a line for each RPC, or one "
                    "of them as a ladder. Traces of both ends, of one machine, show what was lost on the way.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE",
                        help="a trace, compressed perhaps; - is stdin")
    parser.add_argument("--rpc", metavar="[CLIENT/]ID",
                        help="draw this one: by its id, and if several clients have it, the client's IP:PORT")
    parser.add_argument("--png", type=Path, metavar="FILE",
                        help="draw it as a picture, too; FILE ends as its format")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """The subcommand."""
    if args.png is not None:
        if args.rpc is None:
            raise ConfigError("--png draws one RPC: --rpc says which")
        require_matplotlib()
    records = [_read(path) for path in args.files]
    rpcs = by_rpc(records)
    for path, record in zip(args.files, records, strict=True):
        _remarks(str(path), record)
    if args.rpc is None:
        if args.json:
            print(json.dumps({"rpcs": [rpc.as_json() for rpc in rpcs]}))
        elif rpcs:
            print(table(rpcs))
        return 0
    chosen = _chosen(rpcs, args.rpc)
    drawn = ladder.rungs(chosen, handshakes(records, chosen))
    print(json.dumps(ladder.as_json(chosen, drawn)) if args.json else ladder.as_text(chosen, drawn))
    if args.png is not None:
        try:
            ladder.as_picture(chosen, drawn, args.png)
        except (OSError, ValueError) as e:
            # ValueError: matplotlib does not know the format.
            raise ConfigError(f"{args.png}: {getattr(e, 'strerror', None) or e}") from None
        if len(drawn) > ladder.MAX_ROWS:
            print(f"smtnet: {args.png}: the first {ladder.MAX_ROWS} of {len(drawn)} rows", file=sys.stderr)
    return 0


def _read(path: Path) -> TraceRecord:
    file = CaptureFile(path)
    with file.open() as stream, reading(file):
        return read_untrusted(stream.read)


def _remarks(name: str, record: TraceRecord) -> None:
    """What a person should know about a file, on stderr."""
    if not record.events:
        print(f"smtnet: {name} holds no event", file=sys.stderr)
    if record.cut:
        print(f"smtnet: {name} was cut: {record.cut}", file=sys.stderr)
    if record.broken:
        print(f"smtnet: {name} ends in the middle of a record, which is left out", file=sys.stderr)
    if record.unknown:
        print(f"smtnet: {name}: {record.unknown} records of other schemas are passed over", file=sys.stderr)


def _chosen(rpcs: Sequence[RpcTrace], text: str) -> RpcTrace:
    """The RPC that ``--rpc`` names. Raises :class:`ConfigError`."""
    client, _, number = text.rpartition("/")
    if not (number.isascii() and number.isdigit()):
        raise ConfigError(f"--rpc {text}: an RPC's id is a number, as 42 or 10.9.0.1:40000/42")
    found = [rpc for rpc in rpcs if rpc.key.rpc == int(number) & ~1 and client in ("", rpc.key.client)]
    if not found:
        raise ConfigError(f"--rpc {text}: there is no such RPC in these traces; without --rpc all are listed")
    clients = {rpc.key.client for rpc in found}
    if len(clients) > 1:
        raise ConfigError(f"--rpc {text}: {len(clients)} clients have it; say which, as {min(clients)}/{number}")
    # Of several servers or epochs, the one of which there is most.
    return max(found, key=lambda rpc: len(rpc.events))
