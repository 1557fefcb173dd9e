"""Servers and clients as processes on the hosts of a network."""
