"""The loaded network in virtual time, beside published results."""
