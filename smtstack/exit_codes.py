"""What programs of smtnet exit with. Design: docs/experiments.md lists them for people."""

from __future__ import annotations

import signal

from smtstack.errors import ConfigError, Unsupported

#: Ended well; something failed; usage or configuration; the machine lacks something; the run was not faithful.
EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_ENVIRONMENT, EXIT_UNFAITHFUL = range(5)
#: What a shell reports of a program that a signal ended: Ctrl-C, a result nobody reads any more, a polite kill.
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_READER_GONE = 128 + signal.SIGPIPE
EXIT_TERMINATED = 128 + signal.SIGTERM


def exit_code(error: BaseException) -> int:
    """The exit code of a program that ``error`` ends."""
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    if isinstance(error, ConfigError):
        return EXIT_USAGE
    return EXIT_ENVIRONMENT if isinstance(error, Unsupported) else EXIT_FAILED
