"""Where the program ``redis-server`` is."""

from __future__ import annotations

import shutil
from pathlib import Path

from smtstack.errors import Unsupported

#: The same program under another name, in Debian's ``redis-tools``. The package ``redis-server`` brings little
#: more than a daemon that starts with the machine, which nobody asked for.
_TWIN = "redis-check-rdb"


def is_installed() -> bool:
    """Whether there is one."""
    return bool(shutil.which("redis-server") or shutil.which(_TWIN))


def redis_server(folder: Path) -> str:
    """The path of redis-server; ``folder`` is for a link, if one is needed. Raises :class:`Unsupported`."""
    found = shutil.which("redis-server")
    if found is not None:
        return found
    twin = shutil.which(_TWIN)
    if twin is None:
        raise Unsupported("no redis-server here: apt-get install redis-tools")
    # It looks at the name it was called by.
    link = folder / "redis-server"
    if not link.is_symlink():
        link.symlink_to(twin)
    return str(link)
