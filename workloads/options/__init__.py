"""Command-line words to typed values."""
