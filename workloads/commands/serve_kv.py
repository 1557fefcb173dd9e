"""``smtnet serve kv``: the key-value store, on any number of transports at once."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from smtstack.errors import ConfigError
from smtstack.io import seccomp
from smtstack.ringio.client import Proxies
from smtstack.rings.uring_layout import UringConfig
from smtstack.socket import EXIT, INLINE, QUEUE, UNCHECKED
from smtstack.storage.files import is_protected
from smtstack.waiting import AS_TCP
from workloads import transports
from workloads.kv.aof import FSYNC, GROWTH, LEAST, Aof
from workloads.kv.aof_protected import opener, plain_opener
from workloads.kv.aof_ring import RingLog
from workloads.kv.backend import Backend, EmbeddedStore
from workloads.kv.limits import OPTIONS, Limits, byte_count
from workloads.kv.redis_store import RedisStore
from workloads.kv.server import RespMessages, Service, open_front
from workloads.kv.store import DATABASES, MAX_DATABASES, open_databases
from workloads.options import common as options
from workloads.options.storage import add_storage_options, own_protection, protection
from workloads.results.fidelity import FidelityMonitor, shorten_pauses
from workloads.results.row import Verdict
from workloads.transports import Settings
from workloads.transports.contract import Server
from workloads.transports.failures import FailureNotes
from workloads.transports.sessions import MODE, summary

#: Seconds between looks at the stop flag, and for the last replies, as in serve.py.
_LOOK_S = 0.1
_LINGER_S = 0.3
#: Of an untrusted host: for 508 clients.
_RINGS = UringConfig(entries=512, buffers=1024)

_EXAMPLES = """examples:
  smtnet serve kv --transport tcp --addr 127.0.0.1:7001          # then: redis-cli -p 7001
  smtnet serve kv --iface vb --addr 10.9.0.2:6001 --certs certs/b --aof store.aof --fsync always
  smtnet serve kv --iface vb --certs certs/b --listen smt:10.9.0.2:6001 --listen tcp:10.9.0.2:7001
  smtnet serve kv --transport tcp --addr 127.0.0.1:7001 --aof store.aof --nic-hosting ring    # docs/trust.md
  smtnet serve kv --transport homa --iface vb --addr 10.9.0.2:5001 --store redis:unix:/run/redis.sock

Prints "serving ..." on stderr when ready. SIGINT or SIGTERM end it.
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``kv`` to the subcommands of ``serve``."""
    parser = actions.add_parser(
        "kv", help="a key-value store that speaks RESP", epilog=_EXAMPLES,
        description="A key-value store with the commands of Redis. tcp, tls and ktls serve any Redis client; over "
                    "smt, homa, linux and upstream an RPC carries RESP commands and its response their replies.")
    options.add_transport_options(parser)
    parser.add_argument("--listen", action="append", default=[], metavar="TRANSPORT:IP:PORT",
                        help="serve here, with the options above; may be given several times, for one keyspace "
                             "(default: --transport at --addr)")
    parser.add_argument("--store", default="embedded", metavar="embedded|redis:unix:/PATH|redis:IP:PORT",
                        help="who keeps the keys: this process, or a Redis server (default: %(default)s)")
    parser.add_argument("--databases", type=_databases, metavar="N",
                        help=f"embedded: how many there are to SELECT (default: {DATABASES})")
    parser.add_argument("--aof", type=Path, metavar="FILE",
                        help="embedded: keep every change in this file, and begin with what it holds")
    parser.add_argument("--fsync", choices=FSYNC,
                        help="when changes must be on the disk: before they are acknowledged, each second, or "
                             "when the kernel likes (default: everysec)")
    parser.add_argument("--aof-rewrite-percentage", type=options.not_negative, metavar="P",
                        help="write the file anew, while serving, when it has grown by so many per cent since the "
                             f"last time; 0: only for BGREWRITEAOF (default: {GROWTH})")
    parser.add_argument("--aof-rewrite-min-size", type=byte_count, metavar="B",
                        help="and is so long, as 64mb (default: 64mb)")
    streams = parser.add_argument_group(
        "tcp, tls, ktls", "what one client may send, as 512mb; over smt, homa, linux, upstream a message is "
                          "the limit (--param max_message_length)")
    for name, (option, what) in OPTIONS.items():
        default = getattr(Limits(), name)
        streams.add_argument(f"--{option}", type=byte_count, default=default, metavar="N",
                             help=f"{what} (default: {default:,})")
    add_storage_options(parser)
    parser.add_argument("--aof-upgrade", action="store_true",
                        help="protect a plain --aof FILE from now on, with what is in it")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout at the end")
    parser.set_defaults(run=run_kv)


def _databases(text: str) -> int:
    """For argparse."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_DATABASES):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to {MAX_DATABASES}")
    return int(text)


