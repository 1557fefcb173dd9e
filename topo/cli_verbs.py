"""``smt ...`` at Mininet's prompt, and the same for scripts: functions that take a network."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mininet.log import error, output

from smtstack.errors import ConfigError, SmtError
from smtstack.nicshare.state import NicState
from smtstack.nicshare.text import describe
from smtstack.quantities import PER_CENT
from topo import kv
from topo.echo import EchoResult, run_pairs, table
from topo.wire import SIDES, Wire

OFFLOAD = "tls-hw-tx-offload"
#: What failed in scripts, which nobody reads as it is said: mn's exit code tells.
failures: list[str] = []
#: Attribute of a network: the NICs somebody changed here, each with its settings before.
_CHANGED = "smt_changed_nics"


# -- for scripts -----------------------------------------------------------------------------------------------


def echo(net: Any, client: str, server: str, size: int = 1024, count: int = 100, transport: str = "smt",
         session: str = "") -> EchoResult:
    """Echo ``count`` RPCs of ``size`` bytes from one host to another; every answer is compared.

    ``session``: how the session of smt begins; empty: as the hosts were told.
    """
    (result,) = run_pairs([(find_host(net, client), find_host(net, server))], size=size, count=count,
                          transport=transport, session=session)
    return result


def nic(net: Any, host: str) -> str:
    """What is set on a host's smart NIC, who uses it, and what it counted."""
    return describe(state_of(net, host))


def offload(net: Any, host: str, on: bool | None) -> None:
    """Switch TLS offload of a host's NIC for all its endpoints; None: as each was started."""
    _state_to_change(net, host).set_feature(OFFLOAD, on)


def spread(net: Any, paths: int) -> None:
    """Have all smart NICs spread the messages to one peer over so many paths; 1: as they do by themselves."""
    for node in with_links(net.hosts) if paths > 1 else []:
        _state_to_change(net, node.name).set_paths(paths)


def stats(net: Any, host: str | None = None) -> dict[str, dict[str, Any]]:
    """Counters that are not zero: by host, and (for all hosts) by link and direction where there is a wire.

    Under the link's own name: ``late_us_max`` and ``late_us_mean``, see :meth:`topo.wire.Wire.statistics`.
    """
    hosts = with_links(net.hosts) if host is None else [find_host(net, host)]
    numbers: dict[str, dict[str, Any]] = {}
    for node in hosts:
        counters = state_of(net, node.name).counters()
        numbers[node.name] = {name: value for name, value in counters.items() if value}
    for link in net.links if host is None else []:
        if (wire := wire_of(link)) is not None:
            counts = wire.statistics()
            for side, far in zip(SIDES, ends(link), strict=True):
                numbers[f"{link_name(link)} to {far.name}"] = {k: v for k, v in counts[side].items() if v}
            numbers[link_name(link)] = {name: round(counts[name]) for name in ("late_us_max", "late_us_mean")}
    return numbers


def start_pcap(net: Any, host: str, path: Path | None = None, host_side: bool = False) -> Path:
    """Record what a host's NIC sends and receives, into a new file. ``host_side``: what drivers post, too."""
    state = _state_to_change(net, host)
    if path is None:
        path = Path(f"{state.interface}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.pcapng")
    state.start_tap(path, host_side)
    return path


def stop_pcap(net: Any, host: str) -> str:
    """End it; the file's name."""
    return state_of(net, host).stop_tap()


def loss(net: Any, link: str, share: float) -> str:
    """Lose this share of the frames on a link, either way, from now on. Says what it holds for."""
    found = find_link(net, link)
    name = link_name(found)
    if (wire := wire_of(found)) is not None:
        wire.set(drop=share)
        return f"{name}: {share:.3%} of all frames are lost"
    hosts = [node for node in ends(found) if node in net.hosts]
    if not hosts:
        raise ConfigError(f"link {name} is between switches and has no wire; start with --link smartnic,wire=yes")
    for node in hosts:
        # Between two hosts each NIC loses what it sends; at a switch the host's NIC loses what comes as well.
        ways = ("tx",) if len(hosts) == 2 else ("tx", "rx")
        state = _state_to_change(net, node.name, intf_on(found, node))
        state.assign(*(f"{way}.loss={share}" for way in ways))
    return (f"{name}: {share:.3%} of the smt and homa frames are lost, by the NIC of "
            f"{' and '.join(node.name for node in hosts)}; tcp and tls lose none, since the link has no wire "
            "(start with --link smartnic,wire=yes)")


def paths(net: Any, src: str, dst: str) -> list[str]:
    """The ways from one host to another, a line for each of the controller's paths."""
    answer = _controller_of(net).paths(find_host(net, src).name, find_host(net, dst).name)
    lines = []
    for number, way in enumerate(answer["paths"]):
        own = "  <- what names no path" if number == answer["flow_path"] else ""
        lines.append(f"path {number}: {src} -> {' -> '.join(way)} -> {dst}{own}")
    lines = lines or [f"{dst} cannot be reached from {src} now"]
    return lines + [f"not in force: {why}" for why in answer.get("refusing", {}).values()]


