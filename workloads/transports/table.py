"""The transports: one record each, of which every list and choice of them is made; and what opens one end.

A transport on the kernel's TCP is a record here, and a module with its kind of
:class:`~workloads.transports.stream.Stream`; one that sends its own packets is a profile of smtstack as well.
Modules named in the environment variable ``SMTNET_TRANSPORTS`` (names as for ``import``, with commas between them)
may add records by :func:`register`; the programs that a run starts on hosts inherit it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Literal, NamedTuple

from smtstack.errors import ConfigError
from smtstack.io.key_file import IN_CLEAR
from smtstack.socket import Address
from smtstack.transport.params import TransportParams
from smtstack.waiting import AS_HOMA, AS_TCP, Waiting
from smtstack.wire.overlay import NONE
from workloads.transports.contract import Caller, Handler, Server
from workloads.transports.epoll import StreamMaker
from workloads.transports.sessions import SessionSettings
from workloads.transports.stream import Stream

#: Where transports stand beside each other unless others are named: ``smtnet demo``, ``bench wire`` (and
#: ``reproduce fig8``), ``run mix``, ``run incast`` and ``run fanout``, and ``smt echo`` in mn (topo/programs.py).
Comparison = Literal["demo", "wire", "mix", "queries", "mn"]
#: The yardstick in tables and pictures: the system that all others are divided by.
BASELINE = "tls"
#: How hosts' NICs are by default: in each program of ours.
INLINE = "inline"


class Look(NamedTuple):
    """How pictures show a system: by colour, marker and line."""

    colour: str
    marker: str
    line: str


@dataclass(frozen=True, slots=True)
class Settings:
    """One end of a transport."""

    transport: str
    local: Address | None = None
    """Our address. A stream client needs none, and takes any free port in any case."""
    interface: str | None = None
    """Where ``local`` is; packet transports need it."""
    keys: str | None = None
    """A key file (smt: instead of a handshake); linux: or ``demo``, or ``none``, which is in clear."""
    certs: Path | None = None
    """Folder of this host's certificate (smt, tls, ktls)."""
    nic: str = "sw"
    wait: Waiting | None = None
    """How it waits; None: as its transport does by default (:attr:`waiting`)."""
    params: TransportParams | None = None
    """Packet transports; ``max_message_length`` is everybody's."""
    session: SessionSettings = field(default_factory=SessionSettings)
    """How sessions of smt begin, if not with keys from a file."""
    trace: str | None = None
    """Packet transports: file or folder for what the engine does (docs/trace.md)."""
    overlay: str = NONE
    """smt, homa: ``tcp``: DATA of messages longer than a packet has the shape of TCP."""
    hosting: str = ""
    """``ring``: as a guarded process, ``inline``: not; empty: packet transports as the interface's link is, others
    not."""
    exit_ns: int = 0
    """Hosting ``exit``: what leaving an enclave is said to cost."""

    @property
    def waiting(self) -> Waiting:
        """How it waits."""
        return TABLE[self.transport].waiting if self.wait is None else self.wait

    @property
    def encrypted(self) -> bool:
        """Nobody on the wire can read what it carries."""
        return TABLE[self.transport].encrypted and self.keys != IN_CLEAR

    @property
    def nic_used(self) -> str | None:
        """Who seals records; None: the NIC has nothing to do here."""
        return self.nic if TABLE[self.transport].packets and self.keys != IN_CLEAR else None

    @property
    def limit(self) -> int:
        """Bytes of the longest message."""
        return (self.params or TransportParams()).max_message_length

    @property
    def session_mode(self) -> str | None:
        """How sessions of smt begin, ``keys``: with keys from a file; None: another transport."""
        if not TABLE[self.transport].sessions:
            return None
        return "keys" if self.certs is None else self.session.mode


