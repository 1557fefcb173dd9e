"""Refusals that a client can believe: signed by the server, for the very flight that they answer.

A signature is over both ends' addresses, the flight, and what the refusal says; flights have randoms in them, so
nobody can use one twice. It stands in the refusal's last field, as ``certificates: count(1), each length(2) bytes;
signature: length(2) bytes``. A refusal without one says nothing that anybody on the path could not have said.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from smtstack.crypto.keys import Endpoints
from smtstack.errors import BadPacket, HandshakeError
from smtstack.session.flights import Flight, Kind, parse_untrusted
from smtstack.session.identity import Identity, verify_signature
from smtstack.session.reader import Reader, pack_chain, vector

_CONTEXT = b"smtnet refusal 2"
_SIGNED = Kind.CLIENT_HELLO, Kind.CLIENT_FINISH, Kind.EARLY_HELLO
#: No signature makes an answer longer than this many times the flight: whose address somebody gives as his own is
#: not to get more than a handshake would bring it.
_MAX_GROWTH = 8


def signed(refusal: Flight, asked: bytes, ends: Endpoints, identity: Identity) -> Flight:
    """The refusal of flight ``asked``, with our signature; as it is if the flight begins nothing or is too short.

    ``ends``: from our side.
    """
    try:
        kind = parse_untrusted(asked).kind
    except BadPacket:
        return refusal
    if kind not in _SIGNED:
        return refusal
    digest = _content(refusal, asked, (ends.peer_ip, ends.peer_port), (ends.local_ip, ends.local_port))
    proof = pack_chain(identity.chain) + vector(identity.sign(_CONTEXT, digest))
    made = replace(refusal, fields=(*refusal.fields[:-1], proof))
    return made if len(made.pack()) <= _MAX_GROWTH * len(asked) else refusal


def is_proven(refusal: Flight, asked: bytes, ends: Endpoints, identity: Identity, utc: int) -> bool:
    """Whether the server itself refuses our flight ``asked``. ``ends``: from our side."""
    try:
        reader = Reader(refusal.fields[-1], "the proof of a refusal")
        chain = reader.chain()
        signature = reader.vector(2)
        reader.end()
        identity.verify(chain, ends.peer_ip, utc, server=True)
        digest = _content(refusal, asked, (ends.local_ip, ends.local_port), (ends.peer_ip, ends.peer_port))
        verify_signature(chain[0], _CONTEXT, digest, signature)
    except (BadPacket, HandshakeError):
        return False
    return True


def _content(refusal: Flight, asked: bytes, client: tuple[int, int], server: tuple[int, int]) -> bytes:
    whole = hashlib.sha256()
    for ip, port in (client, server):
        whole.update(ip.to_bytes(4, "big") + port.to_bytes(2, "big"))
    whole.update(hashlib.sha256(asked).digest())
    for part in refusal.fields[:-1]:
        whole.update(vector(part))
    return whole.digest()
