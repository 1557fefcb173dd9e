"""Ryu with our application: ``python -m controllers.launch fanout --smtnet-fabric fabric.json``.

Takes what ``ryu-manager`` takes; ``fanout`` is short for :mod:`controllers.multipath`. Ryu 4.34 is not maintained
any more: it looks for a name that eventlet 0.30.3 and later do not have, so ``ryu-manager`` itself does not start.
"""

from __future__ import annotations

import functools
import os
import socket
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from controllers.fabric_file import load_fabric
from smtstack.errors import ConfigError, SmtError, Unsupported
from smtstack.exit_codes import EXIT_INTERRUPTED, exit_code
from smtstack.io.standard_streams import run_program

#: Short names of applications.
APPS = {"fanout": "controllers.multipath"}
_LOCALHOST = "127.0.0.1"
#: IANA's, and Ryu's default.
_OPENFLOW_PORT = 6653


def prepare() -> Any:
    """Make Ryu importable, and import it: its ``ryu.cmd.manager``. Raises :class:`Unsupported` where that fails.

    Before any other import of Ryu or eventlet.
    """
    # Eventlet says that it is deprecated. It is all Ryu runs on.
    warnings.filterwarnings("ignore", message=r"\s*Eventlet is deprecated")
    # Of ryu's own lines, where no installer compiled them before.
    warnings.filterwarnings("ignore", category=SyntaxWarning)
    # Eventlet's own resolver, which brings half of all there is to import: a controller resolves no names.
    os.environ.setdefault("EVENTLET_NO_GREENDNS", "yes")
    try:
        import eventlet.wsgi

        # By default two controllers could listen on one port, and each would get some of the switches.
        eventlet.listen = functools.partial(eventlet.listen, reuse_port=False)
        # Ryu hands it back for a websocket that took over its connection; none is served here.
        if not hasattr(eventlet.wsgi, "ALREADY_HANDLED"):
            eventlet.wsgi.ALREADY_HANDLED = []
        from ryu.cmd import manager
    except ImportError as e:
        raise Unsupported(f"no OpenFlow controller: {e}; run 'make venv', which installs Ryu 4.34 and what it "
                          "needs") from None
    return manager


def main(argv: Sequence[str]) -> int:
    """Run until SIGTERM; the exit code. ``argv`` without the program's name."""
    try:
        return _run([APPS.get(argument, argument) for argument in argv])
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except SmtError as e:
        print(f"smtnet: {e}", file=sys.stderr)
        return exit_code(e)


def _run(arguments: list[str]) -> int:
    manager = prepare()
    # Neither OpenFlow without TLS nor the REST interface is for other machines, unless somebody says so.
    manager.CONF.set_default("ofp_listen_host", _LOCALHOST)
    manager.CONF.set_default("wsapi_host", _LOCALHOST)
    if APPS["fanout"] in arguments:
        from controllers import multipath

        # Ryu would read them only after it has begun to listen, and then print a traceback.
        manager.CONF(args=arguments, project="ryu", version="smtnet", default_config_files=[])
        load_fabric(manager.CONF.smtnet_fabric)
        multipath.check_options(manager.CONF)
        _check_port(manager.CONF.ofp_listen_host, manager.CONF.ofp_tcp_listen_port or _OPENFLOW_PORT,
                    "--ofp-tcp-listen-port")
        _check_port(manager.CONF.wsapi_host, manager.CONF.wsapi_port, "--wsapi-port")
    manager.main(arguments, prog="controllers.launch")
    return 0


def _check_port(host: str, port: int, option: str) -> None:
    """Ryu itself goes on without one of the two that it cannot have."""
    try:
        with socket.socket() as s:
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind((host, port))
    except OSError as e:
        raise ConfigError(f"cannot listen on {host}:{port}: {e.strerror}; take another with {option}") from None


if __name__ == "__main__":
    sys.exit(run_program(lambda: main(sys.argv[1:])))
