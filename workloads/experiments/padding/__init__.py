"""Bytes that padding records costs, by workload."""
