"""``smtnet pcap dissector``: where the Wireshark dissector is, or into Wireshark with it."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from smtstack import capture
from smtstack.errors import ConfigError

NAME = "smt.lua"

_EXAMPLES = """examples:
  tshark -X lua_script:"$(smtnet pcap dissector)" -r open.pcapng
  smtnet pcap dissector --install
"""


def add_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``dissector``."""
    parser = actions.add_parser(
        "dissector", help="the Wireshark dissector", epilog=_EXAMPLES,
        description="Print where the Lua dissector for Wireshark and tshark is, or install it for this user.")
    parser.add_argument("--install", action="store_true",
                        help="copy it into Wireshark's folder for personal plugins")
    parser.set_defaults(run=run_dissector)


def script() -> Path:
    """The dissector."""
    return Path(capture.__file__).parent / NAME


def plugin_folder() -> Path:
    """Where Wireshark looks for a person's own Lua scripts: what tshark says, or else the usual place."""
    tshark = shutil.which("tshark")
    if tshark is not None:
        said = subprocess.run([tshark, "-G", "folders"], capture_output=True, text=True, check=False).stdout
        for line in said.splitlines():
            name, _colon, folder = line.partition(":")
            if name == "Personal Lua Plugins" and folder.strip():
                return Path(folder.strip())
    return Path.home() / ".local" / "lib" / "wireshark" / "plugins"


def run_dissector(args: argparse.Namespace) -> int:
    """Print the path of the script, or of its installed copy."""
    if not args.install:
        print(script())
        return 0
    target = plugin_folder() / NAME
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(script().read_bytes())
    except OSError as e:
        raise ConfigError(f"{target}: {e.strerror}") from None
    print(target)
    if os.geteuid() == 0:
        print("smtnet: installed for root, as whom Wireshark 4.4 runs no scripts: install it as the user who "
              "looks at captures", file=sys.stderr)
    return 0
