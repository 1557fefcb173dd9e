"""What ``mn --custom topo/mn.py`` adds to Mininet, and the few things it mends in ``mn`` itself.

Plain mn exits with 0 whatever a test or a command came to, and after any error runs Mininet's ``cleanup``,
which ends other people's networks on the same machine. With the plug-in the exit code is that of ``smtnet``
(1 failed, 2 usage, 3 the environment lacks something), and only the network that was started is ended.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import mininet.clean
import mininet.cli
import mininet.net
from mininet.log import debug, error, output
from mininet.util import buildTopo, splitArgs

from controllers.controller import RyuController, checked
from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.exit_codes import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, exit_code
from topo import cli_verbs, ovs
from topo.devices import check_free, silence, whose
from topo.echo import pairs_of, run_pairs, table
from topo.host import SmtHost
from topo.interpreter import host_python
from topo.link_options import LinkOptions
from topo.links import SmtLink, keep_apart
from topo.programs import check_session, unreachable
from topo.switches import AutoSwitch, choose, port_names
from topo.topologies import TOPOS

#: Networks that were made, to be ended whatever happens.
_networks: list[Any] = []
#: What went wrong in tests.
_failures: list[str] = []


def smtecho(net: Any, *args: Any, **named: Any) -> None:
    """``--test smtecho,SIZE,COUNT,TRANSPORT,NIC,SESSION``: RPCs between hosts, every answer compared.

    All arguments may be left out (``smtecho,transport=homa``). Up to four hosts everybody calls everybody,
    beyond each its neighbour. If one of them fails, mn's exit code is 1.
    """
    try:
        size, count, transport, nic, session = _echo_arguments(*args, **named)
    except TypeError:
        raise ConfigError("--test smtecho takes size=1024, count=100, transport=smt, nic=sw, session=mtls, in "
                          "this order or by name, e.g. smtecho,64,1000,homa") from None
    hosts = []
    for host in net.hosts:
        if why := unreachable(host):
            output(f"*** smtecho: {why}: left out\n")
        else:
            hosts.append(host)
    output(f"*** smtecho: {count} RPCs of {size} bytes over {transport}\n")
    results = []
    for result in run_pairs(pairs_of(hosts), size=size, count=count, transport=transport, nic=nic,
                            session=session):
        results.append(result)
        head, line = table([result]).split("\n")
        output((f"{head}\n" if len(results) == 1 else "") + f"{line}\n")
    bad = [f"{r.client} -> {r.server}" for r in results if not r.ok]
    _failures.extend(bad)
    output(f"*** smtecho: {len(results) - len(bad)} of {len(results)} pairs ok\n")


def _echo_arguments(size: int = 1024, count: int = 100, transport: str = "smt", nic: str = "sw",
                    session: str = "") -> tuple[int, int, str, str, str]:
    return size, count, transport, nic, session


topos = TOPOS
hosts = {"smt": SmtHost}
links = {"smartnic": SmtLink}
switches = {"auto": AutoSwitch}
controllers = {"fanout": RyuController}
tests = {"smtecho": smtecho}


def install() -> None:
    """Add the CLI verbs, and mend the ``mn`` that is running, if one is."""
    mininet.cli.CLI.do_smt = cli_verbs.do_smt
    mininet.cli.CLI.complete_smt = cli_verbs.complete_smt
    mininet.cli.CLI.default = _note_unknown(mininet.cli.CLI.default)
    SmtHost.interpreter = host_python()
    main = sys.modules["__main__"]
    runner = getattr(main, "MininetRunner", None)
    if runner is None:
        return
    # Mininet 2.3 does not take "links" from custom files, though it takes everything else.
    vars(main)["LINKS"].update(links)
    # Plain mn's way out of any error: it would end the networks of everybody on this machine.
    vars(main)["cleanup"] = _end_without_cleaning
    vars(main)["buildTopo"] = _build_topo
    _mend_networks(mininet.net.Mininet)
    runner.begin = _begin_with_exit_code(runner.begin)


def _note_unknown(default: Callable[[Any, str], None]) -> Callable[[Any, str], None]:
    def default_and_note(self: Any, line: str) -> None:
        default(self, line)
        first, _arguments, words = self.parseline(line)
        if words and first not in self.mn and words != "EOF":
            cli_verbs.note_failure(self, line)

    return default_and_note


def _mend_networks(kind: Any) -> None:
    first, start, last = kind.__init__, kind.start, kind.stop
    add_switch, add_link, add_nat = kind.addSwitch, kind.addLink, kind.addNAT

    def init(self: Any, *args: Any, **params: Any) -> None:
        _networks.append(self)
        first(self, *args, **params)

    # Mininet's own switches, links and NAT remove what has their names, whosever it is.
    def add_switch_that_is_new(self: Any, name: str, cls: Any = None, **params: Any) -> Any:
        if not params.get("inNamespace", self.inNamespace):
            check_free(name, f"switch {name}")
            ovs.check_free(name, f"switch {name}")
        return add_switch(self, name, cls=cls, **params)

    def add_link_that_is_new(self: Any, node1: Any, node2: Any, *args: Any, **params: Any) -> Any:
        if "fast" in params:
            params["fast"] = True
        try:
            return add_link(self, node1, node2, *args, **params)
        except SmtError:
            raise
        except Exception as e:
            if "File exists" not in str(e):
                raise
            said = " ".join(str(e).split())
            raise SmtError(f"link {node1}-{node2}: {said}: {whose()}; end that first, or choose "
                           "other names") from None

    def add_nat_that_is_new(self: Any, name: str = "nat0", connect: Any = True, **params: Any) -> Any:
        if connect is True and not self.switches:
            raise ConfigError("--nat: this topology has no switch to link it to; take another, e.g. --topo star,2")
        if not params.get("inNamespace", False):
            check_free(f"{name}-eth0", f"host {name}")
        return add_nat(self, name=name, connect=connect, **params)

    def start_and_widen(self: Any) -> None:
        for link in self.links:
            for intf in (link.intf1, link.intf2):
                keep_apart(intf)
        ours = [c for c in self.controllers if isinstance(c, RyuController)]
        for controller in ours:
            controller.take(self)
        start(self)
        for switch in self.switches:
            if not switch.inNamespace:
                silence(switch.name)
        if any(getattr(switch, "datapath", "") == "user" and isinstance(switch, AutoSwitch)
               for switch in self.switches):
            try:
                ovs.widen_buffers(port_names(self.switches))
            except SmtError as e:
                error(f"*** {e}\n")
        for controller in ours:
            controller.ready()
            cli_verbs.spread(self, controller.nic_paths)

    def stop(self: Any) -> None:
        cli_verbs.release(self)
        last(self)

    kind.__init__, kind.start, kind.stop = init, start_and_widen, stop
    kind.addSwitch, kind.addLink, kind.addNAT = add_switch_that_is_new, add_link_that_is_new, add_nat_that_is_new


def _build_topo(known: dict[str, Any], text: str) -> Any:
    """Mininet's buildTopo, but what topologies raise for wrong arguments is a mistake of whoever gave them."""
    try:
        return buildTopo(known, text)
    except SmtError:
        raise
    except (TypeError, ValueError) as e:
        debug(traceback.format_exc())
        raise ConfigError(f"--topo {text}: wrong arguments ({e}); {_arguments_of(known, text)}") from None
    except Exception as e:
        debug(traceback.format_exc())
        raise ConfigError(f"--topo {text}: it cannot be built: {type(e).__name__}: {e}") from None