def listeners(args: argparse.Namespace) -> list[Settings]:
    """Where to serve. Raises :class:`ConfigError`."""
    wanted = [(args.transport, args.addr)] if args.addr is not None else []
    for text in args.listen:
        transport, _, where = text.partition(":")
        if transport not in transports.NAMES:
            raise ConfigError(f"--listen {text}: {transport!r} is no transport; {', '.join(transports.NAMES)} "
                              f"are, as smt:10.0.0.2:6001")
        wanted.append((transport, where))
    if not wanted:
        raise ConfigError("a server needs an address: --addr IP:PORT, or --listen TRANSPORT:IP:PORT")
    every = [transport for transport, _where in wanted]
    return [options.settings(argparse.Namespace(**{**vars(args), "transport": transport, "addr": where}), every)
            for transport, where in wanted]


def open_proxies(args: argparse.Namespace, wanted: list[Settings]) -> Proxies | None:
    """TCP and files of an untrusted host, where they are asked for. Raises SmtError."""
    asked = next((settings for settings in wanted
                  if settings.hosting not in ("", INLINE) and settings.transport in transports.PROXIED), None)
    if asked is None:
        return None
    how = asked.hosting
    if len(wanted) > 1 or args.store != "embedded":
        raise ConfigError(f"{asked.transport} with --nic-hosting {how}: one --listen, and --store embedded")
    if how == QUEUE or (how == EXIT and asked.transport != "tcp"):
        raise ConfigError(f"{asked.transport} has no --nic-hosting {how}: ring, ring-unchecked, and tcp also exit")
    # A second one for the thread that syncs.
    return Proxies([] if args.aof is None else [args.aof], rings=2, certified=how != UNCHECKED, exits=how == EXIT,
                   exit_ns=asked.exit_ns, config=_RINGS)


def open_store(args: argparse.Namespace, mutual: bool,
               proxies: Proxies | None = None) -> tuple[Backend, list[str]]:
    """The store, and warnings. ``mutual``: sessions are mtls, and what is kept is protected unless the user says
    otherwise. ``proxies``: by which files are the host's. Raises SmtError."""
    names = ("fsync", "aof_rewrite_percentage", "aof_rewrite_min_size", "storage_key", "storage_passphrase",
             "storage_mode", "storage_state", "storage_freshness", "aof_upgrade")
    about_aof = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) not in (None, False)]
    if args.store != "embedded":
        if not args.store.startswith("redis:"):
            raise ConfigError(f"--store {args.store}: embedded, redis:unix:/path or redis:IP:PORT")
        if args.databases is not None:
            raise ConfigError("--databases: for --store embedded only; Redis has a configuration of its own")
        if args.aof is not None or about_aof:
            raise ConfigError(f"{', '.join(['--aof', *about_aof])}: for --store embedded only; Redis has a "
                              f"configuration of its own")
        return RedisStore(args.store), []
    keys = open_databases(args.databases or DATABASES)
    if args.aof is None:
        if about_aof:
            raise ConfigError(f"{about_aof[0]} needs --aof FILE: without it nothing is kept")
        return EmbeddedStore(keys), []
    how = protection(args)
    warnings = []
    if how is None and args.storage_mode is None and mutual and (not args.aof.exists() or is_protected(args.aof)):
        how = own_protection(args.aof)
        warnings.append(f"--aof {args.aof} is protected; its key is {args.aof}.key, and {args.aof}.state says "
                        f"which file is the latest: keep both elsewhere (--storage-key, --storage-state)")
    if how is None and args.aof_upgrade:
        raise ConfigError("--aof-upgrade needs --storage-key FILE or --storage-passphrase FILE")
    growth, least = args.aof_rewrite_percentage, args.aof_rewrite_min_size
    open_log = plain_opener if how is None else opener(how, args.aof_upgrade)
    if proxies is not None:
        if how is not None or growth:
            raise ConfigError("--nic-hosting ring: the file is neither protected nor written anew there: leave "
                              "out --storage-key, --storage-passphrase and --aof-rewrite-percentage")
        growth = 0
        warnings.append(f"--aof {args.aof} is the host's: it can read and change it")
        open_log = partial(RingLog, ring=proxies.rings[0], syncing=proxies.rings[1])
    aof = Aof(args.aof, args.fsync or "everysec", keys, GROWTH if growth is None else growth,
              LEAST if least is None else least, _say, open_log)
    return EmbeddedStore(keys, aof), warnings + aof.warnings


