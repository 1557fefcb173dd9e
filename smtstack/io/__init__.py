"""Packets to and from the operating system: raw sockets, rings, neighbours, namespaces, polling."""
