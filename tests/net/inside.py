"""For the programs that tests run in a sandbox of their own."""

from __future__ import annotations

import sys

from topo import sandbox


def go_inside() -> None:
    """Go on in a new sandbox; outside, exit as what is in there does. Nothing, in a sandbox."""
    if not sandbox.inside():
        code = sandbox.enter()
        if code is not None:
            sys.exit(code)