def links(net: Any) -> list[str]:
    """What went over every link, both ways, and whether the controller uses it."""
    controller = _controller_of(net)
    found, down = controller.counters(), set(controller.status()["links"]["down"])
    lines = [f"{'from':<12} {'to':<12} {'state':<6} {'packets':>12} {'bytes':>16} {'dropped':>8}"]

    def line(source: str, to: str, state: str, counts: dict[str, Any], way: str) -> None:
        numbers = [counts.get(f"{way}_{what}", 0) for what in ("packets", "bytes", "dropped")]
        queued = sum(c["dropped"] for c in counts["priorities"].values()) if way == "tx" else 0
        lines.append(f"{source:<12} {to:<12} {state:<6} {numbers[0]:>12} {numbers[1]:>16} "
                     f"{numbers[2] + queued:>8}")

    for link in found["links"]:
        state = "down" if link["link"] in down else "up"
        for end, other in ((link["a"], link["b"]), (link["b"], link["a"])):
            line(end["interface"], other["switch"], state, end, "tx")
    for port in found["hosts"]:
        line(port["interface"], port["host"], "up", port, "tx")
        line(port["host"], port["interface"], "up", port, "rx")
    return lines


def _controller_of(net: Any) -> Any:
    for controller in net.controllers:
        if hasattr(controller, "paths"):
            return controller
    raise ConfigError("no controller knows the paths here; start with --controller fanout")


# -- finding things --------------------------------------------------------------------------------------------


def with_links(hosts: list[Any]) -> list[Any]:
    """The hosts among these that have an interface."""
    return [host for host in hosts if host.intfs]


def find_host(net: Any, name: str) -> Any:
    """A host by name; raises :class:`ConfigError` with the names there are."""
    for node in net.hosts:
        if node.name == name:
            return node
    raise ConfigError(f"no host {name!r}; there are {', '.join(node.name for node in net.hosts)}")


