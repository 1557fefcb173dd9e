"""A network in virtual time: the real endpoints and devices, integer nanoseconds, the same run from the same seed.

:mod:`~smtstack.sim.network` puts one together; everything else is its parts.
"""
