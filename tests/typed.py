"""Options as if they had been typed."""

from __future__ import annotations

import argparse
from typing import TypeVar

from workloads.options import declare

T = TypeVar("T")


def typed(kind: type[T], *words: str) -> T:
    """The program ends with a usage message where they cannot be."""
    parser = argparse.ArgumentParser()
    declare.add(kind, parser)
    return declare.read(kind, parser.parse_args(words))