def _say(text: str) -> None:
    print(f"smtnet: {text}", file=sys.stderr, flush=True)


def run_kv(args: argparse.Namespace) -> int:
    """The subcommand."""
    wanted = listeners(args)
    options.check_trace(args, sum(settings.trace is not None for settings in wanted))
    limits = Limits(**{name: getattr(args, option.replace("-", "_"))
                       for name, (option, _what) in OPTIONS.items()})
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    with ExitStack() as undo:
        proxies = open_proxies(args, wanted)
        if proxies is not None:
            undo.callback(proxies.close)
        store, warnings = open_store(args, any(settings.session_mode == MODE for settings in wanted), proxies)
        undo.callback(store.close)
        if isinstance(store, EmbeddedStore):
            # Not before: what is in the file may come from times with another limit.
            store.keys.databases.longest = limits.bulk
        for warning in warnings:
            _say(warning)
        servers: list[Server] = []
        messages: list[RespMessages] = []
        for settings in wanted:
            server, handler = open_front(settings, store, limits, None if proxies is None else proxies.rings[0])
            undo.callback(server.close)
            servers.append(server)
            messages += [handler] if handler is not None else []
        # One loop waits for all front ends: as the one that wakes first would.
        service = Service(servers, store, next((s.waiting for s in wanted if s.waiting != AS_TCP), AS_TCP))
        undo.callback(service.close)
        for number in (signal.SIGTERM, signal.SIGINT):
            undo.callback(signal.signal, number, signal.signal(number, stop))
        monitor = FidelityMonitor(service)
        shorten_pauses()
        monitor.start()
        places = ", ".join(f"{s.transport}:{s.local[0]}:{s.local[1]}" for s in wanted if s.local is not None)
        print(f"serving kv on {places} ({args.store})", file=sys.stderr, flush=True)
        if proxies is not None:
            seccomp.guard()
        parent = os.getppid()
        look_at = time.monotonic()
        failures = FailureNotes(servers)
        while not stopping:
            service.drive(_LOOK_S)
            failures.look()
            if (now := time.monotonic()) >= look_at:
                look_at = now + _LOOK_S
                # Whoever started us was killed: nobody would ever stop us. The flag is set, never computed: a
                # signal may set it meanwhile.
                if os.getppid() != parent:
                    stopping = True
        service.linger(_LINGER_S)
        result = _result(args, wanted, servers, messages, store, monitor.stop())
        if proxies is not None:
            result["counters"].update(proxies.counters(), ring_refused=proxies.refused())
    if args.json:
        print(json.dumps(result))
    else:
        _print_table(result)
    return 0


def _result(args: argparse.Namespace, wanted: list[Settings], servers: list[Server], messages: list[RespMessages],
            store: Backend, fidelity: Verdict) -> dict[str, Any]:
    counters: Counter[str] = Counter()
    for server in servers:
        counters.update(server.counters())
    counters["protocol_errors"] += sum(m.protocol_errors for m in messages)
    return {"listeners": [{"transport": s.transport, "address": f"{s.local[0]}:{s.local[1]}",
                           **summary(s.session_mode, [server.counters()])}
                          for s, server in zip(wanted, servers, strict=True) if s.local is not None],
            "nic": args.nic, "store": args.store, "kv": store.counters(), "counters": counters,
            "fidelity": fidelity,
            "failure": next(filter(None, (server.failure() for server in servers)), "")}


def _print_table(result: dict[str, Any]) -> None:
    print(f"served {result['kv']['commands']} commands")
    for name, value in {**result["kv"], **result["counters"]}.items():
        if value:
            print(f"  {name:24}{value:>14,}")
    for reason in result["fidelity"]["reasons"]:
        print(f"smtnet: not faithful: {reason}", file=sys.stderr)
