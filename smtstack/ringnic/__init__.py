"""Hosting ``ring``: the stack as a guarded process, behind rings that it shares with an untrusted host."""
