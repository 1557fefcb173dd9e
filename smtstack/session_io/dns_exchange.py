"""Questions and updates to a DNS server about tickets (RFC 1035, 2136, 8945), by dnspython.

All calls block, for ``timeout`` seconds at most, and raise :class:`PeerError` for what the network does. Importing
this without dnspython raises :class:`Unsupported`.
"""

from __future__ import annotations

import base64
import socket
import time

from smtstack.errors import BadPacket, ConfigError, PeerError, Unsupported
from smtstack.session.tickets import MAX_LIFE_S, MAX_TICKET, Ticket, parse_untrusted
from smtstack.session_io.tsig_file import ALGORITHM, NAME_CHARACTERS, ZONE, DnsAddress, TsigKey

try:
    import dns.exception
    import dns.message
    import dns.name
    import dns.query
    import dns.rcode
    import dns.rdataclass
    import dns.rdatatype
    import dns.rdtypes.ANY.TXT
    import dns.tsig
    import dns.update
except ImportError:
    raise Unsupported("dnspython is not installed, which tickets need: pip install dnspython") from None

#: Seconds a client keeps a ticket: so long a revoked one is still tried.
TTL_S = 60
#: Seconds for one lookup or update, all attempts together.
TIMEOUT_S = 3.0
_ATTEMPTS = 3
#: Bytes of an answer over UDP that no path fragments (RFC 9715); what is longer comes over TCP.
_UDP_PAYLOAD = 1232
_PIECE = 255
#: Records looked at, where somebody put several.
_MAX_RECORDS = 4


class NoDns(PeerError):
    """Nobody answers."""


def record_name(host: str, port: int, zone: str = ZONE) -> dns.name.Name:
    """Where the ticket of that server is; raises :class:`ConfigError` for a name DNS cannot have."""
    try:
        if not host or not set(host) <= NAME_CHARACTERS:
            raise ConfigError(f"{host!r} is no name of a host in DNS")
        return dns.name.from_text(f"_{port}._smt.{host}.{zone}")
    except dns.exception.DNSException as e:
        raise ConfigError(f"{host!r} is no name of a host in DNS: {e}") from None


def lookup(host: str, port: int, server: DnsAddress, zone: str = ZONE, *,
           timeout: float = TIMEOUT_S) -> tuple[Ticket, int]:
    """The ticket of a server, not yet verified, and for how many seconds it may be kept."""
    name = record_name(host, port, zone)
    query = dns.message.make_query(name, dns.rdatatype.TXT, use_edns=0, payload=_UDP_PAYLOAD)
    answer = _ask(query, server, timeout)
    if answer.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        raise PeerError(f"DNS server {_text(server)} answers {dns.rcode.to_text(answer.rcode())} for {name}")
    records = answer.get_rrset(dns.message.ANSWER, name, dns.rdataclass.IN, dns.rdatatype.TXT)
    if not records:
        raise PeerError(f"host {host} has no ticket at {name} (DNS server {_text(server)})")
    tickets: list[Ticket] = []
    error = ""
    for record in list(records)[:_MAX_RECORDS]:
        try:
            tickets.append(_ticket_untrusted(record))
        except BadPacket as e:
            error = str(e)
    if not tickets:
        raise PeerError(f"host {host} has no ticket at {name}, but: {error}")
    return max(tickets, key=lambda t: t.not_after), min(records.ttl, MAX_LIFE_S)


def publish(ticket: Ticket, server: DnsAddress, key: TsigKey, zone: str = ZONE, *, ttl: int = TTL_S,
            timeout: float = TIMEOUT_S) -> None:
    """Put the ticket where clients look, in place of an older one."""
    text = base64.b64encode(ticket.pack())
    pieces = [text[i:i + _PIECE] for i in range(0, len(text), _PIECE)]
    update = _update(zone, key)
    update.replace(record_name(ticket.name, ticket.port, zone), ttl,
                   dns.rdtypes.ANY.TXT.TXT(dns.rdataclass.IN, dns.rdatatype.TXT, pieces))
    _change(update, server, zone, timeout)


