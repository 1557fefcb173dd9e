"""The file that tells the controller's process which network is its own."""

from __future__ import annotations

from pathlib import Path

from controllers.fabric import Fabric
from smtstack.errors import ConfigError


def load_fabric(path: str | None) -> Fabric:
    """The fabric in a file; raises :class:`ConfigError` with how to get one."""
    if path is None:
        raise ConfigError("which network is it? --smtnet-fabric FILE, as this writes it: "
                          "smtnet plan TOPO --fabric FILE")
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "no text"
        raise ConfigError(f"--smtnet-fabric {path}: {reason}; this writes one: "
                          f"smtnet plan TOPO --fabric {path}") from None
    try:
        return Fabric.from_json(text)
    except ConfigError as e:
        raise ConfigError(f"--smtnet-fabric {path}: {e}") from None
