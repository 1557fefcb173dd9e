"""Record protection, sessions and keys. Knows nothing of packets or of time."""