def withdraw(host: str, port: int, server: DnsAddress, key: TsigKey, zone: str = ZONE, *,
             timeout: float = TIMEOUT_S) -> None:
    """Remove the ticket of that server; what clients have, they keep for ``TTL_S``."""
    update = _update(zone, key)
    update.delete(record_name(host, port, zone), dns.rdatatype.TXT)
    _change(update, server, zone, timeout)


def _update(zone: str, key: TsigKey) -> dns.update.UpdateMessage:
    try:
        name = dns.name.from_text(key.name)
        return dns.update.UpdateMessage(zone, keyring={name: key.secret}, keyname=name, keyalgorithm=ALGORITHM)
    except dns.exception.DNSException as e:
        raise ConfigError(f"{zone!r} is no name of a zone in DNS: {e}") from None


def _change(update: dns.update.UpdateMessage, server: DnsAddress, zone: str, timeout: float) -> None:
    try:
        answer = dns.query.tcp(update, server[0], timeout, server[1])
    except (OSError, EOFError, dns.exception.Timeout) as e:
        raise _gone(server, e) from None
    except (dns.tsig.PeerError, dns.tsig.BadSignature) as e:
        raise PeerError(f"DNS server {_text(server)} and we have different TSIG keys for {zone} "
                        f"({type(e).__name__})") from None
    except dns.exception.DNSException as e:
        raise PeerError(f"DNS server {_text(server)} does not let us change {zone}: it does not sign its answer "
                        f"({type(e).__name__}); is it the server of that zone?") from None
    if not _is_signed(answer, update):
        raise PeerError(f"DNS server {_text(server)} does not let us change {zone}: it does not sign its answer; "
                        "is it the server of that zone?")
    if answer.rcode() != dns.rcode.NOERROR:
        raise PeerError(f"DNS server {_text(server)} does not let us change {zone}: "
                        f"{dns.rcode.to_text(answer.rcode())}")


def _is_signed(answer: dns.message.Message, update: dns.message.Message) -> bool:
    """Whether the answer to a signed update is signed by the same key.

    The library checks a signature that is there; that there is one, not all of its releases do.
    """
    return (bool(answer.had_tsig) and answer.keyname == update.keyname and answer.tsig_error == dns.rcode.NOERROR
            and answer.keyalgorithm == update.keyalgorithm)


def _ask(query: dns.message.Message, server: DnsAddress, timeout: float) -> dns.message.Message:
    end = time.monotonic() + timeout
    for attempt in range(1, _ATTEMPTS + 1):
        last = attempt == _ATTEMPTS
        patience = max(0.01, end - time.monotonic()) if last else timeout / _ATTEMPTS
        try:
            if last:
                # A path may take no datagram of the answer's size; segments are cut to fit.
                return dns.query.tcp(query, server[0], patience, server[1])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setblocking(False)
                # Connected, it is told at once where nobody listens.
                sock.connect(server)
                # ignore_errors: a forged answer does not keep us from the true one.
                return dns.query.udp_with_fallback(query, server[0], patience, server[1], ignore_errors=True,
                                                   udp_sock=sock)[0]
        except dns.exception.Timeout as e:
            if last or time.monotonic() >= end:
                raise _gone(server, e) from None
        except (OSError, EOFError) as e:
            raise _gone(server, e) from None
        except dns.exception.DNSException as e:
            raise PeerError(f"DNS server {_text(server)} answers what is no DNS: {type(e).__name__}") from None
    raise AssertionError("the last attempt returns or raises")


def _gone(server: DnsAddress, error: Exception) -> NoDns:
    why = error.strerror if isinstance(error, OSError) and error.strerror else "no answer"
    return NoDns(f"no DNS server answers at {_text(server)} ({why}); is it running, and reachable from here?")


def _ticket_untrusted(record: object) -> Ticket:
    strings: tuple[bytes, ...] = getattr(record, "strings", ())
    text = b"".join(strings)
    if len(text) > MAX_TICKET * 4 // 3 + 4:
        raise BadPacket("a record too long for a ticket")
    try:
        return parse_untrusted(base64.b64decode(text, validate=True))
    except ValueError:
        raise BadPacket("a record that is not base64") from None


def _text(server: DnsAddress) -> str:
    return f"{server[0]}:{server[1]}"
