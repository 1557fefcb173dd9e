"""Tests of smtnet."""
