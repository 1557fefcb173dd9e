"""What loads a transport, and how that is timed; no network is made here."""
