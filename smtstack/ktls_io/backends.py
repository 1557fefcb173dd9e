"""The backends of this machine: those of one process, and those that are processes."""

from __future__ import annotations

from smtstack.errors import ConfigError
from smtstack.ktls.backends import IN_PROCESS, InNic, Registry

#: By name, as an option takes them.
NAMES = (*IN_PROCESS, "coproc", "openssl-noaesni")


def default_backends(name: str = "openssl", nic: bool = False) -> Registry:
    """A registry with one software backend (:data:`NAMES`), and with ``nic`` that of the NIC. Raises
    :class:`~smtstack.errors.ConfigError`, :class:`~smtstack.errors.Unsupported`."""
    registry = Registry()
    if name in IN_PROCESS:
        registry.register(IN_PROCESS[name]())
    elif name in NAMES:
        from smtstack.ktls_io.coproc import open_backend

        registry.register(open_backend(name))
    else:
        raise ConfigError(f"there is no backend {name!r}; there are {', '.join(NAMES)}")
    if nic:
        registry.register(InNic())
    return registry
