"""UDP over IPv4 without any I/O, for a guarded process: what RAKIS has lwIP for."""
