"""The Homa engine, sans-IO: RPCs, unscheduled and granted data, SRPT, loss recovery.

:class:`~smtstack.transport.endpoint.Endpoint` is the way in. Time is an argument, in nanoseconds.
"""