def _arguments_of(known: dict[str, Any], text: str) -> str:
    """What a topology takes, in words: ``single takes k=2``."""
    name = text.partition(",")[0]
    _self, *parameters = inspect.signature(known[name].build).parameters.values()
    found = [p.name if p.default is p.empty else f"{p.name}={p.default}" for p in parameters
             if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return f"{name} takes {', '.join(found) or 'none'}"


def _end_without_cleaning() -> None:
    sys.exit(EXIT_INTERRUPTED if sys.exc_info()[0] is KeyboardInterrupt else EXIT_FAILED)


def _begin_with_exit_code(begin: Callable[[Any], None]) -> Callable[[Any], None]:
    def begin_and_exit(self: Any) -> None:
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(EXIT_TERMINATED))
        if self.options.clean:
            vars(sys.modules["__main__"])["cleanup"] = mininet.clean.cleanup
        try:
            _check(self.options)
            begin(self)
        except KeyboardInterrupt:
            _end(EXIT_INTERRUPTED, "interrupted")
        except SystemExit:
            _stop_networks()
            raise
        except Exception as e:  # whatever it was, mn must not "clean up" after it
            debug(traceback.format_exc())
            _end(exit_code(e), f"{e}" if isinstance(e, SmtError) else f"{type(e).__name__}: {e}")
        if _failures or cli_verbs.failures:
            for line in cli_verbs.failures:
                error(f"smtnet: failed: {line.strip()}\n")
            sys.exit(EXIT_FAILED)

    return begin_and_exit


