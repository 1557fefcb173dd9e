"""What the figures of ``smtnet reproduce`` have in common."""

from __future__ import annotations

import textwrap


def filled(description: str) -> str:
    """A description broken into lines of 100 characters, for --help, which leaves lines as they are."""
    return textwrap.fill(description, 100)
