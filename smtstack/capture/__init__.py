"""Captures: reading and writing the files, and checking what was said in them. Passive, never sends."""