def _check(options: Any) -> None:
    """Refuse what cannot work before anything is made."""
    if options.clean:
        return
    if os.geteuid() != 0:
        raise Unsupported("Mininet needs root: run it with sudo")
    for option in ("pre", "post"):
        script = getattr(options, option)
        if script and not os.access(script, os.R_OK):
            raise ConfigError(f"--{option} {script}: no such script, or it cannot be read")
    names = vars(sys.modules["__main__"])
    for option, known in (("topo", names["TOPOS"]), ("host", names["HOSTS"]), ("link", names["LINKS"]),
                          ("switch", names["SWITCHES"])):
        _known(option, getattr(options, option).partition(",")[0], known)
    link, args, params = splitArgs(options.link)
    if link == "smartnic":
        if args:
            raise ConfigError(f"--link {options.link}: options have names, as in --link smartnic,loss=1%")
        LinkOptions().changed(params)
    host, args, params = splitArgs(options.host)
    if host == "smt":
        if args or params.keys() - {"session"}:
            raise ConfigError(f"--host {options.host}: the only option is session, as --host smt,session=ticket")
        check_session(params.get("session", ""))
    switch, kinds, named = splitArgs(options.switch)
    automatic = switch == "auto"
    if automatic and options.innamespace:
        raise ConfigError("--innamespace: --switch auto switches in the machine's namespace: leave --innamespace "
                          "out, or take --switch user")
    for text in options.controller or []:
        name, args, params = splitArgs(text)
        _known("controller", name, names["CONTROLLERS"])
        if name == "fanout":
            if args:
                raise ConfigError(f"--controller {text}: options have names, as in --controller "
                                  "fanout,multipath=message,seed=2")
            checked(params)
            if automatic:
                choose(str(named.get("kind", kinds[0] if kinds else "auto")), controlled=True)
    # It switches by itself; without this, mn refuses to start where no controller is installed.
    if automatic and not options.controller:
        options.controller = ["none"]


def _known(option: str, name: str, known: dict[str, Any]) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ConfigError(f"--{option} {name}: unknown; {hint}there are {', '.join(sorted(known))}")


def _end(code: int, text: str) -> None:
    _stop_networks()
    error(f"smtnet: {text}\n")
    sys.exit(code)


def _stop_networks() -> None:
    for net in _networks:
        try:
            net.stop()
        except Exception:  # it was half made, and Mininet stops at the first thing that is not there
            debug(traceback.format_exc())
            for end in (*(controller.stop for controller in net.controllers), *(link.stop for link in net.links),
                        *(switch.stop for switch in net.switches),
                        *(node.terminate for node in (*net.switches, *net.hosts))):
                with contextlib.suppress(Exception):
                    end()
