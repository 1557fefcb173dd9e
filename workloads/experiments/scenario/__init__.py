"""A network, loads and faults over time, as a file says: ``smtnet run scenario FILE.toml``."""
