"""The commands of the embedded store: of every module ``commands_*`` here. Nothing lists them."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from workloads import kv
from workloads.kv import commands_transactions, entry

for _module in iter_modules(kv.__path__):
    if _module.name.startswith("commands_"):
        import_module(f"{kv.__name__}.{_module.name}")

#: All of them, by name, and how one of them is done.
COMMANDS = entry.COMMANDS
execute, rejected = commands_transactions.execute, commands_transactions.rejected
