"""smtstack: the SMT and Homa message transports, their record layer and a software smart NIC.

Everything below :mod:`smtstack.io` is sans-IO: no socket, clock, thread or random number of its
own. Time is an argument, in integer nanoseconds. ``docs/architecture.md`` is the map.
"""

from smtstack import compiled as _compiled

__version__ = "0.1.0"

_compiled.use(_compiled.BUILD)
