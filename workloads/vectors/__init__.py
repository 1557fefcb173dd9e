"""Test vectors for other implementations."""
