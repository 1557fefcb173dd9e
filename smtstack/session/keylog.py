"""Secrets for who may read a capture: written only when somebody asked for it.

Lines of TLS are those of the SSLKEYLOGFILE format. A session's own is::

    SMT_SECRET <client ip:port> <server ip:port> <unix time, ns> <cipher>,<index bits>,<padding> <secret, hex>

and for a session that began by 0-RTT and became forward-secret a line ``SMT_EARLY_SECRET`` of the same form comes
first: the secret of the client's first flight.
"""

from __future__ import annotations

from collections.abc import Callable

from smtstack.session.established import Established
from smtstack.wire.ipv4 import format_address


class Keylog:
    """Gives each line, with its end, to ``write``: whole and at once, as several processes may write one file."""

    def __init__(self, write: Callable[[str], None], write_tls: Callable[[str], None] | None = None) -> None:
        """``write_tls`` gets the lines of TLS as well."""
        self._write = write
        self._write_tls = write_tls

    def tls(self, line: str) -> None:
        """A line as OpenSSL makes it."""
        for write in (self._write, self._write_tls):
            if write is not None:
                write(line + "\n")

    def session(self, session: Established, local_ip: int, local_port: int, utc_ns: int) -> None:
        """The secrets of a session that was established at ``utc_ns``; those of them that are known."""
        local = f"{format_address(local_ip)}:{local_port}"
        peer = f"{format_address(session.ip)}:{session.port}"
        ends = f"{local} {peer}" if session.is_client else f"{peer} {local}"
        agreed = session.agreement
        how = f"{agreed.cipher},{agreed.index_bits},{agreed.padding}"
        for label, secret in (("SMT_EARLY_SECRET", session.early), ("SMT_SECRET", session.secret)):
            if secret:
                self._write(f"{label} {ends} {utc_ns} {how} {secret.hex()}\n")
