"""Rings and frames shared with a host that is not trusted: what of them is believed, and after which check."""