#: Makes a caller of peers, and a server with a handler. Each raises ConfigError, Unsupported.
Ends = tuple[Callable[[Settings, Sequence[Address]], Caller], Callable[[Settings, Handler], Server]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportKind:
    """All there is to know about a transport but how its bytes go."""

    name: str
    about: str = ""
    """What the help says of it; empty: its name says it."""
    streams: Callable[[Settings, bool], StreamMaker] | None = None
    """Makes its connections on TCP, as a server (True) or a client. Raises :class:`ConfigError`,
    :class:`~smtstack.errors.Unsupported`."""
    ends: Ends | None = None
    """Makes a caller of peers, and a server: a transport that is neither on TCP nor packets of ours."""
    encrypted: bool = False
    """Nobody on the wire can read what it carries."""
    keyed: bool = False
    """Whether it needs a key file."""
    certified: bool = False
    """Whether it needs a certificate of each host (smt can do with a key file, too)."""
    sessions: bool = False
    """Whether its sessions begin by handshakes of smtstack, in several modes."""
    looks: Mapping[str, Look] = field(default_factory=dict)
    """The systems that comparisons have of it, by who seals records (``sw``; ``hw``: the NIC), and their looks."""
    compared: frozenset[Comparison] = frozenset()
    """The comparisons that it is in."""
    beside: str = ""
    """The system by which ``bench wire`` divides its figures; empty: by none."""
    hosting: str = ""
    """How the hosts' NICs have to be (``tap``: processes that own their interfaces); empty: whichever way."""
    proxied: bool = False
    """Whether a server's sockets can be an untrusted host's (hosting ``ring``)."""
    check: Callable[[], None] | None = None
    """Raises :class:`~smtstack.errors.Unsupported` naming what this machine lacks for it; None: nothing.
    The doctor tells of it, too (topo/doctor.py)."""

    @property
    def packets(self) -> bool:
        """Whether it sends packets of ours, under the profile of its name: needs root, an interface, and uses our
        NIC."""
        return self.streams is None and self.ends is None

    @property
    def waiting(self) -> Waiting:
        """How its ends wait by default: ours as Homa does, those on the kernel's TCP as that does."""
        return AS_HOMA if self.packets else AS_TCP

    def label(self, nic: str | None) -> str:
        """The system as tables call it: ``smt-sw``, ``tcp``. Where a NIC does nothing for it, it is not named."""
        named = nic == "hw" or (nic == "sw" and self.packets and self.encrypted)
        return f"{self.name}-{nic}" if named else self.name


#: By name, in the order in which lists and pictures have them.
TABLE: dict[str, TransportKind] = {}


def register(kind: TransportKind) -> None:
    """Add a record. Raises :class:`ConfigError` if there is one of that name."""
    if kind.name in TABLE:
        raise ConfigError(f"there are two transports {kind.name}")
    TABLE[kind.name] = kind


def system_label(transport: str, nic: str | None) -> str:
    """A system as tables call it; also one that is no transport, but stands beside transports in results."""
    return TABLE.get(transport, TransportKind(name=transport, streams=_tcp)).label(nic)


def systems(comparison: Comparison, hosting: str = INLINE) -> list[tuple[str, str]]:
    """(transport, nic) of everything that is in a comparison; ``hosting``: how the hosts' NICs are in it."""
    return [(name, nic) for name in compared(comparison, hosting) for nic in TABLE[name].looks]


def compared(comparison: Comparison, hosting: str = INLINE) -> list[str]:
    """The transports in a comparison on hosts whose NICs are ``inline`` or ``tap``."""
    return [kind.name for kind in TABLE.values() if comparison in kind.compared and kind.hosting in {"", hosting}]


def chosen(names: list[str], comparison: Comparison, hosting: str) -> list[str]:
    """What a user wants compared: ``names``, or if these are the default, all that can be on such hosts."""
    return compared(comparison, hosting) if names == compared(comparison) else names


def _tcp(settings: Settings, _server: bool) -> StreamMaker:
    limit = settings.limit
    return lambda sock, peer: Stream(sock, peer, limit)


def _tls(settings: Settings, server: bool) -> StreamMaker:
    from workloads.transports import tls

    assert settings.certs is not None  # ``certified``
    return tls.maker(settings.certs, settings.limit, server)


def _ktls(settings: Settings, server: bool) -> StreamMaker:
    from workloads.transports import ktls

    assert settings.certs is not None  # ``certified``
    return ktls.maker(settings.certs, settings.limit, server)


def _ktls_sw(settings: Settings, server: bool) -> StreamMaker:
    from workloads.transports import ktls_own

    assert settings.certs is not None  # ``certified``
    return ktls_own.maker(settings.certs, settings.limit, server)


def _ktls_nic(settings: Settings, server: bool) -> StreamMaker:
    from workloads.transports import ktls_own

    assert settings.certs is not None  # ``certified``
    return ktls_own.nic_maker(settings.certs, settings.limit, server)


def _check_ktls_sw() -> None:
    from workloads.transports import ktls_own

    ktls_own.check()


def _check_ktls() -> None:
    from workloads.transports import ktls

    ktls.check()


for _kind in (
    TransportKind(name="smt", encrypted=True, certified=True, sessions=True, beside="tls",
                  looks={"sw": Look("#0072B2", "o", "-"), "hw": Look("#56B4E9", "s", "-")},
                  compared=frozenset({"demo", "wire", "mix", "queries", "mn"})),
    TransportKind(name="homa", about="the same in clear", beside="tcp", looks={"sw": Look("#009E73", "^", "-")},
                  compared=frozenset({"demo", "wire", "mix", "mn"})),
    TransportKind(name="linux", about="as the SMT kernel module", encrypted=True, keyed=True),
    TransportKind(name="tcp", streams=_tcp, proxied=True, looks={"sw": Look("#E69F00", "v", "--")},
                  compared=frozenset({"demo", "wire", "mix", "mn"})),
    TransportKind(name="tls", about="by OpenSSL", streams=_tls, encrypted=True, certified=True, proxied=True,
                  looks={"sw": Look("#D55E00", "D", "--")},
                  compared=frozenset({"demo", "wire", "mix", "queries", "mn"})),
    TransportKind(name="ktls", about="by the kernel", streams=_ktls, encrypted=True, certified=True,
                  looks={"sw": Look("#CC79A7", "P", "--")}, compared=frozenset({"demo"}), check=_check_ktls),
    TransportKind(name="ktls-sw", about="our kernel TLS, in software", streams=_ktls_sw, encrypted=True,
                  certified=True, beside="tls", looks={"sw": Look("#AA4499", "p", "--")},
                  compared=frozenset({"demo", "wire", "mix", "queries", "mn"}), check=_check_ktls_sw),
    TransportKind(name="ktls-nic", about="the same, sealed by a NIC that owns the interface: --nic-hosting tap",
                  streams=_ktls_nic, encrypted=True, certified=True, beside="ktls-sw",
                  looks={"sw": Look("#332288", "h", "--")}, hosting="tap",
                  compared=frozenset({"demo", "wire", "mix", "queries", "mn"}), check=_check_ktls_sw),
    TransportKind(name="upstream", about="as Homa's own module", looks={"sw": Look("#882255", "X", "-")},
                  compared=frozenset({"mn"})),
):
    register(_kind)
for _module in filter(None, os.environ.get("SMTNET_TRANSPORTS", "").split(",")):
    try:
        import_module(_module.strip())
    except ImportError as e:
        raise ConfigError(f"SMTNET_TRANSPORTS: cannot import {_module.strip()}: {e}") from None
