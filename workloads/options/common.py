"""What several subcommands take on the command line, and how it is read."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import psutil

from smtstack import quantities
from smtstack.errors import ConfigError
from smtstack.io.key_file import IN_CLEAR
from smtstack.io.packet_socket import interface_mtu
from smtstack.io.trace_file import is_folder
from smtstack.session_io.tsig_file import DNS_PORT
from smtstack.socket import HOSTINGS, Address
from smtstack.transport.params import SOFTWARE, TransportParams, software
from smtstack.wire.ipv4 import address
from smtstack.wire.overlay import NONE
from workloads.options.declare import add, option, read
from workloads.options.overlay import OVERLAID, Overlay
from workloads.options.session import EndSessions, check_no_sessions, session_settings
from workloads.options.waiting import Waits
from workloads.transports import NAMES, PACKET_TRANSPORTS, PROXIED, Settings
from workloads.transports.sessions import SessionSettings
from workloads.transports.table import TABLE

DEFAULTS = SOFTWARE
#: Parameters of the transport with an option of their own.
_OWN_OPTIONS = ("mtu", "max_gso_size", "unsched_bytes", "window", "timeout_resends")


#: For argparse; other quantities are in smtstack/quantities.py.
positive, not_negative = quantities.POSITIVE, quantities.NOT_NEGATIVE
seconds, share = quantities.SECONDS, quantities.FRACTION
_SIZES = ("mtu", "max_gso_size", "max_message_length", "unsched_cutoffs", "window", "max_incoming",
          "fifo_grant_increment")


def parse_address(text: str, default_port: int | None = None) -> Address:
    """``IP:PORT``, or with ``default_port`` also ``IP``; raises :class:`ConfigError`."""
    ip, colon, port = text.rpartition(":")
    if not colon and default_port is not None:
        ip, port = text, str(default_port)
    try:
        if not colon and default_port is None:
            raise ValueError("there is no port")
        address(ip)
        if not 0 < int(port) <= 0xFFFF:
            raise ValueError("a port is 1 to 65535")
    except ValueError as e:
        raise ConfigError(f"{text!r} is no IP:PORT, as 10.0.0.2:2000: {e}") from None
    return ip, int(port)


def add_transport_options(parser: argparse.ArgumentParser) -> None:
    """Options of everything that opens a transport, for :func:`settings`."""
    parser.add_argument("--transport", "--profile", choices=NAMES, default="smt",
                        help="; ".join(f"{kind.name}: {kind.about}" if kind.about else kind.name
                                       for kind in TABLE.values()) + " (default: %(default)s)")
    parser.add_argument("--iface", metavar="I", help="network interface (smt, homa, linux, upstream)")
    parser.add_argument("--addr", metavar="IP:PORT", help="our own address, on that interface")
    parser.add_argument("--certs", type=Path, metavar="FOLDER",
                        help="smt, tls, ktls: this host's certificate ('smtnet ca' makes one for each host)")
    parser.add_argument("--keys", metavar="FILE|demo|none",
                        help="smt: a key file ('smtnet keys' makes one) instead of a handshake; linux: a key "
                             "file, or the module's public demo keys, which protect nothing, or none: the "
                             "module's plain Homa, in clear")
    parser.add_argument("--nic", choices=("sw", "hw"), default="sw",
                        help="who seals records: software, or the emulated NIC's TLS offload "
                             "(default: %(default)s)")
    parser.add_argument("--nic-hosting", choices=HOSTINGS, default="",
                        help="smt, homa, linux: inline: packets by sockets of ours; ring: as a guarded process, "
                             "without network system calls, behind rings that it shares with the host (default: "
                             "what the interface's link has); for comparison exit: each frame by a call of the "
                             "host's process, queue: by a queue of such calls, ring-unchecked: believes the host. "
                             "'serve kv' has ring and ring-unchecked for tcp and tls, too: TCP and the --aof file "
                             "by the host's io_uring; and exit for tcp")
    parser.add_argument("--exit-us", type=quantities.MICROSECONDS, default=0.0, metavar="US",
                        help="--nic-hosting exit: microseconds that leaving an enclave is said to cost beside; a "
                             "model (default: 0)")
    add(Waits, parser)
    add(EndSessions, parser)
    add(Overlay, parser)
    packets = parser.add_argument_group("smt, homa, linux, upstream")
    packets.add_argument("--trace", metavar="FILE|FOLDER",
                         help="write what the engine does and why, for 'smtnet trace' (docs/trace.md), to a new "
                              "file, or a folder in which each process makes one; no keys, no plaintext")
    packets.add_argument("--max-gso-size", type=quantities.BYTES, metavar="B",
                         help="largest TSO segment, so the grain of records (default: by the link's rate, at most "
                              f"{DEFAULTS.max_gso_size})")
    packets.add_argument("--mtu", type=quantities.BYTES, metavar="B",
                         help="largest IP packet (default: the interface's); both ends of linux must agree")
    packets.add_argument("--link-mbps", type=quantities.WHOLE_MBPS, metavar="R",
                         help="rate of the link, which the pacer keeps to; below 1000, the other parameters "
                              f"follow it (default: not known, {DEFAULTS.link_mbps} for the pacer)")
    packets.add_argument("--unsched-bytes", type=quantities.BYTES, metavar="B",
                         help="bytes of a message sent without waiting for a grant (default: by the link's rate, "
                              f"at most {DEFAULTS.unsched_bytes})")
    packets.add_argument("--window", type=quantities.BYTES, metavar="B",
                         help="bytes granted beyond what has arrived (default: by the link's rate, at most "
                              f"{DEFAULTS.window})")
    packets.add_argument("--timeout-resends", type=positive, metavar="N",
                         help="a host is given up after so many times 10 ms (longer below 100 Mbit/s) of silence "
                              f"(default: {DEFAULTS.timeout_resends}, about "
                              f"{DEFAULTS.silence_ticks * DEFAULTS.tick_ns // 10**9} s above 2 Mbit/s)")
    packets.add_argument("--param", action="append", default=[], metavar="NAME=VALUE",
                         help="any parameter of the transport by its name in smtstack/transport/params.py, as "
                              "max_overcommit=4; comes after all other options (repeatable)")


def add_caller_options(parser: argparse.ArgumentParser) -> None:
    """Options of everything that opens a caller."""
    add_transport_options(parser)
    parser.add_argument("--peer", required=True, action="append", metavar="IP:PORT",
                        help="the server; of several, each RPC takes one at random")
    parser.add_argument("--connections", type=positive, default=0, metavar="N",
                        help="tcp, tls, ktls: connections to each peer, with the RPCs pipelined on them (default: "
                             "one for each RPC under way; 50 in an open loop)")


def check_trace(args: argparse.Namespace, processes: int) -> None:
    """Check that each of so many processes has a place for its trace. Raises :class:`ConfigError`."""
    if args.trace is not None and processes > 1 and not is_folder(args.trace):
        raise ConfigError(f"--trace {args.trace}: {processes} sockets need a folder, as {args.trace}/")


@dataclass(frozen=True)
class Params:
    """Parameters of our transports, of an experiment."""

    param: list[str] = option("--param", action="append", default=[], metavar="NAME=VALUE",
                              help="smt, homa, linux, upstream: a parameter of the transport, as max_overcommit=4 "
                                   "(repeatable; default: by the link's rate)")


def param_words(texts: Sequence[str]) -> tuple[str, ...]:
    """``--param`` again, for command lines of servers and clients. Raises :class:`ConfigError`, also where a value
    cannot be."""
    replace(DEFAULTS, **dict(map(parse_param, texts)))
    return tuple(word for text in texts for word in ("--param", text))


_RESULTS: Any = option("--results", type=Path, default=Path("results"), metavar="DIR",
                       help="where the result folder goes (default: %(default)s)")
_JSON: Any = option("--json", action="store_true", help="one JSON object on stdout")


class Reported:
    """What becomes of an experiment's results."""

    results: Path
    json: bool

    @property
    def judged(self) -> bool:
        """Whether a run that was not faithful has failed, as ``--strict`` or ``--allow-unfaithful`` says."""
        told = vars(self)
        return bool(told["strict"] if "strict" in told else not told.get("allow_unfaithful", True))


