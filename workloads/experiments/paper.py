"""What the figures of ``smtnet reproduce`` have in common."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path


def new_figure(figures: argparse._SubParsersAction[argparse.ArgumentParser], name: str, help_text: str,
               description: str, examples: str, quick: str) -> argparse.ArgumentParser:
    """The parser of one figure, with the options all of them have. ``quick`` says what ``--quick`` leaves out."""
    parser = figures.add_parser(name, help=help_text, epilog=examples, description=filled(description),
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--results", type=Path, default=Path("results"), metavar="DIR",
                        help="where the result folder goes (default: %(default)s)")
    parser.add_argument("--strict", action="store_true", help="exit 4 if any trial was not faithful")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    return parser


def filled(description: str) -> str:
    """In lines, for --help, which leaves them as they are."""
    return textwrap.fill(description, 100)
