"""What ``mn --custom topo/mn.py`` adds to Mininet, and the few things it mends in ``mn`` itself.

Plain mn exits with 0 whatever a test or a command came to, and after any error runs Mininet's ``cleanup``,
which ends other people's networks on the same machine. With the plug-in the exit code is that of ``smtnet``
(1 failed, 2 usage, 3 the environment lacks something), and only the network that was started is ended.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import mininet.cli
import mininet.net
from mininet.log import debug, error, output
from mininet.util import splitArgs

from controllers.controller import RyuController, checked
from smtstack.errors import ConfigError, SmtError, Unsupported
from topo import cli_verbs, ovs
from topo.echo import pairs_of, run_pairs, table
from topo.host import SmtHost
from topo.interpreter import host_python
from topo.link_options import LinkOptions
from topo.links import SmtLink
from topo.programs import check_session
from topo.switches import AutoSwitch, choose
from topo.topologies import TOPOS

EXIT_FAILED, EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143

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
    output(f"*** smtecho: {count} RPCs of {size} bytes over {transport}\n")
    results = []
    for result in run_pairs(pairs_of(net.hosts), size=size, count=count, transport=transport, nic=nic,
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
    SmtHost.interpreter = host_python()
    main = sys.modules["__main__"]
    runner = getattr(main, "MininetRunner", None)
    if runner is None:
        return
    # Mininet 2.3 does not take "links" from custom files, though it takes everything else.
    vars(main)["LINKS"].update(links)
    _mend_networks(mininet.net.Mininet)
    runner.begin = _begin_with_exit_code(runner.begin)


def _mend_networks(kind: Any) -> None:
    first, start, last = kind.__init__, kind.start, kind.stop

    def init(self: Any, *args: Any, **params: Any) -> None:
        _networks.append(self)
        first(self, *args, **params)

    def start_and_widen(self: Any) -> None:
        ours = [c for c in self.controllers if isinstance(c, RyuController)]
        for controller in ours:
            controller.take(self)
        start(self)
        if any(getattr(switch, "datapath", "") == "user" and isinstance(switch, AutoSwitch)
               for switch in self.switches):
            try:
                ovs.widen_buffers()
            except SmtError as e:
                error(f"*** {e}\n")
        for controller in ours:
            controller.ready()
            cli_verbs.spread(self, controller.message_paths)

    def stop(self: Any) -> None:
        cli_verbs.release(self)
        last(self)

    kind.__init__, kind.start, kind.stop = init, start_and_widen, stop


def _begin_with_exit_code(begin: Callable[[Any], None]) -> Callable[[Any], None]:
    def begin_and_exit(self: Any) -> None:
        signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(EXIT_TERMINATED))
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
            _end(_exit_code(e), f"{e}" if isinstance(e, SmtError) else f"{type(e).__name__}: {e}")
        if _failures:
            sys.exit(EXIT_FAILED)

    return begin_and_exit


def _check(options: Any) -> None:
    """Refuse what cannot work before anything is made."""
    if options.clean:
        return
    if os.geteuid() != 0:
        raise Unsupported("Mininet needs root: run it with sudo")
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


def _exit_code(problem: Exception) -> int:
    if isinstance(problem, ConfigError):
        return EXIT_USAGE
    return EXIT_ENVIRONMENT if isinstance(problem, Unsupported) else EXIT_FAILED


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
