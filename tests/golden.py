"""Captures and vectors of the real kernel module: not part of the project, used where they are to be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parent.parent


def golden(*parts: str) -> Path:
    """A file of the reference data, or a skip that says what to set.

    Looked for in $SMTNET_GOLDEN, else in a directory ``shared`` beside the checkout.
    """
    named = os.environ.get("SMTNET_GOLDEN")
    base = Path(named) if named else _ROOT.parent / "shared"
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"reference data {'/'.join(parts)} is neither in $SMTNET_GOLDEN nor in ../shared")
    return path
