"""A software smart NIC: TX queues, TSO, TLS contexts with resync, steering, impairments.

The driver half (:mod:`~smtstack.nic.driver`) is host software and posts descriptors. The device half
(:mod:`~smtstack.nic.device`) sees descriptors and frames only, never host state.
"""
