"""The errors of smtnet: one tree, so that a caller can catch by whose fault it was."""


class SmtError(Exception):
    """Base of every error smtstack raises on purpose."""


class LocalError(SmtError):
    """The caller used the API wrongly; nothing was sent."""


class PeerError(SmtError):
    """The peer, or somebody on the path, broke the protocol."""


class BadPacket(PeerError):
    """Bytes off the wire that are no packet of ours. The only error a ``*_untrusted`` function raises."""


class AuthError(PeerError):
    """A record failed authentication: wrong key, wrong record number, or changed bytes."""


class HandshakeError(AuthError):
    """No session: the peer is not who it must be, or the handshake was changed on its way.

    ``alert``: what TLS would tell the other side about it (RFC 8446 §6); may be empty.
    """

    def __init__(self, text: str, alert: bytes = b"") -> None:
        super().__init__(text)
        self.alert = alert


class ConfigError(SmtError):
    """A setting, key file or option makes no sense; the text names it and the fix."""


class Unsupported(SmtError):
    """This kernel or machine lacks something; the text names it and the fix."""
