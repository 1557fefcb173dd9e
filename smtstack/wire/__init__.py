"""Packet formats. One module a header family; frozen dataclasses with ``pack`` and ``parse_untrusted``.

Functions that touch bytes off the wire end in ``_untrusted`` and raise only
:class:`~smtstack.errors.BadPacket`.
"""