def find_link(net: Any, name: str) -> Any:
    """A link by its two ends (``s1-h2``) or one interface (``h2-eth0``); raises :class:`ConfigError`."""
    found = [link for link in net.links if name in (link_name(link), "-".join(n.name for n in ends(link)[::-1]))]
    found = found or [link for link in net.links if name in (link.intf1.name, link.intf2.name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{len(found)} links are {name}; take an interface: "
                          f"{', '.join(link.intf1.name for link in found)}")
    raise ConfigError(f"no link {name!r}; there are {', '.join(link_name(link) for link in net.links)}")


def ends(link: Any) -> list[Any]:
    """The two nodes of a link."""
    return [link.intf1.node, link.intf2.node]


def link_name(link: Any) -> str:
    """A link as people write it: ``s1-h2``."""
    return "-".join(node.name for node in ends(link))


def intf_on(link: Any, node: Any) -> Any:
    """The interface a link has on a node."""
    return link.intf1 if link.intf1.node is node else link.intf2


def wire_of(link: Any) -> Wire | None:
    """The programmable wire on a link, if it has one; Mininet's own links have none."""
    wire: Wire | None = getattr(link, "wire", None)
    return wire


def state_of(net: Any, host: str, intf: Any = None) -> NicState:
    """The NIC of a host's first interface, or of ``intf``."""
    node = find_host(net, host)
    if intf is None:
        if not node.intfs:
            raise ConfigError(f"{host} has no interface: it is at no link")
        intf = node.defaultIntf()
    return NicState.open(intf.name, pid=node.pid)


def release(net: Any) -> None:
    """NICs get back what was set on them before: the network is about to end, and one may be the machine's."""
    for state, before in reversed(vars(net).pop(_CHANGED, [])):
        with contextlib.suppress(SmtError):
            state.restore(before)


def _state_to_change(net: Any, host: str, intf: Any = None) -> NicState:
    state = state_of(net, host, intf)
    vars(net).setdefault(_CHANGED, []).append((state, state.settings()))
    return state


# -- at the prompt ---------------------------------------------------------------------------------------------


class _Failed(SmtError):
    """What a verb has to say, which is that something did not work."""


def _echo(net: Any, args: list[str]) -> str:
    client, server, size, *rest = args
    result = echo(net, client, server, _number("SIZE", size), **_how(rest, 100))
    if not result.ok:
        raise _Failed(table([result]))
    return table([result])


def _kv(net: Any, args: list[str]) -> str:
    client, server, workload, *rest = args
    result = kv.run_ycsb(find_host(net, client), find_host(net, server), workload, **_how(rest, None))
    return kv.table(client, server, result)


def _how(words: list[str], count: int | None) -> dict[str, Any]:
    """What may follow: how many, over what, ``session=MODE``; in any order."""
    how: dict[str, Any] = {"count": count, "transport": "smt"}
    for word in words:
        if word.isdigit():
            how["count"] = _number("COUNT", word)
        elif word.startswith("session="):
            how["session"] = word.removeprefix("session=")
        else:
            how["transport"] = word
    return how


def _nic(net: Any, args: list[str]) -> str:
    (host,) = args
    return nic(net, host)


def _offload(net: Any, args: list[str]) -> str:
    host, word = args
    offload(net, host, {"on": True, "off": False, "default": None}[word])
    return f"{host}: {OFFLOAD} {word}"


def _stats(net: Any, args: list[str]) -> str:
    (host,) = args or ("",)
    lines = []
    for name, counters in stats(net, host or None).items():
        lines.append(f"{name}:" + ("" if counters else " nothing yet"))
        lines += [f"  {counter:<32} {value}" for counter, value in counters.items()]
    return "\n".join(lines)


def _pcap(net: Any, args: list[str]) -> str:
    host, action, *rest = args
    if action == "stop" and not rest:
        return f"{host}: wrote {stop_pcap(net, host)}"
    if action != "start":
        raise ValueError(action)
    host_side = "--host-side" in rest
    names = [text for text in rest if text != "--host-side"]
    if len(names) > 1 or any(name.startswith("-") for name in names):
        raise ValueError(rest)
    path = start_pcap(net, host, Path(names[0]) if names else None, host_side)
    warning = "; what the driver posts may be plaintext: keep the file to yourself" if host_side else ""
    return f"{host}: recording into {path}{warning}"


def _loss(net: Any, args: list[str]) -> str:
    link, share = args
    return loss(net, link, PER_CENT.read("loss", share) / 100)


def _paths(net: Any, args: list[str]) -> str:
    src, dst = args
    return "\n".join(paths(net, src, dst))


def _links(net: Any, args: list[str]) -> str:
    if args:
        raise ValueError(args)
    return "\n".join(links(net))


def _help(_net: Any, _args: list[str]) -> str:
    return "\n".join(f"  smt {usage:<61} {meaning}" for _run, usage, meaning in VERBS.values())


def _number(name: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise ConfigError(f"{name} is {text!r}; a number from 1")
    return int(text)


#: Verb: (function, arguments, meaning). ValueError and KeyError mean wrong arguments.
VERBS: dict[str, tuple[Callable[[Any, list[str]], str], str, str]] = {
    "echo": (_echo, "echo CLIENT SERVER SIZE [COUNT] [TRANSPORT] [session=MODE]",
             "RPCs of SIZE bytes, every answer compared"),
    "kv": (_kv, "kv CLIENT SERVER WORKLOAD [COUNT] [TRANSPORT] [session=MODE]",
           "YCSB a to f, or a property file; every value read verified"),
    "nic": (_nic, "nic HOST", "settings, users and counters of its smart NIC"),
    "offload": (_offload, "offload HOST on|off|default", "TLS offload to the NIC, while traffic runs"),
    "stats": (_stats, "stats [HOST]", "counters of the NICs, and of links with a wire"),
    "pcap": (_pcap, "pcap HOST start [FILE] [--host-side] | stop", "record what its NIC sends and receives"),
    "loss": (_loss, "loss LINK PER-CENT", "lose frames on a link, as: smt loss s1-h2 1%"),
    "paths": (_paths, "paths HOST HOST", "the ways between them (--controller fanout)"),
    "links": (_links, "links", "what every link carried (--controller fanout)"),
    "help": (_help, "help", "this list"),
}


def run_verb(net: Any, line: str) -> str:
    """One ``smt`` line without the ``smt``; what is to be said. Raises :class:`SmtError`."""
    try:
        verb, *args = shlex.split(line) or ["help"]
    except ValueError as e:
        raise ConfigError(f"{line!r}: {e}") from None
    if verb not in VERBS:
        raise ConfigError(f"no verb {verb!r}; there are {', '.join(VERBS)}")
    run, usage, _meaning = VERBS[verb]
    try:
        return run(net, args)
    except (ValueError, KeyError):
        raise ConfigError(f"usage: smt {usage}") from None


def do_smt(self: Any, line: str) -> None:
    """Echo, YCSB, smart NICs, captures, loss, paths.

    Usage: smt echo|kv|nic|offload|stats|pcap|loss|paths|links|help ...
    """
    try:
        output(run_verb(self.mn, line) + "\n")
    except _Failed as e:
        output(f"{e}\n")
        note_failure(self, f"smt {line}")
    except SmtError as e:
        error(f"*** smt: {e}\n")
        note_failure(self, f"smt {line}")


def note_failure(cli: Any, line: str) -> None:
    """A line of a script (``--pre``, ``--post``, ``source``) failed. At the prompt, whoever gave it saw that."""
    if cli.inputFile is not None:
        failures.append(line)


def complete_smt(self: Any, text: str, line: str, _begin: int, _end: int) -> list[str]:
    """Verbs, then hosts."""
    words = list(VERBS) if len(line[:_begin].split()) == 1 else [node.name for node in self.mn.hosts]
    return [word for word in words if word.startswith(text)]
