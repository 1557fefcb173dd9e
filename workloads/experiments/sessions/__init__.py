"""Thousands of sessions at one server."""