@dataclass(frozen=True)
class PlainResults(Reported):
    """The end of benches, which say what was not faithful, and have not failed for it."""

    results: Path = _RESULTS
    json: bool = _JSON


@dataclass(frozen=True)
class JudgedResults(Reported):
    """The end of experiments whose run has failed if it was not faithful, unless the user says otherwise."""

    results: Path = _RESULTS
    allow_unfaithful: bool = option("--allow-unfaithful", action="store_true",
                                    help="exit 0 even if the run was not faithful")
    json: bool = _JSON


@dataclass(frozen=True)
class QuotedResults(Reported):
    """The end of comparisons, whose trials that were not faithful are marked; the run has failed for them only if
    the user says so."""

    results: Path = _RESULTS
    strict: bool = option("--strict", action="store_true", help="exit 4 if any trial was not faithful")
    json: bool = _JSON


def transport_list(text: str) -> list[str]:
    """For argparse: ``smt,tls``."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",")))
    for name in names:
        if name not in NAMES:
            raise argparse.ArgumentTypeError(f"there is no transport {name!r}; there are {', '.join(NAMES)}")
    return names


def parse_param(text: str) -> tuple[str, Any]:
    """``NAME=VALUE`` of a parameter; several numbers have commas between them. Raises :class:`ConfigError`."""
    name, equals, value = text.partition("=")
    name = name.strip()
    if not equals:
        raise ConfigError(f"{text!r} is no NAME=VALUE, as max_overcommit=4")
    names = [f.name for f in fields(TransportParams)]
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"the transport has no parameter {name!r}; {hint}there are {', '.join(names)}")
    kind = _quantity(name)
    if isinstance(getattr(DEFAULTS, name), tuple):
        where = f"{name} (whole numbers with commas between them)"
        return name, tuple(kind.read(where, part) for part in value.split(","))
    return name, kind.read(name, value)


def _quantity(name: str) -> quantities.Quantity:
    if name.endswith("_ns"):
        return quantities.NANOSECONDS
    if name == "link_mbps":
        return quantities.WHOLE_MBPS
    if name in _SIZES or name.endswith("_bytes"):
        return replace(quantities.BYTES, least=0)
    return not_negative


def settings(args: argparse.Namespace, others: Collection[str] = ()) -> Settings:
    """What :func:`add_transport_options` say. Raises :class:`ConfigError`.

    ``others``: all the transports the same options are for, if there are more than ``--transport``.
    """
    local = parse_address(args.addr) if args.addr is not None else None
    params = None
    session, told = SessionSettings(), read(EndSessions, args)
    overlay = read(Overlay, args)
    overlay.check(others or (args.transport,))
    if args.transport == "smt":
        session = session_settings(told, args.certs, args.keys,
                                   None if args.dns is None else parse_address(args.dns, DNS_PORT))
    else:
        check_no_sessions(told, others or (args.transport,))
    if args.transport == "linux" and args.keys is None:
        raise ConfigError("linux needs --keys FILE ('smtnet keys' makes one), or --keys demo: the module's public "
                          "keys, which protect nothing; --keys none is plain Homa, in clear")
    if args.keys == IN_CLEAR and (args.transport != "linux" or args.certs is not None):
        other = "--certs" if args.transport == "linux" else f"--transport {args.transport}"
        raise ConfigError(f"--keys none is transport linux in clear, and nothing else: leave out that or {other}")
    if args.transport in PACKET_TRANSPORTS:
        if args.iface is None or local is None:
            raise ConfigError(f"{args.transport} sends its own packets: it needs --iface and --addr")
        given: dict[str, Any] = {"mtu": min(interface_mtu(args.iface), 65535)}
        given.update({name: getattr(args, name) for name in _OWN_OPTIONS if getattr(args, name) is not None})
        given.update(map(parse_param, args.param))
        params = replace(software(args.link_mbps, overlay.overlay != NONE), **given)
    elif args.trace is not None and not set(others) & set(PACKET_TRANSPORTS):
        raise ConfigError(f"--trace is for {', '.join(PACKET_TRANSPORTS)}: of {args.transport} the engine is the "
                          "kernel's")
    if args.iface is not None and local is not None:
        check_address(args.iface, local)
    return Settings(args.transport, local, args.iface, args.keys, args.certs, args.nic,
                    read(Waits, args).waiting(), params, session,
                    args.trace if args.transport in PACKET_TRANSPORTS else None,
                    overlay.overlay if args.transport in OVERLAID else NONE,
                    args.nic_hosting if args.transport in (*PACKET_TRANSPORTS, *PROXIED) else "",
                    round(args.exit_us * 1000))


def check_address(interface: str, local: Address) -> None:
    """Raises :class:`ConfigError` for an address that the interface does not have."""
    # Without it the kernel answers no ARP for us, and every peer would just time out.
    own = [a.address for a in psutil.net_if_addrs().get(interface, []) if "." in a.address]
    if local[0] not in own:
        raise ConfigError(f"{local[0]} is no address of {interface}, which has {', '.join(own) or 'none'}")
