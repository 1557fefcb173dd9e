"""Figures of the SMT paper that are echo on a cable: 6, 7, 10, 11."""
